"""The program's process: run the program, then end as Python ends, or answer calls to it.

Nothing here is secret and nothing here is trusted once the program has started: all that leaves
this process afterwards are return values, output and the way it ended.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import gc
import json
import os
import sys
import types
import weakref
from typing import Any, NoReturn

from . import wire
from .wrapped import compiled

STARTED = b"{}"
NAME = "program.py"  # what the program sees as its file
NAME_LENGTH = 200  # an exception's name may be as long as the program likes
# What most objects are that a program leaves: nothing is done when these end.
_PLAIN: frozenset[type] = frozenset(
    {dict, list, tuple, set, frozenset, types.FunctionType, types.MethodType, types.CellType}
)


def run(job: dict[str, str], report: int, pipes: tuple[int, int] | None = None) -> None:
    """Run `job["program"]`, the header before it.

    Writes one frame to `report` before any of the program runs, and at most one more, the name of
    the exception that ended it. With `pipes` (calls, returns) it then serves calls to the program's
    functions until the other end closes, and never returns.

    Without pipes it returns, or raises what the program raised, to the top of the interpreter,
    which then does what it does after every script: print the traceback, join the threads, run the
    `atexit` functions, collect garbage, flush, and exit with the right status. Where none of this
    could be seen from outside it is left out: it takes several times as long as a small program.
    """
    wire.send(report, STARTED)
    name = "__main__" if pipes is None else "candidate"
    module = types.ModuleType(name)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    sys.argv[:] = [NAME]
    module.__file__ = NAME
    known = atexit._ncallbacks()
    if job["header"]:
        exec(compile(job["header"], "<header>", "exec", dont_inherit=True), module.__dict__)
    try:
        try:
            exec(compiled(job["program"], "<candidate>", pipes is None), module.__dict__)
        finally:
            _flush()
        if pipes is not None:
            serve(module, *pipes)
    except BaseException as error:
        wire.send_json(report, type(error).__name__[:NAME_LENGTH])
        if pipes is not None:
            _flush_and_leave()
        _leave_at_once(_status_after(error), known)
        raise
    if pipes is not None:
        _flush_and_leave()
    _leave_at_once(0, known)


def read_report(fd: int) -> tuple[Any, Any]:
    """For the worker: why a program was not started (ours), its end (which it may have forged)."""
    os.set_blocking(fd, False)  # a stray process may still hold the other end
    try:
        failure = wire.receive_json(fd)
    except BlockingIOError:
        return None, None
    try:
        error = wire.receive_json(fd)
    except (BlockingIOError, ValueError, RecursionError, wire.WireError):
        error = None
    return failure, error if isinstance(error, str) else None


def _flush() -> None:
    """What the interpreter does after a script, before it prints a traceback."""
    for name in ("stderr", "stdout"):
        with contextlib.suppress(BaseException):
            getattr(sys, name).flush()


def _flush_and_leave() -> NoReturn:
    """The end of a program that was there to be called: the caller has its answers."""
    _flush()
    os._exit(0)


def _status_after(error: BaseException) -> int | None:
    """The exit status after an exception; None where only the interpreter should say."""
    if isinstance(error, SystemExit):
        code = error.code
        if code is None:
            return 0
        return code & 0xFF if type(code) is int and abs(code) < 1 << 31 else None
    plain = sys.excepthook is sys.__excepthook__ and not isinstance(error, KeyboardInterrupt)
    return 1 if plain else None


def _leave_at_once(status: int | None, known: int) -> None:
    """Flush and exit, if the interpreter's own way of ending would do nothing else to be seen.

    `known` is the number of `atexit` functions that are not the program's.
    """
    try:
        if status is None or _something_is_left(known):
            return
        sys.stdout.flush()
    except BaseException:
        return
    os._exit(status)


def _something_is_left(known: int) -> bool:
    """Whether threads, `atexit` functions, finalizers or files of the program are still there."""
    threading: Any = sys.modules.get("threading")
    if _thread._count() or (threading and threading._threading_atexits):
        return True
    if atexit._ncallbacks() != known or gc.callbacks:
        return True
    if sys.stdout is not sys.__stdout__ or sys.stderr is not sys.__stderr__:
        return True
    objects = gc.get_objects()  # not those from before the fork: the worker has frozen them
    kinds = set(map(type, objects)) - _PLAIN
    if any(hasattr(kind, "__del__") for kind in kinds):  # generators and files have one too
        return True
    if any(issubclass(kind, type) for kind in kinds) and any(
        isinstance(o, type) and hasattr(o, "__del__") for o in objects
    ):
        return True
    return any(issubclass(kind, weakref.ref) for kind in kinds) and any(
        isinstance(o, weakref.ref) and o.__callback__ is not None for o in objects
    )


def serve(module: types.ModuleType, calls: int, returns: int) -> None:
    """Answer one call to the program's functions after the other, until the tests close the pipe.

    The tests send a call when they have the answer to the one before: a program can't see what it
    will be asked later.
    """
    encoder = wire.Encoder(keep_objects=True)
    while (frame := wire.receive(calls)) is not None:
        wire.send(returns, answer(module, json.loads(frame), encoder))


def answer(module: types.ModuleType, request: dict[str, Any], encoder: wire.Encoder) -> bytes:
    """Make one call; what it returned, or the name of what it raised."""
    arguments = wire.decode(request["args"], encoder.objects)
    keywords = wire.decode(request["kwargs"], encoder.objects)
    try:
        value = resolve(module, request["name"])(*arguments, **keywords)
        reply: dict[str, Any] = {"value": encoder.encode(value)}
        if any(isinstance(a, (list, dict, set)) for a in arguments):
            after = encoder.encode(arguments)
            if after != request["args"]:
                reply["changed"] = after
        return json.dumps(reply).encode()
    except BaseException as error:
        return json.dumps({"raised": type(error).__name__[:NAME_LENGTH]}).encode()


def resolve(module: types.ModuleType, name: str) -> Any:
    """The method `name` of the program's class Solution, or its function of that name."""
    solution: Any = getattr(module, "Solution", None)
    if hasattr(solution, name):
        return getattr(solution(), name)
    if hasattr(module, name):
        return getattr(module, name)
    raise NameError(name)
