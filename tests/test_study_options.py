"""What a study's models and its command line say: fingerprints, overrides, and what is asked."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import pytest

from lm_eval_embednoise.study import calibrate, options, study_file
from lm_eval_embednoise.study import run as study_command
from lm_eval_embednoise.study.method import Method, StudyError, parse_arguments
from lm_eval_embednoise.study.plan import Cell, Model, Study, Task, fingerprint

PLAIN = Model("m", model_args={"pretrained": "a/b", "dtype": "bfloat16"}, apply_chat_template=True)
DRAWN = Method("temp-0.8", {"sigma": 0}, {"do_sample": True, "temperature": 0.8})


def cell(model: Model) -> Cell:
    task = Task("humaneval_diverse_chat", 20, 10, held_out=30, part="comparison")
    return Cell(model, task, DRAWN, seed=1)


def overridden(name: str, *given: str) -> Study:
    parser = argparse.ArgumentParser()
    study_command.add_arguments(parser)
    return options.overridden(study_file.load(name), parser.parse_args([name, *given]))


def test_cells_of_earlier_studies_are_found_again() -> None:
    """The digits are those that version 0.2.0 wrote before models had more keys."""
    assert fingerprint(cell(PLAIN).settings("f" * 16)) == "c1df516da40d9f25"
    known = {
        (one.method.name, one.task.name, one.seed): fingerprint(one.settings("0123"))
        for one in study_file.load("mini").cells()
    }
    assert known["temp-0.8", "minicode_diverse", 1] == "df889fe5d54ad87e"
    assert known["embednoise-layers-early", "minimath_diverse", 0] == "a60e22a33a1149f6"


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"gen_kwargs": {"max_gen_toks": 9}}, False),
        ({"gen_kwargs": {"temperature": 0.8}}, True),  # what the method says anyway
        ({"apply_chat_template": "other"}, False),
        ({"system_instruction": "Be brief."}, False),
        ({"system_instruction": ""}, False),
        ({"fewshot_as_multiturn": False}, False),
        ({"num_fewshot": 0}, False),
        ({"batch_size": 3, "max_batch_size": 4, "device": "cpu"}, True),
    ],
)
def test_a_cell_is_another_if_its_samples_may_be(change: dict[str, Any], same: bool) -> None:
    before, after = cell(PLAIN), cell(replace(PLAIN, **change))
    one, other = (fingerprint(c.settings("p")) for c in (before, after))
    assert (one == other) == same


def test_the_command_line_says_what_run_says() -> None:
    (model,) = overridden(
        "quick",
        *("--gen_kwargs", 'max_gen_toks=64,until=["a,b","c"]'),
        *("--apply_chat_template", "--system_instruction", "Be brief."),
        *("--fewshot_as_multiturn", "false", "--num_fewshot", "2"),
        *("--batch_size", "auto", "--max_batch_size", "8"),
    ).models
    assert model == Model(
        "minicoder",
        batch_size="auto",
        max_batch_size=8,
        gen_kwargs={"max_gen_toks": 64, "until": ["a,b", "c"]},
        apply_chat_template=True,
        system_instruction="Be brief.",
        fewshot_as_multiturn=False,
        num_fewshot=2,
    )
    named = overridden("quick", "--apply_chat_template", "other", "--fewshot_as_multiturn")
    assert (named.models[0].apply_chat_template, named.models[0].multiturn) == ("other", True)


def test_methods_are_the_studys_own_packaged_ones_files_or_families(tmp_path: Any) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("model_args: {sigma: 0.7}")
    found = overridden("quick", "--methods", f"temp-0.8,{mine},min-p-0.1,embednoise-0.1=0.2:0.4")
    assert [method.name for method in found.methods] == [
        *("temp-0.8", "mine", "min-p-0.1", "embednoise-0.2", "embednoise-0.4")
    ]
    assert found.methods[-1].perturbation["sigma"] == 0.4
    assert (found.baseline, found.candidate) == ("temp-0.8", None)  # the other isn't there
    roles = ("--baseline", "greedy", "--candidate", "temp-1.5")
    assert overridden("quick", *roles).candidate == "temp-1.5"
    with pytest.raises(StudyError, match="the baseline 'temp-9' is none of its methods"):
        overridden("quick", "--baseline", "temp-9")
    with pytest.raises(StudyError, match=r"did you mean 'temp-0\.8'"):
        overridden("quick", "--methods", "temp-0.7")


def test_without_calibrated_methods_nothing_is_calibrated() -> None:
    doses = overridden("mini", "--methods", "greedy,temp-0.4")  # one of the study's own doses
    assert doses.calibrate is None
    assert doses.methods[1].gen_kwargs["temperature"] == 0.4
    star = overridden("mini", "--methods", "temp-0.8,embednoise-star")
    assert star.calibrate == study_file.load("mini").calibrate
    paper = overridden("paper", "--methods", "greedy", "--tasks", "mbpp_diverse")
    assert (paper.tasks[0].held_out, paper.tasks[0].part) == (50, "comparison")


def test_seeds_are_those_of_every_method() -> None:
    found = overridden("mini", "--methods", "temp-0.8,greedy", "--seeds", "3,4")
    assert [(c.method.name, c.seed) for c in found.cells()[:4]] == [
        *(("temp-0.8", 3), ("temp-0.8", 4), ("greedy", 3), ("greedy", 4))
    ]
    assert overridden("quick", "--seed", "7").seeds == (7,)
    with pytest.raises(StudyError, match="different whole numbers"):
        overridden("quick", "--seeds", "1,1")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--gen_kwargs", "temperature"], "write NAME=VALUE"),
        (["--fewshot_as_multiturn", "perhaps"], "write true or false"),
        (["--fewshot_as_multiturn"], "needs apply_chat_template"),
        (["--num_fewshot", "-1"], "num_fewshot=-1 must be ≥ 0"),
        (["--gen_kwargs", "do_sample=true,temperature=1"], "greedy and temp-0.8 are the same"),
    ],
)
def test_bad_options_are_one_line(given: list[str], said: str) -> None:
    with pytest.raises(StudyError, match=said) as error:
        overridden("quick", *given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", 1),
        ("model", ["hf"]),
        ("model_args", [1]),
        ("batch_size", 1.5),
        ("max_batch_size", "4"),
        ("device", True),
        ("gen_kwargs", 3),
        ("apply_chat_template", 1),
        ("system_instruction", {}),
        ("fewshot_as_multiturn", "yes"),
        ("num_fewshot", True),
    ],
)
def test_a_models_keys_have_their_kinds(key: str, value: Any) -> None:
    with pytest.raises(StudyError, match=f"{key}=.* must be "):
        replace(PLAIN, **{key: value})


def test_doses_that_become_one_are_not_calibrated() -> None:
    study = study_file.load("mini")
    models = tuple(replace(m, gen_kwargs={"temperature": 1.0}) for m in study.models)
    with pytest.raises(StudyError, match="are the same; leave out what methods differ in"):
        replace(study, methods=study.methods[:2], models=models, baseline=None, candidate=None)


def test_arguments_are_split_outside_of_lists() -> None:
    assert parse_arguments("--x", "a=1,b=[2,3],c=d") == {"a": 1, "b": [2, 3], "c": "d"}


def test_calibration_goes_on_only_as_it_was_asked() -> None:
    study = study_file.load("mini")
    assert study.calibrate is not None
    one, other = (
        calibrate._settings(
            study.calibrate.task(study.tasks[0]),
            study.calibrate.families,
            model,
            calibrate.Protocol.load(),
        )
        for model in (Model("m"), Model("m", system_instruction="Be brief."))
    )
    assert {key for key in one if one[key] != other[key]} == {"system_instruction"}
    # A record of an earlier version lacks the keys: `get` gives None, as for what isn't set.
    later = ("gen_kwargs", "apply_chat_template", *("system_instruction", "num_fewshot"))
    assert all(one[key] is None for key in (*later, "fewshot_as_multiturn"))
