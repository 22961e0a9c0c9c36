"""How the analysis shows metrics: their order, the few of a table, and numbers as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lm_eval_embednoise.scoring.metrics import METRICS, Metric

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lm_eval_embednoise.analysis.runs import Run

# Shown in the terminal and in papers; the JSON and the CSV hold all.
HEADLINE = {
    "code": ("pass@1", "pass@10", "success@K", "distinct_2", "unique_correct", "compile_rate"),
    "maths": ("pass@1", "pass@10", "success@K", "distinct_2", "unique_correct", "maj@K"),
}
PAIRED = ("pass@10", "distinct_2", "unique_correct")  # whose paired differences are shown
_UNKNOWN = Metric()


def measure(metric: str) -> Metric:
    """Direction and range of a metric; one of another task is unbounded, and higher is better."""
    return METRICS.get(metric, _UNKNOWN)


def better(run: Run, metric: str) -> int:
    """Direction of a metric; for a metric that is not ours, as its own task states it."""
    if metric not in METRICS and run.higher_is_better.get(metric.split(",")[0]) is False:
        return -1
    return measure(metric).better


def ordered(metrics: Iterable[str]) -> list[str]:
    """Metrics in the order of the tables, unknown ones last."""
    rank = {name: i for i, name in enumerate(METRICS)}
    return sorted(metrics, key=lambda name: (rank.get(name, len(rank)), name))


def headline(domain: str, available: list[str]) -> list[str]:
    """The few metrics of a printed table."""
    chosen = [name for name in HEADLINE.get(domain, ()) if name in available]
    return chosen or available[:6]


def printed(metric: str, value: float | None, *, signed: bool = False) -> str:
    """A number as tables print it, rates in percent; a dash where it is undefined."""
    if value is None:
        return "–"
    sign = "+" if signed else ""
    if measure(metric).rate:
        return f"{100 * value:{sign}.1f}"
    return f"{value:{sign}.3f}" if abs(value) < 10 else f"{value:{sign}.1f}"
