"""The answer in plain words: what the candidate gives and costs, for a reader of this alone.

Every sentence is made from a verdict of comparison.json and its figures: direction comes from the
interval, never from the value, and words stand for numbers only where the interval allows them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lm_eval_embednoise.analysis.arms import dose
from lm_eval_embednoise.analysis.methods import family, input_change
from lm_eval_embednoise.analysis.protocol import Protocol
from lm_eval_embednoise.analysis.quantities import (
    WITHOUT_10,
    difference_text,
    percent,
    size_text,
)
from lm_eval_embednoise.analysis.verdict import (
    INCONCLUSIVE,
    NULL,
    PARTIAL,
    REFUTED,
    SUCCESS,
    in_figures,
)

Json = dict[str, Any]
_HARMS = ("correctness", "coherence")
_FIRST = ("diversity", "correctness")  # the endpoints that the first sentence tells
_LOOSE = 1.5  # an interval whose ends differ by more than this factor is no number in words
_NEAR = 0.07  # how far, as a share, a number may be from its word
_WORDS = {
    1 / 10: "a tenth of", 1 / 5: "a fifth of", 1 / 4: "a quarter of", 1 / 3: "a third of",
    1 / 2: "half of", 2 / 3: "two thirds of", 3 / 4: "three quarters of",
    2.0: "twice", 3.0: "three times",
}  # fmt: skip
_LEADS = {
    SUCCESS: "{what} can replace {baseline}, by the bar set beforehand.",
    PARTIAL: "{what} can replace {baseline} on some tasks only ({why}).",
    NULL: "{what} is no replacement for {baseline}.",
    INCONCLUSIVE: "Whether {what} can replace {baseline} stays open ({why}).",
}


@dataclass(frozen=True)
class Answer:
    """What the page says first of one model.

    Attributes:
        model: its name.
        lead: one sentence over all tasks; empty where there is only one.
        tasks: task → its sentences: the bar, what was compared, the whole temperature curve.
        caveat: why it is exploratory; empty for a confirmatory verdict.
    """

    model: str
    lead: str
    tasks: dict[str, list[str]]
    caveat: str


def answers(comparison: Json) -> list[Answer]:
    """One answer for each model: its verdict's, or what can be said without a candidate."""
    told = {verdict["model"]: _judged(comparison, verdict) for verdict in comparison["verdicts"]}
    models = dict.fromkeys(row["model"] for row in comparison["leaderboard"])
    return [told.get(model) or _without_verdict(comparison, model) for model in models]


def few_samples(comparison: Json) -> str:
    """Which numbers stand for pass@10 where K is below 10; empty where it is not."""
    few = sorted({row["k"] for row in comparison["leaderboard"] if row["k"] < 10})
    if not few:
        return ""
    return (
        f"With K = {', '.join(map(str, few))} samples of a problem there is no pass@10, which "
        f"needs ten: {' and '.join(WITHOUT_10)} stand in its place."
    )


def in_words(estimate: Json) -> str:
    """A ratio as what stands before "temperature's diversity".

    A fraction's or a multiple's name where it lies in the interval, close to the value, and the
    interval is narrow; else the value in per cent, or, from 1 on, "1.37 times".
    """
    value, low, high = (estimate[key] for key in ("value", "low", "high"))
    for number, words in _WORDS.items():
        narrow = low > 0 and high / low <= _LOOSE
        if narrow and low <= number <= high and abs(value / number - 1) <= _NEAR:
            return words
    return f"{100 * value:.0f} % of" if value < 1 else f"{value:.2f} times"


def _judged(comparison: Json, verdict: Json) -> Answer:
    tasks = {task["task"]: _of_task(comparison, verdict, task) for task in verdict["tasks"]}
    lead = ""
    if len(tasks) > 1:
        lead = "Exploratory: " if verdict["status"] == "exploratory" else ""
        lead += _LEADS[verdict["verdict"]].format(
            what=verdict["candidate"],
            baseline=_plain(verdict["tasks"][0]["baseline"]),
            why=verdict["why"],
        )
    caveat = ""
    if verdict["status"] == "exploratory":
        first, *rest = verdict["deviations"]
        more = {0: "", 1: ", and one more reason"}.get(len(rest), f", and {len(rest)} more reasons")
        caveat = f"This is exploratory and confirms nothing: {first}{more}."
    return Answer(verdict["model"], lead, tasks, caveat)


