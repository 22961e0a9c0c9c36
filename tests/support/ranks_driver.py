"""Run two tasks as one process or as one of several, and write what came out; used by test_ranks.

argv: the folder to write into. Everything below it is the run's: results and samples by rank 0, and
by every rank the number of samples that it generated.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

torch.set_num_threads(1)

FEWSHOT = {
    "task": "fewshot_arithmetic",
    "custom_dataset": lambda **_: {
        split: Dataset.from_list([{"q": f"{a} + {a} =", "a": str(2 * a)} for a in numbers])
        for split, numbers in (("train", range(10, 15)), ("test", range(5)))
    },
    "output_type": "generate_until",
    "training_split": "train",
    "test_split": "test",
    "num_fewshot": 2,
    "fewshot_config": {"sampler": "first_n"},
    "doc_to_text": "{{q}}",
    "doc_to_target": "{{a}}",
    "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 6},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


def timeless(found: Any) -> Any:
    """The same without the one thing that differs between runs: how long a sample took."""
    if isinstance(found, dict):
        kept = {key: value for key, value in found.items() if "seconds" not in key}
        return {key: timeless(value) for key, value in kept.items()}
    if isinstance(found, (list, tuple)):
        return [timeless(value) for value in found]
    return found


def main(out: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import handle_non_serializable

    from lm_eval_embednoise import plugin
    from lm_eval_embednoise.engine.sampler import Sampler
    from lm_eval_embednoise.models.hf_embednoise import HFEmbedNoise
    from lm_eval_embednoise.problems.task_files import task_dir

    generated = 0
    run = Sampler.run

    def counted(self: Sampler, jobs: Any) -> Any:
        nonlocal generated
        for sample in run(self, jobs):
            generated += 1
            yield sample

    Sampler.run = counted  # type: ignore[method-assign]
    plugin.register()
    lm = HFEmbedNoise(sigma=0.4, depth="embed+3", batch_size=8)
    manager = TaskManager(include_defaults=False, include_path=task_dir())
    tasks = list(manager.load(["minicode_diverse_k10"])["tasks"].values())
    for task in tasks:
        plugin.set_repeats(task, 3)
        task.set_config("generation_kwargs", {"max_gen_toks": 24}, update=True)
    # A manager, or the harness reads its own 14,000 task files in every process.
    results = simple_evaluate(
        lm, tasks=[*tasks, FEWSHOT], task_manager=manager, limit=3, log_samples=True
    )
    Sampler.run = run  # type: ignore[method-assign]
    ranks = {"rank": lm.rank, "of": lm.world_size, "generated": generated}
    (out / f"rank{lm.rank}.json").write_text(json.dumps(ranks))
    if results is not None:
        kept = {
            "results": results["results"],
            "rho": results["config"]["embednoise"]["rho"],
            "std": results["config"]["embednoise"]["std"],
            "samples": dict(results["samples"]),
        }
        text = json.dumps(timeless(kept), default=handle_non_serializable, sort_keys=True)
        (out / "run.json").write_text(text)


if __name__ == "__main__":
    from torch.utils import collect_env

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    collect_env.get_pretty_env_info = lambda: ""  # seconds, and no part of what is compared
    main(Path(sys.argv[1]))
