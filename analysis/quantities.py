"""The name, the unit and the text of every quantity, the same in tables, figures and sentences.

A rate is printed in per cent and its differences in points (percentage points); all else is printed
as it is. A table's head carries the unit and the level of the intervals in its cells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lm_eval_embednoise.analysis.measures import PAIRED, measure, printed

if TYPE_CHECKING:
    from collections.abc import Iterable

WITHOUT_10 = ("pass@1", "success@K")  # what stands for pass@10 where K is less than 10
_UNITS = {
    "mean_tokens": "tokens",
    "mean_seconds": "s",
    "mean_chars": "characters",
    "prefix_entropy": "nats",
    "missing": "samples",
}
_NAMES = {"tokens_per_unique_correct": "tokens per correct solution", "rho": "ρ"}


def percent(level: float) -> str:
    """A level of confidence as text: 0.95 is `95 %`."""
    return f"{100 * level:.10g} %"


def unit(metric: str, *, difference: bool = False) -> str:
    """The unit a metric is shown in; empty for counts and shares between 0 and 1."""
    if measure(metric).rate:
        return "points" if difference else "%"
    return _UNITS.get(metric, "")


def headed(metric: str, *, difference: bool = False, level: float | None = None) -> str:
    """A metric in a table's head or at an axis: `pass@1, % [95 % interval]`.

    Args:
        metric: its key.
        difference: of two methods.
        level: of the intervals in the cells; None where there are none.
    """
    name = ", ".join(
        filter(None, [_NAMES.get(metric, metric), unit(metric, difference=difference)])
    )
    return name if level is None else f"{name} [{percent(level)} interval]"


def estimated(
    metric: str, estimate: dict[str, Any] | None, *, signed: bool = False, interval: bool = True
) -> str:
    """A value with its interval in brackets where it has one; a dash where there is no value."""
    if estimate is None:
        return "–"
    cell = printed(metric, estimate["value"], signed=signed)
    if interval and estimate["low"] is not None:
        low, high = (printed(metric, estimate[side], signed=signed) for side in ("low", "high"))
        cell += f" [{low}, {high}]"
    return cell


def difference_text(metric: str, estimate: dict[str, Any]) -> str:
    """A difference of two methods in a sentence: signed, with interval and unit."""
    return f"{estimated(metric, estimate, signed=True)} {unit(metric, difference=True)}".rstrip()


def size_text(metric: str, difference: float) -> str:
    """How large a difference is, whatever its sign, in a sentence."""
    return f"{printed(metric, abs(difference))} {unit(metric, difference=True)}".rstrip()


def measured(entries: Iterable[dict[str, Any]]) -> set[str]:
    """The metrics that have a value in any of these entries' `metrics`.

    Args:
        entries: of a comparison's leaderboard, or of its pairs.
    """
    return {
        name
        for entry in entries
        for name, found in entry["metrics"].items()
        if found.get("difference", found)["value"] is not None
    }


def paired(pairs: Iterable[dict[str, Any]]) -> list[str]:
    """The metrics whose paired differences are shown: pass@1 and success@K where K is below 10."""
    known = measured(pairs)
    names = PAIRED if "pass@10" in known else (*WITHOUT_10, *PAIRED)
    return [name for name in names if name in known]
