"""HumanEval+ and MBPP+ (EvalPlus): problems whose many inputs stay in their files until needed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lm_eval_embednoise.problems.datafiles import (
    BadData,
    Source,
    field,
    load_json,
    locate,
    read_lines,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Row = dict[str, Any]
HUMANEVAL_PLUS = Source(
    "humanevalplus",
    ("HumanEvalPlus.jsonl.gz", "HumanEvalPlus*v*.jsonl.gz", "HumanEvalPlus.jsonl"),
    "",
    ("https://github.com/evalplus/humanevalplus_release/releases",),
    anywhere=True,
)
MBPP_PLUS = Source(
    "mbppplus",
    ("MbppPlus.jsonl.gz", "MbppPlus*v*.jsonl.gz", "MbppPlus.jsonl"),
    "",
    ("https://github.com/evalplus/mbppplus_release/releases",),
    anywhere=True,
)
_SOURCES = {source.name: source for source in (HUMANEVAL_PLUS, MBPP_PLUS)}
_lines: dict[str, bytes] = {}  # task id → its line


@dataclass(frozen=True)
class PlusTests:
    """A problem's inputs (a list of arguments each) and what its answers are compared by."""

    base: list[Any]
    plus: list[Any]
    tolerance: float
    reference: str  # the program whose answers are right


def problems(name: str) -> Iterator[Row]:
    """The documents of `humanevalplus` or `mbppplus`."""
    for path in locate(_SOURCES[name]):
        for place, line, row in read_lines(path):
            task_id = str(field(row, place, "task_id"))
            for key in ("base_input", "plus_input", "atol"):
                field(row, place, key)
            number = int(task_id.split("/")[-1])
            task_id = f"MBPP/{number}" if name == "mbppplus" else task_id
            _lines[f"{name} {task_id}"] = line
            yield {
                "task_id": task_id,
                "prompt": _prompt(name, row, place),
                "entry_point": field(row, place, "entry_point"),
                "canonical_solution": field(row, place, "canonical_solution"),
                "grader": name,
                "tests": _digest(line),
            }


def _prompt(name: str, row: Row, place: str) -> str:
    """HumanEval+'s as it is; MBPP+'s, a docstring, with the first assert in it, as v0.2.0 has it.

    Without that line (v0.1.0) nothing says what the function is called.
    """
    prompt = str(field(row, place, "prompt"))
    if name == "humanevalplus":
        return prompt
    text = prompt.strip()
    asserts = [line for line in (row.get("assertion") or "").split("\n") if line.strip()]
    if asserts and str(field(row, place, "entry_point")) not in text:
        text = f"{text[:-3].rstrip()}\n{asserts[0].strip()}\n{text[-3:]}"
    return text + "\n"


def load(doc: Row) -> PlusTests:
    """A document's tests.

    Raises:
        BadData: when the file no longer holds the tests that the document was made with.
    """
    name, task_id = doc["grader"], doc["task_id"]
    key = f"{name} {task_id}"
    if key not in _lines:
        for _ in problems(name):
            pass
    if key not in _lines or _digest(_lines[key]) != doc["tests"]:
        raise BadData(f"{task_id}: its tests have changed since the problems were loaded")
    row = load_json(_lines[key])
    solution = row["canonical_solution"]
    number = int(task_id.split("/")[-1])
    retyped = _retyping(number) if name == "mbppplus" else _as_it_is
    return PlusTests(
        base=[retyped(given) for given in row["base_input"]],
        plus=[retyped(given) for given in row["plus_input"] or []],
        tolerance=float(row["atol"]),
        reference=solution if name == "mbppplus" else row["prompt"] + solution,
    )


def _digest(line: bytes) -> str:
    return hashlib.blake2b(line, digest_size=16).hexdigest()


# JSON has no tuples, sets and complex numbers: which of MBPP's problems take them, and where, is
# written down in EvalPlus (evalplus/data/mbpp.py, 0.3.1).
_TUPLES = {2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616, 630}
_TUPLES |= {726, 740, 744, 809}
_LISTS_OF_TUPLES = {63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780}
_FIRST_LIST_OF_TUPLES = {75, 413, 444, 753}
_SECOND_TUPLE = {106, 750}
_FIRST_TUPLE = {250, 307, 405, 446, 617, 720, 763, 808}
_TUPLES_OF_TUPLES = {259, 401, 445}
_TUPLES_DEEP = {580, 615, 791}


def _as_it_is(given: Any) -> Any:
    return given


def _retyping(number: int) -> Callable[[Any], Any]:
    """How the arguments of one problem of MBPP+ are given their types back."""
    forms: tuple[tuple[set[int], Callable[[Any], Any]], ...] = (
        (_TUPLES, lambda given: [tuple(each) for each in given]),
        (_LISTS_OF_TUPLES, lambda given: [[tuple(item) for item in each] for each in given]),
        (_FIRST_LIST_OF_TUPLES, lambda given: [[tuple(item) for item in given[0]], given[1]]),
        (_SECOND_TUPLE, lambda given: [given[0], tuple(given[1])]),
        (_FIRST_TUPLE, lambda given: [tuple(given[0]), *given[1:]]),
        (_TUPLES_OF_TUPLES, lambda given: [tuple(tuple(item) for item in each) for each in given]),
        (_TUPLES_DEEP, lambda given: [_deep(each) for each in given]),
        ({115}, lambda given: [[_set(item) for item in given[0]]]),
        ({124}, lambda given: [float(given[0]), complex(given[1])]),
        ({252}, lambda given: [complex(given[0])]),
        ({278}, lambda given: [tuple(_one_deep(item) for item in given[0])]),
        ({722}, lambda given: [{k: tuple(v) for k, v in given[0].items()}, *given[1:]]),
    )
    return next((form for numbers, form in forms if number in numbers), _as_it_is)


def _set(item: Any) -> Any:
    return set(item) if isinstance(item, list) and item else {}


def _one_deep(item: Any) -> Any:
    return tuple(item) if isinstance(item, list) else item


def _deep(item: Any) -> Any:
    return tuple(_deep(each) for each in item) if isinstance(item, list) else item
