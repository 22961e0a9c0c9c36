"""Every problem's values in comparison.json, the runs they give back, and merging files."""

from __future__ import annotations

import argparse
import json
import logging
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lm_eval_embednoise.analysis import compare as command
from lm_eval_embednoise.analysis import schema, tables, vectors
from lm_eval_embednoise.analysis.comparison import compare
from lm_eval_embednoise.analysis.merge import merge
from lm_eval_embednoise.analysis.records import read_runs
from lm_eval_embednoise.analysis.runs import ResultError
from tests.support.synthetic import METHODS, write_run, write_study

DRAWS = 300
BASE = "temp-0.8"
STAR = "embednoise-0.1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A study of five methods, one of them with two seeds, all of them calibrated or not."""
    root = tmp_path_factory.mktemp("study")
    names = (BASE, "greedy", "temp-1.5", STAR, "embednoise-0.5")
    write_study(root, {name: METHODS[name] for name in names}, n=24)
    write_run(root / "again", BASE, n=24, replicate=1)
    for path in (root / STAR).rglob("results_*.json"):
        content = json.loads(path.read_text())
        content["config"]["embednoise"]["calibration"] = {"problems": ["a"], "dose": 0.1}
        path.write_text(json.dumps(content))
    return root


def part(folder, *names, **options):
    runs = [run for run in read_runs([folder]) if run.method in names]
    return compare(runs, draws=DRAWS, **options)


@pytest.fixture(scope="module")
def whole(folder):
    return compare(read_runs([folder]), candidate=STAR, draws=DRAWS)


@pytest.fixture(scope="module")
def ours(folder):
    return part(folder, BASE, STAR, candidate=STAR)


@pytest.fixture(scope="module")
def theirs(folder):
    return part(folder, BASE, "greedy", "temp-1.5", "embednoise-0.5")


def version_1(comparison):
    """The file as it was before it held every problem's values."""
    old = json.loads(json.dumps(comparison))
    del old["vectors"]
    for row in old["leaderboard"]:
        del row["environment"]
    for plane in old["planes"]:
        for key in ("n", "n_undefined", "left_out", "points"):
            del plane[key]
    return {**old, "schema": "lm-eval-embednoise/comparison/1"}


def relabelled(comparison, model):
    """Another group's file: the same content for another model."""
    return json.loads(json.dumps(comparison).replace('"minicoder"', f'"{model}"'))


def close(found, expected, where="", rel=2e-5):
    """Whether two JSON values are equal, numbers nearly."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            close(found[key], value, f"{where}.{key}", rel)
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            close(a, b, f"{where}[{i}]", rel)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=rel, abs=1e-6), where
    else:
        assert found == expected, where


# ---- every problem's values


def test_the_runs_come_back_from_the_file(folder, whole, tmp_path):
    schema.write(whole, tmp_path / "c.json")
    back = vectors.runs_of(schema.read(tmp_path / "c.json"), tmp_path / "c.json")
    expected = {(r.task, r.method, r.seed): r for r in read_runs([folder])}
    assert {(r.task, r.method, r.seed) for r in back} == expected.keys() and len(back) == 11
    for run in back:
        first = expected[run.task, run.method, run.seed]
        for name in ("model", "model_source", "labelled", "engine", "k", "settings", "sampling"):
            assert getattr(run, name) == getattr(first, name), name
        assert run.perturbation == first.perturbation and run.environment == first.environment
        assert run.hashes == first.hashes and run.clusters == first.clusters
        assert run.info.get("calibration") == first.info.get("calibration")
        assert run.metrics.keys() == first.metrics.keys() and run.domain == first.domain
        for name, values in first.metrics.items():
            exact = name.startswith(("pass@", "success", "accuracy"))
            np.testing.assert_allclose(run.metrics[name], values, 1e-15 if exact else 1e-5)


def test_vectors_are_compact_and_complete(whole, tmp_path):
    """Correct samples as integers, nothing that follows from them, undefined as null."""
    [code, maths] = whole["vectors"]
    assert [len(entry["runs"]) for entry in (code, maths)] == [6, 5]
    run = code["runs"][0]
    assert all(type(c) is int and 0 <= c <= 20 for c in run["correct"])
    assert not {"pass@1", "pass@10", "success@K"} & run["metrics"].keys()
    assert "accuracy" not in maths["runs"][0]["metrics"] and "maj@K" in maths["runs"][0]["metrics"]
    assert None in code["runs"][-1]["metrics"]["distinct_2_valid"]
    schema.write(whole, tmp_path / "c.json")
    lines = (tmp_path / "c.json").read_text(encoding="utf-8").splitlines()
    assert any(re.fullmatch(r' *"correct": \[\d+(,\d+){23}\],', line) for line in lines)


def test_a_list_within_a_text_is_written_as_it_is(whole, tmp_path):
    text = "[1, 2,\n 3]"
    row = {**whole["leaderboard"][0], "settings": {"description": text, "generation until": [text]}}
    content = {**whole, "leaderboard": [row, *whole["leaderboard"][1:]]}
    schema.write(content, tmp_path / "c.json")
    assert schema.read(tmp_path / "c.json") == content


def test_where_pass_at_1_is_no_share_of_k_it_stays(tmp_path):
    """A stock task's metric of that name need not be a mean over K samples."""
    odd = {"minicode_diverse/1": {"pass@1": 0.123}}
    for name in (BASE, "greedy"):
        write_run(tmp_path, name, n=6, changes=odd)
    found = compare(read_runs([tmp_path]), draws=DRAWS)
    schema.validate(found)
    run = found["vectors"][0]["runs"][0]
    assert run["correct"] is None and run["metrics"]["pass@1"][1] == 0.123
    [back, _] = vectors.runs_of(found, Path("c.json"))
    assert back.metrics["pass@1"][1] == 0.123 and "success@K" in back.metrics


