"""What the clean model makes of generated texts: their log-likelihood after the clean prompt."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from lm_eval_embednoise import attention
from lm_eval_embednoise.attention import Shared
from lm_eval_embednoise.batch import EXACT_ROWS
from lm_eval_embednoise.behind import BehindPrompt
from lm_eval_embednoise.slots import entries

if TYPE_CHECKING:
    from lm_eval_embednoise.sampler import Sampler

ROWS = 32  # texts of like length scored together
LOGITS = 1 << 26  # most logits of one pass: 256 MiB in float32
BUCKET = 32  # lengths of an exact run's passes are multiples of this


@torch.no_grad()
def clean_nll(
    sampler: Sampler, prompt_ids: Sequence[int], texts: Sequence[tuple[int, ...]]
) -> list[float]:
    """Negative log-likelihood of texts after a prompt, at T = 1, teacher-forced.

    Args:
        sampler: gives the model; with `exact`, what a text scores depends on itself alone.
        prompt_ids: the clean prompt, run once.
        texts: generated ids; an empty text scores 0.

    Returns:
        Summed nats, one a text.
    """
    prefilled = DynamicCache()
    prompt = torch.tensor([list(prompt_ids)], device=sampler.device)
    first = sampler.forward(prompt, prefilled)[:, -1:]
    scores: dict[int, float] = {}
    for chosen, length in _passes(sampler, texts, first.shape[-1]):
        rows = EXACT_ROWS if sampler.exact else len(chosen)
        padded = [[*texts[i], *([0] * (length - len(texts[i])))] for i in chosen]
        padded += [[0] * length] * (rows - len(chosen))
        ids = torch.tensor(padded, device=sampler.device)
        logits = first.expand(rows, -1, -1)
        if length > 1:
            after = _teacher_forced(sampler, ids[:, :-1], prefilled)
            logits = torch.cat([logits, after], dim=1)
        logprobs = logits.float().log_softmax(dim=-1).gather(2, ids[:, :, None])[:, :, 0]
        for row, i in enumerate(chosen):
            scores[i] = -float(logprobs[row, : len(texts[i])].double().sum())
    return [scores[i] for i in range(len(texts))]


def _passes(
    sampler: Sampler, texts: Sequence[tuple[int, ...]], vocabulary: int
) -> list[tuple[list[int], int]]:
    """Texts to score together, by their numbers, and the length they are padded to."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    passes: list[tuple[list[int], int]] = []
    if sampler.exact:
        lengths = {i: max(1, -(-len(texts[i]) // BUCKET)) * BUCKET for i in order}
        for length in sorted(set(lengths.values())):
            alike = [i for i in order if lengths[i] == length]
            passes += [
                (alike[start : start + EXACT_ROWS], length)
                for start in range(0, len(alike), EXACT_ROWS)
            ]
        return passes
    while order:
        length = max(1, len(texts[order[-1]]))
        most = max(1, min(ROWS, sampler.batch_size, LOGITS // (length * vocabulary)))
        chosen, order = order[-most:], order[:-most]
        passes.append((chosen, length))
    return passes


def _teacher_forced(sampler: Sampler, ids: Tensor, prompt: DynamicCache) -> Tensor:
    """Logits after each of the ids, [rows, pos, vocab], behind a prompt of one row."""
    length = prompt.get_seq_length()
    positions = torch.arange(length, length + ids.shape[1], device=ids.device)
    positions = positions.expand(len(ids), -1)
    serving: AbstractContextManager[None] = nullcontext()
    if sampler.shares_prompts:
        shared = [Shared(*held) for held in entries(prompt)]
        cache: Cache = BehindPrompt(shared, ids.shape[1])
        serving = attention.serving(sampler.attention_configs, cache)  # type: ignore[arg-type]
    else:
        cache = DynamicCache()
        for number, (keys, values) in enumerate(entries(prompt)):
            of_each = keys.repeat(len(ids), 1, 1, 1), values.repeat(len(ids), 1, 1, 1)
            cache.update(*of_each, number)
    with serving:
        return sampler.forward(ids, cache, positions, at=None)
