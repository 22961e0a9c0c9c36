"""Families, envelopes, matched differences and bands against brute force and passk-inference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import passk_inference
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import PchipInterpolator

from lm_eval_embednoise.analysis import schema
from lm_eval_embednoise.analysis.bands import cover, max_t_band, mean_band, replicated_means
from lm_eval_embednoise.analysis.comparison import compare
from lm_eval_embednoise.analysis.curve_plane import claims, curve_plane
from lm_eval_embednoise.analysis.envelope import area, envelope, path
from lm_eval_embednoise.analysis.families import Family, families, plain_temperatures
from lm_eval_embednoise.analysis.intervals import Support
from lm_eval_embednoise.analysis.matched import ABOVE, BELOW, OPEN, against, says
from lm_eval_embednoise.analysis.merge import merge
from lm_eval_embednoise.analysis.records import read_runs
from lm_eval_embednoise.analysis.resample import Estimate, Resampler
from lm_eval_embednoise.scoring.passk import pass_at_every_k
from tests.support.synthetic import METHODS, Method, write_run

TEMPERATURES = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 1.0, 1.25, 1.5)
FAMILY = Family("temperature", "{}", TEMPERATURES, tuple(f"t{t}" for t in TEMPERATURES))
UNIT = Support(0.0, 1.0, decides=True)


# ---- families


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    methods = {f"temp-{t}": Method(temperature=t) for t in (0.2, 0.5, 0.8, 1.5)}
    methods |= {"greedy": METHODS["greedy"], "nucleus-0.95": METHODS["nucleus-0.95"]}
    for site in ("embed", "block.5"):
        for sigma in (0.05, 0.1, 0.5):
            arm = {"sites": {site: sigma}}
            methods[f"{site}-{sigma}"] = Method(sigma=sigma, arm=arm)
    methods["embed-0.1-sequence"] = Method(sigma=0.1, arm={"scope": "sequence"})
    for scale in (0.5, 1.0, 2.0):
        methods[f"rsp-{scale}"] = Method(arm={"rsp": 8, "rsp_scale": scale})
    for name, method in methods.items():
        write_run(folder, name, method, n=6, families=None)
    return {run.method: run for run in read_runs([folder])}


def test_families_are_what_differs_in_its_dose_only(runs):
    found = {(f.axis, f.methods[0]): f for f in families(runs.values())}
    assert {(axis, first) for axis, first in found} == {
        ("temperature", "temp-0.2"),
        ("sigma", "embed-0.05"),
        ("sigma", "block.5-0.05"),
        ("rsp_scale", "rsp-0.5"),
    }
    assert found["temperature", "temp-0.2"].doses == (0.2, 0.5, 0.8, 1.5)
    assert found["sigma", "embed-0.05"].methods == ("embed-0.05", "embed-0.1", "embed-0.5")
    assert found["rsp_scale", "rsp-0.5"].doses == (0.5, 1.0, 2.0)
    assert plain_temperatures(found.values()) == found["temperature", "temp-0.2"]


def test_temperature_with_top_k_is_another_family(runs):
    drawn = [run for run in runs.values() if run.method.startswith("temp-")]
    cut = [replace(r, method=f"k-{r.method}", sampling={**r.sampling, "top_k": 50}) for r in drawn]
    assert plain_temperatures(families(cut)) is None
    found = families([*cut, *drawn])
    assert len(found) == 2
    assert plain_temperatures(found).methods == tuple(sorted(run.method for run in drawn))


def test_two_names_of_one_dose_are_one_point_and_labels_decide_nothing(runs):
    extra = [
        replace(runs["temp-0.8"], method="temp-tuned"),
        replace(runs["temp-0.2"], method="a name that says nothing"),
    ]
    kept = [run for name, run in runs.items() if name != "temp-0.2"]
    found = plain_temperatures(families([*kept, *extra]))
    assert found.doses == (0.2, 0.5, 0.8, 1.5)
    assert found.methods[0] == "a name that says nothing" and "temp-tuned" not in found.methods
    assert found.without("temp-0.5").doses == (0.2, 0.8, 1.5)


# ---- path and envelope


def brute(doses, x, y, q):
    """The envelope at q by walking the path in tiny steps."""
    t = np.linspace(np.log(doses[0]), np.log(doses[-1]), 40_001)
    x, y = np.round(x, 9), np.round(y, 9)
    px, py = (PchipInterpolator(np.log(doses), v)(t) for v in (x, y))
    return py[px >= min(q, px.max())].max()


@given(
    st.lists(st.floats(0, 1), min_size=5, max_size=5, unique=True),
    st.lists(st.floats(0, 1), min_size=5, max_size=5),
    st.floats(-0.2, 1.2),
)
@settings(max_examples=60, deadline=None)
def test_the_envelope_equals_a_walk_along_the_path(x, y, q):
    doses, x, y = (0.1, 0.3, 0.5, 1.0, 2.0), np.array(x), np.array(y)
    found = envelope(path(doses, x[:, None]), path(doses, y[:, None]), np.array([q]))[0]
    # 16 straight pieces between doses: the curve bends by less than this from each, both ways.
    bend = 0.01
    assert brute(doses, x, y, q + bend) - bend <= found <= brute(doses, x, y, q - bend) + bend


def test_a_path_goes_through_its_points_and_replicates_are_independent():
    values = np.random.default_rng(0).random((5, 3))
    found = path((0.1, 0.3, 0.5, 1.0, 2.0), values)
    np.testing.assert_allclose(found[:: (len(found) - 1) // 4], values)
    np.testing.assert_allclose(found[:, 1], path((0.1, 0.3, 0.5, 1.0, 2.0), values[:, 1]))
    with pytest.raises(ValueError, match="two doses"):
        path((0.1,), values[:1])


def test_the_envelope_of_a_straight_fall_is_the_line():
    x, y = np.linspace(1, 0, 33)[:, None], np.linspace(0, 1, 33)[:, None]
    for q in (0.0, 0.123, 0.5, 0.9, 1.0):
        assert envelope(x, y, np.array([q]))[0] == pytest.approx(1 - q)
    assert envelope(x, y, np.array([-3.0]))[0] == 1.0
    # A part of the path that others dominate reaches nothing.
    assert envelope(np.array([[1.0], [0.5]]), np.array([[1.0], [0.2]]), np.array([0.5]))[0] == 1.0


def test_the_area_between_parallel_lines_is_their_distance():
    x = np.linspace(1, 0, 33)[:, None]
    line = (x, 1 - x)
    np.testing.assert_allclose(area((x * 0.5, 1.2 - x * 0.5), line), 0.2)
    assert np.isnan(area((x + 2, x), line)).all()


# ---- matched differences


class Simulated:
    """A method's problems: quality falls and diversity rises with the temperature."""

    def __init__(self, heat, easy, rng, *, lift=0.0, k=20):
        rate = 1 / (1 + np.exp(-(easy - 1.2 * heat**1.5)))
        correct = rng.binomial(k, rate)
        found = np.where(correct > 0, 1 + rng.binomial(np.maximum(correct - 1, 0), heat / 2), 0)
        self.metrics = {"pass@1": correct / k, "unique_correct": found + lift}


