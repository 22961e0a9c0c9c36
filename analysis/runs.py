"""A run as the analysis sees it: a method on a task, its settings, every problem's metrics."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lm_eval_embednoise.analysis.methods import input_change

if TYPE_CHECKING:
    from pathlib import Path

    from lm_eval_embednoise.analysis.resample import Array


class ResultError(ValueError):
    """Results that can't be read or compared; the message is one line and says what to do."""


@dataclass(frozen=True, eq=False)
class Run:
    """One method on one task: settings and the metrics of every problem.

    Attributes:
        path: the results file.
        samples_path: the file of its samples.
        model: the last part of the model's name.
        model_source: its whole name: a path, or a hub's.
        method: the method's label.
        labelled: whether the label was given; else it is derived from the settings.
        engine: the harness's model class that generated.
        task: the task's name.
        seed: root of the random draws, where it is known.
        k: samples of each problem.
        settings: must be equal on both sides of a pair.
        perturbation: in its canonical form, or {}.
        sampling: generation arguments that belong to the method.
        info: what the model class reported about itself, or {}.
        date: seconds since 1970.
        problems: problem ids, [n].
        hashes: hashes of their documents, [n].
        clusters: cluster of each problem, [n]; None where problems are independent.
        metrics: metric → its value for each problem, [n], NaN where it is undefined.
        higher_is_better: metric → as the task states it.
        identical: problems on which all sampled texts are equal, where that was counted.
        environment: software and hardware, as the results file tells them.
    """

    path: Path
    samples_path: Path
    model: str
    model_source: str
    method: str
    labelled: bool
    engine: str
    task: str
    seed: int | None
    k: int
    settings: dict[str, Any]
    perturbation: dict[str, Any]
    sampling: dict[str, Any]
    info: dict[str, Any]
    date: float
    problems: tuple[str, ...]
    hashes: tuple[str, ...]
    clusters: tuple[Any, ...] | None
    metrics: dict[str, Array]
    higher_is_better: dict[str, bool]
    identical: int | None = None
    environment: dict[str, str] = field(default_factory=dict)

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
        """Whether it is a noise method: its samples have different inputs (see `input_change`)."""
        return input_change(self.perturbation) == "noise"

    @property
    def domain(self) -> str:
        """`code`, `maths` or `other`, by the metrics the task reports."""
        if "compile_rate" in self.metrics:
            return "code"
        return "maths" if "maj@K" in self.metrics or "accuracy" in self.metrics else "other"

    def __repr__(self) -> str:
        return f"Run({self.model}, {self.method}, {self.task}, n={self.n}, K={self.k})"
