"""A family's envelope in the plane of quality and outcome, and how far a method stands above it.

Mean quality x and outcome y are interpolated in the dose (monotone cubic over its logarithm), which
gives a path in the plane; E(q) is the most y that the path reaches at quality q or more. Nothing is
extrapolated beyond the lowest and the highest dose. A method's matched difference is y − E(x), its
transposed one x − the most quality at outcome y or more. Every function takes arrays whose last
axis holds the replicates of the bootstrap, so what is observed and what is drawn are one code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.interpolate import PchipInterpolator

if TYPE_CHECKING:
    from lm_eval_embednoise.analysis.resample import Array

STEPS = 16  # points of the path on each segment between two doses
_SHARE = 24  # levels of q over which an area is averaged


def path(doses: tuple[float, ...], values: Array) -> Array:
    """Values at the doses [doses, ...] as a dense path along the logarithm of the dose [t, ...]."""
    knots = np.log(np.asarray(doses, dtype=np.float64))
    if len(knots) < 2:
        raise ValueError("a path needs two doses")
    grid = np.interp(np.arange((len(knots) - 1) * STEPS + 1) / STEPS, np.arange(len(knots)), knots)
    grid[::STEPS] = knots
    with np.errstate(over="ignore"):  # slopes near 0, whose harmonic mean is then 0
        return np.asarray(PchipInterpolator(knots, values, axis=0)(grid))


def envelope(x: Array, y: Array, q: Array) -> Array:
    """The most y on the path (x, y) [t, r] where x ≥ q [r].

    For q above the path's largest x, the most y at that x.
    """
    q = np.minimum(q, x.max(0))
    inside = x >= q
    best = np.where(inside, y, -np.inf).max(0)
    # Where the path crosses q between two of its points, it reaches q exactly.
    crosses = inside[1:] != inside[:-1]
    span = np.where(crosses, x[1:] - x[:-1], 1.0)
    share = np.where(crosses, (q - x[:-1]) / span, 0.0)
    at = y[:-1] + share * (y[1:] - y[:-1])
    return np.asarray(np.maximum(best, np.where(crosses, at, -np.inf).max(0)))


def area(ours: tuple[Array, Array], theirs: tuple[Array, Array]) -> Array:
    """Mean of E_ours − E_theirs over the q that both paths (x, y) cover, [r]; NaN for none."""
    low = np.maximum(ours[0].min(0), theirs[0].min(0))
    high = np.minimum(ours[0].max(0), theirs[0].max(0))
    shares = (np.arange(_SHARE) + 0.5) / _SHARE
    levels = [low + share * (high - low) for share in shares]
    gaps = [envelope(*ours, q) - envelope(*theirs, q) for q in levels]
    return np.where(high > low, np.mean(gaps, axis=0), np.nan)
