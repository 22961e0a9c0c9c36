"""Code samples to sandbox jobs, and outcomes back, by the form of a problem's tests."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lm_eval_embednoise.problems import hidden_tests, plus_tests
from lm_eval_embednoise.sandbox import Job, Limits, Outcome, SandboxError, wire

from . import compare

log = logging.getLogger(f"lm_eval.{__name__}")
Run = Callable[[Job], Outcome]
# What the official checkers run before every program: numpy is loaded for those that name it.
_APPS = (
    "import sys, time, itertools, collections, math, fractions, random, heapq\n"
    "from itertools import accumulate, product, permutations, combinations\n"
    "from collections import Counter, OrderedDict, deque, defaultdict, ChainMap\n"
    "from functools import lru_cache\n"
    "from math import sqrt, sin, cos, tan, ceil, fabs, floor, gcd, exp, log, log2\n"
    "from typing import List, Tuple\n"
    "from heapq import *\n"
)
_APPS_NUMPY = re.compile(r"\bnp\b")
_LIVECODEBENCH = "".join(
    f"from {module} import *\n"
    for module in (
        *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random"),
        *("statistics", "itertools", "functools", "operator", "io", "sys", "json", "builtins"),
        "typing",
    )
) + (
    "import string, re, datetime, collections, heapq, bisect, copy, math, random, statistics\n"
    "import itertools, functools, operator, io, sys, json\n"
    "sys.setrecursionlimit(50000)\n"
)
# LiveCodeBench's limit on the digits of an integer; APPS was made for a Python without one.
_DIGITS = "getattr(sys, 'set_int_max_str_digits', int)(50000)\n"
# Seconds for each test, by the official harnesses; processor time here, wall time there.
_SECONDS = {"apps": 4.0, "livecodebench": 6.0}
_PLUS = Limits(4.0, wall_seconds=300.0, memory_bytes=4 << 30)  # EvalPlus's: seconds for each call
_REFERENCE = Limits(30.0, wall_seconds=600.0, memory_bytes=1 << 30)
_MOST_VALUES = 100_000  # in one answer; an input with a longer one is left out
_MEMORY = 4 << 30
_PRINTED = {"apps": compare.apps_printed, "livecodebench": compare.livecodebench_printed}
_RETURNED = Path(compare.__file__).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Candidate:
    """One program of one problem; equal candidates are judged once."""

    problem: int
    program: str


def header_of(grader: str, program: str) -> str:
    """The imports that a benchmark's official checker puts before a program."""
    if grader == "livecodebench":
        return _LIVECODEBENCH + _DIGITS
    return _APPS + ("import numpy as np\n" if _APPS_NUMPY.search(program) else "") + _DIGITS


def judge(run: Run, program: str, doc: Mapping[str, Any]) -> Outcome:
    """Try a program against a document's tests, as the benchmark's own harness would."""
    grader = doc.get("grader")
    if grader is None:
        return _judge_asserts(run, program, doc)
    if grader in ("humanevalplus", "mbppplus"):
        return _judge_plus(run, program, doc)
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
            header=header_of(grader, program),
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
    header = header_of(grader, program)
    for given, expected in tests:
        outcome = run(Job(program=program, stdin=given.encode(), header=header, limits=limits))
        output = outcome.output.decode("utf-8", "replace")
        seen.update(output.strip().encode() + b"\0")
        outcome = dataclasses.replace(outcome, output=b"", behaviour=seen.hexdigest())
        if outcome.verdict != "passed":
            return outcome
        try:
            detail = "" if _PRINTED[grader](output, expected) else "output differs"
        except Exception as error:  # whatever a program prints: it is wrong, the others go on
            detail = f"comparing its output raised {type(error).__name__}"
        if detail:
            return dataclasses.replace(outcome, verdict="wrong_answer", detail=detail)
    if outcome is None:
        raise hidden_tests.BadData("a problem without tests")
    return outcome


def _judge_plus(run: Run, program: str, doc: Mapping[str, Any]) -> Outcome:
    """All of EvalPlus's inputs, the benchmark's own ("base") before the others; 4 s a call.

    Where a program fails, it is tried on the base inputs alone too: they have a verdict of their
    own, `passed_base`.
    """

    def attempt(base_only: bool) -> Outcome:
        return run(
            Job(
                program=program,
                entry_point=doc["entry_point"],
                test=_RETURNED + "\ndef check(candidate):\n    check_plus(candidate, *DATA)\n",
                data=_plus_data(run, doc, base_only),
                limits=_PLUS,
                seconds_are_per_call=True,
            )
        )

    outcome = attempt(base_only=False)
    base = outcome if outcome.verdict in ("passed", "syntax_error") else attempt(base_only=True)
    return dataclasses.replace(outcome, passed_base=base.verdict == "passed")


_answering = threading.Lock()


def _plus_data(run: Run, doc: Mapping[str, Any], base_only: bool) -> list[Any]:
    with _answering:  # one thread runs the reference solution, the others wait for its answers
        return _paired(run, doc["grader"], doc["task_id"], doc["tests"], doc["entry_point"])[
            base_only
        ]


_pairs: dict[tuple[str, str], tuple[list[Any], list[Any]]] = {}


def _paired(
    run: Run, grader: str, task_id: str, digest: str, name: str
) -> tuple[list[Any], list[Any]]:
    """What `check_plus` takes, with all inputs and with the base inputs; kept for two problems."""
    key = (task_id, digest)
    if key not in _pairs:
        tests = plus_tests.load({"grader": grader, "task_id": task_id, "tests": digest})
        tested, bases = _reference(run, tests, name, task_id)
        while len(_pairs) > 7:  # programs come problem by problem, to a few threads at once
            del _pairs[next(iter(_pairs))]
        whole, base = ([name, tests.tolerance, pairs] for pairs in (tested, tested[:bases]))
        _pairs[key] = whole, base
    return _pairs[key]


def _reference(
    run: Run, tests: plus_tests.PlusTests, name: str, task_id: str
) -> tuple[list[tuple[Any, Any]], int]:
    """The inputs with the reference solution's answers, found in the sandbox; how many are base."""
    inputs = [*tests.base, *tests.plus]
    outcome = run(
        Job(
            program=tests.reference,
            entry_point=name,
            test=_RETURNED
            + "\ndef check(candidate):\n    from sandbox import wire\n"
            + "    found = returned(candidate, *DATA)\n"
            + "    return wire.Encoder(keep_objects=False).encode(found)\n",
            data=[name, inputs, _MOST_VALUES],
            limits=_REFERENCE,
            seconds_are_per_call=True,
        )
    )
    if outcome.verdict != "passed":
        raise SandboxError(
            f"{task_id}: its reference solution ends with {outcome.verdict} ({outcome.detail})"
        )
    places, answers = wire.decode(outcome.value)
    if len(places) < len(inputs):
        said = "%s: %d of %d inputs are left out: the reference solution's answer is too long"
        log.info(said, task_id, len(inputs) - len(places), len(inputs))
    pairs = [(inputs[place], answer) for place, answer in zip(places, answers, strict=True)]
    return pairs, sum(place < len(tests.base) for place in places)


@lru_cache(maxsize=2)  # programs come problem by problem
def _graded(grader: str, task_id: str, digest: str) -> list[Any]:
    """One object for a problem's programs, so that the tests are handed over once."""
    return [grader, _tests_of(grader, task_id, digest)[1]]


@lru_cache(maxsize=2)
def _tests_of(grader: str, task_id: str, digest: str) -> tuple[str, hidden_tests.Tests]:
    return hidden_tests.load_tests({"grader": grader, "task_id": task_id, "tests": digest})
