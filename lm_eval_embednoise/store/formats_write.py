"""Writing generations in the file formats of the field (formats.py reads them)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TextIO

from lm_eval_embednoise.store.generation import FIELDS, MISSING, Generation
from lm_eval_embednoise.store.matching import id_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from lm_eval_embednoise.store.problem import Problem

_IN_EVALPLUS = {"humaneval": "HumanEval", "mbpp": "Mbpp"}  # ids as its evaluator spells them
_MEASURED = tuple(name for name in FIELDS if name not in ("sample_index", "form"))


def write(problems: Iterable[Problem], kind: str, file: TextIO, measurements: bool = False) -> None:
    """Write problems in a format; `rows` are written from a store (generations.py).

    Args:
        problems: in the order to write.
        kind: human-eval, evalplus, bigcode, harness or prompts.
        file: where to.
        measurements: add what is known of each sample (tokens, nll, rho, …) where the format
            has room for it: all but bigcode.

    Raises:
        ValueError: an unknown format, or a problem that lacks what the format needs.
    """
    problems = list(problems)
    if kind == "bigcode":
        _check_positions(problems)
        content = [[p.program(text) for text in p.samples] for p in problems]
        file.write(json.dumps(content) + "\n")
        return
    if kind not in _WRITERS:
        raise ValueError(f"format {kind!r} is not known; allowed: rows, bigcode, {_WRITABLE}")
    for problem in problems:
        for line in _WRITERS[kind](problem, measurements):
            file.write(json.dumps(line) + "\n")


def _check_positions(problems: list[Problem]) -> None:
    """Check that no problem is missing: bigcode's file identifies problems by position only."""
    places = [problem.position for problem in problems]
    for expected, problem in enumerate(problems):
        if problem.position != expected:
            raise ValueError(
                f"bigcode's generations.json knows problems by their place, and the store has "
                f"{problem.name} at place {problem.position}, none at {expected} (of {len(places)} "
                "problems): run the first N problems (--limit N) or all of them"
            )


def _measured(generation: Generation, measurements: bool) -> dict[str, Any]:
    if not measurements:
        return {}
    known = generation.measurements()
    return {name: known[name] for name in _MEASURED if known[name] is not None}


def _named(problem: Problem) -> str:
    if problem.task_id is None:
        raise ValueError(
            f"{problem.place}: problem {problem.position} has no task_id, which this format needs; "
            "import with --problems FILE (JSONL of task_id and prompt, in the same order)"
        )
    return problem.task_id


def _write_human_eval(problem: Problem, measurements: bool) -> Iterator[dict[str, Any]]:
    for text in problem.samples:
        line = {"task_id": _named(problem), "completion": problem.completion(str(text))}
        yield {**line, **_measured(text, measurements)}


def _write_evalplus(problem: Problem, measurements: bool) -> Iterator[dict[str, Any]]:
    name = _named(problem)
    benchmark, rest = id_of(name)
    if benchmark in _IN_EVALPLUS:
        name = f"{_IN_EVALPLUS[benchmark]}/{rest}"
    for text in problem.samples:
        line = {"task_id": name, "solution": problem.program(str(text))}
        yield {**line, **_measured(text, measurements)}


def _write_prompts(problem: Problem, measurements: bool) -> Iterator[dict[str, Any]]:
    if problem.prompt is None:
        raise ValueError(f"{problem.place}: the prompt of {problem.name} is not known")
    named = {} if problem.task_id is None else {"task_id": problem.task_id}
    samples = [
        (None if text.finish_reason == MISSING else str(text))
        if not measurements
        else {"text": str(text), **_measured(text, True)}
        for text in problem.samples
    ]
    yield {**named, "prompt": problem.prompt, "samples": samples}


def _write_harness(problem: Problem, measurements: bool) -> Iterator[dict[str, Any]]:
    doc = {"task_id": problem.task_id, **problem.fields}
    records = [
        {"index": i, "text": str(text), **_measured(text, True)} if measurements else str(text)
        for i, text in enumerate(problem.samples)
    ]
    yield {
        "doc_id": problem.position,
        "doc": {key: value for key, value in doc.items() if value is not None},
        "arguments": {"gen_args_0": {"arg_0": problem.prompt}},
        "resps": [[str(text) for text in problem.samples]],
        "filtered_resps": [records],
        "filter": "records" if measurements else "none",
        "doc_hash": problem.doc_hash,
    }


_WRITERS: dict[str, Callable[[Problem, bool], Iterator[dict[str, Any]]]] = {
    "human-eval": _write_human_eval,
    "evalplus": _write_evalplus,
    "prompts": _write_prompts,
    "harness": _write_harness,
}
_WRITABLE = ", ".join(_WRITERS)
