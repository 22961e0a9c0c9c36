"""What a run would stumble over is found before weights are read, in the run's own words."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from lm_eval_embednoise import cli
from lm_eval_embednoise.minicoder import MODEL_DIR
from lm_eval_embednoise.models.hf_embednoise import HFEmbedNoise
from lm_eval_embednoise.study import study_file
from lm_eval_embednoise.study.method import Method
from lm_eval_embednoise.study.plan import Cell, Model
from lm_eval_embednoise.study.rehearse import _check_methods, requests_of
from lm_eval_embednoise.study.run import Runner
from lm_eval_embednoise.study.session import Session, build, quiet_harness
from lm_eval_embednoise.study.tasks import Tasks

FILES = {
    "deep": {"model_args": {"sigma": 0.1, "depth": 99}},
    "typo": {"model_args": {"sigma": 0.1}, "gen_kwargs": {"tempreature": 0.8}},
    "cold": {"gen_kwargs": {"do_sample": True, "temperature": 0}},
    "token": {"model_args": {"positions": "dummy:2", "dummy_token": "two words"}},
    "slot": {"model_args": {"rsp": 2, "rsp_slot": "before-assistant"}},
    "long": {"model_args": {"rsp": 5000}},
}
PROBLEM = {
    "task_id": "HumanEval/0",
    "prompt": "def one():\n",
    "entry_point": "one",
    "canonical_solution": "    return 1\n",
    "test": "def check(f):\n    assert f() == 1\n",
}
MATH = {"unique_id": "a", "problem": "1 + 1?", "solution": r"\boxed{2}", "subject": "Algebra"}
WORDS = {"question": "1 + 1?", "answer": "#### 2"}
SMALL = {
    "models": [{"name": "m"}],
    "tasks": ["minicode_diverse"],
    "methods": ["greedy", "embednoise-0.1"],
    "baseline": "greedy",
    "k": 1,
    "limit": 1,
}
TWO = [{"name": "temp-0.8", "doses": [0.5]}, {"name": "embednoise-0.1", "doses": [0.1]}]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder: benchmarks of one problem, method files, models that lack a part."""
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    data = tmp_path / "data"
    rows = {"humaneval/HumanEval.jsonl": PROBLEM, "math500/test.jsonl": MATH}
    for place, row in {**rows, "gsm8k/test.jsonl": WORDS}.items():
        (data / place).parent.mkdir(parents=True)
        (data / place).write_text(json.dumps(row) + "\n")
    monkeypatch.setenv("EMBEDNOISE_DATA", str(data))
    (tmp_path / "file").write_text("")
    shutil.copytree(MODEL_DIR, tmp_path / "no-tokenizer")
    for path in (tmp_path / "no-tokenizer").glob("tokenizer*"):
        path.unlink()
    shutil.copytree(MODEL_DIR, tmp_path / "no-config")
    (tmp_path / "no-config" / "config.json").unlink()
    shutil.copytree(MODEL_DIR, tmp_path / "two-templates")
    settings = tmp_path / "two-templates" / "tokenizer_config.json"
    templates = [
        {"name": name, "template": f"{name}:{{{{ messages[-1]['content'] }}}}"}
        for name in ("default", "other")
    ]
    content = {**json.loads(settings.read_text()), "chat_template": templates}
    settings.write_text(json.dumps(content))
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], change: dict[str, Any], *options: str) -> str:
    """What `embednoise study` says as it refuses."""
    Path("s.yaml").write_text(yaml.safe_dump({**SMALL, **change}))
    capsys.readouterr()
    assert cli.main(["study", "s.yaml", "--out", "out", *options]) == 1
    return capsys.readouterr().err


def model(**arguments: Any) -> dict[str, Any]:
    return {"models": [{"name": "m", **arguments}]}


def chat(**arguments: Any) -> dict[str, Any]:
    return {**model(**arguments, apply_chat_template=True), "tasks": ["humaneval_diverse_chat"]}


