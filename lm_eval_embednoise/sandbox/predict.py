"""The calls that a test is sure to make, read off its text: what can be asked all at once.

Only saves round trips: every prediction is held against the call that the test then makes.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from . import wire


def predict(test: str, entry_point: str) -> list[tuple[Any, Any]]:
    """Encoded (args, kwargs) of the leading calls with literal arguments, in order.

    Reads `def check(candidate)`, or plain asserts that call `entry_point`; stops at the first
    statement that is neither an assert nor without effect on the calls.
    """
    try:
        body = ast.parse(test).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    name = entry_point
    for node in body:
        if isinstance(node, ast.FunctionDef) and node.name == "check" and node.args.args:
            body, name = node.body, node.args.args[0].arg
    encoder = wire.Encoder(keep_objects=False)
    calls: list[tuple[Any, Any]] = []
    for statement in body:
        if isinstance(statement, (ast.Pass, ast.Import, ast.ImportFrom)):
            continue
        if isinstance(statement, ast.Assign) and not any(_calls(statement, name)):
            continue
        if not isinstance(statement, ast.Assert):
            break
        try:
            for call in _calls(statement.test, name):
                args = [ast.literal_eval(argument) for argument in call.args]
                kwargs = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
                calls.append((encoder.encode(args), encoder.encode(kwargs)))
        except (ValueError, TypeError, wire.WireError, RecursionError, MemoryError):
            break
    return calls


def _calls(node: ast.AST, name: str) -> Iterator[ast.Call]:
    """Calls of `name` below `node`, in the order of their evaluation."""
    for child in ast.iter_child_nodes(node):
        yield from _calls(child, name)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
        yield node
