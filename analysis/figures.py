"""What all figures share, and the Pareto plot, one panel for each model and task.

Text is text in the SVG, and a mark that `tip` names says so under the pointer.
"""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from lm_eval_embednoise.analysis.arms import featured
from lm_eval_embednoise.analysis.labels import place
from lm_eval_embednoise.analysis.measures import measure
from lm_eval_embednoise.analysis.methods import family
from lm_eval_embednoise.analysis.quantities import estimated, headed, percent
from lm_eval_embednoise.written import whole

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

# Okabe & Ito's palette, safe for the colour-blind; the marker repeats what the colour says.
STYLES = {
    "greedy": ("#000000", "s"),
    "temperature": ("#D55E00", "o"),
    "nucleus": ("#CC79A7", "D"),
    "min-p": ("#882255", "d"),
    "noise": ("#0072B2", "^"),
    "literal": ("#56B4E9", "<"),
    "soft prompt": ("#E69F00", "P"),
    "prefix": ("#999999", "X"),
    "other": ("#009E73", "v"),
}
# The same for letters, dark enough on white (contrast 4.5 and more).
TEXT = {
    **{name: color for name, (color, _) in STYLES.items()},
    "temperature": "#B34E00",
    "nucleus": "#A3527F",
    "literal": "#1F77A8",
    "soft prompt": "#8A5F00",
    "prefix": "#666666",
    "other": "#007A57",
}
WIDTH = 4.6  # inches: a phone shows letters of 8 points as they are
FEW = 4  # methods that are named as not drawn; of more the number is told
NAMED = 16  # points with a name in one panel
_TIP = "tip:"  # begins the group's id that `save` turns into the SVG's own title
RC: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "embednoise",  # the same figure is the same file
    "svg.fonttype": "none",  # text stays text; other fonts than this one are narrower
}


def shades(methods: list[str]) -> dict[str, str]:
    """A colour for each method: its family's, from light to full in the order given."""
    colors = {}
    for method in methods:
        relatives = [name for name in methods if family(name) == family(method)]
        rank = (relatives.index(method) + 1) / len(relatives)
        rgb = np.array(mpl.colors.to_rgb(STYLES[family(method)][0]))
        colors[method] = mpl.colors.to_hex(tuple(1 - (0.35 + 0.65 * rank) * (1 - rgb)))
    return colors


