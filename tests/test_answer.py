"""The first sentences, one case for each verdict, each with the words it must have."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_embednoise.analysis.answer import answers, few_samples, in_words
from lm_eval_embednoise.analysis.protocol import Protocol
from lm_eval_embednoise.analysis.verdict import overall, task_outcome

PROTOCOL = Protocol.load()
ROW = {
    **{"model": "coder", "method": "star", "n": 100, "clusters": None, "k": 20, "sampling": {}},
    "perturbation": {"sites": {"embed": 0.191}},
}
ABOVE = {
    **{"says": "above", "metric": "unique_correct", "quality": "pass@1", "reason": None},
    **{"placebo": 0.08, "doses": [0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 1.0, 1.5]},
}


def estimate(value, low, high, reason=None):
    return {"value": value, "low": low, "high": high, "n": 100, "reason": reason}


GOOD = {
    "correctness": (0.01, -0.02, 0.03),
    "diversity": (2.0, 1.9, 2.1),
    "diversity, gated": (1.9, 1.8, 2.0),
    "diversity, rarefied": (1.8, 1.7, 1.9),
    "solutions": (1.5, 1.3, 1.7),
    "coherence": (0.0, -0.01, 0.01),
}


def endpoints(domain="code", **figures):
    """A task's endpoints from these figures, each with the status that follows."""
    told = []
    for asked in PROTOCOL.endpoints(domain):
        value, low, high = figures.get(asked.name.replace(", ", "_"), GOOD[asked.name])
        status = "met" if low is not None and low > asked.threshold else "open"
        status = "refuted" if high is not None and high < asked.threshold else status
        told.append(
            {
                **{"name": asked.name, "metric": asked.metric, "statistic": asked.statistic},
                **{"threshold": asked.threshold, "status": status},
                "estimate": estimate(value, low, high, None if low is not None else "too few"),
            }
        )
    return told


def task(name="code", domain="code", curve=None, **figures):
    found = endpoints(domain, **figures)
    outcome = task_outcome({e["name"]: e["status"] for e in found})
    difference = estimate(0.35, 0.2, 0.5)
    return {
        **{"task": name, "domain": domain, "baseline": "temp-0.8", "n": 100},
        **{"endpoints": found, "outcome": outcome},
        "curve": {**ABOVE, "difference": difference, **(curve or {})},
    }


def comparison(*tasks, deviations=(), rows=None, pairs=(), **changes):
    verdict, why = overall(list(tasks))
    judged = {
        **{"model": "coder", "candidate": "star", "verdict": verdict, "why": why},
        "status": "exploratory" if deviations else "confirmatory",
        **{"deviations": list(deviations), "tasks": list(tasks)},
    }
    return {
        "leaderboard": rows or [{**ROW, "task": t["task"]} for t in tasks],
        "verdicts": [judged],
        **{"pairs": list(pairs), "curves": []},
        "analysis": {"baseline": "temp-0.8", "candidate": "star", "level": 0.95},
        "protocol": {"level": 0.99, "content": PROTOCOL.content},
        **changes,
    }


def said(found):
    """The sentences of the only model's only task."""
    [answer] = answers(found)
    [sentences] = answer.tasks.values()
    return sentences


