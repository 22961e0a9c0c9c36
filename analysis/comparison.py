"""From runs to the content of comparison.json: leaderboard, paired tests, planes, verdict."""

from __future__ import annotations

import datetime
import platform
from collections import defaultdict
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import scipy

import lm_eval_embednoise
from lm_eval_embednoise.analysis import records, vectors, verdict
from lm_eval_embednoise.analysis.constraint import Constraint
from lm_eval_embednoise.analysis.departures import Compared, deviations
from lm_eval_embednoise.analysis.environment import joined
from lm_eval_embednoise.analysis.families import families, plain_temperatures
from lm_eval_embednoise.analysis.identity import by_method, models_apart, signature
from lm_eval_embednoise.analysis.intervals import mean_intervals
from lm_eval_embednoise.analysis.matched import against, described
from lm_eval_embednoise.analysis.measures import headline, ordered
from lm_eval_embednoise.analysis.methods import method_order
from lm_eval_embednoise.analysis.pairs import add_holm, as_json, compare_pairs, support
from lm_eval_embednoise.analysis.planes import planes
from lm_eval_embednoise.analysis.protocol import Protocol
from lm_eval_embednoise.analysis.records import align, combine
from lm_eval_embednoise.analysis.resample import DRAWS, Resampler, bca, cluster_codes, interval
from lm_eval_embednoise.analysis.runs import ResultError, Run

_CURVE_DRAWS = 2_000  # one band for all methods needs the middle of the distribution only
SCHEMA = "lm-eval-embednoise/comparison/2"


@dataclass(frozen=True)
class Group:
    """All methods of one model on one task, problems aligned, with the draws they share."""

    model: str
    task: str
    methods: dict[str, Run]  # replicates combined
    replicates: dict[str, list[Run]]
    resampler: Resampler


def compare(
    runs: list[Run],
    *,
    baseline: str | None = None,
    candidate: str | None = None,
    protocol: Protocol | None = None,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
    intersect: bool = False,
    candidate_everywhere: bool = True,
) -> dict[str, Any]:
    """Compare all methods on each model and task.

    Args:
        runs: what `read_runs` returned.
        baseline: method the others are paired with; by default the protocol's.
        candidate: the method the verdict is about, σ*; none, no verdict.
        protocol: endpoints, margins and family; by default the packaged one.
        level: coverage of the exploratory intervals.
        draws: bootstrap resamples.
        seed: root of the resamples.
        intersect: compare on the problems that all runs of a model and task have.
        candidate_everywhere: refuse models and tasks without the candidate; else they have no part
            in the verdict.

    Returns:
        The content of comparison.json, see docs/comparison.md.

    Raises:
        ResultError: baseline or candidate missing, or runs that can't be compared.
    """
    protocol = protocol or Protocol.load()
    baseline = baseline or protocol["baseline"]
    groups = _groups(runs, draws, seed, intersect)
    place = {(run.path, run.task): i for i, run in reversed(list(enumerate(runs)))}
    kept = [run for group in groups for same in group.replicates.values() for run in same]
    runs = sorted(kept, key=lambda run: place[run.path, run.task])
    for group in groups:
        for role, name in (("baseline", baseline), ("candidate", candidate)):
            needed = role == "baseline" or candidate_everywhere
            if needed and name is not None and name not in group.methods:
                raise ResultError(
                    f"the {role} {name!r} has no results for {group.model} on {group.task}; "
                    f"there are: {', '.join(group.methods)}"
                )
    leaderboard: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    for group in groups:
        leaderboard += _leaderboard(group, level)
        pairs += _pairs(group, baseline, candidate, protocol, level)
    return {
        "schema": SCHEMA,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "software": {
            "lm-eval-embednoise": lm_eval_embednoise.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
        },
        "protocol": {
            "name": protocol["name"],
            "hash": protocol.hash,
            "level": protocol.level,
            "content": protocol.content,
        },
        "analysis": {
            "baseline": baseline,
            "candidate": candidate,
            "level": level,
            "draws": draws,
            "seed": seed,
        },
        "sources": [
            {"model": r.model, "method": r.method, "task": r.task, "file": r.path.name}
            for r in runs
        ],
        "leaderboard": leaderboard,
        "pairs": pairs,
        "planes": [
            {"model": group.model, "task": group.task, **plane}
            for group in groups
            for plane in planes(group.methods, group.resampler, protocol, level=level)
        ],
        "verdicts": _verdicts(groups, baseline, candidate, protocol) if candidate else [],
        "curves": [entry for group in groups for entry in _curves(group, protocol)],
        "vectors": [vectors.as_json([*chain(*group.replicates.values())]) for group in groups],
        "floor": [entry for group in groups for entry in _floor(group, level)],
    }