def _without_verdict(comparison: Json, model: str) -> Answer:
    baseline, level = (comparison["analysis"][key] for key in ("baseline", "level"))
    tasks: dict[str, list[str]] = {}
    for row in comparison["leaderboard"]:
        if row["model"] == model and row["task"] not in tasks:
            beside = f"All methods are held against {_beside(row, baseline, level)}."
            tasks[row["task"]] = [beside, _any_above(comparison, row)]
    return Answer(
        model,
        "No method was named as the candidate before the data were seen: there is no verdict.",
        tasks,
        "All differences on this page are exploratory and confirm nothing.",
    )


def _of_task(comparison: Json, verdict: Json, task: Json) -> list[str]:
    alone = len(verdict["tasks"]) == 1
    here = (verdict["model"], task["task"], verdict["candidate"])
    row = next(
        row
        for row in comparison["leaderboard"]
        if (row["model"], row["task"], row["method"]) == here
    )
    level = comparison["protocol"]["level"]
    gain, more = _diversity(task)
    cost, better = _correctness(comparison, row, task)
    joint = "but" if more * better < 0 else "and"
    subject = _subject(row, chosen=verdict["status"] == "confirmatory")
    others = _others(task)
    told = any(_endpoint(task, name)["status"] == "refuted" for name in _FIRST)
    first = f"{subject} {gain} {joint} {cost}"
    first += f"; {others}" if others and not told else ""
    exploratory = "Exploratory: " if verdict["status"] == "exploratory" and alone else ""
    return [
        f"{exploratory}{first}: {_ending(task)}.",
        *([f"Beside these, {others}."] if others and told else []),
        f"Compared with {_beside(row, task['baseline'], level)}.",
        _against_all(task),
    ]


def _subject(row: Json, *, chosen: bool) -> str:
    """The candidate as the subject of a sentence, its name and dose in brackets."""
    perturbation, name = row["perturbation"], row["method"]
    if input_change(perturbation) != "noise":
        return name
    if perturbation.get("rsp"):
        noun = "A random soft prompt"
    elif dose(row):
        noun, name = "Noise", f"{name}, {'σ*' if chosen else 'σ'} = {dose(row):.3g}"
    else:
        noun = "A random prefix"
    return f"{noun}{' at the dose that calibration chose' if chosen else ''} ({name})"


def _beside(row: Json, baseline: str, level: float) -> str:
    clusters = f" in {row['clusters']} families" if row["clusters"] else ""
    return (
        f"{baseline} on the same n = {row['n']} problems{clusters}, K = {row['k']} samples of "
        f"each; {percent(level)} intervals in brackets"
    )


def _plain(baseline: str) -> str:
    """A baseline's name in a sentence; temperature sampling by its own word."""
    return "temperature" if family(baseline) == "temperature" else baseline


def _endpoint(task: Json, name: str) -> Json:
    return next(endpoint for endpoint in task["endpoints"] if endpoint["name"] == name)


def _diversity(task: Json) -> tuple[str, int]:
    """What the candidate gives, and whether that is less (-1), more (1) or not told apart (0)."""
    endpoint = _endpoint(task, "diversity")
    estimate, whose = endpoint["estimate"], _plain(task["baseline"])
    if estimate["low"] is None:
        return f"has a diversity that can't be judged ({estimate['reason']})", 0
    figures = f"({in_figures(endpoint)})"
    if estimate["low"] <= 1 <= estimate["high"]:
        return f"has a diversity not told apart from {whose}'s {figures}", 0
    more = 1 if estimate["low"] > 1 else -1
    return f"gives {in_words(estimate)} {whose}'s diversity {figures}", more


def _correctness(comparison: Json, row: Json, task: Json) -> tuple[str, int]:
    """How many problems it solves beside the baseline, and the direction as in `_diversity`."""
    endpoint = _endpoint(task, "correctness")
    level = ""
    if row["k"] < 10:
        endpoint = _without_10(comparison, row, task) or endpoint
        level = f", at {percent(comparison['analysis']['level'])}"
    metric, estimate = endpoint["metric"], endpoint["estimate"]
    if estimate["low"] is None:
        return f"whether it solves as many problems can't be judged ({estimate['reason']})", 0
    figures = f"({in_figures(endpoint)}{level})"
    size = size_text(metric, estimate["value"])
    if estimate["low"] > 0:
        return f"solves {size} more problems {figures}", 1
    if estimate["high"] < 0:
        return f"solves {size} fewer problems {figures}", -1
    margin = -endpoint["threshold"]
    if estimate["low"] > -margin and estimate["high"] < margin:
        return f"solves as many problems to within {100 * margin:g} points {figures}", 0
    return f"is not shown to solve more or fewer problems {figures}", 0


