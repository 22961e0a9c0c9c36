"""Studies: files to cells, runs through the harness with a stand-in model, resuming, refusals."""

from __future__ import annotations

import argparse
import json
from importlib import resources
from pathlib import Path

import pytest
import yaml
from lm_eval.api.model import LM
from lm_eval.api.registry import model_registry

from lm_eval_embednoise.analysis.methods import input_change
from lm_eval_embednoise.analysis.records import read_runs, samples
from lm_eval_embednoise.study import estimate, options, study_file
from lm_eval_embednoise.study import run as study_command
from lm_eval_embednoise.study.method import Method, StudyError
from lm_eval_embednoise.study.plan import fingerprint

CONFIGS = Path(str(resources.files("lm_eval_embednoise.model_configs")))
TWO_DOSES = [
    {"name": "temp-0.8", "doses": [0.8, 1.2]},
    {"name": "embednoise-0.1", "doses": [0.1, 0.2]},
]
GRID = ["0.01", "0.05", "0.1", "0.5", "1.0"]

TASK_CODE = """
import datasets

def docs(**_):
    rows = [{"task_id": f"toy/{i}", "prompt": f"{i}", "cluster": f"c{i % 3}"} for i in range(6)]
    return {"test": datasets.Dataset.from_list(rows)}

class Records:
    def __init__(self, k=None):
        self.k = k
    def apply(self, resps, docs):
        return [[{"text": t, "passed": len(t) % 2 == 0} for t in r[: self.k]] for r in resps]

def metrics(doc, results):
    [records] = results
    passed = [r["passed"] for r in records]
    unique = len({r["text"] for r in records})
    return {"pass@1": sum(passed) / len(passed), "success@K": float(any(passed)),
            "distinct_2": unique / len(records), "compile_rate": 1.0, "unique_correct": unique}
"""
TASK_YAML = """
task: toy
custom_dataset: !function toy_functions.docs
output_type: generate_until
test_split: test
doc_to_text: prompt
doc_to_target: ""
process_results: !function toy_functions.metrics
repeats: 3
generation_kwargs: {until: ["\\n"], max_gen_toks: 8, do_sample: false}
filter_list:
  - name: records
    filter:
      - {function: !function toy_functions.Records, k: 3}
metric_list:
  - {metric: pass@1, aggregation: mean, higher_is_better: true}
  - {metric: success@K, aggregation: mean, higher_is_better: true}
  - {metric: distinct_2, aggregation: mean, higher_is_better: true}
  - {metric: unique_correct, aggregation: mean, higher_is_better: true}
  - {metric: compile_rate, aggregation: mean, higher_is_better: true}
metadata: {version: 1}
"""


