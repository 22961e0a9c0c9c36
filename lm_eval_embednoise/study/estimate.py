"""The dry run's estimate: samples left, and their time from a probe of a few problems.

Time is taken as a + b · problems. Both are measured on one and on a few problems, for each task and
each kind of method (all samples the same, drawn from the output, noise on the input), after one
unmeasured run that warms the caches. Programs that fail, or time out, later than in the probe are
not foreseen: it is an order of magnitude, not a promise.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lm_eval_embednoise.analysis.methods import input_change
from lm_eval_embednoise.study.method import Method
from lm_eval_embednoise.study.plan import Cell, Model, Study, Task
from lm_eval_embednoise.study.session import Session

if TYPE_CHECKING:
    from collections.abc import Mapping

# A method of each kind; those of one kind cost about the same.
_KINDS = {
    "clean": Method("greedy", {"sigma": 0}, {"do_sample": False}),
    "drawn": Method("temp-0.8", {"sigma": 0}, {"do_sample": True, "temperature": 0.8}),
    "noise": Method("embednoise-0.1", {"sigma": 0.1}, {"do_sample": False}),
}


@dataclass(frozen=True)
class Part:
    """What is left of one model on one task."""

    name: str
    runs: int
    samples: int
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """What is left, part by part."""

    parts: tuple[Part, ...]
    problems: int  # of the probe

    def __str__(self) -> str:
        lines = [
            f"  {part.name}: {part.runs} runs, {part.samples:,} samples, about "
            f"{duration(part.seconds)}"
            for part in self.parts
        ]
        samples = sum(part.samples for part in self.parts)
        seconds = sum(part.seconds for part in self.parts)
        runs = sum(part.runs for part in self.parts)
        lines.append(
            f"left in all: {runs} runs, {samples:,} samples, about {duration(seconds)} "
            f"(from a probe of {self.problems} problems; scoring included)"
        )
        return "\n".join(lines)


def estimate(
    study: Study,
    left: list[Cell],
    calibrated: Mapping[tuple[str, str], Mapping[str, Method]],
    problems: int,
    processes: int = 1,
) -> Estimate:
    """Probe every model and task that has something left.

    Args:
        study: the study.
        left: its cells that are not done.
        calibrated: models and tasks whose doses have been chosen.
        problems: size of the probe.
        processes: how many will share the problems.
    """
    parts = []
    for model in study.models:
        mine = [cell for cell in left if cell.model == model]
        if not mine:
            continue
        session = Session(model, study.all_tasks)
        for task in study.tasks:
            if study.calibrate and (model.name, task.name) not in calibrated:
                used = study.calibrate.task(task)
                tried = [m for family in study.calibrate.families for m in family.methods]
                kinds = ["clean", *map(_kind, tried)]
                parts.append(_part(session, model, used, kinds, problems, processes, "calibration"))
            kinds = [_kind(cell.method) for cell in mine if cell.task == task]
            if kinds:
                parts.append(_part(session, model, task, kinds, problems, processes))
    return Estimate(tuple(parts), problems)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    if minutes < 90:
        return f"{minutes:.0f} min"
    hours = minutes / 60
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


def _part(
    session: Session,
    model: Model,
    task: Task,
    kinds: list[str],
    problems: int,
    processes: int,
    what: str = "",
) -> Part:
    loaded = session.tasks.load(task)
    sizes = [min(task.limit or len(item.eval_docs), len(item.eval_docs)) for item in loaded]
    samples = sum(n * item.get_config("repeats") for n, item in zip(sizes, loaded, strict=True))
    seconds = 0.0
    for kind in dict.fromkeys(kinds):
        fixed, each = _measured(session, model, task, _KINDS[kind], problems, len(loaded))
        seconds += kinds.count(kind) * (fixed * len(loaded) + each * sum(sizes) / processes)
    name = " · ".join(filter(None, (model.name, task.name, what)))
    return Part(name, len(kinds), len(kinds) * samples, seconds)


def _measured(
    session: Session, model: Model, task: Task, method: Method, problems: int, tasks: int
) -> tuple[float, float]:
    """Seconds that a run of this kind takes whatever its size, and for each problem."""
    times = []
    for limit in (1, 1, 1 + problems):  # the first one warms up
        cell = Cell(model, dataclasses.replace(task, limit=limit), method, seed=0)
        start = time.perf_counter()
        session.evaluate(cell, "probe")
        times.append((time.perf_counter() - start) / tasks)
    each = max(times[2] - times[1], 0.0) / problems
    return max(times[1] - each, 0.0), each


def _kind(method: Method) -> str:
    if method.pending or input_change(method.perturbation) == "noise":
        return "noise"
    return "drawn" if method.gen_kwargs.get("do_sample") else "clean"
