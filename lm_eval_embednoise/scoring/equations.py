r"""The calculations of a worked answer, such as `3 * 4 = 12`, `$3×4=$12`, `\frac{12}{4} = 3`.

A calculation is a side of an equation that computes something, in a form in which the operands of
sums and products may change places; what it is said to give is no part of it. Only those count
that lead to the answer: what stands beside the way is not another way. Numbers only; words after a
number are its unit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

LONGEST = 200  # characters of an equation that is read
_ANNOTATION = re.compile(r"<<([^<>\n]*)>>")  # GSM8K's calculator
_LATEX = (
    (re.compile(r"\\(?:text|mathrm|mbox|textbf)\s*\{[^{}\n]*\}"), " "),
    (re.compile(r"\\boxed\s*\{([^{}\n]*)\}"), r"\1"),
    (re.compile(r"\\[dt]?frac\s*\{([^{}\n]*)\}\s*\{([^{}\n]*)\}"), r"((\1)/(\2))"),
    (re.compile(r"\\(?:times|cdot|ast)\b|[×·∙⋅]"), "*"),
    (re.compile(r"\\div\b|÷"), "/"),
    (re.compile(r"\\(?:left|right|quad|qquad)\b|\\[,;:! ()\[\]]|\\?\$|[`&]"), " "),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"[−–]"), "-"),
    (re.compile(r"(?<=[\d)])\*\*(?=[\d(])|\^\{?(?=\d)"), "^"),
    (re.compile(r"[*_]{2,}|[{}]"), " "),  # bold
)
_BULLET = re.compile(r"^[ \t]*(?:[-*+•]|\d+[.)])[ \t]+", re.MULTILINE)
_TIMES = re.compile(r"(?<=[\d)])[ \t]*(?:[xX]|times)[ \t]*(?=[\d(.])")
_UNIT = re.compile(
    r"(?<=\d)[ \t]?/?[ \t]?[A-Za-z]+(?:[ \t/]+[A-Za-z]+){0,3}"
    r"(?=[ \t]*(?:[-+*/=^)]|[xX][ \t]*[\d(]))"
)
_RUN = re.compile(r"[-+*/^()%=\d.,\t ]+")
_TOKEN = re.compile(r"(\d[\d,]*(?:\.\d+)?|\.\d+)|([-+*/^()%=])|([.,])")
_PLAIN = re.compile(r"-?(?:\d+(?:\.\d+)?|\.\d+)")
_MOST_DIGITS = 40  # of a number whose value is followed


@dataclass(frozen=True)
class Calculation:
    """One side of an equation: its form, the numbers in it, and those that it gives."""

    form: str
    operands: frozenset[Fraction]
    results: frozenset[Fraction]


def calculations(text: str, answer: str | None = None) -> list[str]:
    """The forms of a worked answer's calculations, each once, in the order of the alphabet.

    Of the equations in the text and in GSM8K's annotations (`<<3*4=12>>`) those count that lead to
    `answer`: they give it, or a number in one that does. All count when none gives the answer, or
    it is no number.
    """
    lines = [_plain(_ANNOTATION.sub("", text)), *_ANNOTATION.findall(text)]
    found = [one for line in lines for one in _of_text(line)]
    leading = _leading(found, answer)
    return sorted({one.form for one in leading or found})


def _plain(text: str) -> str:
    for pattern, instead in _LATEX:
        text = pattern.sub(instead, text)
    text = _BULLET.sub("", text)
    return _TIMES.sub("*", _UNIT.sub("", text))


def _of_text(text: str) -> Iterator[Calculation]:
    for run in _RUN.finditer(text):
        if "=" in run.group() and len(run.group()) <= LONGEST:
            for tokens in _statements(run.group()):
                yield from _of_equation(tokens)


def _statements(run: str) -> Iterator[list[str]]:
    """The tokens of each equation: two numbers side by side, or a comma, end one."""
    tokens: list[str] = []
    for number, sign, stop in _TOKEN.findall(run):
        if stop or (number and tokens and _is_operand(tokens[-1])):
            yield tokens
            tokens = []
        if number:
            tokens.append(number.rstrip(",").replace(",", ""))
        elif sign:
            tokens.append(sign)
    yield tokens


def _is_operand(token: str) -> bool:
    return token in (")", "%") or token[-1].isdigit()


def _of_equation(tokens: list[str]) -> Iterator[Calculation]:
    """The sides that compute something, of those beside a side that can be read."""
    sides: list[list[str]] = [[]]
    for token in tokens:
        if token == "=":
            sides.append([])
        else:
            sides[-1].append(token)
    while sides[-1] and sides[-1][-1] in "+-*/^":  # of a unit (`$700/week`), or a dash
        sides[-1].pop()
    read = [_read(_balanced(side)) for side in sides]
    for place, side in enumerate(read):
        beside = [one for one in (*read[:place][-1:], *read[place + 1 :][:1]) if one is not None]
        if side is not None and beside and side.kind != _NUMBER:
            given = [side.value, *(one.value for one in beside if one.kind == _NUMBER)]
            results = frozenset(value for value in given if value is not None)
            yield Calculation(side.form, frozenset(side.numbers), results)


def _balanced(side: list[str]) -> list[str]:
    """A side without the parenthesis that was opened before its equation or closes after it."""
    excess = side.count("(") - side.count(")")
    while excess > 0 and side[:1] == ["("]:
        side, excess = side[1:], excess - 1
    while excess < 0 and side[-1:] == [")"]:
        side, excess = side[:-1], excess + 1
    return side


def _leading(found: list[Calculation], answer: str | None) -> list[Calculation]:
    """The calculations that lead to the answer; none when none gives it."""
    number = _number(answer or "")
    giving: dict[Fraction, list[Calculation]] = {}
    for one in found:
        for result in one.results:
            giving.setdefault(result, []).append(one)
    leading: list[Calculation] = []
    todo = [] if number is None else [number]
    while todo:
        for one in giving.pop(todo.pop(), ()):
            leading.append(one)
            todo.extend(one.operands)
    return leading


def _number(digits: str) -> Fraction | None:
    """The value of a number; None for one that is none, or too long to compute with."""
    plain = digits.replace(",", "")
    if len(plain) > _MOST_DIGITS or not _PLAIN.fullmatch(plain):
        return None
    return Fraction(plain)


# -- one side of an equation

_NUMBER, _SUM, _PRODUCT, _POWER = "number", "+", "*", "^"
_NEUTRAL = {_SUM: 0, _PRODUCT: 1}
_SIGNS = {_SUM: "+-", _PRODUCT: "*/"}


@dataclass
class _Term:
    """A number, sum, product or power; `parts` of a sum or product, each with its sign +1 or -1."""

    kind: str
    form: str
    value: Fraction | None
    numbers: set[Fraction]
    parts: list[tuple[int, _Term]]


def _read(tokens: list[str]) -> _Term | None:
    """What a side says; None when it is no expression."""
    try:
        reader = _Reader(tokens)
        term = reader.sum()
    except (IndexError, _NoExpressionError):
        return None
    return None if reader.rest else term


class _NoExpressionError(Exception):
    """Tokens that don't make an expression."""


