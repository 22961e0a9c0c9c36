"""All that touches lm_eval: models, task files, standard errors, seed, early checks, files.

Filters and aggregations need no registration: the task files name them by their dotted path.
"""

from __future__ import annotations

import functools
import os
import sys
from typing import TYPE_CHECKING, Any

from lm_eval_embednoise.problems.task_files import task_dir

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

MODELS = {
    "hf-embednoise": "lm_eval_embednoise.models.hf_embednoise:HFEmbedNoise",
    "replay": "lm_eval_embednoise.models.replay:Replay",
}


def register() -> None:
    """Make models, tasks and standard errors known to lm_eval now, hook or no hook. Idempotent."""
    import lm_eval.evaluator_utils
    import lm_eval.models
    import lm_eval.tasks.manager  # noqa: F401

    for name in _EXTENSIONS:
        if name in sys.modules:  # the import hook sees to the others
            extend(name)


def extend(module_name: str) -> None:
    """Add what belongs to one loaded module of lm_eval (called by the import hook). Idempotent."""
    _EXTENSIONS[module_name](sys.modules[module_name])


def _register_models(_: Any) -> None:
    """Register lazily, by path: the harness imports torch only when the model is asked for."""
    from lm_eval.api.registry import model_registry

    for name, target in MODELS.items():
        if name not in model_registry:  # a harness that reads entry points was here first
            model_registry.register(name, target=target)


