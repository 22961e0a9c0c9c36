"""What can be read off a program without running it: does it compile, is it trivial, its tree.

Runs inside the sandbox, in a process of its own that never runs a program: a parser can be crashed
by hostile text, and must not take scoring along. What it finds no program can forge.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import resource
import signal
import sys
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from . import wire
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
        facts = known(job["program"], job["entry_point"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        wire.send_json(control.fileno(), facts)


def examine(source: str, entry_point: str | None) -> dict[str, Any]:
    """Static facts: `compiled`, `defined` (the entry point), `trivial`, `ast` (hash of the tree).

    `compiled` means that `compile` accepts the whole program. Without an entry point the program
    itself is the body, `defined` is true, and it may return at its top level.
    """
    facts: dict[str, Any] = {"compiled": False, "defined": False, "trivial": True, "ast": None}
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
        function = _find(tree.body, entry_point)
        facts["defined"] = function is not None
        body = [] if function is None else getattr(function, "body", [])
    facts["trivial"] = not any(_does_something(node) for node in body)
    with contextlib.suppress(RecursionError):  # nested thousands deep: compiles, has no class
        facts["ast"] = tree_hash(tree)
    return facts


def _find(body: list[ast.stmt], name: str) -> ast.AST | None:
    """The last definition of `name`: at the top level, else as a method of class Solution."""
    definition: ast.AST | None = None
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            if node.name == name:
                definition = node
            elif definition is None and isinstance(node, ast.ClassDef) and node.name == "Solution":
                definition = _find(node.body, name)
        elif isinstance(node, ast.Assign):
            if any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
                definition = ast.Module(body=[node], type_ignores=[])
        elif isinstance(node, (ast.Import, ast.ImportFrom)) and any(
            (alias.asname or alias.name) == name for alias in node.names
        ):
            definition = ast.Module(body=[ast.Expr(ast.Name(name, ast.Load()))], type_ignores=[])
    return definition


def _does_something(node: ast.stmt) -> bool:
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


def tree_hash(tree: ast.Module) -> str:
    """Hash of a program's tree without names, comments, docstrings, annotations and layout.

    Names that the program binds are numbered by first use within their scope, so a consistent
    renaming changes nothing; builtins, attributes, keywords, imported modules and constants count.
    The tree is changed in place.
    """
    _Normaliser().run(tree)
    return hashlib.blake2b(ast.dump(tree).encode(), digest_size=12).hexdigest()


_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_BINDING: frozenset[type] = frozenset(
    {
        *(*_SCOPES, *_COMPREHENSIONS, ast.Name, ast.ExceptHandler, ast.MatchAs, ast.MatchStar),
        *(ast.MatchMapping, ast.alias, ast.Global, ast.Nonlocal),
    }
)
_NAMING = _BINDING | {ast.arg, ast.AnnAssign}


class _Normaliser:
    """Renames bound names scope by scope; the number says the scope's depth and the order."""

    def __init__(self) -> None:
        self._stack: list[tuple[set[str], dict[str, str]]] = []

    def run(self, tree: ast.Module) -> None:
        self._within(_bound(tree.body), lambda: self._visit_all(tree.body))
        _strip_docstring(tree.body)

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
            node.returns = None
            node.type_comment = None
            self._visit_all(node.decorator_list)
            self._visit_function(node.args, node.body)
            _strip_docstring(node.body)
        elif isinstance(node, ast.Lambda):
            self._visit_function(node.args, [node.body])
        elif isinstance(node, ast.ClassDef):
            node.name = self._rename(node.name)
            self._visit_all([*node.decorator_list, *node.bases, *node.keywords])
            # A class's names are attributes: seen by name from outside, so they stay.
            self._visit_all(node.body)
            _strip_docstring(node.body)
        elif isinstance(node, _COMPREHENSIONS):
            self._visit_comprehension(node)
        elif isinstance(node, ast.Name):
            node.id = self._rename(node.id)
        elif isinstance(node, ast.arg):
            node.arg, node.annotation = self._rename(node.arg), None
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
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
            self._visit_all(ast.iter_child_nodes(node))

    def _visit_function(self, arguments: ast.arguments, body: list[Any]) -> None:
        self._visit_all([*arguments.defaults, *arguments.kw_defaults])
        names = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        names += [extra for extra in (arguments.vararg, arguments.kwarg) if extra]
        bound = {argument.arg for argument in names} | _bound(body)
        self._within(bound, lambda: self._visit_all([*names, *body]))

    def _visit_comprehension(self, node: Any) -> None:
        first = node.generators[0].iter
        self._visit(first)
        bound: set[str] = set()
        for generator in node.generators:
            bound |= _bound([generator.target])
        elements = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]

        def inside() -> None:
            for generator in node.generators:
                if generator.iter is not first:
                    self._visit(generator.iter)
                self._visit(generator.target)
                self._visit_all(generator.ifs)
            self._visit_all(elements)

        self._within(bound, inside)


def _bound(nodes: list[Any]) -> set[str]:
    """The names that these nodes bind in their own scope, those of nested scopes left out."""
    names: set[str] = set()
    outer: set[str] = set()
    todo = list(nodes)
    while todo:
        node = todo.pop()
        if type(node) not in _BINDING:
            todo.extend(ast.iter_child_nodes(node))
            continue
        if isinstance(node, _SCOPES):
            if not isinstance(node, ast.Lambda):
                names.add(node.name)
            continue
        if isinstance(node, _COMPREHENSIONS):
            # An assignment expression inside binds in the enclosing scope.
            walruses = (n for n in ast.walk(node) if isinstance(n, ast.NamedExpr))
            names |= {w.target.id for w in walruses}
            continue
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            names.add(node.id)
        elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
            names.add(node.name)
        elif isinstance(node, ast.MatchMapping) and node.rest:
            names.add(node.rest)
        elif isinstance(node, ast.alias) and node.name != "*":
            names.add(node.asname or node.name.split(".")[0])
        elif isinstance(node, (ast.Global, ast.Nonlocal)):
            outer |= set(node.names)
        todo.extend(ast.iter_child_nodes(node))
    return names - outer


def _strip_docstring(body: list[ast.stmt]) -> None:
    first = body[0].value if body and isinstance(body[0], ast.Expr) else None
    if isinstance(first, ast.Constant) and isinstance(first.value, str):
        del body[0]
