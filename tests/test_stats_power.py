"""Power: the tilt, the simulation against the normal approximation and against the real test."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest
from scipy import stats as scipy_stats

from lm_eval_embednoise.analysis import power, stats
from lm_eval_embednoise.analysis.runs import ResultError
from tests.support.synthetic import write_run


def test_the_tilt_has_the_mean_asked_for_and_keeps_the_support():
    rng = np.random.default_rng(0)
    d = np.where(rng.random(60) < 0.6, 0.0, rng.choice([-0.3, 0.1, 0.4], 60))
    blocks = [d[i : i + 3] for i in range(0, 60, 3)]
    weights = power.tilted(blocks, 0.05)
    sums, sizes = np.array([b.sum() for b in blocks]), np.full(20, 3)
    assert weights @ sums / (weights @ sizes) == pytest.approx(0.05)
    assert weights.sum() == pytest.approx(1.0) and (weights > 0).all()


def test_no_tilt_where_the_pilot_has_that_mean():
    d = np.random.default_rng(1).normal(0.1, 1, 50)
    weights = power.tilted([d[i : i + 1] for i in range(50)], float(d.mean()))
    np.testing.assert_allclose(weights, 1 / 50, atol=1e-6)


def test_an_impossible_difference_is_refused():
    with pytest.raises(ResultError, match=r"can't average 0\.5"):
        power.problems_needed(np.array([0.0, 0.1, 0.2]), difference=0.5, alpha=0.05)


def test_normal_differences_need_what_the_formula_says():
    d = np.random.default_rng(2).normal(0, 1, 4000)
    needed = power.problems_needed(d, difference=0.3, alpha=0.05, trials=2000)
    formula = ((1.959964 + 0.841621) / 0.3) ** 2
    assert needed.approximate == pytest.approx(formula, rel=0.05)
    # The signed-rank test's efficiency against the mean is 3/π for normal differences.
    assert needed.simulated == pytest.approx(formula * np.pi / 3, rel=0.08)


def test_the_simulated_power_is_the_tests_own():
    rng = np.random.default_rng(3)
    d = np.where(rng.random(200) < 0.5, 0.0, rng.normal(0.15, 0.3, 200))
    blocks = [d[i : i + 1] for i in range(200)]
    weights = power.tilted(blocks, 0.08)
    rate = power.rejection_rate(blocks, weights, 80, alpha=0.05, trials=2000, seed=0)
    draws = rng.choice(d, size=(1500, 80), p=weights)
    real = np.mean(
        [
            scipy_stats.wilcoxon(x, zero_method="pratt", method="asymptotic").pvalue < 0.05
            for x in np.round(draws, 10)
        ]
    )
    assert rate == pytest.approx(real, abs=0.05)


def test_unequal_clusters_rank_as_the_real_test_does():
    rng = np.random.default_rng(4)
    sizes = [1, 3, 2, 4]
    clusters = np.repeat(np.arange(4), sizes)
    d = np.round(rng.normal(0.2, 1, 10), 2)
    padded = np.full((4, 1, 4), np.nan)
    for c, size in enumerate(sizes):
        padded[c, 0, :size] = d[clusters == c]
    assert power._deviates(padded)[0] == pytest.approx(stats.signed_rank(d, clusters).z)


def test_clusters_need_more_problems():
    rng = np.random.default_rng(5)
    clusters = np.repeat(np.arange(30), 5)
    d = rng.normal(0, 1, 30)[clusters] + rng.normal(0, 0.3, 150)
    settings = {"difference": 0.4, "alpha": 0.05, "trials": 500}
    alone = power.problems_needed(d, **settings)
    together = power.problems_needed(d, clusters, **settings)
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
    with pytest.raises(ResultError, match="there are: nucleus"):
        power.run(parser.parse_args([str(tmp_path), "--method", "x"]))
    with pytest.raises(ResultError, match="has no pass@7 for minicoder on minicode"):
        power.run(parser.parse_args([*arguments[:3], "--metric", "pass@7"]))
