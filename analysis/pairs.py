"""Paired comparisons of methods with a baseline on the same problems, metric by metric."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lm_eval_embednoise.analysis import stats
from lm_eval_embednoise.analysis.intervals import (
    Support,
    lower_tail,
    mean_intervals,
    ratio_intervals,
)
from lm_eval_embednoise.analysis.measures import better, measure
from lm_eval_embednoise.analysis.resample import Array, Estimate, Resampler

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lm_eval_embednoise.analysis.runs import Run

POWER = 0.8


def compare_pairs(
    pairs: list[tuple[Run, Run]],
    metrics: list[str],
    resampler: Resampler,
    *,
    level: float = 0.95,
    comparisons: int = 1,
    margin: float | None = None,
) -> list[dict[str, dict[str, Any]]]:
    """Compare each (method, baseline) pair of aligned runs on each metric both report.

    Args:
        pairs: runs whose problems are in the same order.
        metrics: which metrics.
        resampler: the bootstrap draws, shared by all pairs and metrics.
        level: coverage of the intervals.
        comparisons: size of the family for Bonferroni.
        margin: by how much a rate may be worse and still count as non-inferior; None leaves
            the question out.

    Returns:
        For each pair, metric → statistics (see docs/comparison.md), without Holm's p-values, which
        need all pairs: `add_holm`.
    """
    wanted = [
        (index, metric)
        for index, (a, b) in enumerate(pairs)
        for metric in metrics
        if metric in a.metrics and metric in b.metrics
    ]
    if not wanted:
        return [{} for _ in pairs]
    sides = [[run.metrics[metric] for run in pairs[index]] for index, metric in wanted]
    left, right = (np.stack(columns, axis=1) for columns in zip(*sides, strict=True))
    both = np.isfinite(left) & np.isfinite(right)
    left, right = np.where(both, left, np.nan), np.where(both, right, np.nan)
    d = stats.settle(left - right)
    supports = [support(metric, difference=True) for _, metric in wanted]
    differences = mean_intervals(d, resampler, supports, level=level)
    ratios = ratio_intervals(left, right, resampler, level=level)
    flips = sign_flips(d, resampler.clusters)
    entries: list[dict[str, dict[str, Any]]] = [{} for _ in pairs]
    for j, (index, metric) in enumerate(wanted):
        direction = better(pairs[index][0], metric)
        known = both[:, j]
        entry = {
            "n": int(known.sum()),
            "n_undefined": int((~known).sum()),
            "difference": as_json(differences[j]),
            "ratio": as_json(ratios[j]),
            **_tests(
                left[known, j],
                right[known, j],
                resampler.clusters[known],
                float(flips[j]),
                direction,
                level=level,
                comparisons=comparisons,
            ),
            "noninferiority": None,
        }
        if margin is not None and measure(metric).rate and direction > 0:
            entry["noninferiority"] = _noninferiority(
                differences[j], d[:, j], resampler, margin, level, comparisons
            )
        entries[index][metric] = entry
    return entries


def support(metric: str, *, difference: bool = False) -> Support:
    """What a problem's value of a metric, or the difference of two, can be."""
    known = measure(metric)
    return Support(-1.0 if difference else 0.0, 1.0, known.rate) if known.unit else Support()


def sign_flips(d: Array, clusters: NDArray[np.int64]) -> Array:
    """Sign-flip p-values of the columns of d [n, m]; NaN where fewer than two clusters are left."""
    p_values = np.full(d.shape[1], np.nan)
    whole = np.isfinite(d).all(0)
    alone = [np.array([j]) for j in np.flatnonzero(~whole)]
    for columns in [np.flatnonzero(whole), *alone]:
        known = np.isfinite(d[:, columns]).all(1)
        part, codes = d[np.ix_(known, columns)], clusters[known]
        if len(columns) and len(np.unique(codes)) > 1:
            sizes = stats.cluster_sums(np.ones((len(codes), 1)), codes)[:, 0]
            p_values[columns] = stats.sign_flip_p(stats.cluster_sums(part, codes), sizes)
    return p_values


