"""What evaluating an expression may do besides giving a value.

An expression whose value nobody wants may go when evaluating it does nothing (`NOTHING`), or at
most raises where no exception is caught (`RAISES`), runs operators that the program defines where
it defines none (`OVERLOADED`), looks up keys where no `defaultdict` makes them (`LOOKUP`). Calls
have effects, but for those of builtins that only look at their arguments. An iterator is used up by
being gone through: what goes through anything but what is surely a container has an effect.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

from . import scopes
from .parts import paired

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .parts import Key, Program

NOTHING, RAISES, OVERLOADED, LOOKUP, EFFECT = 0, 1, 2, 4, 8
_LOOKS = frozenset(  # builtins that look at their arguments, and at no more than they are
    {
        *("abs", "bool", "chr", "complex", "divmod", "float", "hash", "id", "int", "isinstance"),
        *("len", "ord", "pow", "range", "repr", "round", "slice", "str", "type", "bin", "hex"),
    }
)
_GOES_THROUGH = frozenset(  # builtins that go through their arguments
    {
        *("all", "any", "dict", "enumerate", "frozenset", "list", "max", "min", "reversed"),
        *("set", "sorted", "sum", "tuple", "zip"),
    }
)
_ITERATORS = frozenset({"enumerate", "reversed", "zip"})  # what these give is used up
_OPERATIONS = (
    *(ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.IfExp, ast.Compare, ast.Subscript, ast.Attribute),
    *(ast.JoinedStr, ast.FormattedValue),
)
_CONTAINERS = (
    *(ast.Constant, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.BinOp, ast.JoinedStr),
    *(ast.ListComp, ast.SetComp, ast.DictComp),
)


class Effects:
    """The effects of a program's expressions."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._containers: dict[Key, bool] = {}
        self._known: dict[ast.AST, int] = {}  # each is looked at once: else doubly at each depth

    def of(self, node: ast.AST | None) -> int:
        """The effects of evaluating an expression."""
        if node is None or isinstance(node, ast.Constant):
            return NOTHING
        if isinstance(node, ast.Name):
            return self._of_name(node)
        known = self._known.get(node)
        if known is None:
            known = self._known[node] = self._of(node)
        return known

    def _of(self, node: ast.AST) -> int:
        if isinstance(node, _OPERATIONS):
            return self._of_operation(node)
        if isinstance(node, (ast.List, ast.Tuple, ast.Slice)):
            return self.of_all(ast.iter_child_nodes(node))
        if isinstance(node, (ast.Set, ast.Dict)):
            return RAISES | self.of_all(ast.iter_child_nodes(node))  # not everything is a key
        if isinstance(node, ast.Starred):
            return RAISES | self._through([node.value])
        if isinstance(node, scopes.COMPREHENSIONS):
            return self._of_comprehension(node)
        if isinstance(node, ast.Lambda):
            return self.of_all([*node.args.defaults, *node.args.kw_defaults])
        if isinstance(node, ast.Call):
            return self._of_call(node)
        if isinstance(node, (ast.expr_context, ast.operator, ast.unaryop, ast.boolop, ast.cmpop)):
            return NOTHING
        return EFFECT

    def of_all(self, nodes: Iterable[ast.AST | None]) -> int:
        """The effects of several expressions."""
        found = NOTHING
        for node in nodes:
            found |= self.of(node)
        return found

    def goes_through(self, node: ast.expr) -> int:
        """The effects of iterating over an expression."""
        return RAISES | OVERLOADED | self._through([node])

    def _through(self, nodes: Iterable[ast.expr]) -> int:
        listed = list(nodes)
        return self.of_all(listed) if all(map(self._is_container, listed)) else EFFECT

    def _of_name(self, node: ast.Name) -> int:
        key = self._program.places.get(node)
        if key is None or key in self._program.deleted:
            return RAISES
        given = key in self._program.parameters
        return NOTHING if given or self._program.is_builtin(key) else RAISES

    def _of_operation(self, node: Any) -> int:
        if isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant):
            return RAISES if isinstance(node.operand.value, (str, bytes)) else NOTHING
        own = RAISES | OVERLOADED
        if isinstance(node, ast.Subscript):
            own |= LOOKUP
        if isinstance(node, ast.Compare):
            sides = zip(node.ops, node.comparators, strict=True)
            searched = [side for op, side in sides if isinstance(op, (ast.In, ast.NotIn))]
            own |= self._through(searched)
        return own | self.of_all(ast.iter_child_nodes(node))

    def _of_comprehension(self, node: Any) -> int:
        generators: list[ast.comprehension] = node.generators
        if any(generator.is_async for generator in generators):
            return EFFECT
        found = RAISES | OVERLOADED | self._through(g.iter for g in generators)
        for generator in generators:
            found |= self.of_target(generator.target) | self.of_all(generator.ifs)
        elements = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        return found | self.of_all(elements)

    def of_assignment(self, target: ast.expr, value: ast.expr) -> int:
        """The effects of assigning a value, beside those of evaluating it."""
        if isinstance(target, ast.Name):
            return NOTHING
        pairs = paired(target, value)
        if pairs is None:
            return self.of_target(target) | self.goes_through(value)
        found = NOTHING
        for one, its in pairs:
            found |= self.of_assignment(one, its)
        return found

    def of_target(self, target: ast.expr) -> int:
        """The effects of assigning to something, beside that the names in it are bound."""
        if isinstance(target, ast.Name):
            return NOTHING
        if isinstance(target, (ast.Tuple, ast.List)):
            found = EFFECT if not target.elts else RAISES
            for one in target.elts:
                found |= self.of_target(one)
            return found
        return EFFECT

    def _of_call(self, node: ast.Call) -> int:
        function = node.func
        key = self._program.places.get(function) if isinstance(function, ast.Name) else None
        if key is None or not self._program.is_builtin(key):
            return EFFECT
        if any(keyword.arg not in ("reverse", "start", "base") for keyword in node.keywords):
            return EFFECT  # `key` is a function that is called
        own = RAISES | OVERLOADED | self.of_all(keyword.value for keyword in node.keywords)
        if key[1] in _LOOKS:
            return own | self.of_all(node.args)
        if key[1] in _GOES_THROUGH:
            return own | self._through(node.args)
        return EFFECT

    def _is_container(self, node: ast.expr) -> bool:
        """Whether nobody notices that a value was gone through: no iterator, or a fresh one."""
        if isinstance(node, _CONTAINERS):
            return True
        if isinstance(node, ast.Name):
            key = self._program.places.get(node)
            return key is not None and self._holds_containers(key)
        if isinstance(node, ast.Subscript):
            return isinstance(node.slice, ast.Slice)
        if isinstance(node, ast.GeneratorExp):  # is used up, but nobody else has it
            return True
        return isinstance(node, ast.Call) and not self.of(node) & EFFECT

    def _holds_containers(self, key: Key) -> bool:
        """Whether a variable never holds an iterator."""
        known = self._containers.get(key)
        if known is None:
            self._containers[key] = False  # a variable that is made from itself
            values = self._program.values.get(key, [None])
            if key in self._program.parameters:
                known = len(values) == 1 and self._is_called_with_data(key)
            else:
                known = all(value is not None and self._is_kept(value) for value in values)
            self._containers[key] = known
        return known

    def _is_kept(self, value: ast.expr) -> bool:
        """Whether a value can be gone through again and again."""
        made = getattr(value.func, "id", None) if isinstance(value, ast.Call) else None
        iterator = isinstance(value, ast.GeneratorExp) or made in _ITERATORS
        return not iterator and self._is_container(value)

    def _is_called_with_data(self, key: Key) -> bool:
        """Whether a parameter is of a function that only the tests call: they hand over data."""
        frame = self._program.parameters[key]
        function, name = frame.function, frame.name
        if function is None or name is None or function.decorator_list:
            return False
        if name[1].startswith("__") or not {name, (None, name[1])}.isdisjoint(self._program.read):
            return False
        defaults = [*function.args.defaults, *function.args.kw_defaults]
        return all(d is None or isinstance(d, _CONTAINERS) for d in defaults)
