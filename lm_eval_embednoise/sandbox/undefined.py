"""A name that a program reads and that nothing binds: where it is read, the program raises.

Read off Python's own symbol tables. A name counts as bound wherever anything in the program could
bind it; a program that could bind names by a string, or imports `*`, is not looked into.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import symtable
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING

from . import scopes

if TYPE_CHECKING:
    from collections.abc import Iterator

# Of a module and of a class's body; `exit` and `quit` are builtins of every script.
_GIVEN = frozenset(dir(builtins)) | {
    *("__annotations__", "__builtins__", "__class__", "__doc__", "__file__", "__loader__"),
    *("__module__", "__name__", "__package__", "__qualname__", "__spec__", "exit", "quit"),
}
_BY_STRING = frozenset({"exec", "globals", "locals", "vars", "__builtins__", "builtins", "setattr"})
_BY_ATTRIBUTE = frozenset({"__dict__", "__globals__", "f_globals", "modules"})
_CAUGHT = frozenset({"NameError", "Exception", "BaseException"})


def undefined_name(source: str, live: ast.Module, header: str = "") -> str | None:
    """The first name, in the order of the alphabet, that is read and never bound; None without.

    A name is no mistake in dead code, nor where its absence is provided for: in the body of a `try`
    that catches `NameError`.

    Args:
        source: a program that compiles.
        live: its tree without dead code.
        header: imports that the benchmark puts before it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SyntaxWarning
            module = symtable.symtable(source, "<candidate>", "exec")
    except SyntaxError:  # compiles within a function only
        return None
    read, bound = _read_and_bound(module)
    missing = read - bound - _GIVEN - _names_of(header)
    if not missing or not read.isdisjoint(_BY_STRING) or _binds_out_of_sight(live):
        return None
    missing &= {node.id for node in ast.walk(live) if isinstance(node, ast.Name)}
    return min(missing - _provided_for(live), default=None)


def _read_and_bound(module: symtable.SymbolTable) -> tuple[set[str], set[str]]:
    """The module's names that are read anywhere, and those that are bound anywhere."""
    read: set[str] = set()
    bound: set[str] = set()
    for table in _tables(module):
        for symbol in table.get_symbols():
            if not symbol.is_global():
                continue
            if symbol.is_referenced():
                read.add(symbol.get_name())
            if symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace():
                bound.add(symbol.get_name())
    return read, bound


def _tables(module: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    """The tables of all scopes, but for annotations that are not evaluated."""
    todo = [module]
    while todo:
        table = todo.pop()
        if "annotation" not in str(table.get_type()).lower():
            yield table
            todo += table.get_children()


@lru_cache(maxsize=8)
def _names_of(header: str) -> frozenset[str]:
    """The names that a benchmark's imports bind."""
    tree = ast.parse(header)
    names = scopes.bound(tree.body)
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and node.names[0].name == "*":
            module = importlib.import_module(node.module)
            names |= set(getattr(module, "__all__", dir(module)))
    return frozenset(names)


def _binds_out_of_sight(tree: ast.Module) -> bool:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            return True
        if isinstance(node, ast.Attribute) and node.attr in _BY_ATTRIBUTE:
            return True
    return False


def _provided_for(tree: ast.Module) -> set[str]:
    """The names that are read where an error about them is caught."""
    return {
        inner.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Try) and any(map(_catches, node.handlers))
        for top in node.body
        for inner in ast.walk(top)
        if isinstance(inner, ast.Name)
    }


def _catches(handler: ast.ExceptHandler) -> bool:
    """Whether a handler catches NameError."""
    if handler.type is None:
        return True
    named = {inner.id for inner in ast.walk(handler.type) if isinstance(inner, ast.Name)}
    return not named.isdisjoint(_CAUGHT)
