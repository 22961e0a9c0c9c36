"""Every method against a family's whole curve: matched differences, one band for all, placebos.

A claim needs three things: the simultaneous band excludes 0, the difference is larger than the
largest placebo (an interior point of the family against the curve of the others; on the family's
own front, where the truth is no difference), and enough doses for a curve.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_eval_embednoise.analysis.bands import max_t_band, replicated_means
from lm_eval_embednoise.analysis.envelope import area, envelope, path
from lm_eval_embednoise.analysis.intervals import LEAST_CLUSTERS
from lm_eval_embednoise.analysis.pairs import as_json
from lm_eval_embednoise.analysis.resample import Array, Estimate, Resampler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lm_eval_embednoise.analysis.families import Family
    from lm_eval_embednoise.analysis.runs import Run

ABOVE, BELOW, OPEN = "above", "below", "not distinguishable"
LEAST_DOSES = 8
_LEAST_SHARE = 0.5  # of the problems on which an outcome must be defined for all


@dataclass(frozen=True)
class Claim:
    """One method against the curve in one outcome."""

    method: str
    outcome: str
    difference: Estimate  # y − E(x), with the simultaneous band
    transposed: Estimate  # quality at equal outcome, with its own simultaneous band
    placebo: float  # the largest |placebo| on the family's front; NaN where there is none
    says: str | None  # above, below, not distinguishable; None: no difference can be had


@dataclass(frozen=True)
class Curve:
    """A family as the reference of other methods, and what came of it."""

    family: Family
    quality: str
    claims: tuple[Claim, ...]
    placebos: dict[str, dict[str, Estimate]]  # outcome → the family's interior methods
    areas: dict[str, dict[str, Estimate]]  # outcome → first method of another family
    others: tuple[Family, ...] = ()


@dataclass(frozen=True)
class _Drawn:
    """Means of methods on their common problems: last axis observed, then the replicates."""

    x: Array  # [methods, 1 + draws]
    y: Array
    n: int


def against(
    family: Family,
    runs: dict[str, Run],
    outcomes: Sequence[str],
    resampler: Resampler,
    *,
    others: Sequence[Family] = (),
    quality: str = "pass@1",
    level: float = 0.95,
) -> Curve:
    """Compare all methods, and other families by their areas, with a family's curve.

    Args:
        family: the reference, at least two doses.
        runs: label → run, problems aligned.
        outcomes: the metrics y that the protocol declares; the band holds for all of them at once.
        resampler: clusters and draws.
        others: families to be compared by area.
        quality: the metric x.
        level: of the simultaneous bands.
    """
    names = [name for name in runs if name not in family.methods]
    known = [y for y in outcomes if all(_has(runs[m], quality, y) for m in family.methods)]
    rows = [(name, y) for y in known for name in names if _has(runs[name], quality, y)]
    matched = [_matched(family, runs, name, quality, y, resampler) for name, y in rows]
    straight = _banded([d for d, _ in matched], resampler, level)
    across = _banded([d for _, d in matched], resampler, level)
    placebos = {y: _placebos(family, runs, quality, y, resampler, level) for y in known}
    claims = []
    for (name, y), up, sideways in zip(rows, straight, across, strict=True):
        largest = _largest(placebos[y], _front(family, runs, quality, y))
        claims.append(Claim(name, y, up, sideways, largest, says(up, largest, len(family.doses))))
    areas = {y: _areas(family, others, runs, quality, y, resampler, level) for y in known}
    return Curve(family, quality, tuple(claims), placebos, areas, tuple(others))


def described(curve: Curve) -> list[dict[str, Any]]:
    """A curve as comparison.json holds it, one entry an outcome."""
    return [
        {
            "axis": curve.family.axis,
            "doses": list(curve.family.doses),
            "methods": list(curve.family.methods),
            "quality": curve.quality,
            "outcome": outcome,
            "placebos": {name: as_json(e) for name, e in placebos.items()},
            "against": {
                claim.method: {
                    "says": claim.says,
                    "difference": as_json(claim.difference),
                    "transposed": as_json(claim.transposed),
                }
                for claim in curve.claims
                if claim.outcome == outcome
            },
            "placebo": next(
                (
                    claim.placebo
                    for claim in curve.claims
                    if claim.outcome == outcome and np.isfinite(claim.placebo)
                ),
                None,
            ),
            "areas": {name: as_json(e) for name, e in curve.areas[outcome].items()},
            "others": [
                {"axis": f.axis, "doses": list(f.doses), "methods": list(f.methods)}
                for f in curve.others
            ],
        }
        for outcome, placebos in curve.placebos.items()
    ]


def says(difference: Estimate, placebo: float, doses: int) -> str | None:
    """What a matched difference allows to claim."""
    if not np.isfinite(difference.low):
        return None
    if doses < LEAST_DOSES or not abs(difference.value) > placebo:
        return OPEN
    if difference.low > 0:
        return ABOVE
    return BELOW if difference.high < 0 else OPEN


def _front(family: Family, runs: dict[str, Run], quality: str, y: str) -> list[str]:
    """Methods of the family that none of its others reaches in both means."""
    at = {m: tuple(np.nanmean(runs[m].metrics[k]) for k in (quality, y)) for m in family.methods}
    return [
        name
        for name, (x, height) in at.items()
        if not any(a >= x and b >= height for other, (a, b) in at.items() if other != name)
    ]


def _largest(placebos: dict[str, Estimate], front: list[str]) -> float:
    sizes = [abs(e.value) for name, e in placebos.items() if name in front]
    return max((size for size in sizes if np.isfinite(size)), default=float("nan"))


Replicates = tuple[Array, int, str | None]  # observed and drawn [1 + draws], n, why undefined


def _matched(
    family: Family, runs: dict[str, Run], name: str, quality: str, y: str, resampler: Resampler
) -> tuple[Replicates, Replicates]:
    """A method's matched difference and its transposed one."""
    drawn = _draw([*family.methods, name], runs, quality, y, resampler)
    if isinstance(drawn, str):
        nothing = (np.array([np.nan]), 0, drawn)
        return nothing, nothing
    along_x, along_y = path(family.doses, drawn.x[:-1]), path(family.doses, drawn.y[:-1])
    return (
        _height(along_x, along_y, drawn.x[-1], drawn.y[-1], drawn.n, quality),
        _height(along_y, along_x, drawn.y[-1], drawn.x[-1], drawn.n, y),
    )


