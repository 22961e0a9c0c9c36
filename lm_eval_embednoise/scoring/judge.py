"""Code samples to sandbox jobs, and outcomes back to verdicts, one grader for each form of test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..sandbox import Job, Limits, Outcome
from .extract import extract_program

Run = Callable[[Job], Outcome]


@dataclass(frozen=True)
class Candidate:
    """One program of one problem; equal candidates are judged once."""

    problem: int
    program: str


def program_of(text: str, doc: Mapping[str, Any]) -> str:
    """The program that a generation stands for."""
    return extract_program(text, doc.get("prompt", ""), doc.get("entry_point"))


def limits_of(doc: Mapping[str, Any]) -> Limits:
    """A document's own limits, where its benchmark states them."""
    seconds = doc.get("cpu_seconds")
    return Limits(cpu_seconds=seconds, wall_seconds=10 * seconds + 10) if seconds else Limits()


def judge(run: Run, program: str, doc: Mapping[str, Any]) -> Outcome:
    """Try a program against a document's tests (HumanEval's form: `def check(candidate)`)."""
    return run(
        Job(
            program=program,
            entry_point=doc["entry_point"],
            setup=doc["prompt"],
            test=doc["test"],
            limits=limits_of(doc),
        )
    )
