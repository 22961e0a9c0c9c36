"""The tests' process: holds the expected values and calls the program in the other process.

The program never shares an address space with its tests. What it returns arrives as plain data, so
`==`, `assert` and everything else here mean what they say whatever the program has patched.

One such process serves all programs of a worker, and keeps a problem's tests while programs of that
problem follow each other. Calls that the tests are sure to make (`predict`) are handed over in one
message; their answers are then looked at in order, as if each call had been made on its own.
"""

from __future__ import annotations

import builtins
import hashlib
import json
import os
import random
import resource
import select
import signal
import socket
import struct
import time
import traceback
from collections.abc import Callable
from typing import Any

from . import wire
from .predict import predict

_LOOK_SECONDS = 0.05
_TOGETHER_SECONDS = 0.005  # how long the answers to predicted calls are awaited all together
_REMEMBERED_CALLS = 1000
_CREDENTIALS = struct.Struct("3i")
DIED = "died"
TIME_IS_UP = "time is up"
MISPREDICTED = "mispredicted"


class RemoteError(Exception):
    """The program raised, or ended, while it was being called."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class _Mispredicted(BaseException):
    """The tests made another call than predicted; what the program did since counts for nothing."""


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
    """The program's functions, called over two pipes.

    `seconds` limits the processor time of each call of process `pid`; None leaves that to others.
    `predicted` are calls to hand over at once; `done` then becomes readable after their last.
    """

    def __init__(
        self, pipes: list[int], pid: int, seconds: float | None, predicted: list[bytes]
    ) -> None:
        self._calls, self._returns, self._done = pipes
        self._frames = wire.Reader(self._returns)
        self._pid, self._seconds = pid, seconds
        self._predicted = predicted
        self._answered = 0
        self._encoder = wire.Encoder(keep_objects=False)
        self.made: list[bytes] = []
        self._seen = hashlib.blake2b(digest_size=12)
        self._looked = False
        if predicted:
            self._send(b"[" + b",".join(predicted) + b"]")

    def function(self, name: str) -> Callable[..., Any]:
        """A function that hands its arguments to the program's `name` and returns its answer."""

        def call(*args: Any, **kwargs: Any) -> Any:
            arguments = list(args)
            made = request(name, self._encoder.encode(arguments), self._encoder.encode(kwargs))
            return self._ask(made, arguments)

        return call

    def _ask(self, made: bytes, arguments: list[Any]) -> Any:
        if self._seconds is None and len(self.made) < _REMEMBERED_CALLS:
            self.made.append(made)
        try:
            frame = self._exchange(made)
        except wire.WireError as error:
            raise RemoteError(DIED) from error
        if frame is None:
            raise RemoteError(DIED)
        self._looked = True
        self._seen.update(b"%d:" % len(frame) + frame)
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

    @property
    def behaviour(self) -> str | None:
        """Digest of the answers that the tests have looked at, in their order; None without one.

        A program that ends before it answers may do so before or after the tests ask.
        """
        return self._seen.hexdigest() if self._looked else None

    def _exchange(self, made: bytes) -> bytes | None:
        position, self._answered = self._answered, self._answered + 1
        if position < len(self._predicted):
            if made != self._predicted[position]:
                raise _Mispredicted
            if position == 0:
                select.select([self._done], [], [], _TOGETHER_SECONDS)
            return self._frames.next()
        if self._seconds is None:
            self._send(made)
            return self._frames.next()
        until = cpu_seconds(self._pid) + self._seconds
        self._send(made)
        while not self._frames.waiting(_LOOK_SECONDS):
            self._check_time(until)
        frame = self._frames.next()
        self._check_time(until)
        return frame

    def _send(self, payload: bytes) -> None:
        try:
            wire.send(self._calls, payload)
        except BrokenPipeError as error:
            raise RemoteError(DIED) from error

    def _check_time(self, until: float) -> None:
        if cpu_seconds(self._pid) > until:
            raise RemoteError(TIME_IS_UP)


def request(name: str, args: Any, kwargs: Any) -> bytes:
    """One call as it goes to the program."""
    return json.dumps({"name": name, "args": args, "kwargs": kwargs}).encode()


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


