"""K equal texts under sampling, which is no sampling: counted, logged, and part of the results.

An API that takes one seed for a request gives K times the same text. Sampled texts of a problem may
be equal by chance where the model is sure; all of them on all problems are not.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

log = logging.getLogger(f"lm_eval.{__name__}")
METRIC = "identical_problems"


def note(results: dict[str, Any], tasks: Mapping[str, Any]) -> None:
    """Add to each sampled task's results on how many problems all K texts are equal, and say so.

    Args:
        results: what the harness's `evaluate` returns; changed.
        tasks: task name → the task object that was evaluated; those of others are left alone.
    """
    for name, task in tasks.items():
        measured = results.get("results", {}).get(name)
        generation = getattr(task.config, "generation_kwargs", None) or {}
        if measured is None or not _ours(task) or not sampled(generation):
            continue
        equal, looked = count(_texts(name, task, results))
        if not looked:
            continue
        measured[f"{METRIC},{task.config.filter_list[0]['name']}"] = equal
        if equal:
            said = f"{name}: all texts of a problem are equal on {equal} of {looked} problems"
            if equal == looked:
                log.warning(
                    "%s, though they are sampled (temperature %s): was one seed used for all?",
                    *(said, generation.get("temperature")),
                )
            else:
                log.info("%s", said)


def sampled(generation: Mapping[str, Any]) -> bool:
    """Whether generation arguments ask for random tokens."""
    given = generation.get("do_sample")
    return bool(generation.get("temperature", 0) if given is None else given)


def count(texts: Iterable[Sequence[Any]]) -> tuple[int, int]:
    """On how many problems all texts are equal, and of how many with at least two texts."""
    several = [t for t in map(_there, texts) if len(t) > 1]
    return sum(len(set(t)) == 1 for t in several), len(several)


def _there(texts: Sequence[Any]) -> list[str]:
    return [str(text) for text in texts if getattr(text, "finish_reason", None) != "missing"]


def _texts(name: str, task: Any, results: dict[str, Any]) -> list[Sequence[Any]]:
    """All problems' texts where samples were logged (they come from every process), else ours."""
    logged = results.get("samples", {}).get(name)
    if logged is None:
        return [instance.resps for instance in task.instances]
    return list({line["doc_id"]: line["resps"][0] for line in logged}.values())


def _ours(task: Any) -> bool:
    """Whether a task's records are made by this project's filters."""
    steps = [step for pipeline in task.config.filter_list or () for step in pipeline["filter"]]
    modules = (getattr(step["function"], "__module__", "") for step in steps)
    return any(str(module).startswith("lm_eval_embednoise.") for module in modules)