def _add_tasks(manager: Any) -> None:
    """Let every TaskManager that knows the harness's own tasks know ours as well."""
    cls = manager.TaskManager
    if hasattr(cls.__init__, "_embednoise"):
        return
    original = cls.__init__

    @functools.wraps(original)
    def __init__(
        self: Any,
        verbosity: str | None = None,
        include_path: str | Path | list[str | Path] | None = None,
        include_defaults: bool = True,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        given = include_path if isinstance(include_path, (list, tuple)) else [include_path]
        paths: list[str | Path] = [task_dir()] if include_defaults else []
        paths += [path for path in given if path]
        original(self, verbosity, paths or None, include_defaults, *args, **kwargs)
        self.include_path = include_path

    __init__._embednoise = True  # type: ignore[attr-defined]
    cls.__init__ = __init__


def _add_standard_errors(utils: Any) -> None:
    """Let an aggregation function bring its own standard error, as its attribute `stderr`."""
    original = utils.stderr_for_metric
    if hasattr(original, "_embednoise"):
        return

    @functools.wraps(original)
    def stderr_for_metric(metric: Any, bootstrap_iters: int) -> Any:
        own: Callable[[Any], float] | None = getattr(metric, "stderr", None)
        return own if callable(own) else original(metric, bootstrap_iters)

    stderr_for_metric._embednoise = True  # type: ignore[attr-defined]
    utils.stderr_for_metric = stderr_for_metric


def _pass_seed_on(evaluator: Any) -> None:
    """Let the models that an evaluation makes see its seed."""
    from lm_eval_embednoise import harness_seed

    if not hasattr(evaluator.simple_evaluate, "_embednoise"):
        evaluator.simple_evaluate = harness_seed.passed_on(evaluator.simple_evaluate)
        evaluator.simple_evaluate._embednoise = True


def _check_early(config: Any) -> None:
    """Look at a run's arguments as soon as the harness has read them, before a model is loaded."""
    cls = config.EvaluatorConfig
    original = cls.from_cli.__func__
    if hasattr(original, "_embednoise"):
        return

    @functools.wraps(original)
    def from_cli(own: Any, namespace: Any) -> Any:
        from lm_eval_embednoise import early

        found = original(own, namespace)
        early.check_run(
            model=found.model,
            model_args=found.model_args or {},
            gen_kwargs=found.gen_kwargs or {},
            tasks=found.tasks.split(",") if isinstance(found.tasks, str) else found.tasks or (),
            output_path=found.output_path,
            use_cache=found.use_cache,
            apply_chat_template=found.apply_chat_template,
        )
        return found

    from_cli._embednoise = True  # type: ignore[attr-defined]
    cls.from_cli = classmethod(from_cli)


def _note_identical(evaluator: Any) -> None:
    """Let results say on how many problems all sampled texts are equal."""
    original = evaluator.evaluate
    if hasattr(original, "_embednoise"):
        return

    @functools.wraps(original)
    def evaluate(lm: Any, task_dict: Any, *args: Any, **kwargs: Any) -> Any:
        from lm_eval_embednoise import identical

        results = original(lm, task_dict, *args, **kwargs)
        if results is not None and isinstance(task_dict.get("tasks"), dict):
            identical.note(results, task_dict["tasks"])
        return results

    evaluate._embednoise = True  # type: ignore[attr-defined]
    evaluator.evaluate = evaluate


def _extend_evaluator(evaluator: Any) -> None:
    _pass_seed_on(evaluator)
    _note_identical(evaluator)


def _write_valid_json(tracker: Any) -> None:
    from lm_eval_embednoise import written

    written.extend(tracker)


def set_repeats(task: Any, k: int) -> None:
    """Make a loaded task take K samples of every problem.

    K stands in `repeats` and, as `k`, in the filters that cut or pad to it.
    """
    from lm_eval.filters import build_filter_ensemble

    task.set_config("repeats", k)
    ensembles = []
    for pipeline in task.config.filter_list or []:
        for step in pipeline["filter"]:
            if "k" in step:
                step["k"] = k
        steps = [
            [step["function"], {name: v for name, v in step.items() if name != "function"}]
            for step in pipeline["filter"]
        ]
        ensembles.append(build_filter_ensemble(pipeline["name"], steps))
    if ensembles:
        task._filters = ensembles


def load_with_repeats(k: int) -> None:
    """From now on, every task that this process loads takes K samples of a problem."""
    from lm_eval.tasks import TaskManager

    original = TaskManager.load

    @functools.wraps(original)
    def load(self: Any, *args: Any, **kwargs: Any) -> Any:
        loaded = original(self, *args, **kwargs)
        for task in loaded["tasks"].values():
            set_repeats(task, k)
        return loaded

    TaskManager.load = load


def numbers(text: str) -> list[int]:
    """The numbers of samples in `1,5,25`.

    Raises:
        ValueError: one is no whole number of at least 1.
    """
    found = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if min(found) < 1:
        raise ValueError(f"pass@k needs whole numbers k >= 1 with commas between, not {text!r}")
    return found


def load_with_pass_at(ks: Sequence[int]) -> None:
    """From now on, tasks that this process loads report pass@k for these k too.

    Raises:
        ValueError: when a task is loaded whose samples are fewer than one of them.
    """
    from lm_eval.tasks import TaskManager

    from lm_eval_embednoise.scoring import aggregate, reduce

    original = TaskManager.load
    os.environ[reduce.PASS_AT_VARIABLE] = ",".join(map(str, ks))

    @functools.wraps(original)
    def load(self: Any, *args: Any, **kwargs: Any) -> Any:
        loaded = original(self, *args, **kwargs)
        for name, task in loaded["tasks"].items():
            if "pass@1" not in task.aggregation():
                continue
            if max(ks) > task.config.repeats:
                raise ValueError(
                    f"pass@{max(ks)} needs as many samples, and {name} has {task.config.repeats} "
                    "of each problem: ask for a smaller k, or for more samples (-K)"
                )
            for k in ks:
                task._aggregation_list[f"pass@{k}"] = aggregate.mean
                task._higher_is_better[f"pass@{k}"] = True
        return loaded

    TaskManager.load = load


_EXTENSIONS: dict[str, Callable[[Any], None]] = {
    "lm_eval.models": _register_models,
    "lm_eval.tasks.manager": _add_tasks,
    "lm_eval.evaluator_utils": _add_standard_errors,
    "lm_eval.evaluator": _extend_evaluator,
    "lm_eval.config.evaluate_config": _check_early,
    "lm_eval.loggers.evaluation_tracker": _write_valid_json,
}
