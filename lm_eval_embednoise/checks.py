"""Checks of given values: errors that name the value, what is allowed, and the near miss."""

from __future__ import annotations

import difflib
import math
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

EXACT = 2**53  # up to here every whole number is a float


def suggest(name: str, allowed: Iterable[str]) -> str:
    """`"did you mean 'x'? "` when `name` is a near miss of an allowed name, else nothing."""
    near = difflib.get_close_matches(str(name), list(allowed), n=1)
    return f"did you mean {near[0]!r}? " if near else ""


def choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is none of the allowed words."""
    if value not in allowed:
        raise ValueError(
            f"{name}={value!r} is not known; {suggest(str(value), allowed)}"
            f"allowed: {', '.join(allowed)}"
        )


def number(name: str, value: Any, *, least: float = 0.0) -> float:
    """A finite number ≥ `least`, from a number or its text."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"{name}={value!r} is not a number")
    try:
        parsed = float(value)
    except ValueError:
        raise ValueError(f"{name}={value!r} is not a number") from None
    except OverflowError:  # a whole number of more than 308 digits
        parsed = math.inf
    if not math.isfinite(parsed) or parsed < least:
        raise ValueError(f"{name}={value!r} is not allowed; it must be a finite number ≥ {least:g}")
    return parsed


def integer(name: str, value: Any, *, least: int) -> int:
    """A whole number ≥ `least`, from a number or its text (`7`, `7.0`, `1e3`), every digit kept.

    Raises:
        ValueError: for anything else, and for a float beyond 2**53: it may have been another whole
            number before it was rounded.
    """
    parsed = number(name, value, least=least)
    if isinstance(value, float) and abs(parsed) > EXACT:
        raise ValueError(
            f"{name}={value!r} is not allowed; beyond 2**53 a number with a point or an exponent "
            "is rounded: write the whole number in digits"
        )
    exact = Decimal(value)
    if exact != int(exact):
        raise ValueError(f"{name}={value!r} is not allowed; it must be a whole number ≥ {least}")
    return int(exact)