class Tests:
    """A problem's tests, compiled once."""

    def __init__(self, tests: dict[str, Any], entry_point: str) -> None:
        self._entry_point, self._data = entry_point, tests["data"]
        self._setup, self._test = (_compiled(tests, part) for part in ("setup", "test"))
        self.predicted = [
            request(entry_point, args, kwargs)
            for args, kwargs in predict(tests["test"], entry_point)
        ]
        self.predictable = True

    def run(self, remote: Remote) -> Any:
        """Try the program; what `check` returned.

        Raises:
            BaseException: whatever the tests raise when the program fails them.
        """
        random.seed(0)  # tests that draw their inputs draw the same for every program
        namespace = _Namespace(remote.function)
        # The prompt: its imports and helper functions are part of what HumanEval's tests may use.
        exec(self._setup, namespace)
        candidate = namespace[self._entry_point] = remote.function(self._entry_point)
        namespace["DATA"] = wire.decode(self._data)
        exec(self._test, namespace)
        check = namespace.get("check")  # MBPP has plain asserts, and one program called `check`
        return None if check in (None, candidate) else check(candidate)


def _compiled(tests: dict[str, Any], part: str) -> Any:
    try:
        return compile(tests[part], f"<{part}>", "exec", dont_inherit=True)
    except SyntaxError as error:  # the benchmark's fault, never the program's
        raise wire.WireError(f"the {part} does not compile: {error}") from error


def serve(control: socket.socket, jobs: int) -> None:
    """Try one program after the other until the worker closes `control`.

    A message brings the pipes to a program and says how to try it; where it says so, the tests are
    the next frame on `jobs`, which no other process reads. One answer goes back.
    """
    wire.unlimited_digits()
    control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    tests: Tests | wire.WireError | None = None
    while (received := _receive(control)) is not None:
        message, pipes = received
        try:
            if message["new_tests"]:
                try:
                    tests = Tests(wire.receive_json(jobs), message["entry_point"])
                except wire.WireError as error:
                    tests = error
            answer = _try_program(tests, message, pipes)
        except BaseException:
            answer = {"failure": traceback.format_exc()}
        for fd in pipes:
            os.close(fd)
        wire.send_json(control.fileno(), answer)


def _receive(control: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """The next message, and the descriptors that came with it."""
    space = socket.CMSG_SPACE(3 * 4) + socket.CMSG_SPACE(_CREDENTIALS.size)
    data, ancillary, _, _ = control.recvmsg(1, space)
    if not data:
        return None
    message = wire.receive_json(control.fileno())
    pipes: list[int] = []
    for _, kind, content in ancillary:
        if kind == socket.SCM_RIGHTS:
            pipes = list(struct.unpack("3i", content[:12]))
        elif message["pid"] is None:  # of another process namespace; the kernel translates it
            message["pid"] = _CREDENTIALS.unpack(content)[0]
    return message, pipes


def send(control: socket.socket, message: dict[str, Any], pipes: list[int], pid: int) -> None:
    """Hand a program to the tests' process (the worker's side)."""
    ancillary: list[Any] = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("3i", *pipes))]
    if message["pid"] is None:
        credentials = _CREDENTIALS.pack(pid, os.getuid(), os.getgid())
        ancillary.append((socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials))
    control.sendmsg([b"."], ancillary)
    wire.send_json(control.fileno(), message)


def _out_of_time(*_: object) -> None:
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # tests that catch this don't survive the next
    raise RemoteError(TIME_IS_UP)


def _try_program(
    tests: Tests | wire.WireError | None, message: dict[str, Any], pipes: list[int]
) -> dict[str, Any]:
    if not isinstance(tests, Tests):
        return {"outcome": "unfit", "kind": str(tests), "predicted": False}
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (message["memory"], hard))
    per_call = message["call_cpu"]
    ahead = message["predict"] and tests.predictable and per_call is None
    predicted = tests.predicted if ahead else []
    signal.signal(signal.SIGPROF, _out_of_time)
    signal.setitimer(signal.ITIMER_PROF, message["cpu"], 0.2)
    remote: Remote | None = None
    try:
        remote = Remote(pipes, message["pid"], per_call, predicted)
        value = tests.run(remote)
        tests.predicted = remote.made  # loops and computed arguments too
        answer = {"outcome": "passed", "value": value}
    except _Mispredicted:
        tests.predictable = False
        answer = {"outcome": MISPREDICTED}
    except RemoteError as error:
        answer = {"outcome": "raised", "kind": error.kind}
    except wire.WireError as error:
        answer = {"outcome": "unfit", "kind": str(error)}
    except BaseException as error:
        answer = {"outcome": "failed", "kind": type(error).__name__}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    behaviour = remote.behaviour if remote else None
    return {**answer, "predicted": bool(predicted), "behaviour": behaviour}
