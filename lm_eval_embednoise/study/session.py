"""One loaded model under one method after another, through the harness; in one process or several.

What `study` and `calibrate` share. A session is made on every rank; only the first sees results.
"""

from __future__ import annotations

import functools
import logging
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lm_eval_embednoise import early, plugin
from lm_eval_embednoise.analysis.methods import input_change
from lm_eval_embednoise.launch import own_command, run_in_processes
from lm_eval_embednoise.study.method import StudyError
from lm_eval_embednoise.study.tasks import Tasks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lm_eval_embednoise.study.method import Method
    from lm_eval_embednoise.study.plan import Cell, Model, Task

_TORCH_SEED = 1234  # the harness's own


def build(model: Model, store: Path | None = None, weights: bool = True) -> Any:
    """The harness's object for a model.

    Args:
        model: which model.
        store: folder of the samples; for hf-embednoise, unless the model's arguments name another.
        weights: load them; without, hf-embednoise is all but its weights (`Weightless`), and of
            any other class there is only the class.
    """
    import lm_eval.models  # noqa: F401  (the built-in models register themselves first)
    from lm_eval.api.registry import get_model

    plugin.register()
    loaded = get_model(model.model)
    arguments = dict(model.model_args)
    if model.model != early.OURS:
        if not weights:
            return loaded
    elif not weights:
        from lm_eval_embednoise.models.weightless import Weightless

        loaded = Weightless
        arguments.pop("store", None)
    elif store is not None:
        arguments.setdefault("store", str(store))
    options = {
        "batch_size": model.batch_size,
        "max_batch_size": model.max_batch_size,
        "device": model.device,
    }
    given = {key: value for key, value in options.items() if value is not None}
    lm = loaded.create_from_arg_obj(arguments, given)
    _choose_template(lm, model.apply_chat_template)
    return lm


def _choose_template(lm: Any, name: bool | str) -> None:
    """Make a model write its chats by the template of this name; the harness only records it.

    Raises:
        ValueError: it has no template of this name.
    """
    if not isinstance(name, str) or not hasattr(lm, "chat_template_args"):
        return
    if not isinstance(lm.tokenizer.chat_template, dict):
        raise StudyError(
            f"apply_chat_template={name!r} names one of several templates, and this tokenizer has "
            "no names for its own: write true"
        )
    lm.chat_template(name)
    lm.chat_template_args = {**lm.chat_template_args, "chat_template": name}


def check_perturbable(lm: Any, model: Model, method: Method) -> None:
    """Refuse noise for a model (or its class) that takes none.

    Raises:
        StudyError: naming both.
    """
    if not hasattr(lm, "set_perturbation") and input_change(method.perturbation) != "none":
        raise StudyError(
            f"model {model.model!r} can't be perturbed, so it can't run {method.name}; use "
            f"{early.OURS}"
        )


class Session:
    """One loaded model, evaluated under one perturbation after another.

    Args:
        model: which model.
        tasks: the tasks that will be evaluated.
        store: folder that keeps every sample as it finishes, so that a killed run loses no more
            than what was in flight.
    """

    def __init__(self, model: Model, tasks: tuple[Task, ...], store: Path | None = None) -> None:
        self.model = model
        self.lm = build(model, store)
        self.tasks = Tasks(model, tasks)

    def evaluate(self, cell: Cell, protocol: str) -> dict[str, Any] | None:
        """Generate and score one cell through the harness; None on ranks other than the first."""
        from lm_eval import simple_evaluate

        arguments = self._perturb(cell)
        # A model without a perturbation draws with what the harness seeds.
        options = {} if arguments else {"torch_random_seed": _TORCH_SEED + cell.seed}
        results = simple_evaluate(
            model=self.lm,
            tasks=self.tasks.load(cell.task),
            limit=cell.task.limit,
            gen_kwargs=cell.gen_kwargs or None,
            batch_size=self.model.batch_size,
            apply_chat_template=self.model.apply_chat_template,
            system_instruction=self.model.system_instruction,
            fewshot_as_multiturn=self.model.multiturn,
            task_manager=self.tasks.index,
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

    def _perturb(self, cell: Cell) -> dict[str, Any]:
        arguments = {**cell.method.perturbation, "seed": cell.seed}
        if hasattr(self.lm, "set_perturbation"):
            from lm_eval_embednoise.noise.perturbation import Perturbation

            self.lm.set_perturbation(Perturbation.from_args(arguments), method=cell.method.name)
            return arguments
        check_perturbable(self.lm, self.model, cell.method)
        return {}


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
