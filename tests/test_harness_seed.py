"""`--seed` of the stock command is the root of all draws where the model has no seed of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lm_eval_embednoise import harness_seed
from lm_eval_embednoise.noise.perturbation import Perturbation

DEFAULTS = dict(zip(harness_seed.NAMES, (0, 1234, 1234, 1234), strict=True))

# Every command of a list, one after another, as a shell would give it to the stock `lm_eval` (or to
# `embednoise run`); nothing of ours is imported by hand.
COMMANDS = """
import json, sys
import lm_eval.tasks._index as index
real = index.TaskIndex._iter_yaml_files  # the harness's own 14,000 files take too long
index.TaskIndex._iter_yaml_files = staticmethod(
    lambda root: () if "lm_eval/tasks" in str(root) else real(root)
)
from torch.utils import collect_env
collect_env.get_pretty_env_info = lambda: ""  # seconds a run
for command in json.loads(sys.argv[1]):
    sys.argv = command
    if command[0] == "lm_eval":
        from lm_eval.__main__ import cli_evaluate
        cli_evaluate()
    else:
        from lm_eval_embednoise.cli import main
        assert main(command[1:]) == 0
"""
COMMON = ["--tasks", "minicode_diverse_k1", "--limit", "1", "--predict_only", "--device", "cpu"]
COMMON += [
    "--gen_kwargs",
    "max_gen_toks=12,do_sample=true,temperature=2",
    "--log_samples",
    "--output_path",
]


def test_the_commands_seed_changes_the_samples(tmp_path: Path) -> None:
    """Two seeds give two samples; the same one as `seed=` gives the same sample."""
    (tmp_path / "noise.yaml").write_text("{seed: 8, sigma: 0.8}")
    (tmp_path / "run.yaml").write_text(
        "{model: hf-embednoise, model_args: {sigma: 0.8}, seed: 7, tasks: [minicode_diverse_k1]}"
    )
    noisy = ["--model", "hf-embednoise", "--model_args", "sigma=0.8,perplexity=false"]
    runs: dict[str, tuple[list[str], int]] = {
        "none": (["lm_eval", *noisy], 0),
        "seed 7": (["lm_eval", *noisy, "--seed", "7"], 7),
        "own 7": (["lm_eval", *noisy[:-1], "sigma=0.8,seed=7", "--seed", "8"], 7),
        "file 8": (["lm_eval", *noisy[:-1], f"noise={tmp_path}/noise.yaml", "--seed", "7"], 8),
        "run file": (["lm_eval", "--config", f"{tmp_path}/run.yaml"], 7),
        "ours": (["embednoise", "run", *noisy, "--seed", "7"], 7),
    }
    commands = [[*argv, *COMMON, str(tmp_path / name)] for name, (argv, _) in runs.items()]
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    texts: dict[int, set[str]] = {}
    for name, (_, seed) in runs.items():
        (results,) = (tmp_path / name).rglob("results_*.json")
        (samples,) = (tmp_path / name).rglob("samples_*.jsonl")
        config = json.loads(results.read_text())["config"]
        assert config["embednoise"]["perturbation"]["seed"] == seed, name
        texts.setdefault(seed, set()).add(json.loads(samples.read_text())["resps"][0][0])
    assert {seed: len(found) for seed, found in texts.items()} == dict.fromkeys(texts, 1)
    assert len(set.union(*texts.values())) == len(texts) == 3
    said = [line for line in done.stderr.splitlines() if "is the root of all draws" in line]
    assert len(said) == len(runs)
    assert "seed=0 is the root of all draws" in said[0]
    assert "seed=7, the harness's --seed, is the root of all draws" in said[1]
    assert (
        "seed=7 of the model's arguments is the root of all draws; the harness's --seed, 8, is not"
    ) in said[2]


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [
        ((0, 1234, 1234, 1234), None),  # what the command passes on when nobody chose
        ((7, 7, 7, 7), 7),
        ((0, 0, 0, 0), 0),
        ((1234, 1234, 1234, 1234), 1234),
        ((0, 1234, 5, 1234), 5),
        ((5, 6, 1234, 7), None),  # the torch seed was left at its default
        ((5, 6, None, 7), None),
        ((None, None, None, None), None),
    ],
)
def test_a_default_is_no_choice(seeds: tuple[Any, ...], expected: int | None) -> None:
    given = dict(zip(harness_seed.NAMES, seeds, strict=True))
    assert harness_seed.chosen(given, DEFAULTS) == expected


def test_the_seed_lasts_as_long_as_the_evaluation(caplog: pytest.LogCaptureFixture) -> None:
    seen = []

    def simple_evaluate(
        model: Any,
        random_seed: int | None = 0,
        numpy_random_seed: int | None = 1234,
        torch_random_seed: int | None = 1234,
        fewshot_random_seed: int | None = 1234,
    ) -> str:
        seen.append(harness_seed.present())
        if model == "fails":
            raise RuntimeError
        return "results"

    evaluate = harness_seed.passed_on(simple_evaluate)
    assert evaluate("hf-embednoise", torch_random_seed=3) == "results"
    assert evaluate("hf-embednoise") == "results"
    with pytest.raises(RuntimeError):
        evaluate("fails", 4, torch_random_seed=4)
    assert seen == [3, None, 4] and harness_seed.present() is None
    assert not caplog.records

    class Loaded:
        perturbation = Perturbation(seed=2)

    evaluate(Loaded(), torch_random_seed=2)
    evaluate(Loaded())
    assert not caplog.records
    evaluate(Loaded(), torch_random_seed=3)
    assert "torch_random_seed=3 changes nothing" in caplog.text
    assert "seed=2 is the root of all draws; give seed=3 to the model" in caplog.text
