"""Which problems of a task a study compares and which it calibrates on: never of one cluster."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from lm_eval_embednoise.study.method import StudyError

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from lm_eval_embednoise.study.plan import Task

_SEED = 0


def clusters(loaded: Any) -> list[str]:
    """The cluster of each problem of a loaded task, in order; a problem without one is its own."""
    docs = loaded.eval_docs
    names = getattr(docs, "column_names", None) or sorted({key for doc in docs for key in doc})
    if "cluster" in names:
        return [str(doc["cluster"]) for doc in docs]
    return [str(doc.get("task_id", i)) for i, doc in enumerate(docs)]


def kept(task: Task, loaded: Any, compared: AbstractSet[str]) -> list[int] | None:
    """The problems of a loaded task that belong to the task's part, by position; None: all.

    Args:
        task: its `part` and `apart_from` say which.
        loaded: the harness's task, with all its problems.
        compared: clusters that `apart_from` compares.

    Raises:
        StudyError: none is left.
    """
    if task.part is None and task.apart_from is None:
        return None
    own = clusters(loaded)
    if task.part is not None:
        assert task.held_out is not None
        chosen = held_out(own, task.held_out, loaded.config.task)
        if len(chosen) in (0, len(set(own))):
            raise StudyError(
                f"{task.name} has {len(own)} problems in {len(set(own))} clusters: held_out="
                f"{task.held_out} leaves none to {'compare' if chosen else 'calibrate on'}"
            )
        inside = task.part == "calibration"
        return [i for i, cluster in enumerate(own) if (cluster in chosen) == inside]
    positions = [i for i, cluster in enumerate(own) if cluster not in compared]
    if not positions:
        raise StudyError(
            f"{task.name}: every problem of {task.split or 'the test split'} is of a cluster that "
            "is compared; keep some of them from the comparison (held_out) or calibrate on another "
            "task (on)"
        )
    return positions


def held_out(own: list[str], size: int, name: str) -> set[str]:
    """Whole clusters in random order, the same every time, as long as they fit into `size`."""
    order = sorted(set(own))
    random.Random(f"held out of {name}, {_SEED}").shuffle(order)
    chosen: set[str] = set()
    room = size
    for cluster in order:
        number = own.count(cluster)
        if number <= room:
            chosen.add(cluster)
            room -= number
    return chosen
