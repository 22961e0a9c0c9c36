"""Blocks are found by name or by override; what is not supported is refused by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, BartConfig, BartForCausalLM

from lm_eval_embednoise.engine.families import steady_positions
from lm_eval_embednoise.engine.jobs import Job
from lm_eval_embednoise.engine.sampler import Sampler
from lm_eval_embednoise.engine.sampling import Sampling
from lm_eval_embednoise.minicoder import MODEL_DIR
from lm_eval_embednoise.models.hf_embednoise import HFEmbedNoise
from lm_eval_embednoise.noise.model_parts import (
    find_blocks,
    find_embedding,
    find_owner,
    hidden_width,
)
from lm_eval_embednoise.noise.perturbation import Perturbation
from lm_eval_embednoise.noise.reference import token_norms
from tests.support.families import build, tiny

if TYPE_CHECKING:
    from pathlib import Path

PLAIN = """mamba mamba2 falcon_mamba rwkv xlstm recurrent_gemma zamba zamba2 bamba falcon_h1
nemotron_h minimax deepseek_v32 deepseek_v4"""
REFUSED: dict[str, dict[str, Any]] = {
    **{family: {} for family in PLAIN.split()},
    **{family: {"num_experts": 2} for family in ("jamba", "qwen3_next", "qwen3_5_text")},
    "lfm2": {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
}


@pytest.mark.parametrize("family", REFUSED)
def test_recurrent_and_compressed_models_are_refused_by_name(family: str) -> None:
    config = CONFIG_MAPPING[family]()
    config = CONFIG_MAPPING[family](
        **{name: value for name, value in REFUSED[family].items() if hasattr(config, name)}
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    name = type(model).__name__
    with pytest.raises(ValueError, match=rf"{name} .*{family}.*carries a recurrent"):
        find_blocks(model)
    with pytest.raises(ValueError, match="carries a recurrent"):
        Sampler(model, Perturbation(), Sampling())


@pytest.mark.parametrize(
    ("family", "message"),
    [("mamba", "MambaForCausalLM .*carries a recurrent"), ("rwkv", "RwkvForCausalLM .*carries"),
     ("t5", r"\(model_type 't5'\) is an encoder–decoder model")],
)  # fmt: skip
def test_the_configuration_is_refused_before_weights_are_looked_for(
    family: str, message: str, tmp_path: Path
) -> None:
    CONFIG_MAPPING[family]().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        HFEmbedNoise(str(tmp_path), device="cpu")


def test_encoder_decoder_models_are_refused_by_name() -> None:
    size = {"d_model": 16, "decoder_layers": 2, "encoder_layers": 2, "vocab_size": 20}
    heads = {"decoder_attention_heads": 2, "encoder_attention_heads": 2}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(BartConfig(**size, **heads))
    assert isinstance(model, BartForCausalLM)  # its decoder alone is a causal LM, and is served
    assert len(find_blocks(model)) == 2
    model.config.is_encoder_decoder = True
    with pytest.raises(ValueError, match=r"BartForCausalLM .*bart.*encoder–decoder"):
        find_blocks(model)


class Unknown(nn.Module):
    """A causal LM that no table knows."""

    def __init__(self) -> None:
        super().__init__()
        inner = tiny("llama")
        self.config = inner.config
        self.words, self.stack = inner.model.embed_tokens, inner.model.layers
        self.shadow = nn.ModuleList([nn.Linear(2, 2)])
        self.inner = [inner]

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def forward(self, **kwargs: Any) -> Any:
        return self.inner[0](**kwargs)


def test_the_override_serves_a_model_that_no_table_knows() -> None:
    model = Unknown()
    with pytest.raises(ValueError, match=r"no decoder blocks.*blocks=NAME.*stack, shadow"):
        find_blocks(model)
    assert find_blocks(model, "stack") is model.stack
    assert find_owner(model, model.stack) is model
    norms = token_norms(model, torch.arange(5), "stack")
    assert torch.allclose(norms, model.words.weight[:5].norm(dim=-1).double())


def test_wrappers_do_not_matter() -> None:
    model = tiny("llama")
    wrapped = nn.Sequential(model)
    assert find_blocks(wrapped) is model.model.layers


def test_an_embedding_narrower_than_the_model() -> None:
    """OPT-350m: vectors of one width are projected to another before the first block."""
    model = tiny("opt", word_embed_proj_dim=16)
    assert find_embedding(model).weight.shape[1] == 16
    assert hidden_width(model) == 32
    sampler = Sampler(
        model, Perturbation(sigma=0.3, positions="all"), Sampling(max_gen_toks=3), perplexity=False
    )
    (sample,) = sampler.run([Job((5, 6, 7), "problem", (0,))])
    assert len(sample.ids) == 3
    assert 0 < sample.rho["embed"] < 1


@pytest.mark.parametrize(
    ("family", "factor"), [("llama", 1.0), ("gemma", 32**0.5), ("gemma3_text", 32**0.5),
                           ("granite", 3.0), ("gpt2", 1.0), ("opt", 1.0)]
)  # fmt: skip
def test_norms_are_the_models_own_scaling_of_the_table(family: str, factor: float) -> None:
    """Learned positions (GPT-2, OPT) are no part of a token's vector."""
    model = tiny(family)
    ids = torch.arange(3, 50)
    rows = find_embedding(model).weight[ids].norm(dim=-1).double()
    assert torch.allclose(token_norms(model, ids), factor * rows, rtol=1e-5)


LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 24,
    "short_factor": [1.0] * 4,
    "long_factor": [3.0] * 4,
}
DYNAMIC_ROPE = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("phi3", {"rope_parameters": LONG_ROPE, "original_max_position_embeddings": 24}),
        ("llama", {"rope_parameters": DYNAMIC_ROPE, "max_position_embeddings": 24}),
    ],
)
def test_rotary_frequencies_of_a_long_row_do_not_reach_a_short_one(
    family: str, more: dict[str, Any]
) -> None:
    """Beyond a bound the frequencies are those of the batch's longest row: no row gets there."""
    model = build(family, **more)
    assert steady_positions(model) == 24
    assert steady_positions(tiny(family)) is None
    short, long = Job((5, 9, 7), "short", (0,)), Job(tuple(range(20)), "long", (0,))
    beyond = Job(tuple(range(40)), "beyond", (0,))
    sampler = Sampler(model, Perturbation(), Sampling(max_gen_toks=30), max_length=128)
    together = {s.job: s for s in sampler.run([short, long, beyond])}
    assert [len(together[n].ids) for n in range(3)] == [21, 4, 0]
    assert together[2].finish_reason == "prompt_too_long"
    ids = torch.tensor([short.prompt_ids])
    alone = model.generate(ids, max_new_tokens=21, do_sample=False, pad_token_id=0)
    assert together[0].ids == alone[0, 3:].tolist()


def test_max_length_is_bounded_where_a_sample_would_depend_on_its_company(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = build("llama", rope_parameters=DYNAMIC_ROPE, max_position_embeddings=24, vocab_size=600)
    args = {"tokenizer": str(MODEL_DIR), "batch_size": 1}
    with pytest.raises(
        ValueError, match=r"max_length=64 is not supported: beyond 24 positions.*24"
    ):
        HFEmbedNoise(model, max_length=64, **args)
    model.config.max_position_embeddings = 100  # what the harness's class reads
    with caplog.at_level("WARNING"):
        assert HFEmbedNoise(model, **args).max_length == 24
    assert "max_length=24: beyond 24 positions the rotary frequencies" in caplog.text


MIXTURES = (
    "mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "gpt_oss", "phimoe", "dbrx",
    "granitemoe", "olmoe", "jetmoe", "llama4_text",
)  # fmt: skip


@pytest.mark.parametrize("family", MIXTURES)
def test_exact_is_refused_for_mixtures_of_experts(family: str) -> None:
    with pytest.raises(ValueError, match=r"exact=true is not available.*experts.*leave exact out"):
        Sampler(tiny(family), Perturbation(), Sampling(), exact=True)
