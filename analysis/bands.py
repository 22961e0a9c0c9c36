"""Simultaneous bands: all of a set of statistics lie inside theirs at once, with the stated level.

The replicates come from one set of weights for the clusters of problems, so what moves together is
drawn together; the half-widths are one critical value (max |t|) times each statistic's own standard
error. Both carry the corrections for few clusters that benchmarks/coverage.py measures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

from lm_eval_embednoise.analysis.intervals import (
    LEAST_DIFFERING,
    Support,
    differing_clusters,
    mean_intervals,
)
from lm_eval_embednoise.analysis.resample import Array, Resampler, cluster_totals

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Band:
    """Estimates [m] with limits that hold for all of them at once, and the critical value."""

    value: Array
    low: Array
    high: Array
    critical: float


def replicated_means(
    values: Array, resampler: Resampler, clusters: NDArray[np.int64] | None = None
) -> Array:
    """Weighted means of the columns of `values` [n, m] in each draw, [m, draws]; no undefined.

    `clusters` are the codes of these rows where they are a part of the resampler's problems.
    """
    clusters = resampler.clusters if clusters is None else clusters
    sums = cluster_totals(values, clusters, resampler.groups)
    sizes = cluster_totals(np.ones((len(values), 1)), clusters, resampler.groups)
    weights = resampler.weights[:, :-1]
    return np.asarray(((weights @ sums) / (weights @ sizes)).T)


def max_t_band(value: Array, drawn: Array, groups: int, *, level: float = 0.95) -> Band:
    """A band for statistics [m] from their replicates [m, draws]; NaN without replicates' spread.

    Weights that are uniform on the simplex give a mean the variance s²(G − 1)/(G(G + 1)) instead of
    s²/G, which is set right; the critical value is widened from the normal to the t distribution.
    """
    error = drawn.std(axis=1) * np.sqrt((groups + 1) / max(groups - 1, 1))
    known = np.isfinite(value) & (error > 1e-12)
    if not known.any() or groups < 2:
        empty = np.full(len(value), np.nan)
        return Band(value, empty, empty.copy(), np.nan)
    centred = np.abs(drawn[known] - drawn[known].mean(1, keepdims=True))
    largest = (centred / drawn[known].std(axis=1, keepdims=True)).max(0)
    normal = float(np.quantile(largest, level))
    critical = float(-special.stdtrit(groups - 1, special.ndtr(-normal)))
    reach = np.where(known, critical * error, np.nan)
    return Band(value, value - reach, value + reach, critical)


def mean_band(
    values: Array, resampler: Resampler, support: Support, *, level: float = 0.95
) -> Band:
    """A band for the means of the columns of `values` [n, m], none undefined.

    Where the values' range is known, the band also holds each column's own interval (at this
    level; where too few clusters differ for a standard error, at its share of it): near an end of
    the range the means of few clusters are skewed, and max |t| alone covers too little.
    """
    value, columns = values.mean(0), values.shape[1]
    drawn = replicated_means(values, resampler)
    sparse = differing_clusters(values, resampler) < LEAST_DIFFERING
    band = max_t_band(np.where(sparse, np.nan, value), drawn, resampler.groups, level=level)
    low, high = band.low, band.high
    if support.low is not None and support.high is not None:
        alone = [Support(support.low, support.high, decides=True)] * columns
        share = 1 - (1 - level) / columns
        plain = mean_intervals(values, resampler, alone, level=level)
        strict = mean_intervals(values, resampler, alone, level=share) if sparse.any() else plain
        own = [strict[j] if sparse[j] else plain[j] for j in range(columns)]
        low = np.maximum(np.fmin(low, [e.low for e in own]), support.low)
        high = np.minimum(np.fmax(high, [e.high for e in own]), support.high)
    return Band(value, low, high, band.critical)


def cover(correct: NDArray[np.int64], k: int, shares: Array) -> Array:
    """Whether a problem is solved by at least a share τ of its k samples, [n, shares] (cover@τ)."""
    return (np.asarray(correct)[:, None] >= np.ceil(np.asarray(shares) * k - 1e-9)).astype(float)
