"""The export to Every Eval Ever: by the published schema (a copy, MIT licence), field by field."""

from __future__ import annotations

import argparse
import json
import uuid
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from lm_eval_embednoise.analysis import compare as command
from lm_eval_embednoise.analysis.comparison import compare
from lm_eval_embednoise.analysis.every_eval_ever import VERSION, export
from lm_eval_embednoise.analysis.records import read_runs
from lm_eval_embednoise.analysis.runs import ResultError
from tests.support.synthetic import METHODS, write_run, write_study
from tests.test_merge import version_1

COPY = Path(__file__).parent / "data" / "every_eval_ever" / "eval.schema.json"
SCHEMA = json.loads(COPY.read_text(encoding="utf-8"))
NAMES = ("greedy", "temp-0.8", "nucleus-0.95", "embednoise-0.1")
LAB = "Example Lab"
BASE = ("temp-0.8", "minicode_diverse")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    write_study(root, {name: METHODS[name] for name in NAMES}, n=36, families=16)
    write_run(root / "again", "temp-0.8", n=36, families=16, replicate=1)
    for path in root.rglob("results_*.json"):
        content = json.loads(path.read_text())
        content["config"]["embednoise"]["model"] = {"name": "org/mini", "dtype": "float32"}
        content["config"]["embednoise"]["versions"] = {"transformers": "5.23.0"}
        path.write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def comparison(folder):
    return compare(read_runs([folder]), draws=200)


@pytest.fixture(scope="module")
def files(comparison, tmp_path_factory):
    """Path below the folder → content."""
    out = tmp_path_factory.mktemp("shared")
    paths = export(comparison, out, LAB)
    return {path.relative_to(out): json.loads(path.read_text("utf-8")) for path in paths}


def record(files, method, task="minicode_diverse"):
    [found] = [
        content
        for path, content in files.items()
        if path.parts[1] == task
        and content["evaluation_results"][0]["generation_config"]["additional_details"]["method"]
        == method
    ]
    return found


def result(found, metric):
    [one] = [r for r in found["evaluation_results"] if r["metric_config"]["metric_name"] == metric]
    return one


def test_every_file_fits_the_published_schema_in_its_place(files):
    assert SCHEMA["version"] == VERSION
    validator = jsonschema.Draft7Validator(SCHEMA)
    assert len(files) == 2 * len(NAMES)
    for path, content in files.items():
        validator.validate(content)
        top, task, developer, model, name = path.parts
        assert (top, developer, model) == ("data", "org", "mini")
        assert task in ("minicode_diverse", "minimath_diverse")
        assert uuid.UUID(name.removesuffix(".json")).version == 4
    identifiers = [content["evaluation_id"] for content in files.values()]
    assert len(set(identifiers)) == len(files)


def test_nothing_beside_the_schemas_own_fields_is_written(files):
    """The schema lets unknown fields pass in most places, where a typing error would go unseen."""

    def unknown(value, schema, where):
        schema = SCHEMA["$defs"][schema["$ref"].split("/")[-1]] if "$ref" in schema else schema
        if "oneOf" in schema and isinstance(value, dict):
            schema = SCHEMA["$defs"]["source_data_private"]  # the kind that is written
        if isinstance(value, list):
            for item in value:
                yield from unknown(item, schema["items"], where)
        if not isinstance(value, dict) or "properties" not in schema:
            return
        for key, item in value.items():
            if key in schema["properties"]:
                yield from unknown(item, schema["properties"][key], f"{where}.{key}")
            elif "additionalProperties" not in schema:
                yield f"{where}.{key}"

    for content in files.values():
        assert list(unknown(content, SCHEMA, "")) == []


def test_scores_intervals_and_errors_are_the_comparisons(files, comparison, folder):
    runs = [
        run for run in read_runs([folder / "temp-0.8", folder / "again"]) if run.task == BASE[1]
    ]
    [row] = [row for row in comparison["leaderboard"] if (row["method"], row["task"]) == BASE]
    found = record(files, "temp-0.8")
    assert len(found["evaluation_results"]) == len(row["metrics"])
    for metric in ("pass@10", "distinct_2_valid", "unique_correct"):
        details, estimate = result(found, metric)["score_details"], row["metrics"][metric]
        assert details["score"] == estimate["value"]
        interval = details["uncertainty"]["confidence_interval"]
        assert (interval["lower"], interval["upper"]) == (estimate["low"], estimate["high"])
        assert interval["confidence_level"] == 0.95
        values = np.mean([run.metrics[metric] for run in runs], axis=0)
        known = np.flatnonzero(np.isfinite(values))
        assert details["uncertainty"]["num_samples"] == estimate["n"] == len(known)
        mean = values[known].mean()
        sums = {}
        for i in known:
            label = runs[0].clusters[i]
            sums[label] = sums.get(label, 0.0) + values[i] - mean
        groups = len(sums)
        variance = groups / (groups - 1) * sum(s**2 for s in sums.values()) / len(known) ** 2
        told = details["uncertainty"]["standard_error"]
        assert told["value"] == pytest.approx(np.sqrt(variance), rel=1e-4)
        assert "clusters" in told["method"]


