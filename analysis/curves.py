"""Figures beside the planes: dose–response, ablations, paired differences, curves against K."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lm_eval_embednoise.analysis.arms import Ablation, dose, sweeps
from lm_eval_embednoise.analysis.bands import Band, cover, mean_band
from lm_eval_embednoise.analysis.figures import RC, STYLES, WIDTH, in_unit, shades, tip
from lm_eval_embednoise.analysis.gallery import KINDS, Digest
from lm_eval_embednoise.analysis.intervals import Support
from lm_eval_embednoise.analysis.measures import measure
from lm_eval_embednoise.analysis.methods import family as kind
from lm_eval_embednoise.analysis.methods import method_order
from lm_eval_embednoise.analysis.quantities import WITHOUT_10, headed, measured
from lm_eval_embednoise.analysis.resample import Array, Resampler, cluster_codes
from lm_eval_embednoise.scoring.passk import pass_at_every_k

if TYPE_CHECKING:
    from collections.abc import Iterable

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from lm_eval_embednoise.analysis.runs import Run

_DRAWS = 2_000  # of a band that is drawn
_CORRECT = ("pass@1", "pass@10")
_RESPONSES = ("compile_rate", "valid_rate", "distinct_2", "unique_correct")
# Okabe & Ito again, light to dark, and hatched so that print in grey tells them apart.
_KIND_STYLES = {
    "passed": ("#009E73", ""),
    "wrong answer": ("#56B4E9", ""),
    "runtime error": ("#0072B2", "///"),
    "does not parse": ("#D55E00", "..."),
    "no answer": ("#D55E00", "..."),
    "drift": ("#CC79A7", "xx"),
    "loop": ("#E69F00", "\\\\\\"),
    "early end": ("#000000", ""),
    "other": ("#BBBBBB", ""),
}


def dose_response(rows: list[dict[str, Any]]) -> Figure | None:
    """Metrics against σ for one model and task: a line for each sweep, greedy as the dashed line.

    A sweep is a set of methods that differ in their dose only; the longest two are drawn.
    """
    drawn = sweeps(rows)[:2]
    if not drawn:
        return None
    drawn = [arm for arm in drawn if len(arm) > 2 or arm is drawn[0]]
    known = measured(rows)
    wanted = (*(_CORRECT if "pass@10" in known else WITHOUT_10), *_RESPONSES)
    shown = [name for name in wanted if name in known]
    if "compile_rate" in shown and "valid_rate" in shown:
        shown.remove("valid_rate")
    if any(row["rho"] for row in drawn[0]):
        shown.append("rho")
    figure, axes = _panels(len(shown), columns=2)
    greedy = next((row for row in rows if row["method"] == "greedy"), None)
    for axis, metric in zip(axes, shown, strict=True):
        for arm in drawn:
            unit = arm[0]["perturbation"].get("sigma_unit", "relative")
            color, marker = STYLES["literal" if unit == "norm" else "noise"]
            _dose_line(axis, arm, metric, (color, marker), f"unit: {unit}")
        if greedy and greedy["metrics"].get(metric, {}).get("value") is not None:
            value = greedy["metrics"][metric]["value"]
            axis.axhline(value, color="#000000", linestyle="--", linewidth=0.8)
        axis.set(xscale="log", xlabel="σ", title=headed(metric))
        in_unit(axis.yaxis, metric)
        if metric == "rho":
            axis.set(yscale="log")
        else:
            axis.set_ylim(0, 1.03 if measure(metric).rate else None)
        _plain_ticks(axis, _spaced([dose(row) for row in drawn[0]]))
    if len(drawn) > 1:
        axes[0].legend(fontsize=8, frameon=False, loc="best")
    return figure


def ablation(
    sweep: Ablation, references: list[dict[str, Any]], metrics: list[str]
) -> Figure | None:
    """The levels of one ablation, a panel for each metric; references as vertical lines."""
    rows = list(sweep.levels.values())
    known = measured(rows)
    shown = [name for name in metrics if name in known]
    if not shown:
        return None
    figure, axes = _panels(len(shown), height=1.3 + 0.3 * len(rows), share=True)
    names = list(sweep.levels)
    for axis, metric in zip(axes, shown, strict=True):
        for row in references:
            value = row["metrics"].get(metric, {}).get("value")
            if value is not None:
                color, _ = STYLES[kind(row["method"])]
                style = "--" if kind(row["method"]) == "greedy" else ":"
                axis.axvline(value, color=color, linestyle=style, linewidth=1.2)
        for height, row in enumerate(reversed(rows)):
            _bar(axis, row["method"], metric, row["metrics"].get(metric), height)
        axis.set_yticks(range(len(rows)), [*reversed(names)])
        axis.set(title=headed(metric), ylim=(-0.6, len(rows) - 0.4))
        axis.set_xlim(left=0)
        in_unit(axis.xaxis, metric)
        axis.xaxis.set_major_locator(MaxNLocator(nbins=3, prune="upper"))
    return figure


def paired_differences(pairs: list[dict[str, Any]], metric: str) -> Figure | None:
    """Every method's difference from the baseline in one metric, with its interval."""
    shown = [pair for pair in pairs if metric in pair["metrics"]]
    if not shown:
        return None
    figure, [axis] = _panels(1, height=1.1 + 0.21 * len(shown))
    for height, pair in enumerate(reversed(shown)):
        estimate = pair["metrics"][metric]["difference"]
        _bar(axis, pair["method"], metric, estimate, height)
    axis.axvline(0, color="#000000", linewidth=0.8)
    axis.set_yticks(range(len(shown)), [pair["method"] for pair in reversed(shown)], fontsize=8)
    axis.set_ylim(-0.7, len(shown) - 0.3)
    axis.set(
        title=headed(metric, difference=True),
        xlabel=f"difference from {shown[0]['baseline']}",
    )
    in_unit(axis.xaxis, metric)
    return figure


