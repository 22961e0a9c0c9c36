"""What a study is: models × tasks × methods × seeds, as its file says, and each cell's settings.

It reads the files only; run.py runs the cells through the harness.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lm_eval_embednoise.analysis.protocol import Protocol
from lm_eval_embednoise.study.method import Method, StudyError, find_file, read_file
from lm_eval_embednoise.study.sweep import AXES, Sweep, axis_of

FAMILIES = ("temp-0.8", "embednoise-0.1")  # calibrated unless a study names others: T* and σ*


@dataclass(frozen=True)
class Model:
    """A model as `lm_eval --model CLASS --model_args …` would load it."""

    name: str
    model: str = "hf-embednoise"
    model_args: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int | str | None = None
    device: str | None = None
    apply_chat_template: bool | str = False


@dataclass(frozen=True)
class Task:
    """A task (or group) with the number of problems and of samples a problem; None: its own.

    Attributes:
        split: instead of the task's test split.
        held_out: so many problems, in whole clusters, are kept from the comparison to calibrate on.
        part: `calibration`: those problems only; `comparison`: the others.
        apart_from: leave out every problem whose cluster is among this task's.
    """

    name: str
    limit: int | None = None
    k: int | None = None
    split: str | None = None
    held_out: int | None = None
    part: str | None = None
    apart_from: Task | None = None


@dataclass(frozen=True)
class Calibration:
    """How each family's dose is chosen, for each model and task, before the methods are run.

    Attributes:
        families: what is tuned, with equally many doses each.
        split: the tasks' split that no comparison sees; None: problems held out of the test split.
        held_out: how many problems of each task.
        limit: problems of that split.
        k: samples a problem; None: the comparison's.
        on: task → the task that its doses are chosen on instead (the comparison is exploratory).
    """

    families: tuple[Sweep, ...]
    split: str | None = "calibration"
    held_out: int | None = None
    limit: int | None = None
    k: int | None = None
    on: Mapping[str, str] = field(default_factory=dict)

    def task(self, compared: Task) -> Task:
        """The problems on which the doses for a compared task are chosen."""
        k, other = self.k or compared.k, self.on.get(compared.name)
        if other is not None:
            return Task(other, self.limit, k, split=self.split)
        if self.held_out is not None:
            return Task(compared.name, None, k, held_out=self.held_out, part="calibration")
        return Task(compared.name, self.limit, k, split=self.split, apart_from=compared)

    @property
    def names(self) -> tuple[str, ...]:
        """The methods that it chooses."""
        return tuple(family.chosen for family in self.families)


@dataclass(frozen=True)
class Cell:
    """One run: a method with one seed on one task of one model."""

    model: Model
    task: Task
    method: Method
    seed: int

    @property
    def folder(self) -> Path:
        """Where its results are, relative to the study's folder."""
        label = self.method.name if self.seed == 0 else f"{self.method.name}@{self.seed}"
        return Path("results") / self.model.name / label / Path(self.task.name).stem

    def settings(self, protocol: str) -> dict[str, Any]:
        """All that determines its results, as JSON."""
        return {
            "model": self.model.model,
            "model_args": dict(self.model.model_args),
            "apply_chat_template": self.model.apply_chat_template,
            "task": self.task.name,
            "limit": self.task.limit,
            "k": self.task.k,
            **({"held_out": self.task.held_out} if self.task.held_out else {}),
            "perturbation": {**self.method.perturbation, "seed": self.seed},
            "gen_kwargs": dict(self.method.gen_kwargs),
            "protocol": protocol,
        }


