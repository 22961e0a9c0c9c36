"""What a run would stumble over is found before weights are read, in the run's own words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from lm_eval_embednoise import cli
from lm_eval_embednoise.minicoder import MODEL_DIR
from lm_eval_embednoise.models.hf_embednoise import HFEmbedNoise
from lm_eval_embednoise.study.run import Runner

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
    ({"methods": ["cold.yaml"]}, [], "do_sample=true needs a temperature > 0"),
    ({"methods": ["typo.yaml"]}, [], "did you mean 'temperature'"),
    ({"methods": ["deep.yaml"]}, [], "depth=99 is beyond the last block; Qwen2ForCausalLM has 24"),
    ({"methods": ["token.yaml"]}, [], "dummy_token='two words' is"),
    ({"methods": ["slot.yaml"]}, [], "rsp_slot='before-assistant': this tokenizer has no chat"),
    ({"methods": ["long.yaml"]}, [], "rsp=5000 leave no room for a prompt in max_length=4096"),
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
