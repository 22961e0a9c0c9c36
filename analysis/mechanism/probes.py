"""How a probe is declared and run: pieces that resume, a table, figures.

A probe is a module of this folder with the functions of `Probe`; `embednoise probe` finds it by its
name in `PROBES`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sized
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from tqdm import tqdm

from lm_eval_embednoise.analysis.figures import save
from lm_eval_embednoise.analysis.mechanism.pictures import write_arrays
from lm_eval_embednoise.store.store import digest
from lm_eval_embednoise.written import dumps, write_text

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from matplotlib.figure import Figure

    from lm_eval_embednoise.analysis.mechanism.material import Material

# Name → one line of help; the module has the same name.
PROBES = {
    "geometry": "does the noise, or a hidden state, predict which solution is written?",
    "attention": "what do methods do to attention: entropy, KL from clean, repetition heads",
    "trajectories": "paths of hidden states: other regions, or the same ones with jitter?",
    "early": "where do a problem's samples part, and is the first token it all?",
    "theory": "what do J·ε and the clean model predict of the first tokens, and up to which dose?",
}
Arrays = Mapping[str, np.ndarray]
Row = dict[str, Any]


class Probe(Protocol):
    """The functions of a probe's module."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Its own arguments; `set_defaults` for the shared ones, such as method, limit and k."""

    def check(self, args: argparse.Namespace, blocks: Sized) -> None:
        """Refuse (ValueError) what can't work with a model of these blocks, before it is loaded."""

    def pieces(
        self, material: Material, args: argparse.Namespace
    ) -> dict[str, Callable[[], Arrays]]:
        """Name → the work whose arrays are kept in one file; refuses what the model can't do.

        A piece takes seconds to minutes; what it computes depends on the settings alone.
        """

    def table(
        self, material: Material, args: argparse.Namespace, found: Mapping[str, Arrays]
    ) -> list[Row]:
        """What is told of the pieces: rows with the same keys, numbers or text; NaN: undefined."""

    def figures(
        self,
        material: Material,
        args: argparse.Namespace,
        found: Mapping[str, Arrays],
        rows: list[Row],
    ) -> dict[str, Figure]:
        """Name → figure, made within `figures.RC`."""


def run(
    probe: Probe,
    name: str,
    material: Material,
    args: argparse.Namespace,
    settings: Mapping[str, Any],
    out: Path,
) -> list[Row]:
    """Run a probe's pieces, then write its table and its figures.

    Writes `arrays/<piece>.npz`, `table.csv`, `table.json` (settings and rows) and the figures.

    Args:
        probe: the module.
        name: its name.
        material: what it looks at.
        args: the command line's.
        settings: all that decides the arrays, as JSON; a piece of other settings is made again.
        out: the probe's folder.
    """
    found = measured(probe.pieces(material, args), digest(settings), out / "arrays", name)
    rows = probe.table(material, args, found)
    write_text(out / "table.csv", as_csv(rows))
    content = {"probe": name, "settings": settings, "rows": rows}
    write_text(out / "table.json", dumps(content, indent=1, default=float) + "\n")
    for title, figure in probe.figures(material, args, found, rows).items():
        save(figure, out, title)
    return rows


def measured(
    pieces: Mapping[str, Callable[[], Arrays]], settings: str, folder: Path, name: str
) -> dict[str, Arrays]:
    """The arrays of all pieces; those whose file is there, made with these settings, are read."""
    found: dict[str, Arrays] = {}
    bar = tqdm(pieces.items(), desc=name, unit="piece")
    for piece, work in bar:
        bar.set_postfix_str(piece)
        path = folder / f"{_file_name(piece)}.npz"
        kept = _read(path, settings)
        if kept is None:
            kept = dict(work())
            write_arrays(path, {**kept, "settings": np.array(settings)})
        found[piece] = kept
    return found


def _read(path: Path, settings: str) -> Arrays | None:
    """A piece's arrays; None where there is no whole file of these settings."""
    try:
        with np.load(path) as file:
            arrays = dict(file)
    except (OSError, ValueError, EOFError):
        return None
    return arrays if str(arrays.pop("settings", "")) == settings else None


def _file_name(piece: str) -> str:
    return "".join(c if c.isalnum() or c in "._-@=" else "_" for c in piece)


def as_csv(rows: list[Row]) -> str:
    """Rows with the same keys as CSV; undefined numbers are empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: "" if _undefined(v) else v for k, v in row.items()})
    return out.getvalue()


def _undefined(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not np.isfinite(value))
