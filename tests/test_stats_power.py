"""Power: the tilt, sizes against formulas, against simulated studies and against errorbars."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest
from errorbars.power import questions_needed
from errorbars.stats import within_between_variance
from statsmodels.stats.power import TTestPower

from lm_eval_embednoise.analysis import planning, power, stats
from lm_eval_embednoise.analysis.intervals import Support, mean_intervals
from lm_eval_embednoise.analysis.resample import Resampler
from lm_eval_embednoise.analysis.runs import ResultError
from tests.support.synthetic import write_run


def test_the_tilt_has_the_mean_asked_for_and_keeps_the_support():
    rng = np.random.default_rng(0)
    d = np.where(rng.random(60) < 0.6, 0.0, rng.choice([-0.3, 0.1, 0.4], 60))
    blocks = [d[i : i + 3] for i in range(0, 60, 3)]
    weights = planning.tilted(blocks, 0.05)
    sums, sizes = np.array([b.sum() for b in blocks]), np.full(20, 3)
    assert weights @ sums / (weights @ sizes) == pytest.approx(0.05)
    assert weights.sum() == pytest.approx(1.0) and (weights > 0).all()


def test_no_tilt_where_the_pilot_has_that_mean():
    d = np.random.default_rng(1).normal(0.1, 1, 50)
    weights = planning.tilted([d[i : i + 1] for i in range(50)], float(d.mean()))
    np.testing.assert_allclose(weights, 1 / 50, atol=1e-6)


def test_an_impossible_difference_is_refused():
    with pytest.raises(ResultError, match=r"can't average 0\.5"):
        planning.difference_needed(np.array([0.0, 0.1, 0.2]), difference=0.5, alpha=0.05)
    with pytest.raises(ResultError, match="a difference of 0 can't be found"):
        planning.difference_needed(np.array([0.0, 0.1, -0.2]), difference=0.0, alpha=0.05)


def test_normal_differences_need_what_the_formula_of_the_t_test_says():
    d = np.random.default_rng(2).normal(0, 1, 4000)
    needed = planning.difference_needed(d, difference=0.3, alpha=0.05, trials=2000)
    formula = ((1.959964 + 0.841621) / 0.3) ** 2
    assert needed.approximate == pytest.approx(formula, rel=0.05)
    theirs = TTestPower().solve_power(effect_size=0.3, alpha=0.05, power=0.8)
    assert needed.simulated == pytest.approx(theirs, rel=0.06)


def flipped_p(sums, sizes, rng, flips=400):
    """The decisive test from its definition: |t| of the mean over problems, for every pattern."""
    signs = np.vstack([np.ones(len(sums)), rng.choice([-1.0, 1.0], (flips, len(sums)))])
    signed = signs * sums
    mean = signed.sum(1) / sizes.sum()
    t = np.abs(mean) / np.sqrt(((signed - mean[:, None] * sizes) ** 2).sum(1))
    return np.mean(t >= t[0] - 1e-12)


@pytest.mark.parametrize(
    ("kind", "difference"), [("zero-heavy", 0.06), ("skewed", 0.1), ("clustered", 0.12)]
)
def test_studies_of_the_planned_size_find_the_difference_as_often_as_planned(kind, difference):
    """Drawn and tested by another code; half the size finds it clearly less often."""
    rng = np.random.default_rng(len(kind))
    clusters = np.arange(240)
    if kind == "zero-heavy":
        d = np.where(rng.random(240) < 0.6, 0.0, rng.choice([-0.4, 0.1, 0.3], 240))
    elif kind == "skewed":
        d = rng.exponential(0.3, 240) - 0.3
    else:
        clusters = np.repeat(np.arange(90), rng.permutation([1] * 30 + [2] * 30 + [5] * 30))
        d = rng.normal(0, 0.3, 90)[clusters] + rng.normal(0, 0.2, len(clusters))
    needed = planning.difference_needed(d, clusters, difference=difference, alpha=0.05)
    blocks = [stats.settle(d[clusters == code]) for code in np.unique(clusters)]
    weights = planning.tilted(blocks, difference)
    sums, sizes = (np.array([f(block) for block in blocks]) for f in (np.sum, len))
    groups = round(needed.simulated * len(blocks) / len(d))
    rates = {}
    for size in (groups, groups // 2):
        found = 0
        for _ in range(250):
            pick = rng.choice(len(blocks), size, p=weights)
            found += flipped_p(sums[pick], sizes[pick], rng) < 0.05
        rates[size] = found / 250
    assert rates[groups] == pytest.approx(needed.power, abs=0.08)  # three standard errors
    assert needed.power >= 0.8 and rates[groups // 2] < needed.power - 0.1


def test_the_detectable_difference_takes_the_size_it_was_detectable_with():
    """What every comparison prints beside a difference, by the test that decides."""
    rng = np.random.default_rng(13)
    d = np.where(rng.random(2000) < 0.6, 0.0, rng.choice([-0.5, 0.5], 2000))
    se = stats.standard_error(d) * np.sqrt(len(d) / 164)
    reach = stats.detectable_difference(se, alpha=0.05)
    needed = planning.difference_needed(d, difference=reach, alpha=0.05, trials=1000)
    assert needed.approximate == pytest.approx(164, rel=0.05)
    assert needed.simulated == pytest.approx(164, rel=0.1)


def test_a_strict_level_is_resolved_by_more_patterns():
    """At 0.0005 two thousand patterns could hardly reject, and the plan would never end."""
    d = np.random.default_rng(12).normal(0, 1, 500)
    needed = planning.difference_needed(d, difference=0.8, alpha=5e-4, trials=200)
    assert needed.simulated == pytest.approx(needed.approximate, rel=0.35)


def test_clusters_need_more_problems():
    rng = np.random.default_rng(5)
    clusters = np.repeat(np.arange(30), 5)
    d = rng.normal(0, 1, 30)[clusters] + rng.normal(0, 0.3, 150)
    settings = {"difference": 0.4, "alpha": 0.05}
    alone = planning.difference_needed(d, **settings)
    together = planning.difference_needed(d, clusters, **settings)
    assert together.simulated > 2 * alone.simulated


def test_the_command_prints_and_writes(tmp_path, capsys):
    for name in ("temp-0.8", "nucleus-0.95"):
        write_run(tmp_path, name, n=60, families=None)
    parser = argparse.ArgumentParser()
    power.add_arguments(parser)
    out = tmp_path / "power.json"
    arguments = [str(tmp_path), "--method", "nucleus-0.95", "--metric", "pass@1"]
    assert power.run(parser.parse_args([*arguments, "--json", str(out)])) == 0
    shown = capsys.readouterr().out
    [needed] = json.loads(out.read_text())
    assert f"takes {needed['simulated']} problems" in shown and "normal approximation" in shown
    assert "find 5 points of pass@1" in shown and "by the sign-flip test of the mean" in shown
    with pytest.raises(ResultError, match="--margin is for rates, distinct_2 is none"):
        power.run(parser.parse_args([*arguments[:3], "--metric", "distinct_2", "--margin", "0.1"]))
    assert power.run(parser.parse_args([*arguments, "--margin", "0.2", "--samples", "1,20"])) == 0
    shown = capsys.readouterr().out
    assert "less than 20 points of pass@1 worse than temp-0.8 if the true difference is +0" in shown
    assert "problems at K = 1, " in shown and "/ K within" in shown
    ratio = [*arguments[:3], "--metric", "distinct_2", "--ratio", "1.1", "--power", "0.5"]
    assert power.run(parser.parse_args([*ratio, "--expected", "1.3"])) == 0
    assert "show a ratio above 1.1 of distinct_2" in capsys.readouterr().out
    with pytest.raises(ResultError, match="whole numbers"):
        power.run(parser.parse_args([*arguments, "--samples", "many"]))
    with pytest.raises(ResultError, match="not for pass@10"):
        power.run(parser.parse_args([*arguments[:3], "--metric", "pass@10", "--samples", "5"]))
    with pytest.raises(ResultError, match="there are: nucleus"):
        power.run(parser.parse_args([str(tmp_path), "--method", "x"]))
    with pytest.raises(ResultError, match="has no pass@7 for minicoder on minicode"):
        power.run(parser.parse_args([*arguments[:3], "--metric", "pass@7"]))


# ---- non-inferiority, ratio, problems against samples


def test_noninferiority_of_equal_methods_needs_what_its_interval_needs():
    """The simulated size reaches the power by the analysis' own interval, and not half of it."""
    d = np.random.default_rng(6).choice([-0.4, 0.0, 0.4], 400, p=[0.2, 0.6, 0.2])
    settings = {"margin": 0.1, "alpha": 0.05}
    needed = planning.noninferiority_needed(d, **settings)
    # 1/(n + 1) of the weight at −1 costs about a point at this size: more than the t test needs.
    assert needed.approximate < needed.simulated < 2.5 * needed.approximate
    rng = np.random.default_rng(7)
    weights = planning.tilted([d[i : i + 1] for i in range(400)], 0.0)
    for size, low, high in ((needed.simulated, 0.7, 0.9), (needed.simulated // 2, 0.0, 0.7)):
        drawn = rng.choice(d, size=(size, 200), p=weights)
        told = mean_intervals(
            drawn,
            Resampler(np.arange(size), draws=1000),
            [Support(-1.0, 1.0, decides=True)] * 200,
        )
        assert low < np.mean([e.low > -0.1 for e in told]) < high


def test_a_ratio_needs_more_problems_the_nearer_it_is_to_its_limit():
    rng = np.random.default_rng(8)
    b = rng.gamma(8, 0.025, 150)
    a = b * rng.gamma(20, 1.4 / 20, 150)
    clusters = np.arange(150) // 3
    near, far = (
        planning.ratio_needed(a, b, limit=1.2, expected=ratio, alpha=0.01, trials=200)
        for ratio in (1.3, 1.45)
    )
    assert near.simulated > 2 * far.simulated > 0 and near.power >= 0.8
    together = planning.ratio_needed(
        a, b, clusters, limit=1.2, expected=1.3, alpha=0.01, trials=200
    )
    assert together.simulated >= near.simulated * 0.8
    with pytest.raises(ResultError, match=r"true ratio of 1\.1 is not above 1\.2"):
        planning.ratio_needed(a, b, limit=1.2, expected=1.1, alpha=0.01)
    with pytest.raises(ResultError, match=r"no less than 0\.05 worse"):
        planning.noninferiority_needed(a - b, margin=0.05, expected=-0.05, alpha=0.01)


def test_variance_between_and_within_problems_is_found_and_errorbars_own():
    rng = np.random.default_rng(9)
    n, k = 3000, 8
    easy, gain = rng.beta(2, 2, n), rng.normal(0, 0.1, n)
    samples = [rng.random((n, k)) < np.clip(rate, 0, 1)[:, None] for rate in (easy + gain, easy)]
    a, b = (side.mean(1) for side in samples)
    parts = planning.variance_parts(a, b, k)
    rates = [np.clip(easy + gain, 0, 1), easy]
    assert parts.within == pytest.approx(sum(np.mean(r * (1 - r)) for r in rates), rel=0.05)
    assert parts.between == pytest.approx(np.var(rates[0] - rates[1]), rel=0.25)
    within, _ = within_between_variance(
        samples[0].ravel().astype(float), np.repeat(np.arange(n), k)
    )
    other, _ = within_between_variance(samples[1].ravel().astype(float), np.repeat(np.arange(n), k))
    assert parts.within == pytest.approx(within + other, rel=1e-9)
    # More samples help until what lies between problems is left; the formula is errorbars' own.
    few, many = (parts.problems(0.05, at, alpha=0.05) for at in (1, 1000))
    assert few > 5 * many
    alone = planning.Parts(0.0, 0.5)
    theirs = questions_needed(0.05, variance=0.25, alpha=0.05, power=0.8, samples_per_question=10)
    assert alone.problems(0.05, 10, alpha=0.05) == pytest.approx(theirs.n_questions, abs=1)
    with pytest.raises(ResultError, match="one sample a problem"):
        planning.variance_parts(a, b, 1)
