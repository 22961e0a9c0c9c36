"""What in a text is not part of a function's program: asserts, examples, reading of input, prose.

A program whose function is called by tests must not stop before they come.
"""

from __future__ import annotations

import ast
import builtins
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .pieces import DEFINITIONS, OUTSIDE, Piece, is_plain, is_string
from .scopes import COMPREHENSIONS, FUNCTIONS, bound, parameters
from .syntax import find

if TYPE_CHECKING:
    from collections.abc import Iterable

_BUILTIN = frozenset(dir(builtins))
_READS = frozenset({"input", "stdin"})
_SETTINGS = ("setrecursionlimit", "set_int_max_str_digits", "stack_size")


@dataclass
class _Names:
    """The names that a piece takes from outside, and those that it binds or works on."""

    used: set[str] = field(default_factory=set)
    bound: set[str] = field(default_factory=set)


def cut_uses(pieces: list[Piece], entry_point: str) -> list[Piece]:
    """The pieces without asserts, examples and prose.

    A statement stays when it defines something, or works on a name that the entry point needs.
    """
    if all(piece.only_defines for piece in pieces):
        return pieces
    try:
        return _Cut(pieces, entry_point).kept()
    except RecursionError:  # nested thousands deep
        return pieces


class _Cut:
    def __init__(self, pieces: list[Piece], entry_point: str) -> None:
        self._pieces = pieces
        self._names = [_names(piece) for piece in pieces]
        binding: dict[str, list[int]] = {}  # name → pieces
        self._users: dict[str, set[str]] = {}  # name → names whose definitions mention it
        for number, one in enumerate(self._names):
            for name in one.bound:
                binding.setdefault(name, []).append(number)
            for name in one.used:
                self._users.setdefault(name, set()).update(one.bound)
        self._known = _BUILTIN | set(binding)
        nodes = [node for piece in pieces for node in piece.nodes]
        owner = find(nodes, entry_point)
        owners = [n.name for n in nodes if isinstance(n, ast.ClassDef) and owner in n.body]
        asked = {entry_point, *owners}
        self._needed = self._reach(asked, binding) - (_BUILTIN - set(binding))
        self._helpful = set[str]()  # what leads to a name that is needed
        self._spread(self._helpful, self._needed - asked)
        self._spoilt = set[str]()  # what leads to a use of the function, or reads input
        self._spread(self._spoilt, asked | _READS)
        self._star = any(isinstance(n, ast.ImportFrom) and n.names[0].name == "*" for n in nodes)

    def _reach(self, names: Iterable[str], binding: dict[str, list[int]]) -> set[str]:
        """The names, and all that their definitions mention in turn."""
        reached, todo, seen = set(names), list(names), set[int]()
        while todo:
            for number in binding.get(todo.pop(), ()):
                if number not in seen:
                    seen.add(number)
                    fresh = self._names[number].used - reached
                    reached |= fresh
                    todo.extend(fresh)
        return reached

    def _spread(self, reached: set[str], names: Iterable[str]) -> None:
        """Add the names, and all whose definitions mention them in turn."""
        todo = [name for name in names if name not in reached]
        reached.update(todo)
        while todo:
            fresh = self._users.get(todo.pop(), set()) - reached
            reached |= fresh
            todo.extend(fresh)

    def kept(self) -> list[Piece]:
        kept = []
        for piece, own in zip(self._pieces, self._names, strict=True):
            if piece.only_defines or self._stays(piece, own):
                kept.append(piece)
            else:
                self._spread(self._spoilt, own.bound - self._needed)
        return kept

    def _stays(self, piece: Piece, own: _Names) -> bool:
        nodes = piece.nodes
        if any(isinstance(node, (*OUTSIDE, ast.Assert)) for node in nodes):
            return False
        if all(isinstance(node, ast.If) and _is_main(node.test) for node in nodes):
            return True  # is not run: the program is imported
        if any(isinstance(node, ast.AnnAssign) and node.value is None for node in nodes):
            return False
        if all(isinstance(node, ast.Expr) and is_plain(node.value) for node in nodes):
            return all(isinstance(node, ast.Expr) and is_string(node.value) for node in nodes)
        reads = own.used & _READS
        if own.bound & self._needed and not (isinstance(nodes[0], ast.Expr) and reads):
            return True
        if own.used & self._spoilt:
            return False
        if any(isinstance(node, ast.Expr) for node in nodes):
            return bool(own.used & self._helpful) or _changes_settings(nodes)
        return self._star or own.used <= self._known


def _is_main(test: ast.expr) -> bool:
    return any(isinstance(node, ast.Name) and node.id == "__name__" for node in ast.walk(test))


def _changes_settings(nodes: Iterable[ast.AST]) -> bool:
    return any(
        isinstance(node, ast.Attribute) and node.attr in _SETTINGS
        for top in nodes
        for node in ast.walk(top)
    )


def _names(piece: Piece) -> _Names:
    names = _Names()
    for top in piece.nodes:
        names.used |= _free(top)
        names.bound |= bound([top])
        if isinstance(top, DEFINITIONS):
            continue
        for node in ast.walk(top):  # `table[i] = x`, `table.append(x)` work on a name
            target: ast.AST | None = None
            if isinstance(node, ast.Call):
                target = node.func
            elif isinstance(node, (ast.Attribute, ast.Subscript)):
                target = None if isinstance(node.ctx, ast.Load) else node
            if isinstance(target, (ast.Attribute, ast.Subscript)):
                while isinstance(target, (ast.Attribute, ast.Subscript)):
                    target = target.value
                if isinstance(target, ast.Name):
                    names.bound.add(target.id)
    return names


def _free(node: ast.AST) -> set[str]:
    """The names that a statement or expression takes from outside itself."""
    if isinstance(node, ast.Name):
        return {node.id} if isinstance(node.ctx, ast.Load) else set()
    free: set[str] = set()
    for child in ast.iter_child_nodes(node):
        free |= _free(child)
    if isinstance(node, ast.Attribute) and node.attr == "stdin":
        free.add(node.attr)
    if isinstance(node, (*FUNCTIONS, ast.Lambda)):
        body = node.body if isinstance(node.body, list) else [node.body]
        return free - {parameter.arg for parameter in parameters(node.args)} - bound(body)
    if isinstance(node, COMPREHENSIONS):
        return free - bound([generator.target for generator in node.generators])
    return free
