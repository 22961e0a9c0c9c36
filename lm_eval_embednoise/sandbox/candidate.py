"""The candidate's process: run the program, answer calls to its functions.

Nothing here is secret and nothing here is trusted once the program has started: all that leaves
this process afterwards are return values, output and the way it ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import types
from typing import Any, NoReturn

from . import wire
from .wrapped import compiled

STARTED = b"{}"


def run(job: dict[str, Any], report: int, pipes: tuple[int, int, int] | None = None) -> NoReturn:
    """Run `job["program"]`; never returns.

    Writes one frame to `report` before any of the program runs, and at most one more, the name of
    the exception that ended it. With `pipes` (calls, returns, done) it then serves calls to the
    program's functions until the other end closes.
    """
    wire.send(report, STARTED)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    name = "__main__" if pipes is None else "candidate"
    module = types.ModuleType(name)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    if job["header"]:
        exec(compile(job["header"], "<header>", "exec", dont_inherit=True), module.__dict__)
    try:
        exec(compiled(job["program"], "<candidate>", pipes is None), module.__dict__)
        if pipes is not None:
            serve(module, *pipes)
        _flush()
    except SystemExit:
        _flush()
        if pipes is not None:
            wire.send_json(report, "SystemExit")
    except BaseException as error:
        _flush()
        wire.send_json(report, type(error).__name__)
    os._exit(0)


def _flush() -> None:
    """Hand buffered output over, as leaving the interpreter would."""
    try:
        sys.stdout.flush()
    except Exception:
        os._exit(1)


def serve(module: types.ModuleType, calls: int, returns: int, done: int) -> None:
    """Answer calls to the program's functions until the tests close the pipe.

    A frame holds one call, or a list of them, after whose last answer a byte goes to `done`.
    """
    encoder = wire.Encoder(keep_objects=True)
    while (frame := wire.receive(calls)) is not None:
        request = json.loads(frame)
        if isinstance(request, list):
            for single in request:
                wire.send(returns, answer(module, single, encoder))
            os.write(done, b".")
        else:
            wire.send(returns, answer(module, request, encoder))


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
        return json.dumps({"raised": type(error).__name__}).encode()


def resolve(module: types.ModuleType, name: str) -> Any:
    """The method `name` of the program's class Solution, or its function of that name."""
    solution: Any = getattr(module, "Solution", None)
    if hasattr(solution, name):
        return getattr(solution(), name)
    if hasattr(module, name):
        return getattr(module, name)
    raise NameError(name)