def simulated(seed, n, candidates, family=FAMILY):
    rng = np.random.default_rng(seed)
    easy = rng.normal(1.5, 1.5, n)
    methods = {
        name: Simulated(t, easy, rng) for name, t in zip(family.methods, family.doses, strict=True)
    }
    return methods | {name: Simulated(t, easy, rng, lift=lift) for name, t, lift in candidates}


@pytest.fixture(scope="module")
def found():
    candidates = [("on", 0.42, 0.0), ("over", 0.42, 2.5), ("under", 0.42, -2.5), ("cold", 0.1, 0.0)]
    higher = [("low", 0.3, 1.0), ("middle", 0.6, 1.0), ("high", 1.1, 1.0)]
    runs = simulated(1, 120, [*candidates, *higher])
    runs["cold"].metrics["pass@1"] += 0.1
    resampler = Resampler(np.arange(120), draws=600)
    other = Family("sigma", "{}", (0.1, 0.2, 0.4), ("low", "middle", "high"))
    return runs, against(FAMILY, runs, ["unique_correct"], resampler, others=[other])


def test_a_matched_difference_is_the_height_over_the_curve(found):
    runs, curve = found
    x, y = (
        np.array([runs[name].metrics[key].mean() for name in FAMILY.methods])
        for key in ("pass@1", "unique_correct")
    )
    for claim in curve.claims:
        at = {key: values.mean() for key, values in runs[claim.method].metrics.items()}
        if at["pass@1"] > x.max():
            assert np.isnan(claim.difference.value) and claim.says is None
            assert "beyond the curve" in claim.difference.reason
            continue
        height = at["unique_correct"] - brute(TEMPERATURES, x, y, at["pass@1"])
        assert claim.difference.value == pytest.approx(height, abs=0.01)
        assert claim.difference.low < claim.difference.value < claim.difference.high
    said = {claim.method: claim.says for claim in curve.claims}
    assert {name: said[name] for name in ("on", "over", "under", "cold")} == {
        "on": OPEN,
        "over": ABOVE,
        "under": BELOW,
        "cold": None,
    }