def pass_at_k(runs: Iterable[Run]) -> Figure | None:
    """pass@k for every k up to K, with a band that holds for all k at once."""
    measured = [run for run in runs if "pass@1" in run.metrics]
    if not measured or measured[0].k < 2:
        return None
    ks = np.arange(1.0, measured[0].k + 1)
    bands = {run.method: _band(run, pass_at_every_k(_correct(run), run.k)) for run in measured}
    figure, axis = _lines({m: band.value for m, band in bands.items()}, "k", "pass@k, %")
    _shade(axis, ks, bands)
    axis.set(ylim=(0, 1.02), xscale="log")
    in_unit(axis.yaxis, "pass@1")
    _plain_ticks(axis, [k for k in (1, 2, 5, 10, 20, 50, 100) if k <= measured[0].k])
    return figure


def cover_at(runs: Iterable[Run]) -> Figure | None:
    """cover@τ: the share of problems solved by a share τ of the samples or more, with bands."""
    measured = [run for run in runs if "pass@1" in run.metrics]
    if not measured or measured[0].k < 2:
        return None
    shares = np.arange(1, measured[0].k + 1) / measured[0].k
    bands = {run.method: _band(run, cover(_correct(run), run.k, shares)) for run in measured}
    values = {m: b.value for m, b in bands.items()}
    figure, axis = _lines(values, "τ, % of samples", "cover@τ, %", at=shares)
    _shade(axis, shares, bands)
    axis.set(ylim=(0, 1.02))
    for part in (axis.xaxis, axis.yaxis):
        in_unit(part, "pass@1")
    return figure


def solutions_by_samples(digests: Iterable[Digest]) -> Figure | None:
    """Expected distinct correct solutions among the first m of K samples."""
    curves = {digest.method: digest.solutions for digest in digests}
    return _lines(curves, "samples of a problem", "unique_correct")[0]


def diversity_by_samples(digests: Iterable[Digest]) -> Figure | None:
    """Expected distinct-2 of m samples: it falls with m for every method."""
    curves = {digest.method: digest.distinct for digest in digests}
    return _lines(curves, "samples of a problem", "distinct_2")[0]


