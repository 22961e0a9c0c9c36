"""What is handed to the sandbox and what comes back: jobs, limits, outcomes, verdicts."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import Any, Literal

from .tester import DIED, TIME_IS_UP

Verdict = Literal[
    "passed",
    "wrong_answer",
    "runtime_error",
    "syntax_error",
    "timeout",
    "memory",
    "output_limit",
]
VERDICTS: tuple[str, ...] = Verdict.__args__  # type: ignore[attr-defined]


_DETAIL_LENGTH = 200  # an exception's name may be as long as the program likes


class SandboxError(RuntimeError):
    """The sandbox itself failed or is not available; says nothing about any program."""


@dataclass(frozen=True)
class Limits:
    """What one program may use.

    `idle_seconds` is how long it may wait in all: time in which each of its threads sleeps, none
    being ready to run. `wall_seconds` is the last resort where that can't be seen; it is generous
    because a loaded machine must not change a verdict.
    """

    cpu_seconds: float = 3.0
    wall_seconds: float = 40.0
    memory_bytes: int = 1 << 30
    output_bytes: int = 16 << 20
    idle_seconds: float = 5.0

    def __post_init__(self) -> None:
        for name in ("cpu_seconds", "idle_seconds", "wall_seconds", "memory_bytes", "output_bytes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)!r}")


@dataclass(frozen=True)
class Job:
    """One program and how it is tried.

    With `test`, the program's functions are called from another process that runs `setup`, then
    `test`, then `check(candidate)` where `test` defines one; `DATA` there is `data`. Without
    `test` the program runs alone on `stdin` and its standard output comes back.
    """

    program: str
    entry_point: str | None = None
    test: str | None = None
    setup: str = ""
    data: Any = None
    stdin: bytes = b""
    header: str = ""  # our own code (imports), run in the program's namespace before it
    seconds_are_per_call: bool = False  # cpu_seconds and idle_seconds limit each call, not all
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.test is not None and self.entry_point is None:
            raise ValueError("a job with a test needs an entry_point")

    @property
    def total_cpu_seconds(self) -> float:
        """Processor time for all calls together."""
        limits = self.limits
        return limits.wall_seconds if self.seconds_are_per_call else limits.cpu_seconds


@dataclass(frozen=True)
class Outcome:
    """How a program ended. A program that ran alone to its end has the verdict `passed`."""

    verdict: str
    detail: str = ""
    compiled: bool = False
    defined: bool = False
    trivial: bool = True
    undefined: str | None = None  # a name that it reads and that nothing binds
    ast: str | None = None
    behaviour: str | None = None  # digest of the answers that the tests looked at, in order
    value: Any = None  # what the tests' `check` returned
    passed_base: bool | None = None  # of a benchmark with a weaker and a full set of tests
    output: bytes = b""
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    exit_status: int | None = None  # of a program that ran alone; minus the signal that ended it


def outcome(job: Job, account: dict[str, Any], output: bytes) -> Outcome:
    """Turn a worker's account into an outcome.

    Raises:
        SandboxError: when the account says that the sandbox failed, not the program.
    """
    facts, answer = account["facts"], account["answer"]
    for report in (facts, answer):
        if report and "failure" in report:
            raise SandboxError(f"a process could not be confined:\n{report['failure']}")
    if answer and answer["outcome"] == "unfit":
        raise SandboxError(f"the tests cannot run outside the program's process: {answer['kind']}")
    verdict, detail = _verdict(job, account)
    if len(detail) > _DETAIL_LENGTH:
        detail = detail[:_DETAIL_LENGTH] + "…"
    return Outcome(
        verdict=verdict,
        detail=detail,
        **(facts or {}),
        behaviour=answer.get("behaviour") if answer else None,
        value=answer.get("value") if answer else None,
        output=output,
        cpu_seconds=account["cpu"],
        wall_seconds=account["wall"],
        exit_status=account["status"] if job.test is None else None,
    )


def _verdict(job: Job, account: dict[str, Any]) -> tuple[Verdict, str]:
    """The first that applies, from the causes that the program cannot forge downwards."""
    facts, answer, status = account["facts"], account["answer"], account["status"]
    ended = f"ended with {_name(status)}"
    if account["killed_for"] == "files":
        return "output_limit", "its directory is full"
    if account["killed_for"] or account["cpu"] > job.total_cpu_seconds:
        return "timeout", f"{account['killed_for'] or 'cpu'} limit"
    if account["output_bytes"] >= job.limits.output_bytes or status == -signal.SIGXFSZ:
        return "output_limit", ended
    if not facts or not facts["compiled"]:
        return "syntax_error", ended if not facts else ""
    if answer and answer["outcome"] == "passed":
        return "passed", ""
    if answer and answer["outcome"] == "failed":
        return "wrong_answer", answer["kind"]
    error, alone = account["error"], job.test is None
    if alone and error == "SystemExit" and status >= 0:
        return "passed", f"exit status {status}" if status else ""
    if answer and answer["kind"] == TIME_IS_UP:
        return "timeout", "cpu limit of one call"
    if answer and answer["kind"] != DIED:
        error = answer["kind"]
    if error == "MemoryError":
        return "memory", error
    if error is not None:
        return "runtime_error", error
    if status == -signal.SIGXCPU:
        return "timeout", ended
    if status == -signal.SIGKILL and (alone or (answer and answer["kind"] == DIED)):
        return "memory", "killed by the system"
    if alone and status == 0:
        return "passed", ""
    return "runtime_error", ended


def _name(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"
