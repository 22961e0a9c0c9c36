"""The next token of each row, by argmax or by a uniform, and its log-likelihood.

Logits that are not numbers (overflow in half precision under a large dose) choose no token. The
greatest logit shows it, and so does the sum of the probabilities: neither costs an extra pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lm_eval_embednoise.engine.truncation import near_the_top, probabilities
from lm_eval_embednoise.kernels import build, choice
from lm_eval_embednoise.kernels.choice import NO_TOKEN

if TYPE_CHECKING:
    from lm_eval_embednoise.engine.sampling import Sampling


def choose(
    logits: Tensor, sampling: Sampling, uniforms: Tensor | None, steps: Tensor | None = None
) -> Tensor:
    """The next token of each row.

    Args:
        logits: float32 [rows, vocab].
        sampling: temperature and what may be drawn.
        uniforms: float64 [rows] in [0, 1); unused when greedy.
        steps: int64 [rows], how many tokens each row has; needed for `temperature_tokens`.

    Returns:
        int64 [rows]; NO_TOKEN where the logits have no softmax: one of them is NaN or +inf, or all
        are -inf.
    """
    if sampling.greedy:
        return _likeliest(logits)
    assert uniforms is not None
    if sampling.temperature_tokens is None:
        return _drawn(logits, sampling, uniforms)
    assert steps is not None
    tokens = _likeliest(logits)
    warm = torch.nonzero(steps < sampling.temperature_tokens)[:, 0]
    if len(warm):
        tokens[warm] = _drawn(logits[warm], sampling, uniforms[warm])
    return tokens


def _likeliest(logits: Tensor) -> Tensor:
    most, tokens = logits.max(dim=-1)
    return tokens.masked_fill(~most.isfinite(), NO_TOKEN)


def _drawn(logits: Tensor, sampling: Sampling, uniforms: Tensor) -> Tensor:
    """By a function in C where no knob needs the probabilities, else in PyTorch's operations."""
    if sampling.top_n_sigma > 0:
        logits = near_the_top(logits, sampling.top_n_sigma)
    if not sampling.truncates and build.serve("step", logits):
        return choice.sample(logits.contiguous(), sampling.temperature, uniforms)
    return choice.drawn(probabilities(logits, sampling), uniforms)


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