def test_the_placebo_leaves_a_point_out_and_gates_the_claim(found):
    runs, curve = found
    placebos = curve.placebos["unique_correct"]
    assert list(placebos) == list(FAMILY.methods[1:-1])
    rest = [name for name in FAMILY.methods if name != "t0.5"]
    alone = against(
        FAMILY.without("t0.5"),
        {name: runs[name] for name in [*rest, "t0.5"]},
        ["unique_correct"],
        Resampler(np.arange(120), draws=50),
    )
    [claim] = alone.claims
    assert claim.method == "t0.5"
    assert claim.difference.value == pytest.approx(placebos["t0.5"].value)
    assert says(Estimate(0.1, 0.05, 0.15, 9), 0.2, 9) == OPEN  # smaller than the placebo
    assert says(Estimate(0.3, 0.05, 0.55, 9), 0.2, 9) == ABOVE
    assert says(Estimate(0.3, 0.05, 0.55, 9), 0.2, 7) == OPEN  # too few doses
    assert says(Estimate(0.3, 0.05, 0.55, 9), np.nan, 9) == OPEN  # no placebo, no claim


def test_areas_and_transposed_differences_have_the_sign_of_the_lift(found):
    _, curve = found
    by_method = {claim.method: claim for claim in curve.claims}
    assert by_method["under"].transposed.value < 0
    higher = by_method["over"]
    assert higher.transposed.value > 0 or "beyond the curve" in higher.transposed.reason
    [gap] = curve.areas["unique_correct"].values()
    assert 0 < gap.low < 1.0 < gap.high


def test_temperature_does_not_beat_its_own_curve():
    """Interior temperatures are left out in turn and a further one is drawn: nothing is above."""
    claims = trials = 0
    for seed in range(40):
        runs = simulated([seed, 7], 40, [("on", 0.42, 0.0), ("hot", 1.1, 0.0)])
        resampler = Resampler(np.arange(40), draws=200)
        curve = against(FAMILY, runs, ["unique_correct"], resampler)
        trials += 1
        claims += any(claim.says == ABOVE for claim in curve.claims)
        assert len(curve.placebos["unique_correct"]) == 7
    assert claims / trials <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / trials)


def test_an_outcome_undefined_on_half_the_problems_is_not_drawn():
    runs = simulated(3, 40, [("on", 0.42, 0.0)])
    runs["on"].metrics["unique_correct"][:21] = np.nan
    resampler = Resampler(np.arange(40), draws=100)
    [claim] = against(FAMILY, runs, ["unique_correct"], resampler).claims
    assert "defined for all on 19 of 40 problems" in claim.difference.reason
    runs["on"].metrics["unique_correct"][:21] = np.where(np.arange(21) < 19, np.nan, 1.0)
    [claim] = against(FAMILY, runs, ["unique_correct"], resampler).claims
    assert claim.difference.n == 21 and np.isfinite(claim.difference.value)
    few = Resampler(np.arange(40) % 8, draws=100)
    [claim] = against(FAMILY, runs, ["unique_correct"], few).claims
    assert claim.difference.reason == "8 independent problems, a curve needs 12"


# ---- bands


def counts(n, k, seed):
    rng = np.random.default_rng(seed)
    return rng.binomial(k, rng.beta(0.5, 0.7, n))


def test_pass_at_k_bands_agree_with_passk_inference():
    n, k, ks = 120, 20, [1, 2, 5, 10, 20]
    a, b = counts(n, k, 1), counts(n, k, 2)
    theirs = passk_inference.compare(b, [k] * n, a, [k] * n, ks=ks, bootstrap=4000)
    rows = (pass_at_every_k(a, k) - pass_at_every_k(b, k))[:, np.array(ks) - 1]
    ours = mean_band(rows, Resampler(np.arange(n), draws=4000), Support(-1.0, 1.0))
    np.testing.assert_allclose(
        ours.value, np.subtract(theirs["rl_pass_at_k"], theirs["base_pass_at_k"])
    )
    assert ours.critical == pytest.approx(theirs["critical_value"], rel=0.06)
    np.testing.assert_allclose(ours.low, theirs["lower"], atol=0.015)
    np.testing.assert_allclose(ours.high, theirs["upper"], atol=0.015)


def test_a_band_holds_for_all_its_columns_at_once():
    trials, missed, pointwise = 150, 0, 0
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        rows = rng.normal(0, 1, (40, 1)) * 0.5 + rng.normal(0, 1, (40, 6))
        band = mean_band(rows, Resampler(np.arange(40), draws=400), Support())
        missed += bool(np.any((band.low > 0) | (band.high < 0)))
        error = rows.std(0, ddof=1) / np.sqrt(40)
        pointwise += bool(np.any(np.abs(rows.mean(0)) > 2.02 * error))
    assert missed / trials <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / trials) < pointwise / trials