def _groups(runs: list[Run], draws: int, seed: int, intersect: bool) -> list[Group]:
    by_task: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in models_apart(runs):
        by_task[run.model, run.task].append(run)
    groups = []
    for (model, task), mine in sorted(by_task.items()):
        if intersect:
            mine = records.intersect(mine)
        methods = by_method(mine)
        names = sorted(methods, key=method_order)
        flat = align([run for name in names for run in methods[name]])
        aligned = {name: [run for run in flat if run.method == name] for name in names}
        first = flat[0]
        groups.append(
            Group(
                model,
                task,
                {name: combine(aligned[name]) for name in names},
                aligned,
                Resampler(cluster_codes(first.clusters, first.n), draws=draws, seed=seed),
            )
        )
    return groups


def _leaderboard(group: Group, level: float) -> list[dict[str, Any]]:
    cells = [(run, name) for run in group.methods.values() for name in ordered(run.metrics)]
    table = np.stack([run.metrics[name] for run, name in cells], axis=1)
    supports = [support(name) for _, name in cells]
    estimates: dict[str, dict[str, Any]] = defaultdict(dict)
    intervals = mean_intervals(table, group.resampler, supports, level=level)
    for (run, name), estimate in zip(cells, intervals, strict=True):
        estimates[run.method][name] = as_json(estimate)
    return [
        {
            "model": group.model,
            "task": group.task,
            "domain": run.domain,
            "method": method,
            "n": run.n,
            "clusters": group.resampler.groups if run.clusters else None,
            "k": run.k,
            "problems": run.problem_hash,
            "settings": run.settings,
            "seeds": [replicate.seed for replicate in group.replicates[method]],
            "identical_problems": [replicate.identical for replicate in group.replicates[method]],
            "signature": signature(run),
            "perturbation": run.perturbation,
            "sampling": run.sampling,
            "rho": run.info.get("rho"),
            "std": run.info.get("std"),
            "protocol": run.protocol,
            "environment": joined(one.environment for one in group.replicates[method]),
            "metrics": estimates[method],
            "cost": _cost(run, group.resampler, level),
        }
        for method, run in group.methods.items()
    ]


def _cost(run: Run, resampler: Resampler, level: float) -> dict[str, Any]:
    """What a sample and a distinct correct solution cost, in tokens and seconds.

    A solution's cost is all samples of all problems over all distinct correct solutions: a ratio of
    totals, so a problem without any solution is paid for as well.
    """
    cost = {}
    solutions = run.metrics.get("unique_correct", np.full(run.n, np.nan))
    for unit, metric in (("tokens", "mean_tokens"), ("seconds", "mean_seconds")):
        spent = run.metrics.get(metric, np.full(run.n, np.nan))
        both = np.isfinite(spent) & np.isfinite(solutions)
        columns = [spent, np.where(both, run.k * spent, np.nan), np.where(both, solutions, np.nan)]
        means = resampler.means(np.stack(columns, axis=1))
        per_solution = interval(means, _ratio_of_totals, n=int(both.sum()), level=level)
        reason = {"reason": "not measured" if not both.any() else "no correct solution"}
        cost[f"{unit}_per_sample"] = as_json(bca(*means.column(0), level=level))
        cost[f"{unit}_per_unique_correct"] = as_json(per_solution)
        if not np.isfinite(per_solution.value):
            cost[f"{unit}_per_unique_correct"] |= reason
    return cost


