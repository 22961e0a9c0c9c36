"""Text of a comparison: tables for the terminal and for papers, and a CSV with everything."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from lm_eval_embednoise.analysis.constraint import constraint_sentence
from lm_eval_embednoise.analysis.measures import headline, ordered
from lm_eval_embednoise.analysis.quantities import (
    estimated,
    headed,
    measured,
    paired,
    percent,
)
from lm_eval_embednoise.analysis.verdict import curve_sentence, sentence

if TYPE_CHECKING:
    from collections.abc import Iterator

Table = tuple[list[str], list[list[str]]]  # header and rows of cells
_COST = "tokens_per_unique_correct"
_FAMILY = ("p_wilcoxon", "p_bonferroni", "effect")
ALPHA = 0.05
_TESTS = (
    *("p_wilcoxon", "p_permutation", "p_bonferroni", "p_holm", "effect"),
    *("wins", "ties", "losses", "detectable"),
)


def terminal(comparison: dict[str, Any]) -> str:
    """The leaderboard and the paired differences of every model and task, then the verdict."""
    parts = []
    for rows, pairs in by_task(comparison):
        parts += [title(rows[0]), _grid(*values(rows)), ""]
        if pairs:
            parts += [paired_title(comparison, pairs), _grid(*differences(pairs)), ""]
    parts += [_verdict_text(verdict) for verdict in comparison["verdicts"]]
    return "\n".join(parts).rstrip() + "\n"


def markdown(comparison: dict[str, Any]) -> str:
    """The same tables as Markdown."""
    parts, level = [], comparison["analysis"]["level"]
    for rows, pairs in by_task(comparison):
        parts += [f"### {title(rows[0])}", "", _pipes(*values(rows, level)), ""]
        if pairs:
            table = _pipes(*differences(pairs, level))
            parts += [paired_title(comparison, pairs), "", table, ""]
        content = family(comparison, rows)
        if content:
            parts += [family_title(comparison), "", _pipes(*content), ""]
    parts += [_verdict_text(verdict) for verdict in comparison["verdicts"]]
    return "\n".join(parts).rstrip() + "\n"


def as_csv(comparison: dict[str, Any]) -> str:
    """One line for each model, task, method and metric: value, interval, and the paired test."""
    out = io.StringIO()
    fields = [*("model", "task", "method", "k", "rho", "metric", "value", "low", "high", "n")]
    paired = [f"{part}{end}" for part in ("difference", "ratio") for end in ("", "_low", "_high")]
    paired.append("shift")
    writer = csv.DictWriter(out, [*fields, "baseline", *paired, *_TESTS], lineterminator="\n")
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
            line["rho"] = max((row["rho"] or {}).values(), default=None)
            test = tests.get((row["model"], row["task"], row["method"]), {}).get(metric)
            if test:
                line |= {"baseline": baseline, **{key: test[key] for key in _TESTS}}
                line["shift"] = test["shift"]["value"]
                for part in ("difference", "ratio"):
                    line[part] = test[part]["value"]
                    line |= {f"{part}_{side}": test[part][side] for side in ("low", "high")}
            writer.writerow(line)
    return out.getvalue()


def by_task(
    comparison: dict[str, Any],
) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """Leaderboard entries and pairs against the baseline of each model and task."""
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
    """Heading of a task's tables: task, model, number of problems, K."""
    clusters = f" in {row['clusters']} families" if row["clusters"] else ""
    return f"{row['task']} · {row['model']} · {row['n']} problems{clusters} · K = {row['k']}"


def paired_title(comparison: dict[str, Any], pairs: list[dict[str, Any]]) -> str:
    """Heading of the table of paired differences: baseline, level, marks."""
    return (
        f"paired difference from {pairs[0]['baseline']} "
        f"[{percent(comparison['analysis']['level'])} interval]; "
        f"* p < {ALPHA} (sign flips of the mean, Holm over the methods), ? Wilcoxon differs"
    )


def values(
    rows: list[dict[str, Any]],
    level: float | None = None,
    *,
    cost: bool = False,
    every: bool = False,
) -> Table:
    """The leaderboard of one task: what was measured of the headline metrics, or of every one.

    Args:
        rows: its entries.
        level: of the intervals; None leaves them out.
        cost: with tokens per correct solution and ρ.
        every: all metrics.
    """
    available = ordered(measured(rows))
    chosen = available if every else headline(rows[0]["domain"], available)
    header = ["method", *(headed(name, level=level) for name in chosen)]
    if cost:
        header += [headed(_COST, level=level), "ρ"]
    body = []
    for row in rows:
        found = [(name, row["metrics"].get(name)) for name in chosen]
        found += [("mean_tokens", row["cost"][_COST])] if cost else []
        cells = [estimated(name, e, interval=level is not None) for name, e in found]
        body.append([row["method"], *cells, *([rho_text(row)] if cost else [])])
    return header, body


def rho_text(row: dict[str, Any]) -> str:
    """Measured ρ, the largest over sites."""
    return f"{max(row['rho'].values()):.3g}" if row["rho"] else "–"


