"""What a study is: models × tasks × methods × seeds, as its file says, and each cell's settings.

It reads the files only; run.py runs the cells through the harness.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lm_eval_embednoise.analysis.protocol import Protocol
from lm_eval_embednoise.study.method import Method, StudyError, find_file, read_file
from lm_eval_embednoise.study.sweep import AXES, Sweep, axis_of

_KINDS: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "model": (str,),
    "model_args": (Mapping,),
    "batch_size": (int, str),
    "max_batch_size": (int,),
    "device": (str,),
    "gen_kwargs": (Mapping,),
    "apply_chat_template": (bool, str),
    "system_instruction": (str,),
    "fewshot_as_multiturn": (bool,),
    "num_fewshot": (int,),
}
_SAID = {
    (str,): "text",
    (int,): "a whole number",
    (bool,): "true or false",
    (int, str): "a whole number or auto",
    (bool, str): "true, false or a template's name",
    (Mapping,): "a mapping, or NAME=VALUE,…",
}
_MAPPINGS = ("model_args", "gen_kwargs")
FAMILIES = ("temp-0.8", "embednoise-0.1")  # calibrated unless a study names others: T* and σ*


@dataclass(frozen=True)
class Model:
    """A model as `lm_eval run` would load and ask it; the keys are those of a run file.

    Attributes:
        name: in folders, tables and figures.
        model: the harness's name of its class.
        model_args: of that class.
        batch_size: as in `lm_eval`.
        max_batch_size: as in `lm_eval`.
        device: as in `lm_eval`.
        gen_kwargs: added to those of every method; they win.
        apply_chat_template: write prompts as chats; a string names one of several templates.
        system_instruction: stands before every prompt.
        fewshot_as_multiturn: examples are turns of the chat (the harness's default), or stand in
            its one question.
        num_fewshot: examples, for tasks that have any.

    Raises:
        StudyError: a value of another kind.
    """

    name: str
    model: str = "hf-embednoise"
    model_args: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int | str | None = None
    max_batch_size: int | None = None
    device: str | None = None
    gen_kwargs: Mapping[str, Any] = field(default_factory=dict)
    apply_chat_template: bool | str = False
    system_instruction: str | None = None
    fewshot_as_multiturn: bool | None = None
    num_fewshot: int | None = None

    def __post_init__(self) -> None:
        for key, kinds in _KINDS.items():
            value = getattr(self, key)
            wrong = not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)
            if value is not None and wrong:
                raise StudyError(f"model {self.name}: {key}={value!r} must be {_SAID[kinds]}")
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise StudyError(f"model {self.name}: num_fewshot={self.num_fewshot} must be ≥ 0")
        if self.fewshot_as_multiturn and not self.apply_chat_template:
            raise StudyError(
                f"model {self.name}: fewshot_as_multiturn makes examples turns of a chat, so it "
                "needs apply_chat_template"
            )

    @property
    def multiturn(self) -> bool:
        """Whether examples are turns of a chat."""
        return True if self.fewshot_as_multiturn is None else self.fewshot_as_multiturn

    @property
    def asked(self) -> dict[str, Any]:
        """What else than the template is given of how it is asked, for fingerprints."""
        keys = ("system_instruction", "fewshot_as_multiturn", "num_fewshot")
        return {key: value for key in keys if (value := getattr(self, key)) is not None}


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

    @property
    def any_dose(self) -> dict[str, Method]:
        """The methods that it chooses, by name, each at the first dose that it tries."""
        return {
            family.chosen: dataclasses.replace(family.methods[0], name=family.chosen)
            for family in self.families
        }


@dataclass(frozen=True)
class Cell:
    """One run: a method with one seed on one task of one model."""

    model: Model
    task: Task
    method: Method
    seed: int

    @property
    def gen_kwargs(self) -> dict[str, Any]:
        """How its samples are drawn: the method's arguments under the model's."""
        return {**self.method.gen_kwargs, **self.model.gen_kwargs}

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
            **self.model.asked,
            "task": self.task.name,
            "limit": self.task.limit,
            "k": self.task.k,
            **({"held_out": self.task.held_out} if self.task.held_out else {}),
            "perturbation": {**self.method.perturbation, "seed": self.seed},
            "gen_kwargs": self.gen_kwargs,
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
        names = [method.name for method in self.methods]
        for role in ("baseline", "candidate"):
            named = getattr(self, role)
            if named is not None and named not in names:
                raise StudyError(
                    f"study {self.name}: the {role} {named!r} is none of its methods: "
                    f"{', '.join(names)}"
                )
        tasks = [task.name for task in self.tasks]
        for name in self.calibrate.on if self.calibrate else ():
            if name not in tasks:
                raise StudyError(
                    f"study {self.name}: calibrate: on names {name!r}, which is none of its "
                    f"tasks: {', '.join(tasks)}"
                )
        families = [family.methods for family in self.calibrate.families] if self.calibrate else []
        for model in self.models:
            for compared in (self.methods, *families):
                _check_distinct(model, compared)

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
                for method in read_methods(item, beside, calibrate.names if calibrate else ())
            ),
            seeds=read_seeds(content.get("seeds", [0])),
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
    """16 hexadecimal digits that identify settings, such as a cell's."""
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
    for item in filter(None, re.split(r",(?![^\[]*\])", text)):  # not those within a list
        name, equals, value = item.partition("=")
        if not equals:
            raise StudyError(f"{flag} {item!r}: write NAME=VALUE, separated by commas")
        arguments[name] = yaml.safe_load(value)
    return arguments


def mapping_of(key: str, value: Any) -> Any:
    """What a file says under model_args or gen_kwargs; also as on the command line."""
    return parse_arguments(key, value) if isinstance(value, str) else value


def _model(item: Any) -> Model:
    known = [f.name for f in dataclasses.fields(Model)]
    if not isinstance(item, dict) or "name" not in item or set(item) - set(known):
        raise StudyError(
            f"a model of a study is a mapping with name and {', '.join(known[1:])}; got {item!r}"
        )
    given = {key: mapping_of(key, item[key]) for key in _MAPPINGS if item.get(key)}
    return Model(**{**{k: v for k, v in item.items() if k not in _MAPPINGS}, **given})


def read_methods(item: Any, beside: Path | None, calibrated: tuple[str, ...]) -> list[Method]:
    """One method as a study lists it, or with `doses` all of its family.

    Args:
        item: a name, or a mapping with name, seeds and doses.
        beside: another folder to look for files in.
        calibrated: names of methods whose dose calibration will choose.

    Raises:
        StudyError: no such file, or a key or value that can't be.
    """
    given = item if isinstance(item, dict) else {"name": item}
    if "name" not in given or set(given) - {"name", "seeds", "doses"}:
        raise StudyError(f"a method of a study is a name, or name, seeds and doses; got {item!r}")
    name = str(given["name"])
    own = read_seeds(given["seeds"]) if "seeds" in given else None
    if name in calibrated:
        if "doses" in given:
            raise StudyError(f"{name} gets its dose from calibration, not from doses")
        return [Method(name, {}, {}, seeds=own, pending=True)]
    if "doses" in given:
        found = sweep(name, beside, given["doses"]).methods
    else:
        found = (Method.load(name, beside),)
    return [dataclasses.replace(method, seeds=own) for method in found]


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


def _check_distinct(model: Model, methods: Sequence[Method]) -> None:
    """Refuse generation arguments of a model that make one method of two."""
    merged: dict[str, Method] = {}
    for method in methods:
        if method.pending:
            continue
        drawn = {**method.gen_kwargs, **model.gen_kwargs}
        one = merged.setdefault(
            fingerprint({"input": method.perturbation, "output": drawn}), method
        )
        if one.gen_kwargs != method.gen_kwargs:
            given = ", ".join(f"{name}={value}" for name, value in model.gen_kwargs.items())
            raise StudyError(
                f"model {model.name}: with gen_kwargs {given} {one.name} and {method.name} are the "
                "same; leave out what methods differ in"
            )


def read_seeds(value: Any) -> tuple[int, ...]:
    """Seeds as a study lists them.

    Raises:
        StudyError: they are no whole numbers, or not different.
    """
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
