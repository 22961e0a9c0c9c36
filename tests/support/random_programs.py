"""Programs drawn at random, some of their statements without a purpose; junk to put into others.

All end soon and touch nothing outside: they may be run here. They do what makes dead code hard to
tell: iterators that are used up, objects with two names, counters, exceptions that are caught,
`global` and `nonlocal`, names bound in code that is never reached, generators, classes.
"""

from __future__ import annotations

import ast
import random
import textwrap

NAMES = ("a", "b", "c", "d")
INPUTS = ((3, [1, 2, 3, 4]), (0, []), (-2, [5, 5]))

_VALUES = (
    *("n", "xs", "1", "0", "'s'", "[n, 1]", "{n: 1}", "(n, xs)", "n + 1", "n - 2", "len(xs)"),
    *("xs[0]", "xs[1:]", "{name}", "{name} + 1", "[v for v in xs if v > n]", "iter(xs)", "sum(xs)"),
    *("(v for v in xs)", "list({name})", "[v * 2 for v in {name}]", "sorted(xs)", "not n"),
    *(
        "next({name}, 0)",
        "n in {name}",
        "zip(xs, xs)",
        "len(seen) < 9 and seen.append(n)",
        "lambda: {name}",
    ),
    *(
        "table[n]",
        "max(xs)",
        "xs if n else [0]",
        "f'{{n}}{{xs}}'",
        "helper({name})",
        "Box(n).get()",
    ),
    *("n // 2", "1 / n", "set(xs)", "enumerate(xs)", "abs(n)", "-n", "n == 1", "str(n)"),
)
_SIMPLE = (
    *("{name} = {value}", "{name} = {value}", "{name} = {value}", "{name} += 1", "{name} -= n"),
    *("{name}, {other} = {value}, n", "{name}, {other} = {name}", "{name} = {other} = {value}"),
    *("pass", "{value}", "'text'", "xs.append(n) if len(xs) < 9 else 0", "del {name}"),
    *("{name}: int = {value}", "{name}: int", "global g", "assert True", "import os, sys"),
    *("from math import sqrt as {name}", "{name} = n; {name} = {value}", "xs[:1] = [n]"),
    *(
        "{name} = [0]; {name} += [n]",
        "{name} = xs; {name} += [1][len(xs) // 9 :]",
        "box.v = {value}",
    ),
    *("({name} := {value})", "def {name}(): return {other}", "{name} = seen"),
)
_ENDS = ("return {value}", "return {name}", "return (n, seen)", "raise ValueError(n)", "return")
_BLOCKS = (
    *(
        "if {value}:",
        "if n > 1:",
        "if False:",
        "if True:",
        "for {name} in xs:",
        "for v in {value}:",
    ),
    *(
        "while False:",
        "for {name} in range(3):",
        "try:",
        "with quiet():",
        "if not 0:",
        "def {name}():",
    ),
)
_HEAD = """import contextlib
from collections import defaultdict
seen = []
g = 1
table = {table}
class Box:
    count = 0
    def __init__(self, v):
        self.v = v
    def get(self):
        return self.v
    def unused(self):
        return 0
box = Box(1)
def quiet():
    return contextlib.suppress(Exception)
def helper(it):
    first = {helper}
    return it
def unused(n):
    return unused(n - 1)
"""


def program(rng: random.Random, *, catching: bool = True) -> str:
    """A program that defines `f(n, xs)`."""
    head = _HEAD.replace("{table}", rng.choice(["{1: 2}", "defaultdict(list)"]))
    head = head.replace("{helper}", rng.choice(["[v for v in it]", "list(it)", "0", "it[0]"]))
    lines = _filled(rng, "    a, b, c, d = {value}, 1, [n], xs\n") if rng.random() < 0.8 else ""
    lines += "".join(_block(rng, 1, rng.randint(2, 7), catching))
    end = rng.choice(["return (n, xs, seen, table)", *_ENDS])
    return f"{head}def f(n, xs):\n" + lines + "    " + _filled(rng, end) + "\n"


def _filled(rng: random.Random, template: str) -> str:
    value = rng.choice(_VALUES).replace("{name}", rng.choice(NAMES)).replace("{{", "{")
    value = value.replace("}}", "}")
    name, other = rng.choice(NAMES), rng.choice(NAMES)
    filled = template.replace("{value}", value).replace("{name}", name)
    return filled.replace("{other}", other)


