"""A token by its probability, and its surprisal: over whole vocabularies, in C and in PyTorch.

The C functions (step.c) read the logits twice and write nothing as long as they are; PyTorch's
operations make some seven arrays of that size. A row's result is the same in any company.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lm_eval_embednoise.kernels import build
from lm_eval_embednoise.kernels.arguments import address, check, refusal

NO_TOKEN = -1
_STRETCH = 1024  # as in step.c
_FLOAT, _DOUBLE, _INT = torch.float32, torch.float64, torch.int64


def draw(logits: Tensor, temperature: float, uniforms: Tensor) -> Tensor:
    """Tokens by the inverse distribution function of softmax(logits / temperature).

    Args:
        logits: [rows, vocab].
        temperature: > 0.
        uniforms: float64 [rows] in [0, 1).

    Returns:
        int64 [rows], the first token whose cumulative probability exceeds the uniform; NO_TOKEN
        where the logits have no softmax: one of them is NaN or +inf, or all are -inf.

    Raises:
        TypeError, ValueError: for a tensor of another type, shape or place.
    """
    rows, count = _sizes(logits)
    at = address("logits", logits, _FLOAT, (rows, count))
    uniforms_at = address("uniforms", uniforms, _DOUBLE, (rows,))
    sums = torch.empty(-(-count // _STRETCH), dtype=_DOUBLE)
    tokens = torch.empty(rows, dtype=_INT)
    build.functions("step").draw(
        rows, count, temperature, at, uniforms_at, sums.data_ptr(), tokens.data_ptr()
    )
    return tokens


def draw_torch(logits: Tensor, temperature: float, uniforms: Tensor) -> Tensor:
    """`draw` in PyTorch's operations."""
    return inverse((logits / temperature).softmax(dim=-1), uniforms)


def inverse(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """The same for probabilities, [rows, vocab], which need not sum to 1."""
    cumulative = probabilities.to(torch.float64).cumsum(dim=-1)
    total = cumulative[:, -1:]
    index = torch.searchsorted(cumulative, uniforms[:, None] * total, right=True)
    tokens = index.clamp_max(probabilities.shape[-1] - 1)
    return tokens.masked_fill(~total.isfinite(), NO_TOKEN)[:, 0]


def surprisal(logits: Tensor, tokens: Tensor) -> Tensor:
    """Negative log-probabilities of tokens in nats.

    Args:
        logits: [rows, vocab].
        tokens: int64 [rows].

    Returns:
        [rows]; NaN where the logits have no softmax.

    Raises:
        TypeError, ValueError: for a tensor of another type, shape or place.
        ValueError: for a token that is not of the vocabulary.
    """
    rows, count = _sizes(logits)
    at = address("logits", logits, _FLOAT, (rows, count))
    tokens_at = address("tokens", tokens, _INT, (rows,))
    out = logits.new_empty(rows)
    check(
        build.functions("step").surprisal(rows, count, at, tokens_at, out.data_ptr()),
        f"tokens are 0 to {count - 1}",
    )
    return out


def surprisal_torch(logits: Tensor, tokens: Tensor) -> Tensor:
    """`surprisal` in PyTorch's operations."""
    return -logits.log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]


def _sizes(logits: Tensor) -> tuple[int, int]:
    if logits.dim() != 2 or not logits.shape[1]:
        raise refusal("logits", logits, _FLOAT, "rows, vocab")
    return logits.shape[0], logits.shape[1]
