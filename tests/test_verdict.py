"""Adversarial cases, each with the verdict it must get; and the content behind the labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lm_eval_embednoise.analysis import verdict
from lm_eval_embednoise.analysis.constraint import Constraint, constraint_sentence
from lm_eval_embednoise.analysis.departures import Compared, deviations
from lm_eval_embednoise.analysis.protocol import Protocol
from lm_eval_embednoise.analysis.resample import Resampler
from lm_eval_embednoise.analysis.runs import Run
from lm_eval_embednoise.scoring.passk import pass_at_k

PROTOCOL = Protocol.load()
N, K = 240, 20
RESAMPLER = Resampler(np.arange(N), draws=2000)
HEATS = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 1.0, 1.25, 1.5)
PRIMARY = {"sites": {"embed": 0.1}, "sigma_unit": "relative", "positions": "prompt"}


def run(name, metrics, *, perturbation=None, sampling=None, calibration=None):
    """A run of the code task with these metrics and settings."""
    return Run(
        *(Path("r"), Path("s"), "model", "model", name, True, "hf-embednoise", "code", 0, K),
        settings={"model fingerprint": "m"},
        perturbation=perturbation or {},
        sampling=sampling or {"do_sample": False},
        info={"protocol": PROTOCOL.hash, **({"calibration": calibration} if calibration else {})},
        date=0.0,
        problems=tuple(map(str, range(N))),
        hashes=tuple(map(str, range(N))),
        clusters=None,
        metrics=metrics,
        higher_is_better={},
    )


def metrics(heat, seed, *, correct=None):
    """What sampling at a temperature gives: quality falls with it, diversity rises."""
    rng = np.random.default_rng([seed, int(100 * heat)])
    easy = np.random.default_rng(0).normal(1.5, 1.5, N)
    correct = (
        rng.binomial(K, 1 / (1 + np.exp(1.2 * heat**1.5 - easy))) if correct is None else correct
    )
    spread = np.clip(0.2 * heat**0.5 * rng.uniform(0.8, 1.2, N), 0, 1)
    found = np.where(correct > 0, 1 + rng.binomial(np.maximum(correct - 1, 0), min(heat / 2, 1)), 0)
    return {
        "pass@1": correct / K,
        "pass@10": np.array([pass_at_k(K, int(c), 10) for c in correct]),
        "distinct_2": spread,
        "distinct_2_rarefied": spread * 1.05,
        "distinct_2_valid": spread * 1.1,
        "unique_correct": found.astype(float),
        "compile_rate": rng.binomial(K, 0.97, N) / K,
        "missing": np.zeros(N),
    }


TEMPERATURES = {
    f"temp-{heat}": run(
        f"temp-{heat}", metrics(heat, 1), sampling={"do_sample": True, "temperature": heat}
    )
    for heat in HEATS
}
BASE = TEMPERATURES["temp-0.8"]
CHOSEN = {
    **{"dose": 0.1, "task": "code", "k": K, "constraint_met": True},
    **{"protocol": PROTOCOL.hash, "problems": []},
}


def changed(**changes):
    """Temperature 0.8's own metrics but for these."""
    return {**{key: value.copy() for key, value in BASE.metrics.items()}, **changes}


def judged(candidate_metrics, **settings):
    """Outcome on the task, what the curve says, each endpoint's status."""
    settings = {"perturbation": PRIMARY, "calibration": CHOSEN, **settings}
    candidate = run("star", candidate_metrics, **settings)
    told = verdict.task_verdict(candidate, BASE, RESAMPLER, PROTOCOL)
    curve = verdict.curve_verdict("star", {**TEMPERATURES, "star": candidate}, RESAMPLER, PROTOCOL)
    return told["outcome"], curve["says"], {e["name"]: e["status"] for e in told["endpoints"]}


B = BASE.metrics
RICHER = {
    key: B[key] * 1.5
    for key in ("distinct_2", "distinct_2_rarefied", "distinct_2_valid", "unique_correct")
}
HALF = np.arange(N) % 2 == 0

