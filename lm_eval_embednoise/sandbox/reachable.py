"""A program without the code that can't be reached, and with each import a statement of its own.

Cut are: what follows `return`, `raise`, `break`, `continue` or an `if` whose branches both end so;
branches that a constant test never takes (`if False`, `while 0`), and, in a program whose functions
are called from outside, those of `if __name__ == "__main__"`. Type annotations go too.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

from . import scopes

if TYPE_CHECKING:
    from collections.abc import Callable

_ENDS = (ast.Return, ast.Raise, ast.Break, ast.Continue)
_YIELDS = (ast.Yield, ast.YieldFrom)


def cut_unreachable(tree: ast.Module, imported: bool) -> None:
    """Change the tree in place.

    Args:
        tree: the program.
        imported: it is imported, not run as a script: its `__name__` is not `__main__`.
    """
    _Cutter(imported).whole(tree)


class _Cutter:
    def __init__(self, imported: bool) -> None:
        self._imported = imported
        self._cut: list[ast.stmt] = []  # of the function at hand

    def whole(self, tree: ast.Module) -> None:
        tree.body, _ = self._block(tree.body, in_class=False)

    def _block(self, nodes: list[ast.stmt], in_class: bool) -> tuple[list[ast.stmt], bool]:
        """What of a block can be reached, and whether its end can't."""
        kept: list[ast.stmt] = []
        for place, node in enumerate(nodes):
            taken = self._taken(node)
            if taken is None:
                kept += self._plain(node, in_class)
                ended = self._inside(node, in_class)
            else:
                chosen, ended = self._block(taken, in_class)
                kept += chosen
            if ended:
                self._cut += nodes[place + 1 :]
                return kept, True
        return kept, False

    def _taken(self, node: ast.stmt) -> list[ast.stmt] | None:
        """The only branch that a statement with a constant test takes; None without such a test."""
        if not isinstance(node, (ast.If, ast.While)):
            return None
        truth = self._truth(node.test)
        if truth is None or (truth and isinstance(node, ast.While)):
            return None
        self._cut += node.orelse if truth else node.body
        return node.body if truth else node.orelse

    def _truth(self, test: ast.expr) -> bool | None:
        if isinstance(test, ast.Constant):
            return bool(test.value)
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            inner = self._truth(test.operand)
            return None if inner is None else not inner
        if self._imported and isinstance(test, ast.Compare) and len(test.ops) == 1:
            sides = (test.left, test.comparators[0])
            named = any(isinstance(s, ast.Name) and s.id == "__name__" for s in sides)
            main = any(isinstance(s, ast.Constant) and s.value == "__main__" for s in sides)
            if named and main and isinstance(test.ops[0], (ast.Eq, ast.NotEq)):
                return isinstance(test.ops[0], ast.NotEq)
        return None

    def _plain(self, node: ast.stmt, in_class: bool) -> list[ast.stmt]:
        """The statement without an annotation; an import of several names as so many imports."""
        if isinstance(node, ast.Import) and len(node.names) > 1:
            return [ast.Import([alias]) for alias in node.names]
        if isinstance(node, ast.ImportFrom) and len(node.names) > 1:
            return [ast.ImportFrom(node.module, [alias], node.level) for alias in node.names]
        if isinstance(node, ast.AnnAssign):
            if in_class:  # a field of a dataclass, say
                node.annotation = ast.Constant(None)
                return [node]
            if node.value is not None:
                return [ast.Assign([node.target], node.value)]
            if isinstance(node.target, ast.Name):
                self._cut.append(node)  # does nothing, but makes the name a local one
                return []
        return [node]

    def _inside(self, node: ast.stmt, in_class: bool) -> bool:
        """Cut what a statement contains; whether nothing after it is reached."""
        if isinstance(node, _ENDS):
            return True
        if isinstance(node, scopes.FUNCTIONS):
            self._function(node)
        elif isinstance(node, ast.ClassDef):
            self._without_losses(lambda: self._body_of(node, in_class=True))
        elif isinstance(node, ast.If):
            node.body, ended = self._block(node.body, in_class)
            node.orelse, other = self._block(node.orelse, in_class)
            node.body = node.body or [ast.Pass()]
            return ended and other
        else:
            self._body_of(node, in_class)
        return False

    def _body_of(self, node: Any, in_class: bool) -> None:
        """Cut within each block of a statement."""
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            if block:
                reached, _ = self._block(block, in_class)
                setattr(node, field, reached or ([ast.Pass()] if field == "body" else []))
        for part in (*getattr(node, "handlers", ()), *getattr(node, "cases", ())):
            self._body_of(part, in_class)

    def _without_losses(self, work: Callable[[], None]) -> list[ast.stmt]:
        """Do the work on a scope of its own; what it cut."""
        outer, self._cut = self._cut, []
        work()
        cut, self._cut = self._cut, outer
        return cut

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        node.returns = None
        for parameter in scopes.parameters(node.args):
            parameter.annotation = None
        cut = self._without_losses(lambda: self._body_of(node, in_class=False))
        if cut:
            _put_back(node, cut)


def _put_back(node: ast.FunctionDef | ast.AsyncFunctionDef, cut: list[ast.stmt]) -> None:
    """Keep what unreachable statements say about their whole function, in a form of its own.

    A name that only they bind is still a local one, a function with `yield` is still a generator,
    and what they declare is declared.
    """
    own = {parameter.arg for parameter in scopes.parameters(node.args)}
    own |= {name for said in _declarations(node.body) for name in said.names}
    lost = scopes.bound(cut) - own - scopes.bound(node.body)
    read = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} if lost else set()
    unreached: list[ast.stmt] = [
        ast.Assign([ast.Name(name, ast.Store())], ast.Constant(None))
        for name in sorted(lost & read)
    ]
    if _yields(cut) and not _yields(node.body):
        unreached.append(ast.Expr(ast.Yield()))
    put: list[ast.stmt] = [*_declarations(cut)]
    if unreached:
        put.append(ast.If(ast.Constant(value=False), unreached, []))
    node.body[:0] = put


def _declarations(nodes: list[ast.stmt]) -> list[ast.Global | ast.Nonlocal]:
    own = (inner for top in nodes for inner in _own(top))
    return [inner for inner in own if isinstance(inner, (ast.Global, ast.Nonlocal))]


def _yields(nodes: list[ast.stmt]) -> bool:
    return any(isinstance(inner, _YIELDS) for top in nodes for inner in _own(top))


def _own(top: ast.AST) -> list[ast.AST]:
    """A statement and all in it that belongs to the same scope."""
    found, todo = [], [top]
    while todo:
        node = todo.pop()
        found.append(node)
        if not isinstance(node, (*scopes.SCOPES, *scopes.COMPREHENSIONS)):
            todo.extend(ast.iter_child_nodes(node))
    return found