def pareto_figure(
    comparison: dict[str, Any], x: str | None = None, planes: list[dict[str, Any]] | None = None
) -> Figure:
    """Correctness against diversity with intervals, the front drawn, the points named.

    Where there are many methods, ablation arms stay without a name, as small hollow markers.

    Args:
        comparison: content of comparison.json.
        x: diversity metric, the protocol's first plane by default.
        planes: which of the comparison's planes; by default all with this x.
    """
    x = x or comparison["protocol"]["content"]["plane"]["x"][0]
    if planes is None:
        planes = [plane for plane in comparison["planes"] if plane["x"] == x]
    columns = min(2, len(planes)) or 1
    rows = -(-len(planes) // columns) or 1
    with mpl.rc_context(RC):
        figure = Figure(figsize=(WIDTH * columns, 4.4 * rows), dpi=150, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
        for axis in axes[len(planes) :]:
            axis.set_visible(False)
        drawn = [_panel(ax, comparison, plane) for ax, plane in zip(axes, planes, strict=False)]
        canvas.draw()
        figure.set_layout_engine("none")  # names are placed in this layout, and drawing is faster
        for axis, (points, front) in zip(axes, drawn, strict=False):
            name_points(axis, points, _steps(front))
    return figure


def in_unit(axis: Axis, metric: str) -> None:
    """Write an axis's ticks in the unit of `headed`: rates, drawn as shares, in per cent."""
    if measure(metric).rate:
        axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.6g}"))


def tip(artist: Artist, method: str, estimates: dict[str, dict[str, Any]]) -> None:
    """What a mark says under the pointer: its method, and each metric with its interval."""
    told = [f"{headed(metric)}: {estimated(metric, found)}" for metric, found in estimates.items()]
    artist.set_gid(_TIP + "\n".join([method, *told]))


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write PNG and SVG, each whole or not at all."""
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    with mpl.rc_context(RC):
        figure.draw_without_rendering()  # the layout once, not for each file
        figure.set_layout_engine(None)
        for path in paths:
            metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
            with whole(path) as partial:
                figure.savefig(partial, metadata=metadata, format=path.suffix[1:])
                if path.suffix == ".svg":
                    partial.write_text(_titled(partial.read_text("utf-8")), "utf-8")
    return paths


def _titled(svg: str) -> str:
    """An SVG whose groups named by `tip` have their title."""
    return re.sub(rf'<g id="{_TIP}([^"]*)">', r"<g><title>\1</title>", svg)


def _panel(
    axis: Axes, comparison: dict[str, Any], plane: dict[str, Any]
) -> tuple[list[dict[str, Any]], list[tuple[float, float]]]:
    rows = [
        row
        for row in comparison["leaderboard"]
        if (row["model"], row["task"]) == (plane["model"], plane["task"])
    ]
    points = _points(rows, plane)
    named = featured(rows, comparison, NAMED)
    for point in points:
        color, marker = STYLES[family(point["method"])]
        shown = point["method"] in named
        drawn = axis.errorbar(
            point["x"]["value"],
            point["y"]["value"],
            xerr=whiskers(point["x"]),
            yerr=whiskers(point["y"]),
            fmt=marker,
            color=color,
            markersize=6 if shown else 4,
            markerfacecolor=color if shown else "none",
            elinewidth=1,
            ecolor=(*mpl.colors.to_rgb(color), 0.35 if shown else 0.12),
        )
        tip(drawn[0], point["method"], {plane["x"]: point["x"], plane["y"]: point["y"]})
    front = sorted(
        ((p["x"]["value"], p["y"]["value"]) for p in points if p["method"] in plane["front"]),
    )
    if front:
        xs, ys = (np.array(values) for values in zip(*front, strict=True))
        # The dominated region's edge: from the y axis over each point down to the x axis.
        edge_x = np.concatenate([[0.0], xs, xs[-1:]])
        edge_y = np.concatenate([ys[:1], ys, [0.0]])
        axis.step(edge_x, edge_y, where="pre", color="#888888", linewidth=1, zorder=0)
        axis.fill_between(edge_x, edge_y, step="pre", color="#888888", alpha=0.08, linewidth=0)
    axis.set_title(f"{plane['task']}  ({plane['model']})", loc="left", fontweight="bold", pad=18)
    axis.set_xlabel(f"{headed(plane['x'])}  (diverse →)" + _left_out(plane))
    axis.set_ylabel(f"{headed(plane['y'])}  (correct →)")
    in_unit(axis.yaxis, plane["y"])
    axis.set_xlim(left=0)
    top = 1.05 if measure(plane["y"]).rate else axis.get_ylim()[1]
    axis.set_ylim(bottom=-0.02 * top, top=top)  # room for a marker at 0
    axis.grid(alpha=0.2, linewidth=0.5)
    level, n = percent(comparison["analysis"]["level"]), plane.get("n", rows[0]["n"])
    hollow = "" if len(named) >= len(points) else ", hollow: other arms"
    axis.text(
        0.0,
        1.01,
        f"n = {n}, K = {rows[0]['k']}, bars: {level} intervals, grey: Pareto front{hollow}",
        transform=axis.transAxes,
        ha="left",
        va="bottom",
        fontsize=8,
        color="#555555",
    )
    for point in points:
        point["named"] = point["method"] in named
    return points, front


def _points(rows: list[dict[str, Any]], plane: dict[str, Any]) -> list[dict[str, Any]]:
    """Where a plane's methods lie; in files of version 1 at the means of the leaderboard."""
    found = plane.get("points")
    if found is None:
        axes = {"x": plane["x"], "y": plane["y"]}
        found = {r["method"]: {k: r["metrics"].get(m) for k, m in axes.items()} for r in rows}
    return [
        {"method": method, **at}
        for method, at in found.items()
        if all(at[key] is not None and at[key]["value"] is not None for key in ("x", "y"))
    ]


def _left_out(plane: dict[str, Any]) -> str:
    """The methods that are not drawn, or how many, as further lines of the axis' name."""
    left_out = plane.get("left_out", {})
    names = ", ".join(f"{name} ({n})" for name, n in left_out.items())
    rare = names if len(left_out) <= FEW else f"{len(left_out)} methods"
    said = textwrap.fill(f"not drawn, defined on fewer than half: {rare}", 45)
    return f"\n{said}" if left_out else ""


def whiskers(estimate: dict[str, Any]) -> list[list[float]] | None:
    """An interval as matplotlib's error bar takes it, [2, 1]; None without one."""
    if estimate["low"] is None:
        return None
    # An interval need not contain its estimate when it is corrected for bias.
    down, up = estimate["value"] - estimate["low"], estimate["high"] - estimate["value"]
    return [[max(down, 0.0)], [max(up, 0.0)]]


def name_points(axis: Axes, points: list[dict[str, Any]], lines: list[Any]) -> None:
    """Write methods' names beside their points, with a thin line where one had to move away.

    Args:
        axis: where they are drawn, in its final layout.
        points: `method`, estimates `x` and `y`, and whether it is `named`.
        lines: the two ends of each straight piece that is drawn, [pieces, 2, 2]; no name covers it.
    """
    if not points:
        return
    figure = axis.get_figure()
    assert figure is not None
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    values = np.array([[p["x"]["value"], p["y"]["value"]] for p in points])
    everything = axis.transData.transform(values)
    pixels = everything[[p["named"] for p in points]]
    texts = [
        axis.text(0, 0, p["method"], fontsize=8, color=TEXT[family(p["method"])], zorder=5)
        for p in points
        if p["named"]
    ]
    boxes = [text.get_window_extent(renderer) for text in texts]
    sizes = np.array([[box.width, box.height] for box in boxes])
    room = axis.get_window_extent(renderer)
    bars = [_bar_boxes(axis, point) for point in points if point["named"]]
    bars.append(_boxes(axis, lines))
    markers = np.concatenate([everything - 7, everything + 7], axis=1)
    obstacles = np.concatenate([np.repeat(markers, 4, axis=0), *bars])
    centres = place(pixels, sizes, (room.x0 + 2, room.y0 + 2, room.x1, room.y1), obstacles)
    to_data = axis.transData.inverted()
    for text, centre, size, pixel in zip(texts, centres, sizes, pixels, strict=True):
        x, y = to_data.transform(centre)
        text.set(position=(x, y), horizontalalignment="center", verticalalignment="center")
        nearest = np.clip(pixel, centre - size / 2, centre + size / 2)
        if np.linalg.norm(nearest - pixel) > 22:
            ends = to_data.transform(np.stack([pixel, nearest]))
            axis.plot(*ends.T, color="#999999", linewidth=0.7, linestyle=":", zorder=1)


def _steps(front: list[tuple[float, float]]) -> list[Any]:
    """The edge of a front in straight pieces, [2 · points, 2, 2]."""
    lines, left = [], 0.0
    for (x, y), (_, next_y) in zip(front, [*front, (0.0, 0.0)][1:], strict=True):
        lines += [[(left, y), (x, y)], [(x, next_y), (x, y)]]
        left = x
    return lines


def _bar_boxes(axis: Axes, point: dict[str, Any]) -> np.ndarray:
    """The whiskers of a point as thin rectangles in pixels, [0 to 2, 4]."""
    x, y = point["x"], point["y"]
    lines = []
    if x["low"] is not None:
        lines.append([(x["low"], y["value"]), (x["high"], y["value"])])
    if y["low"] is not None:
        lines.append([(x["value"], y["low"]), (x["value"], y["high"])])
    return _boxes(axis, lines)


def _boxes(axis: Axes, lines: list[Any]) -> np.ndarray:
    """Straight pieces, [pieces, 2, 2], as thin rectangles in pixels, [pieces, 4]."""
    ends = [axis.transData.transform(line) for line in lines]
    return np.array([[*(end.min(0) - 1), *(end.max(0) + 1)] for end in ends]).reshape(-1, 4)
