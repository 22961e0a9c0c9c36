"""What a study is: models × tasks × methods × seeds, as its file says, and each cell's settings.

It reads the files only; run.py runs the cells through the harness.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from lm_eval_embednoise.noise.noise_file import with_noise_file
from lm_eval_embednoise.noise.perturbation import Perturbation

_METHOD_KEYS = {"model", "model_args", "gen_kwargs", "metadata"}
STAR, TUNED = "embednoise-star", "temp-tuned"  # σ* and T*, as calibrate names them
CALIBRATED = (STAR, TUNED)


class StudyError(ValueError):
    """A study or method file that can't be used; the message is one line."""


@dataclass(frozen=True)
class Method:
    """How samples are drawn: perturbation and sampling arguments under a name."""

    name: str
    perturbation: Mapping[str, Any]
    gen_kwargs: Mapping[str, Any]
    calibration: Mapping[str, Any] | None = None  # what `embednoise calibrate` wrote in the file
    seeds: tuple[int, ...] | None = None  # instead of the study's
    pending: bool = False  # its dose is not known before the study has calibrated the model

    @classmethod
    def load(cls, name: str, beside: Path | None = None) -> Method:
        """Read a method file by packaged name or by path (also relative to the study file).

        A file that its `noise` names (beside it, or from the working folder) is read with it, so
        that a changed one makes another method.
        """
        path = find_file(name, "methods", beside)
        content = read_file(path, _METHOD_KEYS)
        perturbation = dict(content.get("model_args") or {})
        if "noise" in perturbation:
            noise = str(perturbation.pop("noise"))
            near = path.parent / noise
            noise_path = near if near.is_file() else Path(noise)
            perturbation = with_noise_file(noise_path, perturbation, Perturbation.names())
        return cls(
            name=path.stem,
            perturbation=perturbation,
            gen_kwargs=dict(content.get("gen_kwargs") or {}),
            calibration=(content.get("metadata") or {}).get("calibration"),
        )


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
    """A task (or group) with the number of problems and of samples a problem; None: its own."""

    name: str
    limit: int | None = None
    k: int | None = None
    split: str | None = None  # instead of the task's test split; calibrate's


@dataclass(frozen=True)
class Calibration:
    """How each model's σ* and T* are searched before its methods are run."""

    task: Task
    budget: int = 8
    noise: Mapping[str, Any] = field(default_factory=dict)


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
        protocol = content.get("protocol")
        calibrate = _calibration(content.get("calibrate"))
        return cls(
            name=str(content.get("name", path.stem)),
            models=tuple(_model(item) for item in _listed(content, "models")),
            tasks=tuple(
                _task(item, content.get("limit"), content.get("k"))
                for item in _listed(content, "tasks")
            ),
            methods=tuple(
                _method(item, beside, calibrate is not None) for item in _listed(content, "methods")
            ),
            seeds=_seeds(content.get("seeds", [0])),
            baseline=content.get("baseline"),
            candidate=content.get("candidate"),
            protocol=str(beside / protocol) if protocol else None,
            calibrate=calibrate,
        )

    @property
    def all_tasks(self) -> tuple[Task, ...]:
        """The tasks, and the one that the models are calibrated on."""
        return (*self.tasks, *([self.calibrate.task] if self.calibrate else []))

    def cells(self, calibrated: Mapping[str, Mapping[str, Method]] | None = None) -> list[Cell]:
        """Every run, model by model (each is loaded once), then task by task.

        Args:
            calibrated: model name → method name → what `calibrate` chose for that model.
        """
        by_model = calibrated or {}
        return [
            Cell(model, task, by_model.get(model.name, {}).get(method.name, method), seed)
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


def _method(item: Any, beside: Path, calibrated: bool) -> Method:
    given = item if isinstance(item, dict) else {"name": item}
    if "name" not in given or set(given) - {"name", "seeds"}:
        raise StudyError(f"a method of a study is a name, or name and seeds; got {item!r}")
    name = str(given["name"])
    if calibrated and name in CALIBRATED:
        method = Method(name, {}, {}, pending=True)
    else:
        method = Method.load(name, beside)
    return dataclasses.replace(method, seeds=_seeds(given["seeds"]) if "seeds" in given else None)


def _seeds(value: Any) -> tuple[int, ...]:
    whole = isinstance(value, list) and value and all(type(seed) is int for seed in value)
    if not whole or len(set(value)) != len(value):
        raise StudyError(f"seeds={value!r} must be a list of different whole numbers, e.g. [0, 1]")
    return tuple(value)


def _calibration(item: Any) -> Calibration | None:
    if item is None:
        return None
    known = ("task", "split", "limit", "k", "budget", "noise")
    if not isinstance(item, dict) or "task" not in item or set(item) - set(known):
        raise StudyError(
            f"calibrate is a mapping with task and {', '.join(known[1:])}; got {item!r}"
        )
    sizes = {key: item.get(key) for key in ("limit", "k", "budget")}
    for name, size in sizes.items():
        if size is not None and (type(size) is not int or size < 1):
            raise StudyError(f"calibrate: {name}={size!r} must be a whole number ≥ 1")
    task = Task(
        item["task"], sizes["limit"], sizes["k"] or 20, split=item.get("split", "calibration")
    )
    return Calibration(task, sizes["budget"] or 8, dict(item.get("noise") or {}))


def _task(item: Any, limit: int | None, k: int | None) -> Task:
    given = {"name": item} if isinstance(item, str) else item
    if not isinstance(given, dict) or "name" not in given or set(given) - {"name", "limit", "k"}:
        raise StudyError(f"a task of a study is a name, or name, limit and k; got {item!r}")
    task = Task(**{"limit": limit, "k": k, **given})
    for name, value in (("limit", task.limit), ("k", task.k)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise StudyError(f"task {task.name}: {name}={value!r} must be a whole number ≥ 1")
    return task


def _listed(content: dict[str, Any], key: str) -> list[Any]:
    value = content.get(key)
    if not isinstance(value, list) or not value:
        raise StudyError(f"a study needs a list of {key}")
    return value


def find_file(name: str, kind: str, beside: Path | None) -> Path:
    """A file given by path, or a packaged one by name.

    Args:
        name: a path, as it is or relative to `beside`, or a packaged file's name.
        kind: the folder of the packaged ones: methods, studies, or "" for the models' run files.
        beside: another folder to look in.

    Raises:
        StudyError: with the near miss and the packaged names.
    """
    packaged = Path(str(resources.files("lm_eval_embednoise.model_configs"))) / kind
    for path in (Path(name), *([beside / name] if beside else []), packaged / f"{name}.yaml"):
        if path.is_file():
            return path
    known = sorted(path.stem for path in packaged.glob("*.yaml"))
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise StudyError(f"no {kind or 'run'} file {name!r}; {hint}packaged: {', '.join(known)}")


def read_file(path: Path, known: set[str] | None) -> dict[str, Any]:
    """A YAML file's mapping, its keys checked unless `known` is None.

    Raises:
        StudyError: for a file that can't be read, or an unknown key.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise StudyError(f"cannot read {path}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise StudyError(f"{path}: a mapping is expected, got {content!r}")
    unknown = sorted(set(content) - known) if known is not None else []
    if known is not None and unknown:
        raise StudyError(f"{path}: unknown {unknown}; allowed: {', '.join(sorted(known))}")
    return content
