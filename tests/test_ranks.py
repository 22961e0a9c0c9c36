"""Two processes against one: the same samples, metrics and measurements, and no work done twice."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lm_eval_embednoise import launch
from lm_eval_embednoise.models.ranks import AtMost, Measured, in_order
from tests.support import ranks_driver


@pytest.mark.filterwarnings("ignore")
def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    """Three problems of two tasks, K = 3 under noise and few-shot, as `accelerate launch` line.

    The launcher starts one process on a CPU; the model class starts both through torchrun.
    """
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE")}
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=2"]
    line = [*accelerate, ranks_driver.__file__, str(two)]
    run = subprocess.Popen(line, env={**clean, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)
    ranks_driver.main(one)
    _, stderr = run.communicate(timeout=300)
    assert run.returncode == 0, stderr.decode()[-2000:]
    assert b"starting all 2 through torchrun" in stderr

    assert (one / "run.json").read_text() == (two / "run.json").read_text()
    samples = json.loads((one / "run.json").read_text())["samples"]
    assert {name: len(docs) for name, docs in samples.items()} == {
        "minicode_diverse_k10": 3,
        "fewshot_arithmetic": 3,
    }
    assert all(len(doc["resps"][0]) == 3 for doc in samples["minicode_diverse_k10"])
    shots = samples["fewshot_arithmetic"][1]["arguments"][0][0]
    assert shots.startswith("10 + 10 = 20") and shots.endswith("1 + 1 =")
    shares = [json.loads((two / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert [share["of"] for share in shares] == [2, 2]
    assert [share["generated"] for share in shares] == [2 * 3 + 2, 1 * 3 + 1]


@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 3))
def test_gathered_results_stand_as_in_one_process(ranks: int, problems: int, filters: int) -> None:
    assume(problems >= ranks)  # as the harness itself needs

    def run(numbers: range) -> tuple[dict, dict]:
        samples = [{"doc_id": n, "filter": f} for f in range(filters) for n in numbers]
        metrics = {("m", f): [f + n / 10 for n in numbers] for f in range(filters)}
        return {"task": samples}, {"task": metrics}

    one = run(range(problems))
    several = [run(range(rank, problems, ranks)) for rank in range(ranks)]
    assert in_order([samples for samples, _ in several]) == one[0]
    assert in_order([metrics for _, metrics in several]) == one[1]


def test_responses_of_a_padded_problem_are_kept_once() -> None:
    responses = AtMost(2)
    for text in "abcd":
        responses.append(text)
    assert responses == ["a", "b"]
    sent = pickle.loads(pickle.dumps(responses))
    assert type(sent) is list and sent == ["a", "b"]


def test_measurements_do_not_depend_on_their_order() -> None:
    values = [0.1, 1e16, -1e16, 0.2, 0.3]
    means = set()
    for order in (values, values[::-1], sorted(values)):
        measured = Measured(["embed", "block.1"])
        for value in order:
            measured.add("rho", {"embed": [value]})
            measured.gather(1)
        means.add(measured.mean("rho")["embed"])
        assert set(measured.mean("rho")) == {"embed"} and measured.mean("std") == {}
    assert len(means) == 1


@pytest.mark.parametrize(
    ("line", "asked"),
    [
        ("python /bin/accelerate launch --cpu --num_processes 2 -m lm_eval --tasks x", (2, 1)),
        ("/bin/accelerate-launch --num-processes=3 --cpu run.py --num_processes 9", (3, 1)),
        ("python -m accelerate.commands.launch --cpu --num_processes 2 run.py", (2, 1)),
        ("accelerate launch --cpu --num_processes 4 --num_machines 2 run.py", (4, 2)),
        ("accelerate launch --cpu --num_processes 2 --mpirun_hostfile h run.py", (1, 1)),
        ("accelerate launch --num_processes 2 run.py", (1, 1)),
        ("accelerate launch --cpu run.py", (1, 1)),
        ("bash launch --cpu --num_processes 2 run.py", (1, 1)),
    ],
)
def test_what_accelerate_was_asked_for(line: str, asked: tuple[int, int]) -> None:
    assert launch.parse_launch(line.split()) == asked


def test_a_process_of_a_world_starts_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "execve", lambda *a: pytest.fail("started again"))
    monkeypatch.setattr(launch, "parse_launch", lambda line: (2, 1))
    for name in ("RANK", "ACCELERATE_USE_CPU", "ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"):
        monkeypatch.setenv(name, "1")
    launch.start_missing_processes()


def test_several_machines_are_told_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCELERATE_USE_CPU", "ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(launch, "in_world", lambda: False)
    monkeypatch.setattr(launch, "parse_launch", lambda line: (4, 2))
    with pytest.raises(ValueError, match=r"torchrun --nnodes N .*--nproc_per_node M"):
        launch.start_missing_processes()
