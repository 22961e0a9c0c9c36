"""The way into lm_eval: our models in its registry, our patches in its modules, K of its tasks.

Filters and aggregations need no registration: the task files name them by their dotted path.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from lm_eval_embednoise import host

if TYPE_CHECKING:
    from collections.abc import Sequence

MODELS = {
    "hf-embednoise": "lm_eval_embednoise.models.hf_embednoise:HFEmbedNoise",
    "replay": "lm_eval_embednoise.models.replay:Replay",
}


def register() -> None:
    """Make models, tasks and standard errors known to lm_eval now, hook or no hook. Idempotent."""
    import lm_eval.evaluator_utils
    import lm_eval.models
    import lm_eval.tasks.manager  # noqa: F401

    for name in ("lm_eval.models", *(patch.module for patch in host.PATCHES)):
        if name in sys.modules:  # the import hook sees to the others
            extend(name)


def extend(module_name: str) -> None:
    """Add what belongs to one loaded module of lm_eval (called by the import hook). Idempotent."""
    if module_name == "lm_eval.models":
        _register_models()
    host.extend(module_name, sys.modules[module_name])


def _register_models() -> None:
    """Register lazily, by path: the harness imports torch only when the model is asked for."""
    from lm_eval.api.registry import model_registry

    for name, target in MODELS.items():
        if name not in model_registry:  # a harness that reads entry points was here first
            model_registry.register(name, target=target)


def set_repeats(task: Any, k: int) -> None:
    """Make a loaded task take K samples of every problem.

    K is the task's `repeats` and, as `k`, an argument of the filters that cut or pad to it.
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
        host.set_filters(task, ensembles)


def load_with_repeats(k: int) -> None:
    """From now on, every task that this process loads takes K samples of a problem."""
    host.after_loading(lambda _, task: set_repeats(task, k))


def numbers(text: str) -> list[int]:
    """The numbers of samples in `1,5,25`.

    Raises:
        ValueError: one is no whole number of at least 1.
    """
    ks = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if min(ks) < 1:
        raise ValueError(f"pass@k needs whole numbers k >= 1 with commas between, not {text!r}")
    return ks


def load_with_pass_at(ks: Sequence[int]) -> None:
    """From now on, tasks that this process loads report pass@k for these k too.

    Raises:
        ValueError: when a task is loaded whose samples are fewer than one of them.
    """
    from lm_eval_embednoise.scoring import aggregate, reduce

    os.environ[reduce.PASS_AT_VARIABLE] = ",".join(map(str, ks))

    def add(name: str, task: Any) -> None:
        if "pass@1" not in task.aggregation():
            return
        if max(ks) > task.config.repeats:
            raise ValueError(
                f"pass@{max(ks)} needs as many samples, and {name} has {task.config.repeats} "
                "of each problem: ask for a smaller k, or for more samples (-K)"
            )
        host.add_means(task, {f"pass@{k}": aggregate.mean for k in ks})

    host.after_loading(add)
