"""What several probes write alike: arrays, numbers in tables, and two kinds of figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from lm_eval_embednoise.analysis.figures import RC, WIDTH, shades
from lm_eval_embednoise.written import whole

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lm_eval_embednoise.analysis.resample import Array


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write an npz file, whole or not at all; `/` in a name is kept."""
    with whole(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)


def number(value: float | None, form: str) -> str:
    """A number in a table; a dash where it is undefined."""
    return "–" if value is None or not np.isfinite(value) else format(value, form)


def bars(rows: Sequence[Mapping[str, Any]], kinds: Sequence[str]) -> Figure:
    """A bar for each method, its failures stacked by kind.

    Args:
        rows: of `failures.table`, in the order drawn.
        kinds: the parts, from left to right.
    """
    colors = mpl.colormaps["tab20"].colors  # type: ignore[attr-defined]
    with mpl.rc_context(RC):
        size = (2 * WIDTH, 1.2 + 0.24 * len(rows))
        figure = Figure(figsize=size, dpi=150, layout="constrained")
        axis = figure.subplots()
        left = np.zeros(len(rows))
        for kind, color in zip(kinds, colors, strict=False):
            share = np.array([100 * row["kinds"][kind]["value"] for row in rows])
            if share.any():
                axis.barh(range(len(rows)), share, left=left, color=color, label=kind)
            left += share
        axis.set_yticks(range(len(rows)), [row["method"] for row in rows], fontsize=8)
        axis.invert_yaxis()
        axis.set_xlabel("samples that fail (%)")
        axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def curves(lines: Mapping[str, tuple[Array, Array]], x: str, y: str) -> Figure:
    """A line for each method.

    Args:
        lines: method → x and y, [points] each; NaN leaves a gap.
        x: what the horizontal axis shows.
        y: what the vertical axis shows.
    """
    colors = shades(list(lines))
    with mpl.rc_context(RC):
        figure = Figure(figsize=(1.5 * WIDTH, 3.4), dpi=150, layout="constrained")
        axis = figure.subplots()
        for method, (horizontal, vertical) in lines.items():
            axis.plot(horizontal, vertical, color=colors[method], marker=".", label=method)
        axis.set_xlabel(x)
        axis.set_ylabel(y)
        axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure
