"""Bootstrap over problems, or clusters of them: one set of draws for all, BCa intervals.

Sufficient statistics first: each method's values are summed within clusters once; a resample is a
vector of cluster counts, so every mean of every method under every resample is one matrix product,
and any function of means (difference, ratio, hypervolume) sees the same resampled problems.
Undefined values (NaN) are left out and counted, never replaced.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Array = NDArray[np.float64]

DRAWS = 10_000
_BLOCK = 1_000  # resamples held as float64 at a time: bounds memory at 5,000 problems


@dataclass(frozen=True)
class Estimate:
    """A statistic with its interval; `reason` says why a part of it is undefined (NaN)."""

    value: float
    low: float
    high: float
    n: int  # problems that entered
    reason: str | None = None


@dataclass(frozen=True)
class Means:
    """Means of m columns: as observed, under every resample, and with each cluster left out."""

    value: Array  # [m]
    boot: Array  # [draws, m]
    jack: Array  # [clusters, m]
    n: NDArray[np.int64]  # [m] problems with a defined value

    def column(self, j: int) -> tuple[float, Array, Array, int]:
        """Observed value, resampled values, jackknife values and n of one column."""
        return float(self.value[j]), self.boot[:, j], self.jack[:, j], int(self.n[j])


@dataclass(frozen=True)
class Resampler:
    """Draws of clusters with replacement, fixed by the seed.

    Args:
        clusters: cluster code of each problem, `0 … G-1`; `np.arange(n)` where problems are
            independent. See `cluster_codes`.
        draws: number of resamples.
        seed: root of the draws.
    """

    clusters: NDArray[np.int64]
    draws: int = DRAWS
    seed: int = 0
    groups: int = field(init=False)

    def __post_init__(self) -> None:
        codes = np.asarray(self.clusters)
        if codes.size == 0:
            raise ValueError("no problems to resample")
        object.__setattr__(self, "groups", int(codes.max()) + 1)

    @cached_property
    def counts(self) -> NDArray[np.int32]:
        """How often each resample draws each cluster, [draws, clusters]."""
        rng = np.random.default_rng(self.seed)
        even = np.full(self.groups, 1.0 / self.groups)
        return rng.multinomial(self.groups, even, size=self.draws).astype(np.int32)

    @cached_property
    def weights(self) -> Array:
        """Weights of the clusters and of one further cluster in each draw, [draws, clusters + 1].

        Exponential, so that a row over its sum is uniform on the simplex.
        """
        rng = np.random.default_rng([self.seed, 1])
        return rng.standard_exponential((self.draws, self.groups + 1))

    def on(self, problems: NDArray[np.bool_]) -> Resampler:
        """The draws of an analysis that has these of the problems only, a mask [n]."""
        if problems.all():
            return self
        codes = self.clusters[problems].tolist()
        return Resampler(cluster_codes(codes, len(codes)), self.draws, self.seed)

    def means(self, values: Array) -> Means:
        """Means of each column of `values` [n, m] over its defined entries."""
        values = np.asarray(values, dtype=np.float64)
        defined = np.isfinite(values)
        sums = cluster_totals(np.where(defined, values, 0.0), self.clusters, self.groups)
        ns = cluster_totals(defined.astype(np.float64), self.clusters, self.groups)
        whole = bool(defined.all())  # then one column of counts serves all
        boot = np.empty((self.draws, values.shape[1]))
        with np.errstate(invalid="ignore", divide="ignore"):
            for start in range(0, self.draws, _BLOCK):
                block = self.counts[start : start + _BLOCK].astype(np.float64)
                boot[start : start + _BLOCK] = (block @ sums) / (
                    block @ (ns[:, :1] if whole else ns)
                )
            value = sums.sum(0) / ns.sum(0)
            jack = (sums.sum(0) - sums) / (ns.sum(0) - ns)
        return Means(value, boot, jack, defined.sum(0))


def cluster_codes(labels: Sequence[Any] | None, n: int) -> NDArray[np.int64]:
    """Integer cluster codes; without labels every problem is its own cluster."""
    if labels is None:
        return np.arange(n)
    if len(labels) != n:
        raise ValueError(f"{len(labels)} cluster labels for {n} problems")
    # A problem without a label is a cluster of its own.
    names = [("own", i) if label is None else ("shared", label) for i, label in enumerate(labels)]
    seen: dict[Any, int] = {}
    return np.array([seen.setdefault(name, len(seen)) for name in names], dtype=np.int64)


def bca(
    value: float,
    boot: Array,
    jack: Array,
    n: int,
    *,
    level: float = 0.95,
    bounds: tuple[float, float] | None = None,
    small_sample: bool = True,
) -> Estimate:
    """Bias-corrected and accelerated bootstrap interval (Efron 1987) of one statistic.

    Args:
        value: the statistic as observed.
        boot: the statistic under each resample, [draws].
        jack: the statistic with each cluster left out, [clusters].
        n: problems behind it (reported, not used).
        level: coverage of the two-sided interval.
        bounds: range of a single problem's value, where it has one. Values without any variation
            then get the exact interval (up to 1 − (α/2)^(1/G) of all clusters may differ, the
            "rule of three"); without bounds they get none.
        small_sample: widen the nominal level from the normal to the t distribution with
            `clusters - 1` degrees (Hesterberg 2015, "expanded percentile"): bootstrap intervals
            are too narrow by a factor √((G−1)/G) and more. False gives scipy's BCa.
    """
    if not np.isfinite(value):
        return Estimate(np.nan, np.nan, np.nan, n, "undefined on these problems")
    groups = len(jack)
    if groups < 2:
        return Estimate(value, np.nan, np.nan, n, "one problem or cluster gives no interval")
    boot = boot[np.isfinite(boot)]
    if len(boot) < 2 or not np.isfinite(jack).all():
        return Estimate(value, np.nan, np.nan, n, "undefined when some problems are left out")
    tolerance = 1e-12 * max(1.0, abs(value))  # ties with the observed value, whatever the rounding
    tail = (1 - level) / 2
    if np.ptp(boot) <= tolerance:
        reason = "no variation between problems"
        if bounds is None:
            return Estimate(value, np.nan, np.nan, n, reason)
        unseen = 1 - tail ** (1 / groups)
        low, high = (value + unseen * (bound - value) for bound in bounds)
        return Estimate(value, float(low), float(high), n, reason)
    below = (np.mean(boot < value - tolerance) + np.mean(boot <= value + tolerance)) / 2
    half = 0.5 / len(boot)
    bias = special.ndtri(np.clip(below, half, 1 - half))
    centred = jack.mean() - jack
    spread = np.sum(centred**2)
    acceleration = np.sum(centred**3) / (6 * spread**1.5) if spread > 0 else 0.0
    reach = -special.ndtri(tail)
    if small_sample:
        reach = -special.stdtrit(groups - 1, tail) * np.sqrt(groups / (groups - 1))
    low, high = np.quantile(boot, [_adjusted(bias, acceleration, side * reach) for side in (-1, 1)])
    return Estimate(value, float(low), float(high), n)


def interval(
    means: Means,
    statistic: Callable[[Array], Array],
    *,
    n: int,
    level: float = 0.95,
    bounds: tuple[float, float] | None = None,
) -> Estimate:
    """BCa interval of a statistic of means.

    Args:
        means: the columns the statistic needs.
        statistic: maps means `[..., m]` to values `[...]`.
        n: problems to report.
        level: coverage.
        bounds: range of a single problem's value, see `bca`.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(statistic(means.value))
        boot, jack = statistic(means.boot), statistic(means.jack)
        return bca(value, boot, jack, n, level=level, bounds=bounds)


def _adjusted(bias: float, acceleration: float, z: float) -> float:
    shifted = bias + z
    shrink = 1 - acceleration * shifted
    if shrink <= 0:  # so skewed that the correction leaves its domain: the outermost resample
        return 0.0 if z < 0 else 1.0
    return float(special.ndtr(bias + shifted / shrink))


def cluster_totals(values: Array, clusters: NDArray[np.int64], groups: int) -> Array:
    """Sums of the rows of `values` [n, m] within each of so many clusters, [groups, m]."""
    if groups == len(values) and np.array_equal(clusters, np.arange(groups)):
        return values
    out = np.zeros((groups, values.shape[1]))
    np.add.at(out, clusters, values)
    return out
