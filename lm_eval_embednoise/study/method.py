"""A method: how samples are drawn, as a file under model_configs/methods/ says it."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lm_eval_embednoise.noise.noise_file import with_noise_file
from lm_eval_embednoise.noise.perturbation import Perturbation

if TYPE_CHECKING:
    from collections.abc import Mapping

_METHOD_KEYS = {"model", "model_args", "gen_kwargs", "metadata"}


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