@dataclass(frozen=True)
class Study:
    """A study file's content, checked."""

    name: str
    models: tuple[Model, ...]
    tasks: tuple[Task, ...]
    methods: tuple[Method, ...]
    seeds: tuple[int, ...] = (0,)
    baseline: str | None = None
    candidate: str | None = None
    protocol: str | None = None
    calibrate: Calibration | None = None

    def __post_init__(self) -> None:
        for kind in ("models", "tasks", "methods"):
            names = [item.name for item in getattr(self, kind)]
            if not names or len(set(names)) != len(names):
                raise StudyError(f"study {self.name}: {kind} must be different names, got {names}")
        methods = [method.name for method in self.methods]
        for role in ("baseline", "candidate"):
            named = getattr(self, role)
            if named is not None and named not in methods:
                raise StudyError(
                    f"study {self.name}: the {role} {named!r} is none of its methods: "
                    f"{', '.join(methods)}"
                )

    @classmethod
    def load(cls, source: str) -> Study:
        """Read a study file by packaged name or path."""
        path = find_file(source, "studies", None)
        known = {f.name for f in dataclasses.fields(cls)} | {"limit", "k"}
        content = read_file(path, known)
        beside = path.parent
        named = content.get("protocol")
        protocol = str(beside / named) if named else None
        calibrate = calibration(content.get("calibrate"), protocol, beside)
        held_out = calibrate.held_out if calibrate else None
        return cls(
            name=str(content.get("name", path.stem)),
            models=tuple(_model(item) for item in _listed(content, "models")),
            tasks=tuple(
                _task(item, content.get("limit"), content.get("k"), held_out)
                for item in _listed(content, "tasks")
            ),
            methods=tuple(
                method
                for item in _listed(content, "methods")
                for method in _methods(item, beside, calibrate.names if calibrate else ())
            ),
            seeds=_seeds(content.get("seeds", [0])),
            baseline=content.get("baseline"),
            candidate=content.get("candidate"),
            protocol=protocol,
            calibrate=calibrate,
        )

    @property
    def all_tasks(self) -> tuple[Task, ...]:
        """The tasks, and those that the models are calibrated on."""
        return (*self.tasks, *(self.calibrate.task(t) for t in self.tasks if self.calibrate))

    def cells(
        self, calibrated: Mapping[tuple[str, str], Mapping[str, Method]] | None = None
    ) -> list[Cell]:
        """Every run, model by model (each is loaded once), then task by task.

        Args:
            calibrated: model's and task's name → method name → what `calibrate` chose for them.
        """
        chosen = calibrated or {}
        return [
            Cell(
                model,
                task,
                chosen.get((model.name, task.name), {}).get(method.name, method),
                seed,
            )
            for model in self.models
            for task in self.tasks
            for method in self.methods
            for seed in (self.seeds if method.seeds is None else method.seeds)
        ]


