"""The tests' process: holds the expected values and calls the program in the other process.

The program never shares an address space with its tests. What it returns arrives as plain data, so
`==`, `assert` and everything else here mean what they say whatever the program has patched.
"""

from __future__ import annotations

import builtins
import json
import os
import select
import time
from collections.abc import Callable
from typing import Any, NoReturn

from . import wire

_LOOK_SECONDS = 0.05
READY = {"outcome": "ready"}
DIED = "died"
TIME_IS_UP = "time is up"


class RemoteError(Exception):
    """The program raised, or ended, while it was being called."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class _Namespace(dict[str, Any]):
    """Globals of the tests; unknown names are functions and classes of the program."""

    def __init__(self, remote: Callable[[str], Any]) -> None:
        super().__init__(__name__="tests")
        self._remote = remote

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name):
            return getattr(builtins, name)
        return self._remote(name)


class Remote:
    """The program's functions, called over two pipes."""

    def __init__(self, calls: int, returns: int, pid: int, seconds: float) -> None:
        self._calls, self._returns = calls, returns
        self._pid, self._seconds = pid, seconds
        self._encoder = wire.Encoder(keep_objects=False)

    def function(self, name: str) -> Callable[..., Any]:
        """A function that hands its arguments to the program's `name` and returns its answer."""

        def call(*args: Any, **kwargs: Any) -> Any:
            arguments = list(args)
            request = {
                "name": name,
                "args": self._encoder.encode(arguments),
                "kwargs": self._encoder.encode(kwargs),
            }
            return self._ask(json.dumps(request).encode(), arguments)

        return call

    def _ask(self, request: bytes, arguments: list[Any]) -> Any:
        try:
            until = cpu_seconds(self._pid) + self._seconds
            wire.send(self._calls, request)
            while not select.select([self._returns], [], [], _LOOK_SECONDS)[0]:
                self._check_time(until)
            frame = wire.receive(self._returns)
            self._check_time(until)
        except (BrokenPipeError, wire.WireError) as error:
            raise RemoteError(DIED) from error
        if frame is None:
            raise RemoteError(DIED)
        try:
            reply = json.loads(frame)
            if "raised" in reply:
                raise RemoteError(str(reply["raised"]))
            value = wire.decode(reply["value"])
            if "changed" in reply:
                _write_back(arguments, wire.decode(reply["changed"]))
        except (ValueError, TypeError, KeyError, RecursionError, wire.WireError) as error:
            raise RemoteError("an answer that is not a value") from error
        return value

    def _check_time(self, until: float) -> None:
        if cpu_seconds(self._pid) > until:
            raise RemoteError(TIME_IS_UP)


def cpu_seconds(pid: int) -> float:
    """Processor time of another process so far, all its threads together."""
    try:
        return time.clock_gettime((~pid << 3) | 2)  # the kernel's id for that process's clock
    except OSError:
        return 0.0


def _write_back(arguments: list[Any], changed: Any) -> None:
    """Let the tests see what the program did to the lists, dicts and sets it was given."""
    for mine, theirs in zip(arguments, changed, strict=True):
        if isinstance(mine, list):
            mine[:] = theirs
        elif isinstance(mine, (dict, set)):
            mine.clear()
            mine.update(theirs)


def run(
    job: dict[str, Any], pid: int, job_pipe: int, calls: int, returns: int, result: int
) -> NoReturn:
    """Read the tests from the harness, try them on process `pid`, write the result."""
    wire.unlimited_digits()
    tests = wire.receive_json(job_pipe)
    os.close(job_pipe)
    wire.send_json(result, READY)
    remote = Remote(calls, returns, pid, job["call_cpu"])
    try:
        value = _run_tests(tests, job["entry_point"], remote)
        outcome: dict[str, Any] = {"outcome": "passed", "value": value}
    except RemoteError as error:
        outcome = {"outcome": "raised", "kind": error.kind}
    except wire.WireError as error:
        outcome = {"outcome": "unfit", "kind": str(error)}
    except BaseException as error:
        outcome = {"outcome": "failed", "kind": type(error).__name__}
    wire.send_json(result, outcome)
    os._exit(0)


def _run_tests(tests: dict[str, Any], entry_point: str, remote: Remote) -> Any:
    namespace = _Namespace(remote.function)
    # The prompt: its imports and helper functions are part of what HumanEval's tests may use.
    exec(_compiled(tests, "setup"), namespace)
    candidate = namespace[entry_point] = remote.function(entry_point)
    namespace["DATA"] = wire.decode(tests["data"])
    exec(_compiled(tests, "test"), namespace)
    check = namespace.get("check")  # MBPP has plain asserts, and one program called `check`
    return None if check in (None, candidate) else check(candidate)


def _compiled(tests: dict[str, Any], part: str) -> Any:
    try:
        return compile(tests[part], f"<{part}>", "exec", dont_inherit=True)
    except SyntaxError as error:  # the benchmark's fault, never the program's
        raise wire.WireError(f"the {part} does not compile: {error}") from error
