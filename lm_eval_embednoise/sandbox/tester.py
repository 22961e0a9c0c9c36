"""The tests' process: holds the expected values and calls the program in the other process.

The program never shares an address space with its tests. What it returns arrives as plain data, so
`==`, `assert` and everything else here mean what they say whatever the program has patched.

One such process serves all programs of a worker, and keeps a problem's tests while programs of that
problem follow each other. A call goes out when the one before has been answered and looked at: the
arguments of a later call may hold the answer to an earlier one.
"""

from __future__ import annotations

import builtins
import hashlib
import json
import os
import random
import resource
import signal
import socket
import struct
import traceback
from typing import TYPE_CHECKING, Any

from . import wire
from .idle import CallCounter, cpu_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

_LOOK_SECONDS = 0.05
_KIND_LENGTH = 200
DIED = "died"
TIME_IS_UP = "time is up"


class RemoteError(Exception):
    """The program raised, or ended, while it was being called."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind[:_KIND_LENGTH])
        self.kind = kind[:_KIND_LENGTH]


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
    """

    def __init__(
        self, pipes: list[int], pid: int, seconds: float | None, counter: CallCounter
    ) -> None:
        self._calls, returns = pipes
        self._frames = wire.Reader(returns)
        self._pid, self._seconds = pid, seconds
        self._counter = counter
        self._encoder = wire.Encoder(keep_objects=False)
        self._seen = hashlib.blake2b(digest_size=12)
        self._looked = False

    def function(self, name: str) -> Callable[..., Any]:
        """A function that hands its arguments to the program's `name` and returns its answer."""

        def call(*args: Any, **kwargs: Any) -> Any:
            arguments = list(args)
            sent = {"args": self._encoder.encode(arguments), "kwargs": self._encoder.encode(kwargs)}
            return self._ask(json.dumps({"name": name, **sent}).encode(), arguments)

        return call

    def _ask(self, call: bytes, arguments: list[Any]) -> Any:
        self._counter.step()
        try:
            frame = self._exchange(call)
        except wire.WireError as error:
            raise RemoteError(DIED) from error
        finally:
            self._counter.step()
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

    def _exchange(self, call: bytes) -> bytes | None:
        if self._seconds is None:
            self._send(call)
            return self._frames.next()
        until = cpu_seconds(self._pid) + self._seconds
        self._send(call)
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


def serve(control: socket.socket, jobs: int, counter: CallCounter) -> None:
    """Try one program after the other until the worker closes `control`.

    A message brings the pipes to a program and says how to try it; where it says so, the tests are
    the next frame on `jobs`, which no other process reads. One answer goes back.
    """
    wire.unlimited_digits()
    tests: Tests | wire.WireError | None = None
    while (received := _receive(control)) is not None:
        message, pipes = received
        try:
            if message["new_tests"]:
                try:
                    tests = Tests(wire.receive_json(jobs), message["entry_point"])
                except wire.WireError as error:
                    tests = error
            answer = _try_program(tests, message, pipes, counter)
        except BaseException:
            answer = {"failure": traceback.format_exc()}
        counter.reset()
        for fd in pipes:
            os.close(fd)
        wire.send_json(control.fileno(), answer)


def _receive(control: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """The next message, and the descriptors that came with it."""
    data, ancillary, _, _ = control.recvmsg(1, socket.CMSG_SPACE(2 * 4))
    if not data:
        return None
    pipes = [fd for _, _, content in ancillary for fd in struct.unpack("2i", content)]
    return wire.receive_json(control.fileno()), pipes


def send(control: socket.socket, message: dict[str, Any], pipes: list[int]) -> None:
    """Hand a program to the tests' process (the worker's side)."""
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("2i", *pipes))
    data = b"." + wire.frames(json.dumps(message).encode())
    sent = control.sendmsg([data], [rights])
    wire.write_all(control.fileno(), data[sent:])


def _out_of_time(*_: object) -> None:
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # tests that catch this don't survive the next
    raise RemoteError(TIME_IS_UP)


def _try_program(
    tests: Tests | wire.WireError | None,
    message: dict[str, Any],
    pipes: list[int],
    counter: CallCounter,
) -> dict[str, Any]:
    if not isinstance(tests, Tests):
        return {"outcome": "unfit", "kind": str(tests)}
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (message["memory"], hard))
    signal.signal(signal.SIGPROF, _out_of_time)
    signal.setitimer(signal.ITIMER_PROF, message["cpu"], 0.2)
    remote: Remote | None = None
    try:
        remote = Remote(pipes, message["pid"], message["call_cpu"], counter)
        answer = {"outcome": "passed", "value": tests.run(remote)}
    except RemoteError as error:
        answer = {"outcome": "raised", "kind": error.kind}
    except wire.WireError as error:
        answer = {"outcome": "unfit", "kind": str(error)}
    except BaseException as error:
        answer = {"outcome": "failed", "kind": type(error).__name__}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return {**answer, "behaviour": remote.behaviour if remote else None}
