"""Intervals of means, paired differences and ratios that cover what they promise.

The weighted bootstrap gives every cluster of problems a random weight (Dirichlet, uniform), and one
further cluster stands for what these problems did not happen to show: at the lowest value for the
lower limit, at the highest for the upper one. For a value that lies in a known range its ends are
the further cluster's values: that is Gaffke's bound (2005; Learned-Miller & Thomas 2020), Clopper
and Pearson's for 0/1 values, and it never moves in a method's favour when one of its values gets
worse. Else they are the extremes seen, and the t interval over clusters must lie inside as well.
Which of them keeps which promise from how many clusters on: benchmarks/coverage.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

from lm_eval_embednoise.analysis.resample import Array, Estimate, Resampler, cluster_totals

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

LEAST_CLUSTERS = 12  # for ratios and values without a known range; 8 skewed ones cover 90 %
LEAST_DIFFERING = 5  # clusters that are not at the commonest value
_COLUMNS = 128  # weighted at a time: bounds memory


@dataclass(frozen=True)
class Support:
    """What a problem's value can be.

    Attributes:
        low: least possible value; None: not known.
        high: largest possible value.
        decides: a problem may jump from one end to the other, as rates do, so that the range always
            bounds the interval; else only where too few clusters differ for the t interval.
    """

    low: float | None = None
    high: float | None = None
    decides: bool = False


def mean_intervals(
    values: Array, resampler: Resampler, supports: Sequence[Support], *, level: float = 0.95
) -> list[Estimate]:
    """The mean of each column of `values` [n, m] over its defined problems, with its interval.

    Args:
        values: one value a problem; NaN where undefined.
        resampler: clusters and draws, shared by all columns.
        supports: what a value of each column can be.
        level: coverage of the two-sided interval.
    """
    estimates: list[Estimate] = []
    for start in range(0, values.shape[1], _COLUMNS):
        part = slice(start, start + _COLUMNS)
        estimates += _means(values[:, part], resampler, supports[part], level)
    return estimates


def ratio_intervals(
    a: Array, b: Array, resampler: Resampler, *, level: float = 0.95
) -> list[Estimate]:
    """The ratio of the columns' means, mean(a)/mean(b), over problems where both are defined.

    The further cluster has no a and b's root mean square for the lower limit, the largest a seen
    and b's mean for the upper one. Both metrics must not be negative.
    """
    estimates: list[Estimate] = []
    for start in range(0, a.shape[1], _COLUMNS):
        part = slice(start, start + _COLUMNS)
        estimates += _ratios(a[:, part], b[:, part], resampler, level)
    return estimates


def lower_limits(
    sums: Array, sizes: Array, least: float, resampler: Resampler, tail: float
) -> Array:
    """Lower limits of means, for values of at least `least`, from clusters' sums and sizes.

    `sums` and `sizes` are [clusters, m] (sizes 0 where a cluster has no defined value).
    """
    further = np.full(sums.shape[1], least)
    return _quantile(_weighted(sums, sizes, further, resampler), tail)


def ratio_lower_limits(
    over: Array, under: Array, sizes: Array, resampler: Resampler, tail: float
) -> Array:
    """Lower limits of ratios of means from both sides' sums [clusters, m]: `ratio_intervals`."""
    with np.errstate(invalid="ignore", divide="ignore"):
        square = np.where(sizes > 0, under**2 / sizes, 0.0).sum(0) / sizes.sum(0)
        below = _weighted(over, sizes, np.zeros(over.shape[1]), resampler)
        return _quantile(below / _weighted(under, sizes, np.sqrt(square), resampler), tail)


def lower_tail(d: Array, resampler: Resampler, threshold: float, least: float) -> float:
    """One-sided p of "the mean of d [n] is `threshold` or less", for values of at least `least`.

    It is below α/2 exactly where the two-sided interval at 1 − α lies above the threshold (up to
    the draws' resolution), and it never falls when a value of d does.
    """
    sums, sizes, _ = _clusters(d[:, None], resampler)
    if np.count_nonzero(sizes) < 2:
        return float("nan")
    low = _weighted(sums, sizes, np.array([least]), resampler)[:, 0]
    return float((np.sum(low <= threshold) + 1) / (len(low) + 1))


def differing_clusters(values: Array, resampler: Resampler) -> NDArray[np.int64]:
    """Clusters whose mean is not the commonest one, for each column of `values` [n, m]."""
    sums, sizes, _ = _clusters(values, resampler)
    with np.errstate(invalid="ignore"):
        each = np.where(sizes > 0, np.round(sums / sizes, 10), np.nan)
    return np.array([_differing(column) for column in each.T], dtype=np.int64)


