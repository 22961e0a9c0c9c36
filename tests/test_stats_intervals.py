"""Intervals against slow references, other packages and simulated studies; what can't move them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from errorbars.stats import cluster_robust_se
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.stats.weightstats import DescrStatsW

from benchmarks import coverage
from lm_eval_embednoise.analysis import stats
from lm_eval_embednoise.analysis.comparison import compare
from lm_eval_embednoise.analysis.intervals import (
    LEAST_CLUSTERS,
    Support,
    lower_tail,
    mean_intervals,
    ratio_intervals,
)
from lm_eval_embednoise.analysis.pairs import compare_pairs, sign_flips
from lm_eval_embednoise.analysis.records import read_runs
from lm_eval_embednoise.analysis.resample import Resampler
from tests.support.synthetic import METHODS, write_run

RATE, UNKNOWN = Support(-1.0, 1.0, decides=True), Support()
CLUSTERS = np.array([0, 0, 1, 2, 2, 2, 3, 4, 4, 5])


def alone(values, support=RATE, clusters=None, level=0.95, **settings):
    """The interval of one column."""
    values = np.asarray(values, dtype=float)
    codes = np.arange(len(values)) if clusters is None else clusters
    [found] = mean_intervals(values[:, None], Resampler(codes, **settings), [support], level=level)
    return found


# ---- against the definition and against others


def test_weighted_bootstrap_equals_the_slow_way():
    rng = np.random.default_rng(0)
    values = rng.uniform(-1, 1, 10)
    values[7] = np.nan  # cluster 4 keeps one problem
    resampler = Resampler(CLUSTERS, draws=400)
    low, high = [], []
    for weights in resampler.weights:
        total, size, sizes = 0.0, 0.0, []
        for c in range(6):
            members = [v for v, code in zip(values, CLUSTERS, strict=True) if code == c]
            members = [v for v in members if not np.isnan(v)]
            total += weights[c] * sum(members)
            size += weights[c] * len(members)
            sizes.append(len(members))
        further = weights[6] * np.mean(sizes)
        low.append((total - further) / (size + further))
        high.append((total + further) / (size + further))
    found = alone(values, clusters=CLUSTERS, draws=400)
    assert found.value == pytest.approx(np.nanmean(values))
    assert found.low == pytest.approx(sorted(low)[10])
    assert found.high == pytest.approx(sorted(high)[-11])
    assert lower_tail(values, resampler, -0.2, -1.0) == pytest.approx(
        (sum(v <= -0.2 for v in low) + 1) / 401
    )


@pytest.mark.parametrize(("passed", "n"), [(0, 20), (20, 20), (3, 40), (82, 164)])
@pytest.mark.parametrize("level", [0.95, 0.99])
def test_binary_rates_get_clopper_and_pearsons_interval(passed, n, level):
    found = alone(np.arange(n) < passed, Support(0.0, 1.0, True), level=level, draws=40_000)
    exact = scipy_stats.binomtest(passed, n).proportion_ci(level)
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=0.006)


def test_unbounded_values_get_at_least_the_t_interval_and_hardly_more():
    values = np.random.default_rng(1).normal(3, 1, 200)
    found = alone(values, UNKNOWN)
    low, high = DescrStatsW(values).tconfint_mean()
    assert found.low <= low + 1e-9 and found.high >= high - 1e-9
    assert found.high - found.low < 1.25 * (high - low)


def test_the_standard_error_between_clusters_is_errorbars_own():
    rng = np.random.default_rng(2)
    clusters = rng.integers(0, 15, 80)
    d = rng.normal(0, 1, 15)[clusters] + rng.normal(0, 0.5, 80)
    assert stats.standard_error(d, clusters) == pytest.approx(cluster_robust_se(d, clusters))


def test_ratio_equals_the_slow_way():
    rng = np.random.default_rng(3)
    a, b = rng.gamma(3, 0.1, (2, 14))
    a[2] = np.nan  # and so b's value there counts for nothing
    resampler = Resampler(np.arange(14), draws=200)
    [found] = ratio_intervals(a[:, None], b[:, None], resampler)
    keep = np.isfinite(a)
    a, b = a[keep], b[keep]
    low, high = [], []
    for weights in resampler.weights:
        w, further = weights[:-1][keep], weights[-1]
        low.append(w @ a / (w @ b + further * np.sqrt(np.mean(b**2))))
        high.append((w @ a + further * a.max()) / (w @ b + further * b.mean()))
    assert found.value == pytest.approx(a.mean() / b.mean())
    assert (found.low, found.high) == pytest.approx((sorted(low)[5], sorted(high)[-6]))


def studentised(d, clusters):
    """The t statistic of the mean over problems, with the standard error between clusters."""
    mean, codes = d.mean(), np.unique(clusters)
    residuals = [sum(d[clusters == c]) - mean * np.sum(clusters == c) for c in codes]
    error = np.sqrt(len(codes) / (len(codes) - 1) * np.sum(np.square(residuals))) / len(d)
    return mean / error


def test_sign_flips_equal_the_enumeration_of_studentised_means():
    for seed in range(5):
        d = np.random.default_rng(seed).normal(0.5, 1, 10)
        observed = abs(studentised(d, CLUSTERS))
        patterns = [
            abs(studentised(d * np.array(signs)[CLUSTERS], CLUSTERS))
            for signs in itertools.product((1, -1), repeat=6)
        ]
        share = np.mean([t >= observed - 1e-9 for t in patterns])
        assert sign_flips(d[:, None], CLUSTERS)[0] == pytest.approx(share)


# ---- what they must not do


def test_undefined_problems_do_not_shrink_an_interval():
    values = np.full(100, np.nan)
    values[:4] = [1.0, 1.0, 1.0, 1.0]
    among, four = alone(values, Support(0.0, 1.0, True)), alone(values[:4], Support(0.0, 1.0, True))
    assert among.n == 4 and among.low == pytest.approx(four.low, abs=0.02)
    assert among.low == pytest.approx(0.025 ** (1 / 4), abs=0.02)
    counts = np.where(np.isfinite(values), np.arange(100.0), np.nan)
    assert np.isnan(alone(counts, UNKNOWN).low)
    assert alone(counts, UNKNOWN).reason == "4 independent problems, an interval needs 12"


def test_too_few_differing_problems_are_refused_or_bounded_with_the_reason():
    counts = np.zeros(60)
    counts[:4] = [1.0, 2.0, 1.0, 3.0]
    refused = alone(counts, UNKNOWN)
    assert np.isnan(refused.low) and "only 4 of 60 independent problems differ" in refused.reason
    counts[4] = 1.0
    assert alone(counts, UNKNOWN).low < counts.mean() < alone(counts, UNKNOWN).high
    share = alone(counts / 10 * (np.arange(60) < 4), Support(-1.0, 1.0))
    assert share.low < -0.02 and share.reason is None  # the range bounds what was not seen
    few = ratio_intervals(np.ones((8, 1)), np.ones((8, 1)), Resampler(np.arange(8)))
    assert np.isnan(few[0].low) and str(LEAST_CLUSTERS) in few[0].reason


def test_without_any_difference_noninferiority_is_no_certainty():
    """Nine problems that don't differ: 28 % that do might go unseen with 5 % probability."""
    p = lower_tail(np.zeros(9), Resampler(np.arange(9)), -0.05, -1.0)
    assert p == pytest.approx(0.95**9, abs=0.02)
    assert lower_tail(np.full(9, -0.1), Resampler(np.arange(9)), -0.05, -1.0) > 0.999
    assert np.isnan(lower_tail(np.array([0.1]), Resampler(np.arange(1)), -0.05, -1.0))


