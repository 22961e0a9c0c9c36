"""Planning from a pilot: a difference, non-inferiority, a ratio, problems against samples.

Studies are simulated: the pilot's clusters are drawn with replacement under weights that make the
truth what is asked, and the test or interval that decides is computed on each draw. The weights
tilt the pilot exponentially (Efron 1981), so zeros stay zeros and no value appears that no problem
showed; shifting all differences instead would turn ties into wins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import optimize
from scipy import stats as _scipy

from lm_eval_embednoise.analysis import stats
from lm_eval_embednoise.analysis.intervals import lower_limits, ratio_lower_limits
from lm_eval_embednoise.analysis.resample import Array, Resampler
from lm_eval_embednoise.analysis.runs import ResultError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

TRIALS = 400
MOST = 20_000  # problems, where the search ends
_DRAWS = 1000  # of the weighted bootstrap in a simulated study
_FLIPS = 1_999  # random sign patterns in a simulated study, where the level is not too strict
_LEAST_REACHED = 20  # patterns that may reach the observed one at the level, to resolve it


@dataclass(frozen=True)
class Needed:
    """Problems needed; None: more than `MOST`."""

    simulated: int | None
    approximate: int
    power: float  # simulated, at that size


def difference_needed(
    d: Array,
    clusters: NDArray[np.int64] | None = None,
    *,
    difference: float,
    alpha: float,
    power: float = 0.8,
    trials: int = TRIALS,
    seed: int = 0,
) -> Needed:
    """Problems needed for the studentised sign-flip test to find a mean difference.

    Args:
        d: the pilot's differences [n].
        clusters: their cluster codes; the pilot's cluster sizes are kept.
        difference: true mean difference to be found.
        alpha: two-sided level.
        power: share of studies that must find it.
        trials: simulated studies at each size.
        seed: root of the draws.

    Raises:
        ResultError: no difference is asked for, or the pilot can't have it.
    """
    if not difference:
        raise ResultError("a difference of 0 can't be found; plan with --margin that there is none")
    sums, sizes = _clusters(stats.settle(d), clusters)
    weights = _weights(sums, sizes, difference)
    flips = _FLIPS if alpha * (_FLIPS + 1) >= _LEAST_REACHED else stats.FLIPS

    def passing(groups: int) -> float:
        drawn = _draw(weights, groups, trials, seed)
        whole = sizes[drawn] if np.ptp(sizes) else None
        return float(np.mean(stats.sign_flip_p(sums[drawn], whole, flips=flips) < alpha))

    spread = float(weights @ (sums - difference * sizes) ** 2)
    return _needed(passing, spread, sizes, difference, alpha, power)


def noninferiority_needed(
    d: Array,
    clusters: NDArray[np.int64] | None = None,
    *,
    margin: float,
    expected: float = 0.0,
    alpha: float,
    power: float = 0.8,
    trials: int = TRIALS,
    seed: int = 0,
) -> Needed:
    """Problems needed to show that a rate is worse by less than the margin.

    Args:
        d: the pilot's differences [n], between −1 and 1.
        clusters: their cluster codes; the pilot's cluster sizes are kept.
        margin: by how much the method may be worse.
        expected: the true mean difference; 0 for equal methods.
        alpha: of the two-sided interval whose lower limit must lie above −margin.
        power: share of studies that must show it.
        trials: simulated studies at each size.
        seed: root of the draws.

    Raises:
        ResultError: the margin is not wider than the expected loss, or the pilot can't have it.
    """
    if expected <= -margin:
        raise ResultError(f"a true difference of {expected:g} is no less than {margin:g} worse")
    sums, sizes = _clusters(d, clusters)
    weights = _weights(sums, sizes, expected)

    def passing(groups: int) -> float:
        drawn, resampler = _draw(weights, groups, trials, seed), _resampler(groups, seed)
        low = lower_limits(sums[drawn], sizes[drawn], -1.0, resampler, alpha / 2)
        return float(np.mean(low > -margin))

    spread = float(weights @ (sums - expected * sizes) ** 2)
    return _needed(passing, spread, sizes, margin + expected, alpha, power)


def ratio_needed(
    a: Array,
    b: Array,
    clusters: NDArray[np.int64] | None = None,
    *,
    limit: float,
    expected: float,
    alpha: float,
    power: float = 0.8,
    trials: int = TRIALS,
    seed: int = 0,
) -> Needed:
    """Problems needed to show that mean(a)/mean(b) is above a limit; see `noninferiority_needed`.

    Args:
        a: the pilot's values of the method [n].
        b: the baseline's.
        clusters: cluster codes.
        limit: what the ratio must be shown to exceed.
        expected: the true ratio.
        alpha: of the two-sided interval whose lower limit must lie above the limit.
        power: share of studies that must show it.
        trials: simulated studies at each size.
        seed: root of the draws.

    Raises:
        ResultError: the expected ratio is not above the limit, or the pilot can't have it.
    """
    if expected <= limit:
        raise ResultError(f"a true ratio of {expected:g} is not above {limit:g}")
    over, sizes = _clusters(a, clusters)
    under, _ = _clusters(b, clusters)
    excess = over - expected * under
    weights = _weights(excess, sizes, 0.0)

    def passing(groups: int) -> float:
        drawn, resampler = _draw(weights, groups, trials, seed), _resampler(groups, seed)
        low = ratio_lower_limits(over[drawn], under[drawn], sizes[drawn], resampler, alpha / 2)
        return float(np.mean(low > limit))

    gap = (expected - limit) * float(weights @ under) / float(weights @ sizes)
    spread = float(weights @ (over - limit * under - gap * sizes) ** 2)
    return _needed(passing, spread, sizes, gap, alpha, power)


@dataclass(frozen=True)
class Parts:
    """Where the variance of a mean paired difference comes from.

    With n problems and K samples of each it is (between + within / K) / n.
    """

    between: float
    within: float

    def problems(self, difference: float, k: int, *, alpha: float, power: float = 0.8) -> int:
        """Problems with K samples each that find a difference (two-sided, normal approximation)."""
        reach = _scipy.norm.ppf(1 - alpha / 2) + _scipy.norm.ppf(power)
        return max(int(np.ceil((self.between + self.within / k) * (reach / difference) ** 2)), 2)


def variance_parts(a: Array, b: Array, k: int, clusters: NDArray[np.int64] | None = None) -> Parts:
    """Variance between and within problems of the difference of two rates of K samples each.

    Args:
        a: the method's rate on each problem [n], a mean over K samples that are right or wrong.
        b: the baseline's.
        k: samples behind each rate, at least 2.
        clusters: cluster codes; what problems of a cluster share counts as between.

    Raises:
        ResultError: one sample says nothing of the variance within.
    """
    if k < 2:
        raise ResultError("one sample a problem can't tell variance within from between problems")
    within = float(np.mean([(side * (1 - side)).mean() for side in (a, b)]) * 2 * k / (k - 1))
    total = len(a) * stats.standard_error(a - b, clusters) ** 2
    return Parts(max(total - within / k, 0.0), within)


def least_groups(
    simulated: Callable[[int], float], start: int, power: float, per_cluster: float
) -> tuple[int | None, float]:
    """The fewest clusters that reach the power by a simulation, and what they reach.

    To 2 %: the simulation is no more exact than that. None where `MOST` problems don't reach it.
    """
    low, high = 1, max(start, 2)
    while simulated(high) < power:
        low, high = high, 2 * high
        if high * per_cluster > MOST:
            return None, simulated(low)
    while high - low > max(1, high // 50):
        middle = (low + high) // 2
        low, high = (low, middle) if simulated(middle) >= power else (middle, high)
    return high, simulated(high)


def tilted(blocks: list[Array], difference: float) -> Array:
    """Weights of the clusters, ∝ exp(λ · mean difference), that give this mean over problems."""
    sums = np.array([block.sum() for block in blocks])
    sizes = np.array([len(block) for block in blocks])
    means = sums / sizes
    if len(blocks) < 2 or not means.min() < difference < means.max():
        raise ResultError(
            f"the pilot's differences ({means.min():.3g} to {means.max():.3g}, {len(blocks)} "
            f"clusters) can't average {difference:g}: use a larger pilot or another difference"
        )
    scale = np.abs(means - difference).max()

    def weights(slope: float) -> Array:
        exponent = slope * (means - difference) / scale
        raw = np.exp(exponent - exponent.max())
        return np.asarray(raw / raw.sum())

    def excess(slope: float) -> float:
        w = weights(slope)
        return float(w @ (sums - difference * sizes))

    limit = 1.0
    while excess(-limit) * excess(limit) > 0 and limit < 1e4:
        limit *= 2
    return weights(float(optimize.brentq(excess, -limit, limit)))


def _needed(
    passing: Callable[[int], float],
    spread: float,
    sizes: Array,
    gap: float,
    alpha: float,
    power: float,
) -> Needed:
    per_cluster = float(sizes.mean())
    reach = _scipy.norm.ppf(1 - alpha / 2) + _scipy.norm.ppf(power)
    groups = int(np.ceil(spread / per_cluster**2 * (reach / gap) ** 2))
    needed, reached = least_groups(passing, groups, power, per_cluster)
    approximate = max(int(np.ceil(groups * per_cluster)), 1)
    return Needed(needed and int(np.ceil(needed * per_cluster)), approximate, reached)


def _clusters(values: Array, clusters: NDArray[np.int64] | None) -> tuple[Array, Array]:
    """Sums and sizes of the clusters, [clusters] each."""
    codes = np.arange(len(values)) if clusters is None else clusters
    columns = np.stack([values, np.ones(len(values))], axis=1)
    sums, sizes = stats.cluster_sums(columns, codes).T
    return sums, sizes


def _weights(sums: Array, sizes: Array, mean: float) -> Array:
    """Weights of the clusters under which the mean over problems is this one; see `tilted`."""
    blocks = [np.full(int(n), s / n) for s, n in zip(sums, sizes, strict=True)]
    return tilted(blocks, mean)


def _draw(weights: Array, groups: int, trials: int, seed: int) -> NDArray[np.int64]:
    """Which of the pilot's clusters each simulated study has, [groups, trials]."""
    rng = np.random.default_rng([seed, groups])
    return rng.choice(len(weights), size=(groups, trials), p=weights)


def _resampler(groups: int, seed: int) -> Resampler:
    return Resampler(np.arange(groups), draws=_DRAWS, seed=seed)
