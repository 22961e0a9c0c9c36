"""Paired comparisons of methods with a baseline on the same problems, metric by metric."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lm_eval_embednoise.analysis import stats
from lm_eval_embednoise.analysis.measures import better, measure
from lm_eval_embednoise.analysis.resample import Array, Estimate, Means, Resampler, interval

if TYPE_CHECKING:
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
    columns = []
    for index, metric in wanted:
        left, right = (run.metrics[metric] for run in pairs[index])
        both = np.isfinite(left) & np.isfinite(right)
        columns += [np.where(both, left, np.nan), np.where(both, right, np.nan)]
    table = np.stack(columns, axis=1)
    means = resampler.means(table)
    compared: list[dict[str, dict[str, Any]]] = [{} for _ in pairs]
    for position, (index, metric) in enumerate(wanted):
        a, b = table[:, 2 * position], table[:, 2 * position + 1]
        columns_of_pair = slice(2 * position, 2 * position + 2)
        two = Means(
            means.value[columns_of_pair],
            means.boot[:, columns_of_pair],
            means.jack[:, columns_of_pair],
            means.n[columns_of_pair],
        )
        direction = better(pairs[index][0], metric)
        compared[index][metric] = _statistics(
            metric, a, b, two, resampler, direction, level=level, comparisons=comparisons
        )
        compared[index][metric]["noninferiority"] = None
        if margin is not None and measure(metric).rate and direction > 0:
            compared[index][metric]["noninferiority"] = _noninferiority(
                compared[index][metric], a - b, resampler, margin, level, comparisons
            )
    return compared


def difference(metric: str, means: Means, *, level: float) -> Estimate:
    """Mean paired difference of two columns with its BCa interval."""
    bounds = (-1.0, 1.0) if measure(metric).unit else None
    n = int(means.n[0])
    return interval(means, lambda m: m[..., 0] - m[..., 1], n=n, level=level, bounds=bounds)


def ratio(means: Means, *, level: float) -> Estimate:
    """Ratio of the two columns' means with its BCa interval; undefined for a baseline of 0."""
    n = int(means.n[0])
    if n and not means.value[1] > 0:
        return Estimate(np.nan, np.nan, np.nan, n, "the baseline's mean is not above 0")
    return interval(means, lambda m: m[..., 0] / m[..., 1], n=n, level=level)


def add_holm(pairs: list[dict[str, dict[str, Any]]]) -> None:
    """Set `p_holm` in place: per metric, over the methods compared with the same baseline."""
    for metric in {name for pair in pairs for name in pair}:
        members = [pair[metric] for pair in pairs if metric in pair]
        raw = [np.nan if m["p_wilcoxon"] is None else m["p_wilcoxon"] for m in members]
        for member, p in zip(members, stats.holm(raw), strict=True):
            member["p_holm"] = float(p) if np.isfinite(p) else None


def as_json(estimate: Estimate) -> dict[str, Any]:
    """An estimate as comparison.json writes it: null with a reason, never NaN."""
    number = {
        key: float(getattr(estimate, key)) if np.isfinite(getattr(estimate, key)) else None
        for key in ("value", "low", "high")
    }
    return {**number, "n": estimate.n, "reason": estimate.reason}


def _noninferiority(
    statistics: dict[str, Any],
    d: Array,
    resampler: Resampler,
    margin: float,
    level: float,
    comparisons: int,
) -> dict[str, Any]:
    """Whether a rate is worse by less than the margin, by the interval of the difference."""
    estimate, defined = statistics["difference"], np.isfinite(d)
    clusters, d = resampler.clusters[defined], d[defined]
    se = stats.standard_error(d, clusters) if len(d) else np.nan
    status = None
    if estimate["low"] is not None:
        status = "open"
        if estimate["low"] > -margin:
            status = "non-inferior"
        elif estimate["high"] < -margin:
            status = "inferior"
    p = stats.noninferiority_p(d, margin, clusters) if np.isfinite(se) else None
    chance = (
        stats.chance_if_equal(se, margin, alpha=(1 - level) / 2 / comparisons)
        if np.isfinite(se)
        else None
    )
    return {"margin": margin, "status": status, "p": p, "chance_if_equal": chance}


def _statistics(
    metric: str,
    a: Array,
    b: Array,
    means: Means,
    resampler: Resampler,
    direction: int,
    *,
    level: float,
    comparisons: int,
) -> dict[str, Any]:
    defined = np.isfinite(a)
    n = int(defined.sum())
    out: dict[str, Any] = {
        "n": n,
        "n_undefined": len(a) - n,
        "difference": as_json(difference(metric, means, level=level)),
        "ratio": as_json(ratio(means, level=level)),
    }
    a, b, clusters = a[defined], b[defined], resampler.clusters[defined]
    d = stats.settle(a - b)
    out["shift"] = as_json(stats.hodges_lehmann(d, clusters, level=level))
    # No test from a single problem or cluster: one sign has no distribution to speak of.
    testable = n > 1 and len(np.unique(clusters)) > 1
    test = stats.signed_rank(d, clusters) if testable else None
    flips = float(stats.sign_flip_p(stats.cluster_sums(d[:, None], clusters))[0]) if test else None
    p = test.p if test else None
    out["p_wilcoxon"] = p
    out["p_permutation"] = flips
    out["p_bonferroni"] = float(stats.bonferroni([p], comparisons)[0]) if p is not None else None
    out["p_holm"] = None
    out["tests_disagree"] = (
        (p < 1 - level) != (flips < 1 - level) if p is not None and flips is not None else None
    )
    out["effect"] = test.rank_biserial if test else None
    signs = np.sign(d) * (direction or 1)
    out["wins"], out["ties"], out["losses"] = (
        int(np.sum(signs > 0)),
        int(np.sum(signs == 0)),
        int(np.sum(signs < 0)),
    )
    out["mcnemar"] = None
    if n and np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all():
        only_a, only_b, exact = stats.mcnemar_exact(a, b)
        out["mcnemar"] = {"only_method": only_a, "only_baseline": only_b, "p": exact}
    se = stats.standard_error(d, clusters) if testable else np.nan
    reach = stats.detectable_difference(se, alpha=1 - level, power=POWER)
    out["detectable"] = float(reach) if np.isfinite(reach) else None
    return out
