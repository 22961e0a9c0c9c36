"""Knobs of sampling: distributions against transformers' warpers and a slow reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from lm_eval_embednoise.engine.choose import NO_TOKEN, choose
from lm_eval_embednoise.engine.sampling import TRUNCATION, Sampling
from lm_eval_embednoise.engine.truncation import near_the_top, probabilities
from lm_eval_embednoise.study.method import Method
from tests.support.cacheless import cdf

WARPERS: dict[str, Any] = {  # in transformers' order
    "top_k": TopKLogitsWarper,
    "top_p": TopPLogitsWarper,
    "min_p": MinPLogitsWarper,
    "typical_p": TypicalLogitsWarper,
    "epsilon_cutoff": EpsilonLogitsWarper,
    "eta_cutoff": EtaLogitsWarper,
}
VALUES: dict[str, Any] = {
    "top_k": st.integers(1, 40),
    "top_p": st.floats(0.05, 0.99),
    "min_p": st.floats(0.01, 0.9),
    "typical_p": st.floats(0.05, 0.99),
    "epsilon_cutoff": st.floats(1e-4, 0.5),
    "eta_cutoff": st.floats(1e-4, 0.5),
}


def distribution(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """What tokens are drawn with, before a uniform is looked up."""
    if sampling.top_n_sigma:
        logits = near_the_top(logits, sampling.top_n_sigma)
    p = probabilities(logits, sampling)
    return p / p.sum(dim=-1, keepdim=True)


def random_logits(seed: int, rows: int = 6, vocab: int = 30, masked: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocab, generator=generator) * 3
    if masked:
        logits[:, ::7] = -torch.inf
    return logits


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(0, 10**6), st.floats(0.2, 3), st.booleans())
def test_a_distribution_is_transformers_own(
    data: Any, seed: int, temperature: float, masked: bool
) -> None:
    names = data.draw(st.sets(st.sampled_from(sorted(WARPERS)), min_size=1, max_size=3))
    given = {name: data.draw(VALUES[name], name) for name in WARPERS if name in names}
    logits = random_logits(seed, masked=masked)
    ours = distribution(logits, Sampling(temperature=temperature, **given))
    scores = TemperatureLogitsWarper(temperature)(None, logits)
    for name, value in given.items():
        scores = WARPERS[name](value)(None, scores)
    theirs = scores.softmax(dim=-1)
    alike = torch.isclose(ours, theirs, rtol=1e-4, atol=1e-6).all(dim=-1)
    assert alike.float().mean() >= 5 / 6, (given, ours, theirs)  # a row may be at an edge


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(sorted(TRUNCATION)), st.floats(0.2, 3), st.data())
def test_a_distribution_is_the_definitions(
    seed: int, name: str, temperature: float, data: Any
) -> None:
    values = VALUES | {"top_n_sigma": st.floats(0.1, 4), "p_less": st.just(True)}
    sampling = Sampling(temperature=temperature, **{name: data.draw(values[name])})
    logits = random_logits(seed, masked=seed % 2 == 0)
    ours = distribution(logits, sampling).double().cumsum(dim=-1).numpy()
    apart = [np.abs(got - cdf(row, sampling)).max() for got, row in zip(ours, logits, strict=True)]
    assert sum(gap < 1e-4 for gap in apart) >= 5, apart


def test_p_less_keeps_what_is_likelier_than_a_chance_agreement() -> None:
    p = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.25] * 4, [0.97, 0.01, 0.01, 0.01]])
    kept = distribution(p.log(), Sampling(temperature=1.0, p_less=True)) > 0
    assert kept.tolist() == [[True, False, False, False], [True] * 4, [True, False, False, False]]
    hot = distribution(p.log(), Sampling(temperature=2.0, p_less=True)) > 0
    assert hot[0].tolist() == [True, True, False, False]  # Σ p² falls with the temperature


def test_top_n_sigma_does_not_depend_on_temperature() -> None:
    logits = random_logits(3)
    for n in (0.5, 1.0, 2.0):
        expected = logits >= logits.amax(-1, True) - n * logits.std(-1, correction=0, keepdim=True)
        for temperature in (0.3, 1.0, 5.0):
            sampling = Sampling(temperature=temperature, top_n_sigma=n)
            assert torch.equal(distribution(logits, sampling) > 0, expected)


@pytest.mark.parametrize("rows", [1, 5])
def test_top_n_sigma_in_c_and_in_torch_choose_alike(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = random_logits(5, rows, 4000)
    sampling = Sampling(temperature=1.5, top_n_sigma=2.5)
    u = torch.rand(40, rows, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    fast = [choose(logits, sampling, one) for one in u]
    monkeypatch.setattr("lm_eval_embednoise.engine.choose.build.serve", lambda *args: False)
    slow = [choose(logits, sampling, one) for one in u]
    assert torch.equal(torch.stack(fast), torch.stack(slow))


def test_temperature_acts_on_the_first_tokens_only() -> None:
    logits = random_logits(7, rows=8)
    u = torch.full((8,), 0.9, dtype=torch.float64)
    steps = torch.arange(8)
    tokens = choose(logits, Sampling(temperature=1.5, temperature_tokens=3), u, steps)
    drawn = choose(logits, Sampling(temperature=1.5), u)
    assert torch.equal(tokens[:3], drawn[:3])
    assert torch.equal(tokens[3:], logits.argmax(dim=-1)[3:])
    assert not torch.equal(tokens, drawn)


def test_what_is_off_is_in_no_key_and_what_is_on_is() -> None:
    plain = Sampling(temperature=0.8)
    assert plain.canonical() == {"temperature": 0.8, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
    assert Sampling(p_less=True).canonical() == {"temperature": 0.0}  # greedy
    on: list[dict[str, Any]] = [
        *({"typical_p": 0.5}, {"epsilon_cutoff": 0.1}, {"eta_cutoff": 0.1}, {"top_n_sigma": 1.0}),
        *({"p_less": True}, {"temperature_tokens": 3}, {"min_p": 0.1}),
    ]
    for knob in on:
        canonical = Sampling(temperature=0.8, **knob).canonical()
        assert canonical == plain.canonical() | knob


@pytest.mark.parametrize("name", ["typical_p", "epsilon_cutoff", "eta_cutoff", "top_n_sigma"])
def test_logits_without_a_softmax_choose_nothing(name: str) -> None:
    logits = torch.tensor([[0.0, torch.nan, 1.0], [torch.inf, 0.0, 0.0], [-torch.inf] * 3])
    sampling = Sampling(temperature=1.0, **{name: 0.5})
    tokens = choose(logits, sampling, torch.full((3,), 0.4, dtype=torch.float64))
    assert tokens.tolist() == [NO_TOKEN] * 3


@pytest.mark.parametrize(
    ("name", "knob"),
    [
        ("top-n-sigma-1.0", "top_n_sigma"),
        ("p-less", "p_less"),
        ("typical-0.9", "typical_p"),
        ("epsilon-0.001", "epsilon_cutoff"),
        ("eta-0.001", "eta_cutoff"),
    ],
)
def test_packaged_methods_sample_with_the_knob_that_they_name(name: str, knob: str) -> None:
    sampling = Sampling.from_gen_kwargs(Method.load(name).gen_kwargs)
    assert sampling.cuts == (knob,)
