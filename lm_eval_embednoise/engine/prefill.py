"""Prompts into memory before decoding: what samples share once for all, the rest for each row."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from lm_eval_embednoise.engine import attention
from lm_eval_embednoise.engine.attention import Shared
from lm_eval_embednoise.engine.behind import BehindPrompt
from lm_eval_embednoise.engine.lanes import threads
from lm_eval_embednoise.engine.rows import Prepared
from lm_eval_embednoise.engine.slots import Entries, SlotCache, entries
from lm_eval_embednoise.noise.inject import Rows, acting

if TYPE_CHECKING:
    from lm_eval_embednoise.engine.sampler import Sampler

PASS_TOKENS = 8192  # positions of one pass
LEAN_TOKENS = 2048  # the same in C: what lies between its operations should fit a core's caches
FILLED_UP = 1.2  # how many times their own positions prompts of unequal length may take in a pass


def prefill_clean(sampler: Sampler, jobs: list[Prepared], alone: bool) -> None:
    """Run the heads of jobs' prompts, several in one pass.

    Args:
        sampler: gives the model.
        jobs: get entries and logits.
        alone: a pass for each.
    """
    together: list[Prepared] = []
    real = 0

    def run() -> None:
        heads = [ready.job.prompt_ids[: ready.head] for ready in together]
        for ready, (logits, found) in zip(together, run_prompts(sampler, heads), strict=True):
            ready.logits, ready.entries = logits, found
            ready.shared = [Shared(*held) for held in found]

    for ready in sorted(jobs, key=lambda ready: ready.head):
        real, padded = real + ready.head, (len(together) + 1) * ready.head
        if together and (alone or padded > min(PASS_TOKENS, FILLED_UP * real)):
            run()
            together, real = [], ready.head
        together.append(ready)
    if together:
        run()


def run_prompts(sampler: Sampler, prompts: Sequence[Sequence[int]]) -> list[tuple[Tensor, Entries]]:
    """Run prompts in one pass: of each the logits after it, float32 [1, vocab], and its entries.

    Behind its end a shorter one is filled up with tokens that nothing before them sees, and whose
    entries are dropped.
    """
    lengths = [len(ids) for ids in prompts]
    padded = [[*ids, *[ids[-1]] * (max(lengths) - len(ids))] for ids in prompts]
    tokens = torch.tensor(padded, device=sampler.device)
    if sampler.lean is not None and sampler.lean.in_c:
        cache = SlotCache(len(sampler.blocks), len(prompts), max(lengths))
        at = torch.tensor(lengths) - 1
        with threads(alone=False):
            logits = sampler.lean.prefill(tokens, cache, torch.arange(len(prompts)), at)
        found = entries(cache)
    else:
        last, prefilled = sorted(set(lengths)), DynamicCache()
        with sampler.whole_model, threads(alone=True):
            seen = sampler.forward(tokens, prefilled, at=[length - 1 for length in last])
        logits = torch.stack([seen[row, last.index(n)] for row, n in enumerate(lengths)])
        found = entries(prefilled)
    ones = [(slice(row, row + 1), slice(None), slice(n)) for row, n in enumerate(lengths)]
    return [
        (of[None].float(), [(k[one].contiguous(), v[one].contiguous()) for k, v in found])
        for of, one in zip(logits, ones, strict=True)
    ]


def prefill_noisy(
    sampler: Sampler,
    cache: SlotCache,
    ready: Prepared,
    rows: Rows,
    slots: Tensor,
    tile: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run what stands behind the head of a job's prompt, with each row's own noise.

    Args:
        sampler: gives the model and the noise.
        cache: gets the entries.
        ready: gives the prompt and the entries of its head.
        rows: the rows' streams and soft prompts; their positions are ignored.
        slots: int64 [rows], where their entries go.
        tile: rows of every pass, filled up with copies (`exact`); None for as many as are fast.

    Returns:
        Logits after the prompt, float32 [rows, vocab], and site → what `inject.add_noise` measured.
    """
    device, count = sampler.device, len(slots)
    lean = sampler.lean if sampler.lean is not None and sampler.lean.in_c else None
    tail = torch.tensor([ready.job.prompt_ids[ready.head :]], device=device)
    length = tail.shape[1]
    positions = torch.arange(ready.head, ready.head + length, device=device)
    step = tile or max(1, (LEAN_TOKENS if lean else PASS_TOKENS) // length)
    logits: list[Tensor] = []
    measured: dict[str, list[Tensor]] = {site: [] for site in sampler.perturbation.sites}
    for start in range(0, count, step):
        real = torch.arange(start, min(start + step, count), device=device)
        chosen = real if not tile else torch.cat([real, real[:1].expand(step - len(real))])
        part = rows.chosen(chosen, positions.expand(len(chosen), -1))
        ids = tail.expand(len(chosen), -1)
        if lean is not None:
            act, found = acting(sampler.perturbation, part)
            at = torch.full((len(chosen),), length - 1)
            with threads(alone=False):
                out = lean.prefill(
                    ids, cache, slots[chosen], at, ready.shared, act, measured.keys(), part.replaced
                )
        else:
            out, held, found = _tail_pass(sampler, ready, part, ids)
            cache.fill(slots[real], [(k[: len(real)], v[: len(real)]) for k, v in held])
        logits.append(out[: len(real)].float())
        for site, sums in measured.items():
            sums.append(found[site][: len(real)])
    return torch.cat(logits), {site: torch.cat(sums) for site, sums in measured.items()}


def _tail_pass(
    sampler: Sampler, ready: Prepared, rows: Rows, ids: Tensor
) -> tuple[Tensor, Entries, dict[str, Tensor]]:
    """The model's own forward behind the head.

    Returns:
        Logits after the prompt, the new entries, and site → what `inject.add_noise` measured.
    """
    with ExitStack() as stack:
        stack.enter_context(sampler.whole_model)
        stack.enter_context(threads(alone=True))
        measured = stack.enter_context(sampler.perturbed(rows))
        cache: Cache = DynamicCache()
        if ready.head:
            cache = behind = BehindPrompt(ready.shared, ids.shape[1], keep=True)
            stack.enter_context(attention.serving(sampler.attention_configs, behind))
        logits = sampler.forward(ids, cache, rows.positions)
    return logits[:, -1], entries(cache), measured