def fingerprint(settings: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that identify a cell's settings."""
    canonical = json.dumps(_with_text_keys(settings), sort_keys=True, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _with_text_keys(value: Any) -> Any:
    """The value with strings as keys: a mapping of sites may have `embed` beside block 5."""
    if isinstance(value, Mapping):
        return {str(key): _with_text_keys(item) for key, item in value.items()}
    return value


def parse_arguments(flag: str, text: str) -> dict[str, Any]:
    """Read `NAME=VALUE,NAME=VALUE`, values as YAML reads them."""
    arguments = {}
    for item in filter(None, text.split(",")):
        name, equals, value = item.partition("=")
        if not equals:
            raise StudyError(f"{flag} {item!r}: write NAME=VALUE, separated by commas")
        arguments[name] = yaml.safe_load(value)
    return arguments


def _model(item: Any) -> Model:
    known = [f.name for f in dataclasses.fields(Model)]
    if not isinstance(item, dict) or "name" not in item or set(item) - set(known):
        raise StudyError(f"a model of a study is a mapping with name and {known[1:]}, got {item!r}")
    return Model(**item)


def _methods(item: Any, beside: Path, calibrated: tuple[str, ...]) -> list[Method]:
    """One method, or with `doses` all of its family."""
    given = item if isinstance(item, dict) else {"name": item}
    if "name" not in given or set(given) - {"name", "seeds", "doses"}:
        raise StudyError(f"a method of a study is a name, or name, seeds and doses; got {item!r}")
    name = str(given["name"])
    seeds = _seeds(given["seeds"]) if "seeds" in given else None
    if name in calibrated:
        if "doses" in given:
            raise StudyError(f"{name} gets its dose from calibration, not from doses")
        return [Method(name, {}, {}, seeds=seeds, pending=True)]
    if "doses" in given:
        methods = sweep(name, beside, given["doses"]).methods
    else:
        methods = (Method.load(name, beside),)
    return [dataclasses.replace(method, seeds=seeds) for method in methods]


def sweep(
    name: str, beside: Path | None, doses: Any = None, grids: Mapping[str, Any] | None = None
) -> Sweep:
    """The family of a method file, at these doses or at the grid of its axis.

    Raises:
        StudyError: the method has no dose, or the doses are not positive, rising numbers.
    """
    base = Method.load(name, beside)
    axis = axis_of(base)
    if axis is None:
        raise StudyError(f"{name} has no dose to vary; a family varies one of {', '.join(AXES)}")
    if doses is None:
        if axis not in (grids or {}):
            raise StudyError(f"{name}: the protocol has no doses of {axis}, so they must be given")
        doses = (grids or {})[axis]
    numbers = isinstance(doses, list) and all(type(d) in (int, float) and d > 0 for d in doses)
    if not numbers or not doses or sorted(set(doses)) != doses:
        raise StudyError(f"{name}: doses={doses!r} must be positive numbers, rising, e.g. [0.1, 1]")
    return Sweep(base, axis, tuple(float(dose) for dose in doses))


def _seeds(value: Any) -> tuple[int, ...]:
    whole = isinstance(value, list) and value and all(type(seed) is int for seed in value)
    if not whole or len(set(value)) != len(value):
        raise StudyError(f"seeds={value!r} must be a list of different whole numbers, e.g. [0, 1]")
    return tuple(value)


def calibration(
    item: Any,
    protocol: str | None,
    beside: Path | None,
    doses: Mapping[str, Any] | None = None,
) -> Calibration | None:
    """A study's `calibrate` block, checked.

    Args:
        item: the block; None: no calibration.
        protocol: path of the protocol file, None: the packaged one.
        beside: folder in which method files are looked for as well.
        doses: axis → doses instead of the protocol's.

    Raises:
        StudyError: an unknown key, a family that can't be tuned, unequal numbers of doses.
    """
    if item is None:
        return None
    known = [f.name for f in dataclasses.fields(Calibration)]
    if not isinstance(item, dict) or set(item) - set(known):
        raise StudyError(f"calibrate is a mapping with {', '.join(known)}; got {item!r}")
    if "split" in item and "held_out" in item:
        raise StudyError("calibrate: split names other problems, held_out keeps some: give one")
    sizes = {key: item.get(key) for key in ("held_out", "limit", "k")}
    for name, size in sizes.items():
        if size is not None and (type(size) is not int or size < 1):
            raise StudyError(f"calibrate: {name}={size!r} must be a whole number ≥ 1")
    grids = {**Protocol.load(protocol)["calibration"].get("doses", {}), **(doses or {})}
    families = tuple(
        sweep(str(given["name"]), beside, given.get("doses"), grids)
        for given in (
            entry if isinstance(entry, dict) else {"name": entry}
            for entry in item.get("families", FAMILIES)
        )
    )
    budgets = {family.base.name: len(family.doses) for family in families}
    if len(set(budgets.values())) > 1:
        told = ", ".join(f"{name} has {n}" for name, n in budgets.items())
        raise StudyError(f"calibrate: every family gets equally many doses, but {told}")
    return Calibration(
        families,
        None if sizes["held_out"] else item.get("split", "calibration"),
        on=dict(item.get("on") or {}),
        **sizes,
    )


def _task(item: Any, limit: int | None, k: int | None, held_out: int | None) -> Task:
    given = {"name": item} if isinstance(item, str) else item
    if not isinstance(given, dict) or "name" not in given or set(given) - {"name", "limit", "k"}:
        raise StudyError(f"a task of a study is a name, or name, limit and k; got {item!r}")
    kept = {"held_out": held_out, "part": "comparison"} if held_out else {}
    task = Task(**{"limit": limit, "k": k, **kept, **given})
    for name, value in (("limit", task.limit), ("k", task.k)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise StudyError(f"task {task.name}: {name}={value!r} must be a whole number ≥ 1")
    return task


def _listed(content: dict[str, Any], key: str) -> list[Any]:
    value = content.get(key)
    if not isinstance(value, list) or not value:
        raise StudyError(f"a study needs a list of {key}")
    return value
