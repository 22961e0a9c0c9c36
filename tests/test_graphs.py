"""Recorded decode steps (graphs.py): what is recorded, on a CPU, where a replay runs it again.

On a GPU the recordings themselves are tested by `python -m tests.differential --device cuda`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_eval_embednoise.engine import graphs
from lm_eval_embednoise.engine.attention import fused
from lm_eval_embednoise.engine.batch import Batch
from lm_eval_embednoise.engine.graphs import StepGraphs, rounded
from lm_eval_embednoise.kernels.attention import softmax_attention
from tests.differential import Result, check, draw


class Again:
    """In the place of a CUDA graph: a replay runs the step again, into the recorded tensors."""

    replays = 0

    def __init__(self, steps: StepGraphs, rows: int, columns: int) -> None:
        self.steps, self.size = steps, (rows, columns)
        self.logits, self.measured = steps._run(rows, columns)
        self.logits, self.measured = self.logits.clone(), dict(self.measured)

    def replay(self) -> None:
        Again.replays += 1
        logits, measured = self.steps._run(*self.size)
        self.logits.copy_(logits)
        for site, sums in measured.items():
            self.measured[site].copy_(sums)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Batches that may record their steps do, on the CPU."""

    def record(self: StepGraphs, rows: int, columns: int) -> Any:
        again = Again(self, rows, columns)
        return graphs._Recording(again, again.logits, again.measured)  # type: ignore[arg-type]

    monkeypatch.setattr(StepGraphs, "_record", record)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(graphs, "COLUMNS", 16)
    recordable = property(lambda self: not self.share and not self.fixed)
    monkeypatch.setattr(Batch, "_recordable", recordable)
    return monkeypatch


def test_recorded_steps_give_the_samples_of_a_pass_without_a_cache(recorded: Any) -> None:
    """Random cases of the models that are served, copies of the prompt for every row."""
    recorded.setattr("lm_eval_embednoise.engine.sampler.SHARED_ROWS", 10**6)
    result, number, Again.replays = Result(), 0, 0
    while result.counts["cases"] < 16:
        number += 1
        case = draw(9, number)
        if case.model.startswith(("llama", "qwen2", "mistral")) and not case.exact:
            check(dataclasses.replace(case, dtype=torch.float32), result)
    assert result.faults == []
    assert Again.replays > 100


@given(st.integers(1, 300), st.data())
def test_recordings_are_few_and_large_enough(slots: int, data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, slots)), data.draw(st.integers(1, 3000))
    width = data.draw(st.integers(1, columns))
    of_rows, of_columns = rounded(rows, slots, width, columns)
    assert rows <= of_rows <= slots
    assert width <= of_columns <= columns
    assert of_rows < 2 * rows or of_rows <= 2 * graphs.FEWEST
    assert len({rounded(n, slots, width, columns)[0] for n in range(1, slots + 1)}) <= 7
    assert of_columns < width + graphs.COLUMNS


@settings(max_examples=20)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 9), st.booleans())
def test_fused_attention_is_attention(rows: int, queries: int, width: int, masked: bool) -> None:
    shapes = [(rows, 2, queries, 8), (rows, 2, width, 8), (rows, 2, width, 8)]
    q, k, v = (torch.randn(shape) for shape in shapes)
    mask = None
    if masked:
        seen = torch.rand(rows, 1, 1, width) < 0.5
        seen[..., 0] = True
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    torch.testing.assert_close(fused(q, k, v, mask, 0.3), softmax_attention(q, k, v, mask, 0.3)[0])
