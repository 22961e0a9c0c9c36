"""Records: one JSON-able dict for each sample, with the model's measurements and the verdict."""

from __future__ import annotations

import ast
import json
from typing import TYPE_CHECKING, Any

from . import maths

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lm_eval_embednoise.sandbox import Outcome

_MEASUREMENTS = ("tokens", "finish_reason", "nll", "nll_tokens", "rho", "sites", "seconds")
_DETAIL_LENGTH = 200
Record = dict[str, Any]


def logged(written: Any) -> Record | None:
    """A record as a samples file holds it: an object, its JSON, or (stock logger) its repr.

    Returns:
        None for anything else, such as the text of a task with other filters.
    """
    if isinstance(written, str) and written.startswith("{"):
        for parse in (json.loads, ast.literal_eval):
            try:
                written = parse(written)
                break
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
    return written if isinstance(written, dict) else None


def pad(samples: Sequence[str], k: int) -> list[str | None]:
    """Exactly k samples: the surplus of a padded shard is cut, None marks a missing one.

    A model that has no sample to give (`replay`) says so by the finish reason `missing`.
    """
    there = [None if getattr(s, "finish_reason", 0) == "missing" else s for s in samples[:k]]
    return [*there, *[None] * (k - len(samples))]


def _common(sample: str | None, index: int) -> Record:
    """The fields that every record has; a plain string has no measurements."""
    record: Record = {"index": index, "text": "" if sample is None else str(sample)}
    record["missing"] = sample is None
    return record | {name: getattr(sample, name, None) for name in _MEASUREMENTS}


def code_record(
    sample: str | None, index: int, program: str, outcome: Outcome | None, rule: str | None = None
) -> Record:
    """The record of a judged program; without an outcome the sample is missing, a failure.

    `rule` says how the program was found in the text, or that it is judged to the letter.
    """
    record = _common(sample, index)
    if outcome is None:
        judged = {"passed": False, "valid": False, "code": "", "compiled": False, "ast": None}
        judged |= {"verdict": "missing", "detail": "", "behaviour": None, "undefined": None}
        return record | judged | {"passed_base": None, "rule": None}
    valid = outcome.compiled and outcome.defined and not outcome.trivial
    return record | {
        "passed": outcome.verdict == "passed",
        "passed_base": outcome.passed_base,
        "valid": valid and outcome.undefined is None,
        "code": program,
        "rule": rule,
        "compiled": outcome.compiled,
        "undefined": outcome.undefined,
        "verdict": outcome.verdict,
        "detail": outcome.detail,
        "ast": outcome.ast,
        "behaviour": outcome.behaviour,
    }


def math_record(sample: str | None, index: int, target: str, form: maths.Form) -> Record:
    """The record of a worked answer; valid means that an answer can be extracted.

    `passed` is decided by the benchmark's own form; `passed_flexible` by the answer however it is
    stated. An answer that is equivalent to the target is recorded as the target. A text on which
    reading or comparing raises is wrong, and `detail` says why. `way` tells correct answers apart.
    """
    record = _common(sample, index) | {"detail": ""}
    for suffix, extract in (("", form.extract), ("_flexible", form.flexible)):
        answer, passed = None, False
        try:
            answer = None if sample is None or extract is None else extract(sample)
            passed = answer is not None and form.same(answer, target)
        except Exception as error:
            record["detail"] = f"{type(error).__name__}: {error}"[:_DETAIL_LENGTH]
        record[f"answer{suffix}"] = target if passed else answer
        record[f"passed{suffix}"] = passed if extract is not None else None
    way = [] if sample is None else maths.way_of(sample, record["answer"])
    return record | {"valid": record["answer"] is not None, "way": way}


def solution(record: Record) -> str | tuple[str, ...] | None:
    """What tells correct samples of a problem apart: a program's tree, a worked answer's way."""
    if "code" in record:
        tree: str | None = record["ast"]
        return tree
    way = record.get("way")  # logs of tasks before version 2.0 have none
    return tuple(maths.way_of(record["text"], record["answer"]) if way is None else way)


def math_records(samples: Sequence[str | None], target: str, form: maths.Form) -> list[Record]:
    """The records of a problem's answers; those that mean the same are spelled alike, as votes."""
    made = [math_record(text, index, target, form) for index, text in enumerate(samples)]
    for key in ("answer", "answer_flexible"):
        answers = maths.grouped([record[key] for record in made], form)
        for record, answer in zip(made, answers, strict=True):
            record[key] = answer
    return made
