"""A program without what has no part in its answer: junk must not make it another program.

Gone are unreachable code (`reachable`), statements that do nothing, definitions, imports and
assignments that nothing reads, and compound statements in which nothing else is left. Of an
expression that goes, no more is lost than an exception that it may raise (`effects`): wherever both
programs end without one they do the same. Found as a linker finds what it needs: from the
statements with effects and the entry point on, all that they read, in time linear in the program.
"""

from __future__ import annotations

import ast
import sys
from typing import Any

from . import scopes
from .effects import EFFECT, LOOKUP, NOTHING, OVERLOADED, RAISES, Effects
from .parts import Frame, Key, Part, Program
from .reachable import cut_unreachable

_ROUNDS = 20  # what goes in one round may let more go in the next; programs need two or three
_DECORATORS = frozenset(  # that leave an unused definition unused
    {"cache", "classmethod", "dataclass", "lru_cache", "staticmethod", "total_ordering", "wraps"}
)
_HOLDING = (*scopes.FUNCTIONS, ast.ClassDef, ast.Try)  # what stands in them may read names
_LOUD = frozenset({"antigravity", "this"})  # modules that do something when they are imported


def without_dead_code(tree: ast.Module, entry_point: str | None) -> None:
    """Take the dead code out of a program, in place.

    Args:
        tree: the program.
        entry_point: the function that is called from outside, a function of the module or a method
            of class `Solution`; None for a program that is run.
    """
    for _ in range(_ROUNDS):
        cut_unreachable(tree, imported=entry_point is not None)
        if not _Removal(tree, entry_point).run():
            return


