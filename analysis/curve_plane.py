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

from lm_eval_embednoise.analysis.arms import dose, sweeps
from lm_eval_embednoise.analysis.envelope import path
from lm_eval_embednoise.analysis.figures import RC, STYLES
from lm_eval_embednoise.analysis.methods import family

if TYPE_CHECKING:
    from lm_eval_embednoise.analysis.resample import Array

WIDTH = 5.6
Row = dict[str, Any]


def curve_plane(entry: dict[str, Any], rows: list[Row]) -> Figure | None:
    """One entry of a comparison's `curves`; `rows`: the leaderboard of its model and task."""
    at = {row["method"]: _means(row, entry["quality"], entry["outcome"]) for row in rows}
    at = {name: point for name, point in at.items() if np.isfinite(point).all()}
    reference = dict(zip(entry["methods"], entry["doses"], strict=True))
    if not set(reference) <= set(at):
        return None
    with mpl.rc_context(RC):
        figure = Figure(figsize=(WIDTH, 4.2), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axis = figure.subplots()
        axis.grid(alpha=0.2, linewidth=0.5)
        lines = [reference, *({row["method"]: dose(row) for row in arm} for arm in sweeps(rows, 3))]
        for doses in lines:
            known = {name: value for name, value in doses.items() if name in at}
            if len(known) < 3:
                continue
            ours = "temperature" if doses is reference else family(next(iter(known)))
            color, _ = STYLES[ours]
            dense = path(tuple(known.values()), np.array([at[name] for name in known]))
            width = 1.6 if doses is reference else 1.0
            axis.plot(dense[:, 0], dense[:, 1], color=color, linewidth=width)
        for name, (x, y) in at.items():
            color, marker = STYLES["temperature" if name in reference else family(name)]
            axis.plot(x, y, marker=marker, color=color, markersize=5)
        for name in (entry["methods"][0], entry["methods"][-1], "greedy"):
            if name in at:
                axis.annotate(name, tuple(at[name]), (5, 5), textcoords="offset points", fontsize=8)
        axis.set(xlabel=f"{entry['quality']}  (correct →)", ylabel=entry["outcome"])
        axis.set_ylim(bottom=0)
    return figure


def claims(entry: dict[str, Any]) -> str:
    """Which methods stand above the curve, in words, with the placebo."""
    above = [name for name, claim in entry["against"].items() if claim["says"] == "above"]
    placebo = "" if entry["placebo"] is None else f"; largest placebo {entry['placebo']:.3f}"
    return f"above the curve: {', '.join(above) or 'none'}{placebo}"


def _means(row: Row, *metrics: str) -> Array:
    values = [(row["metrics"].get(metric) or {}).get("value") for metric in metrics]
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
