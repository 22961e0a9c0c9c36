"""Answers of worked word problems: find the number, compare it, vote."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import latex
from .equations import calculations

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

# The pattern of openai/grade-school-math, dataset.py: the strict number, which decides.
_MARKED = re.compile(r"#### (\-?[0-9\.\,]+)")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
_LAST_LINE = re.compile(r"^[ \t]*#{3,6}[ \t]*([^\n]*)$", re.MULTILINE)
_HEADING = re.compile(r"[.)]\s+[A-Za-z]")  # `#### 1. Count the apples`
_PLAIN = re.compile(r"-?(\d*)\.?(\d*)")
_THINKING = re.compile(r"</think(?:ing)?>")
_LONGEST = 200  # characters of a number that can be somebody's answer


@dataclass(frozen=True)
class Form:
    """How a benchmark states an answer, and when two are the same.

    `flexible` finds an answer that is stated in another way; None where there is one way only.
    """

    extract: Callable[[str], str | None]
    same: Callable[[str, str], bool]
    flexible: Callable[[str], str | None] | None = None


def extract_answer(text: str) -> str | None:
    """The normalised number after the first `####`; None when there is none."""
    match = _MARKED.search(text)
    return normalise(match.group(1)) if match else None


def flexible_answer(text: str) -> str | None:
    """The number that a chat answer states, however it is marked; None when there is none.

    In this order, each at its last place: a line `####` with nothing but a number; a box; what
    follows "answer is" or "Answer:"; any number.
    """
    text = _THINKING.split(text)[-1]
    for line in reversed(_LAST_LINE.findall(text)):
        number = _only_number(line)
        if number is not None:
            return number
    for stated in (latex.last_box(text) or "", latex.said(text) or ""):
        numbers = _NUMBER.findall(stated)
        if numbers:  # "18 apples, not 20", but "5 + 13 = 18"
            return normalise(numbers[-1 if "=" in stated else 0])
    numbers = _NUMBER.findall(text)
    return normalise(numbers[-1]) if numbers else None


def _only_number(line: str) -> str | None:
    """The number of a line that states a number and at most its unit: no heading, no sentence."""
    plain = re.sub(r"[*$`_\\]|(?:text|mathrm|boxed)?[{}]", "", line).strip()
    match = _NUMBER.match(plain)
    if match is None or _HEADING.match(plain, match.end()):
        return None
    rest = plain[match.end() :].strip(" .%")
    return normalise(match.group()) if len(rest.split()) <= 2 else None


def normalise(number: str) -> str | None:
    """A number without separators and in its shortest form: `1,200.0` is `1200`."""
    plain = number.replace(",", "").strip().rstrip(".")
    match = None if len(plain) > _LONGEST else _PLAIN.fullmatch(plain)
    if match is None or not (match.group(1) or match.group(2)):
        return None
    whole, part = match.group(1).lstrip("0") or "0", match.group(2).rstrip("0")
    shortest = f"{whole}.{part}" if part else whole
    return f"-{shortest}" if plain.startswith("-") and shortest != "0" else shortest


def majority(answers: Sequence[str | None], target: str) -> float:
    """The chance that a majority vote gives `target`, ties broken evenly; no answer is no vote.

    Answers that mean the same must be spelled alike (`grouped`).
    """
    votes: dict[str, int] = {}
    for answer in answers:
        if answer is not None:
            votes[answer] = votes.get(answer, 0) + 1
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = [answer for answer, count in votes.items() if count == most]
    return (target in winners) / len(winners)


def grouped(answers: Sequence[str | None], form: Form) -> list[str | None]:
    """The answers, each replaced by the first one that means the same, right or wrong."""
    first: dict[str, str] = {}
    for answer in answers:
        if answer is not None and answer not in first:
            kinds = dict.fromkeys(first.values())
            first[answer] = next((kind for kind in kinds if _alike(form, answer, kind)), answer)
    return [None if answer is None else first[answer] for answer in answers]


def _alike(form: Form, answer: str, other: str) -> bool:
    """Whether two answers mean the same; two that cannot be compared don't."""
    try:
        return form.same(answer, other)
    except Exception:
        return False


def way_of(text: str, answer: str | None) -> list[str]:
    """What makes a worked answer another one: the calculations that lead to its answer.

    Without any it is its text up to the `####` line, letter case and runs of blanks evened out.
    """
    worked = text.split("####")[0]
    return calculations(worked, answer) or [" ".join(worked.casefold().split())]


MARKED = Form(extract_answer, operator.eq, flexible_answer)
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
