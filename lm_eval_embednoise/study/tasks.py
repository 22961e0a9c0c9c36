"""The tasks of a study as the harness loads them: their part, their K, their examples."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_embednoise import plugin
from lm_eval_embednoise.checks import suggest
from lm_eval_embednoise.problems.task_files import task_dir
from lm_eval_embednoise.study import parts
from lm_eval_embednoise.study.method import StudyError

if TYPE_CHECKING:
    from lm_eval_embednoise.study.plan import Model, Task


class Tasks:
    """Loads tasks for a model, without the model.

    Args:
        model: the harness hands its arguments to the tasks; its `num_fewshot` is theirs.
        tasks: all that will be loaded.

    Raises:
        StudyError: a task that isn't there.
    """

    def __init__(self, model: Model, tasks: tuple[Task, ...]) -> None:
        plugin.register()
        self.model = model
        self.index = _index([task.name for task in tasks], dict(model.model_args))

    def load(self, task: Task) -> list[Any]:
        """Fresh tasks (the harness writes a run's sampling into them) with their part and K.

        Raises:
            StudyError: no such split, no problem is left, or examples for a task without any.
        """
        loaded = list(self.index.load([task.name])["tasks"].values())
        for item in loaded:
            if task.k is not None:
                plugin.set_repeats(item, task.k)
            self._set_examples(item)
            if task.split is not None:
                if task.split not in item.dataset:
                    raise StudyError(
                        f"{task.name} has no split {task.split!r}, only {', '.join(item.dataset)}: "
                        "keep some of its problems (`held_out`), or name another task (`on`)"
                    )
                item.set_config("test_split", task.split)
            kept = parts.kept(task, item, self._compared(task, item.config.task))
            if kept is not None:
                split = item.config.test_split
                item.dataset = {**item.dataset, split: item.dataset[split].select(kept)}
        return loaded

    def positions(self, task: Task) -> dict[str, list[int] | None]:
        """Which problems of the whole task its part has, by position; None: all."""
        whole = dataclasses.replace(task, part=None, held_out=None, apart_from=None)
        return {
            item.config.task: parts.kept(task, item, self._compared(task, item.config.task))
            for item in self.load(whole)
        }

    def _set_examples(self, item: Any) -> None:
        """The model's number of examples, which the harness leaves out where a task says 0."""
        number = self.model.num_fewshot
        if number is None:
            return
        if number and item.config.num_fewshot == 0:
            raise StudyError(
                f"num_fewshot={number}: {item.config.task} is asked without examples (its file "
                "says num_fewshot: 0); leave it out, or take another task"
            )
        examples = getattr(item, "sampler", None)
        if examples is not None and number > len(examples.df):
            raise StudyError(
                f"num_fewshot={number}: {item.config.task} has {len(examples.df)} examples"
            )
        item.set_config("num_fewshot", number)

    def _compared(self, task: Task, name: str) -> set[str]:
        """The clusters of the problems from which the task must keep apart."""
        if task.apart_from is None:
            return set()
        return {
            cluster
            for other in self.load(task.apart_from)
            if other.config.task == name
            for cluster in parts.clusters(other)[: task.apart_from.limit]
        }


def _index(names: list[str], metadata: dict[str, Any]) -> Any:
    """A task index; the harness's thousands of tasks (10 s) are read only if one is needed."""
    from lm_eval.tasks import TaskManager

    def missing(index: Any) -> list[str]:
        return [n for n in names if n not in index.all_tasks and not Path(n).is_file()]

    own = TaskManager(include_defaults=False, include_path=task_dir(), metadata=metadata)
    if not missing(own):
        return own
    whole = TaskManager(metadata=metadata)
    for name in missing(whole):
        raise StudyError(
            f"no task {name!r}; {suggest(name, own.all_tasks) or suggest(name, whole.all_tasks)}"
            "`lm_eval ls tasks` lists those of the harness, tasks/README.md this project's"
        )
    return whole
