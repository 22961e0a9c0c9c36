"""Does a vector predict a class? A cross-validated linear probe, with a permutation p.

The probe is ridge regression of one-hot classes, each divided by its frequency so that rare classes
count as much as common ones, in its dual form: one matrix for each fold says how held-out classes
follow from the others', whatever the labels, so permutations cost a product each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

FOLDS = 5
PERMUTATIONS = 499
LEAST = FOLDS  # samples of a class; rarer ones are left out


@dataclass(frozen=True)
class Predicted:
    """What a probe finds.

    Attributes:
        accuracy: balanced: the mean over classes of the share that is recognised.
        chance: 1 / classes.
        p: share of permutations of the labels that reach it, itself counted.
        n: samples of the classes that have enough of them.
        classes: how many these are.
    """

    accuracy: float
    chance: float
    p: float
    n: int
    classes: int


def gram(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """Products of vectors [n, dim] whose coordinates are centred and of variance 1, by dim."""
    centred = vectors.astype(np.float64) - vectors.mean(0, dtype=np.float64)
    spread = centred.std(0)
    varying = spread > 1e-12 * max(float(spread.max(initial=0.0)), 1e-300)
    scaled = centred[:, varying] / spread[varying]
    return scaled @ scaled.T / max(scaled.shape[1], 1)


def predict(
    products: NDArray[np.float64],
    labels: NDArray[np.int64],
    *,
    ridge: float = 1.0,
    seed: int = 0,
    permutations: int = PERMUTATIONS,
) -> Predicted:
    """How well a linear function of vectors tells held-out labels.

    Args:
        products: [n, n], their `gram`.
        labels: int64 [n], −1 for unknown.
        ridge: λ of the ridge regression, in units of the products' mean diagonal.
        seed: of folds and permutations.
        permutations: how many.

    Returns:
        NaN, with the counts, where fewer than two classes have `LEAST` samples.
    """
    known, counts = np.unique(labels[labels >= 0], return_counts=True)
    enough = known[counts >= LEAST]
    inside = np.flatnonzero(np.isin(labels, enough))
    if len(enough) < 2:
        return Predicted(np.nan, np.nan, np.nan, len(inside), len(enough))
    part = products[np.ix_(inside, inside)]
    found = np.searchsorted(enough, labels[inside])
    rng = np.random.default_rng(seed)
    folds = np.array_split(rng.permutation(len(inside)), FOLDS)
    hats = [(held, *_hat(part, held, ridge)) for held in folds]
    observed = _accuracy(hats, found, len(enough))
    drawn = [_accuracy(hats, rng.permutation(found), len(enough)) for _ in range(permutations)]
    reached = sum(value >= observed - 1e-12 for value in drawn)
    p = (reached + 1) / (permutations + 1)
    return Predicted(observed, 1 / len(enough), p, len(inside), len(enough))


def _hat(
    products: NDArray[np.float64], held: NDArray[np.int64], ridge: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The other samples, and what maps their targets to predictions for those held out."""
    others = np.setdiff1d(np.arange(len(products)), held)
    inner = products[np.ix_(others, others)]
    weight = ridge * np.trace(inner) / len(others)
    kernel = inner + weight * np.eye(len(others))
    return others, np.linalg.solve(kernel, products[np.ix_(others, held)]).T


def _accuracy(
    hats: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]],
    labels: NDArray[np.int64],
    classes: int,
) -> float:
    """Balanced accuracy over all folds."""
    target = np.eye(classes)[labels]
    target = target / target.mean(0) - 1.0  # mean 0, and each class as heavy as the others
    right = np.zeros(len(labels))
    for held, others, hat in hats:
        right[held] = (hat @ target[others]).argmax(1) == labels[held]
    return float(np.mean([right[labels == c].mean() for c in range(classes)]))
