"""The plane of correctness against diversity: Pareto front, hypervolume, matched difference.

Every function takes points of all methods with leading axes for resamples, `[..., methods]`, so an
observed value, its bootstrap and its jackknife come from the same code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lm_eval_embednoise.analysis.resample import Array, Estimate, Means, bca

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LOST = 0.05  # share of resamples that may fall off the curve before the interval is withheld


def front(x: Array, y: Array) -> NDArray[np.bool_]:
    """Which methods no other dominates (at least as good in both, better in one), `[..., methods]`.

    Undefined points are never on the front and dominate nothing.
    """
    dominated = (
        (x[..., None, :] >= x[..., :, None])
        & (y[..., None, :] >= y[..., :, None])
        & ((x[..., None, :] > x[..., :, None]) | (y[..., None, :] > y[..., :, None]))
    )
    return ~dominated.any(-1) & np.isfinite(x) & np.isfinite(y)


def hypervolume(x: Array, y: Array) -> Array:
    """Area dominated by the methods, reference point (0, 0); 0 if no point is defined."""
    defined = np.isfinite(x) & np.isfinite(y)
    x, y = np.where(defined, np.maximum(x, 0), 0.0), np.where(defined, np.maximum(y, 0), 0.0)
    order = np.argsort(-x, axis=-1, kind="stable")
    x, y = np.take_along_axis(x, order, -1), np.take_along_axis(y, order, -1)
    heights = np.maximum.accumulate(y, axis=-1)
    widths = x - np.concatenate([x[..., 1:], np.zeros_like(x[..., :1])], axis=-1)
    return np.sum(widths * heights, axis=-1)


def matched_difference(x: Array, y: Array, curve_x: Array, curve_y: Array) -> Array:
    """A point's height above a curve at the point's own x, `[...]`; NaN outside the curve's range.

    The curve is the polyline through its points in order of x (`[..., points]`).
    """
    x, y = np.atleast_1d(x), np.atleast_1d(y)
    curve_x, curve_y = np.atleast_2d(curve_x), np.atleast_2d(curve_y)
    order = np.argsort(curve_x, axis=-1, kind="stable")
    xs, ys = np.take_along_axis(curve_x, order, -1), np.take_along_axis(curve_y, order, -1)
    # The segment that holds x: the last curve point not to its right, but never the final one.
    left = np.clip(np.sum(xs <= x[..., None], axis=-1) - 1, 0, xs.shape[-1] - 2)[..., None]
    x0, x1 = (np.take_along_axis(xs, left + i, -1)[..., 0] for i in (0, 1))
    y0, y1 = (np.take_along_axis(ys, left + i, -1)[..., 0] for i in (0, 1))
    span = x1 - x0
    share = np.where(span > 0, (x - x0) / np.where(span > 0, span, 1.0), 0.5)
    inside = (x >= xs[..., 0]) & (x <= xs[..., -1])
    return np.where(inside, y - (y0 + share * (y1 - y0)), np.nan)


def matched_estimate(
    x: Means, y: Means, method: int, curve: list[int], *, level: float = 0.95
) -> Estimate:
    """The matched difference of one method against a curve of others, with its BCa interval.

    Args:
        x: means of the diversity metric, one column a method.
        y: means of the correctness metric, likewise.
        method: column of the method.
        curve: columns of the curve's methods.
        level: coverage.
    """
    n = int(min(x.n[method], y.n[method]))
    if len(curve) < 2:
        return _undefined(n, "a curve needs two temperatures")
    if not all(np.isfinite(m.value[[method, *curve]]).all() for m in (x, y)):
        return _undefined(n, "undefined for the method or a point of the curve")
    value, boot, jack = (
        matched_difference(
            getattr(x, part)[..., method],
            getattr(y, part)[..., method],
            getattr(x, part)[..., curve],
            getattr(y, part)[..., curve],
        )
        for part in ("value", "boot", "jack")
    )
    if not np.isfinite(value[0]):
        reach = x.value[curve]
        return _undefined(
            n, f"{x.value[method]:.3f} is outside the curve, {reach.min():.3f} to {reach.max():.3f}"
        )
    lost = float(np.mean(~np.isfinite(boot)))
    if lost > _LOST or not np.isfinite(jack).all():
        reason = f"{100 * lost:.0f} % of resamples fall off the end of the curve"
        return Estimate(float(value[0]), np.nan, np.nan, n, reason)
    return bca(float(value[0]), boot, jack, n, level=level)


def _undefined(n: int, reason: str) -> Estimate:
    return Estimate(np.nan, np.nan, np.nan, n, reason)
