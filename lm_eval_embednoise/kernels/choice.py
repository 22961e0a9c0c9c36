"""The choice of a token from all logits of a row, in C and in PyTorch, and how likely it was.

A vocabulary of 150,000 makes this a sixth of a small model's decode step in PyTorch's operations:
a softmax, its copy in float64 and the cumulative sum, each written to memory. The C functions
(step.c) read a row's logits and write a number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lm_eval_embednoise.kernels import build
from lm_eval_embednoise.kernels.arguments import address, check, refusal

NO_TOKEN = -1


def sample(logits: Tensor, temperature: float, uniforms: Tensor) -> Tensor:
    """The inverse distribution function of softmax(logits / temperature) at uniforms.

    The same tokens as `sample_torch`: where a uniform is so near to the end of a token's interval
    that rounding might decide, that function does.

    Args:
        logits: float32 [rows, vocab].
        temperature: above 0.
        uniforms: float64 [rows] in [0, 1).

    Returns:
        int64 [rows]; NO_TOKEN where the logits have no softmax: one of them is NaN or +inf, or all
        are -inf.

    Raises:
        TypeError, ValueError: for a tensor of another type, shape or place.
    """
    rows, vocab = _sizes(logits)
    tokens = torch.empty(rows, dtype=torch.int64)
    code = build.functions("step").sample(
        rows,
        vocab,
        temperature,
        address("logits", logits, torch.float32, (rows, vocab)),
        address("uniforms", uniforms, torch.float64, (rows,)),
        tokens.data_ptr(),
    )
    check(code, "nothing")
    unsure = torch.nonzero(tokens == NO_TOKEN)[:, 0]
    if len(unsure):
        tokens[unsure] = sample_torch(logits[unsure], temperature, uniforms[unsure])
    return tokens


def sample_torch(logits: Tensor, temperature: float, uniforms: Tensor) -> Tensor:
    """`sample` in PyTorch's operations, on any device."""
    return drawn((logits / temperature).softmax(dim=-1), uniforms)


def drawn(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """The inverse distribution function of probabilities, which need not add up to 1.

    Args:
        probabilities: [rows, vocab].
        uniforms: float64 [rows] in [0, 1).

    Returns:
        int64 [rows]; NO_TOKEN where the sum is not a number.
    """
    cumulative = probabilities.to(torch.float64).cumsum(dim=-1)
    total = cumulative[:, -1:]
    index = torch.searchsorted(cumulative, uniforms[:, None] * total, right=True)
    tokens = index.clamp_max(probabilities.shape[-1] - 1)
    return tokens.masked_fill(~total.isfinite(), NO_TOKEN)[:, 0]


def token_nll(logits: Tensor, tokens: Tensor) -> Tensor:
    """Negative log-likelihood of a token of each row at T = 1, in nats.

    Args:
        logits: float32 [rows, vocab].
        tokens: int64 [rows].

    Returns:
        float32 [rows]; NaN where the logits have no softmax.

    Raises:
        TypeError, ValueError: for a tensor of another type, shape or place, and for a token that
            the vocabulary doesn't have.
    """
    rows, vocab = _sizes(logits)
    out = torch.empty(rows, dtype=torch.float32)
    code = build.functions("step").token_nll(
        rows,
        vocab,
        address("logits", logits, torch.float32, (rows, vocab)),
        address("tokens", tokens, torch.int64, (rows,)),
        out.data_ptr(),
    )
    check(code, f"tokens must be below {vocab}")
    return out


def token_nll_torch(logits: Tensor, tokens: Tensor) -> Tensor:
    """`token_nll` in PyTorch's operations, on any device."""
    return -logits.log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]


def _sizes(logits: Tensor) -> tuple[int, int]:
    if logits.ndim != 2 or not logits.shape[1]:
        raise refusal("logits", logits, torch.float32, "rows, vocab")
    return logits.shape[0], logits.shape[1]
