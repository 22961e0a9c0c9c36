"""The report's section on the mechanism: what the probes wrote, as tables and figures.

It reads the folder that `embednoise probe … --out DIR` wrote to, one sub-folder a probe, and knows
no model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_eval_embednoise.analysis.page import Figure
from lm_eval_embednoise.analysis.runs import ResultError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

QUESTIONS = {
    "geometry": "Do the noise, or the hidden states it causes, say which solution is written?",
    "attention": "Does noise change what the model attends to, and break what repeats itself?",
    "trajectories": "Do noisy samples go elsewhere, or the same way with jitter?",
    "early": "Where do a problem's samples part, and is the first token it all?",
    "schedule": "Does it matter when and where noise comes, at equal budget?",
    "freshness": "What does a fresh soft prompt for each sample add to a fixed one?",
    "theory": "Up to which dose do the logits move by J·ε?",
    "failures": "How do samples fail, and which problems are gained and lost?",
}
COLUMNS, FIGURES = 12, 6  # most that the page shows of a probe; the files have the rest


@dataclass(frozen=True)
class Part:
    """What the page shows of a probe.

    Attributes:
        name: of the probe.
        question: that it answers.
        same: what all rows have in common, such as the number of problems.
        table: head and body.
        left_out: how many columns the page leaves to the file.
        figures: the figures.
    """

    name: str
    question: str
    same: str
    table: tuple[list[str], list[list[str]]]
    left_out: int
    figures: list[Figure]


def read(folder: Path) -> list[Part]:
    """The probes under a folder, in the order of `QUESTIONS`.

    Raises:
        ResultError: there is none, or a table can't be read.
    """
    parts = [
        part(name, question, folder / name)
        for name, question in QUESTIONS.items()
        if (folder / name / "table.json").is_file()
    ]
    if not parts:
        raise ResultError(
            f"no probe's table.json under {folder}: give the folder that `embednoise probe NAME "
            "--out DIR` wrote to"
        )
    return parts


def part(name: str, question: str, folder: Path) -> Part:
    """One probe's table and figures."""
    path = folder / "table.json"
    try:
        rows = [dict(flat(row)) for row in json.loads(path.read_text("utf-8"))["rows"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultError(f"{path} is not a probe's table: {error}") from None
    columns = list(dict.fromkeys(key for row in rows for key in row))
    values = {key: [row.get(key) for row in rows] for key in columns}
    same = [key for key in columns if len(rows) > 1 and len(set(map(shown, values[key]))) == 1]
    varying = [key for key in columns if key not in same]
    told = ", ".join(f"{key} {shown(values[key][0])}" for key in same if shown(values[key][0]))
    head = varying[:COLUMNS]
    body = [[shown(row.get(key)) for key in head] for row in rows]
    drawn = [
        Figure.from_svg(file.read_text("utf-8"), f"{name}: {file.stem}")
        for file in sorted(folder.glob("*.svg"))[:FIGURES]
    ]
    return Part(name, question, told, (head, body), len(varying) - len(head), drawn)


def flat(row: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
    """A row's numbers and words: an estimate is its value, of a test there are value and p."""
    for key, value in row.items():
        name = f"{start}{key}"
        if not isinstance(value, dict):
            if not isinstance(value, list):
                yield name, value
        elif "value" in value:
            yield name, value["value"]
        elif "difference" in value and "p_permutation" in value:
            yield f"Δ {key}", value["difference"]["value"]
            yield f"p {key}", value["p_permutation"]
        else:
            yield from flat(value)


def shown(value: Any) -> str:
    """A cell: numbers to three digits, nothing where undefined."""
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value)
