"""What is replaced inside lm_eval where it offers no place for it, and what would be lost without.

Every name of the harness that this project replaces, or reaches for although it is private, is in
this module. `PATCHES` is applied by the import hook as lm_eval's modules load. A name that another
version of the harness doesn't have is a warning that says what is lost; the rest goes on.
"""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import logging
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from lm_eval_embednoise.problems.task_files import task_dir

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

log = logging.getLogger("lm_eval_embednoise.host")
SERVES = ("0.4.13",)  # the versions of lm_eval that the tests ran with
_MARK = "_embednoise"


@dataclass(frozen=True)
class Patch:
    """One name of the harness and what takes its place.

    Args:
        module: the module of lm_eval.
        name: the attribute, with its class before a dot if it has one.
        gives: what a run loses where the name doesn't exist.
        replace: original → replacement.
    """

    module: str
    name: str
    gives: str
    replace: Callable[[Any], Any]

    def apply(self, module: ModuleType) -> bool:
        """Put the replacement in place. Idempotent; returns whether the name exists."""
        owner: Any = module
        *path, name = self.name.split(".")
        try:
            for part in path:
                owner = getattr(owner, part)
            original = inspect.getattr_static(owner, name)
        except AttributeError:
            return False
        method = isinstance(original, classmethod)
        if method:
            original = original.__func__
        if not hasattr(original, _MARK):
            replacement = self.replace(original)
            setattr(replacement, _MARK, True)
            setattr(owner, name, classmethod(replacement) if method else replacement)
        return True


def extend(module_name: str, module: ModuleType) -> None:
    """Apply the patches of one loaded module of lm_eval; one that can't be is a warning."""
    for patch in PATCHES:
        if patch.module == module_name and not patch.apply(module):
            log.warning(
                "lm_eval %s has no %s.%s (tried with %s), so there is no %s",
                *(version(), patch.module, patch.name, ", ".join(SERVES), patch.gives),
            )


def version() -> str:
    """The installed version of lm_eval."""
    return importlib.metadata.version("lm_eval")


def _with_our_tasks(original: Callable[..., None]) -> Callable[..., None]:
    """`TaskManager.__init__`: a caller who asks for the harness's own tasks gets ours too."""

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

    return __init__


def _with_own_standard_errors(original: Callable[..., Any]) -> Callable[..., Any]:
    """`stderr_for_metric`: an aggregation may bring its standard error, as attribute `stderr`."""

    @functools.wraps(original)
    def stderr_for_metric(metric: Any, bootstrap_iters: int) -> Any:
        own: Callable[[Any], float] | None = getattr(metric, "stderr", None)
        return own if callable(own) else original(metric, bootstrap_iters)

    return stderr_for_metric


def _with_the_seed(original: Callable[..., Any]) -> Callable[..., Any]:
    """`simple_evaluate`: the models that it makes can see its seed."""
    from lm_eval_embednoise import harness_seed

    return harness_seed.passed_on(original)


def _with_identical_texts(original: Callable[..., Any]) -> Callable[..., Any]:
    """`evaluate`: results say on how many problems all sampled texts are equal."""

    @functools.wraps(original)
    def evaluate(lm: Any, task_dict: Any, *args: Any, **kwargs: Any) -> Any:
        from lm_eval_embednoise import identical

        results = original(lm, task_dict, *args, **kwargs)
        if results is not None and isinstance(task_dict.get("tasks"), dict):
            identical.note(results, task_dict["tasks"])
        return results

    return evaluate


def _with_early_checks(original: Callable[..., Any]) -> Callable[..., Any]:
    """`from_cli`: a run's arguments are checked as soon as they are read, before any loading."""

    @functools.wraps(original)
    def from_cli(cls: Any, namespace: Any) -> Any:
        from lm_eval_embednoise import early

        config = original(cls, namespace)
        early.check_run(
            model=config.model,
            model_args=config.model_args or {},
            gen_kwargs=config.gen_kwargs or {},
            tasks=config.tasks.split(",") if isinstance(config.tasks, str) else config.tasks or (),
            output_path=config.output_path,
            use_cache=config.use_cache,
            apply_chat_template=config.apply_chat_template,
        )
        return config

    return from_cli


def _valid_json(original: ModuleType) -> Any:
    """The tracker's `json`: files without NaN and without lone surrogates."""
    from lm_eval_embednoise import written

    return SimpleNamespace(**{**vars(original), "dumps": written.dumps})


def _records_as_objects(_: Callable[..., Any]) -> Callable[..., Any]:
    """The tracker's `sanitize_list`: a sample's record is an object, not the text of one."""
    from lm_eval_embednoise import written

    return functools.partial(written.as_strings)


PATCHES = (
    Patch(
        "lm_eval.tasks.manager",
        "TaskManager.__init__",
        "task of this project unless --include_path names its folder (embednoise doctor)",
        _with_our_tasks,
    ),
    Patch(
        "lm_eval.evaluator_utils",
        "stderr_for_metric",
        "standard error of this project's metrics (the harness's own takes its place)",
        _with_own_standard_errors,
    ),
    Patch(
        "lm_eval.evaluator",
        "simple_evaluate",
        "way from --seed to the draws (give seed=N to the model)",
        _with_the_seed,
    ),
    Patch(
        "lm_eval.evaluator",
        "evaluate",
        "count of problems whose sampled texts are all equal",
        _with_identical_texts,
    ),
    Patch(
        "lm_eval.config.evaluate_config",
        "EvaluatorConfig.from_cli",
        "check of the arguments before the model is loaded",
        _with_early_checks,
    ),
    Patch(
        "lm_eval.loggers.evaluation_tracker",
        "json",
        "results file without NaN, which strict JSON readers refuse",
        _valid_json,
    ),
    Patch(
        "lm_eval.loggers.evaluation_tracker",
        "sanitize_list",
        "record of a sample as an object (samples files hold the text of one)",
        _records_as_objects,
    ),
)


def after_loading(change: Callable[[str, Any], None]) -> None:
    """From now on, call `change(name, task)` for every task that this process loads.

    Raises:
        RuntimeError: this version of the harness loads tasks in another way.
    """
    from lm_eval.tasks import manager

    def replace(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def load(self: Any, *args: Any, **kwargs: Any) -> Any:
            loaded = original(self, *args, **kwargs)
            for name, task in loaded["tasks"].items():
                change(name, task)
            return loaded

        return load

    cls = manager.TaskManager
    _require(cls, "load")
    cls.load = replace(cls.load)


def set_filters(task: Any, ensembles: list[Any]) -> None:
    """Exchange the filters of a loaded task.

    Raises:
        RuntimeError: this version of the harness keeps them elsewhere.
    """
    _require(task, "_filters")
    task._filters = ensembles


def add_means(task: Any, means: Mapping[str, Callable[..., float]]) -> None:
    """Let a loaded task report more metrics: name → aggregation. Higher is better in all of them.

    Raises:
        RuntimeError: this version of the harness keeps them elsewhere.
    """
    for name in ("_aggregation_list", "_higher_is_better"):
        _require(task, name)
    task._aggregation_list.update(means)
    task._higher_is_better.update(dict.fromkeys(means, True))


def _require(owner: Any, name: str) -> None:
    if not hasattr(owner, name):
        kind = owner if isinstance(owner, type) else type(owner)
        raise RuntimeError(
            f"lm_eval {version()} has no {kind.__name__}.{name} (tried with {', '.join(SERVES)}), "
            "so -K and --pass_at can't change its tasks; use the variants with their own K "
            "(_k10, _k20) or an lm_eval that was tried"
        )
