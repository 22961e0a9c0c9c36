"""Read and write comparison.json, checked against its JSON Schema (the keywords it uses)."""

from __future__ import annotations

import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

from lm_eval_embednoise.analysis.runs import ResultError

_TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
    "number": (int, float),
    "integer": int,
}


def comparison_schema() -> dict[str, Any]:
    """The packaged JSON Schema (draft 2020-12)."""
    file = resources.files("lm_eval_embednoise.analysis") / "comparison.schema.json"
    loaded: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return loaded


def validate(value: Any, schema: dict[str, Any] | None = None) -> None:
    """Check a value.

    Args:
        value: parsed JSON.
        schema: comparison.json's unless told.

    Raises:
        ResultError: names the first place that does not fit.
    """
    schema = comparison_schema() if schema is None else schema
    _check(value, schema, schema, "comparison")


def write(comparison: dict[str, Any], path: Path) -> None:
    """Validate, then write the file whole or not at all."""
    validate(comparison)
    write_text(path, json.dumps(comparison, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read(path: Path) -> dict[str, Any]:
    """Read and check a comparison.json."""
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
    return comparison


def _check(value: Any, schema: dict[str, Any], root: dict[str, Any], where: str) -> None:
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/$defs/")
        _check(value, root["$defs"][name], root, where)
    if "type" in schema:
        allowed = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if not any(_is(value, kind) for kind in allowed):
            raise ResultError(f"{where} is {value!r:.60}, not {' or '.join(allowed)}")
    if "enum" in schema and value not in schema["enum"]:
        raise ResultError(f"{where} is {value!r:.60}, not one of {schema['enum']}")
    if "const" in schema and value != schema["const"]:
        raise ResultError(f"{where} is {value!r:.60}, not {schema['const']!r}")
    if isinstance(value, dict):
        for key in schema.get("required", ()):
            if key not in value:
                raise ResultError(f"{where} lacks {key!r}")
        properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        for key, item in value.items():
            if key in properties:
                _check(item, properties[key], root, f"{where}.{key}")
            elif others is False:
                raise ResultError(f"{where} has an unknown key {key!r}")
            elif isinstance(others, dict):
                _check(item, others, root, f"{where}.{key}")
    if isinstance(value, list) and "items" in schema:
        for i, item in enumerate(value):
            _check(item, schema["items"], root, f"{where}[{i}]")


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _TYPES[kind])
