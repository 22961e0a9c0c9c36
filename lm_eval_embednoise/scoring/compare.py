"""When two outputs count as the same, by the official checkers of APPS and LiveCodeBench.

Each rule restates one step of `testing_util.py` of hendrycks/apps, or of LiveCodeBench, and has its
test. The text of this file also runs inside the sandbox, next to the tests of call-based problems:
standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

# -- printed answers: LiveCodeBench


def livecodebench_printed(output: str, expected: str) -> bool:
    """Line by line, outer blanks aside: equal as text, or as sequences of decimal numbers."""
    ours = [line.strip() for line in output.strip().split("\n")]
    theirs = [line.strip() for line in expected.strip().split("\n")]
    if len(ours) != len(theirs):
        return False
    for mine, wanted in zip(ours, theirs, strict=True):
        if mine == wanted:
            continue
        if not _same_decimals(mine, wanted):
            return False
    return True


def _same_decimals(mine: str, wanted: str) -> bool:
    try:
        ours, theirs = ([Decimal(word) for word in line.split()] for line in (mine, wanted))
        return ours == theirs
    except ArithmeticError:  # not a number, or one that can't be compared: sNaN
        return False


# -- printed answers: APPS


def apps_printed(output: str, expected: str) -> bool:
    """Any of the official checker's comparisons, from strict to lenient."""
    if output.strip() == expected.strip():
        return True
    ours, theirs = _filled_lines(output), _filled_lines(expected)
    if ours == theirs or _close(ours, theirs):
        return True
    # The sets of the words of each line, as a set of lines: order and repetition don't count.
    if _word_sets(ours) == _word_sets(theirs):
        return True
    try:
        return _rounded_sets(ours) == _rounded_sets(theirs)
    except (ValueError, OverflowError):
        return False


def _filled_lines(text: str) -> list[str]:
    """The stripped lines that are not blank."""
    return [line.strip() for line in text.split("\n") if line.strip()]


def _close(ours: list[str], theirs: list[str]) -> bool:
    """One number a line, as close as numpy.allclose asks: 1e-8 + 1e-5 of the expected."""
    try:
        pairs = list(zip(map(float, ours), map(float, theirs), strict=True))
    except ValueError:
        return False
    return all(a == b or abs(a - b) <= 1e-8 + 1e-5 * abs(b) < math.inf for a, b in pairs)


def _word_sets(lines: list[str]) -> set[frozenset[str]]:
    return {frozenset(line.split()) for line in lines}


def _rounded_sets(lines: list[str]) -> set[frozenset[float]]:
    return {frozenset(round(float(word), 3) for word in line.split()) for line in lines}


# -- returned answers


def livecodebench_returned(value: Any, expected: Any) -> bool:
    """Equal, a tuple counting as a list."""
    return bool((list(value) if isinstance(value, tuple) else value) == expected)


def apps_returned(value: Any, expected: Any) -> bool:
    """Equal to the expected value, or to its first element; tuples, also inside, count as lists."""
    if isinstance(value, tuple):
        value = list(value)
    if value == expected:
        return True
    if not (isinstance(expected, list) and expected):
        return False
    if value == expected[0]:
        return True
    if isinstance(value, list) and value and isinstance(value[0], tuple):
        return all(isinstance(x, tuple) for x in value) and list(map(list, value)) == expected[0]
    return False


def check_calls(candidate: Callable[..., Any], same: str, tests: list[Any]) -> None:
    """Call the candidate with each input; what the tests' process runs for call-based problems."""
    rule = {"apps": apps_returned, "livecodebench": livecodebench_returned}[same]
    for arguments, expected in tests:
        value = candidate(*arguments)
        assert rule(value, expected)
