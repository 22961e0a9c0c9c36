"""Means of what is defined: samples end, and some quantities have no value for a problem."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray


def mean(values: Iterable[float | None]) -> float:
    """Mean of the values that are there; NaN where none is."""
    known = [float(value) for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def mean_first(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Mean over the first axis of the entries that are there; NaN where none is."""
    known = np.isfinite(values)
    count = known.sum(0)
    total = np.where(known, values, 0.0).astype(np.float64).sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
