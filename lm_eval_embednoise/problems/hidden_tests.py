"""APPS and LiveCodeBench: problems whose tests stay in their files until they are needed."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import pickle
import zlib
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from lm_eval_embednoise.problems.datafiles import (
    BadData,
    Source,
    field,
    load_json,
    locate,
    parse_row,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Row = dict[str, Any]
APPS = Source(
    "apps",
    ("test.jsonl", "test/*/question.txt", "*.jsonl"),
    "codeparrot/apps",
    ("test.jsonl",),
)
LIVECODEBENCH = Source(
    "livecodebench",
    ("test*.jsonl", "*.jsonl"),
    "livecodebench/code_generation_lite",
    ("test.jsonl", *(f"test{i}.jsonl" for i in range(2, 7))),
)
Tests = list[tuple[Any, Any]]  # (input, expected output)

# Position of each problem, filled while its file is read: (file or folder, first byte).
_places: dict[str, tuple[Path, int]] = {}


def _read(path: Path, first: int) -> Row:
    """The row that begins at byte `first` of a JSONL file; a folder is one row."""
    if path.is_dir():
        return _apps_folder(path)
    with path.open("rb") as file:
        file.seek(first)
        return load_json(file.readline())


def _rows(source: Source, name: Callable[[Row, str], str]) -> Iterator[tuple[str, str, Row]]:
    """Each row with its problem id and its place, which is remembered."""
    for path in locate(source):
        if path.name == "question.txt":
            row, place = _apps_folder(path.parent), str(path.parent)
            task_id = name(row, place)
            _places[task_id] = (path.parent, 0)
            yield task_id, place, row
            continue
        first = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    place = f"{path}: line {number}"
                    row = parse_row(line, place)
                    task_id = name(row, place)
                    _places[task_id] = (path, first)
                    yield task_id, place, row
                first += len(line)


def load_tests(doc: Row) -> tuple[str, Tests]:
    """How a document's tests are put ("stdin" or "call"), and the tests.

    Raises:
        BadData: when the files no longer hold the tests that the document was made with.
    """
    task_id = doc["task_id"]
    source, name, raw_tests, decode = _BENCHMARKS[doc["grader"]]
    if task_id not in _places:
        for _ in _rows(source, name):
            pass
    if task_id not in _places:
        raise BadData(f"{task_id}: the data files hold no such problem")
    row = _read(*_places[task_id])
    if _digest(raw_tests(row)) != doc["tests"]:
        raise BadData(f"{task_id}: its tests have changed since the problems were loaded")
    return decode(row, task_id)


def _digest(texts: list[str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()


def _json(text: Any, place: str, key: str) -> Any:
    """The value of a field that holds JSON as text; None when it is empty."""
    if not text:
        return None
    try:
        return load_json(text)
    except ValueError as error:
        raise BadData(f"{place}: key {key!r} is not JSON ({error})") from None


# -- APPS ------------------------------------------------------------------------------------


def apps_problems() -> Iterator[Row]:
    """The documents of APPS, without those that have no tests (the official test set has some)."""
    for task_id, place, raw in _rows(APPS, _apps_name):
        tests = _json(raw.get("input_output"), place, "input_output") or {}
        if not tests.get("inputs"):
            continue
        solutions = _json(raw.get("solutions"), place, "solutions") or [""]
        yield {
            "task_id": task_id,
            "question": field(raw, place, "question"),
            "starter_code": raw.get("starter_code") or "",
            "entry_point": tests.get("fn_name") or "",
            "difficulty": field(raw, place, "difficulty"),
            "canonical_solution": solutions[0],
            "grader": "apps",
            "tests": _digest(_apps_raw(raw)),
        }


def solutions_of(task_id: str) -> list[str]:
    """All published solutions of a problem of APPS that has been loaded."""
    return list(_json(_read(*_places[task_id]).get("solutions"), task_id, "solutions") or [])


def _apps_name(row: Row, place: str) -> str:
    return f"APPS/{int(field(row, place, 'problem_id', 'id')):04}"


def _apps_raw(row: Row) -> list[str]:
    return [row.get("input_output") or ""]


def _apps_decode(row: Row, task_id: str) -> tuple[str, Tests]:
    tests = _json(row["input_output"], task_id, "input_output")
    inputs, outputs = tests["inputs"], tests["outputs"]
    if tests.get("fn_name"):
        pairs = [(_int_keys(i), _int_keys(o)) for i, o in zip(inputs, outputs, strict=False)]
        return "call", pairs
    return "stdin", [(_text(i), _text(o)) for i, o in zip(inputs, outputs, strict=False)]


def _text(value: Any) -> str:
    """Some tests are lists of lines, some are numbers of any length."""
    if isinstance(value, list):
        return "\n".join(map(_text, value))
    return str(Decimal(value)) if type(value) is int else str(value)


def _int_keys(value: Any) -> Any:
    """JSON made the integer keys of dicts into strings; the official harness turns them back."""
    if isinstance(value, dict):
        try:
            return {int(key): item for key, item in value.items()}
        except ValueError:
            return value
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [_int_keys(value[0]), *value[1:]]
    return value


def _apps_folder(folder: Path) -> Row:
    """One problem of the original release: a folder of small files."""

    def text(name: str) -> str:
        file = folder / name
        return file.read_text(encoding="utf-8") if file.exists() else ""

    return {
        "problem_id": int(folder.name),
        "question": text("question.txt"),
        "solutions": text("solutions.json"),
        "input_output": text("input_output.json"),
        "starter_code": text("starter_code.py"),
        **json.loads(text("metadata.json") or "{}"),
    }


# -- LiveCodeBench ---------------------------------------------------------------------------


def livecodebench_problems() -> Iterator[Row]:
    """The documents of LiveCodeBench."""
    for task_id, place, raw in _rows(LIVECODEBENCH, _livecodebench_name):
        metadata = _json(raw.get("metadata"), place, "metadata") or {}
        yield {
            "task_id": task_id,
            "question": field(raw, place, "question_content"),
            "starter_code": raw.get("starter_code") or "",
            "entry_point": metadata.get("func_name") or "",
            "difficulty": field(raw, place, "difficulty"),
            "contest_date": str(field(raw, place, "contest_date")),
            "canonical_solution": "",
            "grader": "livecodebench",
            "tests": _digest(_livecodebench_raw(raw)),
        }


def _livecodebench_name(row: Row, place: str) -> str:
    return f"LCB/{field(row, place, 'question_id')}"


def _livecodebench_raw(row: Row) -> list[str]:
    return [row.get("public_test_cases") or "", row.get("private_test_cases") or ""]


def _livecodebench_decode(row: Row, task_id: str) -> tuple[str, Tests]:
    public, private = _livecodebench_raw(row)
    cases = (_json(public, task_id, "public_test_cases") or []) + decode_private_tests(private)
    if cases and cases[0]["testtype"] == "functional":
        # One JSON value on each line of the input is an argument.
        return "call", [
            ([load_json(line) for line in case["input"].split("\n")], load_json(case["output"]))
            for case in cases
        ]
    return "stdin", [(case["input"], case["output"]) for case in cases]


class _PlainUnpickler(pickle.Unpickler):
    """Builds strings, lists and dicts; refuses every class and function by name."""

    def find_class(self, module: str, name: str) -> Any:
        raise BadData(f"the private tests name {module}.{name}: refused, not unpickled")


def decode_private_tests(text: str) -> list[Row]:
    """The private tests of LiveCodeBench: JSON, or JSON in a pickle in zlib in base64.

    Raises:
        BadData: when the pickle holds anything but plain values.
    """
    if not text:
        return []
    with contextlib.suppress(ValueError):
        return load_json(text)
    try:
        plain = _PlainUnpickler(io.BytesIO(zlib.decompress(base64.b64decode(text)))).load()
        return load_json(plain) if isinstance(plain, str) else plain
    except BadData:
        raise
    except (ValueError, zlib.error, pickle.UnpicklingError, EOFError, LookupError) as error:
        raise BadData(f"private tests that cannot be decoded ({error})") from None


_BENCHMARKS: dict[str, tuple[Source, Any, Any, Any]] = {
    "apps": (APPS, _apps_name, _apps_raw, _apps_decode),
    "livecodebench": (
        LIVECODEBENCH,
        _livecodebench_name,
        _livecodebench_raw,
        _livecodebench_decode,
    ),
}
