"""Statistics against statsmodels, scipy and published examples, on a real pilot's vectors as well.

tests/data/pilot.json: minicoder on the first 40 problems of minicode_diverse, K = 20, temperature
0.8 and noise at σ = 0.1 (`embednoise study` with those two methods).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW, ttost_paired

from lm_eval_embednoise.analysis import stats
from lm_eval_embednoise.analysis.intervals import lower_tail
from lm_eval_embednoise.analysis.resample import Resampler, bca

PILOT = json.loads((Path(__file__).parent / "data" / "pilot.json").read_text())
METRICS = ("pass@1", "pass@10", "distinct_2", "unique_correct")


def sides(metric):
    return (np.array(PILOT[method][metric]) for method in ("embednoise-0.1", "temp-0.8"))


def differences(metric):
    a, b = sides(metric)
    return stats.settle(a - b)


@pytest.mark.parametrize("metric", METRICS)
def test_wilcoxon_on_real_vectors(metric):
    d = differences(metric)
    theirs = scipy_stats.wilcoxon(d, zero_method="pratt", method="asymptotic")
    assert stats.signed_rank(d).p == pytest.approx(theirs.pvalue, rel=1e-9)


@pytest.mark.parametrize("metric", METRICS)
def test_standard_errors_and_intervals_on_real_vectors(metric):
    d = differences(metric)
    theirs = DescrStatsW(d)
    assert stats.standard_error(d) == pytest.approx(theirs.std_mean)
    means = Resampler(np.arange(len(d)), draws=20_000).means(d[:, None])
    ours = bca(*means.column(0), small_sample=False)
    low, high = scipy_stats.bootstrap(
        (d,), np.mean, n_resamples=20_000, method="BCa", rng=0
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.03 * (high - low))
    ours = bca(*means.column(0))  # as wide as Student's, but skewed where the data are
    low, high = theirs.tconfint_mean()
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.15 * (high - low))
    assert ours.high - ours.low == pytest.approx(high - low, rel=0.1)


@pytest.mark.parametrize("margin", [0.05, 0.2])
def test_noninferiority_is_stricter_than_statsmodels_tost(margin):
    """The t test's p, plus what values unseen may do; the two agree where problems are many."""
    a, b = sides("pass@1")
    _, (_, lower, _), _ = ttost_paired(a, b, -margin, margin)
    assert lower_tail(a - b, Resampler(np.arange(len(a))), -margin, -1.0) > lower
    many = np.random.default_rng(0).choice([-0.4, 0.0, 0.4], 4000)
    _, (_, lower, _), _ = ttost_paired(many, np.zeros(4000), -0.01, 0.01)
    told = lower_tail(many, Resampler(np.arange(4000), draws=4000), -0.01, -1.0)
    assert told == pytest.approx(lower, abs=0.02)


def test_the_chance_of_equal_methods_is_the_published_one():
    """n = 164, SD 0.35: two equal methods pass a 5-point test 45 % of the time, 23 % at .005."""
    se = 0.35 / np.sqrt(164)
    assert stats.chance_if_equal(se, 0.05, alpha=0.025) == pytest.approx(0.45, abs=0.005)
    assert stats.chance_if_equal(se, 0.05, alpha=0.005) == pytest.approx(0.23, abs=0.005)
    rng = np.random.default_rng(0)
    pairs = [(rng.normal(0, 0.35, 164), np.zeros(164)) for _ in range(2000)]
    passed = [ttost_paired(a, b, -0.05, 9.0)[1][1] < 0.025 for a, b in pairs]
    assert np.mean(passed) == pytest.approx(0.45, abs=0.04)


def test_holm_and_bonferroni_equal_statsmodels():
    p = np.random.default_rng(1).random(12) ** 3
    np.testing.assert_allclose(stats.holm(p), multipletests(p, method="holm")[1])
    np.testing.assert_allclose(stats.bonferroni(p), multipletests(p, method="bonferroni")[1])


def test_mcnemar_equals_statsmodels_on_real_outcomes():
    a, b = sides("success@K")
    only_a, only_b, p = stats.mcnemar_exact(a, b)
    both, neither = np.sum((a == 1) & (b == 1)), np.sum((a == 0) & (b == 0))
    theirs = mcnemar([[both, only_a], [only_b, neither]], exact=True)
    assert p == pytest.approx(theirs.pvalue)


def test_mcnemar_of_agrestis_approval_ratings():
    """Agresti (2002), table 10.1: 150 and 86 of 1,600 changed their mind; z² = 17.36 there."""
    a = np.repeat([1, 1, 0, 0], [794, 150, 86, 570])
    b = np.repeat([1, 0, 1, 0], [794, 150, 86, 570])
    only_a, only_b, p = stats.mcnemar_exact(a, b)
    assert (only_a, only_b) == (150, 86)
    assert p == pytest.approx(scipy_stats.chi2.sf((abs(150 - 86) - 1) ** 2 / 236, 1), rel=0.15)


def test_wilcoxon_of_darwins_maize():
    """Darwin's fifteen pairs (Fisher 1935, eighths of an inch): W⁻ = 24, p = 0.041 in textbooks."""
    d = np.array([49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48.0])
    found = stats.signed_rank(d)
    assert found.rank_biserial == pytest.approx((96 - 24) / 120)
    assert found.p == pytest.approx(0.041, abs=0.0005)
    # Fisher's own test of these pairs: 1,726 of 2¹⁵ sign patterns reach the sum, p = 0.0527.
    flips = stats.sign_flip_p(d[:, None], flips=60_000)[0]
    assert flips == pytest.approx(1726 / 2**15, abs=0.003)