# case → metrics, the task's outcome, what the curve says of it
CASES = {
    "a true gain at no cost": (changed(**RICHER), "success", "above"),
    "temperature against itself, another seed": (
        metrics(0.8, 2), "null", "not distinguishable",
    ),
    "its own samples with dead code after return": (
        # n-grams rise in every form, classes of programs do not
        changed(**{key: value for key, value in RICHER.items() if key != "unique_correct"}),
        "inconclusive", "not distinguishable",
    ),
    "shorter texts: plain distinct_2 rises, rarefied to equal n-grams it does not": (
        changed(**RICHER) | {"distinct_2_rarefied": B["distinct_2_rarefied"]}, "null", "above",
    ),
    "garbage with high distinct_2": (
        changed(**RICHER) | {
            "pass@1": B["pass@1"] * 0.1, "pass@10": B["pass@10"] * 0.2,
            "compile_rate": B["compile_rate"] * 0.5, "unique_correct": B["unique_correct"] * 0.1,
        },
        "null", "below",
    ),
    "compile rate 37 points down, everything else better": (
        changed(**RICHER) | {"compile_rate": B["compile_rate"] - 0.37}, "null", "above",
    ),
    "pass@10 78 points down": (
        changed(**RICHER) | {"pass@10": np.maximum(B["pass@10"] - 0.78, 0)}, "null", "above",
    ),
    "half of the samples missing": (
        # failures in pass@k, and fewer samples have more distinct n-grams
        metrics(0.8, 1, correct=np.rint(B["pass@1"] * K / 2).astype(int)) | {
            "distinct_2": B["distinct_2"] * 1.4, "compile_rate": B["compile_rate"] / 2,
            "missing": np.full(N, K / 2),
        },
        "null", None,
    ),
    "problems with little diversity broken on purpose": (
        # undefined where it was low: the mean over the rest would be higher
        changed(**RICHER) | {
            "distinct_2_valid": np.where(HALF, B["distinct_2_valid"] * 1.5, np.nan),
        },
        "null", "above",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_case_gets_its_verdict(name):
    candidate, outcome, says = CASES[name]
    found, curve, status = judged(candidate)
    assert found == outcome, status
    if says is not None:
        assert curve == says


def test_the_dead_code_is_seen_by_the_solutions_alone():
    _, _, status = judged(CASES["its own samples with dead code after return"][0])
    assert status.pop("solutions") == "open"
    assert set(status.values()) == {"met"}


def test_one_worse_sample_moves_nothing_in_the_candidates_favour():
    """A passing sample fails: pass@k, compile rate and classes fall on one problem."""
    rank = {"null": 0, "inconclusive": 1, "success": 2}
    order = {"refuted": 0, "open": 1, "met": 2}
    for lift in (1.25, 1.35):  # on both sides of the line
        good = changed(**{key: B[key] * lift for key in RICHER})
        before, _, first = judged(good)
        for problem in (3, 150):
            worse = {key: value.copy() for key, value in good.items()}
            c = max(round(worse["pass@1"][problem] * K) - 1, 0)
            worse["pass@1"][problem], worse["pass@10"][problem] = c / K, pass_at_k(K, c, 10)
            for key in ("unique_correct", "compile_rate", "distinct_2_valid", "distinct_2"):
                worse[key][problem] *= 0.9
            after, _, second = judged(worse)
            assert rank[after] <= rank[before]
            assert all(order[second[name]] <= order[first[name]] for name in first)


def test_a_broken_problem_is_not_left_out_of_the_ratio():
    """distinct_2 among valid samples that becomes undefined for the candidate counts as none."""
    good = changed(**RICHER)
    broken = {**good, "distinct_2_valid": good["distinct_2_valid"].copy()}
    broken["distinct_2_valid"][:30] = np.nan
    values = []
    for candidate in (good, broken):
        told = verdict.task_verdict(run("star", candidate), BASE, RESAMPLER, PROTOCOL)
        [gated] = [e for e in told["endpoints"] if e["name"] == "diversity, gated"]
        values.append(gated["estimate"])
    assert values[1]["low"] < values[0]["low"] and values[1]["high"] < values[0]["high"]
    assert values[1]["n"] == N


# ---- the curve


def test_the_curve_says_why_it_has_no_answer():
    star = run("star", changed(), perturbation=PRIMARY)
    few = {name: TEMPERATURES[name] for name in list(TEMPERATURES)[:4]}
    cases = [
        ({"star": star, "temp-0.8": BASE}, "no temperature curve"),
        ({**few, "star": star}, "the curve has 4 temperatures, 8 are asked"),
        (TEMPERATURES, "temp-0.8 is on the curve itself"),
    ]
    for runs, reason in cases:
        name = "star" if "star" in runs else "temp-0.8"
        told = verdict.curve_verdict(name, runs, RESAMPLER, PROTOCOL)
        assert told["says"] is None and told["reason"] == reason
        assert reason in verdict.curve_sentence(told)
    better = run("star", changed(**{"pass@1": np.ones(N)}), perturbation=PRIMARY)
    told = verdict.curve_verdict("star", {**TEMPERATURES, "star": better}, RESAMPLER, PROTOCOL)
    assert told["says"] is None and "beyond the curve" in told["difference"]["reason"]


def test_the_curve_is_told_with_its_placebo():
    star = run("star", changed(**RICHER), perturbation=PRIMARY)
    told = verdict.curve_verdict("star", {**TEMPERATURES, "star": star}, RESAMPLER, PROTOCOL)
    assert told["says"] == "above" and told["doses"] == list(HEATS)
    assert 0 <= told["placebo"] < told["difference"]["value"]
    said = verdict.curve_sentence(told)
    assert "above" in said and "largest placebo" in said and "9 temperatures" in said


# ---- contents behind labels


def compared(**changes):
    """A comparison with everything in place, but for these runs."""
    tuned = replace(
        BASE, method="temp-tuned", info={**BASE.info, "calibration": {**CHOSEN, "dose": 0.8}}
    )
    sampled = {"do_sample": True, "temperature": 1.0, "top_p": 0.95}
    methods = {
        "greedy": run("greedy", metrics(0.1, 3)),
        "temp-0.8": BASE,
        "temp-1.5": TEMPERATURES["temp-1.5"],
        "nucleus-0.95": run("nucleus-0.95", metrics(0.8, 4), sampling=sampled),
        "temp-tuned": tuned,
        "star": run("star", changed(), perturbation=PRIMARY, calibration=CHOSEN),
    }
    methods |= changes
    return deviations([Compared([methods["star"]], methods)], PROTOCOL, "temp-0.8")


def star(**changes):
    """The candidate with another calibration record."""
    return run("star", changed(), perturbation=PRIMARY, calibration={**CHOSEN, **changes})


def test_nothing_departs_where_all_is_in_place():
    assert compared() == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"temp-0.8": replace(TEMPERATURES["temp-1.5"], method="temp-0.8")},
            "temp-0.8 on code is temperature 1.5, the protocol's temperature 0.8",
        ),
        (
            {"temp-0.8": replace(BASE, sampling={**BASE.sampling, "top_k": 50})},
            "temp-0.8 on code is temperature 0.8, top_k 50, the protocol's temperature 0.8",
        ),
        ({"greedy": replace(BASE, method="greedy")}, "greedy on code is temperature 0.8"),
        ({"star": star(dose=0.2)}, "star has dose 0.1, calibration chose 0.2"),
        ({"star": star(task="maths")}, "star was calibrated on maths, not on code"),
        ({"star": star(k=100)}, "star was calibrated with K = 100, not 20"),
        ({"star": star(constraint_met=False)}, "no dose of star met the constraint"),
        ({"star": star(protocol="x")}, "star was calibrated under protocol x"),
        ({"star": star(problems=["3", "4"])}, "star was calibrated on 2 of the problems of code"),
        ({"star": star(model_fingerprint="n")}, "star was calibrated on another model"),
        (
            {"star": replace(star(clusters=["a", "z"]), clusters=("a", "b") * (N // 2))},
            "star was calibrated on 1 of the clusters of code",
        ),
        ({"temp-tuned": replace(BASE, method="temp-tuned")}, "temp-tuned was not chosen by"),
        (
            {"star": run("star", changed(missing=np.ones(N)), perturbation=PRIMARY)},
            "star lacks 240 samples on code",
        ),
        (
            {
                "temp-1.5": replace(
                    TEMPERATURES["temp-1.5"], settings={"model fingerprint": "other"}
                )
            },
            "temp-1.5 ran on another model than star",
        ),
        (
            {"temp-1.5": replace(TEMPERATURES["temp-1.5"], info={"protocol": "x"})},
            f"results carry protocol x, not {PROTOCOL.hash}",
        ),
    ],
)
def test_a_label_on_other_content_is_said(changes, said):
    assert any(said in found for found in compared(**changes)), compared(**changes)


def test_another_baseline_is_said():
    methods = {"star": star(), "temp-1.5": TEMPERATURES["temp-1.5"]}
    found = deviations([Compared([methods["star"]], methods)], PROTOCOL, "temp-1.5")
    assert "the baseline is temp-1.5, not temp-0.8" in found
    assert "the family lacks greedy, temp-0.8, nucleus-0.95, temp-tuned" in found


def test_the_constraint_is_looked_at_on_the_compared_problems():
    constraint = Constraint.of(PROTOCOL)
    greedy = run("greedy", changed())
    worse = run("star", changed(**{"pass@1": B["pass@1"] - 0.1}))
    held = constraint.on_the_comparison("star", {"star": star(), "greedy": greedy}, RESAMPLER)
    lost = constraint.on_the_comparison("star", {"star": worse, "greedy": greedy}, RESAMPLER)
    assert (held["held"], held["value"], held["n"]) == (True, 0.0, N)
    assert (lost["held"], lost["value"]) == (False, pytest.approx(-0.1))
    assert "held here: +0.0 points" in constraint_sentence(held)
    assert "did not hold here: -10.0 points" in constraint_sentence(lost)
    assert constraint.on_the_comparison("star", {"star": star()}, RESAMPLER) is None
