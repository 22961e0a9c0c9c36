"""Prompts into memory before decoding: what samples share once for all, the rest for each row."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from lm_eval_embednoise.engine import attention
from lm_eval_embednoise.engine.attention import Shared
from lm_eval_embednoise.engine.lanes import threads
from lm_eval_embednoise.engine.shared_prefix import SharedPrefixCache
from lm_eval_embednoise.engine.slots import Entries, SlotCache, entries
from lm_eval_embednoise.noise.inject import Rows, acting

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lm_eval_embednoise.engine.jobs import Job
    from lm_eval_embednoise.engine.runner import Runner

PASS_TOKENS = 8192  # positions of one pass
LEAN_TOKENS = 2048  # the same in C: its intermediate results should fit a core's caches
FILLED_UP = 1.2  # how many times their own positions prompts of unequal length may take in a pass


@dataclass
class Prepared:
    """What the rows of one job have in common, made when the first of them joins.

    Attributes:
        job: the job.
        place: sample index → its row in the tensors below.
        uniforms: float64 [samples, tokens] for sampling, or None.
        keys: site → int64 [samples, 2], noise streams.
        std: site → standard deviation per coordinate.
        shared_len: positions of the prompt that were prefilled once for all rows, or are about to
            be.
        entries: their keys and values.
        shared: the same for rows that don't keep a copy.
        logits: float32 [1, vocab] after them.
    """

    job: Job
    place: dict[int, int]
    uniforms: Tensor | None
    keys: dict[str, Tensor]
    std: dict[str, float]
    shared_len: int
    entries: Entries | None = None
    shared: list[Shared] = field(default_factory=list)
    logits: Tensor | None = None


def prefill_clean(
    runner: Runner, jobs: list[Prepared], alone: bool, read: Callable[[int], None]
) -> None:
    """Run what samples share of jobs' prompts, several in one pass.

    Args:
        runner: gives the model.
        jobs: get entries and logits.
        alone: a pass for each.
        read: told after each pass how many positions it had.
    """
    together: list[Prepared] = []
    real, most = 0, pass_tokens(runner)

    def run() -> None:
        prompts = [ready.job.prompt_ids[: ready.shared_len] for ready in together]
        for ready, (logits, prefilled) in zip(together, run_prompts(runner, prompts), strict=True):
            ready.logits, ready.entries = logits, prefilled
            ready.shared = [Shared(*layer) for layer in prefilled]
        read(sum(map(len, prompts)))

    for ready in sorted(jobs, key=lambda ready: ready.shared_len):
        real, padded = real + ready.shared_len, (len(together) + 1) * ready.shared_len
        if together and (alone or padded > min(most, FILLED_UP * real)):
            run()
            together, real = [], ready.shared_len
        together.append(ready)
    if together:
        run()


def run_prompts(runner: Runner, prompts: Sequence[Sequence[int]]) -> list[tuple[Tensor, Entries]]:
    """Run prompts in one pass: of each the logits after it, float32 [1, vocab], and its entries.

    A shorter one is padded at its end, with tokens that nothing before them sees and whose entries
    are dropped.
    """
    lengths = [len(ids) for ids in prompts]
    padded = [[*ids, *[ids[-1]] * (max(lengths) - len(ids))] for ids in prompts]
    tokens = torch.tensor(padded, device=runner.device)
    if runner.lean is not None and runner.lean.in_c:
        cache = SlotCache(len(runner.blocks), len(prompts), max(lengths))
        at = torch.tensor(lengths) - 1
        with threads(alone=False):
            logits = runner.lean.prefill(tokens, cache, torch.arange(len(prompts)), at)
        layers = entries(cache)
    else:
        last, prefilled = sorted(set(lengths)), DynamicCache()
        with runner.whole_model, threads(alone=True):
            seen = runner.forward(tokens, prefilled, at=[length - 1 for length in last])
        logits = torch.stack([seen[row, last.index(n)] for row, n in enumerate(lengths)])
        layers = entries(prefilled)
    ones = [(slice(row, row + 1), slice(None), slice(n)) for row, n in enumerate(lengths)]
    return [
        (of[None].float(), [(k[one].contiguous(), v[one].contiguous()) for k, v in layers])
        for of, one in zip(logits, ones, strict=True)
    ]


def prefill_noisy(
    runner: Runner,
    cache: SlotCache,
    ready: Prepared,
    rows: Rows,
    slots: Tensor,
    read: Callable[[int], None],
    tile: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run what follows the shared part of a job's prompt, with each row's noise.

    Args:
        runner: gives the model and the noise.
        cache: gets the entries.
        ready: gives the prompt and the entries of its shared part.
        rows: the rows' streams and soft prompts; their positions are ignored.
        slots: int64 [rows], where their entries go.
        read: told after each pass how many positions its rows had.
        tile: rows of every pass, filled up with copies (`exact`); None for as many as are fast.

    Returns:
        Logits after the prompt, float32 [rows, vocab], and site → what `inject.add_noise` measured.
    """
    device, count = runner.device, len(slots)
    lean = runner.lean if runner.lean is not None and runner.lean.in_c else None
    tail = torch.tensor([ready.job.prompt_ids[ready.shared_len :]], device=device)
    length = tail.shape[1]
    positions = torch.arange(ready.shared_len, ready.shared_len + length, device=device)
    step = tile or max(1, pass_tokens(runner) // length)
    logits: list[Tensor] = []
    measured: dict[str, list[Tensor]] = {site: [] for site in runner.perturbation.sites}
    for start in range(0, count, step):
        real = torch.arange(start, min(start + step, count), device=device)
        chosen = real if not tile else torch.cat([real, real[:1].expand(step - len(real))])
        part = rows.chosen(chosen, positions.expand(len(chosen), -1))
        if lean is not None:
            act, ratios = acting(runner.perturbation, part)
            at = torch.full((len(chosen),), length - 1)
            replaced = part.replaced if part.soft is not None else None
            with threads(alone=False):
                out = lean.prefill(
                    tail, cache, slots[chosen], at, ready.shared, act, measured.keys(), replaced
                )
        else:
            out, new, ratios = _tail_pass(runner, ready, part, tail.expand(len(chosen), -1))
            cache.fill(slots[real], [(k[: len(real)], v[: len(real)]) for k, v in new])
        read(len(real) * length)
        logits.append(out[: len(real)].float())
        for site, sums in measured.items():
            sums.append(ratios[site][: len(real)])
    return torch.cat(logits), {site: torch.cat(sums) for site, sums in measured.items()}


def pass_tokens(runner: Runner) -> int:
    """Most positions of a pass over several prompts."""
    return LEAN_TOKENS if runner.in_c else PASS_TOKENS


def _tail_pass(
    runner: Runner, ready: Prepared, rows: Rows, ids: Tensor
) -> tuple[Tensor, Entries, dict[str, Tensor]]:
    """The model's own forward after the shared part.

    Returns:
        Logits after the prompt, the new entries, and site → what `inject.add_noise` measured.
    """
    with ExitStack() as stack:
        stack.enter_context(runner.whole_model)
        stack.enter_context(threads(alone=True))
        measured = stack.enter_context(runner.perturbed(rows))
        cache: Cache = DynamicCache()
        if ready.shared_len:
            cache = prefix = SharedPrefixCache(ready.shared, ids.shape[1], keep=True)
            stack.enter_context(attention.serving(runner.attention_configs, prefix))
        logits = runner.forward(ids, cache, rows.positions)
    return logits[:, -1], entries(cache), measured
