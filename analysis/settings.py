"""The settings that identify each method of a task, as tables: the shared ones, and its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lm_eval_embednoise.analysis.arms import dose
from lm_eval_embednoise.analysis.departures import TUNED
from lm_eval_embednoise.analysis.naming import PLAIN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lm_eval_embednoise.analysis.tables import Table

Row = dict[str, Any]
_OWN_COLUMN = ("sites", "sigma", "scope", "seed")  # of a perturbation, shown in columns of theirs


def shared(rows: list[Row]) -> Table:
    """What all methods of a task have in common: data, prompt, model, versions, hardware."""
    first, *rest = (_recorded(row) for row in rows)
    common = {k: v for k, v in first.items() if all(other.get(k) == v for other in rest)}
    return ["setting", "value"], [[key, value] for key, value in common.items()]


def of_each(rows: list[Row], candidate: str | None) -> Table:
    """A line for each method: dose, site, scope, the whole perturbation, sampling, seeds.

    Args:
        rows: one task's leaderboard.
        candidate: the method whose σ is σ*.
    """
    common = {key for key, _ in shared(rows)[1]}
    header = ["method", "dose", "site", "scope", "perturbation", "sampling", "seeds", "ρ"]
    header += ["std of the noise", "signature", "differs in"]
    body = []
    for row in rows:
        perturbation = row["perturbation"]
        rest = {k: v for k, v in perturbation.items() if k not in _OWN_COLUMN}
        own = {k: v for k, v in _recorded(row).items() if k not in common}
        body.append(
            [
                row["method"],
                _dose(row, candidate),
                ", ".join(perturbation.get("sites") or {}) or "–",
                str(perturbation.get("scope") or "–"),
                _listed(rest),
                _sampling(row["sampling"]),
                ", ".join("unknown" if seed is None else str(seed) for seed in row["seeds"]),
                _by_site(row["rho"]),
                _by_site(row["std"]),
                row["signature"] or "–",
                _listed(own),
            ]
        )
    return header, body


def _recorded(row: Row) -> dict[str, str]:
    """Settings and environment of an entry, in text; files from before have no environment."""
    settings = {key: _text(value) for key, value in row["settings"].items()}
    return settings | dict(row.get("environment") or {})


def _dose(row: Row, candidate: str | None) -> str:
    """σ or the temperature, starred where calibration chooses it by the protocol."""
    temperature = row["sampling"].get("temperature")
    doses = []
    if dose(row):
        doses.append(f"{'σ*' if row['method'] == candidate else 'σ'} = {dose(row):.4g}")
    if temperature and row["sampling"].get("do_sample", True):
        doses.append(f"{'T*' if row['method'] == TUNED else 'T'} = {temperature:.4g}")
    return ", ".join(doses) or "–"


def _sampling(sampling: Mapping[str, Any]) -> str:
    if not sampling.get("do_sample", bool(sampling.get("temperature"))):
        first = sampling.get("first_token")
        return f"greedy, first_token {first}" if first else "greedy"
    return _listed({k: v for k, v in sampling.items() if k != "do_sample" and v != PLAIN.get(k)})


def _by_site(values: Mapping[str, float] | None) -> str:
    return ", ".join(f"{site} {value:.3g}" for site, value in (values or {}).items()) or "–"


def _listed(settings: Mapping[str, Any]) -> str:
    said = [f"{k} {_text(v)}" for k, v in settings.items() if v not in (None, {}, [])]
    return ", ".join(said) or "–"


def _text(value: Any) -> str:
    """A setting as text; line ends are written out."""
    if isinstance(value, list):
        return " ".join(repr(item) if isinstance(item, str) else str(item) for item in value) or "–"
    return str(value) or "–"
