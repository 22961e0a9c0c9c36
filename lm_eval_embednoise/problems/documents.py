"""The problems of every task, as the harness wants them: a dict of split to `datasets.Dataset`.

A document carries its own problem id, a `cluster` where problems are not independent, and what a
grader needs; `grader` names the grader. The tests of APPS and LiveCodeBench stay in their files
(they can be hundreds of megabytes): a document refers to them by problem id and digest.
"""

from __future__ import annotations

import ast
import functools
import random
import re
import textwrap
from typing import TYPE_CHECKING, Any

from lm_eval_embednoise import sandbox
from lm_eval_embednoise.problems import hidden_tests, plus_tests
from lm_eval_embednoise.problems.datafiles import (
    BadData,
    DataMissing,
    Source,
    field,
    locate,
    read_rows,
)

if TYPE_CHECKING:
    from collections.abc import Callable

Row = dict[str, Any]
SUBSET_SEED = 0
HUMANEVAL = Source(
    "humaneval",
    ("HumanEval.jsonl.gz", "HumanEval.jsonl"),
    "openai/openai_humaneval",
    ("openai_humaneval/test-00000-of-00001.parquet",),
    anywhere=True,
)
MBPP = Source(
    "mbpp",
    ("sanitized-mbpp.json", "mbpp_sanitized_for_code_generation.jsonl"),
    "google-research-datasets/mbpp",
    tuple(
        f"sanitized/{split}-00000-of-00001.parquet"
        for split in ("prompt", "test", "validation", "train")
    ),
    anywhere=True,
)
GSM8K = Source("gsm8k", ("test.jsonl",), "openai/gsm8k", ("main/test-00000-of-00001.parquet",))
MATH500 = Source("math500", ("test.jsonl", "*.jsonl"), "HuggingFaceH4/MATH-500", ("test.jsonl",))