NAMED = "Noise at the dose that calibration chose (star, σ* = 0.191)"
LESS = dict.fromkeys(("diversity", "diversity_gated", "diversity_rarefied"), (0.21, 0.19, 0.23))
# case → figures that differ from the good ones, the whole first sentence
CASES = {
    "success": (
        {},
        f"{NAMED} gives twice temperature's diversity (distinct_2 ratio 2.00 [1.90, 2.10]) and "
        "solves as many problems to within 5 points (pass@10 difference +1.0 [-2.0, +3.0] points): "
        "by the bar set beforehand it is a replacement.",
    ),
    "null, no gain and harm": (
        {**LESS, "correctness": (-0.1, -0.14, -0.06)},
        f"{NAMED} gives a fifth of temperature's diversity (distinct_2 ratio 0.21 [0.19, 0.23]) "
        "and solves 10.0 points fewer problems (pass@10 difference -10.0 [-14.0, -6.0] points): "
        "it is no replacement, because harm is shown and the gain that was asked for is not there.",
    ),
    "null by harm alone": (
        {"correctness": (-0.12, -0.18, -0.07)},
        f"{NAMED} gives twice temperature's diversity (distinct_2 ratio 2.00 [1.90, 2.10]) but "
        "solves 12.0 points fewer problems (pass@10 difference -12.0 [-18.0, -7.0] points): it is "
        "no replacement, because harm is shown.",
    ),
    "null by harm elsewhere": (
        {"coherence": (-0.37, -0.4, -0.3)},
        f"{NAMED} gives twice temperature's diversity (distinct_2 ratio 2.00 [1.90, 2.10]) and "
        "solves as many problems to within 5 points (pass@10 difference +1.0 [-2.0, +3.0] points); "
        "harm: compile_rate difference -37.0 [-40.0, -30.0] points: it is no replacement, because "
        "harm is shown.",
    ),
    "null by no gain": (
        {"diversity": (1.0, 0.9, 1.1)},
        f"{NAMED} has a diversity not told apart from temperature's (distinct_2 ratio 1.00 "
        "[0.90, 1.10]) and solves as many problems to within 5 points (pass@10 difference +1.0 "
        "[-2.0, +3.0] points): it is no replacement, because the gain that was asked for is not "
        "there.",
    ),
    "inconclusive": (
        {"correctness": (-0.02, -0.09, 0.05), "solutions": (1.1, 0.9, 1.3)},
        f"{NAMED} gives twice temperature's diversity (distinct_2 ratio 2.00 [1.90, 2.10]) and is "
        "not shown to solve more or fewer problems (pass@10 difference -2.0 [-9.0, +5.0] points): "
        "whether it is a replacement stays open (undecided: pass@10, unique_correct).",
    ),
    "too few problems": (
        {"diversity": (1.5, None, None)},
        f"{NAMED} has a diversity that can't be judged (too few) and solves as many problems to "
        "within 5 points (pass@10 difference +1.0 [-2.0, +3.0] points): whether it is a "
        "replacement stays open (undecided: distinct_2).",
    ),
    "better in both": (
        {"correctness": (0.1, 0.05, 0.15), "diversity": (1.37, 1.3, 1.45)},
        f"{NAMED} gives 1.37 times temperature's diversity (distinct_2 ratio 1.37 [1.30, 1.45]) "
        "and solves 10.0 points more problems (pass@10 difference +10.0 [+5.0, +15.0] points): "
        "by the bar set beforehand it is a replacement.",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_verdict_gets_its_sentence(name):
    figures, sentence = CASES[name]
    first, *rest = said(comparison(task(**figures)))
    assert first == sentence
    compared = "temp-0.8 on the same n = 100 problems, K = 20 samples of each; 99 % intervals"
    assert f"Compared with {compared} in brackets." in rest


def test_what_else_is_refuted_is_told_apart():
    assert said(comparison(task(**LESS)))[1] == (
        "Beside these, no gain: distinct_2_valid ratio 0.21 [0.19, 0.23], distinct_2_rarefied "
        "ratio 0.21 [0.19, 0.23]."
    )


CURVES = {
    "above": (
        {},
        "Against all temperatures (8, from 0.1 to 1.5) at equal pass@1: it stands above their "
        "curve by +0.350 [+0.200, +0.500] in unique_correct; the largest placebo, a temperature "
        "against the curve of the others, is 0.080.",
    ),
    "below": (
        {"says": "below", "difference": estimate(-0.3, -0.4, -0.2), "placebo": None},
        "Against all temperatures (8, from 0.1 to 1.5) at equal pass@1: it stands below their "
        "curve, by -0.300 [-0.400, -0.200] in unique_correct; there is no placebo to hold this "
        "against.",
    ),
    "open": (
        {
            "says": "not distinguishable",
            "difference": estimate(0.1, -0.1, 0.3),
            "metric": "pass@10",
        },
        "Against all temperatures (8, from 0.1 to 1.5) at equal pass@1: it is not distinguishable "
        "from their curve in pass@10, +10.0 [-10.0, +30.0] points, which is no evidence that there "
        "is no difference; the largest placebo, a temperature against the curve of the others, is "
        "8.0 points.",
    ),
    "no curve": (
        {"says": None, "reason": "no temperature curve"},
        "Against all temperatures: no answer (no temperature curve).",
    ),
}


@pytest.mark.parametrize("name", CURVES)
def test_the_curve_gets_its_sentence(name):
    changes, sentence = CURVES[name]
    assert said(comparison(task(curve=changes)))[-1] == sentence


def test_a_file_from_before_there_were_curves_says_so():
    old = task()
    del old["curve"]
    assert said(comparison(old))[-1].endswith("this file was made before there were curves.")


WORSE = {"correctness": (-0.12, -0.18, -0.07)}
LEADS = {
    "both": ([{}, {}], "star can replace temperature, by the bar set beforehand."),
    "code alone": (
        [{}, WORSE],
        "star can replace temperature on some tasks only (success on code, null on maths).",
    ),
    "none": ([WORSE, WORSE], "star is no replacement for temperature."),
    "open": (
        [{"solutions": (1.1, 0.9, 1.3)}, {}],
        "Whether star can replace temperature stays open (inconclusive on code, success on maths).",
    ),
}


@pytest.mark.parametrize("name", LEADS)
def test_several_tasks_have_one_sentence_before_theirs(name):
    (code, maths), lead = LEADS[name]
    [answer] = answers(comparison(task(**code), task("sums", "maths", **maths)))
    assert answer.lead == lead
    assert list(answer.tasks) == ["code", "sums"]
    assert answer.caveat == ""


def test_exploratory_is_the_first_word_and_the_last():
    reasons = ["star was not chosen by `embednoise calibrate`", "the family lacks temp-tuned"]
    found = comparison(task(), deviations=reasons)
    [answer] = answers(found)
    assert said(found)[0].startswith("Exploratory: Noise (star, σ = 0.191) gives twice")
    assert answer.caveat == (
        "This is exploratory and confirms nothing: star was not chosen by `embednoise calibrate`, "
        "and one more reason."
    )
    [answer] = answers(comparison(task(), task("sums", "maths"), deviations=reasons[:1]))
    assert answer.lead.startswith("Exploratory: star can replace")
    assert answer.caveat.endswith("`embednoise calibrate`.")


def test_without_a_candidate_there_is_no_verdict():
    found = comparison(task(), verdicts=[])
    entry = {"model": "coder", "task": "code", "outcome": "unique_correct", "quality": "pass@1"}
    entry |= {"doses": [0.2, 0.8, 1.5], "against": {"a": {"says": "above"}, "b": {"says": None}}}
    [answer] = answers({**found, "curves": [entry]})
    assert answer.lead.startswith("No method was named as the candidate")
    assert answer.tasks["code"] == [
        "All methods are held against temp-0.8 on the same n = 100 problems, K = 20 samples of "
        "each; 95 % intervals in brackets.",
        "Against all temperatures (3) at equal pass@1, above their curve in unique_correct: a.",
    ]
    [answer] = answers(found)
    assert answer.tasks["code"][1] == "Against all temperatures: no answer (no temperature curve)."


@pytest.mark.parametrize(
    ("perturbation", "subject"),
    [
        ({"rsp": 16}, "A random soft prompt at the dose that calibration chose (star) gives"),
        ({"prefix": "random:8"}, "A random prefix at the dose that calibration chose (star) gives"),
        ({}, "star gives"),
    ],
)
def test_the_candidate_is_called_what_it_is(perturbation, subject):
    found = comparison(task(), rows=[{**ROW, "task": "code", "perturbation": perturbation}])
    assert said(found)[0].startswith(subject)


def test_below_ten_samples_success_at_K_stands_for_pass_at_10():
    row = {**ROW, "task": "code", "k": 4, "clusters": 30}
    test = {"difference": estimate(-0.08, -0.12, -0.04)}
    pair = {"model": "coder", "task": "code", "method": "star", "baseline": "temp-0.8"}
    pair["metrics"] = {"success@K": test}
    few = task(correctness=(None, None, None))
    found = comparison(few, rows=[row], pairs=[pair])
    assert (
        "solves 8.0 points fewer problems (success@K difference -8.0 [-12.0, -4.0] points, "
        in (said(found)[0])
    )
    assert "at 95 %)" in said(found)[0]
    assert few_samples(found) == (
        "With K = 4 samples of a problem there is no pass@10, which needs ten: pass@1 and "
        "success@K stand in its place."
    )
    assert few_samples(comparison(task())) == ""


def test_nothing_is_changed_in_the_comparison():
    found = comparison(task(), deviations=["x"])
    before = copy.deepcopy(found)
    answers(found)
    assert found == before


@given(st.floats(0.01, 6), st.floats(1, 3), st.floats(1, 3))
def test_words_stand_only_where_the_interval_allows_them(value, down, up):
    ratio = estimate(value, value / down, value * up)
    words = in_words(ratio)
    numbers = {
        **{"a tenth of": 1 / 10, "a fifth of": 1 / 5, "a quarter of": 1 / 4, "a third of": 1 / 3},
        **{"half of": 1 / 2, "two thirds of": 2 / 3, "three quarters of": 3 / 4},
        **{"twice": 2, "three times": 3},
    }
    if words in numbers:
        assert ratio["low"] <= numbers[words] <= ratio["high"] <= 1.51 * ratio["low"]
        assert abs(value / numbers[words] - 1) <= 0.071
    else:
        number, unit = words.split(" ", 1)
        assert unit in ("% of", "times")
        given_ = float(number) / 100 if unit == "% of" else float(number)
        assert given_ == pytest.approx(value, abs=0.0051)
