"""Coordinated draws: the samples of a problem get orthogonal vectors within fixed groups.

After STARS (arXiv 2601.22010), as noise of sequence scope. A group is `GROUP` consecutive sample
indices (d of them where the site is narrower), keyed by its number, so that a sample depends on its
key alone. Its Gaussian vectors are orthonormalised in their order, and each gets back its norm:
by the Gaussian's symmetry every one of them is still N(0, I), only not independent of the others.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from lm_eval_embednoise.noise import streams

GROUP = 64


def draw(keys: Tensor, dim: int) -> Tensor:
    """The vectors of rows.

    Args:
        keys: int64 [rows, 3]: two words of the group's stream, the place in it.
        dim: width of the site.

    Returns:
        float32 [rows, dim].
    """
    rows = keys.tolist()
    groups = {key: number for number, key in enumerate(dict.fromkeys((a, b) for a, b, _ in rows))}
    table = torch.cat([group(*key, dim) for key in groups])
    places = [groups[a, b] * GROUP + place for a, b, place in rows]
    return table[torch.tensor(places)].to(keys.device)


@functools.lru_cache(maxsize=512)  # 0.1 GB at a width of 1,024
def group(first: int, second: int, dim: int) -> Tensor:
    """All vectors of a group: float32 [GROUP, dim], orthogonal within each `dim` of them."""
    key = torch.tensor([[first, second]])
    drawn = streams.normal(key, torch.arange(GROUP)[None], dim)[0].double()
    return torch.cat([_orthogonal(part) for part in drawn.split(dim)]).float()


def _orthogonal(vectors: Tensor) -> Tensor:
    """Gram and Schmidt's vectors of [n, dim] (n ≤ dim), each as long as it was."""
    basis, triangle = torch.linalg.qr(vectors.T)
    return (basis * triangle.diagonal().sign()).T * vectors.norm(dim=1, keepdim=True)
