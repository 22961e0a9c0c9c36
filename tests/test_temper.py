"""Attention's temperature against naive attention; scores and norms are the plain model's."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from transformers import AttentionInterface

from lm_eval_embednoise.engine.runner import Runner
from lm_eval_embednoise.engine.sampler import Sampler
from lm_eval_embednoise.engine.sampling import Sampling
from lm_eval_embednoise.noise.context import perturbed
from lm_eval_embednoise.noise.perturbation import Perturbation
from lm_eval_embednoise.noise.temper import attention_scales, tempered
from tests.support.families import tiny
from tests.test_sampler import PROMPTS, jobs

IDS = torch.tensor([[5, 17, 33, 2, 60, 9, 41]])


def naive(
    temperature: float, blocks: tuple[int, ...], module: Any, query: Any, key: Any, value: Any,
    mask: Any, scaling: float = 1.0, softcap: float | None = None, **kwargs: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attention as loops over rows, heads and queries."""
    window: int | None = kwargs.get("sliding_window")
    rows, heads, length, _width = query.shape
    group = heads // key.shape[1]
    out = torch.zeros(rows, length, heads, value.shape[-1])
    for row in range(rows):
        for head in range(heads):
            for at in range(length):
                first = 0 if window is None else max(0, at - window + 1)
                keys = key[row, head // group, first : at + 1]
                logits = keys @ query[row, head, at] * scaling
                if module.layer_idx in blocks:
                    logits = logits / temperature
                if softcap:
                    logits = softcap * torch.tanh(logits / softcap)
                weights = logits.softmax(dim=0)
                out[row, at, head] = weights @ value[row, head // group, first : at + 1]
    return out, None


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gpt2", "opt", "qwen3", "granite"])
@pytest.mark.parametrize("blocks", [None, "1-2"])
def test_tempered_attention_is_naive_attention(family: str, blocks: str | None) -> None:
    model = tiny(family)
    p = Perturbation(attention_temperature=1.7, attention_blocks=blocks)
    scales = attention_scales(model, p)
    AttentionInterface.register(
        "naive", lambda *args, **kwargs: naive(1.7, p.tempered_blocks or (0, 1, 2), *args, **kwargs)
    )
    slow = copy.deepcopy(model)
    slow.set_attn_implementation("naive")
    with torch.no_grad():
        plain, expected = model(IDS).logits, slow(IDS).logits
        with tempered(scales):
            got = model(IDS).logits
        assert torch.equal(model(IDS).logits, plain)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert (got - plain).abs().max() > 20 * (got - expected).abs().max()


@pytest.mark.parametrize(
    ("family", "decoder"),
    [("llama", "auto"), ("llama", "torch"), ("llama", "model"), ("gemma2", "auto")],
)
def test_samples_are_tempered_and_their_scores_are_not(family: str, decoder: str) -> None:
    model, sampling = tiny(family), Sampling(max_gen_toks=8)
    p = Perturbation(attention_temperature=3.0)
    samples = list(Sampler(model, p, sampling, decoder=decoder).run(jobs((0,))))
    plain = Sampler(model, Perturbation(), sampling, decoder=decoder)
    first = {sample.job: sample for sample in plain.run(jobs((0,)))}
    differs = 0
    for sample in samples:
        prompt, ids = list(PROMPTS[sample.job]), []
        with torch.no_grad(), tempered(attention_scales(model, p)):
            for _ in sample.ids:
                logits = model(torch.tensor([prompt + ids]), use_cache=False).logits[0, -1]
                ids.append(int(logits.argmax()))
        assert sample.ids == ids
        (nll,) = plain.clean_nll(PROMPTS[sample.job], [tuple(sample.ids)])
        assert sample.nll == pytest.approx(nll, rel=1e-4)
        differs += sample.ids != first[sample.job].ids
    assert differs


def test_norms_are_measured_on_the_plain_model() -> None:
    llama = tiny("llama")
    noise = {"sigma": 0.1, "depth": "2"}
    cooled = Perturbation(**noise, attention_temperature=3.0)
    std = [Runner(llama, p).references.std((5, 6, 7)) for p in (Perturbation(**noise), cooled)]
    assert std[0] == std[1]
    with perturbed(llama, cooled), torch.no_grad():
        within = llama(IDS).logits
    with perturbed(llama, Perturbation(**noise)), torch.no_grad():
        warm = llama(IDS).logits
    assert not torch.allclose(within, warm, atol=1e-3)


def test_factors_come_back_after_an_exception() -> None:
    llama = tiny("llama")
    before = [block.self_attn.scaling for block in llama.model.layers]

    def stop() -> None:
        with tempered(attention_scales(llama, Perturbation(attention_temperature=2.0))):
            assert llama.model.layers[1].self_attn.scaling == before[1] / 2
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop()
    assert [block.self_attn.scaling for block in llama.model.layers] == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"attention_temperature": 0}, ["attention_temperature=0", "above 0"]),
        ({"attention_temperature": "hot"}, ["attention_temperature='hot'", "not a number"]),
        ({"attention_blocks": "1"}, ["attention_blocks='1'", "other than 1"]),
        (
            {"attention_temperature": 2, "attention_blocks": "embed"},
            ["attention_blocks='embed' names no blocks", "3-7"],
        ),
        (
            {"attention_temperature": 2, "attention_blocks": "5-3"},
            ["attention_blocks='5-3' names no blocks"],
        ),
    ],
)
def test_bad_temperatures_are_named(arguments: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        Perturbation.from_args(arguments)
    for word in words:
        assert word in str(error.value)


def test_models_that_cant_be_tempered_are_refused() -> None:
    p = Perturbation(attention_temperature=2.0)
    with pytest.raises(ValueError, match=r"attention_temperature=2 is not available for Falcon"):
        Runner(tiny("falcon"), p)
    with pytest.raises(ValueError, match=r"attention_blocks='7': LlamaForCausalLM has 3 blocks"):
        Runner(tiny("llama"), Perturbation(attention_temperature=2.0, attention_blocks="7"))


def test_a_temperature_is_part_of_what_a_method_is() -> None:
    plain, all_, some = (
        Perturbation(),
        Perturbation(attention_temperature=2.0),
        Perturbation(attention_temperature=2.0, attention_blocks=[1, 2]),
    )
    assert len({p.signature() for p in (plain, all_, some)}) == 3
    assert plain.plain and not all_.plain and not all_.varies and all_.active
    assert Perturbation(attention_temperature=1.0).canonical() == plain.canonical()
    assert Perturbation(attention_temperature=2.0, attention_blocks="1-2") == some
