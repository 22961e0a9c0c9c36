"""Paired tests and effect sizes on per-problem differences; clusters of problems are respected.

Everything takes differences `d` [n] (method minus baseline, undefined pairs already dropped) and
cluster codes [n]. Under the null hypothesis the two methods are exchangeable, so the sign of a
whole cluster's differences may be flipped: the permutation test does that, and the signed-rank
test takes its variance from it (Rosner, Glynn & Lee 2006, the usual Wilcoxon test with Pratt's
zeros where every problem is its own cluster).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy import special
from scipy import stats as _scipy

from lm_eval_embednoise.analysis.resample import Array, Estimate

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

EXACT_CLUSTERS = 13  # up to here all 2^G sign patterns are enumerated (scipy's limit as well)
FLIPS = 9_999
_DECIMALS = 10  # differences are compared at this precision, so that equal rates tie


@dataclass(frozen=True)
class SignedRank:
    """Wilcoxon's signed-rank test."""

    z: float
    p: float
    exact: bool  # p from all sign patterns rather than the normal approximation
    rank_biserial: float  # (R⁺ − R⁻)/(R⁺ + R⁻), −1 … 1
    nonzero: int


def settle(d: Array) -> Array:
    """Round differences of rates so that mathematically equal ones are equal (and ties tie)."""
    rounded = np.round(np.asarray(d, dtype=np.float64), _DECIMALS) + 0.0
    return rounded.astype(np.float64, copy=False)


def signed_ranks(d: Array) -> Array:
    """Signs times ranks of |d| along the first axis; Pratt: zeros are ranked but count nothing."""
    d = settle(d)
    return np.sign(d) * _scipy.rankdata(np.abs(d), axis=0)


def signed_rank_z(d: Array, clusters: NDArray[np.int64] | None = None) -> Array:
    """The test's normal deviate for each column of d [n, m]; NaN where all differences are zero."""
    totals = cluster_sums(signed_ranks(d), clusters)
    with np.errstate(invalid="ignore", divide="ignore"):
        return totals.sum(0) / np.sqrt(np.sum(totals**2, 0))


def signed_rank(d: Array, clusters: NDArray[np.int64] | None = None) -> SignedRank:
    """Wilcoxon signed-rank test of one set of differences, two-sided.

    Without clusters z and p equal scipy's `wilcoxon(d, zero_method="pratt", method="approx")`; up
    to 13 clusters the p-value is exact. All differences zero, or none: p = 1, effect 0.
    """
    ranks = signed_ranks(d)
    nonzero = int(np.count_nonzero(ranks))
    if nonzero == 0:
        return SignedRank(0.0, 1.0, True, 0.0, 0)
    totals = cluster_sums(ranks[:, None], clusters)[:, 0]
    z = float(totals.sum() / np.sqrt(np.sum(totals**2))) if np.any(totals) else 0.0
    exact = len(totals) <= EXACT_CLUSTERS
    p = float(sign_flip_p(totals[:, None])[0]) if exact else float(2 * special.ndtr(-abs(z)))
    return SignedRank(z, p, exact, float(ranks.sum() / np.abs(ranks).sum()), nonzero)


def sign_flip_p(
    totals: Array, sizes: Array | None = None, *, flips: int = FLIPS, seed: int = 0
) -> Array:
    """Two-sided p-values of the studentised sign-flip test of a mean difference.

    The signs of whole clusters are flipped; each pattern's mean over problems is divided by its own
    standard error between clusters. (Where clusters are equally large that orders the patterns as
    the bare mean does.) Differences that are symmetric about 0, as those of two equal methods are,
    give p ≤ α with probability α at most, however few the clusters.

    Args:
        totals: each cluster's summed difference, [clusters, m]; see `cluster_sums`.
        sizes: problems in each cluster, [clusters] or [clusters, m]; equal unless given.
        flips: random sign patterns where there are too many to enumerate; the observed one is
            added to them (Phipson & Smyth 2010), so p ≥ 1/(flips + 1).
        seed: root of the patterns, the same for all columns.
    """
    groups = len(totals)
    sizes = np.ones(groups) if sizes is None else np.asarray(sizes, dtype=np.float64)
    sizes = sizes if sizes.ndim == 2 else sizes[:, None]
    exact = groups <= EXACT_CLUSTERS
    signs = _all_signs(groups) if exact else _random_signs(groups, flips, seed)
    observed = _studentised(totals.sum(0), (totals * sizes).sum(0), totals, sizes)
    drawn = _studentised(signs @ totals, signs @ (totals * sizes), totals, sizes)
    reached = (drawn >= observed - 1e-9).sum(0)
    return reached / len(signs) if exact else (reached + 1) / (len(signs) + 1)


