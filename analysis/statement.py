"""What was run, and what a sample of this size can and can't show, in sentences."""

from __future__ import annotations

import textwrap
from typing import Any

from lm_eval_embednoise.analysis.methods import family
from lm_eval_embednoise.analysis.pairs import POWER
from lm_eval_embednoise.analysis.quantities import paired, percent, size_text


def statement(comparison: dict[str, Any]) -> list[str]:
    """What was run; the smallest detectable differences; what follows from a missing one.

    One paragraph each; `wrapped` makes them lines for a terminal.
    """
    rows = comparison["leaderboard"]
    samples = sum(row["n"] * row["k"] * len(row["seeds"]) for row in rows)
    models, tasks, methods = (
        list(dict.fromkeys(row[key] for row in rows)) for key in ("model", "task", "method")
    )
    paragraphs = [
        f"What was run: {_count(len(models), 'model')} × {_count(len(tasks), 'task')} × "
        f"{_count(len(methods), 'method')}, {samples:,} samples in all. Every method answered the "
        "same problems; intervals are over problems (families of problems where they are not "
        "independent), not over samples, so they say how a new set of such problems would differ."
    ]
    paragraphs += _limits(comparison)
    if not comparison["verdicts"]:
        paragraphs.append(
            "No verdict: no candidate was named before the data were seen (--candidate, or "
            "`candidate` in the study file)."
        )
    return paragraphs


def wrapped(comparison: dict[str, Any]) -> str:
    """The statement in lines of at most 100 characters."""
    return "\n".join(textwrap.fill(text, 100) for text in statement(comparison))


def _limits(comparison: dict[str, Any]) -> list[str]:
    """One sentence for each task, from the candidate's pair (or the first noise method's)."""
    analysis = comparison["analysis"]
    sentences = []
    for key in dict.fromkeys((p["model"], p["task"]) for p in comparison["pairs"]):
        pairs = [
            p
            for p in comparison["pairs"]
            if (p["model"], p["task"]) == key and p["baseline"] == analysis["baseline"]
        ]
        named = [p for p in pairs if p["method"] == analysis["candidate"]]
        pair = (named or [p for p in pairs if family(p["method"]) == "noise"] or pairs)[0]
        reach = []
        correctness = comparison["protocol"]["content"]["endpoints"]["correctness"]["metric"]
        noninferiority = (pair["metrics"].get(correctness) or {}).get("noninferiority") or {}
        for metric in paired([pair]):
            detectable = pair["metrics"][metric]["detectable"]
            if detectable:
                reach.append(f"{size_text(metric, detectable)} in {metric}")
        if reach:
            n = max(test["n"] for test in pair["metrics"].values())
            sentences.append(
                f"What it can show on {key[1]} (n = {n}): between {pair['method']} and "
                f"{pair['baseline']}, with the variation seen here, a true difference must be at "
                f"least {', '.join(reach)} to be found with {percent(POWER)} power at "
                f"p < {1 - analysis['level']:.2f}. Smaller ones are usually missed: a difference "
                "that is not significant is no evidence that there is none."
                + _chance(noninferiority, correctness, comparison["protocol"]["level"])
            )
    return sentences


def _chance(noninferiority: dict[str, Any], metric: str, level: float) -> str:
    """What the non-inferiority endpoint can show at this size, as one more sentence."""
    if noninferiority.get("chance_if_equal") is None:
        return ""
    return (
        f" Were the two equal, {metric} would be shown to be less than "
        f"{100 * noninferiority['margin']:g} points worse at {percent(level)} with "
        f"{min(100 * noninferiority['chance_if_equal'], 99):.0f} % chance"
        + (" or more." if noninferiority["chance_if_equal"] > 0.99 else ".")
    )


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
