"""Clusters of vectors, and whether they agree with labels: adjusted mutual information."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_CLUSTERS = 8
DIMENSIONS = 20  # principal components that are clustered: distances in hundreds are all alike
PERMUTATIONS = 999
Labels = Sequence[object]


def codes(labels: Labels) -> NDArray[np.int64]:
    """Labels as numbers from 0; equal ones have one number."""
    known: dict[object, int] = {}
    return np.array([known.setdefault(label, len(known)) for label in labels], dtype=np.int64)


def reduced(vectors: NDArray[np.float32], seed: int = 0) -> NDArray[np.float32]:
    """The first principal components of [n, dim], at most `DIMENSIONS`."""
    from sklearn.decomposition import PCA

    size = min(DIMENSIONS, *vectors.shape)
    solver = "full" if min(vectors.shape) <= 4 * size else "randomized"
    found = PCA(size, svd_solver=solver, random_state=seed).fit_transform(vectors)
    return np.asarray(found, dtype=np.float32)


def k_means(vectors: NDArray[np.float32], seed: int = 0) -> tuple[NDArray[np.int64], float]:
    """k-means with the number of clusters (2 to 8) of the best silhouette.

    Args:
        vectors: [n, dim].
        seed: of the starts.

    Returns:
        Cluster of each vector, and the mean silhouette (Rousseeuw 1987; near 0: no clusters).

    Raises:
        ValueError: fewer vectors than clusters.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    if len(vectors) <= 2:
        raise ValueError(f"{len(vectors)} samples can't be put into 2 clusters; draw more (-K)")
    best, height = np.zeros(len(vectors), dtype=np.int64), -1.0
    for number in range(2, min(MOST_CLUSTERS, len(vectors) - 1) + 1):
        found = KMeans(number, n_init=4, random_state=seed).fit_predict(vectors)
        if len(np.unique(found)) < 2:
            continue
        silhouette = float(silhouette_score(vectors, found))
        if silhouette > height:
            best, height = found.astype(np.int64), silhouette
    return best, height


def densest(vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    """HDBSCAN's clusters (Campello et al. 2013), −1 for noise; the least has 2 % of the vectors."""
    from sklearn.cluster import HDBSCAN

    found = HDBSCAN(min_cluster_size=max(5, len(vectors) // 50), copy=True).fit_predict(vectors)
    return np.asarray(found, dtype=np.int64)


def agreement(
    found: NDArray[np.int64],
    labels: NDArray[np.int64],
    seed: int = 0,
    permutations: int = PERMUTATIONS,
) -> tuple[float, float]:
    """Adjusted mutual information of two partitions (Vinh et al. 2010), and its permutation p.

    Permuting labels changes neither partition's sizes, so the mutual information orders the
    permutations as its adjusted form does. p counts the observed order among them.

    Args:
        found: int64 [n].
        labels: int64 [n].
        seed: of the permutations.
        permutations: how many.

    Returns:
        AMI (0: as by chance, 1: equal) and p; NaN where one partition has a single class.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    if min(len(np.unique(found)), len(np.unique(labels))) < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    observed = information(found, labels)
    drawn = [information(found, rng.permutation(labels)) for _ in range(permutations)]
    reached = sum(value >= observed - 1e-12 for value in drawn)
    ami = float(adjusted_mutual_info_score(labels, found))
    return ami, (reached + 1) / (permutations + 1)


def information(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """Mutual information of two partitions with codes ≥ −1, in nats."""
    a, b = one - one.min(), other - other.min()
    table = np.bincount(a * (b.max() + 1) + b, minlength=(a.max() + 1) * (b.max() + 1))
    joint = table.reshape(-1, b.max() + 1) / len(a)
    expected = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    inside = joint > 0
    return float(np.sum(joint[inside] * np.log(joint[inside] / expected[inside])))
