"""The statements of a text that compile: split at the top level, parsed one by one where needed.

The whole is parsed at once; only a text that does not parse is split, by a scan of its lines that
follows strings and brackets. Each part is then parsed on its own, so the work stays linear.
"""

from __future__ import annotations

import ast
import re
import textwrap
from dataclasses import dataclass

from .blocks import scan_line
from .syntax import does_something, find

_MOST_PARSES = 600  # parts that are parsed one by one, from the beginning and from the end
_STEPS_BACK = 24  # logical lines that a broken function is shortened by, at most
_GOES_ON = re.compile(r"(?:else|elif|except|finally)\b|[)\]}]")
_STRONG = re.compile(
    r"(?:async\s+)?def\s+\w+\s*\(|class\s+\w+\s*[:(]|import\s+[\w.]+|from\s+[\w.]+\s+import\b|@\w"
)
_EFFECTS = (
    *(ast.Call, ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr),
    *(ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp),
)
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True)
class Piece:
    """Some lines of a text, and the statements that they are."""

    text: str
    nodes: tuple[ast.stmt, ...]

    @property
    def only_defines(self) -> bool:
        """Whether it can be kept whatever it is for: definitions, imports, strings."""
        return all(
            isinstance(node, (*DEFINITIONS, ast.Import, ast.ImportFrom, ast.Pass))
            or (isinstance(node, ast.Expr) and is_string(node.value))
            for node in self.nodes
        )


@dataclass(frozen=True)
class Owner:
    """The definition of the entry point."""

    node: ast.AST
    trivial: bool


def defines(pieces: list[Piece], entry_point: str) -> Owner | None:
    """What defines the entry point among the pieces' statements: a function, a method, a name."""
    node = find([node for piece in pieces for node in piece.nodes], entry_point)
    if node is None:
        return None
    return Owner(node, not any(does_something(inner) for inner in getattr(node, "body", [])))


def calls_something(pieces: list[Piece]) -> bool:
    """Whether there is a call: a program that reads and prints has some."""
    nodes = (node for piece in pieces for top in piece.nodes for node in ast.walk(top))
    return any(isinstance(node, ast.Call) for node in nodes)


def is_string(value: ast.expr) -> bool:
    """Whether an expression is a string, such as a docstring."""
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def is_plain(value: ast.expr) -> bool:
    """Whether an expression has no effect: data, or words that happen to parse."""
    return not any(isinstance(node, _EFFECTS) for node in ast.walk(value))


def parse(code: str) -> ast.Module | SyntaxError:
    """The tree, or why there is none."""
    try:
        return ast.parse(code)
    except SyntaxError as error:
        return error
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        return SyntaxError(str(error))


def pieces_of(code: str, entry_point: str | None) -> list[Piece]:
    """The parts of a text that are statements, in their order.

    With an entry point all of them count: what a program needs may come before and after a
    paragraph. Without one the longest run counts that nothing interrupts.
    """
    tree = parse(code)
    if isinstance(tree, ast.Module):
        return _by_node(code, tree)
    runs: list[list[Piece]] = [[]]
    parts = _split(code)
    if len(parts) > 2 * _MOST_PARSES:
        parts = [*parts[:_MOST_PARSES], *parts[-_MOST_PARSES:]]
    for number, part in enumerate(parts):
        made = _read(part, entry_point)
        if made is None:
            last = not any(text.strip() for text in parts[number + 1 :])
            if entry_point is None and last and _cut_off(part):
                return []  # a program that breaks off is no program
            runs.append([])
        elif entry_point is not None or any(_counts(node) for node in made.nodes):
            runs[-1].append(made)
        else:
            runs.append([])
    if entry_point is not None:
        return [piece for run in runs for piece in run]
    return max(runs, key=lambda run: sum(len(piece.text) for piece in run))


def _counts(node: ast.stmt) -> bool:
    """Whether a statement is part of a program, and not a word or a number that parses."""
    if isinstance(node, ast.AnnAssign):
        return node.value is not None
    return not isinstance(node, ast.Expr) or is_string(node.value) or not is_plain(node.value)


def _cut_off(part: str) -> bool:
    """Whether a part that does not parse is the beginning of a statement that isn't a definition.

    A definition that breaks off is one that nothing has called yet.
    """
    if _is_definition(part):
        return False
    error = parse(part)
    lines = part.rstrip().count("\n") + 1
    begun = re.match(
        r"(?:for|while|if|with|try|print|return)\b|[\w.,\s\[\]*]+?[-+*/%|&^]?=|\w+\(", part
    )
    return isinstance(error, SyntaxError) and (error.lineno or 0) >= lines and bool(begun)


