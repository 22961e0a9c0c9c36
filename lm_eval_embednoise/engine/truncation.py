"""Which tokens may be drawn: the knobs that leave out unlikely tokens, each as a pure function.

In this order, each on what the one before leaves: `top_n_sigma` on the logits, then temperature,
then `top_k`, `top_p`, `min_p`, `typical_p`, `epsilon_cutoff`, `eta_cutoff` as transformers has them
and in its order, and `p_less`. The likeliest token is never left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lm_eval_embednoise.engine.sampling import Sampling


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities at the temperature, 0 where a token is left out; they need not add up to 1.

    Args:
        logits: float32 [rows, vocab], after `near_the_top`.
        sampling: temperature and knobs.

    Returns:
        float32 [rows, vocab]; NaN in a row whose logits have no softmax.
    """
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    p = logits.softmax(dim=-1)
    if sampling.top_p < 1:
        p = nucleus(p, sampling.top_p)
    if sampling.min_p > 0:
        p = p.masked_fill(p < sampling.min_p * p.amax(dim=-1, keepdim=True), 0.0)
    if sampling.typical_p < 1:
        p = typical(_normalised(p), sampling.typical_p)
    if sampling.epsilon_cutoff > 0:
        p = at_least(_normalised(p), sampling.epsilon_cutoff)
    if sampling.eta_cutoff > 0:
        p = eta(_normalised(p), sampling.eta_cutoff)
    if sampling.p_less:
        p = at_least(p, p.square().sum(dim=-1, keepdim=True))
    return p


def near_the_top(logits: Tensor, n: float) -> Tensor:
    """Logits below max − n · std are left out: top-nσ (arXiv 2411.07641).

    The standard deviation is that of the row's finite logits (it divides by their number). A
    temperature scales both sides alike, so the tokens that stay don't depend on it.
    """
    real = logits.isfinite()
    count = real.sum(dim=-1, keepdim=True)
    mean = logits.masked_fill(~real, 0.0).sum(dim=-1, keepdim=True) / count
    variance = (logits - mean).masked_fill(~real, 0.0).square().sum(dim=-1, keepdim=True) / count
    least = logits.amax(dim=-1, keepdim=True) - n * variance.sqrt()
    return logits.masked_fill(logits < least, -torch.inf)


def nucleus(p: Tensor, mass: float) -> Tensor:
    """The likeliest tokens until their probabilities reach `mass`."""
    ordered, order = p.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    drop = torch.zeros_like(before, dtype=torch.bool)
    drop.scatter_(1, order, before >= mass)
    return p.masked_fill(drop, 0.0)


def typical(p: Tensor, mass: float) -> Tensor:
    """The tokens whose surprise is nearest to the entropy, until they reach `mass` (2202.00666)."""
    entropy = torch.special.entr(p).sum(dim=-1, keepdim=True)
    distance = (-p.log() - entropy).abs()
    ordered, order = distance.sort(dim=-1, stable=True)
    within = (p.gather(-1, order).cumsum(dim=-1) < mass).sum(dim=-1, keepdim=True)
    most = ordered.gather(-1, within.clamp_max(p.shape[-1] - 1))
    return p.masked_fill(distance > most, 0.0)


def eta(p: Tensor, epsilon: float) -> Tensor:
    """Tokens of at least min(ε, √ε · e^−entropy) (arXiv 2210.15191)."""
    entropy = torch.special.entr(p).sum(dim=-1, keepdim=True)
    return at_least(p, (epsilon**0.5 * (-entropy).exp()).clamp_max(epsilon))


def at_least(p: Tensor, least: Tensor | float) -> Tensor:
    """Tokens of at least a probability, and always the likeliest."""
    return p.masked_fill((p < least) & (p < p.amax(dim=-1, keepdim=True)), 0.0)


def _normalised(p: Tensor) -> Tensor:
    return p / p.sum(dim=-1, keepdim=True)
