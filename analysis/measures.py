"""What the analysis knows of each metric: which direction is better and how it is printed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lm_eval_embednoise.analysis.runs import Run


@dataclass(frozen=True)
class Measure:
    """One metric.

    Attributes:
        better: +1 where higher is better, -1 where lower is, 0 where neither.
        rate: a share of samples or problems, printed in percent.
        unit: a single problem's value lies between 0 and 1.
    """

    better: int = 1
    rate: bool = False
    unit: bool = False


_RATE = Measure(rate=True, unit=True)
_BAD_RATE = Measure(better=-1, rate=True, unit=True)
_SHARE = Measure(unit=True)
_BAD_SHARE = Measure(better=-1, unit=True)
_COST = Measure(better=-1)
_NEUTRAL = Measure(better=0)

# In the order of tables.
MEASURES = {
    "pass@1": _RATE,
    "pass@10": _RATE,
    "pass@100": _RATE,
    "success@K": _RATE,
    "accuracy": _RATE,
    "maj@K": _RATE,
    "accuracy_flexible": _RATE,
    "maj@K_flexible": _RATE,
    "pass@1_base": _RATE,
    "pass@10_base": _RATE,
    "pass@100_base": _RATE,
    "distinct_1": _SHARE,
    "distinct_2": _SHARE,
    "distinct_3": _SHARE,
    "ead_2": _SHARE,
    "distinct_2_rarefied": _SHARE,
    "distinct_2_valid": _SHARE,
    "distinct_2_correct": _SHARE,
    "self_bleu": _BAD_SHARE,
    "self_bleu_joint": _BAD_SHARE,
    "edit_distance": _SHARE,
    "unique_ast": Measure(),
    "unique_correct": Measure(),
    "unique_correct_base": Measure(),
    "behaviours": Measure(),
    "prefix_entropy": Measure(),
    "distinct_prefixes": Measure(),
    "compile_rate": _RATE,
    "valid_rate": _RATE,
    "perplexity": _COST,
    "nats_per_token": _COST,
    "bits_per_byte": _COST,
    "rep_4": _BAD_SHARE,
    "truncated": _BAD_RATE,
    "numeric": _BAD_RATE,
    "missing": _BAD_RATE,
    "mean_tokens": _NEUTRAL,
    "mean_seconds": _COST,
    "mean_chars": _NEUTRAL,
    "rho": _NEUTRAL,
}
# Shown in the terminal and in papers; the JSON and the CSV hold all.
HEADLINE = {
    "code": ("pass@1", "pass@10", "success@K", "distinct_2", "unique_correct", "compile_rate"),
    "maths": ("pass@1", "pass@10", "success@K", "distinct_2", "unique_correct", "maj@K"),
}
_UNKNOWN = Measure()
_FAMILIES = ("greedy", "temp-", "nucleus-", "embednoise-", "literal-")


def measure(metric: str) -> Measure:
    """What is known of a metric; one that is not ours counts as unbounded, higher is better."""
    return MEASURES.get(metric, _UNKNOWN)


def better(run: Run, metric: str) -> int:
    """Direction of a metric; for a metric that is not ours, as its own task states it."""
    if metric not in MEASURES and run.higher_is_better.get(metric.split(",")[0]) is False:
        return -1
    return measure(metric).better


def ordered(metrics: Iterable[str]) -> list[str]:
    """Metrics in the order of the tables, unknown ones last."""
    rank = {name: i for i, name in enumerate(MEASURES)}
    return sorted(metrics, key=lambda name: (rank.get(name, len(rank)), name))


def method_order(method: str) -> tuple[Any, ...]:
    """Greedy, temperatures, nucleus, noise by dose, then the rest by name, numbers as numbers."""
    name = tuple(
        (0, float(part), "") if part.isdigit() else (1, 0.0, part)
        for part in re.split(r"(\d+)", method)
        if part
    )
    for rank, prefix in enumerate(_FAMILIES):
        if method.startswith(prefix):
            head = method.removeprefix(prefix).split("@")[0].split("+")[0].split("-")[0]
            try:
                return (rank, float(head or 0), name)
            except ValueError:
                return (rank, float("inf"), name)
    return (len(_FAMILIES), 0.0, name)


def headline(domain: str, available: list[str]) -> list[str]:
    """The few metrics of a printed table."""
    chosen = [name for name in HEADLINE.get(domain, ()) if name in available]
    return chosen or available[:6]


def printed(metric: str, value: float | None, *, signed: bool = False) -> str:
    """One number as the tables print it; a dash where it is undefined."""
    if value is None:
        return "–"
    sign = "+" if signed else ""
    if measure(metric).rate:
        return f"{100 * value:{sign}.1f}"
    return f"{value:{sign}.3f}" if abs(value) < 10 else f"{value:{sign}.1f}"