MISTAKES: list[tuple[dict[str, Any], list[str], str]] = [
    ({"tasks": ["mbpp_diverse"]}, [], "holds no mbpp/sanitized-mbpp.json"),
    ({"tasks": ["minicode_divers"]}, [], "no task 'minicode_divers'; did you mean 'minicode_di"),
    ({"calibrate": {"split": "x", "families": TWO}}, [], "minicode_diverse has no split 'x'"),
    ({"calibrate": {"held_out": 999, "families": TWO}}, [], "held_out=999 leaves none to compare"),
    ({"calibrate": {"families": TWO}, "tasks": ["embednoise_mini"]}, [], "is a group: calibrate"),
    ({}, ["--gen_kwargs", "top_q=0.9"], "gen_kwargs: top_q=0.9 is not supported"),
    ({}, ["--gen_kwargs", "temperature=0.5"], "temperature=0.5 has no effect with do_sample=false"),
    ({}, ["--gen_kwargs", "max_tokens=5"], "are different limits of the same tokens"),
    ({"methods": ["greedy", "cold.yaml"]}, [], "do_sample=true needs a temperature > 0"),
    ({"methods": ["greedy", "typo.yaml"]}, [], "did you mean 'temperature'"),
    (
        {"methods": ["greedy", "deep.yaml"]},
        [],
        "depth=99 is beyond the last block; Qwen2ForCausalLM has 24",
    ),
    ({"methods": ["greedy", "token.yaml"]}, [], "dummy_token='two words' is"),
    (
        {"methods": ["greedy", "slot.yaml"]},
        [],
        "rsp_slot='before-assistant': this tokenizer has no chat",
    ),
    (
        {"methods": ["greedy", "long.yaml"]},
        [],
        "rsp=5000 leave no room for a prompt in max_length=4096",
    ),
    ({}, ["--model_args", "sigam=0.1"], "did you mean 'sigma'"),
    ({}, ["--model_args", "exact=true,compile=true"], "exact=true and compile=true"),
    ({}, ["--model_args", "peft=/nowhere"], "peft='/nowhere' is no folder"),
    ({}, ["--model_args", "store=file"], "store=file: this is a file"),
    ({}, ["--model_args", "store=data"], "store=data holds other files"),
    ({}, ["--model_args", "pretrained=./none"], "pretrained='./none' is no folder"),
    ({}, ["--model_args", "pretrained=no-config"], "is a folder without config.json"),
    ({}, ["--model_args", "pretrained=no-tokenizer"], "the tokenizer of 'no-tokenizer'"),
    ({}, ["--model_args", "template_date=yesterday"], "template_date='yesterday'"),
    ({}, ["--batch_size", "none"], "batch_size='none' is not allowed"),
    (model(model="hf-embednois"), [], "hf-embednois"),
    (
        model(model="hf", model_args={"pretrained": str(MODEL_DIR)}, device="cpu"),
        [],
        "model 'hf' can't be perturbed, so it can't run embednoise-0.1",
    ),
    (chat(), [], "Cannot use chat template functions"),
    (
        chat(model_args={"pretrained": "two-templates"}),
        ["--apply_chat_template", "third"],
        "The specified chat template 'third' is not available",
    ),
    (chat(), ["--apply_chat_template", "third"], "this tokenizer has no names for its own"),
    (
        {"tasks": ["gsm8k_diverse_chat"]},
        ["--apply_chat_template", "--num_fewshot", "2"],
        "is asked without examples",
    ),
    ({"tasks": ["gsm8k_diverse"]}, ["--num_fewshot", "9"], "gsm8k_diverse has 4 examples"),
]