def test_without_clusters_the_error_is_the_schemas_own_formula(tmp_path):
    for name in ("temp-0.8", "greedy"):
        write_run(tmp_path / "in", name, n=20, families=None)
    comparison = compare(read_runs([tmp_path / "in"]), draws=50)
    for path in export(comparison, tmp_path, LAB):
        for one in json.loads(path.read_text("utf-8"))["evaluation_results"]:
            told = one["score_details"]["uncertainty"]
            expected = told["standard_deviation"] / np.sqrt(told["num_samples"])
            assert told["standard_error"]["value"] == pytest.approx(expected)


def test_the_method_is_in_the_generation_config(files):
    def config(method):
        return record(files, method)["evaluation_results"][0]["generation_config"]

    arguments = {name: config(name)["generation_args"] for name in NAMES}
    assert arguments["greedy"] == {"temperature": 0.0, "max_tokens": 64}
    assert arguments["temp-0.8"] == {"temperature": 0.8, "max_tokens": 64}
    assert arguments["nucleus-0.95"] == {"temperature": 1.0, "top_p": 0.95, "max_tokens": 64}
    details = config("embednoise-0.1")["additional_details"]
    assert json.loads(details["perturbation.sites"]) == {"embed": 0.1}
    assert (details["perturbation.positions"], details["samples_per_problem"]) == ("prompt", "20")
    assert json.loads(details["generation until"]) == ["\n\n"]
    assert json.loads(config("temp-0.8")["additional_details"]["seeds"]) == [0, 1]


def test_metrics_say_direction_and_range(files):
    found = record(files, "greedy")
    at_10, diverse, bleu, solutions, length = (
        result(found, name)["metric_config"]
        for name in ("pass@10", "distinct_2", "self_bleu", "unique_correct", "mean_tokens")
    )
    assert (at_10["metric_id"], at_10["metric_parameters"]) == ("pass_at_k", {"k": 10})
    assert (at_10["min_score"], at_10["max_score"], at_10["lower_is_better"]) == (0, 1, False)
    assert diverse["metric_id"] == "lm_eval_embednoise.distinct_2"
    assert bleu["lower_is_better"] and solutions["max_score"] == "Infinity"
    assert length["additional_details"] == {"direction": "neither is better"}


def test_source_and_model(files):
    found = record(files, "embednoise-0.1")
    assert found["source_metadata"]["source_organization_name"] == LAB
    model = found["model_info"]
    assert (model["name"], model["id"], model["developer"]) == ("mini", "org/mini", "org")
    assert model["inference_engine"] == {"name": "transformers", "version": "5.23.0"}
    told = model["additional_details"]
    assert (told["deployment_type"], told["model_availability"]) == (
        "self_deployed",
        "open_weights",
    )
    assert found["eval_library"]["additional_details"] == {"transformers": "5.23.0"}
    assert found["evaluation_timestamp"].startswith("2026-01-02T")


def test_the_same_comparison_gives_the_same_files_and_version_1_has_no_errors(comparison, tmp_path):
    first, again = (export(comparison, tmp_path / name, LAB) for name in "ab")
    assert [p.name for p in first] == [p.name for p in again]
    for path in export(version_1(comparison), tmp_path / "c", LAB):
        content = json.loads(path.read_text("utf-8"))
        jsonschema.Draft7Validator(SCHEMA).validate(content)
        told = content["evaluation_results"][0]["score_details"]["uncertainty"]
        assert "standard_error" not in told and "confidence_interval" in told
    assert (tmp_path / "c/data/minicode_diverse/Example Lab/mini").is_dir()


def test_verdicts_of_others_and_undefined_metrics_are_exported(tmp_path):
    for name in ("a", "b"):
        lines = [{"task_id": f"X/{i}", "passed": (i + (name == "a")) % 3 > 0} for i in range(14)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    runs = read_runs([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])
    paths = export(compare(runs, baseline="a", draws=50), tmp_path, LAB)
    for path in paths:
        content = json.loads(path.read_text("utf-8"))
        jsonschema.Draft7Validator(SCHEMA).validate(content)
        assert content["model_info"]["additional_details"]["deployment_type"] == "unknown"
        assert content["evaluation_results"][0]["generation_config"]["generation_args"] == {}


def test_the_command_writes_them_and_needs_a_name(folder, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    arguments = [str(folder), "--out", str(tmp_path / "c.json")]
    asked = [*arguments, "--every_eval_ever", str(tmp_path / "shared")]
    with pytest.raises(ResultError, match="needs --organization NAME"):
        command.run(parser.parse_args(asked))
    assert not (tmp_path / "c.json").exists()
    assert command.run(parser.parse_args([*asked, "--organization", LAB])) == 0
    assert "8 files for Every Eval Ever below" in capsys.readouterr().out
    assert len(list((tmp_path / "shared").rglob("*.json"))) == 8
