"""Per-problem values to one number, each function with its own standard error.

The harness's mean propagates NaN, and it computes standard errors of its own functions only; the
plug-in makes it use the attribute `stderr` of these.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

NAN = float("nan")


def _defined(values: Sequence[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def mean(values: Sequence[float]) -> float:
    """Mean over the problems where the metric is defined; NaN where there is none."""
    defined = _defined(values)
    return math.fsum(defined) / len(defined) if defined else NAN


def mean_stderr(values: Sequence[float]) -> float:
    """Standard error of that mean; NaN below two defined problems."""
    defined = _defined(values)
    if len(defined) < 2:
        return NAN
    centre = mean(defined)
    spread = math.fsum((value - centre) ** 2 for value in defined) / (len(defined) - 1)
    return math.sqrt(spread / len(defined))


def total(values: Sequence[float]) -> float:
    """Sum over problems, for counts."""
    return math.fsum(_defined(values))


def no_stderr(values: Sequence[float]) -> float:
    """A count of what happened has no standard error."""
    return NAN


mean.stderr = mean_stderr  # type: ignore[attr-defined]
total.stderr = no_stderr  # type: ignore[attr-defined]
