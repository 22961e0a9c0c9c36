"""Samples worth looking at: problems where two methods differ, and how perturbed samples fail."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm_eval_embednoise.analysis.curves import rarefied
from lm_eval_embednoise.analysis.records import Run, samples
from lm_eval_embednoise.analysis.resample import Array

SHOWN = 3  # distinct samples a side
PROBLEMS = 8
_LOOP = 0.5  # share of repeated 4-grams from which a text counts as a loop


@dataclass(frozen=True)
class Comparison:
    """One problem, both sides' values and some distinct samples of each."""

    problem: str
    prompt: str
    values: tuple[float, float]
    texts: tuple[list[tuple[str, bool]], list[tuple[str, bool]]]


@dataclass(frozen=True)
class Failure:
    """One failing sample, how it fails and how strong its noise was."""

    kind: str
    method: str
    problem: str
    rho: float | None
    text: str
    count: int  # samples of this method that fail this way


def side_by_side(method: Run, baseline: Run, metric: str = "unique_correct") -> list[Comparison]:
    """The problems whose metric differs most, both ways, with samples of both methods."""
    if metric not in method.metrics or metric not in baseline.metrics:
        return []
    where = {problem: i for i, problem in enumerate(baseline.problems)}
    shared = [p for p in method.problems if p in where]
    values = dict(zip(method.problems, method.metrics[metric], strict=True))
    others = {p: baseline.metrics[metric][where[p]] for p in shared}
    ranked = sorted(shared, key=lambda p: values[p] - others[p])
    half = min(PROBLEMS // 2, len(ranked) // 2)
    chosen = dict.fromkeys([*ranked[len(ranked) - half :][::-1], *ranked[:half]])
    ours, theirs = (_chosen_texts(run, set(chosen)) for run in (method, baseline))
    return [
        Comparison(
            problem,
            ours[problem][0],
            (float(values[problem]), float(others[problem])),
            (ours[problem][1], theirs[problem][1]),
        )
        for problem in chosen
    ]


def failures(run: Run) -> list[Failure]:
    """One example, with the count, of each way in which a method's samples fail."""
    found: dict[str, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    for problem, _, records in samples(run):
        for record in records:
            if not record.get("passed"):
                found[failure_kind(record)].append((problem, record))
    return [
        Failure(kind, run.method, problem, record.get("rho"), record.get("text", ""), len(members))
        for kind, members in sorted(found.items(), key=lambda item: -len(item[1]))
        for problem, record in [max(members, key=lambda m: m[1].get("rho") or 0.0)]
    ]


def failure_kind(record: dict[str, Any]) -> str:
    """`loop`, `early end`, `does not parse`, or the sandbox's verdict; else `wrong`."""
    words = str(record.get("text", "")).split()
    if len(words) < 3:
        return "early end"
    grams = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    if len(grams) >= 8 and 1 - len(set(grams)) / len(grams) >= _LOOP:
        return "loop"
    if record.get("compiled") is False:
        return "does not parse"
    return str(record.get("verdict") or "wrong").replace("_", " ")


def solution_curve(run: Run) -> Array:
    """Expected distinct correct solutions among m samples, mean over problems, [K]."""
    curves = []
    for _, _, records in samples(run):
        classes: dict[Any, int] = defaultdict(int)
        for record in records:
            if record.get("passed"):
                classes[record.get("ast") or " ".join(str(record.get("text")).split())] += 1
        curves.append(rarefied(np.array(list(classes.values()), dtype=int), len(records)))
    return np.asarray(np.mean(curves, axis=0))


def _chosen_texts(run: Run, chosen: set[str]) -> dict[str, tuple[str, list[tuple[str, bool]]]]:
    """Problem → prompt and its first distinct texts, each with whether it passed."""
    found = {}
    for problem, doc, records in samples(run):
        if problem in chosen:
            texts: dict[str, bool] = {}
            for record in records:
                texts.setdefault(str(record.get("text", "")), bool(record.get("passed")))
            prompt = str(doc.get("prompt") or doc.get("question") or "")
            found[problem] = (prompt, list(texts.items())[:SHOWN])
    return found