def _block(rng: random.Random, depth: int, statements: int, catching: bool) -> list[str]:
    indent = "    " * depth
    lines: list[str] = []
    for _ in range(statements):
        if depth < 4 and rng.random() < 0.3:
            header = _filled(rng, rng.choice(_BLOCKS))
            if not catching and header.startswith(("try", "with")):
                continue
            lines.append(f"{indent}{header}\n")
            lines += _block(rng, depth + 1, rng.randint(1, 3), catching)
            if header == "try:":
                lines.append(
                    f"{indent}except {rng.choice(['Exception', 'ValueError, TypeError'])}:\n"
                )
                lines += _block(rng, depth + 1, 1, catching)
            elif rng.random() < 0.3 and not header.startswith(("def", "with")):
                lines.append(f"{indent}else:\n")
                lines += _block(rng, depth + 1, 1, catching)
        else:
            simple = rng.choice(_SIMPLE) if rng.random() < 0.9 else rng.choice(_ENDS)
            lines.append(f"{indent}{_filled(rng, simple)}\n")
    return lines


# Junk that does nothing at all, and junk that at most raises; {new} is a name of its own.
_IDLE = (
    *("pass", "'text'", "12.5", "...", "None", "{new} = 3", "{new} = 'a', -1", "{new}: int = 3"),
    *("{new}: list[int]", "import {module}", "import {module} as {new}", "assert True"),
    *("{new} = {newer} = 0", "{new} = []", "{new} = lambda q: q + {newer}", "if False:\n    {any}"),
    *("while 0:\n    {any}", "if not True:\n    {any}", "if True:\n    pass", "{new} = len"),
    *(
        "def {new}(q, *r, s=1):\n    {any}\n    return q",
        "try:\n    pass\nexcept OSError:\n    {any}",
    ),
    *("class {new}:\n    t = 1\n    def m(self):\n        {any}", "if True:\n    {new} = 1"),
    *(
        "def {new}():\n    {newer} = 1\n    return {new}()",
        "global {new}\n{new} = 1",
        "{new}, = 1,",
    ),
)
_RAISING = (
    *("{new} = 1 + 2 * 3", "{new} = [q * 2 for q in range(3)]", "{new} = len('ab')", "1 < 2"),
    *("{new} = {1: [2], 3: {4}}", "{new} = 0\n{new} += 1", "{new} = sorted([3, 1])", "f'{1}'"),
    *("from typing import List as {new}", "{new} = 5\nif {new} > 3:\n    {newer} = {new}", "not 1"),
    *(
        "{new} = 4\n{newer} = {new} * {new}\n{new} = {newer}",
        "sum([1, 2])",
        "{new} = 'a'.__class__",
    ),
    *(
        "for {new} in range(3):\n    pass",
        "{new} = 0\nfor {newer} in [1, 2]:\n    {new} += {newer}",
    ),
    *(
        "{new} = [1]\n{newer} = sum({new})",
        "{new} = {q for q in 'ab'}",
        "{new} = 1 if 2 > 1 else 0",
    ),
)
_ANYTHING = ("print(1)", "{new} = input()", "raise ValueError", "{new} = open('f').read()", "pass")
_LAST = (ast.Return, ast.Raise, ast.Break, ast.Continue)


def with_junk(rng: random.Random, source: str, *, pieces: int = 4) -> str:
    """The program with dead code of every kind in it, at random places.

    Junk that may raise is put only where the program catches nothing.
    """
    tree = ast.parse(source)
    for number in range(pieces):
        catching = any(isinstance(n, (ast.Try, ast.With, ast.AsyncWith)) for n in ast.walk(tree))
        blocks = [block for top in ast.walk(tree) for block in _open_blocks(top)]
        block = rng.choice(blocks)
        end = bool(block) and isinstance(block[-1], _LAST) and rng.random() < 0.3
        kinds = _ANYTHING if end else _IDLE if catching else (*_IDLE, *_RAISING)
        text = rng.choice(kinds).replace("{any}", rng.choice(_ANYTHING))
        text = text.replace("{newer}", f"newer_{number}").replace("{new}", f"new_{number}")
        text = text.replace("{module}", rng.choice(["os", "json", "collections.abc", "re"]))
        where = len(block) if end else rng.randint(0, len(block))
        junk = ast.parse(f"def wrapped():\n{textwrap.indent(text, '    ')}").body[0]
        assert isinstance(junk, ast.FunctionDef)
        block[where:where] = junk.body
    return ast.unparse(ast.fix_missing_locations(tree))


def _open_blocks(node: ast.AST) -> list[list[ast.stmt]]:
    """The blocks of statements of a node, where junk is nothing but junk."""
    if isinstance(node, ast.ClassDef):
        return []
    found = (getattr(node, field, None) for field in ("body", "orelse", "finalbody"))
    return [block for block in found if block and isinstance(block, list)]
