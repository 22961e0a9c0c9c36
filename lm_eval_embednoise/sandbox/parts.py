"""A program taken apart: its scopes, its statements, and the names that each reads and binds."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import scopes

if TYPE_CHECKING:
    from collections.abc import Iterable

# Names that can reach any other by a string, and those that can reach any attribute.
_REACHES_NAMES = frozenset(
    {"exec", "eval", "compile", "globals", "locals", "vars", "dir", "__dict__", "__import__"}
)
_REACHES_ATTRIBUTES = frozenset(
    {"getattr", "setattr", "hasattr", "delattr", "attrgetter", "methodcaller"}
)
_PROPERTIES = frozenset({"property", "cached_property"})  # let attributes run code
_MAKES_KEYS = "defaultdict"


@dataclass(eq=False)
class Scope:
    """A module, function, class or comprehension. `frame`: whose call runs the code in it."""

    kind: str
    parent: Scope | None
    bound: set[str]
    frame: Frame
    declared: dict[str, Scope] = field(default_factory=dict)  # `global` and `nonlocal`

    def resolve(self, name: str) -> Key:
        """The variable that a name means here; an unbound one counts as the module's."""
        here: Scope = self
        while True:
            visible = here is self or here.kind != "class"
            if visible and name in here.declared:
                return here.declared[name], name
            if here.parent is None or (visible and name in here.bound):
                return here, name
            here = here.parent


@dataclass(eq=False)
class Frame:
    """The module or a function: statements that run when it is called."""

    function: ast.FunctionDef | ast.AsyncFunctionDef | None
    name: Key | None
    parts: list[Part] = field(default_factory=list)
    active: bool = False


@dataclass(eq=False)
class Part:
    """A statement. `parent` is the compound statement, in the same frame, that it stands in."""

    node: ast.stmt
    scope: Scope
    parent: Part | None = None
    block: str = "body"  # of the parent
    guarded: bool = False  # in the body of a `try` or `with`
    waits_for: Part | None = None  # runs only if this part's body does something
    reads: list[Key] = field(default_factory=list)
    binds: list[Key] = field(default_factory=list)
    inner: Frame | None = None  # of a function
    plain: bool = False  # a class whose names are nobody's business but the program's own
    optional: bool = False  # may go when nobody reads what it binds and nothing in it stays
    live: bool = False
    waiting: list[Part] = field(default_factory=list)
    opened: bool = False  # those that wait for this part need to wait no longer


def paired(target: ast.expr, value: ast.expr) -> list[tuple[ast.expr, ast.expr]] | None:
    """Each target in a display with its value in another; None where they don't correspond."""
    if not isinstance(target, (ast.Tuple, ast.List)) or not isinstance(
        value, (ast.Tuple, ast.List)
    ):
        return None
    starred = any(isinstance(e, ast.Starred) for e in (*target.elts, *value.elts))
    if starred or len(target.elts) != len(value.elts):
        return None
    return list(zip(target.elts, value.elts, strict=True))


Key = tuple[Scope | None, str]  # a variable; without a scope an attribute of any object


