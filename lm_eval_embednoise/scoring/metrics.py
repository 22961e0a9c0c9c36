"""Every metric of the tasks: which direction is better, its range, and the tasks that report it.

The task files take their `metric_list` from here (`CODE`, `MATHS`, `CODE_PLUS`), the analysis takes
directions, ranges and the order of its tables. docs/metrics.md defines what each metric measures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .aggregate import mean, total


@dataclass(frozen=True)
class Metric:
    """What is fixed about a metric, whatever the model and the problems.

    Attributes:
        better: +1 where higher is better, -1 where lower is, 0 where neither.
        rate: a share of samples or problems, printed in percent.
        unit: a single problem's value is between 0 and 1.
    """

    better: int = 1
    rate: bool = False
    unit: bool = False


_RATE = Metric(rate=True, unit=True)
_BAD_RATE = Metric(better=-1, rate=True, unit=True)
_SHARE = Metric(unit=True)
_BAD_SHARE = Metric(better=-1, unit=True)
_COST = Metric(better=-1)
_NEUTRAL = Metric(better=0)

METRICS = {  # in the order of tables
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
    "distinct_2_rarefied": _SHARE,
    "ead_2": _SHARE,
    "distinct_2_valid": _SHARE,
    "distinct_2_correct": _SHARE,
    "self_bleu": _BAD_SHARE,
    "self_bleu_joint": _BAD_SHARE,
    "edit_distance": _SHARE,
    "vendi": Metric(),
    "compression_ratio": _COST,
    "unique_ast": Metric(),
    "unique_correct": Metric(),
    "unique_correct_base": Metric(),
    "behaviours": Metric(),
    "prefix_entropy": Metric(),
    "distinct_prefixes": Metric(),
    "compile_rate": _RATE,
    "valid_rate": _RATE,
    "clean_perplexity": _COST,
    "nats_per_token": _COST,
    "clean_bits_per_byte": _COST,
    "rep_4": _BAD_SHARE,
    "truncated": _BAD_RATE,
    "numeric": _BAD_RATE,
    "missing": _BAD_RATE,
    "mean_tokens": _NEUTRAL,
    "mean_seconds": _COST,
    "mean_chars": _NEUTRAL,
    "rho": _NEUTRAL,
}
# Old name → present one: lm_eval 0.5 refuses a metric that is named like a built-in one.
RENAMED = {"perplexity": "clean_perplexity", "bits_per_byte": "clean_bits_per_byte"}

_CORRECTNESS = ("pass@1", "pass@10", "pass@100", "success@K")
_BASE = ("pass@1_base", "pass@10_base", "pass@100_base", "unique_correct_base")
_OF_CODE = ("compile_rate", "valid_rate", "unique_ast", "behaviours", "unique_correct")
_OF_MATHS = (
    *("accuracy", "maj@K", "accuracy_flexible", "maj@K_flexible"),
    *("valid_rate", "unique_correct"),
)
_OF_TEXTS = (
    *("distinct_1", "distinct_2", "distinct_3", "ead_2"),
    *("self_bleu", "self_bleu_joint", "edit_distance", "vendi", "compression_ratio"),
    *("distinct_2_rarefied", "distinct_2_valid", "distinct_2_correct"),
    *("prefix_entropy", "distinct_prefixes"),
    *("clean_perplexity", "nats_per_token", "clean_bits_per_byte", "rep_4"),
    *("mean_tokens", "mean_seconds", "mean_chars", "truncated", "numeric", "rho", "missing"),
)
_COUNTS = ("missing",)  # summed over problems, not averaged


def metric_list(*names: str) -> list[dict[str, Any]]:
    """A task's `metric_list` as lm_eval reads it."""
    return [
        {
            "metric": name,
            "aggregation": total if name in _COUNTS else mean,
            "higher_is_better": METRICS[name].better > 0,
        }
        for name in names
    ]


CODE = metric_list(*_CORRECTNESS, *_OF_CODE, *_OF_TEXTS)
MATHS = metric_list(*_CORRECTNESS, *_OF_MATHS, *_OF_TEXTS)
# Programs judged by two sets of tests: all tests decide, _BASE counts by the original ones alone.
CODE_PLUS = metric_list(*_CORRECTNESS[:3], *_BASE, *_CORRECTNESS[3:], *_OF_CODE, *_OF_TEXTS)