def failure_kinds(digests: list[Digest], rhos: dict[str, float]) -> Figure | None:
    """How the samples of each perturbed method end, by its measured ρ."""
    shown = sorted((d for d in digests if d.method in rhos), key=lambda d: rhos[d.method])
    if not shown:
        return None
    present = [name for name in KINDS if any(d.kinds[name] for d in shown)]
    legend = 0.22 * -(-len(present) // 3)
    figure, [axis] = _panels(1, height=1.2 + legend + 0.24 * len(shown))
    left = np.zeros(len(shown))
    for name in present:
        shares = np.array([d.shares.get(name, 0.0) for d in shown])
        color, hatch = _KIND_STYLES[name]
        style: Any = {"color": color, "hatch": hatch, "edgecolor": "white", "linewidth": 0.3}
        axis.barh(range(len(shown)), shares, left=left, height=0.8, label=name, **style)
        left = left + shares
    labels = [f"{d.method}  ρ {rhos[d.method]:.2g}" for d in shown]
    axis.set_yticks(range(len(shown)), labels, fontsize=8)
    axis.set(xlim=(0, 1), xlabel="samples, %")
    in_unit(axis.xaxis, "pass@1")
    axis.grid(visible=False)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def _response(row: dict[str, Any], metric: str) -> dict[str, Any] | None:
    """An entry's estimate; ρ as the model class measured it, without interval."""
    if metric != "rho":
        estimate: dict[str, Any] | None = row["metrics"].get(metric)
        return estimate
    return {"value": max(row["rho"].values()), "low": None} if row["rho"] else None


def _dose_line(
    axis: Axes, arm: list[dict[str, Any]], metric: str, style: tuple[str, str], label: str
) -> None:
    """One sweep's metric against its dose, with intervals."""
    color, marker = style
    known = [
        (row, found)
        for row in arm
        if (found := _response(row, metric)) and found["value"] is not None
    ]
    axis.plot([dose(row) for row, _ in known], [e["value"] for _, e in known], color, label=label)
    for row, estimate in known:
        [mark] = axis.plot(dose(row), estimate["value"], marker=marker, color=color)
        tip(mark, row["method"], {metric: estimate})
        if estimate["low"] is not None:
            axis.vlines(dose(row), estimate["low"], estimate["high"], color, alpha=0.5)


def _bar(
    axis: Axes, method: str, metric: str, estimate: dict[str, Any] | None, height: float
) -> None:
    """A method's estimate as a point with its interval."""
    if estimate is None or estimate["value"] is None:
        return
    color, marker = STYLES[kind(method)]
    [mark] = axis.plot(estimate["value"], height, marker=marker, color=color, markersize=5)
    tip(mark, method, {metric: estimate})
    if estimate["low"] is not None:
        axis.hlines(height, estimate["low"], estimate["high"], color)


def _correct(run: Run) -> NDArray[np.int64]:
    """Correct samples of each problem."""
    return np.rint(run.metrics["pass@1"] * run.k).astype(np.int64)


def _band(run: Run, values: Array) -> Band:
    resampler = Resampler(cluster_codes(run.clusters, run.n), draws=_DRAWS)
    return mean_band(values, resampler, Support(0.0, 1.0, decides=True))


def _shade(axis: Axes, x: Array, bands: dict[str, Band]) -> None:
    """The bands behind the lines of the same methods."""
    colors = shades(sorted(bands, key=method_order))
    for method, band in bands.items():
        axis.fill_between(x, band.low, band.high, color=colors[method], alpha=0.08, linewidth=0)


def _lines(
    curves: dict[str, Array], xlabel: str, ylabel: str, at: Array | None = None
) -> tuple[Figure | None, Any]:
    """A line for each method against 1 … K: colour and marker by family, shade by dose.

    `at`: other places than 1 … K.
    """
    if not curves:
        return None, None
    ordered = sorted(curves, key=method_order)
    rows = -(-len(ordered) // 3)
    figure, [axis] = _panels(1, height=3.2 + 0.2 * rows)
    colors = shades(ordered)
    for method in ordered:
        y = curves[method]
        axis.plot(
            np.arange(1, len(y) + 1) if at is None else at,
            y,
            color=colors[method],
            marker=STYLES[kind(method)][1],
            markevery=max(1, len(y) // 6),
            markersize=4,
            label=method,
        )
    axis.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, None))
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure, axis


def _plain_ticks(axis: Axes, at: list[float]) -> None:
    """Numbers as people write them on a logarithmic axis."""
    axis.set_xticks(at, [f"{value:.2g}" if value < 1 else f"{value:g}" for value in at])
    axis.minorticks_off()


def _spaced(doses: list[float]) -> list[float]:
    """Doses far enough apart, on a logarithmic axis, that their numbers don't touch."""
    kept: list[float] = []
    room = 0.2 * np.log(max(doses) / min(doses)) if len(doses) > 1 else 0.0
    for value in sorted(set(doses)):
        if not kept or np.log(value / kept[-1]) >= room:
            kept.append(value)
    return kept


def _panels(
    count: int, *, columns: int | None = None, height: float = 2.2, share: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure of `WIDTH` with so many panels, each row of them `height` inches high."""
    columns = columns or count
    rows = -(-count // columns)
    with mpl.rc_context(RC):
        figure = Figure(figsize=(WIDTH, height * rows), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, sharey=share, squeeze=False).ravel()
        for axis in axes[count:]:
            axis.set_visible(False)
        for axis in axes[:count]:
            axis.grid(alpha=0.2, linewidth=0.5)
            axis.title.set_fontsize(10)
            axis.tick_params(labelsize=9)
        return figure, list(axes[:count])
