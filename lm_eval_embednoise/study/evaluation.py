"""Methods on the calibration problems, each run once and kept in a file as it finishes."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_eval_embednoise.study.plan import Cell, Task, fingerprint
from lm_eval_embednoise.study.session import Session, first_rank, shared

if TYPE_CHECKING:
    from pathlib import Path

    from lm_eval_embednoise.analysis.protocol import Protocol
    from lm_eval_embednoise.study.method import Method

CURVE = ("pass@1", "compile_rate", "valid_rate", "distinct_2", "unique_correct", "rho")


@dataclass(frozen=True)
class Point:
    """One method on the calibration problems, in the order of the task.

    Attributes:
        means: the metrics of `CURVE`, means over problems.
        constrained: the constraint's metric of each problem.
        problems: each problem's document hash.
        clusters: each problem's cluster.
        model: fingerprint of the model's weights, where the model class gives one.
    """

    means: dict[str, float]
    constrained: list[float]
    problems: list[str]
    clusters: list[str]
    model: str | None


class Evaluation:
    """Runs a method on the calibration problems, once, and keeps it in a file."""

    def __init__(
        self, session: Session, task: Task, protocol: Protocol, points: Path, bar: Any
    ) -> None:
        self.session, self.task, self.protocol, self.points = session, task, protocol, points
        self.bar = bar
        lines = points.read_text(encoding="utf-8").splitlines() if points.is_file() else []
        self.known = {line["fingerprint"]: line["point"] for line in map(_parsed, lines) if line}

    def __call__(self, method: Method) -> Point:
        """The method's point, the same on every rank."""
        self.bar.set_description(method.name)
        cell = Cell(self.session.model, self.task, method, seed=0)
        key = fingerprint({**cell.settings(self.protocol.hash), "task": described(self.task)})
        point = self.known.get(key)
        if point is None:
            results = self.session.evaluate(cell, self.protocol.hash)
            rule = self.protocol["calibration"]
            point = shared(None if results is None else _point(results, rule))
            if first_rank():
                self.points.parent.mkdir(parents=True, exist_ok=True)
                with self.points.open("a", encoding="utf-8") as file:
                    line = {"fingerprint": key, "method": method.name, "point": point}
                    file.write(json.dumps(line) + "\n")
        self.bar.update()
        return Point(**point)


def described(task: Task) -> dict[str, Any]:
    """Which problems a calibration takes, as JSON."""
    described: dict[str, Any] = dataclasses.asdict(task)
    return described


def _point(results: dict[str, Any], rule: dict[str, Any]) -> dict[str, Any]:
    [rows] = results["samples"].values()
    constrained = rule["constraint"]["metric"]
    rows = sorted(rows, key=lambda row: row["doc_id"])
    metrics = {
        name: float(np.nanmean([row[name] for row in rows]))
        for name in CURVE
        if name in rows[0] and np.isfinite([row[name] for row in rows]).any()
    }
    hashes = [str(row["doc_hash"]) for row in rows]
    named = [(row.get("doc") or {}).get("cluster") for row in rows]
    clusters = [own if name is None else str(name) for name, own in zip(named, hashes, strict=True)]
    model = results.get("config", {}).get("embednoise", {}).get("model", {})
    return {
        "means": metrics,
        "constrained": [float(row[constrained]) for row in rows],
        "problems": hashes,
        "clusters": clusters,
        "model": model.get("fingerprint"),
    }


def _parsed(line: str) -> dict[str, Any] | None:
    """A finished point; None for a line that a kill cut off."""
    try:
        point: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return point