def _height(x: Array, y: Array, at_x: Array, at_y: Array, n: int, quality: str) -> Replicates:
    reached = float(x[:, 0].max())
    if at_x[0] > reached:
        reason = f"{quality} {at_x[0]:.3f} is beyond the curve, which reaches {reached:.3f}"
        return np.array([np.nan]), n, reason
    return at_y - envelope(x, y, at_x), n, None


def _placebos(
    family: Family, runs: dict[str, Run], quality: str, y: str, resampler: Resampler, level: float
) -> dict[str, Estimate]:
    """Each interior method of the family against the curve of the others."""
    interior = family.methods[1:-1] if len(family.methods) > 3 else ()
    replicates = [
        _matched(family.without(name), runs, name, quality, y, resampler)[0] for name in interior
    ]
    return dict(zip(interior, _banded(replicates, resampler, level), strict=True))


def _areas(
    family: Family,
    others: Sequence[Family],
    runs: dict[str, Run],
    quality: str,
    y: str,
    resampler: Resampler,
    level: float,
) -> dict[str, Estimate]:
    """Mean of E_other − E over the common range of quality, for each other family."""
    kept: list[str] = []
    gaps: list[Replicates] = []
    for other in others:
        if not all(_has(runs[name], quality, y) for name in other.methods):
            continue
        drawn = _draw([*other.methods, *family.methods], runs, quality, y, resampler)
        kept.append(other.methods[0])
        if isinstance(drawn, str):
            gaps.append((np.array([np.nan]), 0, drawn))
            continue
        cut = len(other.methods)
        ours, theirs = (
            (path(member.doses, drawn.x[part]), path(member.doses, drawn.y[part]))
            for member, part in ((other, slice(cut)), (family, slice(cut, None)))
        )
        gap = area(ours, theirs)
        reason = None if np.isfinite(gap[0]) else f"the curves share no range of {quality}"
        gaps.append((gap, drawn.n, reason))
    return dict(zip(kept, _banded(gaps, resampler, level), strict=True))


def _draw(
    names: Sequence[str], runs: dict[str, Run], quality: str, y: str, resampler: Resampler
) -> _Drawn | str:
    """Means of all methods on the problems where all are defined; or why there are none."""
    x_values, y_values = (
        np.stack([runs[name].metrics[metric] for name in names], axis=1) for metric in (quality, y)
    )
    common = np.array(np.isfinite(x_values + y_values).all(1))
    if common.sum() < _LEAST_SHARE * len(common):
        return f"{y} is defined for all on {common.sum()} of {len(common)} problems only"
    groups = len(np.unique(resampler.clusters[common]))
    if groups < LEAST_CLUSTERS:
        return f"{groups} independent problems, a curve needs {LEAST_CLUSTERS}"
    x, y_ = (
        np.concatenate(
            [
                values.mean(0)[:, None],
                replicated_means(values, resampler, resampler.clusters[common]),
            ],
            axis=1,
        )
        for values in (x_values[common], y_values[common])
    )
    return _Drawn(x, y_, int(common.sum()))


def _banded(replicates: Sequence[Replicates], resampler: Resampler, level: float) -> list[Estimate]:
    """Estimates with one band for all that are defined."""
    defined = [i for i, (_, _, reason) in enumerate(replicates) if reason is None]
    out = [Estimate(np.nan, np.nan, np.nan, n, reason) for _, n, reason in replicates]
    if not defined:
        return out
    table = np.stack([replicates[i][0] for i in defined])
    usable = np.array(np.isfinite(table).all(0))
    band = max_t_band(table[:, 0], table[:, 1:][:, usable[1:]], resampler.groups, level=level)
    for j, i in enumerate(defined):
        low, high = float(band.low[j]), float(band.high[j])
        reason = None if np.isfinite(low) else "no variation between replicates"
        out[i] = Estimate(float(band.value[j]), low, high, replicates[i][1], reason)
    return out


def _has(run: Run, *metrics: str) -> bool:
    return all(metric in run.metrics for metric in metrics)
