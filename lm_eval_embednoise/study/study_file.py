"""A study file into the study that it describes, checked: its tasks, methods, calibration."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from lm_eval_embednoise.analysis.protocol import Protocol
from lm_eval_embednoise.study.method import (
    Method,
    StudyError,
    find_file,
    mapping_of,
    read_file,
)
from lm_eval_embednoise.study.plan import Calibration, Model, Study, Task
from lm_eval_embednoise.study.sweep import AXES, Sweep, axis_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_MAPPINGS = ("model_args", "gen_kwargs")
FAMILIES = ("temp-0.8", "embednoise-0.1")  # calibrated unless a study names others: T* and σ*


def load(source: str) -> Study:
    """Read a study file by packaged name or path."""
    path = find_file(source, "studies", None)
    known = {f.name for f in dataclasses.fields(Study)} | {"limit", "k"}
    content = read_file(path, known)
    beside = path.parent
    named = content.get("protocol")
    protocol = str(beside / named) if named else None
    calibrate = calibration(content.get("calibrate"), protocol, beside)
    held_out = calibrate.held_out if calibrate else None
    return Study(
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
