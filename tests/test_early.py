"""What is found before a model is loaded, and what the harness's files hold afterwards."""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.model import LM
from lm_eval.api.registry import model_registry

from lm_eval_embednoise import cli, early, identical, plugin, written
from lm_eval_embednoise.minicoder import load_problems
from lm_eval_embednoise.study import run as study_command

TASK = "minicode_diverse_k10"


class Sampled(LM):
    """A stand-in for an API: texts are what `texts` gives for a problem and a sample's index."""

    loaded = 0

    def __init__(self, **_: Any) -> None:
        super().__init__()
        type(self).loaded += 1

    @staticmethod
    def text(problem: str, index: int) -> str:
        return "    return 1\n"

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        seen: dict[int, int] = {}
        texts = []
        for request in requests:
            index = seen[id(request)] = seen.get(id(request), -1) + 1
            texts.append(self.text(request.doc["task_id"], index))
        return texts

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The model; what the harness's command does to logging and argv is undone afterwards."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    loggers = [logging.getLogger(name) for name in (None, "lm_eval")]
    before = [(log, log.level, log.handlers[:], log.propagate) for log in loggers]
    plugin.register()
    if "sampled" not in model_registry:
        model_registry.register("sampled", target=Sampled)
    monkeypatch.setattr(Sampled, "loaded", 0)
    yield
    for logger, level, handlers, propagate in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
        logger.propagate = propagate


def run(*options: str) -> int:
    return cli.main(["run", "--model", "sampled", "--tasks", TASK, "--limit", "2", *options])


WRONG: list[tuple[list[str], str]] = [
    (["--gen_kwargs", "tempreature=0.8"], "did you mean 'temperature'"),
    (["--gen_kwargs", "do_sample=true,top_q=0.9"], "top_q=0.9 is not supported"),
    (["--use_cache", "cache"], "use --model_args store=DIR instead"),
    (["--model_args", "sigma=0.1,depth=99"], "depth=99 is beyond the last block"),
    (["--output_path", "/proc/none/x"], "--output_path /proc/none/x can't be written to"),
    (["--apply_chat_template"], "minicode_diverse_k10 is a prompt to be continued"),
    (["--tasks", "humaneval_diverse_k10", "--apply_chat_template"], "take humaneval_diverse_chat"),
    (["--tasks", "humaneval_diverse_chat"], "add --apply_chat_template, or take humaneval_diverse"),
]


@pytest.mark.parametrize(("options", "said"), WRONG, ids=lambda value: str(value)[:40])
def test_what_cannot_work_is_refused_before_weights_are_loaded(
    options: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from lm_eval_embednoise.models.hf_embednoise import HFEmbedNoise

    def loaded(self: Any, **_: Any) -> None:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr(HFEmbedNoise, "_create_model", loaded)
    given = [] if "--tasks" in options else ["--tasks", TASK]
    assert cli.main(["run", "--model", "hf-embednoise", *given, "--limit", "1", *options]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("model", early.STOCK)
def test_a_typo_is_found_under_the_stock_class_too(model: str) -> None:
    def check(tasks: str, **given: Any) -> None:
        early.check_run(model=model, model_args={}, gen_kwargs=given, tasks=[tasks])

    for name, meant in (
        ("tempreature", "temperature"),
        ("topp", "top_p"),
        ("do_smaple", "do_sample"),
    ):
        with pytest.raises(ValueError, match=f"{name}=1 is no .*did you mean '{meant}'"):
            check(TASK, **{name: 1})
    known = {"do_sample": True, "temperature": 0.8, "until": ["x"], "max_gen_toks": 5, "top_k": 3}
    check(TASK, **known, min_new_tokens=2, something_of_the_model=1)
    check("somebody_elses_task", tempreature=1)


def test_the_stock_command_finds_it_as_early() -> None:
    """In a fresh interpreter, with the hook in place, by the harness's own entry point."""
    options = ["--tasks", TASK, "--gen_kwargs", "tempreature=0.8", "--limit", "1"]
    code = (
        "import sys, lm_eval_embednoise; from lm_eval.__main__ import cli_evaluate;"
        f"sys.argv = ['lm_eval', '--model', 'hf-embednoise', *{options!r}];"
        "cli_evaluate()"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ}
    )
    assert told.returncode == 1
    assert "did you mean 'temperature'" in told.stderr.splitlines()[-1]
    assert "Initializing hf-embednoise" not in told.stderr


def test_an_unwritable_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"can't be written to \(.*file is a file\)"):
        early.check_writable("--out", tmp_path / "file" / "below")
    early.check_writable("--out", tmp_path / "new" / "folder")
    early.check_writable("--output_path", tmp_path / "file.json")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


