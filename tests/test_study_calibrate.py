"""Calibration: the search on known dose–responses, the choice, and the whole command."""

from __future__ import annotations

import argparse
import json

import pytest
import yaml

from lm_eval_embednoise.analysis.protocol import Protocol
from lm_eval_embednoise.noise.perturbation import Perturbation
from lm_eval_embednoise.study import calibrate
from lm_eval_embednoise.study.plan import Method, StudyError

RULE = Protocol.load()["calibration"]


def cliff(at):
    """A model that works up to a dose and breaks beyond; diversity grows with the dose."""
    return lambda dose: {"pass@1": 0.8 if dose <= at else 0.1, "unique_correct": dose}


@pytest.mark.parametrize("at", [0.002, 0.03, 0.13, 0.9, 4.0])  # tolerance differs 60-fold and more
def test_the_search_brackets_the_cliff(at):
    curve = calibrate.search(cliff(at), lambda p: p["pass@1"] >= 0.7, calibrate.NOISE, budget=10)
    best, met = calibrate.choose(curve, RULE, 0.7)
    assert met
    assert at / 1.25 <= best <= at
    assert len(curve) <= 10


def test_the_budget_is_kept_and_bounds_end_the_search():
    curve = calibrate.search(cliff(99), lambda p: True, calibrate.TEMPERATURE, budget=50)
    assert len(curve) < 10
    assert max(curve) <= calibrate.TEMPERATURE.most
    assert len(calibrate.search(cliff(0.1), lambda p: False, calibrate.NOISE, budget=3)) == 3


def test_the_most_solutions_within_the_constraint_win():
    curve = {
        0.1: {"pass@1": 0.8, "unique_correct": 1.0},
        0.2: {"pass@1": 0.8, "unique_correct": 3.0},
        0.3: {"pass@1": 0.8, "unique_correct": 2.0},
        0.4: {"pass@1": 0.3, "unique_correct": 9.0},
    }
    assert calibrate.choose(curve, RULE, 0.75) == (0.2, True)
    assert calibrate.choose({0.4: curve[0.4], 0.5: {"pass@1": 0.2}}, RULE, 0.75) == (0.4, False)


class FakeSession:
    """Stands for a loaded model: eight problems, a cliff at σ = 0.3."""

    def __init__(self, model, tasks, store):
        self.model = model

    def evaluate(self, cell, protocol):
        sigma = cell.method.perturbation["sigma"]
        heat = cell.method.gen_kwargs.get("temperature", 0.0)
        good = sigma <= 0.3 and heat <= 1.2
        row = {"pass@1": 0.9 if good else 0.2, "unique_correct": 1 + sigma + heat, "rho": sigma}
        return {"samples": {"t": [{**row, "doc_hash": f"h{i}"} for i in range(8)]}}


def test_the_command_writes_methods_for_a_study(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(calibrate, "Session", FakeSession)
    parser = argparse.ArgumentParser()
    calibrate.add_arguments(parser)
    out = tmp_path / "cal"
    args = parser.parse_args(["--out", str(out), "--noise", "depth=5", "--budget", "9"])
    assert calibrate.run(args) == 0
    star = Method.load("embednoise-star.yaml", out)
    assert star.name == "embednoise-star"
    assert star.calibration["problems"] == [f"h{i}" for i in range(8)]
    noise = Perturbation.from_args(star.perturbation)
    assert 0.2 <= noise.sigma <= 0.3
    assert noise.depth == "5"
    assert noise.positions == "prompt"
    tuned = Method.load("temp-tuned.yaml", out)
    assert 1.0 <= tuned.gen_kwargs["temperature"] <= 1.2
    record = json.loads((out / "calibration.json").read_text())
    assert {len(curve) for curve in record["curves"].values()} == {9}  # equal budgets
    assert "unique_correct" in capsys.readouterr().out
    assert set(yaml.safe_load((out / "temp-tuned.yaml").read_text())) == {
        *("model", "model_args", "gen_kwargs", "metadata")
    }
    with pytest.raises(StudyError, match="--budget 0"):
        calibrate.run(parser.parse_args(["--budget", "0"]))