class StandIn(LM):
    """Writes texts that depend on the perturbation, the sampling and the sample's index."""

    loaded = 0
    calls = 0
    fail_at: int | None = None

    def __init__(self, batch_size=None, device=None, **_):
        super().__init__()
        type(self).loaded += 1
        self.perturbation = None

    def set_perturbation(self, perturbation, *, method):
        self.perturbation, self.method = perturbation, method

    def generate_until(self, requests, disable_tqdm=False):
        type(self).calls += 1
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        drawn = requests[0].args[1].get("temperature", 0) > 0 or self.perturbation.active
        return [
            f"{r.args[0]} {self.perturbation.seed} {'x' * (i % 5) if drawn else ''}"
            for i, r in enumerate(requests)
        ]

    def get_model_info(self):
        return {"embednoise": {"perturbation": {"sigma": self.perturbation.sigma}}}

    def loglikelihood(self, requests, disable_tqdm=False):
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A study of two methods on a toy task with the stand-in model."""
    (tmp_path / "toy_functions.py").write_text(TASK_CODE)
    (tmp_path / "toy.yaml").write_text(TASK_YAML)
    import lm_eval.models  # noqa: F401

    if "stand-in" not in model_registry:
        model_registry.register("stand-in", target=StandIn)
    monkeypatch.setattr(StandIn, "loaded", 0)
    monkeypatch.setattr(StandIn, "calls", 0)
    monkeypatch.setattr(StandIn, "fail_at", None)
    content = {
        "name": "toy",
        "models": [{"name": "m", "model": "stand-in"}],
        "tasks": [str(tmp_path / "toy.yaml")],
        "methods": ["temp-0.8", "embednoise-0.1", "greedy"],
        "k": 4,
        "limit": 5,
        "candidate": "embednoise-0.1",
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def run(study: Path, *options: str) -> int:
    parser = argparse.ArgumentParser()
    study_command.add_arguments(parser)
    out = ["--out", str(study.parent / "out")]
    return study_command.run(parser.parse_args([str(study), *out, *options]))


def test_a_study_runs_to_its_comparison(toy, capsys):
    assert run(toy) == 0
    out = toy.parent / "out"
    comparison = json.loads((out / "comparison.json").read_text())
    rows = {row["method"]: row for row in comparison["leaderboard"]}
    assert set(rows) == {"temp-0.8", "embednoise-0.1", "greedy"}
    assert all((row["k"], row["n"], row["clusters"]) == (4, 5, 3) for row in rows.values())
    assert rows["greedy"]["metrics"]["distinct_2"]["value"] == 0.25
    assert rows["embednoise-0.1"]["metrics"]["distinct_2"]["value"] > 0.25
    assert rows["temp-0.8"]["sampling"] == {"do_sample": True, "temperature": 0.8}
    assert rows["greedy"]["sampling"] == {"do_sample": False}  # nothing left over from temp-0.8
    assert StandIn.loaded == 1
    assert (out / "pareto.png").stat().st_size > 10_000
    manifest = json.loads((out / "study.json").read_text())
    assert {row["protocol"] for row in rows.values()} == {manifest["protocol"]["hash"]}
    [verdict] = comparison["verdicts"]
    assert "no protocol was stored" not in " ".join(verdict["deviations"])
    assert "Verdict (exploratory) for embednoise-0.1" in capsys.readouterr().out


def test_the_harness_files_hold_k_records_of_each_problem(toy):
    run(toy)
    runs = read_runs([toy.parent / "out" / "results"])
    for found in runs:
        for _, doc, records in samples(found):
            assert len(records) == 4
            assert records[0]["text"].startswith(doc["prompt"])


def test_finished_runs_are_not_run_again(toy, capsys):
    run(toy)
    calls = StandIn.calls
    capsys.readouterr()
    assert run(toy) == 0
    assert StandIn.calls == calls == 3
    assert "3 of 3 runs done" in capsys.readouterr().out


def test_an_interrupted_study_resumes_with_what_is_left(toy, monkeypatch):
    monkeypatch.setattr(StandIn, "fail_at", 2)
    with pytest.raises(KeyboardInterrupt):
        run(toy)
    results = toy.parent / "out" / "results"
    assert len(list(results.rglob("cell.json"))) == 1
    assert not list(results.rglob(".*"))
    monkeypatch.setattr(StandIn, "fail_at", None)
    assert run(toy) == 0
    assert StandIn.calls == 2 + 2
    assert len(list(results.rglob("cell.json"))) == 3


def test_results_of_other_settings_are_not_mixed_in(toy):
    run(toy)
    with pytest.raises(StudyError, match="was run with another limit: choose another --out"):
        run(toy, "--limit", "4")


def test_dry_run_lists_and_writes_nothing(toy, capsys):
    assert run(toy, "--dry-run", "-K", "2", "--probe", "0") == 0
    shown = capsys.readouterr().out
    assert "0 of 3 runs done; left: temp-0.8, embednoise-0.1, greedy" in shown
    assert "K = 2" in shown
    assert not (toy.parent / "out").exists()
    assert StandIn.loaded == 0


def test_the_dry_run_counts_samples_and_times_a_probe(toy, capsys, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: next(clock) ** 2)
    assert run(toy, "--dry-run", "--probe", "2") == 0
    shown = capsys.readouterr().out
    assert "3 runs, 60 samples" in shown
    assert "from a probe of 2 problems" in shown
    # Three kinds of method, each run on one problem twice and on three once; nothing is written.
    assert StandIn.calls == 9
    assert not (toy.parent / "out").exists()


def test_the_estimate_is_linear_in_problems_and_shared_by_processes(toy, monkeypatch):
    """A run takes 10 s and 2 s a problem: 20 s for five, 15 s in two processes."""
    now = [0.0]

    def evaluate(self, cell, protocol):
        now[0] += 10 + 2 * cell.task.limit

    monkeypatch.setattr(estimate.Session, "evaluate", evaluate)
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: now[0])
    found = study_file.load(str(toy))
    for processes, seconds in ((1, 20), (2, 15)):
        told = estimate.estimate(found, found.cells(), {}, 3, processes)
        [part] = told.parts
        assert (part.runs, part.samples, part.seconds) == (3, 60, pytest.approx(3 * seconds))


@pytest.mark.parametrize(
    ("seconds", "said"), [(5, "5 s"), (600, "10 min"), (7200, "2.0 h"), (864000, "10.0 days")]
)
def test_durations_are_told_as_people_do(seconds, said):
    assert estimate.duration(seconds) == said


def test_a_study_calibrates_each_model_first_and_resumes(toy, monkeypatch, capsys):
    content = yaml.safe_load(toy.read_text())
    content["models"] = [{"name": name, "model": "stand-in"} for name in ("m", "n")]
    content["methods"] = ["temp-0.8", "temp-tuned", "embednoise-star"]
    content["candidate"] = "embednoise-star"
    content["calibrate"] = {"held_out": 2, "k": 2, "families": TWO_DOSES}
    toy.write_text(yaml.safe_dump(content))
    monkeypatch.setattr(StandIn, "fail_at", 4)  # within the first calibration
    with pytest.raises(KeyboardInterrupt):
        run(toy)
    out = toy.parent / "out"
    points = out / "calibration" / "m" / "toy" / "points.jsonl"
    assert len(points.read_text().splitlines()) == 3
    assert (out / "study.json").is_file()  # the protocol is on record before any generation
    monkeypatch.setattr(StandIn, "fail_at", None)
    assert run(toy) == 0
    per_model = 1 + 2 * 2 + 3
    assert StandIn.calls == 2 * per_model + 1
    assert StandIn.loaded == 3
    shown = capsys.readouterr().out
    assert "m · calibration" in shown
    assert "embednoise-star.yaml" in shown
    comparison = json.loads((out / "comparison.json").read_text())
    assert [v["candidate"] for v in comparison["verdicts"]] == ["embednoise-star"] * 2
    said = " ".join(comparison["verdicts"][0]["deviations"])
    assert "was calibrated with K = 2, not 4" in said
    assert "of the problems" not in said  # what is compared was held out of the calibration
    assert {row["n"] for row in comparison["leaderboard"]} == {4}
    assert run(toy) == 0
    assert StandIn.calls == 2 * per_model + 1
    content["calibrate"]["k"] = 3
    toy.write_text(yaml.safe_dump(content))
    with pytest.raises(StudyError, match="was calibrated with another k"):
        run(toy)


def test_few_samples_are_said_before_they_are_generated(toy, capsys):
    content = yaml.safe_load(toy.read_text())
    for k, said in ((4, True), (10, False)):
        toy.write_text(yaml.safe_dump({**content, "k": k}))
        run(toy, "--dry-run", "--probe", "0")
        assert ("pass@10 needs ten samples" in capsys.readouterr().out) == said
    assert StandIn.calls == 0


def test_families_along_their_dose(toy):
    content = yaml.safe_load(toy.read_text())
    methods = ["greedy", {"name": "temp-0.8", "doses": [0.2, 1], "seeds": [0, 1]}]
    toy.write_text(yaml.safe_dump({**content, "methods": methods, "candidate": None}))
    cells = study_file.load(str(toy)).cells()
    assert [(cell.method.name, cell.seed) for cell in cells] == [
        *(("greedy", 0), ("temp-0.2", 0), ("temp-0.2", 1), ("temp-1.0", 0), ("temp-1.0", 1))
    ]
    assert [cell.method.gen_kwargs.get("temperature") for cell in cells[1::2]] == [0.2, 1.0]


def test_a_method_may_have_seeds_of_its_own(toy):
    content = yaml.safe_load(toy.read_text())
    methods = ["greedy", {"name": "temp-0.8", "seeds": [0, 1]}]
    toy.write_text(yaml.safe_dump({**content, "methods": methods, "candidate": None}))
    cells = study_file.load(str(toy)).cells()
    assert [(cell.method.name, cell.seed) for cell in cells] == [
        *(("greedy", 0), ("temp-0.8", 0), ("temp-0.8", 1))
    ]


def test_seeds_are_replicates(toy):
    content = yaml.safe_load(toy.read_text())
    toy.write_text(
        yaml.safe_dump(
            {**content, "seeds": [0, 1], "methods": ["temp-0.8", "greedy"], "candidate": None}
        )
    )
    run(toy)
    comparison = json.loads((toy.parent / "out" / "comparison.json").read_text())
    assert [entry["method"] for entry in comparison["floor"]] == ["greedy", "temp-0.8"]


def test_a_model_that_cannot_be_perturbed_runs_sampling_only(toy, monkeypatch):
    monkeypatch.delattr(StandIn, "set_perturbation")
    monkeypatch.setattr(StandIn, "get_model_info", lambda self: {})
    monkeypatch.setattr(StandIn, "generate_until", lambda self, r, **_: ["x"] * len(r))
    with pytest.raises(StudyError, match="can't be perturbed, so it can't run embednoise"):
        run(toy)
    assert StandIn.loaded == 0
    assert run(toy, "--methods", "temp-0.8,greedy", "--candidate", "greedy") == 0
    assert len(list((toy.parent / "out").rglob("cell.json"))) == 2


def test_replicates_of_a_model_that_cannot_be_perturbed_have_the_harness_seed(toy, monkeypatch):
    monkeypatch.delattr(StandIn, "set_perturbation")
    monkeypatch.setattr(StandIn, "get_model_info", lambda self: {})
    monkeypatch.setattr(StandIn, "generate_until", lambda self, r, **_: ["x"] * len(r))
    content = yaml.safe_load(toy.read_text())
    methods = {"methods": ["temp-0.8"], "seeds": [0, 1], "candidate": None}
    toy.write_text(yaml.safe_dump({**content, **methods}))
    run(toy)
    comparison = json.loads((toy.parent / "out" / "comparison.json").read_text())
    assert [row["seeds"] for row in comparison["leaderboard"]] == [[1234, 1235]]


def test_the_command_line_overrides_the_file(toy):
    arguments = ["--model_args", "pretrained=a/b,dtype=float32", "--device", "cpu"]
    parser = argparse.ArgumentParser()
    study_command.add_arguments(parser)
    args = parser.parse_args([str(toy), "-K", "7", "--tasks", "one,two", *arguments])
    found = options.overridden(study_file.load(str(toy)), args)
    assert [(t.name, t.limit, t.k) for t in found.tasks] == [("one", 5, 7), ("two", 5, 7)]
    assert found.models[0].model_args == {"pretrained": "a/b", "dtype": "float32"}
    assert found.models[0].name == "b"  # other weights are not published under the study's name
    quick = parser.parse_args(["quick", "--model_args", "pretrained=/models/mine/"])
    assert options.overridden(study_file.load("quick"), quick).models[0].name == "mine"
    typed = parser.parse_args(["quick", "--model_args", "dtype=float32"])
    assert options.overridden(study_file.load("quick"), typed).models[0].name == "minicoder"
    mini = options.overridden(study_file.load("mini"), parser.parse_args(["mini", "-K", "4"]))
    calibrated_on = mini.calibrate.task(mini.tasks[0])
    assert (calibrated_on.k, calibrated_on.split) == (4, "calibration")
    assert found.models[0].device == "cpu"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"methods": ["temp-0.9"]}, "did you mean 'temp-0.8'"),
        ({"methods": []}, "needs a list of methods"),
        ({"candidate": "temp-7"}, "candidate 'temp-7' is none of its methods"),
        ({"limits": 3}, r"unknown \['limits'\]"),
        ({"k": 0}, "k=0 must be a whole number"),
        ({"models": ["m"]}, "a mapping with name"),
        ({"methods": ["greedy", "greedy"]}, "must be different names"),
        ({"methods": ["greedy", {"name": "temp-0.8", "seed": 1}]}, "a name, or name, seeds and"),
        ({"methods": [{"name": "greedy", "doses": [1]}]}, "greedy has no dose to vary"),
        ({"methods": [{"name": "greedy", "seeds": [0, 0]}]}, "different whole numbers"),
        ({"seeds": []}, "different whole numbers"),
        ({"methods": ["embednoise-star"]}, "no methods file 'embednoise-star'"),
        ({"calibrate": {"tasks": "x"}}, "a mapping with families"),
        ({"calibrate": {"k": 0}}, "calibrate: k=0 must be a whole number"),
    ],
)
def test_bad_study_files_are_one_line(toy, change, said):
    toy.write_text(yaml.safe_dump({**yaml.safe_load(toy.read_text()), **change}))
    with pytest.raises(StudyError, match=said) as error:
        study_file.load(str(toy))
    assert "\n" not in str(error.value)


def test_unknown_studies_name_the_packaged_ones():
    with pytest.raises(StudyError, match="did you mean 'quick'"):
        study_file.load("quik")


@pytest.mark.parametrize("path", sorted((CONFIGS / "studies").glob("*.yaml")), ids=lambda p: p.stem)
def test_packaged_studies_are_whole(path):
    found = study_file.load(str(path))
    assert found.candidate in [method.name for method in found.methods]
    cells = found.cells()
    assert len(cells) == len({cell.folder for cell in cells})
    known = [cell for cell in cells if not cell.method.pending]
    assert len(known) == len({fingerprint(cell.settings("x")) for cell in known})


# What names of methods that draw tokens have in them.
DRAWN = ("temp-", "nucleus-", "min-p-", "typical-", "epsilon-", "eta-", "top-n-sigma-", "p-less")


@pytest.mark.parametrize("path", sorted((CONFIGS / "methods").glob("*.yaml")), ids=lambda p: p.stem)
def test_packaged_methods_are_run_files_and_what_their_name_says(path):
    from lm_eval.config.evaluate_config import EvaluatorConfig

    from lm_eval_embednoise.engine.sampling import Sampling
    from lm_eval_embednoise.noise.perturbation import Perturbation

    config = EvaluatorConfig(**EvaluatorConfig.load_yaml_config(path))
    assert config.model == "hf-embednoise"
    method = Method.load(path.stem)
    perturbation = Perturbation.from_args(method.perturbation)
    sampling = Sampling.from_gen_kwargs(method.gen_kwargs)
    assert perturbation.plain == path.stem.startswith(("greedy", "stratified-", "first-", *DRAWN))
    assert sampling.greedy != any(word in path.stem for word in (*DRAWN, "ned-"))
    family, _, dose = path.stem.partition("-")
    if family in ("embednoise", "literal") and not dose.startswith("layers"):
        sigma, _, arm = dose.partition("-")
        assert perturbation.sigma == float(sigma)
        assert perturbation.sigma_unit == ("norm" if family == "literal" else "relative")
        assert arm or (perturbation.positions, perturbation.depth) == ("prompt", "embed")
    elif path.stem.startswith("temp-"):
        assert sampling.temperature == float(path.stem.removeprefix("temp-"))


def test_the_grid_of_doses_is_the_papers():
    names = {path.stem for path in (CONFIGS / "methods").glob("*.yaml")}
    assert {f"{unit}-{sigma}" for unit in ("embednoise", "literal") for sigma in GRID} <= names


def test_a_methods_noise_file_is_read_with_it(tmp_path, monkeypatch):
    """Beside the method file or from the working folder; what it says is part of the cell."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    method, noise = tmp_path / "mine" / "sites.yaml", tmp_path / "mine" / "noise.yaml"
    method.write_text("model_args: {noise: noise.yaml, positions: all}")
    noise.write_text("depth: {embed: 0.1, 5: 0.3}")
    first = Method.load(str(method))
    assert input_change(first.perturbation) == "noise"
    assert first.perturbation == {
        "depth": {"embed": 0.1, 5: 0.3},
        "positions": "all",
    }
    noise.write_text("depth: {embed: 0.2, 5: 0.3}")
    assert Method.load(str(method)) != first
    noise.rename(tmp_path / "noise.yaml")
    assert Method.load(str(method)).perturbation["depth"] == {"embed": 0.2, 5: 0.3}
    (tmp_path / "noise.yaml").write_text("sigmas: 3")
    with pytest.raises(ValueError, match=r"noise.yaml: unknown argument 'sigmas'.*sigma"):
        Method.load(str(method))


