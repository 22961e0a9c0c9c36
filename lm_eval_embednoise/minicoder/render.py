"""Writes the solution of one problem in fourteen ways."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from .grammar import Aggregate, Domain, Piece


def fill(template: str, **values: str) -> str:
    """Replace `{name}` in the template for every keyword; other braces stay."""
    for name, value in values.items():
        template = template.replace("{" + name + "}", value)
    return template


def wrap(expression: str) -> str:
    """The expression as an operand: in parentheses unless it is a name, a call or a subscript."""
    atomic = " " not in expression and not expression.startswith("-")
    return expression if atomic else f"({expression})"


@dataclass(frozen=True)
class Spec:
    """A problem with all its constants chosen, as code sees it."""

    domain: Domain
    filters: tuple[tuple[Piece, str], ...]
    maps: tuple[tuple[Piece, str], ...]
    aggregate: Aggregate
    k: str
    parameter: str

    @property
    def source(self) -> str:
        return fill(self.domain.source, p=self.parameter)

    @property
    def items(self) -> str:
        return fill(self.domain.items, p=self.parameter)

    def condition(self, x: str) -> str:
        return " and ".join(fill(piece.code, x=x, k=k) for piece, k in self.filters)

    def element(self, x: str) -> str:
        for piece, k in self.maps:
            inside = piece.code.startswith(("len(", "abs(", "str(", "sum(", "sorted(", "ord("))
            x = fill(piece.code, x=x if inside else wrap(x), k=k)
        return x

    def finish(self, it: str, kind: str) -> str:
        """The answer from `it`, whose `kind` is `list`, `iterable`, or a bare `generator`."""
        aggregate = self.aggregate
        if aggregate.needs_list and kind != "list":
            it = f"list({it})"
        elif aggregate.more_arguments and kind == "generator":
            it = f"({it})"
        return fill(aggregate.final, it=it, k=self.k)

    def imports(self, *more: str) -> str:
        lines = [*more]
        if self.aggregate.imports:
            lines.append(self.aggregate.imports)
        return "".join(f"    {line}\n" for line in lines)


class _Names:
    """Local names for one solution, none of them a parameter's."""

    def __init__(self, spec: Spec, rng: random.Random) -> None:
        taken = {spec.parameter, spec.k} | {k for _, k in (*spec.filters, *spec.maps)}

        def choose(*options: str) -> str:
            return rng.choice([name for name in options if name not in taken])

        self.x = choose(*spec.domain.variables)
        self.total = choose("result", "total", "out")
        self.items = choose("items", "found", "kept")


def _loops(spec: Spec, x: str, inner: str) -> str:
    """The loop header(s) over the elements and the indented body lines of `inner`."""
    if spec.domain.outer:
        row, source = spec.domain.outer
        loops = f"    for {row} in {spec.parameter}:\n        for {x} in {source}:\n"
        return loops + "".join(f"            {line}\n" for line in inner.split("\n"))
    return f"    for {x} in {spec.source}:\n" + "".join(
        f"        {line}\n" for line in inner.split("\n")
    )


def _clauses(spec: Spec, x: str) -> str:
    """The `for … if …` part of a comprehension."""
    if spec.domain.outer:
        row, source = spec.domain.outer
        loops = f"for {row} in {spec.parameter} for {x} in {source}"
    else:
        loops = f"for {x} in {spec.source}"
    return f"{loops} if {spec.condition(x)}"


def _accumulation(spec: Spec, names: _Names) -> tuple[str, str, str, str]:
    """First value, update, answer and import for collecting elements in a loop."""
    aggregate, element = spec.aggregate, spec.element(names.x)
    if aggregate.start:
        start, update, result, imports = aggregate.start, aggregate.update, aggregate.result, ""
    else:
        start, update, imports = "[]", "{a}.append({e})", spec.imports()
        result = spec.finish("{a}", "list")
    return start, fill(update, a=names.total, e=element), fill(result, a=names.total), imports


def loop_if(spec: Spec, names: _Names) -> str:
    """A `for` loop with the condition in an `if`."""
    start, update, result, imports = _accumulation(spec, names)
    body = _loops(spec, names.x, f"if {spec.condition(names.x)}:\n    {update}")
    return f"{imports}    {names.total} = {start}\n{body}    return {result}\n"


def loop_continue(spec: Spec, names: _Names) -> str:
    """A `for` loop that skips with `continue`, one test a filter."""
    start, update, result, imports = _accumulation(spec, names)
    lines = [f"if not ({fill(f.code, x=names.x, k=k)}):\n    continue" for f, k in spec.filters]
    body = _loops(spec, names.x, "\n".join([*lines, update]))
    return f"{imports}    {names.total} = {start}\n{body}    return {result}\n"


def while_index(spec: Spec, names: _Names) -> str:
    """A `while` loop over positions."""
    start, update, result, imports = _accumulation(spec, names)
    items, define = spec.items, ""
    if not items.isidentifier():
        define, items = f"    {names.items} = {items}\n", names.items
    return (
        f"{imports}{define}    {names.total} = {start}\n    pos = 0\n"
        f"    while pos < len({items}):\n        {names.x} = {items}[pos]\n        pos += 1\n"
        f"        if {spec.condition(names.x)}:\n            {update}\n    return {result}\n"
    )


def while_pop(spec: Spec, names: _Names) -> str:
    """A `while` loop that takes elements off a copy of the list."""
    start, update, result, imports = _accumulation(spec, names)
    return (
        f"{imports}    {names.items} = list({spec.source})\n    {names.total} = {start}\n"
        f"    while {names.items}:\n        {names.x} = {names.items}.pop(0)\n"
        f"        if {spec.condition(names.x)}:\n            {update}\n    return {result}\n"
    )


