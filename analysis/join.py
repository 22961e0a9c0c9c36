"""Comparisons side by side, each with its own numbers: methods of different ones aren't paired."""

from __future__ import annotations

from typing import Any

import numpy as np

from lm_eval_embednoise.analysis import pareto
from lm_eval_embednoise.analysis.comparison import SCHEMA
from lm_eval_embednoise.analysis.runs import ResultError

# Part → the keys that identify an entry; an entry in several files is taken once.
_LISTS = {
    "sources": ("model", "method", "task", "file"),
    "leaderboard": ("model", "task", "method"),
    "pairs": ("model", "task", "method", "baseline"),
    "verdicts": ("model", "candidate"),
    "floor": ("model", "task", "method"),
}
_COMMON = ("n", "n_undefined", "left_out", "points")  # of a plane's common problems
_CONTENT = ("perturbation", "sampling", "seeds", "settings")  # of one method in two files


def join(comparisons: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Join comparisons, name → content, that `merge` found comparable; the first one's head.

    Raises:
        ResultError: one name is used for two methods.
    """
    seen: dict[tuple[str, ...], tuple[str, dict[str, Any]]] = {}
    for name, comparison in comparisons.items():
        for row in comparison["leaderboard"]:
            key = (row["model"], row["task"], row["method"])
            source, other = seen.setdefault(key, (name, row))
            differing = [k for k in _CONTENT if other[k] != row[k]]
            if differing:
                raise ResultError(
                    f"{source} and {name} both hold {' · '.join(key)}, with another "
                    f"{', '.join(differing)}: give the methods or the models different names"
                )
    first = next(iter(comparisons.values()))
    lists = {
        part: _once([item for c in comparisons.values() for item in c[part]], keys)
        for part, keys in _LISTS.items()
    }
    return {
        **first,
        "schema": SCHEMA,
        **lists,
        "curves": _curves([entry for c in comparisons.values() for entry in c.get("curves", [])]),
        "planes": _planes([p for c in comparisons.values() for p in c["planes"]], lists),
        "vectors": [entry for c in comparisons.values() for entry in c.get("vectors", [])],
    }


def _once(items: list[dict[str, Any]], keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """The items without those that an earlier file has as well."""
    kept: dict[tuple[Any, ...], dict[str, Any]] = {}
    for item in items:
        kept.setdefault(tuple(item[key] for key in keys), item)
    return list(kept.values())


def _curves(curves: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One curve for each model, task and outcome: files with the same one hold more methods."""
    merged: dict[tuple[Any, ...], dict[str, Any]] = {}
    for curve in curves:
        key = (curve["model"], curve["task"], curve["outcome"], *curve["doses"])
        one = merged.setdefault(key, curve)
        merged[key] = {
            **one,
            "against": {**curve["against"], **one["against"]},
            "areas": {**curve["areas"], **one["areas"]},
            "others": [
                *one.get("others", []),
                *(f for f in curve.get("others", []) if f not in one.get("others", [])),
            ],
        }
    return list(merged.values())


def _planes(planes: list[dict[str, Any]], lists: dict[str, Any]) -> list[dict[str, Any]]:
    """One plane for each model, task and metric: the front is drawn anew where files share it.

    Neither problems common to all nor areas can be computed from the files then; they are left out.
    """
    means = {
        (row["model"], row["task"], row["method"]): row["metrics"] for row in lists["leaderboard"]
    }
    merged: dict[tuple[Any, ...], dict[str, Any]] = {}
    for plane in planes:
        key = (plane["model"], plane["task"], plane["x"], plane["y"])
        one = merged.setdefault(key, plane)
        if one is plane or one == plane:
            continue
        mine = [(name, m) for (*where, name), m in means.items() if tuple(where) == key[:2]]
        names = [name for name, metrics in mine if {plane["x"], plane["y"]} <= metrics.keys()]
        x, y = (
            np.array([np.nan if (v := dict(mine)[n][axis]["value"]) is None else v for n in names])
            for axis in (plane["x"], plane["y"])
        )
        front = pareto.front(x, y)
        merged[key] = {
            **{name: value for name, value in one.items() if name not in _COMMON},
            "front": [name for name, on in zip(names, front, strict=True) if on],
            "hypervolume": {},
            "curve": list(dict.fromkeys([*one["curve"], *plane["curve"]])),
            "matched": {**plane["matched"], **one["matched"]},
        }
    return list(merged.values())
