"""What can be read off a program without running it: whether it compiles, its names, its tree.

Runs inside the sandbox, in a process of its own that never runs a program: a parser can be crashed
by hostile text, and must not take scoring along. What it finds no program can forge.
"""

from __future__ import annotations

import ast
import contextlib
import resource
import signal
import sys
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from . import wire
from .dead_code import without_dead_code
from .tree_class import tree_hash
from .undefined import undefined_name
from .wrapped import compiled

if TYPE_CHECKING:
    import socket

_DEEP = 20_000


def serve(control: socket.socket) -> None:
    """Answer with the facts of one program after the other until the worker closes `control`.

    A program that takes all its processor time to be read ends this process, and the worker.
    """
    sys.setrecursionlimit(_DEEP)
    known = lru_cache(maxsize=4)(examine)  # a program is tried on one input after the other
    while (job := wire.receive_json(control.fileno())) is not None:
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (job["memory"], hard))
        signal.setitimer(signal.ITIMER_PROF, job["cpu"])
        facts = known(job["program"], job["entry_point"], job["header"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        wire.send_json(control.fileno(), facts)


def examine(source: str, entry_point: str | None, header: str = "") -> dict[str, Any]:
    """Static facts: `compiled`, `defined` (the entry point), `trivial`, `undefined`, `ast`.

    `compiled` means that `compile` accepts the whole program. Without an entry point the program
    itself is the body, `defined` is true, and it may return at its top level. `undefined` is a name
    that is read and bound nowhere, neither there nor in the benchmark's `header`; `ast` the hash of
    the tree.
    """
    facts: dict[str, Any] = {"compiled": False, "defined": False, "trivial": True}
    facts |= {"undefined": None, "ast": None}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SyntaxWarning: `x is 1` still compiles
            tree = ast.parse(source)
            compiled(source, "<candidate>", alone=entry_point is None)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return facts
    facts["compiled"] = True
    body, facts["defined"] = tree.body, True
    if entry_point is not None:
        function = find(tree.body, entry_point)
        facts["defined"] = function is not None
        body = [] if function is None else getattr(function, "body", [])
    facts["trivial"] = not any(does_something(node) for node in body)
    with contextlib.suppress(RecursionError):  # nested thousands deep: compiles, has no class
        without_dead_code(tree, entry_point)
        facts["undefined"] = undefined_name(source, tree, header)
        facts["ast"] = tree_hash(tree)
    return facts


def find(body: list[ast.stmt], name: str) -> ast.AST | None:
    """The last definition of `name`: at the top level, else as a method of class Solution."""
    definition: ast.AST | None = None
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            if node.name == name:
                definition = node
            elif definition is None and isinstance(node, ast.ClassDef) and node.name == "Solution":
                definition = find(node.body, name)
        elif isinstance(node, ast.Assign):
            if any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
                definition = ast.Module(body=[node], type_ignores=[])
        elif isinstance(node, (ast.Import, ast.ImportFrom)) and any(
            (alias.asname or alias.name) == name for alias in node.names
        ):
            definition = ast.Module(body=[ast.Expr(ast.Name(name, ast.Load()))], type_ignores=[])
    return definition


def does_something(node: ast.stmt) -> bool:
    """Whether a statement is more than a docstring, `pass`, a bare return or a refusal."""
    if isinstance(node, (ast.Pass, ast.Import, ast.ImportFrom)):
        return False
    if isinstance(node, ast.Expr):
        return not isinstance(node.value, ast.Constant)
    if isinstance(node, ast.Return):
        value = node.value
        return not (value is None or (isinstance(value, ast.Constant) and value.value is None))
    if isinstance(node, ast.Raise) and node.exc is not None:
        return "NotImplemented" not in ast.dump(node.exc)
    return True
