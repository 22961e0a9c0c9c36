"""Packed layers against products in float64, when they are made, and samples with and without."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lm_eval_embednoise.engine import packed
from lm_eval_embednoise.engine.lean import Lean
from lm_eval_embednoise.engine.packed import Packed, pack, pays
from lm_eval_embednoise.engine.sampler import Sampler
from lm_eval_embednoise.kernels import build
from tests.test_sampler import METHODS, jobs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

pytestmark = [
    pytest.mark.skipif(not packed.available(), reason="nothing to pack with here"),
    pytest.mark.skipif(build.library("step") is None, reason="nothing compiled here"),
]


@settings(deadline=None)
@given(
    rows=st.integers(1, 70), inputs=st.integers(1, 90), outputs=st.integers(1, 90),
    count=st.integers(1, 3), biases=st.integers(0, 7), seed=st.integers(0, 9),
)  # fmt: skip
@torch.inference_mode()
def test_a_product_is_that_of_the_layers(
    rows: int, inputs: int, outputs: int, count: int, biases: int, seed: int
) -> None:
    torch.manual_seed(seed)
    layers = [nn.Linear(inputs, outputs + n, bias=bool(biases >> n & 1)) for n in range(count)]
    x = torch.randn(rows, inputs)
    expected = torch.cat(
        [
            x.double() @ layer.weight.double().T + (0 if layer.bias is None else layer.bias)
            for layer in layers
        ],
        dim=1,
    )
    got = pack(*layers).product(x)
    assert torch.allclose(got.double(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(pack(*layers).product(x[None])[0], got)


def test_what_is_small_or_of_another_type_or_without_memory_is_not_packed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layers = [nn.Linear(64, 64)]
    assert not pays(layers)
    monkeypatch.setattr(packed, "LEAST_BYTES", 0)
    assert pays(layers)
    assert not pays([*layers, nn.Linear(64, 64, dtype=torch.bfloat16)])
    assert not pays([*layers, nn.Linear(64, 64, device="meta")])
    size = 64 * 64 * 4
    for room in (2 * size, 2 * size + 1):
        given = psutil.virtual_memory()._replace(available=room)
        monkeypatch.setattr(psutil, "virtual_memory", lambda given=given: given)
        assert pays(layers) == (room > 2 * size)


@pytest.mark.parametrize("method", METHODS)
def test_samples_are_those_of_unpacked_layers(
    wide_qwen2: PreTrainedModel, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    perturbation, sampling = METHODS[method]
    model = wide_qwen2

    def samples(exact: bool = False) -> tuple[dict[tuple[int, int], list[int]], bool]:
        sampler = Sampler(model, perturbation, sampling, batch_size=8, exact=exact)
        with sampler.ready():
            lean = sampler.runner.lean
            assert lean is not None
            was_packed = isinstance(lean.lm_head, Packed)
            found = {(s.job, s.index): s.ids for s in sampler.run(jobs())}
        assert not hasattr(lean, "lm_head")
        return found, was_packed

    expected, was_packed = samples()
    assert not was_packed
    before = {name: weight.data_ptr() for name, weight in model.named_parameters()}
    monkeypatch.setattr(packed, "LEAST_BYTES", 0)
    got, was_packed = samples()
    assert was_packed and got == expected
    after = {name: weight.data_ptr() for name, weight in model.named_parameters()}
    kept = [name for name in before if "gate" in name or "up_proj" in name or "lm_head" in name]
    assert kept and all(before[name] == after[name] for name in kept)
    assert not samples(exact=True)[1]  # its rounding must not depend on the memory that is free


def test_packed_logits_are_the_models_own(
    wide_qwen2: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "LEAST_BYTES", 0)
    lean = Lean.of(wide_qwen2, packs=True)
    assert lean is not None
    with lean.ready() as why:  # it has compared them
        assert why is None and isinstance(lean.blocks[0].gate_up, Packed)
