"""What each leaderboard entry is: a dose of a sweep, a level of an ablation; which ones to show."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

from lm_eval_embednoise.analysis.methods import input_change, method_order

Row = dict[str, Any]
# Ablation → the fields of a perturbation that it changes; everything else must be equal.
AXES: dict[str, tuple[str, ...]] = {
    "depth": ("depth",),
    "scope": ("scope",),
    "law": ("noise_law", "shared"),
    "structure": ("positions", "dummy_token"),
    "schedule": ("schedule", "sigma_end", "anneal_tokens"),
    "reference": ("sigma_reference",),
    "soft prompt": ("rsp", "rsp_slot", "rsp_fit", "rsp_scale"),
    "prefix": ("prefix",),
    "freshness": ("draws",),
    "attention": ("attention_temperature", "attention_blocks"),
}
_ADDED = ("rsp", "prefix")  # input that is added to the prompt instead of noise on it


@dataclass(frozen=True)
class Ablation:
    """Entries that differ in one choice only.

    Attributes:
        axis: what they differ in, one of `AXES`, or `added input`.
        levels: label of the choice → entry.
    """

    axis: str
    levels: dict[str, Row]


def dose(row: Row) -> float:
    """The largest σ of an entry's sites; 0 without noise."""
    perturbation = row["perturbation"]
    sites = perturbation.get("sites") or {"": perturbation.get("sigma") or 0.0}
    return float(max(sites.values(), default=0.0))


def sweeps(rows: list[Row], least: int = 2) -> list[list[Row]]:
    """Entries that differ in their dose only, each in order of dose; the longest sweep first."""
    by_settings: dict[str, list[Row]] = {}
    for row in rows:
        if dose(row):
            by_settings.setdefault(_rest(row, ()), []).append(row)
    long = [
        sorted(arm, key=dose)
        for arm in by_settings.values()
        if len({dose(r) for r in arm}) >= least
    ]
    return sorted(long, key=len, reverse=True)


def ablations(rows: list[Row]) -> list[Ablation]:
    """For each axis the largest set of entries that differ in nothing else.

    Of equally large ones the set at the dose that most entries have. The last ablation compares
    input added to the prompt (random soft prompts, prefixes) with the noise of that dose.
    """
    noisy = [row for row in rows if input_change(row["perturbation"]) == "noise"]
    if not noisy:
        return []
    usual = Counter(dose(row) for row in noisy if dose(row)).most_common(1)
    common = usual[0][0] if usual else 0.0
    chosen = []
    for axis, fields in AXES.items():
        sets: dict[str, dict[str, Row]] = {}
        for row in noisy:
            key = json.dumps([dose(row), _rest(row, fields)])
            sets.setdefault(key, {}).setdefault(_level(row, axis), row)
        best = max(sets.values(), key=lambda s: (len(s), _has_dose(s, common)))
        if len(best) > 1:
            chosen.append(Ablation(axis, dict(sorted(best.items(), key=_level_order))))
    added = {row["method"]: row for row in noisy if any(row["perturbation"].get(k) for k in _ADDED)}
    if added:
        longest = sweeps(noisy, least=1)[:1]
        plain = [row for sweep in longest for row in sweep if dose(row) == common]
        chosen.append(Ablation("added input", {row["method"]: row for row in plain} | added))
    return chosen


def featured(rows: list[Row], comparison: dict[str, Any], most: int) -> list[str]:
    """The methods to name where there is no room for all, in the order of the tables.

    The candidate, the baseline and its family, the fronts, then the sweeps.
    """
    analysis, content = comparison["analysis"], comparison["protocol"]["content"]
    here = (rows[0]["model"], rows[0]["task"]) if rows else ("", "")
    fronts = [
        name
        for plane in comparison["planes"]
        if (plane["model"], plane["task"]) == here
        for name in plane["front"]
    ]
    swept = [row["method"] for arm in sweeps(rows) for row in arm]
    names = [row["method"] for row in rows]
    wanted = [analysis["candidate"], analysis["baseline"], *content["family"], *fronts, *swept]
    chosen = [name for name in dict.fromkeys([*wanted, *names]) if name in names][:most]
    return sorted(chosen, key=method_order)


def _has_dose(levels: dict[str, Row], value: float) -> bool:
    return any(dose(row) == value for row in levels.values())


def _rest(row: Row, fields: tuple[str, ...]) -> str:
    """All of a method but its dose, its seed and these fields."""
    described = _described(row)
    kept = {k: v for k, v in described.items() if k not in fields and v is not None}
    return json.dumps([kept, row["sampling"]], sort_keys=True, default=str)


def _described(row: Row) -> dict[str, Any]:
    perturbation = row["perturbation"]
    sites = sorted(perturbation.get("sites") or {})
    rest = {k: v for k, v in perturbation.items() if k not in ("seed", "sigma", "sites")}
    return {**rest, "depth": sites or rest.get("depth")}


def _level(row: Row, axis: str) -> str:
    """An entry's choice on an axis, short."""
    described = _described(row)
    parts = [described.get(field) for field in AXES[axis]]
    if axis == "depth":
        parts = ["+".join(str(site).replace(".", " ") for site in parts[0] or ["none"])]
    if axis == "law":
        parts = [parts[0] or "gaussian", "shared" if parts[1] else None]
    if axis == "schedule" and parts[0] == "constant":
        parts = parts[:1]
    return " ".join(str(part) for part in parts if part not in (None, "", 0)) or "none"


def _level_order(item: tuple[str, Row]) -> tuple[Any, ...]:
    name, _ = item
    digits = "".join(c for c in name if c.isdigit())
    plain = name in ("embed", "token", "prompt", "constant", "none")
    return (not plain, int(digits or 0) if name.startswith("block") else 0, name)