def _by_node(code: str, tree: ast.Module) -> list[Piece]:
    """One piece a statement, with the comments above it; statements of one line are one piece."""
    lines = code.splitlines(keepends=True) if "\f" not in code else code.split("\n")
    if "".join(lines) != code or any(c in code for c in "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"):
        lines = re.split(r"(?<=\n)", code)
    ends: list[tuple[int, list[ast.stmt]]] = []
    for node in tree.body:
        decorators = getattr(node, "decorator_list", [])
        first = min([node.lineno, *(d.lineno for d in decorators)])
        if ends and first <= ends[-1][0]:
            ends[-1] = (max(ends[-1][0], node.end_lineno or first), [*ends[-1][1], node])
        else:
            ends.append((node.end_lineno or first, [node]))
    made, start = [], 0
    for place, (end, nodes) in enumerate(ends):
        stop = len(lines) if place == len(ends) - 1 else end
        made.append(Piece("".join(lines[start:stop]), tuple(nodes)))
        start = stop
    return made


def _split(code: str) -> list[str]:
    """Parts that begin at the margin, with the indented lines, strings and comments of each."""
    lines = re.split(r"(?<=\n)", code)
    starts: list[int] = [0]
    quote: str | None = None
    depth, opened, again, number = 0, 0, 0, 0
    glued = False
    while number < len(lines):
        line = lines[number]
        if quote is None:
            strong = bool(_STRONG.match(line))
            if strong and depth > 0:
                depth = 0
            margin = bool(line.strip()) and line[0] not in " \t#"
            if margin and depth <= 0 and not glued and not _GOES_ON.match(line):
                depth = 0
                if number > starts[-1]:
                    starts.append(number)
            opened = number
        elif _STRONG.match(line) and line.startswith(("def ", "class ")) and again < 0:
            quote = None
        before = quote
        quote, deeper = scan_line(line, quote)
        depth = 0 if depth + deeper < 0 else depth + deeper
        if before is None and quote is not None:
            opened = number
        glued = quote is None and (line.rstrip("\n").endswith("\\") or line.startswith("@"))
        number += 1
        if number == len(lines) and quote is not None and again < 8 and opened + 1 < len(lines):
            again += 1  # that quote opens nothing: go on behind it
            starts = [start for start in starts if start <= opened]
            if starts[-1] != opened and lines[opened][:1] not in " \t":
                starts.append(opened)
            number, quote, depth, glued = opened + 1, None, 0, False
    return ["".join(lines[a:b]) for a, b in zip(starts, [*starts[1:], len(lines)], strict=True)]


def _read(part: str, entry_point: str | None) -> Piece | None:
    """A part as a piece: as it is, or without the paragraph above it, or what breaks it off."""
    tree = parse(part)
    if isinstance(tree, ast.Module):
        if entry_point is not None and any(isinstance(n, OUTSIDE) for n in tree.body):
            return None
        return Piece(part, tuple(tree.body))
    rest = part.partition("\n")[2]
    if rest.strip() and rest.lstrip("\n")[:1] in " \t" and not _is_definition(part):
        lifted = textwrap.dedent(rest)
        tree_below = parse(lifted)
        if isinstance(tree_below, ast.Module) and tree_below.body:
            return Piece(lifted, tuple(tree_below.body))
    if entry_point is not None and _is_definition(part):
        return _shortened(part, tree)
    return None


def _is_definition(part: str) -> bool:
    """Whether the first line that is no comment begins a definition or an import."""
    lines = (line for line in part.split("\n") if line.strip() and line[0] != "#")
    return bool(_STRONG.match(next(lines, "")))


OUTSIDE = (ast.Return, ast.Break, ast.Continue)


def _shortened(part: str, error: SyntaxError) -> Piece | None:
    """A definition without the lines that break it, if what is left ends as a function may end.

    A body that breaks off before it returns stays broken: it is no answer, and must not count as
    one that compiles.
    """
    lines = re.split(r"(?<=\n)", part)
    last = min(error.lineno or len(lines), len(lines))
    for end in range(last - 1, max(0, last - 1 - _STEPS_BACK), -1):
        text = "".join(lines[:end])
        tree = parse(text)
        if isinstance(tree, ast.Module):
            return Piece(text, tuple(tree.body)) if tree.body and _returns(tree.body[-1]) else None
    return None


def _returns(node: ast.stmt) -> bool:
    if isinstance(node, ast.ClassDef):
        return bool(node.body) and _returns(node.body[-1])
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return isinstance(node.body[-1], (ast.Return, ast.Raise))
    return False