def plane_table(planes: list[dict[str, Any]]) -> Table:
    """Of each task: problems, front, areas, each method's height over the temperature curve."""
    body = []
    for plane in planes:
        task = plane["task"]
        if "n" in plane:  # files of version 1 compare each method on its own problems
            body.append([task, "problems where all are defined", _common(plane)])
        body.append([task, "Pareto front", ", ".join(plane["front"]) or "–"])
        for name, volume in plane["hypervolume"].items():
            area = estimated("distinct_2", volume)
            said = f"{area} ({volume['reason']})" if volume["value"] is None else area
            body.append([task, f"hypervolume of {name}", said])
        for name, matched in plane["matched"].items():
            value = (
                f"– ({matched['reason']})"
                if matched["value"] is None
                else estimated(plane["matched_metric"], matched)
            )
            body.append([task, f"{name} over the curve, {plane['matched_metric']}", value])
    return ["task", "what", "value"], body


def _common(plane: dict[str, Any]) -> str:
    """On how many problems a plane compares, and which methods it leaves out."""
    said = f"{plane['n']} of {plane['n'] + plane['n_undefined']}"
    rare = ", ".join(f"{name} ({n})" for name, n in plane["left_out"].items())
    return f"{said}; left out, defined on fewer than half: {rare}" if rare else said


def family(comparison: dict[str, Any], rows: list[dict[str, Any]]) -> Table | None:
    """The candidate against each member of the protocol's family on one task; None without one."""
    here = (rows[0]["model"], rows[0]["task"])
    pairs = [p for p in comparison["pairs"] if p["in_family"] and (p["model"], p["task"]) == here]
    if not pairs:
        return None
    shown, level = paired(pairs), comparison["analysis"]["level"]
    header = ["against"]
    for name in shown:
        header += [headed(name, difference=True, level=level), "p", "p Bonferroni", "effect"]
    body = []
    for pair in pairs:
        cells = [pair["baseline"]]
        for name in shown:
            test = pair["metrics"].get(name)
            numbers = [test[key] if test else None for key in _FAMILY]
            cells.append(_difference_cell(name, test, marks=False) if test else "–")
            cells += ["–" if value is None else f"{value:.2g}" for value in numbers]
        body.append(cells)
    return header, body


def family_title(comparison: dict[str, Any]) -> str:
    """Heading of the family's table: candidate, tests, number of comparisons."""
    content = comparison["protocol"]["content"]
    count = len(content["family"])
    return (
        f"{comparison['analysis']['candidate']} less each member of the family; Wilcoxon's p raw "
        f"and Bonferroni over {count} comparisons; rank-biserial effect"
    )


def differences(pairs: list[dict[str, Any]], level: float | None = None) -> Table:
    """Header and rows of the paired differences, a row for each method; heads name the level."""
    chosen = paired(pairs)
    body = []
    for pair in pairs:
        cells = [pair["method"]]
        for metric in chosen:
            test = pair["metrics"].get(metric)
            cells.append(_difference_cell(metric, test) if test else "–")
        body.append(cells)
    heads = [headed(metric, difference=True, level=level) for metric in chosen]
    return ["method", *heads], body


def _difference_cell(metric: str, test: dict[str, Any], marks: bool = True) -> str:
    d = test["difference"]
    if d["value"] is None:
        return "–"
    cell = estimated(metric, d, signed=True)
    if d["low"] is None:
        return f"{cell} ({'all equal' if test['wins'] + test['losses'] == 0 else 'no interval'})"
    if not marks:
        return cell
    p = test.get("p_permutation_holm", test["p_holm"])  # the mean's test; files of before lack it
    mark = "*" if p is not None and p < ALPHA else ""
    return f"{cell}{mark}{'?' if test['tests_disagree'] else ''}"


def _verdict_text(verdict: dict[str, Any]) -> str:
    lines = [
        f"Verdict ({verdict['status']}) for {verdict['candidate']} with {verdict['model']}: "
        f"{verdict['verdict'].upper()} ({verdict['why']})"
    ]
    for task in verdict["tasks"]:
        lines.append(f"  {task['task']}: {task['outcome']}")
        lines += [f"    {sentence(endpoint)}" for endpoint in task["endpoints"]]
        lines += [f"    {curve_sentence(task['curve'])}"] if "curve" in task else []
        if task.get("constraint"):
            lines.append(f"    {constraint_sentence(task['constraint'])}")
    lines += [f"  exploratory because {reason}" for reason in verdict["deviations"]]
    return "\n".join(lines)


def _grid(header: list[str], body: list[list[str]]) -> str:
    """A table for the terminal: the first column to the left, the others to the right."""
    lines = tabulate([header, *body], tablefmt="plain", **_sides(header)).splitlines()
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _pipes(header: list[str], body: list[list[str]]) -> str:
    return tabulate(body, header, tablefmt="pipe", **_sides(header))


def _sides(header: list[str]) -> dict[str, Any]:
    """How tabulate aligns columns; cells are text already."""
    return {"colalign": ("left", *("right" for _ in header[1:])), "disable_numparse": True}
