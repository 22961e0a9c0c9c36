"""The packaged run, method and study files, and how `embednoise run` puts them together."""

from __future__ import annotations

import argparse
import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.config.evaluate_config import EvaluatorConfig
from transformers import AutoConfig, AutoModelForCausalLM

from lm_eval_embednoise import cli
from lm_eval_embednoise.engine.sampling import Sampling
from lm_eval_embednoise.models import arguments, gguf_file, loading
from lm_eval_embednoise.noise.perturbation import Perturbation
from lm_eval_embednoise.study import runfile, study_file
from lm_eval_embednoise.study.method import StudyError

CONFIGS = Path(str(resources.files("lm_eval_embednoise.model_configs")))
SHAPES = Path(__file__).parents[1] / "benchmarks" / "shapes"
MODELS = sorted(CONFIGS.glob("*.yaml"))
METHODS = sorted((CONFIGS / "methods").glob("*.yaml"))
STUDIES = sorted((CONFIGS / "studies").glob("*.yaml"))


@pytest.fixture
def everything_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with GPUs and every optional package: what is left is the arguments."""
    monkeypatch.setattr(loading, "need", lambda *args: None)
    monkeypatch.setattr(gguf_file, "find", lambda *args: None)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)


def test_every_file_is_of_a_kind_that_is_tested() -> None:
    known = {*MODELS, *METHODS, *STUDIES}
    assert set(CONFIGS.rglob("*.y*ml")) == known
    assert len(MODELS) >= 12
    assert len(METHODS) >= 20
    assert len(STUDIES) >= 3


@pytest.mark.usefixtures("everything_there")
@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_run_files_are_read_by_the_harness_and_served_by_the_class(path: Path) -> None:
    config = EvaluatorConfig.from_config(path)  # an unknown key is a TypeError
    assert config.model == "hf-embednoise"
    assert not config.gen_kwargs
    arguments.check_arguments({**config.model_args, "batch_size": config.batch_size})
    if "pretrained" in config.model_args:
        assert Path(config.model_args["pretrained"]).name.lower() in path.stem.replace(
            "-int8", ""
        ).replace("-fp16", "")
    assert f"--config {path.stem} --method " in path.read_text()


@pytest.mark.usefixtures("everything_there")
def test_the_papers_settings_are_in_the_files() -> None:
    for model in ("deepseek-coder-33b-instruct", "qwen2.5-coder-32b", "qwen2.5-coder-32b-instruct"):
        int8 = EvaluatorConfig.from_config(CONFIGS / f"{model}-int8.yaml")
        assert int8.model_args["quantization"] == "int8"
        assert int8.model_args["parallelize"] is True
        fp16 = EvaluatorConfig.from_config(CONFIGS / f"{model}-fp16.yaml")
        assert fp16.model_args["dtype"] == "float16"
        assert fp16.model_args["attn_implementation"] == "flash_attention_2"
        assert fp16.batch_size == "1"  # the bare number would mean auto, see create_from_arg_obj


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_method_files_are_read_by_the_harness_and_served_by_the_class(path: Path) -> None:
    config = EvaluatorConfig.from_config(path)
    assert config.model == "hf-embednoise"
    Perturbation.from_args(config.model_args)
    Sampling.from_gen_kwargs(config.gen_kwargs)
    arguments.check_arguments(config.model_args)


@pytest.mark.usefixtures("everything_there")
@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_study_files_name_what_is_there(path: Path) -> None:
    study = study_file.load(str(path))
    for model in study.models:
        assert model.model == "hf-embednoise"
        arguments.check_arguments(model.model_args)
    for method in study.methods:
        Perturbation.from_args(method.perturbation)
        Sampling.from_gen_kwargs(method.gen_kwargs)


def test_the_harness_replaces_a_files_model_arguments(tmp_path: Path) -> None:
    """Why `embednoise run` merges: the command line's mapping replaces the file's."""
    file = tmp_path / "run.yaml"
    file.write_text("model_args: {pretrained: x, dtype: float16}\ntasks: [t]\n")
    args = argparse.Namespace(config=str(file), model_args={"sigma": 0.1})
    assert EvaluatorConfig.from_cli(args).model_args == {"sigma": 0.1}


def run(monkeypatch: pytest.MonkeyPatch, *argv: str) -> argparse.Namespace:
    """The arguments with which `embednoise run` enters the harness."""
    import lm_eval._cli

    seen: list[argparse.Namespace] = []
    monkeypatch.setattr(lm_eval._cli.HarnessCLI, "execute", lambda self, args: seen.append(args))
    monkeypatch.setattr("lm_eval_embednoise.plugin.load_with_repeats", lambda k: None)
    monkeypatch.setattr("sys.argv", ["embednoise", "run", *argv])
    assert cli.main(["run", *argv]) == 0
    return seen[0]


@pytest.mark.usefixtures("everything_there")
def test_model_file_method_and_command_line_are_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    args = run(
        monkeypatch,
        *("--config", "qwen2.5-coder-7b", "--method", "temp-0.8", "--tasks", "minicode_diverse"),
        *("-K", "5", "--model_args", "sigma=0.2,dtype=float16", "--gen_kwargs", "top_p=0.9"),
    )
    config = EvaluatorConfig.from_cli(args)
    assert config.model == "hf-embednoise"
    assert config.model_args == {
        "pretrained": "Qwen/Qwen2.5-Coder-7B",
        "dtype": "float16",
        "sigma": 0.2,
        "method": "temp-0.8",
    }
    assert config.gen_kwargs == {"do_sample": True, "temperature": 0.8, "top_p": 0.9}
    assert config.batch_size == "auto"


def test_a_method_alone_runs_the_embedded_model(monkeypatch: pytest.MonkeyPatch) -> None:
    config = EvaluatorConfig.from_cli(run(monkeypatch, "--method", "embednoise-0.5", "-t", "x"))
    assert config.model == "hf-embednoise"
    assert "pretrained" not in config.model_args
    assert Perturbation.from_args(
        {k: v for k, v in config.model_args.items() if k != "method"}
    ).sites == {"embed": 0.5}


def test_methods_without_noise_serve_other_models(monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ("--model", "vllm", "--model_args", "pretrained=x", "-t", "x", "--method")
    config = EvaluatorConfig.from_cli(run(monkeypatch, *argv, "temp-0.8"))
    assert config.model_args == {"pretrained": "x"}
    assert config.gen_kwargs["temperature"] == 0.8
    args = argparse.Namespace(config=None, model="vllm", model_args={}, gen_kwargs={})
    with pytest.raises(ValueError, match="model 'vllm' can't be perturbed"):
        runfile.merge(args, "embednoise-0.1")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--method", "embednoise-0.2"), "no methods file 'embednoise-0.2'; did you mean"),
        (("--config", "qwen2.5-coder-8b"), "no run file 'qwen2.5-coder-8b'; did you mean"),
        (("--model_args", "sigm=0.1"), "did you mean 'sigma'"),
        (("--model_args", "quantization=int7"), "quantization='int7' is not known"),
        (("--gen_kwargs", "num_beams=4"), "num_beams=4 is not supported"),
        (("--gen_kwargs", "top_p=1.5"), "top_p=1.5 is not allowed"),
        (("--gen_kwargs", "temperature=0.8,do_sample=False"), "has no effect with do_sample=false"),
        (("--processes", "0"), "--processes 0 is not allowed"),
        (("--processes", "3", "--limit", "2"), "with --limit 2: every process needs a problem"),
    ],
)
def test_bad_input_is_one_line_before_tasks_and_model(
    argv: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    import lm_eval._cli

    monkeypatch.setattr(lm_eval._cli.HarnessCLI, "execute", lambda *a: pytest.fail("entered"))
    monkeypatch.setattr("sys.argv", ["embednoise"])
    assert cli.main(["run", "--tasks", "minicode_diverse", *argv]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert words in error
    assert error.startswith("embednoise: error:")


@pytest.mark.parametrize(
    ("shape", "parameters", "without_embeddings"),
    [  # as the model cards round them
        ("qwen2.5-coder-7b", 7.61e9, 6.53e9),
        ("qwen2.5-coder-32b", 32.5e9, 31.0e9),
        ("deepseek-coder-33b", 33e9, None),
    ],
)
def test_shapes_have_the_published_size(
    shape: str, parameters: float, without_embeddings: float | None
) -> None:
    config = AutoConfig.for_model(**json.loads((SHAPES / f"{shape}.json").read_text()))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    total = sum(p.numel() for p in model.parameters())
    assert total == pytest.approx(parameters, rel=0.012)
    if without_embeddings:
        tables = 2 * model.get_input_embeddings().weight.numel()
        assert total - tables == pytest.approx(without_embeddings, rel=0.012)


def test_every_study_model_error_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("- a\n")
    args = argparse.Namespace(config=str(tmp_path / "x.yaml"))
    with pytest.raises(StudyError, match=r"x\.yaml: a mapping is expected"):
        runfile.merge(args)
