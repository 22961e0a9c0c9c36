"""Planes of correctness against diversity: every method on the problems where all are defined.

A metric of valid or correct samples is undefined where a method has too few of them, which happens
on hard problems and more often to methods that break things: means over each method's own problems
would compare easy problems with hard ones. So all that a plane holds (points, front, areas, matched
differences) is computed on the common problems alone, as if there were no others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lm_eval_embednoise.analysis import pareto
from lm_eval_embednoise.analysis.intervals import mean_intervals
from lm_eval_embednoise.analysis.methods import family, input_change
from lm_eval_embednoise.analysis.pairs import as_json, support
from lm_eval_embednoise.analysis.resample import Estimate, Means, Resampler, bca

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lm_eval_embednoise.analysis.protocol import Protocol
    from lm_eval_embednoise.analysis.runs import Run

_LEAST_SHARE = 0.5  # of the problems on which a method must be defined to be drawn


def planes(
    methods: Mapping[str, Run], resampler: Resampler, protocol: Protocol, *, level: float = 0.95
) -> list[dict[str, Any]]:
    """The protocol's planes as comparison.json holds them, for one model and task.

    Args:
        methods: label → run, problems aligned.
        resampler: clusters and draws of all problems.
        protocol: names the metrics of the planes, of the curve and of the matched difference.
        level: coverage of the intervals.
    """
    y = protocol["plane"]["y"]
    found = []
    for x in protocol["plane"]["x"]:
        runs = [run for run in methods.values() if {x, y} <= run.metrics.keys()]
        if runs:
            found.append({"x": x, "y": y, **_plane(runs, x, y, resampler, protocol, level)})
    return found


def _plane(
    runs: list[Run], x: str, y: str, resampler: Resampler, protocol: Protocol, level: float
) -> dict[str, Any]:
    defined = np.stack([np.isfinite(r.metrics[x]) & np.isfinite(r.metrics[y]) for r in runs])
    enough = defined.mean(1) >= _LEAST_SHARE
    drawn = [run for run, kept in zip(runs, enough, strict=True) if kept]
    common = defined[enough].all(0) & enough.any()
    matched = protocol["endpoints"]["correctness"]["metric"]
    head = {
        "n": int(common.sum()),
        "n_undefined": int((~common).sum()),
        "left_out": {runs[i].method: int(defined[i].sum()) for i in np.flatnonzero(~enough)},
    }
    names = [run.method for run in drawn]
    curve = [i for i, name in enumerate(names) if _on_curve(name, protocol)]
    body: dict[str, Any] = {
        "points": {},
        "front": [],
        "hypervolume": _no_areas(0, "no problem on which all methods are defined"),
        "curve": [names[i] for i in curve],
        "matched_metric": matched,
        "matched": {},
    }
    if not common.any():
        return head | body
    part = resampler.on(common)
    tables = {
        metric: np.stack([r.metrics.get(metric, np.full(r.n, np.nan))[common] for r in drawn], 1)
        for metric in (x, y, matched)
    }
    means = {metric: part.means(table) for metric, table in tables.items()}
    across, up = (
        mean_intervals(tables[metric], part, [support(metric)] * len(drawn), level=level)
        for metric in (x, y)
    )
    on_front = pareto.front(means[x].value, means[y].value)
    body["points"] = {
        name: {"x": as_json(at_x), "y": as_json(at_y)}
        for name, at_x, at_y in zip(names, across, up, strict=True)
    }
    body["front"] = [name for name, on in zip(names, on_front, strict=True) if on]
    body["hypervolume"] = _areas(drawn, means[x], means[y], level)
    body["matched"] = {
        name: as_json(pareto.matched_estimate(means[x], means[matched], i, curve, level=level))
        for i, name in enumerate(names)
        if i not in curve
    }
    return head | body


def _on_curve(method: str, protocol: Protocol) -> bool:
    return method in protocol["curve"] or family(method) == "temperature"


def _areas(runs: list[Run], x: Means, y: Means, level: float) -> dict[str, dict[str, Any]]:
    """Hypervolumes of the sampling and the noise arms, if there are equally many of them.

    More arms dominate more, whatever they are, so areas of unequal numbers say nothing.
    """
    sampling = [i for i, run in enumerate(runs) if input_change(run.perturbation) == "none"]
    noise = [i for i, run in enumerate(runs) if run.noisy]
    n = int(x.n[0])
    if len(sampling) != len(noise) or not noise:
        there = f"{len(sampling)} sampling and {len(noise)} noise"
        return _no_areas(n, f"areas need equally many arms, here are {there}")
    return {
        name: as_json(
            bca(
                float(pareto.hypervolume(x.value[members], y.value[members])),
                pareto.hypervolume(x.boot[:, members], y.boot[:, members]),
                pareto.hypervolume(x.jack[:, members], y.jack[:, members]),
                n,
                level=level,
            )
        )
        for name, members in (("sampling", sampling), ("noise", noise))
    }


def _no_areas(n: int, reason: str) -> dict[str, dict[str, Any]]:
    nothing = as_json(Estimate(np.nan, np.nan, np.nan, n, reason))
    return dict.fromkeys(("sampling", "noise"), nothing)