@given(
    st.lists(st.integers(0, 20), min_size=12, max_size=30),
    st.lists(st.integers(0, 20), min_size=30, max_size=30),
    st.integers(0, 10**6),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_worsening_one_sample_moves_nothing_in_its_favour(passed, base, pick, grouped):
    """Interval, p-value and status of a rate, and both limits of the ratio, in the candidate."""
    n = len(passed)
    before = np.array(passed) / 20
    after = before.copy()
    after[pick % n] = max(0.0, after[pick % n] - 0.05)
    resampler = Resampler(np.arange(n) // 3 if grouped else np.arange(n), draws=300)
    other = np.array(base[:n]) / 20
    d = np.stack([before - other, after - other], axis=1)
    for level in (0.95, 0.99):
        first, second = mean_intervals(d, resampler, [RATE, RATE], level=level)
        assert second.low <= first.low + 1e-12 and second.high <= first.high + 1e-12
    p = [lower_tail(column, resampler, -0.05, -1.0) for column in d.T]
    assert p[1] >= p[0]
    a = np.stack([before, after], axis=1) + 0.0
    first, second = ratio_intervals(a, np.stack([other, other], axis=1), resampler)
    if np.isfinite(first.low):
        assert second.low <= first.low + 1e-12 and second.high <= first.high + 1e-12


def test_the_floor_of_two_seeds_covers_zero():
    """Two runs of one method, 400 times: its metrics' intervals leave 0 out in 5 % at most."""
    rng = np.random.default_rng(4)
    trials, n = 400, 40
    easy = np.where(rng.random((n, trials)) < 0.8, 0.99, rng.beta(1, 1, (n, trials)))
    one, two = rng.binomial(20, easy), rng.binomial(20, easy)
    d = (one - two) / 20.0
    for values, support in ((d, RATE), (d, Support(-1.0, 1.0)), (20 * d, UNKNOWN)):
        found = mean_intervals(values, Resampler(np.arange(n), draws=1000), [support] * trials)
        missed = [not e.low <= 0 <= e.high for e in found if np.isfinite(e.low)]
        assert len(missed) > trials / 4
        assert np.mean(missed) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / trials)


def test_three_gains_and_no_loss_are_no_proof(tmp_path):
    """The floor that excluded 0: three problems of 100 newly solved (a sign test says p = 0.25)."""
    d = np.zeros(100)
    d[:3] = 1.0
    assert alone(d).low < 0 < alone(d).high
    assert stats.signed_rank(d).p > 0.05 and sign_flips(d[:, None], np.arange(100))[0] > 0.2


def test_the_median_of_binary_differences_is_null_with_the_reason(tmp_path):
    for name in ("temp-0.8", "greedy"):
        write_run(tmp_path, name, METHODS[name], n=20)
    [pair] = compare(read_runs([tmp_path]), draws=200)["pairs"]
    assert pair["metrics"]["success@K"]["shift"]["value"] is None
    assert "0/1 differences" in pair["metrics"]["success@K"]["shift"]["reason"]
    assert pair["metrics"]["pass@10"]["shift"]["value"] is not None


def test_holm_is_given_for_both_tests(tmp_path):
    for name in ("temp-0.8", "greedy", "temp-1.5", "nucleus-0.95"):
        write_run(tmp_path, name, METHODS[name], n=24, families=None)
    pairs = compare(read_runs([tmp_path]), draws=200)["pairs"]
    for metric in ("pass@1", "unique_correct"):
        tests = [pair["metrics"][metric] for pair in pairs]
        for raw, holm in (("p_permutation", "p_permutation_holm"), ("p_wilcoxon", "p_holm")):
            expected = stats.holm([test[raw] for test in tests])
            assert [test[holm] for test in tests] == pytest.approx(list(expected))


def test_columns_with_gaps_are_tested_on_what_they_have(tmp_path):
    for name in ("temp-0.8", "temp-1.5"):
        write_run(tmp_path, name, METHODS[name], n=24, families=None)
    a, b = sorted(read_runs([tmp_path]), key=lambda run: run.method)
    whole = compare_pairs([(b, a)], ["pass@1"], Resampler(np.arange(24), draws=200))
    a.metrics["pass@1"][5:] = np.nan
    [part] = compare_pairs([(b, a)], ["pass@1"], Resampler(np.arange(24), draws=200))
    d = b.metrics["pass@1"][:5] - a.metrics["pass@1"][:5]
    assert part["pass@1"]["n_undefined"] == 19
    assert part["pass@1"]["p_permutation"] == pytest.approx(
        scipy_stats.permutation_test(
            (d,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=True
        ).pvalue
    )
    assert whole[0]["pass@1"]["p_permutation"] != part["pass@1"]["p_permutation"]


# ---- the promises, simulated (the whole table: benchmarks/coverage.py)


@pytest.mark.parametrize("name", coverage.CONDITIONS)
def test_the_promises_are_kept(name):
    trials = 200
    for groups in (8, 20, 100):
        row = coverage.simulate(name, groups, trials=trials, draws=1000)
        assert row["missed"] <= 0.06 + 3 * np.sqrt(0.06 * 0.94 / trials), row
        for key, alpha in (("passes_025", 0.025), ("passes_005", 0.005), ("claims_005", 0.005)):
            assert row.get(key, 0.0) <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / trials), row
        for key in ("flips", "wilcoxon"):
            assert row.get(key, 0.0) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / trials), row