def test_a_local_models_folder_is_not_published(tmp_path):
    path = write_run(tmp_path, BASE, n=4)
    write_run(tmp_path, "greedy", n=4)
    for file in tmp_path.rglob("results_*.json"):
        content = json.loads(file.read_text())
        content["config"]["embednoise"]["model"] = {"name": "/home/me/models/minicoder"}
        file.write_text(json.dumps(content))
    found = compare(read_runs([tmp_path]), draws=DRAWS)
    assert path.is_file() and "/home/me" not in json.dumps(found)


def test_the_documented_example_recomputes_a_paired_difference(whole, tmp_path, monkeypatch):
    text = (Path(__file__).parents[1] / "docs" / "comparison.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    schema.write(whole, tmp_path / "comparison.json")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(example, "docs/comparison.md", "exec"), names)
    [pair] = [
        p
        for p in whole["pairs"]
        if (p["task"], p["method"], p["baseline"]) == ("minicode_diverse", STAR, BASE)
    ]
    assert names["difference"] == pytest.approx(pair["metrics"]["pass@1"]["difference"]["value"])


# ---- merging


def test_merged_files_say_what_one_comparison_of_all_runs_says(whole, ours, theirs):
    """Pairs, planes, curves, verdict and floor: as if all runs lay in one folder."""
    merged = merge({"a/ours.json": ours, "theirs.json": theirs})
    schema.validate(json.loads(json.dumps(merged)))
    assert merged["merged"] == {"paired": ["ours.json", "theirs.json"], "separate": []}
    for key in ("leaderboard", "pairs", "planes", "verdicts", "curves", "floor", "analysis"):
        close(merged[key], whole[key], key)
    paired = {(p["method"], p["baseline"]) for p in merged["pairs"]}
    assert (STAR, "greedy") in paired  # each of another file
    assert merged["verdicts"][0]["candidate"] == STAR and merged["verdicts"][0]["deviations"]
    assert {s["method"] for s in merged["sources"]} == {s["method"] for s in whole["sources"]}


def test_merging_is_idempotent_and_the_order_of_files_changes_nothing(whole, ours, theirs):
    once = merge({"a": ours, "b": theirs})
    for files in (
        {"a": ours, "b": theirs, "c": ours},
        {"c": once, "a": ours},
        {"b": theirs, "a": ours},
    ):
        again = merge(files)
        for key in ("leaderboard", "pairs", "planes", "verdicts"):
            close(again[key], once[key], key)
    close(merge({"a": whole, "b": whole})["vectors"], whole["vectors"])


def test_the_same_run_with_other_values_is_said(ours, theirs, caplog):
    """Two groups ran the shared baseline with one seed: the earlier counts, and only once."""
    changed = json.loads(json.dumps(theirs))
    [run] = [r for r in changed["vectors"][0]["runs"] if (r["method"], r["seed"]) == (BASE, 0)]
    run["metrics"]["distinct_2"][3] = 0.999
    with caplog.at_level(logging.WARNING):
        merged = merge({"a": ours, "b": changed})
    assert "with other values of distinct_2" in caplog.text
    row = next(r for r in merged["leaderboard"] if r["method"] == BASE)
    assert row["seeds"] == [0, 1]


def test_a_candidate_of_one_model_is_judged_there(ours, theirs):
    merged = merge({"a": ours, "b": relabelled(theirs, "other")})
    assert [v["model"] for v in merged["verdicts"]] == ["minicoder"]
    assert {p["model"] for p in merged["pairs"]} == {"minicoder", "other"}
    close(merged["verdicts"], ours["verdicts"])


def test_files_of_version_1_keep_their_own_numbers(ours, theirs, tmp_path, capsys):
    old = version_1(theirs)
    schema.validate(old)
    merged = merge({"ours.json": ours, "old.json": old})
    schema.validate(json.loads(json.dumps(merged)))
    assert merged["merged"] == {"paired": ["ours.json"], "separate": ["old.json"]}
    assert (STAR, "greedy") not in {(p["method"], p["baseline"]) for p in merged["pairs"]}
    assert merged["vectors"] == ours["vectors"]
    assert merged["verdicts"] == ours["verdicts"]
    for plane in merged["planes"]:
        assert "n" not in plane and plane["hypervolume"] == {}
    pairs = {(p["task"], p["method"], p["baseline"]): p for p in merged["pairs"]}
    for pair in theirs["pairs"]:
        assert pairs[pair["task"], pair["method"], pair["baseline"]] == pair
    # Merged again it has values of some methods only: nothing of it may be lost.
    again = merge({"mixed.json": merged, "theirs.json": theirs})
    assert len(again["leaderboard"]) == len(merged["leaderboard"])
    assert again["merged"]["separate"] == ["mixed.json"]
    names = [str(tmp_path / name) for name in ("ours.json", "old.json")]
    for name, content in zip(names, (ours, old), strict=True):
        schema.write(content, Path(name))
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    out = ["--merge", "--out", str(tmp_path / "board.json")]
    assert command.run(parser.parse_args([*names, *out])) == 0
    shown = capsys.readouterr().out
    assert "problem by problem: ours.json. As their files have it" in shown
    assert "not paired: old.json." in shown and tables.terminal(merged) in shown
    with pytest.raises(ResultError, match="--merge takes baseline, candidate and protocol from"):
        command.run(parser.parse_args([*names, *out, "--candidate", STAR]))


@pytest.mark.parametrize("old", [False, True], ids=["paired", "version 1"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["protocol"].update(hash="x"), "protocol hash"),
        (lambda c: c["analysis"].update(baseline="greedy"), "analysis baseline"),
        (lambda c: c["analysis"].update(level=0.9), "analysis level 0.95 against 0.9"),
        (lambda c: rows(c, k=50), "minicode_diverse has k 20 against 50"),
        (lambda c: rows(c, n=5), "minicode_diverse has n 24 against 5"),
        (lambda c: rows(c, problems="x"), "minicode_diverse has problems '"),
        (lambda c: settings(c, "data version", 9), "minicode_diverse has data version 1 against 9"),
        (lambda c: settings(c, "num_fewshot", 2), "minicode_diverse has num_fewshot 0 against 2"),
        (
            lambda c: settings(c, "system instruction", "s"),
            "minicode_diverse has system instruction None against 's'",
        ),
        (
            lambda c: settings(c, "generation until", ["x"]),
            r"minicode_diverse has generation until \[.*\] against \['x'\]",
        ),
        (
            lambda c: settings(c, "generation max_gen_toks", 9),
            "minicode_diverse has generation max_gen_toks 64 against 9",
        ),
    ],
)
def test_what_is_not_comparable_is_refused_by_name(ours, theirs, change, said, old):
    for other in (theirs, relabelled(theirs, "another model")):
        changed = json.loads(json.dumps(other))
        change(changed)
        with pytest.raises(ResultError, match=f"a.json and b.json can't be merged: .*{said}"):
            merge({"a.json": ours, "b.json": version_1(changed) if old else changed})


