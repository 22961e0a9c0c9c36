"""Perturbation and Sampling: what is accepted, and what the refusals say."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_eval_embednoise.checks import integer
from lm_eval_embednoise.engine.sampling import Sampling
from lm_eval_embednoise.noise import streams
from lm_eval_embednoise.noise.perturbation import Perturbation, Positions, parse_depth


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"sigma": -0.1}, ["sigma", "-0.1", "≥ 0"]),
        ({"sigma": float("nan")}, ["sigma", "nan", "finite"]),
        ({"sigma": "much"}, ["sigma", "'much'", "not a number"]),
        ({"sigma": True}, ["sigma", "True", "not a number"]),
        ({"sigma": 1, "sigma_unit": "relativ"}, ["'relativ'", "did you mean 'relative'", "norm"]),
        ({"sigma": 1, "scope": "row"}, ["scope", "'row'", "token", "sequence"]),
        ({"sigma": 1, "depth": "five"}, ["depth", "'five'", "embed"]),
        ({"sigma": 1, "depth": -1}, ["depth", "-1", "k ≥ 0"]),
        ({"sigma": 1, "depth": "5+5"}, ["depth", "5+5", "twice"]),
        ({"sigma": 1, "depth": {"embed": 0.1}}, ["sigma=1", "contradicts"]),
        ({"depth": {"embed+5": 0.1}}, ["'embed+5'", "one site"]),
        ({"depth": {"5": 0.1, "block.5": 0.1}}, ["'block.5'", "once"]),
        ({"depth": {"5": "much"}}, ["depth: 5", "'much'", "not a number"]),
        ({"depth": ["embed", "x"]}, ["is not a site", "embed+5", "mapping"]),
        ({"sigma": 1, "positions": "first:0"}, ["first:0", "≥ 1"]),
        ({"sigma": 1, "positions": "first"}, ["'first'", "first:N"]),
        ({"sigma": 1, "positions": "promt"}, ["'promt'", "did you mean 'prompt'"]),
        ({"sigma": 1, "schedule": "linear", "anneal_tokens": 5}, ["linear", "positions='prompt'"]),
        ({"sigma": 1, "positions": "all", "schedule": "linear"}, ["linear", "anneal_tokens"]),
        ({"sigma": 1, "anneal_tokens": 5}, ["anneal_tokens", "schedule"]),
        (
            {
                "depth": {"5": 1},
                "positions": "all",
                "schedule": "step",
                "anneal_tokens": 5,
                "sigma_end": 0.1,
            },
            ["sigma_end=0.1", "mapping", "left out"],
        ),
        ({"sigma": 1, "positions": "dummy"}, ["'dummy'", "dummy:N"]),
        ({"sigma": 1, "positions": "dumy:3"}, ["did you mean 'dummy'"]),
        ({"sigma": 1, "positions": "dummy:0"}, ["dummy:0", "≥ 1"]),
        ({"sigma": 1, "dummy_token": "pad"}, ["dummy_token='pad'", "positions=dummy:N"]),
        (
            {"sigma": 1, "positions": "dummy:2", "schedule": "step", "anneal_tokens": 1},
            ["step", "positions='dummy:2'", "all or generated"],
        ),
        ({"rsp": -1}, ["rsp=-1", "≥ 0"]),
        ({"rsp": 2.5}, ["rsp=2.5", "whole number"]),
        ({"rsp": True}, ["rsp=True", "not a number"]),
        ({"rsp": 4, "rsp_slot": "after-prompts"}, ["did you mean 'after-prompt'", "after-bos"]),
        ({"rsp": 4, "rsp_fit": "isotropc"}, ["did you mean 'isotropic'", "per-dimension"]),
        ({"rsp": 4, "rsp_scale": -1}, ["rsp_scale=-1", "≥ 0"]),
        ({"rsp_slot": "after-bos"}, ["rsp_slot='after-bos'", "needs rsp=N"]),
        ({"rsp_scale": 2}, ["rsp_scale=2", "needs rsp=N"]),
        ({"draws": 1}, ["draws=1", "nothing is drawn without sigma, rsp or prefix"]),
        ({"sigma": 0.1, "draws": -1}, ["draws=-1", "≥ 0"]),
        ({"prefix": "seed:5"}, ["prefix='seed:5'", "random:N"]),
        ({"prefix": "random"}, ["prefix='random'", "random:N"]),
        ({"prefix": "random:0"}, ["random:0", "≥ 1"]),
        ({"sigma": 1, "seed": 1.5}, ["seed", "1.5", "whole number"]),
        ({"seed": 2.0**60}, ["seed=1.152921504606847e+18", "2**53", "in digits"]),
        ({"seed": 10**400}, ["seed=1000", "finite number"]),
        ({"seed": "1e400"}, ["seed='1e400'", "finite number"]),
        (
            {"sigma": 0, "positions": "all", "schedule": "linear", "sigma_end": 0.5}
            | {"anneal_tokens": 5},
            [
                "sigma=0 and sigma_end=0.5",
                "can't begin at 0",
                "sigma=0.0005",
                "leave sigma_end out",
            ],
        ),
        (
            {"sigma_end": 0.5, "positions": "all", "schedule": "step", "anneal_tokens": 5},
            ["sigma=0 and sigma_end=0.5"],
        ),
        ({"depth": 5}, ["depth=5", "no sigma is given", "sigma=0 for the control"]),
        ({"scope": "sequence", "rsp": 2}, ["scope='sequence'", "no sigma is given"]),
        ({"positions": "generated"}, ["positions='generated'", "no sigma is given"]),
        ({"positions": "dummy:2", "sigma_unit": "norm"}, ["sigma_unit='norm'", "leave sigma_unit"]),
        (
            {"positions": "all", "schedule": "step", "anneal_tokens": 5},
            ["positions='all'", "no sigma is given"],
        ),
        (
            {"sigma": 1, "sigma_unit": "absolute", "sigma_reference": "hidden"},
            ["sigma_reference='hidden'", "no effect", "sigma_unit='absolute'"],
        ),
        ({"sigm": 1}, ["'sigm'", "did you mean 'sigma'"]),
    ],
)
def test_refusals_name_the_value_and_what_is_allowed(args: dict, words: list[str]) -> None:
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        Perturbation.from_args(args)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("positions", ["all", "generated:3"])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "exponential", "step"])
def test_sigma_zero_stays_the_control_of_every_method(positions: str, schedule: str) -> None:
    """A sweep over sigma begins at 0, whatever else the method says."""
    method = {"depth": 5, "scope": "sequence", "sigma_unit": "norm", "sigma_reference": "hidden"}
    method |= {"positions": positions, "schedule": schedule}
    method |= {} if schedule == "constant" else {"anneal_tokens": 9}
    assert Perturbation.from_args({**method, "sigma": 0}).plain
    assert Perturbation.from_args({"depth": {"5": 0}, "positions": positions}).plain
    assert Perturbation.from_args({"positions": "dummy:3"}).where.dummies == 3


@settings(deadline=None)
@given(st.integers(0, 10**40))
def test_whole_numbers_keep_every_digit(value: int) -> None:
    """Whatever brings them: Python, a command line's text, YAML, JSON."""
    from lm_eval.utils import simple_parse_args_string

    from lm_eval_embednoise.study.method import parse_arguments

    for given_ in (
        value,
        str(value),
        f"{value}.0",
        f"{value}e0",
        simple_parse_args_string(f"seed={value}")["seed"],
        parse_arguments("--model_args", f"seed={value}")["seed"],
        yaml.safe_load(str(value)),
        json.loads(str(value)),
    ):
        assert integer("seed", given_, least=0) == value
        assert type(Perturbation(seed=given_).seed) is int
    keys = {streams.stream_key(Perturbation(seed=value + i).seed, "p", 0, "noise") for i in (0, 1)}
    assert len(keys) == 2


