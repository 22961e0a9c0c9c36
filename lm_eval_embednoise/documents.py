"""The problems of every task, as the harness wants them: a dict of split to `datasets.Dataset`."""

from __future__ import annotations

from typing import Any


class DataMissing(FileNotFoundError):
    """A benchmark's problems are neither on this machine nor to be fetched."""


def minicode(**_: Any) -> dict[str, Any]:
    """The embedded programming problems, in HumanEval's form."""
    return _embedded("minicode", ("prompt", "entry_point", "canonical_solution", "test"))


def minimath(**_: Any) -> dict[str, Any]:
    """The embedded word problems, with worked answers ending in `#### N`."""
    return _embedded("minimath", ("question", "answer"))


def _embedded(name: str, fields: tuple[str, ...]) -> dict[str, Any]:
    from datasets import Dataset

    from .minicoder import SPLITS, load_problems

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
