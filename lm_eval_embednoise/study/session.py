"""One loaded model under one method after another, through the harness; in one process or several.

What `study` and `calibrate` share. A session is made on every rank; only the first sees results.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_embednoise import plugin
from lm_eval_embednoise.analysis.methods import input_change
from lm_eval_embednoise.launch import own_command, run_in_processes
from lm_eval_embednoise.problems.task_files import task_dir
from lm_eval_embednoise.study import parts
from lm_eval_embednoise.study.method import StudyError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lm_eval_embednoise.study.plan import Cell, Model, Task

_TORCH_SEED = 1234  # the harness's own


class Session:
    """One loaded model, evaluated under one perturbation after another.

    Args:
        model: which model.
        tasks: the tasks that will be evaluated.
        store: folder that keeps every sample as it finishes, so that a killed run loses no more
            than what was in flight; for hf-embednoise, unless the model's arguments name another.
    """

    def __init__(self, model: Model, tasks: tuple[Task, ...], store: Path | None = None) -> None:
        import lm_eval.models  # noqa: F401  (the built-in models register themselves first)
        from lm_eval.api.registry import get_model

        plugin.register()
        self.model = model
        options = {"batch_size": model.batch_size, "device": model.device}
        given = {key: value for key, value in options.items() if value is not None}
        arguments = dict(model.model_args)
        if store is not None and model.model == "hf-embednoise":
            arguments.setdefault("store", str(store))
        self.lm = get_model(model.model).create_from_arg_obj(arguments, given)
        self.tasks = _task_manager([task.name for task in tasks], dict(model.model_args))

    def evaluate(self, cell: Cell, protocol: str) -> dict[str, Any] | None:
        """Generate and score one cell through the harness; None on ranks other than the first."""
        from lm_eval import simple_evaluate

        arguments = self._perturb(cell)
        # A model without a perturbation draws with what the harness seeds.
        options = {} if arguments else {"torch_random_seed": _TORCH_SEED + cell.seed}
        results = simple_evaluate(
            model=self.lm,
            tasks=self.load_tasks(cell.task),
            limit=cell.task.limit,
            gen_kwargs=dict(cell.method.gen_kwargs) or None,
            batch_size=self.model.batch_size,
            apply_chat_template=self.model.apply_chat_template,
            task_manager=self.tasks,
            log_samples=True,
            **options,
        )
        if results is None:
            return None
        config = results["config"]
        config["model"] = self.model.model
        config["model_args"] = {**self.model.model_args, **arguments}
        info = config.setdefault("embednoise", {})
        info["method"] = cell.method.name
        info["protocol"] = protocol
        info["calibration"] = cell.method.calibration
        perturbation = info.setdefault("perturbation", arguments)
        if arguments:
            perturbation["seed"] = cell.seed
        if self.model.apply_chat_template:  # for the file's hash of it, as the harness's command
            info["chat_template"] = self.lm.chat_template(self.model.apply_chat_template)
        named = {"name": cell.model.name}
        info["model"] = {**info.get("model", {}), **named}
        return dict(results)

    def load_tasks(self, task: Task) -> list[Any]:
        """Fresh tasks (the harness writes a run's sampling into them) with their part and K.

        Raises:
            StudyError: no such split, or no problem is left.
        """
        loaded = list(self.tasks.load([task.name])["tasks"].values())
        for item in loaded:
            if task.k is not None:
                plugin.set_repeats(item, task.k)
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
            for item in self.load_tasks(whole)
        }

    def _compared(self, task: Task, name: str) -> set[str]:
        """The clusters of the problems from which the task must keep apart."""
        if task.apart_from is None:
            return set()
        return {
            cluster
            for other in self.load_tasks(task.apart_from)
            if other.config.task == name
            for cluster in parts.clusters(other)[: task.apart_from.limit]
        }

    def _perturb(self, cell: Cell) -> dict[str, Any]:
        arguments = {**cell.method.perturbation, "seed": cell.seed}
        if hasattr(self.lm, "set_perturbation"):
            from lm_eval_embednoise.noise.perturbation import Perturbation

            self.lm.set_perturbation(Perturbation.from_args(arguments), method=cell.method.name)
            return arguments
        if input_change(cell.method.perturbation) != "none":
            raise StudyError(
                f"model {self.model.model!r} can't be perturbed, so it can't run "
                f"{cell.method.name}; use hf-embednoise"
            )
        return {}


def _task_manager(tasks: list[str], metadata: dict[str, Any]) -> Any:
    """A task index; the harness's thousands of tasks (10 s) are read only if one is needed."""
    from lm_eval.tasks import TaskManager

    own = TaskManager(include_defaults=False, include_path=task_dir(), metadata=metadata)
    if all(name in own.all_tasks or Path(name).is_file() for name in tasks):
        return own
    return TaskManager(metadata=metadata)


@contextmanager
def quiet_harness() -> Iterator[None]:
    """Keep the harness from repeating its notes, and its survey of the machine, at every run."""
    from torch.utils import collect_env

    logger, survey = logging.getLogger("lm_eval"), collect_env.get_pretty_env_info
    before = logger.level
    logger.setLevel(logging.ERROR)
    collect_env.get_pretty_env_info = functools.cache(survey)
    try:
        yield
    finally:
        logger.setLevel(before)
        collect_env.get_pretty_env_info = survey


def first_rank() -> bool:
    """Whether this process is the one that writes and prints."""
    return os.environ.get("RANK", "0") == "0"


def launch(processes: int) -> int:
    """Run this very command again in several processes; returns their exit status."""
    return run_in_processes(processes, own_command())


def shared(value: Any) -> Any:
    """The first rank's value, on every rank."""
    import torch.distributed as distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]