class _Reader:
    """Reads sums of products of powers of numbers, by recursive descent."""

    def __init__(self, tokens: list[str]) -> None:
        self.rest = tokens[::-1]

    def _next(self, signs: str) -> str:
        """Take the next token if it is one of these."""
        return self.rest.pop() if self.rest and self.rest[-1] in signs else ""

    def sum(self) -> _Term:
        parts = [(-1 if self._next("-") else 1, self._product())]
        while sign := self._next("+-"):
            parts.append((1 if sign == "+" else -1, self._product()))
        return _combined(_SUM, parts)

    def _product(self) -> _Term:
        parts = [(1, self._power())]
        while (sign := self._next("*/")) or self.rest[-1:] == ["("]:
            parts.append((-1 if sign == "/" else 1, self._power()))
        return _combined(_PRODUCT, parts)

    def _power(self) -> _Term:
        base = self._atom()
        if not self._next("^"):
            return base
        exponent = self._atom()
        form = f"({base.form}^{exponent.form})"
        value = _raised(base.value, exponent.value)
        return _Term(_POWER, form, value, base.numbers | exponent.numbers, [])

    def _atom(self) -> _Term:
        token = self.rest.pop()
        if token == "(":
            term = self.sum()
            if not self._next(")"):
                raise _NoExpressionError
            return term
        if not token[-1].isdigit():
            raise _NoExpressionError
        value = _number(token)
        numbers = set() if value is None else {value}
        if self._next("%") and value is not None:
            value /= 100
            numbers.add(value)
        return _Term(_NUMBER, token if value is None else _written(value), value, numbers, [])


def _combined(kind: str, parts: list[tuple[int, _Term]]) -> _Term:
    """A sum or product in its form: flat, in one order, without what changes nothing."""
    flat: list[tuple[int, _Term]] = []
    for sign, term in parts:
        inner = term.parts if term.kind == kind else [(1, term)]
        flat += [(sign * own, one) for own, one in inner if one.value != _NEUTRAL[kind]]
    if not flat:
        return parts[0][1]
    if len(flat) == 1 and flat[0][0] == 1:
        return flat[0][1]
    value: Fraction | None = Fraction(_NEUTRAL[kind])
    for sign, term in flat:
        value = _applied(kind, sign, value, term.value)
    numbers = set[Fraction]().union(*(term.numbers for _, term in flat))
    if len(flat) == 1 and flat[0][1].kind == _NUMBER and kind == _SUM:
        form = "-" + flat[0][1].form if value is None else _written(value)
        return _Term(_NUMBER, form, value, numbers if value is None else numbers | {value}, [])
    written = sorted(_SIGNS[kind][sign < 0] + term.form for sign, term in flat)
    return _Term(kind, f"({''.join(written)})", value, numbers, flat)


def _written(value: Fraction) -> str:
    """A number so that 7.5 isn't taken for the division 15/2."""
    return f"{value.numerator}:{value.denominator}" if value.denominator > 1 else str(value)


def _applied(
    kind: str, sign: int, value: Fraction | None, other: Fraction | None
) -> Fraction | None:
    if value is None or other is None:
        return None
    if kind == _SUM:
        return value + sign * other
    if sign < 0 and other == 0:
        return None
    return value * other if sign > 0 else value / other


def _raised(base: Fraction | None, exponent: Fraction | None) -> Fraction | None:
    """A power, where it is no larger than numbers that people write."""
    if base is None or exponent is None or exponent.denominator != 1 or abs(exponent) > 30:
        return None
    if max(abs(base.numerator), base.denominator) > 10**9 or (base == 0 and exponent < 0):
        return None
    return base**exponent.numerator