def test_a_packaged_method_is_noisy_unless_it_leaves_the_input_alone():
    """Also where sigmas stand in a mapping, or dummies alone are added."""
    folder = resources.files("lm_eval_embednoise.model_configs") / "methods"
    names = {entry.name.removesuffix(".yaml") for entry in folder.iterdir()}
    changes = {name: input_change(Method.load(name).perturbation) for name in names}
    clean = {name for name, change in changes.items() if change == "none"}
    assert clean == {
        *("greedy", "temp-0.8", "temp-1.5", "nucleus-0.95", "min-p-0.1", "typical-0.9", "p-less"),
        *("epsilon-0.001", "eta-0.001", "top-n-sigma-1.0", "first-8-temp-0.8"),
        *("stratified-20", "stratified-20-temp-0.8"),
    }
    assert {"embednoise-layers-early", "dummy-8", "rsp-16", "prefix-10"} <= names
    controls = {name for name, change in changes.items() if change == "control"}
    assert controls == {"dummy-8", "attention-temp-1.3"}


@pytest.mark.parametrize(
    ("as_given", "as_recorded", "change"),
    [
        ({"sigma": 0, "positions": "prompt"}, {"sites": {}, "seed": 3}, "none"),
        ({"prefix": "none", "depth": {"embed": 0.0}}, {"sites": {}, "rsp": 0}, "none"),
        ({"sigma": 0, "positions": "dummy:8"}, {"sites": {}, "positions": "dummy:8"}, "control"),
        ({"sigma": 1, "positions": "dummy:8"}, {"sites": {"embed": 1.0}}, "noise"),
        ({"depth": {5: 0.1}}, {"sites": {"block.5": 0.1}}, "noise"),
        ({"rsp": 16}, {"sites": {}, "rsp": 16}, "noise"),
        ({"prefix": "random:10"}, {"sites": {}, "prefix": "random:10"}, "noise"),
    ],
)
def test_what_is_done_to_the_input_is_read_from_arguments_and_from_results(
    as_given, as_recorded, change
):
    assert input_change(as_given) == input_change(as_recorded) == change
