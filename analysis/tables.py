"""comparison.json as text: tables for the terminal and for papers, and a CSV with everything."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

from lm_eval_embednoise.analysis.measures import headline, printed
from lm_eval_embednoise.analysis.verdict import sentence

_PAIRED = ("pass@10", "distinct_2", "unique_correct")
ALPHA = 0.05
_CSV_FIELDS = [
    *("model", "task", "method", "k", "metric", "value", "low", "high", "n", "baseline"),
    *("difference", "difference_low", "difference_high", "p_wilcoxon", "p_permutation", "p_holm"),
    *("effect", "wins", "ties", "losses"),
]


def terminal(comparison: dict[str, Any]) -> str:
    """The leaderboard and the paired differences of every model and task, then the verdict."""
    parts = []
    for rows, pairs in by_task(comparison):
        parts += [title(rows[0]), _grid(*values(rows)), ""]
        if pairs:
            parts += [paired_title(comparison, pairs), _grid(*differences(pairs)), ""]
    parts += [_verdict_text(found) for found in comparison["verdicts"]]
    return "\n".join(parts).rstrip() + "\n"


def markdown(comparison: dict[str, Any]) -> str:
    """The same tables as Markdown."""
    parts = []
    for rows, pairs in by_task(comparison):
        parts += [f"### {title(rows[0])}", "", _pipes(*values(rows, intervals=True)), ""]
        if pairs:
            parts += [paired_title(comparison, pairs), "", _pipes(*differences(pairs)), ""]
    parts += [_verdict_text(found) for found in comparison["verdicts"]]
    return "\n".join(parts).rstrip() + "\n"


def as_csv(comparison: dict[str, Any]) -> str:
    """One line for each model, task, method and metric: value, interval, and the paired test."""
    out = io.StringIO()
    fields = ["model", "task", "method", "k", "metric", "value", "low", "high", "n"]
    paired = "difference difference_low difference_high p_wilcoxon p_permutation p_holm effect"
    names = [*fields, "baseline", *paired.split(), "wins", "ties", "losses"]
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    baseline = comparison["analysis"]["baseline"]
    tests = {
        (p["model"], p["task"], p["method"]): p["metrics"]
        for p in comparison["pairs"]
        if p["baseline"] == baseline
    }
    for row in comparison["leaderboard"]:
        for metric, estimate in row["metrics"].items():
            line = {"metric": metric, **{key: row[key] for key in ("model", "task", "method", "k")}}
            line |= {key: estimate[key] for key in ("value", "low", "high", "n")}
            test = tests.get((row["model"], row["task"], row["method"]), {}).get(metric)
            if test:
                difference = test["difference"]
                line |= {
                    "baseline": baseline,
                    "difference": difference["value"],
                    "difference_low": difference["low"],
                    "difference_high": difference["high"],
                    **{key: test[key] for key in ("p_wilcoxon", "p_permutation", "p_holm")},
                    **{key: test[key] for key in ("effect", "wins", "ties", "losses")},
                }
            writer.writerow(line)
    return out.getvalue()


def by_task(
    comparison: dict[str, Any],
) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    baseline = comparison["analysis"]["baseline"]
    keys = dict.fromkeys((row["model"], row["task"]) for row in comparison["leaderboard"])
    for key in keys:
        rows = [r for r in comparison["leaderboard"] if (r["model"], r["task"]) == key]
        pairs = [
            p
            for p in comparison["pairs"]
            if (p["model"], p["task"]) == key and p["baseline"] == baseline
        ]
        yield rows, pairs


def title(row: dict[str, Any]) -> str:
    clusters = f" in {row['clusters']} families" if row["clusters"] else ""
    return f"{row['task']} · {row['model']} · {row['n']} problems{clusters} · K = {row['k']}"


def paired_title(comparison: dict[str, Any], pairs: list[dict[str, Any]]) -> str:
    level = f"{100 * comparison['analysis']['level']:.0f} %"
    return (
        f"paired difference from {pairs[0]['baseline']} [{level} interval]; rates in points; "
        f"* p < {ALPHA} (Wilcoxon, Holm over the methods), ? Wilcoxon and permutation disagree"
    )


def values(
    rows: list[dict[str, Any]], *, intervals: bool = False
) -> tuple[list[str], list[list[str]]]:
    available = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    chosen = headline(rows[0]["domain"], available)
    body = []
    for row in rows:
        cells = [row["method"]]
        for metric in chosen:
            estimate = row["metrics"].get(metric, {"value": None, "low": None})
            cell = printed(metric, estimate["value"])
            if intervals and estimate["low"] is not None:
                bounds = (printed(metric, estimate[side]) for side in ("low", "high"))
                cell += " [{}, {}]".format(*bounds)
            cells.append(cell)
        body.append(cells)
    return ["method", *chosen], body


def differences(pairs: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    chosen = [name for name in _PAIRED if any(name in pair["metrics"] for pair in pairs)]
    body = []
    for pair in pairs:
        cells = [pair["method"]]
        for metric in chosen:
            test = pair["metrics"].get(metric)
            cells.append(_difference_cell(metric, test) if test else "–")
        body.append(cells)
    return ["method", *chosen], body


def _difference_cell(metric: str, test: dict[str, Any]) -> str:
    d = test["difference"]
    if d["value"] is None:
        return "–"
    value, low, high = (printed(metric, d[key], signed=True) for key in ("value", "low", "high"))
    if d["low"] is None:
        return f"{value} ({'all equal' if test['wins'] + test['losses'] == 0 else 'no interval'})"
    mark = "*" if test["p_holm"] is not None and test["p_holm"] < ALPHA else ""
    return f"{value} [{low}, {high}]{mark}{'?' if test['tests_disagree'] else ''}"


def _verdict_text(found: dict[str, Any]) -> str:
    lines = [
        f"Verdict ({found['status']}) for {found['candidate']} with {found['model']}: "
        f"{found['verdict'].upper()} ({found['why']})"
    ]
    for task in found["tasks"]:
        lines.append(f"  {task['task']}: {task['outcome']}")
        lines += [f"    {sentence(endpoint)}" for endpoint in task["endpoints"]]
    lines += [f"  exploratory because {reason}" for reason in found["deviations"]]
    return "\n".join(lines)


def _grid(header: list[str], body: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in [header, *body]) for i in range(len(header))]
    lines = []
    for row in [header, *body]:
        first, *rest = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *rest]).rstrip())
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)


def _pipes(header: list[str], body: list[list[str]]) -> str:
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, rule, *body])