@pytest.mark.parametrize(
    ("key", "value", "subject"),
    [
        ("chat template", "abc", "minicoder on minicode_diverse has chat template None against"),
        ("model dtype", "int8", None),
        ("model commit", "abc", None),
    ],
)
def test_what_belongs_to_a_model_is_checked_for_that_model_only(ours, theirs, key, value, subject):
    changed = json.loads(json.dumps(theirs))
    settings(changed, key, value)
    mine = json.loads(json.dumps(ours))
    if subject is None:
        settings(mine, key, "another")
        subject = f"minicoder has {key} 'another' against '{value}'"
    with pytest.raises(ResultError, match=re.escape(subject)):
        merge({"a.json": mine, "b.json": changed})
    assert merge({"a.json": mine, "b.json": relabelled(changed, "another model")})


def test_one_label_on_two_methods_is_refused(ours, theirs):
    for part, said in (("sampling", "temperature 0.8 against 0.9"), ("perturbation", "scope None")):
        changed = json.loads(json.dumps(theirs))
        for row in changed["leaderboard"]:
            if row["method"] == BASE:
                row[part] |= {"temperature": 0.9} if part == "sampling" else {"scope": "sequence"}
        with pytest.raises(ResultError, match=f"'temp-0.8' names different methods .*{said}"):
            merge({"a.json": ours, "b.json": changed})
        with pytest.raises(ResultError, match=f"both hold minicoder .*, with another {part}"):
            merge({"a.json": ours, "b.json": version_1(changed)})


def test_problems_that_one_file_lacks_are_left_out_if_asked(folder, ours):
    runs = [run for run in read_runs([folder]) if run.method in (BASE, "greedy")]
    fewer = compare([less(run) for run in runs], draws=DRAWS)
    with pytest.raises(ResultError, match="has n 24 against 20"):
        merge({"a": ours, "b": fewer})
    merged = merge({"a": ours, "b": fewer}, intersect=True)
    assert {row["n"] for row in merged["leaderboard"]} == {20}


def less(run):
    """The run without its first four problems."""
    return replace(
        run,
        problems=run.problems[4:],
        hashes=run.hashes[4:],
        clusters=run.clusters[4:],
        metrics={name: values[4:] for name, values in run.metrics.items()},
    )


def rows(comparison, **changes):
    for row in comparison["leaderboard"]:
        row.update(changes)


def settings(comparison, key, value):
    for row in comparison["leaderboard"]:
        row["settings"][key] = value