STUDY = """
models: [{name: m%s}]
tasks: [%s]
methods: [greedy, %s]
k: 2
limit: 1
"""


@pytest.mark.parametrize(
    ("model", "task", "method", "said"),
    [
        (
            "",
            TASK,
            "{deep}",
            "method deep: depth=99 is beyond the last block; Qwen2ForCausalLM has",
        ),
        ("", TASK, "{typo}", "method typo: gen_kwargs: tempreature"),
        (", apply_chat_template: true", TASK, "temp-0.8", "is a prompt to be continued"),
        ("", "humaneval_diverse_chat", "temp-0.8", "add --apply_chat_template"),
        (", model_args: {sigam: 1}", TASK, "temp-0.8", "did you mean 'sigma'"),
    ],
)
def test_a_study_checks_all_of_its_methods_first(
    tmp_path: Path, model: str, task: str, method: str, said: str
) -> None:
    (tmp_path / "deep.yaml").write_text("model_args: {sigma: 0.1, depth: 99}")
    (tmp_path / "typo.yaml").write_text("gen_kwargs: {tempreature: 0.8}")
    named = method.format(deep=tmp_path / "deep.yaml", typo=tmp_path / "typo.yaml")
    (tmp_path / "s.yaml").write_text(STUDY % (model, task, named))
    parser = argparse.ArgumentParser()
    study_command.add_arguments(parser)
    options = [str(tmp_path / "s.yaml"), "--out", str(tmp_path / "out")]
    with pytest.raises(ValueError, match=said):
        study_command.run(parser.parse_args(options))
    assert not (tmp_path / "out").exists()


def test_results_and_samples_are_valid_json_with_records_as_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a text holds half a character, and a metric is undefined."""
    monkeypatch.setattr(Sampled, "text", staticmethod(lambda p, i: f"    return '\ud83d{i}'\n"))
    assert run("--output_path", str(tmp_path), "--log_samples") == 0
    [results], [samples] = (list(tmp_path.rglob(f"{n}_*.json*")) for n in ("results", "samples"))

    def refuse(name: str) -> Any:
        raise AssertionError(f"{name} is not JSON")

    content = json.loads(results.read_text(encoding="utf-8"), parse_constant=refuse)
    assert content["results"][TASK]["clean_perplexity,records"] is None
    lines = samples.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2
    for text in lines:
        line = json.loads(text, parse_constant=refuse)
        assert line["resps"][0][3] == "    return '\ud83d3'\n"  # the text itself, unchanged
        assert all(isinstance(record, dict) for record in line["filtered_resps"][0])
        assert line["filtered_resps"][0][3]["text"] == line["resps"][0][3]


def test_dumps_gives_the_same_values_back() -> None:
    import numpy as np

    value = {"a": ["\udfff x", "é\n"], "b": (float("nan"), np.float32("inf"), 1.5), "\ud800": None}
    text = written.dumps(value, ensure_ascii=False, default=float)
    text.encode("utf-8")
    assert json.loads(text) == {"a": ["\udfff x", "é\n"], "b": [None, None, 1.5], "\ud800": None}
    assert "é" in text


def results_of(tmp_path: Path, *options: str) -> dict[str, Any]:
    assert run("--output_path", str(tmp_path), *options) == 0
    [path] = tmp_path.rglob("results_*.json")
    return json.loads(path.read_text())["results"][TASK]


@pytest.mark.parametrize("logged", [["--log_samples"], []])
def test_equal_texts_under_sampling_are_said_to_be_so(
    tmp_path: Path, caplog: Any, logged: list[str]
) -> None:
    sampling = ["--gen_kwargs", "do_sample=true,temperature=0.8"]
    found = results_of(tmp_path, *sampling, *logged)
    assert found["identical_problems,records"] == 2
    assert "equal on 2 of 2 problems, though they are sampled (temperature 0.8)" in caplog.text


def test_differing_and_greedy_texts_are_not(
    tmp_path: Path, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    greedy = results_of(tmp_path / "greedy")
    first = load_problems("minicode")[0]["task_id"]
    assert "identical_problems,records" not in greedy and "are equal" not in caplog.text
    monkeypatch.setattr(
        Sampled,
        "text",
        staticmethod(lambda problem, i: f"    return {i if problem == first else 1}\n"),
    )
    found = results_of(tmp_path / "s", "--gen_kwargs", "do_sample=true,temperature=0.8")
    assert found["identical_problems,records"] == 1
    assert "though they are sampled" not in caplog.text


def test_missing_samples_and_single_ones_say_nothing() -> None:
    from lm_eval_embednoise import Generation

    gone = Generation("", finish_reason="missing")
    assert identical.count([["a"], ["a", gone], [gone, gone], ["a", "a", gone], ["a", "b"]]) == (
        *(1, 2),
    )