class _Removal:
    """One round: the parts that are needed, then the tree without the others."""

    def __init__(self, tree: ast.Module, entry_point: str | None) -> None:
        self._tree = tree
        self._entry_point = entry_point
        self._program = Program(tree)
        self._effects = Effects(self._program)
        self._needed: set[Key] = set()
        self._binding: dict[Key, list[Part]] = {}
        self._todo: list[Part] = []
        self._removed = 0

    def run(self) -> int:
        """Remove what is dead; how many statements that were which may have kept others."""
        for part in self._program.parts.values():
            part.optional = self._is_optional(part)
            if part.parent and isinstance(part.parent.node, ast.ClassDef):
                self._set_member(part, part.parent)
            if part.waits_for:
                part.waits_for.waiting.append(part)
            for key in part.binds:
                self._binding.setdefault(key, []).append(part)
        self._activate(self._program.frame)
        for key in self._asked_for():
            self._need(key)
        while self._todo:
            self._follow(self._todo.pop())
        self._tree.body = self._left(self._tree.body)
        return self._removed

    def _asked_for(self) -> list[Key]:
        """What the tests need; all names where they will not find the entry point."""
        if self._entry_point is None:
            return []
        module = self._program.module
        asked: list[Key] = [(module, self._entry_point), (None, self._entry_point)]
        if not any(key in self._binding for key in asked):
            return [key for key in self._binding if key[0] in (module, None)]
        return [*asked, (module, "Solution")]

    # -- what may go

    def _may_go(self, effects: int, part: Part) -> bool:
        """Whether a part with these effects does nothing that could be seen."""
        if effects & EFFECT or (effects & OVERLOADED and self._program.overloads):
            return False
        if effects & LOOKUP and self._program.makes_keys:
            return False
        in_function = part.scope.frame is not self._program.frame
        caught = part.guarded or (in_function and self._program.catches)
        return not (effects & RAISES and caught)

    def _is_optional(self, part: Part) -> bool:
        node: Any = part.node
        if part.binds and self._program.reaches_names:
            return False
        if any(name.startswith("__") and name.endswith("__") for _, name in part.binds):
            return False
        of = self._effects
        if isinstance(node, (ast.Pass, ast.Global, ast.Nonlocal, ast.Try)):
            return True
        if isinstance(node, ast.Assert):
            return isinstance(node.test, ast.Constant) and bool(node.test.value)
        if isinstance(node, ast.Expr):
            return self._may_go(of.of(node.value), part)
        if isinstance(node, ast.Assign):
            effects = of.of(node.value)
            for target in node.targets:
                effects |= of.of_assignment(target, node.value)
            return self._may_go(effects, part)
        if isinstance(node, ast.AugAssign):
            counts = isinstance(node.target, ast.Name) and self._is_counter(part.binds[0])
            effects = RAISES | OVERLOADED | of.of(node.value)
            return counts and self._may_go(effects, part)
        if isinstance(node, ast.If):
            return self._may_go(OVERLOADED | of.of(node.test), part)
        if isinstance(node, ast.For):
            effects = of.of_target(node.target) | of.goes_through(node.iter)
            return self._may_go(effects, part)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            return self._is_optional_import(node, part)
        if isinstance(node, scopes.FUNCTIONS):
            defaults = of.of_all([*node.args.defaults, *node.args.kw_defaults])
            return self._are_quiet(node.decorator_list) and self._may_go(defaults, part)
        if isinstance(node, ast.ClassDef):
            bases = RAISES | OVERLOADED | of.of_all(node.bases) if node.bases else NOTHING
            quiet = self._are_quiet(node.decorator_list) and not node.keywords
            return quiet and self._may_go(bases, part)
        return False

    def _is_optional_import(self, node: ast.Import | ast.ImportFrom, part: Part) -> bool:
        name = node.names[0].name
        module = (name if isinstance(node, ast.Import) else node.module or "").split(".")[0]
        if name == "*" or module in _LOUD:
            return False
        surely = isinstance(node, ast.Import) and module in sys.stdlib_module_names
        return self._may_go(NOTHING if surely else RAISES, part)

    def _are_quiet(self, decorators: list[ast.expr]) -> bool:
        for node in decorators:
            function = node.func if isinstance(node, ast.Call) else node
            name = getattr(function, "attr", getattr(function, "id", None))
            if name not in _DECORATORS:
                return False
        return True

    def _is_counter(self, key: Key) -> bool:
        """Whether a variable starts from constants only: adding to it changes no other object."""
        return all(
            isinstance(value, ast.Constant)
            or (isinstance(value, ast.BinOp) and value.left not in self._program.places)
            for value in self._program.values[key]
        )

    def _set_member(self, part: Part, owner: Part) -> None:
        """What stands in a class stays with it, unless its names can be followed."""
        followed = owner.plain and not self._program.reaches_attributes
        if part.optional and part.binds and not followed:
            part.optional = False
            part.waits_for = owner

    # -- what is needed

    def _need(self, key: Key) -> None:
        if key not in self._needed:
            self._needed.add(key)
            for part in self._binding.get(key, ()):
                self._consider(part)

    def _consider(self, part: Part) -> None:
        """Keep a part if it would run, and it does something or binds what is needed."""
        if part.live or not part.scope.frame.active:
            return
        if part.waits_for and not part.waits_for.opened:
            return
        if not part.optional or not self._needed.isdisjoint(part.binds):
            self._keep(part)

    def _keep(self, part: Part) -> None:
        if not part.live:
            part.live = True
            self._todo.append(part)

    def _follow(self, part: Part) -> None:
        for key in part.reads:
            self._need(key)
        parent = part.parent
        if parent is not None:
            self._keep(parent)
            if part.block == "body":
                self._open(parent)
        if isinstance(part.node, ast.ClassDef):
            self._open(part)
        if part.inner is not None:
            self._activate(part.inner)

    def _open(self, part: Part) -> None:
        if not part.opened:
            part.opened = True
            for waiting in part.waiting:
                self._consider(waiting)

    def _activate(self, frame: Frame) -> None:
        if not frame.active:
            frame.active = True
            for part in frame.parts:
                self._consider(part)

    # -- what is left

    def _left(self, nodes: list[ast.stmt]) -> list[ast.stmt]:
        left: list[ast.stmt] = []
        for node in nodes:
            part = self._program.parts[node]
            if part.live:
                left += self._thinned(node)
            elif part.reads or isinstance(node, _HOLDING):
                self._removed += 1
        return left

    def _thinned(self, node: Any) -> list[ast.stmt]:
        """A live statement with what is live in it; a `try` without use is taken apart."""
        for inner in (*getattr(node, "handlers", ()), *getattr(node, "cases", ())):
            inner.body = self._left(inner.body) or [ast.Pass()]
        for field in ("orelse", "finalbody"):
            if getattr(node, field, None):
                setattr(node, field, self._left(getattr(node, field)))
        if isinstance(getattr(node, "body", None), list):
            node.body = self._left(node.body)
            catches = getattr(node, "handlers", ()) or getattr(node, "finalbody", ())
            if isinstance(node, ast.Try) and not (node.body and catches):
                return [*node.body, *node.orelse, *node.finalbody]
            node.body = node.body or [ast.Pass()]
        return [node]
