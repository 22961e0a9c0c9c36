"""One comparison from several groups' comparison.json, refused where they are not comparable.

Files that hold every problem's values (version 2) are compared anew, as if their runs lay in one
folder: methods of different groups are paired. Files of version 1 keep their own numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_embednoise.analysis import vectors
from lm_eval_embednoise.analysis.comparison import compare
from lm_eval_embednoise.analysis.join import join
from lm_eval_embednoise.analysis.protocol import Protocol
from lm_eval_embednoise.analysis.records import unequal
from lm_eval_embednoise.analysis.runs import ResultError

if TYPE_CHECKING:
    from collections.abc import Mapping

# Settings that belong to a model; what else is recorded must be equal for all models of a task.
_OF_A_MODEL = ("model ", "chat template", "stream_version")


def merge(comparisons: Mapping[str, dict[str, Any]], *, intersect: bool = False) -> dict[str, Any]:
    """Merge files, name → content, under one protocol, baseline and set of problems.

    Args:
        comparisons: the files.
        intersect: compare on the problems that all files of a model and task have.

    Returns:
        The content of comparison.json; `merged` says which files were paired and which were not.

    Raises:
        ResultError: protocols, baselines, problems or settings differ, or one name is used for two
            methods.
    """
    _check_analyses(comparisons)
    _check_settings(comparisons, intersect)
    paired = [name for name, content in comparisons.items() if _has_all_values(content)]
    separate = [name for name in comparisons if name not in paired]
    candidates = {c["analysis"]["candidate"] for c in comparisons.values()} - {None}
    candidate = candidates.pop() if len(candidates) == 1 else None
    parts = dict(comparisons)
    if len(paired) > 1:
        first = comparisons[paired[0]]
        runs = [run for name in paired for run in vectors.runs_of(parts.pop(name), Path(name))]
        anew = compare(
            runs,
            baseline=first["analysis"]["baseline"],
            candidate=candidate if any(run.method == candidate for run in runs) else None,
            protocol=Protocol(first["protocol"]["content"]),
            level=first["analysis"]["level"],
            draws=first["analysis"]["draws"],
            seed=first["analysis"]["seed"],
            intersect=intersect,
            candidate_everywhere=False,
        )
        parts = {"the files compared anew": anew, **parts}
    merged = join(parts)
    merged["analysis"] = {**merged["analysis"], "candidate": candidate}
    return {**merged, "merged": {"paired": _names(paired), "separate": _names(separate)}}


def _check_analyses(comparisons: Mapping[str, dict[str, Any]]) -> None:
    (first_name, first), *others = comparisons.items()
    for name, other in others:
        for part, key in (("protocol", "hash"), ("analysis", "baseline"), ("analysis", "level")):
            ours, theirs = first[part][key], other[part][key]
            if ours != theirs:
                raise ResultError(
                    f"{first_name} and {name} can't be merged: {part} {key} {ours} against "
                    f"{theirs}; compare both again under one protocol"
                )


def _check_settings(comparisons: Mapping[str, dict[str, Any]], intersect: bool) -> None:
    """Refuse files whose runs of a task, or of a model, differ in what must be equal."""
    seen: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, comparison in comparisons.items():
        for row in comparison["leaderboard"]:
            for subject, settings in _facts(row, intersect).items():
                source, expected = seen.setdefault(subject, (name, settings))
                reasons = unequal(expected, settings) if source != name else []
                if reasons:
                    raise ResultError(
                        f"{source} and {name} can't be merged: {subject} has {'; '.join(reasons)}"
                    )


def _facts(row: Mapping[str, Any], intersect: bool) -> dict[str, dict[str, Any]]:
    """What must be equal wherever the same task, the same model, or both appear."""
    settings = row["settings"]
    of_the_task = {k: v for k, v in settings.items() if not k.startswith(_OF_A_MODEL)}
    of_the_model = {k: v for k, v in settings.items() if k.startswith("model ")}
    of_both = {"chat template": settings.get("chat template")}
    keys = ("k",) if intersect else ("k", "n", "problems")
    return {
        row["task"]: of_the_task | {key: row[key] for key in keys},
        row["model"]: of_the_model,
        f"{row['model']} on {row['task']}": of_both,
    }


def _has_all_values(comparison: Mapping[str, Any]) -> bool:
    """Whether all of its methods' values are there; a merge with files of version 1 lacks some."""
    rows = {(row["model"], row["task"], row["method"]) for row in comparison["leaderboard"]}
    return rows == {
        (entry["model"], entry["task"], run["method"])
        for entry in comparison.get("vectors", ())
        for run in entry["runs"]
    }


def _names(files: list[str]) -> list[str]:
    return [Path(name).name for name in files]