@given(st.integers(0, 2**53), st.integers(-(2**53), 2**53))
def test_a_float_that_is_whole_is_served(value: int, other: int) -> None:
    assert integer("rsp", float(value), least=0) == value
    assert integer("x", f"{value}e2", least=0) == 100 * value
    if other < 0:
        with pytest.raises(ValueError, match=r"finite number ≥ 0"):
            integer("x", other, least=0)


def test_depth_names_sites_in_order() -> None:
    assert parse_depth("embed") == ("embed",)
    assert parse_depth(5) == ("block.5",)
    assert parse_depth("5+embed") == ("embed", "block.5")
    assert Perturbation(sigma=0.3, depth="embed+5").sites == {"embed": 0.3, "block.5": 0.3}
    assert Perturbation(depth={"5": 0.2, "embed": 0.1}).sites == {"embed": 0.1, "block.5": 0.2}


def test_sigma_zero_has_one_canonical_form() -> None:
    plain = Perturbation().canonical()
    assert not Perturbation(depth=7, scope="sequence").active
    assert Perturbation(depth=7, scope="sequence", positions="all").canonical() == plain
    assert Perturbation(depth={"3": 0.0}).canonical() == plain
    assert Perturbation(sigma=0.1).canonical() != plain


def test_what_is_added_to_the_prompt_is_in_the_canonical_form() -> None:
    """Also at σ = 0, where dummies, soft prompts and prefixes stay."""
    plain = Perturbation()
    added = [
        Perturbation(positions="dummy:3"),
        Perturbation(positions="dummy:4"),
        Perturbation(positions="dummy:3", dummy_token="eos"),
        Perturbation(rsp=2),
        Perturbation(rsp=2, rsp_slot="after-bos"),
        Perturbation(rsp=2, rsp_fit="per-dimension"),
        Perturbation(rsp=2, rsp_scale=0.5),
        Perturbation(prefix="random:2"),
        Perturbation(rsp=2, prefix="random:2"),
        Perturbation(sigma=0.1, rsp=2),
        Perturbation(sigma=0.1),
    ]
    assert plain.plain and not any(p.plain for p in added)
    assert len({str(p.canonical()) for p in [plain, *added]}) == len(added) + 1
    assert len({p.signature() for p in [plain, *added]}) == len(added) + 1
    same = Perturbation(positions="dummy:3", depth=7, scope="sequence", sigma_unit="norm")
    assert same.canonical() == added[0].canonical()
    assert Perturbation(prefix="none").canonical() == plain.canonical()
    assert Perturbation(prefix="random:02").canonical() == added[7].canonical()
    assert Perturbation(rsp=0).signature() == plain.signature() == "clean|seed:0"


