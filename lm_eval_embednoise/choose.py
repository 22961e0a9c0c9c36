"""The next token of each row: the argmax, or the inverse distribution function at a uniform."""

from __future__ import annotations

import torch
from torch import Tensor

from lm_eval_embednoise.config import Sampling


def choose(logits: Tensor, sampling: Sampling, uniforms: Tensor | None) -> Tensor:
    """The next token of each row.

    Args:
        logits: float32 [rows, vocab].
        sampling: temperature and truncation, applied in transformers' order: temperature, top_k,
            top_p, min_p.
        uniforms: float64 [rows] in [0, 1); unused when greedy.

    Returns:
        int64 [rows].
    """
    if sampling.greedy:
        return logits.argmax(dim=-1)
    assert uniforms is not None
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    probabilities = logits.softmax(dim=-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(dim=-1) - ordered
        drop = torch.zeros_like(before, dtype=torch.bool)
        drop.scatter_(1, order, before >= sampling.top_p)
        probabilities = probabilities.masked_fill(drop, 0.0)
    if sampling.min_p > 0:
        least = sampling.min_p * probabilities.max(dim=-1, keepdim=True).values
        probabilities = probabilities.masked_fill(probabilities < least, 0.0)
    cumulative = probabilities.to(torch.float64).cumsum(dim=-1)
    target = uniforms[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp_max(logits.shape[-1] - 1)
