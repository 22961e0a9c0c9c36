"""Statistics of states over samples, steps and layers, streamed: a plane, distances, variances."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Covariance:
    """Mean and covariance of vectors, added part by part.

    Attributes:
        count: vectors so far.
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self._sum = np.zeros(dim)
        self._products = np.zeros((dim, dim))

    def add(self, vectors: NDArray[np.floating]) -> None:
        """Add vectors [n, dim]."""
        vectors = vectors.astype(np.float64)
        self.count += len(vectors)
        self._sum += vectors.sum(0)
        self._products += vectors.T @ vectors

    @property
    def mean(self) -> NDArray[np.float64]:
        """[dim]."""
        return self._sum / self.count

    @property
    def matrix(self) -> NDArray[np.float64]:
        """[dim, dim], divided by the count."""
        return self._products / self.count - np.outer(self.mean, self.mean)

    def axes(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Principal axes [dim, dim], a column each, and their variances [dim], largest first."""
        values, vectors = np.linalg.eigh(self.matrix)
        return vectors[:, ::-1], np.maximum(values[::-1], 0.0)


def needed(variances: NDArray[np.float64], share: float) -> int:
    """The fewest axes, largest first, that have this share of all variance."""
    total = variances.sum()
    if total <= 0:
        return 1
    reached = np.cumsum(variances) / total >= share - 1e-12
    return int(np.argmax(reached)) + 1


def spread(states: NDArray[np.floating]) -> NDArray[np.float64]:
    """Variance between samples, summed over coordinates.

    Args:
        states: [samples, …, dim], NaN where a sample has ended.

    Returns:
        […]: mean squared distance to the samples' mean; NaN for fewer than two samples.
    """
    there = np.isfinite(states).all(-1)
    count = there.sum(0)
    values = np.where(there[..., None], states, 0.0).astype(np.float64)
    mean = values.sum(0) / np.maximum(count, 1)[..., None]
    squares = np.where(there, np.square(values - mean).sum(-1), 0.0).sum(0)
    return np.where(count > 1, squares / np.maximum(count, 1), np.nan)


def outside(
    states: NDArray[np.floating], mean: NDArray[np.float64], axes: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The share of a state's squared distance from `mean` that no combination of `axes` explains.

    Args:
        states: [..., dim].
        mean: [dim].
        axes: [dim, n], orthonormal.

    Returns:
        [...] from 0 (within their span) to 1; NaN at the mean itself.
    """
    away = states.astype(np.float64) - mean
    total = np.square(away).sum(-1)
    inside = np.square(away @ axes).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, np.clip(1 - inside / total, 0, 1), np.nan)
