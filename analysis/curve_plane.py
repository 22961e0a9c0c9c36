"""The plane of quality and outcome with the families' curves, from a comparison's own numbers.

A curve is the path of the means, interpolated in the logarithm of the dose, through its points;
greedy is a point, and no line goes to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lm_eval_embednoise.analysis.envelope import path
from lm_eval_embednoise.analysis.figures import (
    RC,
    STYLES,
    WIDTH,
    in_unit,
    name_points,
    tip,
    whiskers,
)
from lm_eval_embednoise.analysis.methods import family
from lm_eval_embednoise.analysis.quantities import headed, size_text

if TYPE_CHECKING:
    from collections.abc import Collection

Row = dict[str, Any]


def curve_plane(
    entry: dict[str, Any], rows: list[Row], named: Collection[str | None] = ()
) -> Figure | None:
    """One entry of a comparison's `curves`; None where a method of the curve lacks a value.

    Args:
        entry: the temperature curve in one outcome, and what it says of the other methods.
        rows: the leaderboard of its model and task.
        named: methods drawn with their intervals and written out, beside greedy and the curve's
            ends.
    """
    axes = (entry["quality"], entry["outcome"])
    points = [_point(row, *axes) for row in rows]
    points = [point for point in points if point["x"] and point["y"]]
    at = {point["method"]: (point["x"]["value"], point["y"]["value"]) for point in points}
    reference = dict(zip(entry["methods"], entry["doses"], strict=True))
    if not set(reference) <= set(at):
        return None
    with mpl.rc_context(RC):
        figure = Figure(figsize=(WIDTH, 4.2), dpi=150, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        axis = figure.subplots()
        axis.grid(alpha=0.2, linewidth=0.5)
        lines = [reference, *_others(entry)]
        pieces: list[Any] = []
        for doses in lines:
            known = {name: value for name, value in doses.items() if name in at}
            if len(known) < 3:
                continue
            ours = "temperature" if doses is reference else family(next(iter(known)))
            color, _ = STYLES[ours]
            dense = path(tuple(known.values()), np.array([at[name] for name in known]))
            width = 1.6 if doses is reference else 1.0
            axis.plot(dense[:, 0], dense[:, 1], color=color, linewidth=width)
            pieces += list(np.stack([dense[:-1], dense[1:]], axis=1))
        shown = {*named, *entry["methods"][:: len(reference) - 1], "greedy"}
        families = {}
        for point in points:
            name = point["method"]
            kind = "temperature" if name in reference else family(name)
            color, marker = STYLES[kind]
            [mark] = axis.plot(
                *at[name], marker=marker, color=color, markersize=5, linestyle="none"
            )
            tip(mark, name, dict(zip(axes, (point["x"], point["y"]), strict=True)))
            families[kind] = mark
            point["named"] = name in shown
            if name in named:
                xerr, yerr = whiskers(point["x"]), whiskers(point["y"])
                axis.errorbar(
                    *at[name], xerr=xerr, yerr=yerr, ecolor=color, elinewidth=1, fmt="none"
                )
        axis.set(xlabel=f"{headed(axes[0])}  (correct →)", ylabel=headed(axes[1]))
        in_unit(axis.xaxis, axes[0])
        in_unit(axis.yaxis, axes[1])
        axis.set_ylim(bottom=0)
        figure.legend(
            families.values(), families, loc="outside lower center", ncols=3, fontsize=8,
            frameon=False,
        )  # fmt: skip
        canvas.draw()
        figure.set_layout_engine(None)
        name_points(axis, points, pieces)
    return figure


def _others(entry: dict[str, Any]) -> list[dict[str, float]]:
    """The other families, method → dose; none in files from before they were told."""
    return [
        dict(zip(family["methods"], family["doses"], strict=True))
        for family in entry.get("others", [])
    ]


def claims(entry: dict[str, Any]) -> str:
    """Which methods stand above the curve, in words, with the placebo."""
    above = [name for name, claim in entry["against"].items() if claim["says"] == "above"]
    placebo = entry["placebo"]
    beside = "" if placebo is None else f"; largest placebo {size_text(entry['outcome'], placebo)}"
    return f"above the curve: {', '.join(above) or 'none'}{beside}"


def _point(row: Row, *axes: str) -> dict[str, Any]:
    """An entry's estimates on both axes; None where it has no value."""
    found = (row["metrics"].get(metric) or {"value": None} for metric in axes)
    x, y = (estimate if estimate["value"] is not None else None for estimate in found)
    return {"method": row["method"], "x": x, "y": y}