def _means(
    values: Array, resampler: Resampler, supports: Sequence[Support], level: float
) -> list[Estimate]:
    sums, sizes, n = _clusters(values, resampler)
    groups = np.asarray((sizes > 0).sum(0))
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = sums.sum(0) / sizes.sum(0)
        each = np.where(sizes > 0, np.round(sums / sizes, 10), np.nan)
    differing = np.array([_differing(column) for column in each.T], dtype=np.int64)
    least = np.array([np.nan if s.low is None else s.low for s in supports])
    most = np.array([np.nan if s.high is None else s.high for s in supports])
    sparse = np.array(groups < LEAST_CLUSTERS) | np.array(differing < LEAST_DIFFERING)
    decides = np.array([s.decides for s in supports], dtype=np.bool_)
    bounded = np.array(np.isfinite(least + most) & (decides | sparse))
    filled = np.where(sizes > 0, each, mean)
    ends = [
        np.where(bounded, known, seen)
        for known, seen in ((least, filled.min(0)), (most, filled.max(0)))
    ]
    tail = (1 - level) / 2
    low = _quantile(_weighted(sums, sizes, ends[0], resampler), tail)
    high = _quantile(_weighted(sums, sizes, ends[1], resampler), 1 - tail)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = np.sum((sums - mean * sizes) ** 2, 0)
        error = np.sqrt(groups / (groups - 1) * spread) / sizes.sum(0)
    reach = -special.stdtrit(np.maximum(groups - 1, 1), tail) * error
    low = np.where(bounded, low, np.fmin(low, mean - reach))
    high = np.where(bounded, high, np.fmax(high, mean + reach))
    stated = np.array((groups > 1) & (bounded | ~sparse))
    estimates = []
    for j in range(values.shape[1]):
        reason = _reason(int(groups[j]), int(differing[j]), bool(bounded[j]))
        limits = (float(low[j]), float(high[j])) if stated[j] else (np.nan, np.nan)
        estimates.append(Estimate(float(mean[j]), *limits, int(n[j]), reason))
    return estimates


def _ratios(a: Array, b: Array, resampler: Resampler, level: float) -> list[Estimate]:
    both = np.isfinite(a) & np.isfinite(b)
    a, b = np.where(both, a, np.nan), np.where(both, b, np.nan)
    (over, sizes, n), (under, _, _) = _clusters(a, resampler), _clusters(b, resampler)
    groups = np.asarray((sizes > 0).sum(0))
    with np.errstate(invalid="ignore", divide="ignore"):
        largest = np.where(sizes > 0, over / sizes, 0.0).max(0)
        base = under.sum(0) / sizes.sum(0)
        value = over.sum(0) / under.sum(0)
        tail = (1 - level) / 2
        low = ratio_lower_limits(over, under, sizes, resampler, tail)
        above = _weighted(over, sizes, largest, resampler)
        high = _quantile(above / _weighted(under, sizes, base, resampler), 1 - tail)
    negative = np.array((np.where(both, np.minimum(a, b), 0.0) < 0).any(0))
    estimates = []
    for j in range(a.shape[1]):
        reason, limits = None, (float(value[j]), float(low[j]), float(high[j]))
        if not n[j]:
            reason, limits = "undefined on these problems", (np.nan, np.nan, np.nan)
        elif not base[j] > 0:
            reason, limits = "the baseline's mean is not above 0", (np.nan, np.nan, np.nan)
        elif negative[j]:
            reason, limits = "a ratio of negative values", (limits[0], np.nan, np.nan)
        elif groups[j] < LEAST_CLUSTERS:
            reason, limits = _reason(int(groups[j]), 1, False), (limits[0], np.nan, np.nan)
        estimates.append(Estimate(*limits, int(n[j]), reason))
    return estimates


def _reason(groups: int, differing: int, bounded: bool) -> str | None:
    """Why there is no interval, or why it rests on the range alone."""
    if groups == 0:
        return "undefined on these problems"
    if groups == 1:
        return "one problem or cluster gives no interval"
    if differing == 0:
        return "no variation between problems"
    if bounded:
        return None
    if groups < LEAST_CLUSTERS:
        return f"{groups} independent problems, an interval needs {LEAST_CLUSTERS}"
    if differing < LEAST_DIFFERING:
        return (
            f"only {differing} of {groups} independent problems differ from the rest, an interval "
            f"needs {LEAST_DIFFERING}"
        )
    return None


def _differing(column: Array) -> int:
    """Clusters that are not at the commonest value."""
    defined = column[np.isfinite(column)]
    return len(defined) - int(np.unique(defined, return_counts=True)[1].max(initial=0))


def _clusters(values: Array, resampler: Resampler) -> tuple[Array, Array, NDArray[np.int64]]:
    """Sums and numbers of defined values, [clusters, m] each, and n [m]."""
    defined = np.isfinite(values)
    sums, sizes = (
        cluster_totals(part, resampler.clusters, resampler.groups)
        for part in (np.where(defined, values, 0.0), defined.astype(np.float64))
    )
    return sums, sizes, defined.sum(0)


def _weighted(sums: Array, sizes: Array, further: Array, resampler: Resampler) -> Array:
    """Weighted means with one further cluster of average size at these values, [draws, m]."""
    weights, extra = resampler.weights[:, :-1], resampler.weights[:, -1:]
    with np.errstate(invalid="ignore", divide="ignore"):
        size = sizes.sum(0) / np.count_nonzero(sizes, axis=0)
        alike = bool((sizes == sizes[:, :1]).all())
        total = weights @ (sizes[:, :1] if alike else sizes)
        return np.asarray((weights @ sums + extra * (size * further)) / (total + extra * size))


def _quantile(drawn: Array, at: float) -> Array:
    """The quantile of each column; an order statistic, so that it is monotone and needs no sort."""
    beyond = int(round(min(at, 1 - at) * len(drawn), 6))
    position = beyond if at < 0.5 else len(drawn) - 1 - beyond
    return np.asarray(np.partition(drawn, position, axis=0)[position])
