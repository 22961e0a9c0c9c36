"""Which names a program binds in which scope, by Python's rules; nothing is run."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
SCOPES = (*FUNCTIONS, ast.Lambda, ast.ClassDef)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
BINDING: frozenset[type] = frozenset(
    {
        *(*SCOPES, *COMPREHENSIONS, ast.Name, ast.ExceptHandler, ast.MatchAs, ast.MatchStar),
        *(ast.MatchMapping, ast.alias, ast.Global, ast.Nonlocal),
    }
)


def bound(nodes: Iterable[ast.AST]) -> set[str]:
    """The names that these nodes bind in their own scope, those of nested scopes left out."""
    names: set[str] = set()
    outer: set[str] = set()
    todo = list(nodes)
    while todo:
        node = todo.pop()
        if type(node) not in BINDING:
            todo.extend(ast.iter_child_nodes(node))
            continue
        if isinstance(node, SCOPES):
            if not isinstance(node, ast.Lambda):
                names.add(node.name)
            continue
        if isinstance(node, COMPREHENSIONS):
            # An assignment expression inside binds in the enclosing scope.
            walruses = (n for n in ast.walk(node) if isinstance(n, ast.NamedExpr))
            names |= {w.target.id for w in walruses}
            continue
        if isinstance(node, (ast.Global, ast.Nonlocal)):
            outer |= set(node.names)
        elif not (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)):
            names |= named_by(node)
        todo.extend(ast.iter_child_nodes(node))
    return names - outer


def named_by(node: ast.AST) -> set[str]:
    """The names that a node itself binds, by a string of its own; none for most nodes."""
    if isinstance(node, ast.Name):
        return {node.id}
    if isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)):
        return {node.name} if node.name else set()
    if isinstance(node, ast.MatchMapping):
        return {node.rest} if node.rest else set()
    if isinstance(node, ast.alias):
        return {node.asname or node.name.split(".")[0]} - {"*"}
    return set()


def parameters(arguments: ast.arguments) -> list[ast.arg]:
    """All parameters of a function, in the order of their kinds."""
    listed = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return listed + [extra for extra in (arguments.vararg, arguments.kwarg) if extra]
