"""Functions of attention weights [..., query, key], tensors in, tensors out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lm_eval_embednoise.engine.jobs import Job


def entropy(weights: Tensor) -> Tensor:
    """−Σ p log p over the last axis, in nats; log n for a uniform head over n positions."""
    return -torch.xlogy(weights, weights).sum(-1)


def divergence(one: Tensor, other: Tensor) -> Tensor:
    """KL(one ‖ other) = Σ p log(p/q) over the last axis, in nats.

    Weights that rounded to 0 are taken as the type's smallest number.
    """
    least = torch.finfo(other.dtype).tiny
    return (torch.xlogy(one, one) - one * other.clamp_min(least).log()).sum(-1).clamp_min(0)


def mass(weights: Tensor, start: int, count: int) -> Tensor:
    """The share of attention on `count` positions from `start` on."""
    return weights[..., start : start + count].sum(-1)


def induction_scores(weights: Tensor, length: int, offset: int) -> Tensor:
    """How far heads continue a repetition (prefix matching; Olsson et al. 2022, arXiv 2209.11895).

    Args:
        weights: [..., pos, pos] over `offset` tokens and then a random sequence twice.
        length: of the sequence.
        offset: tokens before it.

    Returns:
        [...]: mean weight that a token of the second round gives to what followed it in the first.
    """
    queries = torch.arange(offset + length, offset + 2 * length, device=weights.device)
    return weights[..., queries, queries - length + 1].mean(-1)


def repetition_targets(ids: Sequence[int], start: int) -> list[tuple[int, int]]:
    """(position, key) pairs: from position `start` on, what followed an earlier same token.

    A repetition head that attends there copies the earlier continuation.
    """
    pairs = []
    for position in range(start, len(ids)):
        pairs += [(position, k + 1) for k in range(position) if ids[k] == ids[position]]
    return pairs


def repetition_mass(weights: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Mean over positions with an earlier same token of the weight on what followed it.

    Args:
        weights: [..., pos, pos].
        pairs: of `repetition_targets`.

    Returns:
        [...]; NaN without pairs.
    """
    if not pairs:
        return torch.full(weights.shape[:-2], torch.nan, device=weights.device)
    queries, keys = torch.tensor(pairs, device=weights.device).T
    return weights[..., queries, keys].sum(-1) / len(queries.unique())


def kept_columns(job: Job) -> list[int] | None:
    """Where in a job's prompt its clean prompt's tokens are; None where that can't be told."""
    clean, whole = list(job.clean), list(job.prompt_ids)
    extra = len(whole) - len(clean)
    if extra < 0:
        return None
    at = job.soft_start
    if at is None:  # a random prefix after BOS, or dummies at the end: one stretch is added
        at = next((i for i, token in enumerate(clean) if whole[i] != token), len(clean))
    columns = [*range(at), *range(at + extra, len(whole))]
    return columns if [whole[i] for i in columns] == clean else None


def on_columns(weights: Tensor, columns: Tensor) -> Tensor:
    """Weights over chosen keys, scaled to sum to 1 again."""
    kept = weights[..., columns]
    return kept / kept.sum(-1, keepdim=True).clamp_min(torch.finfo(kept.dtype).tiny)
