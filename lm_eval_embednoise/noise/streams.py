"""Random streams: every number is a pure function of its key, on every device the same.

A stream's key is 64 bits of BLAKE2b over (stream version, seed, problem, sample index, purpose,
site); within a stream, Philox-4x32-10 (Salmon et al., SC 2011) is evaluated at the counter
(coordinate block, position, 0, 0). Nothing depends on batch size, order or companions, and the
global generators are neither read nor reseeded.

The draws are equal bit for bit wherever eager PyTorch runs, and in C on a CPU, which is twenty
times as fast; kernels/draws.py says why.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lm_eval_embednoise.kernels import build, draws
from lm_eval_embednoise.kernels.draws import philox

if TYPE_CHECKING:
    from collections.abc import Iterable

STREAM_VERSION = 1

_MASK = 0xFFFFFFFF


def stream_key(seed: int, problem: str, sample: int, purpose: str, site: str = "") -> int:
    """The 64-bit key of one stream."""
    fields = [STREAM_VERSION, int(seed), problem, int(sample), purpose, site]
    text = json.dumps(fields, ensure_ascii=True, separators=(",", ":"))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def problem_id(task: str | None, prompt_ids: Iterable[int]) -> str:
    """Name of a problem in the keys: a hash of the task's name and the prompt's token ids."""
    text = json.dumps([task, [int(i) for i in prompt_ids]], separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def key_words(keys: Iterable[int], device: torch.device | str = "cpu") -> Tensor:
    """Keys as the two 32-bit words Philox takes: int64 [rows, 2]."""
    words = [(key & _MASK, key >> 32) for key in keys]
    return torch.tensor(words, dtype=torch.int64, device=device).reshape(-1, 2)


def uniform(keys: Tensor, positions: Tensor) -> Tensor:
    """One uniform number in [0, 1) for each row and position, with 53 random bits.

    Args:
        keys: int64 [rows, 2].
        positions: int64 [rows, pos].

    Returns:
        float64 [rows, pos].
    """
    zero = torch.zeros_like(positions)
    words = philox((zero, positions, zero, zero), keys[:, None, :])
    return ((words[..., 0] << 21) + (words[..., 1] >> 11)).to(torch.float64) * 2.0**-53


def normal(keys: Tensor, positions: Tensor, dim: int) -> Tensor:
    """Independent standard normal vectors: `standard` of the Gaussian law."""
    return standard(keys, positions, dim, "gaussian")


def standard(keys: Tensor, positions: Tensor, dim: int, law: str) -> Tensor:
    """Vectors of independent numbers of mean 0 and variance 1, one for each row and position.

    Args:
        keys: int64 [rows, 2].
        positions: int64 [rows, pos].
        dim: length of a vector.
        law: `gaussian` or `uniform`.

    Returns:
        float32 [rows, pos, dim].
    """
    if build.serve("draws", keys, positions):
        return draws.vectors(keys.contiguous(), positions.contiguous(), dim, law)
    return draws.vectors_torch(keys, positions, dim, law)
