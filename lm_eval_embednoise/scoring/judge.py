"""Code samples to sandbox jobs, and outcomes back, by the form of a problem's tests."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from .. import hidden_tests
from ..sandbox import Job, Limits, Outcome
from . import compare
from .extract import extract_program

Run = Callable[[Job], Outcome]
# What APPS and LiveCodeBench run before every program, so that `List` or `heappush` are there.
HEADER = "".join(
    f"from {module} import *\n"
    for module in (
        *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random"),
        *("statistics", "itertools", "functools", "operator", "io", "sys", "json", "typing"),
    )
) + (
    "import string, re, datetime, collections, heapq, bisect, copy, math, random, statistics\n"
    "import itertools, functools, operator, io, sys, json, typing\n"
    "from builtins import *\n"
    "sys.setrecursionlimit(50000)\n"
)
# Seconds for each test, by the official harnesses; processor time here, wall time there.
_SECONDS = {"apps": 4.0, "livecodebench": 6.0}
_MEMORY = 4 << 30
_PRINTED = {"apps": compare.apps_printed, "livecodebench": compare.livecodebench_printed}
_RETURNED = Path(compare.__file__).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Candidate:
    """One program of one problem; equal candidates are judged once."""

    problem: int
    program: str


def program_of(text: str, doc: Mapping[str, Any]) -> str:
    """The program that a generation stands for."""
    return extract_program(text, doc.get("prompt", ""), doc["entry_point"] or None)


def judge(run: Run, program: str, doc: Mapping[str, Any]) -> Outcome:
    """Try a program against a document's tests, as the benchmark's own harness would."""
    grader = doc.get("grader")
    if grader is None:
        return _judge_asserts(run, program, doc)
    kind, tests = _tests_of(doc["grader"], doc["task_id"], doc["tests"])
    seconds = _SECONDS[grader]
    limits = Limits(seconds, wall_seconds=10 * seconds, memory_bytes=_MEMORY)
    if kind == "stdin":
        return _judge_printed(run, program, tests, grader, limits)
    return run(
        Job(
            program=program,
            entry_point=doc["entry_point"],
            test=_RETURNED + "\ndef check(candidate):\n    check_calls(candidate, *DATA)\n",
            data=_graded(grader, doc["task_id"], doc["tests"]),
            header=HEADER,
            limits=dataclasses.replace(limits, wall_seconds=10 * seconds * len(tests)),
            seconds_are_per_call=True,
        )
    )


def _judge_asserts(run: Run, program: str, doc: Mapping[str, Any]) -> Outcome:
    """HumanEval's form: `def check(candidate)`; three seconds for all of it, as there."""
    return run(
        Job(
            program=program,
            entry_point=doc["entry_point"],
            setup=doc["prompt"],
            test=doc["test"],
        )
    )


def _judge_printed(
    run: Run, program: str, tests: hidden_tests.Tests, grader: str, limits: Limits
) -> Outcome:
    """Run the program once for each input, compare outside, stop at the first failure.

    Outputs are dropped when they have been compared: they may be as long as the output limit.
    """
    outcome = None
    seen = hashlib.blake2b(digest_size=12)
    for given, expected in tests:
        outcome = run(Job(program=program, stdin=given.encode(), header=HEADER, limits=limits))
        if outcome.verdict == "syntax_error" and "nonlocal" in program:
            # The official checkers wrap programs in a function, where `nonlocal` is legal.
            program = _wrapped(program)
            outcome = run(Job(program=program, stdin=given.encode(), header=HEADER, limits=limits))
        output = outcome.output.decode("utf-8", "replace")
        seen.update(output.strip().encode() + b"\0")
        outcome = dataclasses.replace(outcome, output=b"", behaviour=seen.hexdigest())
        if outcome.verdict != "passed":
            return outcome
        if not _PRINTED[grader](output, expected):
            return dataclasses.replace(outcome, verdict="wrong_answer", detail="output differs")
    if outcome is None:
        raise hidden_tests.BadData("a problem without tests")
    return outcome


def _wrapped(program: str) -> str:
    lines = (f"    {line}" for line in program.split("\n"))
    return "def program():\n" + "\n".join(lines) + "\n\nprogram()\n"


@lru_cache(maxsize=2)  # programs come problem by problem
def _graded(grader: str, task_id: str, digest: str) -> list[Any]:
    """One object for a problem's programs, so that the tests are handed over once."""
    return [grader, _tests_of(grader, task_id, digest)[1]]


@lru_cache(maxsize=2)
def _tests_of(grader: str, task_id: str, digest: str) -> tuple[str, hidden_tests.Tests]:
    return hidden_tests.load_tests({"grader": grader, "task_id": task_id, "tests": digest})