def _runs_code(load: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Documents whose samples are judged by running them: without a sandbox, say so at once.

    Scoring comes after generation, so a missing sandbox would otherwise cost all of it.
    """

    @functools.wraps(load)
    def loaded(*args: Any, **kwargs: Any) -> dict[str, Any]:
        sandbox.strongest()
        return load(*args, **kwargs)

    return loaded


@_runs_code
def minicode(**_: Any) -> dict[str, Any]:
    """The embedded programming problems, in HumanEval's form."""
    return _embedded("minicode", ("prompt", "entry_point", "canonical_solution", "test"))


def minimath(**_: Any) -> dict[str, Any]:
    """The embedded word problems, with worked answers ending in `#### N`."""
    return _embedded("minimath", ("question", "answer"))


@_runs_code
def humaneval(subset: int | None = None, **_: Any) -> dict[str, Any]:
    """HumanEval (Chen et al. 2021)."""
    keys = ("task_id", "prompt", "entry_point", "canonical_solution", "test")
    rows = [
        {key: field(row, place, key) for key in keys}
        for path in locate(HUMANEVAL)
        for place, row in read_rows(path)
    ]
    return _split(rows, subset)


@_runs_code
def mbpp(subset: int | None = None, **_: Any) -> dict[str, Any]:
    """MBPP, the sanitised problems (Austin et al. 2021), as functions to complete."""
    rows = [_mbpp_row(row, place) for path in locate(MBPP) for place, row in read_rows(path)]
    return _split(sorted(rows, key=lambda row: int(row["task_id"].split("/")[1])), subset)


@_runs_code
def humanevalplus(subset: int | None = None, **_: Any) -> dict[str, Any]:
    """HumanEval+ (Liu et al. 2023): HumanEval's problems with many more inputs."""
    return _split(list(plus_tests.problems("humanevalplus")), subset)


@_runs_code
def mbppplus(subset: int | None = None, **_: Any) -> dict[str, Any]:
    """MBPP+ (Liu et al. 2023); v0.1.0 has 399 problems, v0.2.0 has 378."""
    return _split(list(plus_tests.problems("mbppplus")), subset)


def gsm8k(subset: int | None = None, **_: Any) -> dict[str, Any]:
    """GSM8K's test problems (Cobbe et al. 2021), numbered in file order."""
    rows = [
        {"question": field(row, place, "question"), "answer": field(row, place, "answer")}
        for path in locate(GSM8K)
        for place, row in read_rows(path)
    ]
    return _split([{"task_id": f"GSM8K/{i}", **row} for i, row in enumerate(rows)], subset)


def math500(subset: int | None = None, **_: Any) -> dict[str, Any]:
    """MATH-500 (Lightman et al. 2023), or any file of MATH problems in its place."""
    rows = []
    for path in locate(MATH500):
        for place, row in read_rows(path):
            rows.append(
                {
                    "task_id": f"MATH/{field(row, place, 'unique_id', 'idx')}",
                    "question": field(row, place, "problem"),
                    "answer": field(row, place, "solution"),
                    "cluster": field(row, place, "subject", "type"),
                    "grader": "math",
                }
            )
    return _split(rows, subset)


@_runs_code
def apps(difficulty: str, subset: int | None = None, **_: Any) -> dict[str, Any]:
    """APPS test problems of one difficulty (Hendrycks et al. 2021)."""
    rows = (row for row in hidden_tests.apps_problems() if row["difficulty"] == difficulty)
    return _split(list(rows), subset)


@_runs_code
def livecodebench(
    start_date: str | None = None,
    end_date: str | None = None,
    subset: int | None = None,
    **_: Any,
) -> dict[str, Any]:
    """LiveCodeBench (Jain et al. 2024); contest dates from `start_date` to `end_date`, YYYY-MM-DD.

    Raises:
        ValueError: for a date in another form, or a window without problems.
    """
    for value in (start_date, end_date):
        if value is not None and not re.fullmatch(r"\d{4}-\d\d-\d\d", str(value)):
            raise ValueError(f"livecodebench: a date must be YYYY-MM-DD, not {value!r}")
    rows = [
        row
        for row in hidden_tests.livecodebench_problems()
        if (start_date or "") <= row["contest_date"][:10] <= (end_date or "9999")
    ]
    if not rows:
        raise ValueError(f"livecodebench: no problem from {start_date} to {end_date}")
    return _split(rows, subset)


def _split(rows: list[Row], subset: int | None) -> dict[str, Any]:
    """The rows as the split `test`; `subset` keeps min(subset, N) of them, the same every time."""
    from datasets import Dataset

    ids = [row["task_id"] for row in rows]
    if len(set(ids)) != len(ids):
        raise ValueError(f"two problems are called {max(ids, key=ids.count)}")
    if subset is not None and subset < len(rows):
        chosen = sorted(random.Random(SUBSET_SEED).sample(range(len(rows)), subset))
        rows = [rows[i] for i in chosen]
    return {"test": Dataset.from_list(rows)}


def _mbpp_row(row: Row, place: str) -> Row:
    """One document from either published form of the sanitised problems."""
    if "entry_point" in row:  # completed by the authors of CodeT
        number = str(field(row, place, "task_id")).split("/")[-1]
        keys = ("prompt", "entry_point", "canonical_solution", "test")
        made = {"task_id": f"MBPP/{number}", **{key: field(row, place, key) for key in keys}}
        asserts = textwrap.dedent(made["test"].split("\n", 1)[1])
        return {
            **made,
            "entry_point": made["entry_point"].strip(),
            "canonical_solution": _reindent(made["canonical_solution"]),
            "test": _mbpp_test([], asserts.split("\n")),
        }
    code, tests = field(row, place, "code"), list(field(row, place, "test_list"))
    name = re.search(r"(\w+)\s*\(", tests[0].replace("assert", "", 1).replace("set(", "", 1))
    entry_point = name.group(1) if name else ""
    prompt, body = _mbpp_prompt(code, entry_point, field(row, place, "prompt", "text"), place)
    return {
        "task_id": f"MBPP/{field(row, place, 'task_id')}",
        "prompt": prompt,
        "entry_point": entry_point,
        "canonical_solution": _reindent(body),
        "test": _mbpp_test(list(row.get("test_imports") or []), tests),
    }


def _mbpp_test(imports: list[str], asserts: list[str]) -> str:
    """Plain asserts, after the one import that some of them need and only one release states."""
    if not imports and any("math." in line for line in asserts):
        imports = ["import math"]
    return "".join(f"{line.rstrip()}\n" for line in (*imports, *asserts) if line.strip())


def _reindent(body: str) -> str:
    """A function's body at four blanks, like the docstring above it; what follows it unchanged."""
    lines = re.sub(r"^#.*$", "", body.expandtabs(8), flags=re.MULTILINE).split("\n")
    own = 0
    while own < len(lines) and not re.match(r"\S", lines[own]):
        own += 1
    inside = textwrap.indent(textwrap.dedent("\n".join(lines[:own])), "    ")
    return "\n".join([inside, *lines[own:]])


def _mbpp_prompt(code: str, entry_point: str, text: str, place: str) -> tuple[str, str]:
    """The reference's imports and signature, the text as docstring; and the reference's body."""
    code = code.replace("\r\n", "\n")
    lines = code.split("\n")
    for node in ast.parse(code).body:
        if isinstance(node, ast.FunctionDef) and node.name == entry_point:
            imports = [
                segment
                for other in ast.parse(code).body
                if isinstance(other, (ast.Import, ast.ImportFrom))
                and (segment := ast.get_source_segment(code, other))
            ]
            body_line = node.body[0].lineno - 1
            header = "\n".join(lines[node.lineno - 1 : body_line]).rstrip()
            if not header.endswith(":"):
                break
            docstring = f"    '''\n    {text}\n    '''\n"
            prompt = "".join(f"{line}\n" for line in imports) + header + "\n" + docstring
            return prompt, "\n".join(lines[body_line:]) + "\n"
    raise BadData(f"{place}: key 'code' does not define {entry_point!r}, which the tests call")


def _embedded(name: str, fields: tuple[str, ...]) -> dict[str, Any]:
    from datasets import Dataset

    from lm_eval_embednoise.minicoder import SPLITS, load_problems

    try:
        problems = {split: load_problems(name, split) for split in SPLITS}
    except FileNotFoundError as error:
        raise DataMissing(
            f"{name}: the problems that come with this package are not there ({error.filename}); "
            "install it again, or make them: python -m lm_eval_embednoise.minicoder.make_data"
        ) from None
    columns = ("task_id", *fields, "cluster")
    return {
        split: Dataset.from_list([{key: row[key] for key in columns} for row in rows])
        for split, rows in problems.items()
    }