def _without_10(comparison: Json, row: Json, task: Json) -> Json | None:
    """The correctness endpoint in success@K instead, from the pair's exploratory interval."""
    here = (row["model"], row["task"], row["method"], task["baseline"])
    for pair in comparison["pairs"]:
        test = pair["metrics"].get("success@K")
        if test and tuple(pair[key] for key in ("model", "task", "method", "baseline")) == here:
            other = {"metric": "success@K", "estimate": test["difference"]}
            return {**_endpoint(task, "correctness"), **other}
    return None


def _others(task: Json) -> str:
    """What is refuted beside the first two endpoints, each with its figures; empty if nothing."""
    clauses: dict[str, list[str]] = {"harm": [], "no gain": []}
    for endpoint in task["endpoints"]:
        if endpoint["name"] not in _FIRST and endpoint["status"] == "refuted":
            kind = "harm" if endpoint["name"] in _HARMS else "no gain"
            clauses[kind].append(in_figures(endpoint))
    return "; ".join(f"{kind}: {', '.join(told)}" for kind, told in clauses.items() if told)


def _ending(task: Json) -> str:
    """What follows from a task's endpoints for the question whether to replace the baseline."""
    refuted, open_ = (
        [endpoint for endpoint in task["endpoints"] if endpoint["status"] == status]
        for status in ("refuted", "open")
    )
    if task["outcome"] == SUCCESS:
        return "by the bar set beforehand it is a replacement"
    if task["outcome"] == REFUTED:
        return "it misses the bar set beforehand and is no replacement"
    if task["outcome"] == INCONCLUSIVE:
        undecided = ", ".join(endpoint["metric"] for endpoint in open_)
        return f"whether it is a replacement stays open (undecided: {undecided})"
    harm = any(endpoint["name"] in _HARMS for endpoint in refuted)
    gain = all(endpoint["name"] in _HARMS for endpoint in refuted)
    why = "harm is shown" if harm else "the gain that was asked for is not there"
    why = why if gain or not harm else f"{why} and the gain that was asked for is not there"
    return f"it is no replacement, because {why}"


def _against_all(task: Json) -> str:
    """The candidate against the whole temperature curve, the placebo beside it."""
    curve = task.get("curve")
    if curve is None:
        return "Against all temperatures: no answer, this file was made before there were curves."
    if curve["says"] is None:
        return f"Against all temperatures: no answer ({curve['reason']})."
    metric, doses, difference = curve["metric"], curve["doses"], curve["difference"]
    figures = difference_text(metric, difference)
    said = {
        "above": f"it stands above their curve by {figures} in {metric}",
        "below": f"it stands below their curve, by {figures} in {metric}",
        "not distinguishable": f"it is not distinguishable from their curve in {metric}, "
        f"{figures}, which is no evidence that there is no difference",
    }[curve["says"]]
    placebo = (
        "there is no placebo to hold this against"
        if curve["placebo"] is None
        else "the largest placebo, a temperature against the curve of the others, is "
        f"{size_text(metric, curve['placebo'])}"
    )
    return (
        f"Against all temperatures ({len(doses)}, from {doses[0]:g} to {doses[-1]:g}) at equal "
        f"{curve['quality']}: {said}; {placebo}."
    )


def _any_above(comparison: Json, row: Json) -> str:
    """Which methods stand above the temperature curve, where none was named as the candidate."""
    decides = Protocol(comparison["protocol"]["content"]).curve_rule["decides"]
    for entry in comparison.get("curves", []):
        if (entry["model"], entry["task"], entry["outcome"]) == (
            row["model"],
            row["task"],
            decides,
        ):
            above = [name for name, claim in entry["against"].items() if claim["says"] == "above"]
            return (
                f"Against all temperatures ({len(entry['doses'])}) at equal {entry['quality']}, "
                f"above their curve in {decides}: {', '.join(above) or 'none'}."
            )
    return "Against all temperatures: no answer (no temperature curve)."
