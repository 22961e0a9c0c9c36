"""Figures beside the Pareto plot: dose–response, paired differences, pass@k, solutions."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lm_eval_embednoise.analysis.figures import RC, STYLES, kind, shades
from lm_eval_embednoise.analysis.measures import measure, method_order, printed
from lm_eval_embednoise.analysis.records import Run
from lm_eval_embednoise.analysis.resample import Array

_RESPONSES = ("pass@1", "compile_rate", "distinct_2", "unique_correct")
_PAIRED = ("pass@10", "distinct_2", "unique_correct")


def dose_response(rows: list[dict[str, Any]]) -> Figure | None:
    """Metrics against σ for one model and task, greedy as the dashed line.

    Of several arms (units, depths, scopes, …) the one with the most doses is drawn.
    """
    arms: dict[str, list[tuple[float, str]]] = {}
    for row in rows:
        if dose(row):
            arms.setdefault(_arm(row), []).append((dose(row), row["method"]))
    largest: list[tuple[float, str]] = max(arms.values(), key=len) if arms else []
    doses = sorted(largest)
    if len(doses) < 2:
        return None
    by_name = {row["method"]: row for row in rows}
    shown = [name for name in _RESPONSES if any(name in row["metrics"] for row in rows)]
    figure, axes = _panels(len(shown))
    for axis, metric in zip(axes, shown, strict=True):
        points = [
            (sigma, by_name[name]["metrics"][metric])
            for sigma, name in doses
            if by_name[name]["metrics"].get(metric, {}).get("value") is not None
        ]
        color, marker = STYLES["noise"]
        axis.plot(
            [s for s, _ in points], [e["value"] for _, e in points], marker=marker, color=color
        )
        for sigma, estimate in points:
            if estimate["low"] is not None:
                axis.vlines(sigma, estimate["low"], estimate["high"], color)
        if "greedy" in by_name and metric in by_name["greedy"]["metrics"]:
            value = by_name["greedy"]["metrics"][metric]["value"]
            axis.axhline(value, color="#000000", linestyle="--", linewidth=0.8)
        axis.set(xscale="log", xlabel="σ", title=metric, ylim=(0, None))
        _plain_ticks(axis, [sigma for sigma, _ in doses])
    return figure


def paired_differences(pairs: list[dict[str, Any]], level: float) -> Figure | None:
    """Every method's difference from the baseline with its interval, a panel for each metric."""
    shown = [name for name in _PAIRED if any(name in pair["metrics"] for pair in pairs)]
    if not shown:
        return None
    figure, axes = _panels(len(shown), height=1.4 + 0.28 * len(pairs), share=True)
    for axis, metric in zip(axes, shown, strict=True):
        for height, pair in enumerate(reversed(pairs)):
            estimate = pair["metrics"].get(metric, {}).get("difference")
            if estimate is None or estimate["value"] is None:
                continue
            color, marker = STYLES[kind(pair["method"])]
            axis.plot(estimate["value"], height, marker=marker, color=color)
            if estimate["low"] is not None:
                axis.hlines(height, estimate["low"], estimate["high"], color)
        axis.axvline(0, color="#000000", linewidth=0.8)
        axis.set_yticks(range(len(pairs)), [pair["method"] for pair in reversed(pairs)])
        axis.set(title=metric, xlabel=f"difference from {pairs[0]['baseline']}")
    figure.supxlabel(f"bars: {100 * level:.0f} % intervals", fontsize=8)
    return figure


def pass_at_k(runs: Iterable[Run]) -> Figure | None:
    """pass@k for every k up to K, from each problem's number of correct samples."""
    found = [run for run in runs if "pass@1" in run.metrics]
    if not found or found[0].k < 2:
        return None
    figure, [axis] = _panels(1, width=6.4, height=4.0)
    curves = {}
    for run in found:
        correct = np.rint(run.metrics["pass@1"] * run.k).astype(int)
        curves[run.method] = unbiased_pass_at_k(correct, run.k).mean(0)
    _lines(axis, curves)
    axis.set(xlabel="k", ylabel="pass@k", ylim=(0, 1.02), xscale="log")
    _plain_ticks(axis, [k for k in (1, 2, 5, 10, 20, 50, 100) if k <= found[0].k])
    return figure


def solutions_by_samples(curves: dict[str, Array]) -> Figure | None:
    """Expected distinct correct solutions among the first m of K samples."""
    if not curves:
        return None
    figure, [axis] = _panels(1, width=6.4, height=4.0)
    _lines(axis, curves)
    axis.set(xlabel="samples of a problem", ylabel="distinct correct solutions", ylim=(0, None))
    return figure


def unbiased_pass_at_k(correct: np.ndarray, n: int) -> Array:
    """1 − C(n−c, k)/C(n, k) for every k from 1 to n, [problems, n] (Chen et al. 2021)."""
    k = np.arange(1, n + 1)
    # Stepwise: C(n−c, k)/C(n, k) = Π_{j<k} (n−c−j)/(n−j).
    ratios = np.clip((n - correct[:, None] - (k - 1)) / (n - (k - 1)), 0.0, 1.0)
    return np.asarray(1.0 - np.cumprod(ratios, axis=1))


def rarefied(counts: np.ndarray, n: int) -> Array:
    """Expected classes seen in m of n draws without replacement, for m = 1 … n, [n] (Hurlbert)."""
    if len(counts) == 0:
        return np.zeros(n)
    return unbiased_pass_at_k(np.asarray(counts), n).sum(0)


def dose(row: dict[str, Any]) -> float:
    """The largest σ of a leaderboard entry's sites; 0 without noise."""
    perturbation = row["perturbation"]
    sites = perturbation.get("sites") or {"": perturbation.get("sigma") or 0.0}
    return float(max(sites.values(), default=0.0))


def _arm(row: dict[str, Any]) -> str:
    """What a perturbation is apart from its size and seed."""
    perturbation = row["perturbation"]
    rest = {k: v for k, v in perturbation.items() if k not in ("seed", "sigma", "sites")}
    return json.dumps([rest, sorted(perturbation.get("sites") or {})], sort_keys=True, default=str)


def value_text(metric: str, estimate: dict[str, Any]) -> str:
    """A value with its interval as text."""
    text = printed(metric, estimate["value"])
    if estimate["low"] is None:
        return text
    low, high = (printed(metric, estimate[side]) for side in ("low", "high"))
    return f"{text} [{low}, {high}]{' %' if measure(metric).rate else ''}"


def _lines(axis: Axes, curves: dict[str, Array]) -> None:
    """A line for each method against 1 … K: colour and marker by family, shade by dose."""
    ordered = sorted(curves, key=method_order)
    colors = shades(ordered)
    for method in ordered:
        y = curves[method]
        axis.plot(
            np.arange(1, len(y) + 1),
            y,
            color=colors[method],
            marker=STYLES[kind(method)][1],
            markevery=max(1, len(y) // 6),
            markersize=4,
            label=method,
        )
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _plain_ticks(axis: Axes, at: list[float]) -> None:
    """Numbers as people write them on a logarithmic axis."""
    axis.set_xticks(at, [f"{value:g}" for value in at])
    axis.minorticks_off()


def _panels(
    count: int, *, width: float = 3.2, height: float = 2.6, share: bool = False
) -> tuple[Figure, list[Axes]]:
    with mpl.rc_context(RC):
        figure = Figure(figsize=(width * count, height), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, count, sharey=share, squeeze=False)[0]
        for axis in axes:
            axis.grid(alpha=0.2, linewidth=0.5)
            axis.title.set_fontsize(10)
        return figure, list(axes)
