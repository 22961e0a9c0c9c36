"""Programs that only compile within a function, as the official checkers run them."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import types

_NAME = "program"


def compiled(source: str, name: str, alone: bool) -> types.CodeType:
    """The code of a program; one that runs `alone` may return and use `nonlocal` at its top level.

    APPS and LiveCodeBench wrap every program that reads and prints in a function. Here one is
    wrapped when it does not compile otherwise: all others run as a script does.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError, OverflowError: it does not compile.
    """
    try:
        return compile(source, name, "exec", dont_inherit=True)
    except SyntaxError:
        if not alone:
            raise
        return compile(_wrapped(ast.parse(source)), name, "exec", dont_inherit=True)


def _wrapped(tree: ast.Module) -> ast.Module:
    """The statements in a function that is called; imports stay outside, where `*` is allowed."""
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    others = [node for node in tree.body if not isinstance(node, (ast.Import, ast.ImportFrom))]
    shell = ast.parse(f"def {_NAME}():\n    pass\n{_NAME}()\n")
    function = shell.body[0]
    assert isinstance(function, ast.FunctionDef)
    function.body = others or function.body
    shell.body[:0] = imports
    return shell