@pytest.mark.parametrize(("change", "options", "said"), MISTAKES, ids=[m[2] for m in MISTAKES])
def test_a_dry_run_says_what_the_run_would_say(
    change: dict[str, Any],
    options: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without the rehearsal the run ends with the same mistake, after loading the model."""
    with monkeypatch.context() as patch:

        def loaded(self: Any, **_: Any) -> None:
            raise AssertionError("weights are loaded")

        patch.setattr(HFEmbedNoise, "_create_model", loaded)
        dry = told(capsys, change, *options, "--dry-run")
        assert said in dry
        assert dry.count("\n") == 1
        assert told(capsys, change, *options) == dry
        assert not Path("out").exists()
    monkeypatch.setattr(Runner, "rehearse", lambda self, processes: [])
    late = told(capsys, change, *options).rpartition("embednoise: error: ")[2]
    assert dry.endswith(late)


def shown(capsys: pytest.CaptureFixture[str], change: dict[str, Any], *options: str) -> str:
    """What a dry run without a probe prints."""
    Path("s.yaml").write_text(yaml.safe_dump({**SMALL, "k": 10, **change}))
    capsys.readouterr()
    assert cli.main(["study", "s.yaml", "--out", "out", "--dry-run", "--probe", "0", *options]) == 0
    assert not Path("out").exists()
    return capsys.readouterr().out


def test_what_is_worth_knowing_is_said_before_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, {}).count("\n") == 2
    assert "limit=999: minicode_diverse has 164 problems here" in shown(capsys, {"limit": 999})
    few = shown(capsys, {"tasks": ["minicode_diverse_k1"], "k": None})
    assert "K = 1: pass@10 needs ten samples" in few
    short = ["--model_args", "max_length=45"]
    said = shown(capsys, {"methods": ["greedy", "embednoise-0.1", "rsp-16"]}, *short)
    lines = [line.strip() for line in said.splitlines()[2:]]
    assert lines == [
        "minicode_diverse (greedy, embednoise-0.1): 1 of 1 prompts leave fewer than "
        "max_gen_toks=128 of max_length=45; answers may be cut there",
        "minicode_diverse (rsp-16): 1 of 1 prompts leave no room in max_length=45; their samples "
        "count as failures",
    ]


def test_the_prompts_counted_as_too_long_are_those_that_fail() -> None:
    """Room is counted from the very prompts that generation gets."""
    model = Model("m", model_args={"max_length": 45})
    [task] = (replace(task, limit=12, k=1) for task in study_file.load("quick").tasks[:1])
    methods = [Method.load(name) for name in ("greedy", "rsp-16", "prefix-10", "dummy-8")]
    [item] = Tasks(model, (task,)).load(task)
    lm = build(model, weights=False)
    rooms = _check_methods(lm, task, methods, model, requests_of(model, lm, item, 12))
    told = {name: room.too_long for room, names in rooms.items() for name in names}
    assert 0 < told["greedy"] < told["rsp-16"] <= 12
    with quiet_harness():
        session = Session(model, (task,))
        for method in methods:
            results = session.evaluate(Cell(model, task, method, 0), "p")
            assert results is not None
            [rows] = results["samples"].values()
            failed = sum(
                record["finish_reason"] == "prompt_too_long"
                for row in rows
                for record in row["filtered_resps"][0]
            )
            assert told[method.name] == failed


def test_a_baseline_that_is_not_run_is_missed_before_and_not_after(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = told(capsys, {"baseline": None}, "--dry-run")
    assert "the baseline 'temp-0.8' is none of the methods that are compared: add it, or" in said
    assert told(capsys, {"baseline": None}) == said


def test_every_process_needs_a_problem(capsys: pytest.CaptureFixture[str]) -> None:
    said = told(capsys, {}, "--processes", "3")
    assert "--processes 3: minicode_diverse has 1 problems here, and every process needs" in said
    assert told(capsys, {}, "--processes", "3", "--dry-run") == said


def test_a_missing_package_is_found_before_the_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    said = told(capsys, {"tasks": ["math500_diverse"]}, "--dry-run")
    assert "pip install 'lm-eval-embednoise[math]'" in said


def test_a_named_template_is_the_one_that_is_applied(folder: Path) -> None:
    arguments = {"pretrained": str(folder / "two-templates")}
    for name, begins in ((True, "default:hi"), ("other", "other:hi")):
        for weights in (True, False):
            lm = build(Model("m", model_args=arguments, apply_chat_template=name), weights=weights)
            assert lm.apply_chat_template([{"role": "user", "content": "hi"}]) == begins


def test_calibrate_rehearses_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def loaded(self: Any, **_: Any) -> None:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr(HFEmbedNoise, "_create_model", loaded)
    for options, said in (
        (["--task", "mbpp_diverse", "--held_out", "3"], "holds no mbpp/sanitized-mbpp.json"),
        (["--task", "humaneval_diverse_chat", "--held_out", "1"], "add --apply_chat_template"),
        (["--gen_kwargs", "top_q=1"], "did you mean 'top_p'"),
        (["--task", "embednoise_mini"], "is a group: calibrate each of its tasks"),
    ):
        assert cli.main(["calibrate", "--out", "out", *options]) == 1
        assert said in capsys.readouterr().err
