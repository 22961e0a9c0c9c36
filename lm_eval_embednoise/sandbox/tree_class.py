"""The class of a program: a hash of its tree without the names that it chose."""

from __future__ import annotations

import ast
import hashlib
from typing import Any

from . import scopes

_NAMING = scopes.BINDING | {ast.arg}


def tree_hash(tree: ast.Module) -> str:
    """Hash of a program's tree, whose dead code and annotations are gone (`dead_code`).

    Names that the program binds are numbered by first use within their scope, so a consistent
    renaming changes nothing; builtins, attributes, keywords, imported modules and constants count.
    The tree is changed in place.
    """
    _Normaliser().run(tree)
    return hashlib.blake2b(ast.dump(tree).encode(), digest_size=12).hexdigest()


class _Normaliser:
    """Renames bound names scope by scope; the number says the scope's depth and the order."""

    def __init__(self) -> None:
        self._stack: list[tuple[set[str], dict[str, str]]] = []

    def run(self, tree: ast.Module) -> None:
        self._within(scopes.bound(tree.body), lambda: self._visit_all(tree.body))

    def _within(self, bound: set[str], work: Any) -> None:
        self._stack.append((bound, {}))
        work()
        self._stack.pop()

    def _rename(self, name: str) -> str:
        for depth in range(len(self._stack) - 1, -1, -1):
            bound, numbers = self._stack[depth]
            if name in bound:
                return numbers.setdefault(name, f"_{depth}_{len(numbers)}")
        return name

    def _visit_all(self, nodes: Any) -> None:
        for node in nodes:
            if isinstance(node, ast.AST):
                self._visit(node)

    def _visit(self, node: ast.AST) -> None:
        if type(node) not in _NAMING:  # most nodes: nothing to rename, only to look into
            for child in ast.iter_child_nodes(node):
                self._visit(child)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            node.name = self._rename(node.name)
            self._visit_all(node.decorator_list)
            self._visit_function(node.args, node.body)
        elif isinstance(node, ast.Lambda):
            self._visit_function(node.args, [node.body])
        elif isinstance(node, ast.ClassDef):
            node.name = self._rename(node.name)
            self._visit_all([*node.decorator_list, *node.bases, *node.keywords])
            # A class's names are attributes: seen by name from outside, so they stay.
            self._visit_all(node.body)
        elif isinstance(node, scopes.COMPREHENSIONS):
            self._visit_comprehension(node)
        elif isinstance(node, ast.Name):
            node.id = self._rename(node.id)
        elif isinstance(node, ast.arg):
            node.arg = self._rename(node.arg)
        elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)):
            node.name = node.name and self._rename(node.name)
            self._visit_all(ast.iter_child_nodes(node))
        elif isinstance(node, ast.MatchMapping):
            node.rest = node.rest and self._rename(node.rest)
            self._visit_all(ast.iter_child_nodes(node))
        elif isinstance(node, (ast.Global, ast.Nonlocal)):
            node.names = [self._rename(name) for name in node.names]
        elif isinstance(node, ast.alias):
            bound = node.asname or node.name.split(".")[0]
            node.asname = self._rename(bound) if node.name != "*" else None

    def _visit_function(self, arguments: ast.arguments, body: list[Any]) -> None:
        self._visit_all([*arguments.defaults, *arguments.kw_defaults])
        names = scopes.parameters(arguments)
        bound = {argument.arg for argument in names} | scopes.bound(body)
        self._within(bound, lambda: self._visit_all([*names, *body]))

    def _visit_comprehension(self, node: Any) -> None:
        first = node.generators[0].iter
        self._visit(first)
        bound: set[str] = set()
        for generator in node.generators:
            bound |= scopes.bound([generator.target])
        elements = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]

        def inside() -> None:
            for generator in node.generators:
                if generator.iter is not first:
                    self._visit(generator.iter)
                self._visit(generator.target)
                self._visit_all(generator.ifs)
            self._visit_all(elements)

        self._within(bound, inside)
