"""Where a benchmark's files are (a folder of the authors' own, or the hub), and reading them."""

from __future__ import annotations

import gzip
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

VARIABLE = "EMBEDNOISE_DATA"


class DataMissing(FileNotFoundError):
    """A benchmark's problems are neither on this machine nor to be fetched."""


class BadData(ValueError):
    """A data file does not have the shape it should; names file, line and key."""


@dataclass(frozen=True)
class Source:
    """A benchmark's files.

    Attributes:
        name: the benchmark, and its folder below EMBEDNOISE_DATA.
        patterns: names of the authors' files there, tried in order; a match is a set of files.
        hub: dataset repository; empty where the hub does not hold these files.
        files: the plain JSONL or Parquet files in it; without a hub, where to get them.
        anywhere: whether the patterns are telling enough to be looked for in the top folder too.
    """

    name: str
    patterns: tuple[str, ...]
    hub: str
    files: tuple[str, ...]
    anywhere: bool = False


def locate(source: Source) -> list[Path]:
    """The files of a benchmark: from EMBEDNOISE_DATA where it is set, else from the hub.

    Raises:
        DataMissing: in one line that names both ways out.
    """
    folder = os.environ.get(VARIABLE)
    if folder:
        return _local(source, Path(folder))
    if not source.hub:
        raise DataMissing(
            f"{source.name}: the hub does not hold its tests in this form; take the file from "
            f"{source.files[0]} and set {VARIABLE} to a folder that holds {_wanted(source)}"
        )
    from huggingface_hub import hf_hub_download

    try:
        return [
            Path(hf_hub_download(source.hub, name, repo_type="dataset")) for name in source.files
        ]
    except Exception as error:  # offline, gated, moved: the ways out are the same
        reason = str(error).strip().split("\n")[0]
        raise DataMissing(
            f"{source.name}: cannot fetch {source.hub} from the hub ({reason}); go online, or set "
            f"{VARIABLE} to a folder that holds {_wanted(source)}"
        ) from None


def _local(source: Source, folder: Path) -> list[Path]:
    places = [folder / source.name, *([folder] if source.anywhere else [])]
    for place in places:
        for pattern in source.patterns:
            paths = sorted(place.glob(pattern))
            if paths:
                return paths
    other = f"unset {VARIABLE} to fetch {source.hub} from the hub"
    if not source.hub:
        other = f"take it from {source.files[0]} (the hub does not hold it in this form)"
    raise DataMissing(
        f"{source.name}: {VARIABLE}={folder} holds no {_wanted(source)}; put it there, or {other}"
    )


def _wanted(source: Source) -> str:
    return " or ".join(f"{source.name}/{pattern}" for pattern in source.patterns)


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a JSONL (also .gz), JSON-list or Parquet file, each with its place.

    Raises:
        BadData: where a line is no JSON object.
    """
    if path.suffix == ".parquet":
        import pyarrow.parquet  # type: ignore[import-untyped]

        rows: Any = pyarrow.parquet.read_table(path).to_pylist()
        yield from ((f"{path}: row {i}", row) for i, row in enumerate(rows, start=1))
        return
    if path.suffix == ".json":
        rows = _parse(path.read_bytes(), str(path))
        for i, row in enumerate(rows, start=1):
            yield f"{path}: entry {i}", row
        return
    yield from ((place, row) for place, _, row in read_lines(path))


def read_lines(path: Path) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """The rows of a JSONL file (also .gz), each with its place and the line that it is.

    Raises:
        BadData: where a line is no JSON object.
    """
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                place = f"{path}: line {number}"
                yield place, line, parse_row(line, place)


def parse_row(line: bytes, place: str) -> dict[str, Any]:
    """A line of JSONL.

    Raises:
        BadData: naming the place, when it is no JSON object.
    """
    row = _parse(line, place)
    if not isinstance(row, dict):
        raise BadData(f"{place}: expected an object, found {type(row).__name__}")
    return row


def load_json(text: str | bytes) -> Any:
    """The value of a JSON text, integers of any length included.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:  # Python's limit on the digits of an integer
        return json.loads(text, parse_int=_long_integer)


def _long_integer(digits: str) -> int:
    value = 0
    for start in range(0, len(plain := digits.lstrip("-")), 4000):
        part = plain[start : start + 4000]
        value = value * 10 ** len(part) + int(part)
    return -value if digits.startswith("-") else value


def _parse(data: bytes, place: str) -> Any:
    try:
        return load_json(data)
    except ValueError as error:
        raise BadData(f"{place}: not JSON ({error})") from None


def field(row: dict[str, Any], place: str, *names: str) -> Any:
    """The value under the first of `names` that the row has.

    Raises:
        BadData: naming place and key when it has none of them.
    """
    for name in names:
        if name in row and row[name] is not None:
            return row[name]
    raise BadData(f"{place}: no key {names[0]!r} (there are {', '.join(map(repr, row))})")
