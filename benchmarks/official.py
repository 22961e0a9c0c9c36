"""Where our verdicts differ from what the benchmarks' authors hold to be right.

EMBEDNOISE_DATA=DIR python benchmarks/official.py [--parts apps humanevalplus] [--workers 2]

apps            every published solution of every problem (not only the first) should pass
humanevalplus,  every canonical solution should pass the base tests and all tests
mbppplus

Each difference is a line; the last line is JSON. Progress goes to standard error.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from typing import Any

from lm_eval_embednoise.problems import documents, hidden_tests
from lm_eval_embednoise.sandbox import Outcome, map_items
from lm_eval_embednoise.scoring.judge import judge

PARTS = ("apps", "humanevalplus", "mbppplus")


def judged(pairs: list[tuple[str, dict[str, Any]]], workers: int) -> list[Outcome]:
    """Outcomes of programs of documents."""
    return map_items(lambda run, item: judge(run, *item), pairs, workers=workers)


def apps(workers: int) -> dict[str, Any]:
    """All solutions of all problems."""
    docs = {row["task_id"]: row for row in hidden_tests.apps_problems()}
    pairs = []
    for task_id, doc in docs.items():
        solutions = hidden_tests.solutions_of(task_id)
        pairs += [(solution, doc) for solution in solutions]
    return said("apps", pairs, judged(pairs, workers), len(docs))


def plus(name: str, workers: int) -> dict[str, Any]:
    """The canonical solutions, after the prompt where they complete it."""
    pairs = []
    for doc in getattr(documents, name)()["test"]:
        whole = name == "mbppplus"
        pairs.append((("" if whole else doc["prompt"]) + doc["canonical_solution"], doc))
    return said(name, pairs, judged(pairs, workers), len(pairs))


def said(
    name: str, pairs: list[tuple[str, dict[str, Any]]], outcomes: list[Outcome], problems: int
) -> dict[str, Any]:
    """Print the differences; the counts."""
    lost: Counter[str] = Counter()
    for (_, doc), outcome in zip(pairs, outcomes, strict=True):
        if outcome.verdict != "passed":
            lost[f"{doc['task_id']}: {outcome.verdict} ({outcome.detail})"] += 1
    for line, count in lost.items():
        print(f"{name:14} {line} × {count}")
    found: dict[str, Any] = {
        "problems": problems,
        "programs": len(pairs),
        "passed": sum(outcome.verdict == "passed" for outcome in outcomes),
    }
    if any(outcome.passed_base is not None for outcome in outcomes):
        found["passed_base"] = sum(outcome.passed_base is True for outcome in outcomes)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    report = {
        part: apps(options.workers) if part == "apps" else plus(part, options.workers)
        for part in options.parts
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