def _ratio_of_totals(m: np.ndarray) -> np.ndarray:
    return np.where(m[..., 2] > 0, m[..., 1] / m[..., 2], np.nan)


def _pairs(
    group: Group, baseline: str, candidate: str | None, protocol: Protocol, level: float
) -> list[dict[str, Any]]:
    """Every method against the baseline, and the candidate against the rest of its family."""
    against_baseline = [(name, baseline) for name in group.methods if name != baseline]
    family = [
        (str(candidate), name)
        for name in protocol["family"]
        if candidate in group.methods
        and name in group.methods
        and name not in (baseline, candidate)
    ]
    named = against_baseline + [pair for pair in family if pair not in against_baseline]
    metrics = ordered({name for run in group.methods.values() for name in run.metrics})
    compared = compare_pairs(
        [(group.methods[a], group.methods[b]) for a, b in named],
        metrics,
        group.resampler,
        level=level,
        comparisons=len(protocol["family"]),
        margin=protocol["endpoints"]["correctness"]["margin"],
    )
    for reference in {b for _, b in named}:
        add_holm(
            [
                statistics
                for (_, b), statistics in zip(named, compared, strict=True)
                if b == reference
            ]
        )
    return [
        {
            "model": group.model,
            "task": group.task,
            "method": a,
            "baseline": b,
            "in_family": a == candidate and b in protocol["family"],
            "metrics": statistics,
        }
        for (a, b), statistics in zip(named, compared, strict=True)
    ]


def _verdicts(
    groups: list[Group], baseline: str, candidate: str, protocol: Protocol
) -> list[dict[str, Any]]:
    verdicts = []
    constraint = Constraint.of(protocol)
    judged = [group for group in groups if candidate in group.methods]
    for model in dict.fromkeys(group.model for group in judged):
        mine = [group for group in judged if group.model == model]
        tasks = [
            verdict.task_verdict(g.methods[candidate], g.methods[baseline], g.resampler, protocol)
            | {"curve": verdict.curve_verdict(candidate, g.methods, g.resampler, protocol)}
            | {"constraint": constraint.on_the_comparison(candidate, g.methods, g.resampler)}
            for g in mine
        ]
        departures = deviations(
            [Compared(g.replicates[candidate], g.methods) for g in mine], protocol, baseline
        )
        value, why = verdict.overall(tasks)
        verdicts.append(
            {
                "model": model,
                "candidate": candidate,
                "verdict": value,
                "why": why,
                "status": "exploratory" if departures else "confirmatory",
                "deviations": departures,
                "tasks": tasks,
            }
        )
    return verdicts


def _curves(group: Group, protocol: Protocol) -> list[dict[str, Any]]:
    """Every method against the temperature curve, if there is one; other families by area."""
    all_families = families(group.methods.values())
    reference, rule = plain_temperatures(all_families), protocol.curve_rule
    if reference is None:
        return []
    resampler = group.resampler
    fewer = Resampler(resampler.clusters, min(resampler.draws, _CURVE_DRAWS), resampler.seed)
    curve = against(
        reference,
        group.methods,
        rule["outcomes"],
        fewer,
        others=[one for one in all_families if one is not reference],
        quality=rule["quality"],
        level=rule["level"],
    )
    return [{"model": group.model, "task": group.task} | entry for entry in described(curve)]


def _floor(group: Group, level: float) -> list[dict[str, Any]]:
    """The difference between two runs of one method: what re-running alone does."""
    entries = []
    for method, (first, *rest) in group.replicates.items():
        if not rest:
            continue
        names = headline(first.domain, ordered(first.metrics))
        [statistics] = compare_pairs([(rest[0], first)], names, group.resampler, level=level)
        entries.append(
            {
                "model": group.model,
                "task": group.task,
                "method": method,
                "seeds": [first.seed, rest[0].seed],
                "metrics": {name: stats["difference"] for name, stats in statistics.items()},
            }
        )
    return entries