class Program:
    """The parts of a program and its variables.

    Attributes:
        module: the outermost scope.
        parts: of each statement.
        places: what each name in an expression means.
        values: what is assigned to a variable; None for a value that comes from elsewhere.
        read: all variables that are read anywhere.
        catches: whether exceptions may be caught.
        overloads: whether operators and attributes may run code of the program.
        makes_keys: whether looking up a key may make it.
        reaches_names, reaches_attributes: whether names or attributes may be reached by a string.
    """

    def __init__(self, tree: ast.Module) -> None:
        self.frame = Frame(None, None)
        self.module = Scope("module", None, scopes.bound(tree.body), self.frame)
        self.parts: dict[ast.stmt, Part] = {}
        self.places: dict[ast.Name, Key] = {}
        self.values: dict[Key, list[ast.expr | None]] = {}
        self.parameters: dict[Key, Frame] = {}
        self.read: set[Key] = set()
        self.deleted: set[Key] = set()
        self._imported: list[tuple[Key, str]] = []
        self.catches = self.overloads = False
        self._statements(tree.body, self.module, Part(ast.Pass(), self.module), top=True)
        attributes = {name for scope, name in self.read if scope is None}
        mentioned = attributes | {name for scope, name in self.read if scope is self.module}
        mentioned |= {name for key, name in self._imported if key in self.read}
        self.overloads |= not mentioned.isdisjoint(_PROPERTIES)
        self.makes_keys = _MAKES_KEYS in mentioned
        self.reaches_names = not mentioned.isdisjoint(_REACHES_NAMES)
        self.reaches_attributes = not mentioned.isdisjoint(_REACHES_ATTRIBUTES)

    def is_builtin(self, key: Key) -> bool:
        """Whether a name is bound nowhere in the program."""
        return key[0] is self.module and key not in self.values

    # -- statements

    def _statements(
        self,
        nodes: Iterable[ast.stmt],
        scope: Scope,
        parent: Part,
        block: str = "body",
        *,
        top: bool = False,
        guarded: bool = False,
        waits_for: Part | None = None,
    ) -> None:
        for node in nodes:
            part = Part(node, scope, None if top else parent, block)
            part.guarded = guarded or (not top and parent.guarded)
            part.waits_for = waits_for or (None if top else parent.waits_for)
            self.parts[node] = part
            scope.frame.parts.append(part)
            self._statement(node, part)
            self.read.update(part.reads)

    def _statement(self, node: ast.stmt, part: Part) -> None:
        scope = part.scope
        if isinstance(node, scopes.FUNCTIONS):
            self._function(node, part)
        elif isinstance(node, ast.ClassDef):
            self._bind(part, node.name)
            self._look([*node.decorator_list, *node.bases, *node.keywords], part, scope)
            objects = all(isinstance(b, ast.Name) and b.id == "object" for b in node.bases)
            part.plain = objects and not node.decorator_list and not node.keywords
            inner = Scope("class", scope, scopes.bound(node.body), scope.frame)
            self._statements(node.body, inner, part)
        elif isinstance(node, (ast.Global, ast.Nonlocal)):
            for name in node.names:
                outer = self.module
                if isinstance(node, ast.Nonlocal) and scope.parent:
                    outer = scope.parent.resolve(name)[0] or self.module
                scope.declared[name] = outer
                part.binds.append((outer, name))
        elif isinstance(node, ast.Assign):
            self._look([node.value], part, scope)
            for target in node.targets:
                self._assign(target, node.value, part)
        elif isinstance(node, ast.AugAssign):
            self._look([node.value], part, scope)
            self._assign(node.target, ast.BinOp(node.target, node.op, node.value), part)
            if isinstance(node.target, ast.Name):
                part.reads.append(scope.resolve(node.target.id))
        else:
            self._compound(node, part)

    def _compound(self, node: Any, part: Part) -> None:
        """Any other statement: its expressions, then its blocks."""
        catching = isinstance(node, (ast.Try, ast.With, ast.AsyncWith)) or (
            type(node).__name__ == "TryStar"
        )
        self.catches |= catching
        for name, value in ast.iter_fields(node):
            if name in ("body", "orelse", "finalbody"):
                guarded = catching and name == "body"
                self._statements(value, part.scope, part, name, guarded=guarded)
            elif name in ("handlers", "cases"):
                for inner in value:
                    children = ast.iter_child_nodes(inner)
                    others = [child for child in children if not isinstance(child, ast.stmt)]
                    self._look(others, part, part.scope)
                    for bound in scopes.named_by(inner):
                        self._bind(part, bound)
                    waits_for = part if name == "handlers" else None
                    self._statements(inner.body, part.scope, part, name, waits_for=waits_for)
            else:
                listed = value if isinstance(value, list) else [value]
                self._look([one for one in listed if isinstance(one, ast.AST)], part, part.scope)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef, part: Part) -> None:
        self._bind(part, node.name)
        dunder = node.name.startswith("__") and node.name.endswith("__")
        self.overloads |= dunder and node.name != "__init__"
        self._look(node.decorator_list, part, part.scope)
        inner = self._scope_of(node.args, node.body, part, part.scope, node)
        part.inner = inner.frame
        self._statements(node.body, inner, part, top=True)

    def _scope_of(
        self,
        arguments: ast.arguments,
        body: list[Any],
        part: Part,
        outer: Scope,
        function: ast.FunctionDef | ast.AsyncFunctionDef | None,
    ) -> Scope:
        """The scope of a function or lambda, its parameters bound."""
        self._look([*arguments.defaults, *arguments.kw_defaults], part, outer)
        frame = outer.frame
        if function is not None:
            frame = Frame(function, outer.resolve(function.name))
        names = {parameter.arg for parameter in scopes.parameters(arguments)}
        scope = Scope("function", outer, names | scopes.bound(body), frame)
        for name in names:
            self.values[scope, name] = [None]
            self.parameters[scope, name] = frame
        return scope

    # -- names

    def _bind(self, part: Part, name: str, value: ast.expr | None = None) -> None:
        key = part.scope.resolve(name)
        part.binds.append(key)
        self.values.setdefault(key, []).append(value)
        if part.scope.kind == "class":
            part.binds.append((None, name))

    def _assign(self, target: ast.expr, value: ast.expr, part: Part) -> None:
        """Bind a target; a display that is taken apart gives each name a value of its own."""
        if isinstance(target, ast.Name):
            self._bind(part, target.id, value)
            return
        pairs = paired(target, value)
        if pairs is None:
            self._look([target], part, part.scope)
        for one, its in pairs or ():
            self._assign(one, its, part)

    def _look(self, nodes: Iterable[ast.AST | None], part: Part, scope: Scope) -> None:
        """Note the names that expressions read and bind."""
        for node in nodes:
            kind = type(node)
            if kind is ast.Constant or node is None:
                continue
            if isinstance(node, ast.Name):
                self._name(node, part, scope)
            elif isinstance(node, ast.Lambda):
                inner = self._scope_of(node.args, [node.body], part, scope, None)
                self._look([node.body], part, inner)
            elif isinstance(node, scopes.COMPREHENSIONS):
                self._comprehension(node, part, scope)
            else:
                if isinstance(node, ast.Attribute):
                    part.reads.append((None, node.attr))
                elif isinstance(node, ast.alias):
                    bound = node.asname or node.name.split(".")[0]
                    self._imported.append((scope.resolve(bound), node.name))
                for name in scopes.named_by(node) if kind in scopes.BINDING else ():
                    self._bind(part, name)
                self._look(ast.iter_child_nodes(node), part, scope)

    def _name(self, node: ast.Name, part: Part, scope: Scope) -> None:
        key = self.places[node] = scope.resolve(node.id)
        if not isinstance(node.ctx, ast.Store):
            part.reads.append(key)
        if isinstance(node.ctx, ast.Del):
            self.deleted.add(key)
        if not isinstance(node.ctx, ast.Load):
            part.binds.append(key)
            self.values.setdefault(key, []).append(None)
            if scope.kind == "class":
                part.binds.append((None, node.id))

    def _comprehension(self, node: Any, part: Part, scope: Scope) -> None:
        generators: list[ast.comprehension] = node.generators
        self._look([generators[0].iter], part, scope)
        inner = Scope("comprehension", scope, set(), scope.frame)
        for generator in generators:
            inner.bound |= scopes.bound([generator.target])
        for generator in generators:
            self._look([generator.target, *generator.ifs], part, inner)
            if generator is not generators[0]:
                self._look([generator.iter], part, inner)
        elements = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        self._look(elements, part, inner)
