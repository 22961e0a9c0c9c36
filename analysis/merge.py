"""One leaderboard from several groups' comparison.json: merged only where they are comparable."""

from __future__ import annotations

from typing import Any

from lm_eval_embednoise.analysis.records import ResultError

_LISTS = ("sources", "leaderboard", "pairs", "planes", "verdicts", "floor")


def merge(comparisons: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Join files, name → content, under one protocol, baseline and set of problems.

    Intervals and tests stay as each file computed them: methods of different files were not paired.

    Raises:
        ResultError: protocols, baselines or settings differ, or two files hold the same entry.
    """
    (first_name, first), *others = comparisons.items()
    for name, other in others:
        for what in (("protocol", "hash"), ("analysis", "baseline"), ("analysis", "level")):
            ours, theirs = first[what[0]][what[1]], other[what[0]][what[1]]
            if ours != theirs:
                raise ResultError(
                    f"{first_name} and {name} can't be merged: {' '.join(what)} {ours} against "
                    f"{theirs}; compare both again under one protocol"
                )
    facts: dict[tuple[str, str], tuple[str, Any]] = {}
    seen: dict[tuple[str, ...], str] = {}
    for name, comparison in comparisons.items():
        for row in comparison["leaderboard"]:
            for subject, fact in _facts(row).items():
                source, expected = facts.setdefault(subject, (name, fact))
                if fact != expected:
                    raise ResultError(
                        f"{source} and {name} can't be merged: {subject[0]} has {subject[1]} "
                        f"{expected} against {fact}"
                    )
            key = (row["model"], row["task"], row["method"])
            if key in seen:
                raise ResultError(
                    f"{seen[key]} and {name} both hold {' · '.join(key)}: leave one out, or give "
                    "the models different names"
                )
            seen[key] = name
    candidates = {c["analysis"]["candidate"] for c in comparisons.values()}
    return {
        **first,
        "analysis": {
            **first["analysis"],
            "candidate": candidates.pop() if len(candidates) == 1 else None,
        },
        **{key: [item for c in comparisons.values() for item in c[key]] for key in _LISTS},
    }


def _facts(row: dict[str, Any]) -> dict[tuple[str, str], Any]:
    """What must be equal wherever the same task or the same model appears."""
    task = {key: row[key] for key in ("k", "n", "problems")}
    model = {key: value for key, value in row["settings"].items() if key.startswith("model ")}
    task["data version"] = row["settings"].get("data version")
    return {
        **{(row["task"], key): value for key, value in task.items()},
        **{(row["model"], key): value for key, value in model.items()},
    }