@pytest.mark.parametrize("groups", [12, 40])
def test_pass_at_k_bands_cover_all_k_with_few_problems(groups):
    """Difficulties from Beta(½, 0.7), K = 20: the band leaves out a true pass@k in 5 % at most."""
    rates = np.random.default_rng(0).beta(0.5, 0.7, 200_000)
    truth = np.array([np.mean(1 - (1 - rates) ** k) for k in range(1, 21)])
    trials, missed = 200, 0
    for seed in range(trials):
        resampler = Resampler(np.arange(groups), draws=400)
        band = mean_band(pass_at_every_k(counts(groups, 20, [seed, groups]), 20), resampler, UNIT)
        missed += bool(np.any((band.low > truth) | (band.high < truth)))
    assert missed / trials <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / trials)


def test_columns_without_variation_get_their_range():
    rows = np.column_stack([np.arange(40) % 2, np.ones(40)]).astype(float)
    band = mean_band(rows, Resampler(np.arange(40)), UNIT)
    # 1 − (α/4)^(1/40): two columns, two sides.
    assert band.low[1] == pytest.approx((0.05 / 4) ** (1 / 40), abs=0.01) and band.high[1] == 1.0
    empty = max_t_band(np.ones(2), np.ones((2, 50)), 40)
    assert np.isnan(empty.low).all() and np.isnan(empty.critical)


def test_replicates_of_clusters_equal_the_slow_way():
    rng = np.random.default_rng(5)
    clusters, values = np.array([0, 0, 1, 2, 2, 2, 3]), rng.random((7, 2))
    resampler = Resampler(clusters, draws=30)
    drawn = replicated_means(values, resampler)
    for r, weights in enumerate(resampler.weights):
        w = weights[clusters]
        np.testing.assert_allclose(drawn[:, r], (w[:, None] * values).sum(0) / w.sum())


def test_cover_counts_problems_solved_by_a_share_of_samples():
    correct, shares = np.array([0, 1, 10, 20]), np.array([0.05, 0.3, 0.5, 1.0])
    np.testing.assert_array_equal(
        cover(correct, 20, shares),
        [[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]],
    )
    # pass@k is a mean of cover@τ over τ ~ Beta(1, k), with the true rates (arXiv 2510.08325).
    rates = np.random.default_rng(6).random(4000)
    tau = (np.arange(2000) + 0.5) / 2000
    weight = 5 * (1 - tau) ** 4
    covered = (rates[:, None] >= tau).mean(0)
    assert np.sum(covered * weight) / 2000 == pytest.approx(np.mean(1 - (1 - rates) ** 5), abs=1e-3)


# ---- in a comparison


def test_a_comparison_holds_its_curves_and_merging_joins_them(tmp_path):
    names = {f"temp-{t}": Method(0.3 - t, t / 4, temperature=t) for t in (0.2, 0.5, 0.8, 1.2)}
    noise = {f"noise-{s}": Method(0.3 - 2 * s, s, sigma=s) for s in (0.1, 0.2, 0.4)}
    for name, method in (names | noise | {"greedy": METHODS["greedy"]}).items():
        write_run(tmp_path / "one", name, method, n=30, families=None)
    write_run(tmp_path / "two", "later", METHODS["nucleus-0.95"], n=30, families=None)
    one = compare(read_runs([tmp_path / "one"]), draws=200)
    schema.validate(one)
    outcomes = [curve["outcome"] for curve in one["curves"]]
    assert outcomes == ["unique_correct", "pass@10", "distinct_2_rarefied"]  # of those measured
    first = one["curves"][0]
    assert first["methods"] == list(names) and first["doses"] == [0.2, 0.5, 0.8, 1.2]
    assert set(first["against"]) == {*noise, "greedy"} and list(first["areas"]) == ["noise-0.1"]
    assert set(first["placebos"]) == {"temp-0.5", "temp-0.8"}
    assert {told["says"] for told in first["against"].values()} <= {OPEN, None}  # four doses
    drawn = curve_plane(first, one["leaderboard"])
    [axis] = drawn.axes
    # The temperatures' curve and the noise's, and a point for each of the eight methods.
    assert sorted(len(line.get_xdata()) for line in axis.lines) == [*[1] * 8, 33, 49]
    through = axis.lines[0].get_xydata()[::16]
    means = [row["metrics"] for row in one["leaderboard"] if row["method"] in names]
    told = [(m["pass@1"]["value"], m["unique_correct"]["value"]) for m in means]
    np.testing.assert_allclose(through, told)
    assert claims(first).startswith("above the curve: none")
    temperatures = [tmp_path / "one" / name for name in names]
    two = compare(read_runs([*temperatures, tmp_path / "two"]), draws=200)
    joined = merge({"one": one, "two": two})
    schema.validate(joined)
    assert len(joined["curves"]) == len(outcomes)
    assert set(joined["curves"][0]["against"]) == {*noise, "greedy", "later"}
    few = compare(read_runs([tmp_path / "one" / name for name in ("temp-0.8", "greedy")]), draws=50)
    assert few["curves"] == []
