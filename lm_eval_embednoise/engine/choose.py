"""The next token of each row, by argmax or by a uniform, and its log-likelihood.

Logits that are not numbers (overflow in half precision under a large dose) choose no token. The
greatest logit shows it, and so does the sum of the probabilities: neither costs an extra pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lm_eval_embednoise.kernels import build, choice
from lm_eval_embednoise.kernels.choice import NO_TOKEN

if TYPE_CHECKING:
    from lm_eval_embednoise.engine.sampling import Sampling


def choose(logits: Tensor, sampling: Sampling, uniforms: Tensor | None) -> Tensor:
    """The next token of each row.

    Args:
        logits: float32 [rows, vocab].
        sampling: temperature and truncation, applied in transformers' order: temperature, top_k,
            top_p, min_p.
        uniforms: float64 [rows] in [0, 1); unused when greedy.

    Returns:
        int64 [rows]; NO_TOKEN where the logits have no softmax: one of them is NaN or +inf, or all
        are -inf.
    """
    if sampling.greedy:
        most, tokens = logits.max(dim=-1)
        return tokens.masked_fill(~most.isfinite(), NO_TOKEN)
    assert uniforms is not None
    if not sampling.truncates and build.serve("step", logits):
        return choice.sample(logits.contiguous(), sampling.temperature, uniforms)
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
    return choice.drawn(probabilities, uniforms)


def stratified(logits: Tensor, samples: Tensor, strata: int) -> Tensor:
    """The first token of each row, by its rank: `Sampling.first_token`.

    Args:
        logits: float32 [rows, vocab].
        samples: int64 [rows], the rows' sample indices.
        strata: N; sample i takes the ((i mod N) + 1)-th likeliest token, of equal ones the first.

    Returns:
        int64 [rows]; NO_TOKEN as in `choose`.
    """
    order = logits.sort(dim=-1, descending=True, stable=True)
    tokens = order.indices.gather(1, (samples % strata)[:, None])[:, 0]
    return tokens.masked_fill(~order.values[:, 0].isfinite(), NO_TOKEN)


def token_nll(logits: Tensor, tokens: Tensor) -> Tensor:
    """See `choice.token_nll`."""
    if build.serve("step", logits):
        return choice.token_nll(logits.contiguous(), tokens)
    return choice.token_nll_torch(logits, tokens)
