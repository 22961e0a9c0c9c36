"""Every problem's values in comparison.json, and the runs that they give back.

What follows from other values is left out and computed again on reading: pass@k, success@K and the
accuracy from the number of correct samples and K, the perplexity from its logarithm.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_eval_embednoise.analysis.runs import Run
from lm_eval_embednoise.scoring.passk import pass_at_k

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from lm_eval_embednoise.analysis.resample import Array

DIGITS = 6  # significant
_INFO = ("signature", "rho", "std", "protocol", "calibration", "replay")  # read by the analysis
_HASHED = re.compile(r"[0-9a-f]{16}")


def as_json(runs: Sequence[Run]) -> dict[str, Any]:
    """The values of one model's aligned runs on one task, as comparison.json holds them."""
    first = runs[0]
    return {
        "model": first.model,
        "task": first.task,
        "ids": list(first.problems),
        "hashes": list(first.hashes),
        "clusters": None if first.clusters is None else list(first.clusters),
        "lower_is_better": [name for name, up in first.higher_is_better.items() if not up],
        "runs": [_run_as_json(run) for run in runs],
    }


def runs_of(comparison: Mapping[str, Any], source: Path) -> list[Run]:
    """The runs behind a comparison.json, from its values of each problem.

    Args:
        comparison: its content, of version 2; one of version 1 has no such values and no runs.
        source: the file, which stands in the runs' paths.
    """
    return [run for same in by_entry(comparison, source).values() for run in same]


def by_entry(comparison: Mapping[str, Any], source: Path) -> dict[tuple[str, str, str], list[Run]]:
    """The same by the leaderboard's model, task and method; replicates in the file's order."""
    rows = {(r["model"], r["task"], r["method"]): r for r in comparison["leaderboard"]}
    found: dict[tuple[str, str, str], list[Run]] = {}
    for entry in comparison.get("vectors", ()):
        for run in entry["runs"]:
            key = (entry["model"], entry["task"], run["method"])
            found.setdefault(key, []).append(_run(entry, run, rows[key], source))
    return found


def _run_as_json(run: Run) -> dict[str, Any]:
    correct = _correct(run)
    own = {n: v for n, v in run.metrics.items() if not _follows(n, v, run.k, correct, run.metrics)}
    local = Path(run.model_source).is_absolute()  # a folder of this machine is nobody's business
    return {
        "method": run.method,
        "seed": run.seed,
        "file": run.path.name,
        "source": run.model if local else run.model_source,
        "engine": run.engine,
        "labelled": run.labelled,
        "date": run.date,
        "identical": run.identical,
        "info": {key: _told(key, run.info[key]) for key in _INFO if run.info.get(key) is not None},
        "correct": None if correct is None else correct.tolist(),
        "metrics": {name: _rounded(values) for name, values in own.items()},
    }


def _run(
    entry: Mapping[str, Any], run: Mapping[str, Any], row: Mapping[str, Any], source: Path
) -> Run:
    correct = None if run["correct"] is None else np.array(run["correct"], dtype=np.int64)
    metrics = {name: np.array(v, dtype=np.float64) for name, v in run["metrics"].items()}
    for name in row["metrics"]:
        value = None if name in metrics else _derived(name, row["k"], correct, metrics)
        if value is not None:
            metrics[name] = value
    perturbation = dict(row["perturbation"])
    if "seed" in perturbation:
        perturbation["seed"] = run["seed"]
    path = source / run["file"]
    return Run(
        path=path,
        samples_path=path,
        model=run["source"].split("/")[-1],
        model_source=run["source"],
        method=run["method"],
        labelled=run["labelled"],
        engine=run["engine"],
        task=entry["task"],
        seed=run["seed"],
        k=row["k"],
        settings=row["settings"],
        perturbation=perturbation,
        sampling=row["sampling"],
        info=run["info"],
        date=run["date"],
        problems=tuple(entry["ids"]),
        hashes=tuple(entry["hashes"]),
        clusters=None if entry["clusters"] is None else tuple(entry["clusters"]),
        metrics=metrics,
        higher_is_better=dict.fromkeys(entry["lower_is_better"], False),
        identical=run["identical"],
        environment=row.get("environment", {}),
    )


def _correct(run: Run) -> NDArray[np.int64] | None:
    """Correct samples of each problem, where pass@1 is their share."""
    counts = run.metrics.get("pass@1", np.array([np.nan])) * run.k
    if not np.isfinite(counts).all() or np.abs(counts - np.rint(counts)).max() > 1e-6:
        return None
    return np.rint(counts).astype(np.int64)


def _follows(
    name: str,
    values: Array,
    k: int,
    correct: NDArray[np.int64] | None,
    metrics: Mapping[str, Array],
) -> bool:
    """Whether a metric is what `_derived` gives for it on every problem."""
    derived = _derived(name, k, correct, metrics)
    return derived is not None and np.allclose(derived, values, 1e-9, 1e-12, equal_nan=True)


def _derived(
    name: str, k: int, correct: NDArray[np.int64] | None, metrics: Mapping[str, Array]
) -> Array | None:
    """A metric from others; None where it isn't one that follows from them."""
    if name == "clean_perplexity" and "nats_per_token" in metrics:
        return np.exp(metrics["nats_per_token"])
    if correct is None:
        return None
    at = re.fullmatch(r"pass@(\d+)", name)
    if at and 1 <= int(at[1]) <= k:
        return np.array([pass_at_k(k, c, int(at[1])) for c in range(k + 1)])[correct]
    if name == "success@K":
        return (correct > 0).astype(np.float64)
    return correct / k if name == "accuracy" else None


def _told(key: str, value: Any) -> Any:
    """What the model class reported; of a replayed file only which one it is, not where."""
    if key != "replay" or _HASHED.fullmatch(value):
        return value
    return hashlib.sha256(value.encode()).hexdigest()[:16]


def _rounded(values: Iterable[float]) -> list[float | None]:
    """Numbers to six significant digits, whole ones as integers, undefined ones as None."""
    return [
        None if not np.isfinite(v) else int(v) if v == int(v) else float(f"{v:.{DIGITS}g}")
        for v in np.asarray(values).tolist()
    ]
