"""A run as the analysis sees it: a method on a task, its settings, every problem's metrics."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_embednoise.analysis.resample import Array


class ResultError(ValueError):
    """Results that can't be read or compared; the message is one line and says what to do."""


@dataclass(frozen=True, eq=False)
class Run:
    """One method on one task: settings and the metrics of every problem."""

    path: Path  # the results file
    samples_path: Path
    model: str
    model_source: str  # its whole name: a path, or a hub's
    method: str
    labelled: bool  # whether `method` was given; else it is derived from the settings
    engine: str  # the harness's model class that generated
    task: str
    seed: int | None
    k: int
    settings: dict[str, Any]  # must be equal on both sides of a pair, the seed apart
    perturbation: dict[str, Any]
    sampling: dict[str, Any]
    info: dict[str, Any]  # what the model class reported of itself ("embednoise"), or {}
    date: float
    problems: tuple[str, ...]  # problem ids
    hashes: tuple[str, ...]  # document hashes
    clusters: tuple[Any, ...] | None
    metrics: dict[str, Array]
    higher_is_better: dict[str, bool]
    identical: int | None = None  # problems on which all sampled texts are equal, where counted

    @property
    def n(self) -> int:
        """Number of problems."""
        return len(self.problems)

    @property
    def problem_hash(self) -> str:
        """16 hexadecimal digits that identify the set of problems, whatever their order."""
        pairs = sorted(zip(self.problems, self.hashes, strict=True))
        return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:16]

    @property
    def protocol(self) -> str | None:
        """Hash of the protocol that was fixed before generation, if any."""
        return self.info.get("protocol")

    @property
    def noisy(self) -> bool:
        """Whether the model's inputs or hidden states were perturbed."""
        return any(self.perturbation.get(key) for key in ("sites", "sigma", "rsp", "prefix"))

    @property
    def domain(self) -> str:
        """`code`, `maths` or `other`, by the metrics the task reports."""
        if "compile_rate" in self.metrics:
            return "code"
        return "maths" if "maj@K" in self.metrics or "accuracy" in self.metrics else "other"

    def __repr__(self) -> str:
        return f"Run({self.model}, {self.method}, {self.task}, n={self.n}, K={self.k})"
