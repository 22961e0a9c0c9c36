"""Statistics: agreement with scipy, identities, degenerate cases, and error rates by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from lm_eval_embednoise.analysis import stats
from lm_eval_embednoise.analysis.resample import Means, Resampler, bca, cluster_codes, interval


def zero_heavy(rng, n):
    """Differences of rates as they are: many zeros, many ties."""
    return np.where(rng.random(n) < 0.5, 0.0, rng.integers(-10, 14, n) / 20)


@pytest.mark.parametrize("n", [14, 40, 164, 500])
def test_signed_rank_equals_scipy(n):
    d = zero_heavy(np.random.default_rng(n), n)
    ours = stats.signed_rank(d)
    theirs = scipy_stats.wilcoxon(d, zero_method="pratt", method="asymptotic")
    assert ours.p == pytest.approx(theirs.pvalue, rel=1e-12)
    assert abs(ours.z) == pytest.approx(abs(theirs.zstatistic), rel=1e-12)


@pytest.mark.parametrize("n", [3, 8, 13])
def test_small_samples_are_exact(n):
    d = np.random.default_rng(n).normal(0.3, 1, n)
    test = stats.signed_rank(d)
    assert test.exact
    assert test.p == pytest.approx(scipy_stats.wilcoxon(d, method="exact").pvalue, rel=1e-9)


def test_sign_flips_equal_scipys_permutation_test():
    d = np.random.default_rng(0).normal(0.4, 1, 10)
    theirs = scipy_stats.permutation_test(
        (d,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=True
    )
    assert stats.sign_flip_p(d[:, None])[0] == pytest.approx(theirs.pvalue, rel=1e-9)


def test_random_sign_flips_approach_the_t_test():
    d = np.random.default_rng(1).normal(0.2, 1, 200)
    p = stats.sign_flip_p(d[:, None])[0]
    assert p == pytest.approx(scipy_stats.ttest_1samp(d, 0).pvalue, abs=0.01)
    assert stats.sign_flip_p(np.ones((100, 1)))[0] == 1 / (stats.FLIPS + 1)


def test_each_column_of_a_sign_flip_test_can_have_sizes_of_its_own():
    rng = np.random.default_rng(11)
    for groups in (6, 40):  # all patterns, and random ones
        totals, sizes = rng.normal(0.3, 1, (groups, 5)), rng.integers(1, 6, (groups, 5))
        alone = [stats.sign_flip_p(totals[:, [j]], sizes[:, j], flips=500)[0] for j in range(5)]
        np.testing.assert_allclose(stats.sign_flip_p(totals, sizes, flips=500), alone)


def test_clusters_of_one_change_nothing_and_order_does_not_matter():
    rng = np.random.default_rng(2)
    d, order = zero_heavy(rng, 50), rng.permutation(50)
    clusters = np.arange(50) // 5
    assert stats.signed_rank(d, np.arange(50)) == stats.signed_rank(d)
    a, b = stats.signed_rank(d, clusters), stats.signed_rank(d[order], clusters[order])
    assert (a.p, a.z) == pytest.approx((b.p, b.z), rel=1e-9)


def test_negation_mirrors():
    d = zero_heavy(np.random.default_rng(3), 60)
    a, b = stats.signed_rank(d), stats.signed_rank(-d)
    assert (a.p, a.rank_biserial) == pytest.approx((b.p, -b.rank_biserial))
    shift, mirrored = stats.hodges_lehmann(d), stats.hodges_lehmann(-d)
    assert (shift.value, shift.low, shift.high) == pytest.approx(
        (-mirrored.value, -mirrored.high, -mirrored.low)
    )


def test_rounding_errors_do_not_break_ties():
    d = np.array([0.3 - 0.2, 0.1, 0.2 - 0.3, -0.1] * 10)
    assert len(set(np.abs(d))) > 1  # not equal as floats
    assert stats.signed_rank(d).p == pytest.approx(1.0)


def test_hodges_lehmann_by_hand():
    # Hollander & Wolfe (1999), example 3.1: depression scores; their 96 % interval.
    x = np.array([1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30])
    y = np.array([0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29])
    shift = stats.hodges_lehmann(y - x)
    assert shift.value == pytest.approx(-0.46, abs=1e-9)
    assert (shift.low, shift.high) == pytest.approx((-0.786, -0.010), abs=1e-9)


def test_rank_biserial_limits():
    assert stats.signed_rank(np.array([0.1, 0.2, 0.3])).rank_biserial == 1.0
    assert stats.signed_rank(np.array([-0.1, -0.2])).rank_biserial == -1.0


def test_all_ties_are_no_difference():
    test = stats.signed_rank(np.zeros(40))
    assert (test.p, test.rank_biserial, test.nonzero) == (1.0, 0.0, 0)
    assert stats.sign_flip_p(np.zeros((40, 1)))[0] == 1.0
    shift = stats.hodges_lehmann(np.zeros(40))
    assert (shift.value, shift.low, shift.high) == (0.0, 0.0, 0.0)


def test_mcnemar_equals_the_binomial_test():
    rng = np.random.default_rng(4)
    a, b = rng.integers(0, 2, 80), rng.integers(0, 2, 80)
    only_a, only_b, p = stats.mcnemar_exact(a, b)
    assert only_a == np.sum(a > b) and only_b == np.sum(b > a)
    assert p == pytest.approx(scipy_stats.binomtest(only_a, only_a + only_b, 0.5).pvalue)
    assert stats.mcnemar_exact(a, a) == (0, 0, 1.0)


def test_bonferroni_and_holm():
    p = [0.01, 0.04, 0.03, 0.005]
    np.testing.assert_allclose(stats.bonferroni(p), [0.04, 0.16, 0.12, 0.02])
    np.testing.assert_allclose(stats.bonferroni(p, 5), [0.05, 0.2, 0.15, 0.025])
    np.testing.assert_allclose(stats.holm(p), [0.03, 0.06, 0.06, 0.02])  # R's p.adjust
    with_gap = stats.holm([0.01, np.nan, 0.04])
    np.testing.assert_allclose(with_gap[[0, 2]], [0.02, 0.04])
    assert np.isnan(with_gap[1])


def test_standard_error_without_and_with_clusters():
    d = np.random.default_rng(5).normal(size=30)
    assert stats.standard_error(d) == pytest.approx(d.std(ddof=1) / np.sqrt(30))
    repeated = np.repeat(d, 4)  # four copies of a problem tell no more than one
    assert stats.standard_error(repeated, np.repeat(np.arange(30), 4)) == pytest.approx(
        stats.standard_error(d)
    )
    assert np.isnan(stats.standard_error(d, np.zeros(30, dtype=int)))


def test_detectable_difference_has_the_stated_power():
    reach = stats.detectable_difference(0.1, alpha=0.05)
    assert scipy_stats.norm.sf(1.959964 - reach / 0.1) == pytest.approx(0.8, abs=1e-6)


# ---- bootstrap


def column(values, clusters=None, **settings):
    codes = cluster_codes(clusters, len(values))
    return Resampler(codes, **settings).means(np.asarray(values, float)[:, None]).column(0)


def test_bca_agrees_with_scipy():
    values = np.random.default_rng(6).exponential(1.0, 60)
    ours = bca(*column(values, draws=20_000), small_sample=False)
    theirs = scipy_stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, rng=np.random.default_rng(1), method="BCa"
    ).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.01)
    assert ours.high == pytest.approx(theirs.high, abs=0.01)


def test_means_under_resampling_equal_the_slow_way():
    rng = np.random.default_rng(7)
    values = rng.normal(size=(12, 2))
    values[3, 1] = np.nan
    clusters = np.array([0, 0, 1, 1, 1, 2, 3, 3, 4, 4, 4, 4])
    resampler = Resampler(clusters, draws=50)
    means = resampler.means(values)
    for b in range(50):
        rows = [
            i
            for c, times in enumerate(resampler.counts[b])
            for _ in range(times)
            for i in np.flatnonzero(clusters == c)
        ]
        np.testing.assert_allclose(means.boot[b], np.nanmean(values[rows], 0))
    for c in range(5):
        np.testing.assert_allclose(means.jack[c], np.nanmean(values[clusters != c], 0))
    np.testing.assert_array_equal(means.n, [12, 11])


def test_one_set_of_draws_serves_all_and_is_fixed_by_the_seed():
    clusters = np.arange(20)
    np.testing.assert_array_equal(Resampler(clusters).counts, Resampler(clusters).counts)
    assert (Resampler(clusters, seed=1).counts != Resampler(clusters).counts).any()


def test_copies_of_problems_in_a_cluster_do_not_narrow_the_interval():
    d = np.random.default_rng(8).normal(size=25)
    single = bca(*column(d))
    copies = bca(*column(np.repeat(d, 4), np.repeat(np.arange(25), 4)))
    assert (copies.low, copies.high) == pytest.approx((single.low, single.high))
    naive = bca(*column(np.repeat(d, 4)))
    assert naive.high - naive.low < 0.7 * (single.high - single.low)


def test_problems_without_a_label_are_their_own_cluster():
    np.testing.assert_array_equal(cluster_codes(["a", None, "a", None], 4), [0, 1, 0, 2])
    with pytest.raises(ValueError, match="2 cluster labels for 3"):
        cluster_codes(["a", "b"], 3)


def test_degenerate_intervals_say_why():
    one = bca(*column([0.5]))
    assert one.value == 0.5 and np.isnan(one.low) and "one problem" in str(one.reason)
    undefined = bca(*column([np.nan, np.nan]))
    assert np.isnan(undefined.value) and undefined.n == 0 and undefined.reason
    constant = bca(*column([2.0] * 30))
    assert constant.value == 2.0 and np.isnan(constant.low) and "no variation" in constant.reason


def test_constant_rates_get_the_rule_of_three():
    saturated = bca(*column([1.0] * 40), bounds=(0.0, 1.0))
    # P(all 40 succeed) = 2.5 % at this rate: Clopper and Pearson's limit.
    exact = scipy_stats.binomtest(40, 40).proportion_ci(0.95)
    assert (saturated.low, saturated.high) == pytest.approx((exact.low, 1.0))


def test_ratio_interval_respects_the_transformation():
    rng = np.random.default_rng(9)
    a, b = rng.gamma(4, 0.1, 80), rng.gamma(3, 0.1, 80)
    means = Resampler(np.arange(80)).means(np.stack([a, b], 1))
    ratio = interval(means, lambda m: m[..., 0] / m[..., 1], n=80)
    log_ratio = interval(means, lambda m: np.log(m[..., 0] / m[..., 1]), n=80)
    assert np.log([ratio.low, ratio.high]) == pytest.approx(
        [log_ratio.low, log_ratio.high], abs=2e-3
    )


def test_missing_values_make_no_interval_silently():
    means = Means(
        np.array([np.nan]), np.full((10, 1), np.nan), np.full((5, 1), np.nan), np.array([0])
    )
    assert interval(means, lambda m: m[..., 0], n=0).reason


# ---- error rates


def draw(kind, n, rng):
    """Differences with mean 0, and their clusters."""
    if kind == "binary":
        return rng.binomial(1, 0.4, n) - rng.binomial(1, 0.4, n) + 0.0, np.arange(n)
    if kind == "zero-heavy":
        size = rng.choice([0.05, 0.1, 0.3], n) * rng.choice([-1, 1], n)
        return np.where(rng.random(n) < 0.6, 0.0, size), np.arange(n)
    groups = max(10, n // 8)
    clusters = np.arange(n) % groups
    return rng.normal(0, 0.3, groups)[clusters] + rng.normal(0, 0.3, n), clusters


KINDS = ["binary", "zero-heavy", "clustered"]


def simulated(kind, n, trials, seed):
    """Differences [n, trials] and their clusters."""
    rng = np.random.default_rng([n, len(kind), seed])
    draws = [draw(kind, n, rng) for _ in range(trials)]
    return np.stack([d for d, _ in draws], axis=1), draws[0][1]


@pytest.mark.parametrize("n", [40, 164, 500])
@pytest.mark.parametrize("kind", KINDS)
def test_type_one_error_is_kept(kind, n):
    trials = 2000
    d, clusters = simulated(kind, n, trials, 0)
    allowed = 0.05 + 3 * np.sqrt(0.05 * 0.95 / trials)
    deviates = stats.signed_rank_z(d, clusters)
    assert np.mean(np.abs(deviates) > 1.959964) <= allowed
    flips = stats.sign_flip_p(stats.cluster_sums(d, clusters), flips=499)
    assert np.mean(flips < 0.05) <= allowed


@pytest.mark.parametrize("n", [40, 164, 500])
@pytest.mark.parametrize("kind", KINDS)
def test_intervals_cover(kind, n):
    trials = 1000
    d, clusters = simulated(kind, n, trials, 1)
    means = Resampler(clusters, draws=1000).means(d)
    estimates = [bca(*means.column(j)) for j in range(trials)]
    covered = np.mean([e.low <= 0 <= e.high for e in estimates])
    # Forty problems of which sixteen differ, by a few sizes, are too few for any bootstrap.
    promised = 0.92 if (kind, n) == ("zero-heavy", 40) else 0.95
    assert covered >= promised - 3 * np.sqrt(0.05 * 0.95 / trials)