def list_comprehension(spec: Spec, names: _Names) -> str:
    """One list comprehension; the reference solutions are written this way."""
    made = f"[{spec.element(names.x)} {_clauses(spec, names.x)}]"
    return f"{spec.imports()}    return {spec.finish(made, 'list')}\n"


def two_comprehensions(spec: Spec, names: _Names) -> str:
    """A comprehension that filters, then one that maps."""
    lines = [f"    {names.items} = [{names.x} {_clauses(spec, names.x)}]\n"]
    if spec.maps:
        lines.append(
            f"    {names.items} = [{spec.element(names.x)} for {names.x} in {names.items}]\n"
        )
    return f"{spec.imports()}{''.join(lines)}    return {spec.finish(names.items, 'list')}\n"


def generator_expression(spec: Spec, names: _Names) -> str:
    """A generator expression inside the aggregate."""
    if spec.aggregate.name == "count":
        return f"    return sum(1 {_clauses(spec, names.x)})\n"
    made = f"{spec.element(names.x)} {_clauses(spec, names.x)}"
    return f"{spec.imports()}    return {spec.finish(made, 'generator')}\n"


def filter_map(spec: Spec, names: _Names) -> str:
    """`filter` and `map` with lambdas."""
    x = names.x
    chain = f"filter(lambda {x}: {spec.condition(x)}, {spec.source})"
    if spec.maps:
        chain = f"map(lambda {x}: {spec.element(x)}, {chain})"
    return f"{spec.imports()}    return {spec.finish(chain, 'iterable')}\n"


def named_helpers(spec: Spec, names: _Names) -> str:
    """`filter` and `map` with named inner functions."""
    x = names.x
    text = f"{spec.imports()}    def keep({x}):\n        return {spec.condition(x)}\n"
    chain = f"filter(keep, {spec.source})"
    if spec.maps:
        text += f"    def change({x}):\n        return {spec.element(x)}\n"
        chain = f"map(change, {chain})"
    return f"{text}    return {spec.finish(chain, 'iterable')}\n"


def reduction(spec: Spec, names: _Names) -> str:
    """`functools.reduce` with a lambda."""
    x, aggregate, element = names.x, spec.aggregate, spec.element(names.x)
    left, base = aggregate.left or "{a} + [{e}]", aggregate.base or "[]"
    step = fill(left, a="acc", e=element, E=wrap(element))
    made = f"reduce(lambda acc, {x}: {step} if {spec.condition(x)} else acc, {spec.source}, {base})"
    imports = "    from functools import reduce\n"
    if aggregate.base:
        return f"{imports}    return {made}\n"
    return f"{spec.imports('from functools import reduce')}    return {spec.finish(made, 'list')}\n"


def _recursive(spec: Spec, names: _Names, element: str, rest: str) -> tuple[str, str, str, str]:
    """Base, combination, answer and import for the recursive forms."""
    aggregate = spec.aggregate
    if aggregate.base:
        step = fill(aggregate.right, e=element, E=wrap(element), r=rest)
        return aggregate.base, step, f"go({spec.items})", ""
    step = f"[{element}] + {rest}"
    return "[]", step, spec.finish(f"go({spec.items})", "list"), spec.imports()


def recursion(spec: Spec, names: _Names) -> str:
    """An inner recursive function that combines on the way back."""
    x = names.x
    base, step, answer, imports = _recursive(spec, names, spec.element(x), "rest")
    return (
        f"{imports}    def go(seq):\n        if not seq:\n            return {base}\n"
        f"        {x}, rest = seq[0], go(seq[1:])\n        if {spec.condition(x)}:\n"
        f"            return {step}\n        return rest\n    return {answer}\n"
    )


def recursion_last(spec: Spec, names: _Names) -> str:
    """An inner recursive function whose last act is the recursive call."""
    x = names.x
    base, step, answer, imports = _recursive(spec, names, spec.element(x), "go(seq[1:])")
    return (
        f"{imports}    def go(seq):\n        if len(seq) == 0:\n            return {base}\n"
        f"        {x} = seq[0]\n        if {spec.condition(x)}:\n            return {step}\n"
        f"        return go(seq[1:])\n    return {answer}\n"
    )


def generator_function(spec: Spec, names: _Names) -> str:
    """An inner function that yields the elements."""
    body = _loops(
        spec, names.x, f"if {spec.condition(names.x)}:\n    yield {spec.element(names.x)}"
    )
    inner = "".join(f"    {line}\n" for line in body.rstrip("\n").split("\n"))
    return f"{spec.imports()}    def gen():\n{inner}    return {spec.finish('gen()', 'iterable')}\n"


def slot_list(spec: Spec, names: _Names) -> str:
    """Each element gives a list of one or none; the lists are added up."""
    x = names.x
    chain = f"[{spec.element(x)}] * ({spec.condition(x)})"
    return (
        f"{spec.imports()}    def part({x}):\n        return {chain}\n"
        f"    return {spec.finish(f'sum(map(part, {spec.source}), [])', 'list')}\n"
    )


RENDERERS: dict[str, Callable[[Spec, _Names], str]] = {
    f.__name__: f
    for f in (
        loop_if, loop_continue, while_index, while_pop, list_comprehension, two_comprehensions,
        generator_expression, filter_map, named_helpers, reduction, recursion, recursion_last,
        generator_function, slot_list,
    )
}  # fmt: skip


def render(spec: Spec, how: str, rng: random.Random) -> str:
    """The body of a function that solves the problem, written the way `how` names."""
    return RENDERERS[how](spec, _Names(spec, rng))