def test_only_what_differs_between_samples_varies() -> None:
    assert not Perturbation(positions="dummy:3").varies
    assert Perturbation(prefix="random:3").varies and not Perturbation(prefix="random:3").active
    assert Perturbation(rsp=1).active and Perturbation(rsp=1).perturbs_prompt
    assert not Perturbation(positions="all").perturbs_generated
    assert not Perturbation(sigma=0.1, positions="generated").perturbs_prompt


def test_positions_round_trip() -> None:
    for text in ("prompt", "all", "generated", "first:3", "last:2", "generated:5", "dummy:4"):
        assert str(Positions.parse(text)) == text


@pytest.mark.parametrize(
    ("gen_kwargs", "words"),
    [
        ({"temperature": 0.8, "do_sample": False}, ["temperature=0.8", "do_sample=true"]),
        ({"do_sample": True}, ["do_sample=true", "temperature"]),
        ({"num_beams": 4}, ["num_beams=4", "not supported"]),
        ({"num_return_sequences": 5}, ["num_return_sequences=5", "not supported"]),
        ({"temprature": 1.0}, ["did you mean 'temperature'"]),
        ({"temperature": 1.0, "top_p": 1.5}, ["top_p=1.5", "(0, 1]"]),
        ({"temperature": 1.0, "top_k": -1}, ["top_k", "-1"]),
        ({"top_p": 0.9}, ["top_p=0.9", "do_sample=true"]),
        ({"temperature_tokens": 5}, ["temperature_tokens=5", "do_sample=true"]),
        ({"temperature": 1.0, "temperature_tokens": 0}, ["temperature_tokens=0", "≥ 1"]),
        ({"temperature": 1.0, "typical_p": 0}, ["typical_p=0", "(0, 1]"]),
        ({"temperature": 1.0, "eta_cutoff": 1}, ["eta_cutoff=1", "[0, 1)"]),
        ({"temperature": 1.0, "top_n_sigma": -1}, ["top_n_sigma=-1", "≥ 0"]),
        ({"temperature": 1.0, "p_less": "yes"}, ["p_less='yes'", "true or false"]),
        ({"p_less": True}, ["p_less=1", "do_sample=true"]),
        (
            {"temperature": 1.0, "p_less": True, "top_n_sigma": 1.0},
            ["p_less=true with top_n_sigma=1", "keep one of them"],
        ),
        ({"first_token": "stratified"}, ["first_token='stratified'", "stratified:N"]),
        ({"first_token": "stratified:0"}, ["first_token='stratified:0'", "N ≥ 1"]),
        ({"first_token": "stratified:020"}, ["first_token='stratified:020'", "stratified:20"]),
        ({"first_token": 20}, ["first_token=20", "stratified:20"]),
        ({"first_tokens": "stratified:2"}, ["did you mean 'first_token'"]),
        ({"max_gen_toks": 0}, ["max_gen_toks", "0", "≥ 1"]),
        ({"max_new_tokens": 0}, ["max_new_tokens", "0", "≥ 1"]),
        (
            {"max_gen_toks": 512, "max_new_tokens": 64},
            ["max_gen_toks=512 and max_new_tokens=64", "max_gen_toks=N alone"],
        ),
        (
            {"max_tokens": 64, "max_completion_tokens": 65},
            ["max_tokens=64 and max_completion_tokens=65", "without max_completion_tokens"],
        ),
    ],
)
def test_sampling_refusals(gen_kwargs: dict, words: list[str]) -> None:
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        Sampling.from_gen_kwargs(gen_kwargs)
    for word in words:
        assert word in str(error.value)


def test_sampling_inherits_nothing() -> None:
    greedy = Sampling.from_gen_kwargs({"do_sample": False, "temperature": 0.0, "until": "x"})
    assert greedy.greedy and greedy.until == ("x",)
    warm = Sampling.from_gen_kwargs({"do_sample": True, "temperature": 0.8})
    assert (warm.temperature, warm.top_k, warm.top_p, warm.min_p) == (0.8, 0, 1.0, 0.0)
    assert Sampling.from_gen_kwargs({"temperature": 0.5}).temperature == 0.5
    assert Sampling.from_gen_kwargs({"max_new_tokens": 7}).max_gen_toks == 7
    same = {"max_new_tokens": "7", "max_gen_toks": 7, "max_tokens": None}
    assert Sampling.from_gen_kwargs(same).max_gen_toks == 7
