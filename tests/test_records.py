"""The reader of result folders: what it reads, how it pairs, what it refuses and how it says so."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from lm_eval_embednoise.analysis.records import (
    align,
    combine,
    differences,
    read_results,
    read_runs,
    samples,
)
from lm_eval_embednoise.analysis.runs import ResultError
from tests.support.synthetic import METHODS, Method, write_run

if TYPE_CHECKING:
    from pathlib import Path


def one(path: Path):
    [run] = read_results(path)
    return run


def test_a_run_carries_settings_problems_and_metrics(tmp_path):
    run = one(write_run(tmp_path, "embednoise-0.1", n=7, k=20, families=3, protocol="abc"))
    assert (run.model, run.method, run.task) == ("minicoder", "embednoise-0.1", "minicode_diverse")
    assert (run.n, run.k, run.domain, run.protocol) == (7, 20, "code", "abc")
    assert run.problems[2] == "minicode_diverse/2"
    assert run.clusters is not None
    assert len(set(run.clusters)) == 3
    lines = [json.loads(line) for line in run.samples_path.read_text().splitlines()]
    np.testing.assert_array_equal(run.metrics["pass@1"], [line["pass@1"] for line in lines])


def test_nan_is_read_as_nan(tmp_path):
    changes = {"minicode_diverse/1": {"distinct_2_valid": float("nan")}}
    run = one(write_run(tmp_path, "temp-0.8", n=3, changes=changes))
    assert np.isnan(run.metrics["distinct_2_valid"][1])


def test_domain_follows_the_metrics(tmp_path):
    assert one(write_run(tmp_path, "greedy", task="minimath_diverse")).domain == "maths"


def test_folders_are_searched_and_labels_rename(tmp_path):
    write_run(tmp_path, "greedy", n=2)
    write_run(tmp_path, "temp-0.8", n=2)
    assert {run.method for run in read_runs([tmp_path])} == {"greedy", "temp-0.8"}
    [run] = read_runs([f"mine={tmp_path / 'greedy'}"])
    assert run.method == "mine"


def test_a_run_without_a_label_is_named_by_its_settings(tmp_path):
    for name in METHODS:
        path = write_run(tmp_path, name, n=2)
        content = json.loads(path.read_text())
        del content["config"]["embednoise"]["method"]
        path.write_text(json.dumps(content))
        assert one(path).method == name
    content["config"]["embednoise"]["perturbation"] = {"sites": {}, "rsp": 16, "prefix": "random:9"}
    path.write_text(json.dumps(content))
    assert one(path).method.startswith("rsp-16+prefix-9")
    assert one(path).noisy


def test_old_names_of_metrics_are_read_for_our_tasks_only(tmp_path):
    path = write_run(tmp_path, "greedy", n=3)
    expected = one(path).metrics["clean_perplexity"]
    [file] = path.parent.glob("samples_*.jsonl")
    old = file.read_text().replace('"clean_perplexity"', '"perplexity"')
    file.write_text(old)
    assert '"perplexity": ' in old
    metrics = one(path).metrics
    np.testing.assert_array_equal(metrics["clean_perplexity"], expected)
    assert "perplexity" not in metrics
    file.write_text(old.replace('"filter": "records"', '"filter": "none"'))  # a stock task's own
    np.testing.assert_array_equal(one(path).metrics["perplexity"], expected)


def test_records_are_read_as_dict_json_or_python(tmp_path):
    record = {"text": "a", "passed": True, "rho": None}
    forms = [record, json.dumps(record), str(record), "plain text"]
    changes = {"minicode_diverse/0": {"filtered_resps": [forms]}}
    run = one(write_run(tmp_path, "greedy", n=1, changes=changes))
    [(problem, doc, found)] = samples(run)
    assert problem == doc["task_id"]
    assert found == [record, record, record, {"text": "plain text"}]


def test_pairs_are_matched_by_problem_not_position(tmp_path):
    a = one(write_run(tmp_path, "greedy", n=5))
    path = write_run(tmp_path, "temp-0.8", n=5)
    expected = one(path).metrics["pass@1"]
    [file] = path.parent.glob("samples_*.jsonl")
    file.write_text("".join(line + "\n" for line in reversed(file.read_text().splitlines())))
    shuffled = one(path)
    assert shuffled.problems != a.problems
    aligned = align([a, shuffled])[1]
    assert aligned.problems == a.problems
    np.testing.assert_array_equal(aligned.metrics["pass@1"], expected)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"k": 10}, "K 20 against 10 samples"),
        ({"n": 4}, "1 problems only in greedy"),
        ({"version": 2}, "data version 1 against 2"),
        ({"task": "minimath_diverse"}, "task minicode_diverse against minimath_diverse"),
        ({"changes": {"minicode_diverse/2": {"doc_hash": "x"}}}, "1 problems whose documents diff"),
    ],
)
def test_what_differs_is_named(tmp_path, settings, said):
    a = one(write_run(tmp_path / "a", "greedy", n=5))
    b = one(write_run(tmp_path / "b", "temp-0.8", **{"n": 5, **settings}))
    assert any(said in text for text in differences(a, b))
    with pytest.raises(ResultError, match="not comparable"):
        align([a, b])


def test_equal_settings_have_no_differences(tmp_path):
    runs = [one(write_run(tmp_path, name, n=3)) for name in METHODS]
    assert not any(differences(runs[0], run) for run in runs)


def test_replicates_are_averaged_per_problem(tmp_path):
    runs = [one(write_run(tmp_path / str(i), "temp-0.8", n=4, replicate=i)) for i in range(2)]
    mean = combine(runs).metrics["pass@1"]
    np.testing.assert_allclose(mean, (runs[0].metrics["pass@1"] + runs[1].metrics["pass@1"]) / 2)


def test_a_truncated_samples_file_is_named_with_its_line(tmp_path):
    path = write_run(tmp_path, "greedy", n=3)
    [file] = path.parent.glob("samples_*.jsonl")
    text = file.read_text()
    file.write_text(text[:-20])
    with pytest.raises(ResultError, match=r"line 3 is damaged or cut off .*run this method again"):
        read_results(path)
    file.write_text("".join(line + "\n" for line in text.splitlines()[:2]))
    with pytest.raises(ResultError, match="holds 2 of 3 problems"):
        read_results(path)
    file.unlink()
    with pytest.raises(ResultError, match="--log_samples"):
        read_results(path)


def test_a_repeated_problem_is_refused(tmp_path):
    path = write_run(tmp_path, "greedy", n=3, changes={"minicode_diverse/2": {"doc_hash": "same"}})
    [file] = path.parent.glob("samples_*.jsonl")
    first = file.read_text().splitlines()[0]
    file.write_text(file.read_text() + first + "\n")
    with pytest.raises(ResultError, match="appears twice"):
        read_results(path)


def test_other_bad_input_is_one_line(tmp_path):
    with pytest.raises(ResultError, match="no results_"):
        read_runs([tmp_path])
    broken = tmp_path / "results_x.json"
    broken.write_text('{"results": {')
    with pytest.raises(ResultError, match="damaged or cut off") as error:
        read_runs([broken])
    assert "\n" not in str(error.value)
    broken.write_text("{}")
    with pytest.raises(ResultError, match="not a results file"):
        read_runs([broken])


def test_samples_of_some_problems_are_those_of_all(tmp_path):
    run = one(write_run(tmp_path, "temp-0.8", n=5, k=3))
    wanted = set(run.problems[1::2])
    everything = [item for item in samples(run) if item[0] in wanted]
    assert list(samples(run, wanted)) == everything != []


def test_several_filters_keep_their_metrics_apart(tmp_path):
    path = write_run(tmp_path, "greedy", Method(), n=1)
    [file] = path.parent.glob("samples_*.jsonl")
    line = json.loads(file.read_text())
    lines = [{**line, "filter": name, "pass@1": v} for name, v in (("strict", 0.0), ("loose", 1.0))]
    file.write_text("".join(json.dumps(item) + "\n" for item in lines))
    run = one(path)
    assert run.metrics["pass@1,strict"] == [0.0]
    assert run.metrics["pass@1,loose"] == [1.0]
    assert len(list(samples(run))) == 1