def _studentised(total: Array, moment: Array, totals: Array, sizes: Array) -> Array:
    """t²/(t² + const) of sign patterns, 0 … 1, from Σ ±S and Σ ±S·size of each."""
    mean = total / sizes.sum(0)
    spread = np.sum(totals**2, 0) - 2 * mean * moment + mean**2 * np.sum(sizes**2, 0)
    whole = total**2 + np.maximum(spread, 0.0)
    return np.divide(total**2, whole, out=np.ones_like(whole), where=whole > 0)


def cluster_sums(values: Array, clusters: NDArray[np.int64] | None) -> Array:
    """Sum the rows of `values` [n, m] within clusters, [clusters, m]; no empty clusters."""
    if clusters is None:
        return values
    _, codes = np.unique(clusters, return_inverse=True)
    out = np.zeros((int(codes.max()) + 1, values.shape[1]))
    np.add.at(out, codes, values)
    return out


def hodges_lehmann(
    d: Array, clusters: NDArray[np.int64] | None = None, *, level: float = 0.95
) -> Estimate:
    """Median of all pairwise averages of the differences, with the signed-rank test's interval.

    The interval takes the order statistics of the averages at the test's critical values, with the
    variance of the signed-rank sum as the clusters give it (Hollander & Wolfe, §3.2–3.3).
    """
    d = settle(d)
    n = len(d)
    if n == 0:
        return Estimate(np.nan, np.nan, np.nan, 0, "no problem has both values")
    i, j = np.triu_indices(n)
    averages = np.sort((d[i] + d[j]) / 2)
    shift = float(np.median(averages))
    if n == 1:
        return Estimate(shift, np.nan, np.nan, n, "one problem gives no interval")
    totals = cluster_sums(signed_ranks(d - shift)[:, None], clusters)[:, 0]
    # Var(R⁺) is a quarter of the signed sum's variance.
    reach = -special.ndtri((1 - level) / 2) * np.sqrt(np.sum(totals**2)) / 2
    rank = round(len(averages) / 2 - reach)  # of the lower limit, counted from 1
    low, high = max(rank - 1, 0), min(len(averages) - rank, len(averages) - 1)
    return Estimate(shift, float(averages[low]), float(averages[high]), n)


def mcnemar_exact(a: Array, b: Array) -> tuple[int, int, float]:
    """Exact McNemar test of paired binary outcomes: only-a, only-b, two-sided p."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    only_a, only_b = int(np.sum((a == 1) & (b == 0))), int(np.sum((a == 0) & (b == 1)))
    if only_a + only_b == 0:
        return 0, 0, 1.0
    return only_a, only_b, float(_scipy.binomtest(only_a, only_a + only_b).pvalue)


def bonferroni(p: ArrayLike, comparisons: int | None = None) -> Array:
    """p-values times the size of the family (their own number unless given), at most 1."""
    p = np.asarray(p, dtype=np.float64)
    return np.minimum(p * (len(p) if comparisons is None else comparisons), 1.0)


def holm(p: ArrayLike) -> Array:
    """Holm's step-down adjusted p-values; NaN entries are no members of the family."""
    p = np.asarray(p, dtype=np.float64)
    out = np.full(len(p), np.nan)
    members = np.flatnonzero(np.isfinite(p))
    order = members[np.argsort(p[members], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    out[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0) if len(order) else []
    return out


def standard_error(d: Array, clusters: NDArray[np.int64] | None = None) -> float:
    """Standard error of the mean difference, between clusters; NaN for a single one."""
    d = np.asarray(d, dtype=np.float64)
    residuals = cluster_sums((d - d.mean())[:, None], clusters)[:, 0]
    groups = len(residuals)
    if groups < 2:
        return float("nan")
    return float(np.sqrt(groups / (groups - 1) * np.sum(residuals**2)) / len(d))


def detectable_difference(se: float, *, alpha: float, power: float = 0.8) -> float:
    """Smallest true mean difference found with this power (two-sided, normal approximation)."""
    return float((special.ndtri(1 - alpha / 2) + special.ndtri(power)) * se)


def chance_if_equal(se: float, margin: float, *, alpha: float, reach: float | None = None) -> float:
    """How often two equal methods pass a non-inferiority test (one-sided α, normal approximation).

    With 164 problems and a standard deviation of 0.35, 45 % at 5 points and α = 0.025.

    Args:
        se: standard error of the mean difference.
        margin: by how much the method may be worse.
        alpha: one-sided level.
        reach: how far the interval's lower limit lies below the mean; the normal quantile's unless
            given.
    """
    reach = -special.ndtri(alpha) * se if reach is None else reach
    return float(special.ndtr((margin - reach) / se)) if se > 0 else float(reach < margin)


@lru_cache(maxsize=2)
def _all_signs(groups: int) -> Array:
    bits = (np.arange(2**groups)[:, None] >> np.arange(groups)) & 1
    return (1.0 - 2.0 * bits).astype(np.float64, copy=False)


@lru_cache(maxsize=2)
def _random_signs(groups: int, flips: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    signs = rng.integers(0, 2, size=(flips, groups)) * 2.0 - 1.0
    return signs.astype(np.float64, copy=False)
