"""Read and write comparison.json, checked against its JSON Schema."""

from __future__ import annotations

import functools
import json
import re
from importlib import resources
from typing import TYPE_CHECKING, Any

from jsonschema import Draft202012Validator

from lm_eval_embednoise.analysis.runs import ResultError
from lm_eval_embednoise.scoring.metrics import RENAMED
from lm_eval_embednoise.written import write_text

if TYPE_CHECKING:
    from pathlib import Path

    from jsonschema import ValidationError


# A list of numbers and nulls takes one line; no string of JSON holds the line break it begins with.
_NUMBERS = re.compile(r"\[\n[\s\d.,e+\-nul]+\]")


def comparison_schema() -> dict[str, Any]:
    """The packaged JSON Schema (draft 2020-12)."""
    file = resources.files("lm_eval_embednoise.analysis") / "comparison.schema.json"
    loaded: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return loaded


def validate(comparison: Any) -> None:
    """Check the content of a comparison.json.

    Raises:
        ResultError: names the first place that does not fit, and its value.
    """
    error = next(_validator().iter_errors(comparison), None)
    if error is not None:
        raise ResultError(_message(error))


def write(comparison: dict[str, Any], path: Path) -> None:
    """Validate, then write the file whole or not at all."""
    validate(comparison)
    text = json.dumps(comparison, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(path, _NUMBERS.sub(lambda found: re.sub(r"\s", "", found[0]), text) + "\n")


def read(path: Path) -> dict[str, Any]:
    """Read and check a comparison.json; metrics get their present names.

    Raises:
        ResultError: the file can't be read, or is not of this version.
    """
    try:
        comparison = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise ResultError(f"{path} is no JSON or is cut off ({error})") from None
    try:
        validate(comparison)
    except ResultError as error:
        raise ResultError(f"{path} is not a comparison.json of this version: {error}") from None
    assert isinstance(comparison, dict)
    return _with_present_names(comparison)


@functools.cache
def _validator() -> Draft202012Validator:
    return Draft202012Validator(comparison_schema())


def _message(error: ValidationError) -> str:
    """A violation in one line: where, what is there, what was expected."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.absolute_path)
    where = "comparison" + "".join(steps)
    value, expected = error.instance, error.validator_value
    match error.validator:
        case "type":
            kinds = expected if isinstance(expected, list) else [expected]
            return f"{where} is {value!r:.60}, not {' or '.join(kinds)}"
        case "enum":
            return f"{where} is {value!r:.60}, not one of {expected}"
        case "const":
            return f"{where} is {value!r:.60}, not {expected!r}"
        case "required":
            lacking = next(key for key in expected if key not in value)
            return f"{where} lacks {lacking!r}"
        case "additionalProperties":
            unknown = next(key for key in value if key not in error.schema.get("properties", {}))
            return f"{where} has an unknown key {unknown!r}"
    return f"{where}: {error.message}"


def _with_present_names(comparison: dict[str, Any]) -> dict[str, Any]:
    """Rename what earlier versions called otherwise, on this project's tasks.

    A task of the harness may have a metric of the old name itself; only this project's tasks report
    it together with `nats_per_token`.
    """
    for part in ("leaderboard", "pairs", "floor"):
        for entry in comparison[part]:
            if "nats_per_token" in entry["metrics"]:
                named = {RENAMED.get(name, name): m for name, m in entry["metrics"].items()}
                entry["metrics"] = named
    return comparison
