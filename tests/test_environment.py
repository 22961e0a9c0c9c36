"""What a run ran on: read from the harness's file, joined over replicates."""

from __future__ import annotations

import json

from torch.utils.collect_env import get_pretty_env_info

from lm_eval_embednoise.analysis.comparison import compare
from lm_eval_embednoise.analysis.environment import environment, joined
from lm_eval_embednoise.analysis.records import read_runs
from tests.support.synthetic import write_run

GPUS = "GPU models and configuration: \nGPU 0: NVIDIA H100\nGPU 1: NVIDIA H100\nGPU 2: Tesla T4\n"


def test_the_survey_of_this_machine_is_read():
    """The text as torch writes it now: a changed wording would show here."""
    survey = get_pretty_env_info()
    told = environment(
        {"pretty_env_info": survey, "git_hash": "abc", "lm_eval_version": "0.4.13"},
        {"versions": {"lm-eval": "0.4.13", "torch": "9.9"}},
    )
    assert told["torch"] == "9.9"  # what the model class says goes before the survey
    assert {"python", "os", "cpu"} <= told.keys()
    for name in ("python", "os", "cpu"):
        assert told[name] and "\n" not in told[name] and told[name] in survey
    assert (told["lm-eval"], told["git"]) == ("0.4.13", "abc") and "transformers" not in told


def test_one_gpu_stands_on_the_line_itself():
    survey = "GPU models and configuration: GPU 0: NVIDIA H200\nNvidia driver version: 1\n"
    assert environment({"pretty_env_info": survey}, {}) == {"gpu": "NVIDIA H200"}


def test_gpus_are_counted_and_nothing_is_made_up():
    survey = GPUS + "Nvidia driver version: 580.1\n"
    assert environment({"pretty_env_info": survey}, {}) == {"gpu": "2 × NVIDIA H100, Tesla T4"}
    none = "CUDA used to build PyTorch: Could not collect\nGPU models and configuration: No CUDA\n"
    assert environment({"pretty_env_info": none, "git_hash": None}, {}) == {}
    assert environment({}, {}) == {}


def test_replicates_that_differ_are_joined(tmp_path):
    for replicate, torch in ((0, "2.13.0"), (1, "2.14.0")):
        path = write_run(tmp_path / str(replicate), "temp-0.8", n=4, replicate=replicate)
        content = json.loads(path.read_text())
        content["config"]["embednoise"]["versions"] = {"torch": torch, "transformers": "5.23.0"}
        path.write_text(json.dumps(content | {"git_hash": "abc"}))
    [row] = compare(read_runs([tmp_path]), draws=50)["leaderboard"]
    expected = {"git": "abc", "torch": "2.13.0; 2.14.0", "transformers": "5.23.0"}
    assert row["environment"] == expected
    assert joined([expected, expected]) == expected
