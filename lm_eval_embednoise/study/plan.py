"""What a study is: models × tasks × methods × seeds, and each cell's settings.

study_file.py reads it from a file; run.py runs the cells through the harness.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_embednoise.study.method import Method, StudyError

if TYPE_CHECKING:
    from lm_eval_embednoise.study.sweep import Sweep

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