def add_holm(pairs: list[dict[str, dict[str, Any]]]) -> None:
    """Set Holm's p-values in place, of both tests.

    Per metric, over the methods compared with the same baseline.
    """
    for metric in {name for pair in pairs for name in pair}:
        members = [pair[metric] for pair in pairs if metric in pair]
        for raw_key, key in (("p_wilcoxon", "p_holm"), ("p_permutation", "p_permutation_holm")):
            raw = [np.nan if m[raw_key] is None else m[raw_key] for m in members]
            for member, p in zip(members, stats.holm(raw), strict=True):
                member[key] = float(p) if np.isfinite(p) else None


def as_json(estimate: Estimate) -> dict[str, Any]:
    """An estimate as comparison.json writes it: null with a reason, never NaN."""
    number = {
        key: float(getattr(estimate, key)) if np.isfinite(getattr(estimate, key)) else None
        for key in ("value", "low", "high")
    }
    return {**number, "n": estimate.n, "reason": estimate.reason}


def _noninferiority(
    estimate: Estimate,
    d: Array,
    resampler: Resampler,
    margin: float,
    level: float,
    comparisons: int,
) -> dict[str, Any]:
    """Whether a rate is worse by less than the margin, by the interval of the difference."""
    defined, status, chance, p = np.isfinite(d), None, None, None
    if np.isfinite(estimate.low):
        status = "open"
        if estimate.low > -margin:
            status = "non-inferior"
        elif estimate.high < -margin:
            status = "inferior"
        se = stats.standard_error(d[defined], resampler.clusters[defined])
        asked = 1 - (1 - level) / comparisons
        [strict] = mean_intervals(
            d[:, None], resampler, [Support(-1.0, 1.0, decides=True)], level=asked
        )
        chance = stats.chance_if_equal(
            se, margin, alpha=(1 - asked) / 2, reach=strict.value - strict.low
        )
        p = lower_tail(d, resampler, -margin, -1.0)
    return {"margin": margin, "status": status, "p": p, "chance_if_equal": chance}


def _tests(
    a: Array,
    b: Array,
    clusters: NDArray[np.int64],
    flips: float,
    direction: int,
    *,
    level: float,
    comparisons: int,
) -> dict[str, Any]:
    """What the tests say of two columns without undefined values."""
    d, binary = stats.settle(a - b), bool(len(a)) and bool(np.isin([a, b], (0, 1)).all())
    # No test from a single problem or cluster: one sign has no distribution to speak of.
    testable = np.isfinite(flips)
    test = stats.signed_rank(d, clusters) if testable else None
    p = test.p if test else None
    signs = np.sign(d) * (direction or 1)
    only_a, only_b, exact = stats.mcnemar_exact(a, b)
    se = stats.standard_error(d, clusters) if testable else np.nan
    reach = stats.detectable_difference(se, alpha=1 - level, power=POWER)
    return {
        "shift": as_json(
            Estimate(np.nan, np.nan, np.nan, len(d), "the median of 0/1 differences says nothing")
            if binary
            else stats.hodges_lehmann(d, clusters, level=level)
        ),
        "p_wilcoxon": p,
        "p_permutation": flips if testable else None,
        "p_bonferroni": float(stats.bonferroni([p], comparisons)[0]) if p is not None else None,
        "p_holm": None,
        "p_permutation_holm": None,
        "tests_disagree": None if p is None else (p < 1 - level) != (flips < 1 - level),
        "effect": test.rank_biserial if test else None,
        "wins": int(np.sum(signs > 0)),
        "ties": int(np.sum(signs == 0)),
        "losses": int(np.sum(signs < 0)),
        "mcnemar": (
            {"only_method": only_a, "only_baseline": only_b, "p": exact} if binary else None
        ),
        "detectable": float(reach) if np.isfinite(reach) else None,
    }
