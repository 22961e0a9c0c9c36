"""Answers of worked word problems: find the number after `####`, compare it, vote."""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import Any

from . import latex

# The pattern of openai/grade-school-math, dataset.py.
_MARKED = re.compile(r"#### (\-?[0-9\.\,]+)")


_LONGEST = 200  # characters of a number that can be somebody's answer
_EXACT = Context(prec=_LONGEST)


@dataclass(frozen=True)
class Form:
    """How a benchmark states an answer, and when two are the same."""

    extract: Callable[[str], str | None]
    same: Callable[[str, str], bool]


def extract_answer(text: str) -> str | None:
    """The normalised number after the first `####`; None when there is none."""
    match = _MARKED.search(text)
    return normalise(match.group(1)) if match else None


def normalise(number: str) -> str | None:
    """A number without separators and in its shortest form: `1,200.0` is `1200`."""
    plain = number.replace(",", "").strip().rstrip(".")
    if len(plain) > _LONGEST:
        return None
    try:
        shortest = format(Decimal(plain).normalize(_EXACT), "f")
    except ArithmeticError:
        return None
    return "0" if shortest == "-0" else shortest


def majority(answers: Sequence[str | None], target: str) -> float:
    """The chance that a majority vote gives `target`, ties broken evenly; no answer is no vote."""
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = [answer for answer, count in votes.items() if count == most]
    return (target in winners) / len(winners)


def worked_text(text: str) -> str:
    """A worked answer up to its `####` line, letter case and runs of blanks evened out."""
    return " ".join(text.split("####")[0].casefold().split())


MARKED = Form(extract_answer, operator.eq)
BOXED = Form(latex.extract_boxed, latex.same_answer)


def form_of(doc: Mapping[str, Any]) -> Form:
    """MATH's documents are boxed, all others marked by `####`."""
    return BOXED if doc.get("grader") == "math" else MARKED


def target_of(doc: Mapping[str, Any]) -> str:
    """The right answer of a document.

    Raises:
        ValueError: when its solution states none.
    """
    target = form_of(doc).extract(doc["answer"])
    if target is None:
        raise ValueError(f"{doc['task_id']}: its solution states no answer")
    return target
