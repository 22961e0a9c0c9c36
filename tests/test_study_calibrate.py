"""Calibration: families and their doses, the choice, what is held out, and the whole command."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lm_eval_embednoise.analysis.constraint import Constraint
from lm_eval_embednoise.analysis.protocol import Protocol
from lm_eval_embednoise.analysis.resample import Resampler
from lm_eval_embednoise.minicoder import NAMES, load_problems
from lm_eval_embednoise.noise.perturbation import Perturbation
from lm_eval_embednoise.study import calibrate, parts, study_file
from lm_eval_embednoise.study.method import Method, StudyError
from lm_eval_embednoise.study.plan import Task
from lm_eval_embednoise.study.sweep import AXES, Sweep, axis_of, own_dose
from lm_eval_embednoise.study.tasks import Tasks

PROTOCOL = Protocol.load()
GRIDS = PROTOCOL["calibration"]["doses"]


# Families


@pytest.mark.parametrize(
    ("base", "axis", "names", "chosen"),
    [
        ("temp-0.8", "temperature", ["temp-0.2", "temp-0.8", "temp-1.0"], "temp-tuned"),
        ("nucleus-0.95", "top_p", ["nucleus-0.2", "nucleus-0.8", "nucleus-1.0"], "nucleus-tuned"),
        ("min-p-0.1", "min_p", ["min-p-0.2", "min-p-0.8", "min-p-1.0"], "min-p-tuned"),
        (
            "embednoise-0.1-block-5",
            "sigma",
            ["embednoise-0.2-block-5", "embednoise-0.8-block-5", "embednoise-1.0-block-5"],
            "embednoise-block-5-star",
        ),
        ("rsp-16", "rsp_scale", ["rsp-16-x0.2", "rsp-16-x0.8", "rsp-16"], "rsp-16-tuned"),
        (
            "embednoise-layers-early",
            "sigma",
            [f"embednoise-layers-early-x{dose}" for dose in (0.2, 0.8, 1.0)],
            "embednoise-layers-early-star",
        ),
    ],
)
def test_a_family_varies_one_dose_and_nothing_else(base, axis, names, chosen):
    family = study_file.sweep(base, None, [0.2, 0.8, 1])
    assert (family.axis, [m.name for m in family.methods], family.chosen) == (axis, names, chosen)
    assert [own_dose(method, axis) for method in family.methods] == pytest.approx([0.2, 0.8, 1])
    for method in family.methods:
        Perturbation.from_args(dict(method.perturbation))
        back = Sweep(method, axis, ()).method(own_dose(family.base, axis))
        assert back.gen_kwargs == family.base.gen_kwargs
        noise = [Perturbation.from_args(dict(m.perturbation)) for m in (back, family.base)]
        assert noise[0].sites == pytest.approx(noise[1].sites)
        assert replace(noise[0], depth="embed") == replace(noise[1], depth="embed")


def test_a_family_of_sites_keeps_their_proportions():
    family = study_file.sweep("embednoise-layers-early", None, [0.2])
    [method] = family.methods
    assert method.perturbation["depth"] == pytest.approx({"embed": 0.2, 5: 0.1, 10: 0.04})


def test_methods_at_the_packaged_doses_are_the_packaged_methods():
    for base in ("temp-0.8", "nucleus-0.95", "embednoise-0.1", "embednoise-0.1-block-5", "rsp-16"):
        packaged = Method.load(base)
        axis = axis_of(packaged)
        again = study_file.sweep(base, None, [own_dose(packaged, axis)]).methods[0]
        assert (again.name, again.gen_kwargs) == (packaged.name, packaged.gen_kwargs)
        noise = [Perturbation.from_args(dict(m.perturbation)) for m in (again, packaged)]
        assert noise[0] == noise[1]


@pytest.mark.parametrize(
    ("base", "doses", "said"),
    [
        ("greedy", [1], "greedy has no dose to vary"),
        ("dummy-8", [1], "dummy-8 has no dose to vary"),
        ("temp-0.8", [1, 0.5], "positive numbers, rising"),
        ("temp-0.8", [0, 0.5], "positive numbers, rising"),
        ("temp-0.8", ["0.5"], "positive numbers, rising"),
        ("temp-0.8", [], "positive numbers, rising"),
        ("temp-0.8", 0.5, "positive numbers, rising"),
    ],
)
def test_bad_doses_are_named(base, doses, said):
    with pytest.raises(StudyError, match=said):
        study_file.sweep(base, None, doses)


def test_the_protocol_has_equally_many_doses_for_every_axis():
    assert set(GRIDS) == set(AXES)
    assert {len(doses) for doses in GRIDS.values()} == {6}


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"families": ["temp-0.8", {"name": "rsp-16", "doses": [1]}]}, "equally many doses"),
        ({"held_out": 0}, "held_out=0 must be a whole number"),
        ({"held_out": 5, "split": "train"}, "give one"),
        ({"budget": 8}, "calibrate is a mapping with families"),
        ({"families": ["greedy"]}, "no dose to vary"),
    ],
)
def test_bad_calibrations_are_named(block, said):
    with pytest.raises(StudyError, match=said):
        study_file.calibration(block, None, None)


# Which problems


@pytest.mark.parametrize("name", NAMES)
def test_no_embedded_calibration_problem_has_a_compared_cluster(name):
    calibrated, compared = (
        {problem["cluster"] for problem in load_problems(name, split)}
        for split in ("calibration", "test")
    )
    assert calibrated
    assert not calibrated & compared


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40), st.integers(1, 40))
def test_whole_clusters_are_held_out(own, size):
    chosen = parts.held_out(own, size, "task")
    sizes = Counter(own)
    taken = sum(sizes[cluster] for cluster in chosen)
    assert taken <= size
    assert all(sizes[cluster] > size - taken for cluster in set(own) - chosen)  # none would fit
    assert chosen == parts.held_out(own[::-1], size, "task")


def task_of(*clusters):
    """A loaded task with these clusters."""
    docs = [{"task_id": i, "cluster": cluster} for i, cluster in enumerate(clusters)]
    return SimpleNamespace(eval_docs=docs, config=SimpleNamespace(task="t"))


def test_the_parts_of_a_task_share_no_cluster_and_lose_no_problem():
    loaded = task_of(*"aabbbcddde")
    taken = [
        parts.kept(Task("t", held_out=4, part=part), loaded, set())
        for part in ("calibration", "comparison")
    ]
    assert sorted(taken[0] + taken[1]) == list(range(10))
    named = [{loaded.eval_docs[i]["cluster"] for i in part} for part in taken]
    assert named[0]
    assert not named[0] & named[1]
    apart = Task("t", split="x", apart_from=Task("t"))
    assert parts.kept(apart, loaded, {"a", "d"}) == [2, 3, 4, 5, 9]
    assert parts.kept(Task("t"), loaded, set()) is None


@pytest.mark.parametrize(
    ("task", "compared", "said"),
    [
        (Task("t", held_out=9, part="comparison"), set(), "leaves none to compare"),
        (Task("t", held_out=1, part="calibration"), set(), "leaves none to calibrate on"),
        (Task("t", split="x", apart_from=Task("t")), {"a", "b"}, "every problem of x"),
    ],
)
def test_a_part_without_problems_is_refused(task, compared, said):
    with pytest.raises(StudyError, match=said):
        parts.kept(task, task_of(*"aabbb"), compared)


# The choice


def test_the_most_solutions_within_the_constraint_win():
    solutions = {0.1: 1.0, 0.2: 3.0, 0.3: 2.0, 0.4: 9.0}
    lowest = {0.1: -0.01, 0.2: -0.04, 0.3: 0.02, 0.4: -0.06}
    assert calibrate.choose(solutions, lowest, 0.05) == (0.2, True)
    assert calibrate.choose(solutions, lowest, 0.01) == (0.3, True)
    assert calibrate.choose(solutions, lowest, -0.05) == (0.3, False)  # the nearest
    assert calibrate.choose(dict.fromkeys(solutions, 1.0), lowest, 0.05) == (0.1, True)
    assert calibrate.choose(solutions, dict.fromkeys(lowest, np.nan), 0.05) == (0.1, False)


def test_the_lower_limit_is_students_over_clusters():
    rng = np.random.default_rng(0)
    values, reference = rng.random((2, 12))
    constraint = Constraint.of(PROTOCOL)
    alone = constraint.difference(values, reference, Resampler(np.arange(12)))
    d = values - reference
    reach = stats.t.ppf(constraint.level, 11) * d.std(ddof=1) / np.sqrt(12)
    assert (alone.value, alone.low) == pytest.approx((d.mean(), d.mean() - reach))
    # Problems that are copies of one another carry no more than one of them.
    copies = Resampler(np.repeat(np.arange(12), 3))
    copied = constraint.difference(np.repeat(values, 3), np.repeat(reference, 3), copies)
    assert copied.low == pytest.approx(alone.low)
    one = constraint.difference(values, reference, Resampler(np.zeros(12, dtype=np.int64)))
    assert np.isnan(one.low)
    assert not constraint.met(one)


# The whole command


class FakeSession:
    """Stands for a loaded model: eight problems, a cliff at σ = 0.3 and at T = 1."""

    def __init__(self, model, tasks, store):
        self.model = model
        self.tasks = Tasks(model, tasks)

    def evaluate(self, cell, protocol):
        sigma = cell.method.perturbation["sigma"]
        heat = cell.method.gen_kwargs.get("temperature", 0.0)
        good = sigma <= 0.3 and heat <= 1
        row = {"pass@1": 0.9 if good else 0.2, "unique_correct": 1 + sigma + heat, "rho": sigma}
        rows = [
            {**row, "doc_id": i, "doc_hash": f"h{i}", "doc": {"cluster": f"c{i % 4}"}}
            for i in range(8)
        ]
        return {"samples": {"t": rows}}


def run(tmp_path, monkeypatch, *arguments):
    monkeypatch.setattr(calibrate, "Session", FakeSession)
    parser = argparse.ArgumentParser()
    calibrate.add_arguments(parser)
    return calibrate.run(parser.parse_args(["--out", str(tmp_path / "cal"), *arguments]))


def test_the_command_writes_methods_for_a_study(tmp_path, monkeypatch, capsys):
    assert run(tmp_path, monkeypatch, "--noise", "depth=5") == 0
    out = tmp_path / "cal"
    star = Method.load("embednoise-star.yaml", out)
    assert star.name == "embednoise-star"
    assert star.calibration["problems"] == [f"h{i}" for i in range(8)]
    assert star.calibration["clusters"] == ["c0", "c1", "c2", "c3"]
    noise = Perturbation.from_args(dict(star.perturbation))
    assert (noise.sigma, noise.depth, noise.positions) == (0.3, "5", "prompt")
    tuned = Method.load("temp-tuned.yaml", out)
    assert tuned.gen_kwargs["temperature"] == 1.0
    record = json.loads((out / "calibration.json").read_text())
    assert {len(curve) for curve in record["curves"].values()} == {6}  # equal budgets
    assert record["curves"]["embednoise-star"]["0.5"]["lower_limit"] == pytest.approx(-0.7)
    assert "unique_correct" in capsys.readouterr().out
    assert set(yaml.safe_load((out / "temp-tuned.yaml").read_text())) == {
        *("model", "model_args", "gen_kwargs", "metadata")
    }
    assert run(tmp_path, monkeypatch, "--noise", "depth=5") == 0  # taken over
    with pytest.raises(StudyError, match="was calibrated with another families"):
        run(tmp_path, monkeypatch)


def test_the_command_holds_problems_out_and_names_the_others(tmp_path, monkeypatch):
    families = ("--families", "min-p-0.1", "rsp-16", "--doses", "min_p=0.1,0.2")
    assert (
        run(tmp_path, monkeypatch, "--held_out", "8", *families, "--doses", "rsp_scale=0.5,1") == 0
    )
    [others] = json.loads((tmp_path / "cal" / "others.json").read_text()).values()
    problems = len(load_problems("minicode", "test"))
    assert problems - 8 <= len(others) == len(set(others)) < problems
    assert {path.name for path in (tmp_path / "cal").glob("*.yaml")} == {
        "min-p-tuned.yaml",
        "rsp-16-tuned.yaml",
    }
    with pytest.raises(StudyError, match="equally many doses"):
        run(tmp_path / "b", monkeypatch, *families)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--k", "0"), "--k 0"),
        (("--held_out", "5", "--split", "train"), "give one"),
        (("--families", "temp-9"), "did you mean"),
    ],
)
def test_bad_arguments_are_refused_first(tmp_path, monkeypatch, arguments, said):
    with pytest.raises(StudyError, match=said):
        run(tmp_path, monkeypatch, *arguments)
