"""What a run is, apart from what it is called: its method's content, its label, its replicates.

Runs are grouped by content. A label is what the user or the study gave, else it is derived from
every setting that isn't the default; equal labels on unequal content are refused by what differs.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_eval_embednoise.analysis.methods import input_change
from lm_eval_embednoise.analysis.naming import PLAIN
from lm_eval_embednoise.analysis.records import align, differences
from lm_eval_embednoise.analysis.runs import ResultError, Run

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

log = logging.getLogger(__name__)
OURS = "hf-embednoise"


def method_of(run: Run) -> dict[str, Any]:
    """A run's method without its seed, as a flat mapping without settings that change nothing."""
    noise = {k: v for k, v in run.perturbation.items() if k != "seed" and v not in (None, 0, {})}
    drawn = run.sampling.get("do_sample", bool(run.sampling.get("temperature")))
    first = {k: v for k, v in run.sampling.items() if k == "first_token"}  # greedy or not
    sampling = {"temperature": 1.0, **run.sampling} if drawn else first
    sampling = {k: v for k, v in sampling.items() if k != "do_sample" and v != PLAIN.get(k)}
    if run.engine != OURS and drawn:
        sampling.setdefault("top_k", run.sampling.get("top_k", f"as {run.engine} has it"))
    replayed = run.info.get("replay") and input_change(run.perturbation) == "none"
    source = {"file": run.info["replay"]} if replayed else {}
    content = {**noise, **sampling, "engine": run.engine, **source}
    flat: dict[str, Any] = json.loads(json.dumps(content, default=str, sort_keys=True))
    return flat


def by_method(runs: list[Run]) -> dict[str, list[Run]]:
    """The runs of one model and task, label → replicates, each with a seed of its own.

    Runs of another engine under a derived label are labelled apart. The same run read twice
    counts once.

    Raises:
        ResultError: one label on different methods; names what differs.
    """
    grouped: dict[str, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda r: (not r.labelled, r.engine != OURS, r.date)):
        label = run.method
        if label in grouped and not run.labelled and method_of(run) != method_of(grouped[label][0]):
            label = f"{label} [{run.engine}]"
        grouped[label].append(replace(run, method=label))
    return {label: _replicates(label, same) for label, same in grouped.items()}


def models_apart(runs: list[Run]) -> list[Run]:
    """The runs with their models' whole names where two models share the last part of it.

    `minicoder` and `/models/minicoder` may be the same model, `a/minicoder` and `b/minicoder` are
    not, unless their fingerprints say so. (Known differences under one name are refused later.)
    """
    marks: dict[str, dict[str, set[Any]]] = defaultdict(lambda: defaultdict(set))
    for run in runs:
        marks[run.model][run.model_source].add(run.settings.get("model fingerprint"))
    clear = {model for model, sources in marks.items() if _several(sources)}
    return [replace(r, model=r.model_source) if r.model in clear else r for r in runs]


def as_compared(rows: Sequence[Mapping[str, Any]], runs: Iterable[Run]) -> list[Run]:
    """The runs under the names that a comparison's leaderboard gave to their models and methods."""
    known = {(row["model"], row["task"], row["method"]) for row in rows}
    models = {row["model"] for row in rows}
    renamed = []
    for run in runs:
        model = run.model_source if run.model_source in models else run.model
        apart = f"{run.method} [{run.engine}]"
        method = run.method
        if not run.labelled and (model, run.task, apart) in known:
            method = apart
        renamed.append(replace(run, model=model, method=method))
    return renamed


def _several(sources: Mapping[str, set[Any]]) -> bool:
    """Whether two of these names (name → fingerprints) are different models."""
    longest = max(sources, key=len)
    if all(longest == name or longest.endswith(f"/{name}") for name in sources):
        return False
    known = set().union(*sources.values())
    return len(known) != 1 or None in known


def signature(run: Run) -> str | None:
    """One line that identifies a run's method; None where the model class reported none.

    The perturbation is as the model class reported it, the sampling follows.
    """
    reported = run.info.get("signature")
    if reported is None:
        return None
    method = method_of(replace(run, perturbation={}, info={}, engine=OURS))
    drawn = [f"{key}:{method[key]}" for key in sorted(method) if key != "engine"]
    return "|".join([str(reported), *(drawn or ["greedy"])])


def _replicates(label: str, runs: list[Run]) -> list[Run]:
    first, kept = runs[0], [runs[0]]
    for run in runs[1:]:
        ours, theirs = method_of(first), method_of(run)
        if ours != theirs:
            raise ResultError(
                f"{label!r} names different methods on {run.task} of {run.model}: "
                f"{'; '.join(_named(ours, theirs))} ({first.path.parent} and {run.path.parent}). "
                "Give each a label of its own: LABEL=PATH"
            )
        twin = next((other for other in kept if other.seed == run.seed), None)
        if twin is None or differences(twin, run):  # what differs is refused when they are aligned
            kept.append(run)
        else:
            changed = ", ".join(_changed(twin, run))
            log.warning(
                "%s on %s: %s is the same run as %s (seed %s) and is left out%s",
                *(label, run.task, run.path, twin.path, run.seed),
                f", with other values of {changed}" if changed else "",
            )
    return sorted(kept, key=lambda run: run.date)


def _changed(a: Run, b: Run) -> list[str]:
    """Metrics whose values differ between two records of one run, by more than their rounding."""
    a, b = align([a, b])
    return [
        name
        for name in sorted(a.metrics.keys() & b.metrics.keys())
        if not np.allclose(a.metrics[name], b.metrics[name], 1e-5, 1e-9, equal_nan=True)
    ]


def _named(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    keys = sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
    return [f"{key} {a.get(key)!r} against {b.get(key)!r}" for key in keys]
