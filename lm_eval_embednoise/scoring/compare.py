"""When two outputs count as the same, by the official checkers of APPS and LiveCodeBench.

Each rule restates one step of `testing_util.py` of hendrycks/apps, or of LiveCodeBench, and has its
test. The text of this file also runs inside the sandbox, next to the tests of call-based problems:
standard library only.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

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


def _plain(value: Any) -> Any:
    """Arrays of numpy as the lists that they spell, also inside a list or tuple."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (list, tuple)) and any(hasattr(item, "tolist") for item in value):
        return type(value)(_plain(item) for item in value)
    return value


def livecodebench_returned(value: Any, expected: Any) -> bool:
    """Equal, a tuple or an array counting as a list."""
    value = _plain(value)
    return bool((list(value) if isinstance(value, tuple) else value) == expected)


def apps_returned(value: Any, expected: Any) -> bool:
    """Equal to the expected value, or to its first element; tuples, also inside, count as lists."""
    value = _plain(value)
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


# -- EvalPlus

_NOT_NONE = ("check_str", "text_match_three", "text_starta_endb")
_AS_SETS = (
    *("similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly"),
    *("larg_nnum", "intersection_array", "find_dissimilar", "Diff"),
)
_RELATIVE = 1e-7


def check_plus(
    candidate: Callable[..., Any], name: str, tolerance: float, tests: list[Any]
) -> None:
    """Call `candidate`, the function `name`, and compare as EvalPlus 0.3.1 does.

    `tests` are pairs of arguments and what the reference solution returned. Some functions have
    rules of their own. Once floats were expected, the tolerance applies to all later tests, as it
    does there.
    """
    for arguments, expected in tests:
        value = candidate(*arguments)
        if name == "find_zero":  # HumanEval/32: any root will do
            assert abs(_polynomial(arguments[0], value)) <= tolerance
            continue
        same = _equal_for(name, arguments, value, expected, tolerance)
        if tolerance == 0 and _are_floats(expected):
            tolerance = 1e-6
        if same or tolerance == 0:
            assert same
            continue
        assert type(value) is type(expected)
        assert _all_close(value, expected, tolerance)


def returned(
    candidate: Callable[..., Any], name: str, inputs: list[Any], most: int
) -> tuple[list[int], list[Any]]:
    """What the reference solution returns, which EvalPlus computes before it judges.

    Returns:
        The places of the inputs that it answers with at most `most` values, and those answers.
    """
    places, values = [], []
    for place, arguments in enumerate(inputs):
        try:
            value = candidate(*arguments)
        except Exception:  # beyond the memory: a list of millions of tuples
            continue
        if _size(value, most) <= most:
            places.append(place)
            values.append(value is not None if name in _NOT_NONE else value)
    return places, values


def _size(value: Any, most: int) -> int:
    """How many values there are inside a value; counting stops beyond `most`."""
    if isinstance(value, (str, bytes)):
        return 1 + len(value) // 256
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if not isinstance(value, (list, tuple, set, frozenset)):
        return 1
    count = 1
    for item in value:
        count += _size(item, most)
        if count > most:
            break
    return count


def _equal_for(name: str, arguments: Any, value: Any, expected: Any, tolerance: float) -> bool:
    """Equality, or what EvalPlus takes for it where MBPP leaves room."""
    if name in _AS_SETS:
        return bool(set(value) == set(expected))
    if name in _NOT_NONE:
        given = value if isinstance(value, bool) else value is not None
        return bool(given == expected)
    if value == expected or name == "are_equivalent":
        return True
    if name == "sum_div":
        return bool(value == 0)
    if name == "surface_Area":
        return bool(abs(value - _pyramid(*arguments)) <= tolerance)
    return name == "digit_distance_nums" and bool(value == _digit_distance(*arguments))


def _are_floats(value: Any) -> bool:
    if isinstance(value, (list, tuple)) and value:
        return all(isinstance(item, float) for item in value)
    return isinstance(value, float)


def _all_close(value: Any, expected: Any, tolerance: float) -> bool:
    """numpy.allclose of values of one shape: |a - b| <= tolerance + 1e-7 |b|, everywhere."""
    if isinstance(expected, (list, tuple)):
        return (
            isinstance(value, (list, tuple))
            and len(value) == len(expected)
            and all(_all_close(a, b, tolerance) for a, b in zip(value, expected, strict=True))
        )
    if not isinstance(expected, (int, float, complex)):
        return False
    return bool(
        value == expected
        or abs(value - expected) <= tolerance + _RELATIVE * abs(expected) < math.inf
    )


def _polynomial(coefficients: list[float], x: float) -> float:
    return sum(c * math.pow(x, power) for power, c in enumerate(coefficients))


def _pyramid(edge: float, height: float) -> int:
    """The surface of a square pyramid whose height is perpendicular to its base."""
    return round(edge**2 + 2 * edge * math.sqrt((edge / 2) ** 2 + height**2))


def _digit_distance(one: int, two: int) -> int:
    width = max(len(str(one)), len(str(two)))
    digits = zip(str(one).zfill(width), str(two).zfill(width), strict=True)
    return sum(abs(int(a) - int(b)) for a, b in digits)
