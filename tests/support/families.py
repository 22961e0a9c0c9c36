"""Tiny random models of every decoder-only family, built from their configurations."""

from __future__ import annotations

import functools
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 101
BLOCKS = 3
WIDTH = 32
WINDOW = 6

# Set wherever a family's configuration has the name.
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "initializer_range": 0.4,
    "tie_word_embeddings": False,
    "max_position_embeddings": 128,
    "sliding_window": WINDOW,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), WIDTH),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), BLOCKS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), 4),
    **dict.fromkeys(("n_positions", "n_ctx", "max_seq_len"), 128),
    **{"num_key_value_heads": 2, "head_dim": 8, "rotary_dim": 8},
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **{"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "n_shared_experts": 1},
    **{"first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 16},
    **{"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12},
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), None),
}

MIXED = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
MLA = {"num_key_value_heads": 4}

# Every family of the conformance table: what its tiny configuration needs beside COMMON.
FAMILIES: dict[str, dict[str, Any]] = {
    "afmoe": MIXED,
    "apertus": {},
    "arcee": {},
    "aria_text": {},
    "biogpt": {},
    "bitnet": {},
    "bloom": {},
    "codegen": {},
    "cohere": {},
    "cohere2": MIXED,
    "cohere2_moe": MIXED,
    "cwm": {**MIXED, "bos_token_id": 1, "eos_token_id": 99},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
        "resid_pdrop": 0.0,
        "head_dim": ...,
    },
    "deepseek_v2": MLA,
    "deepseek_v3": MLA,
    "diffllama": {},
    "dots1": MIXED,
    "ernie4_5": {},
    "ernie4_5_moe": {},
    "exaone4": MIXED,
    "exaone_moe": MIXED,
    "falcon": {"head_dim": ..., "new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon:alibi": {"head_dim": ..., "alibi": True},
    "flex_olmo": {},
    "gemma": {},
    "gemma2": MIXED,
    "gemma3_text": MIXED,
    "glm": {},
    "glm4": {},
    "glm4_moe": {},
    "glm4_moe_lite": MLA,
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1], [["global"], 1]], "window_size": 6},
    "gpt_neox": {},
    "gpt_neox_japanese": {},
    "gpt_oss": MIXED,
    "gptj": {},
    "granite": {"embedding_multiplier": 3.0},
    "granite_swa": MIXED,
    "granitemoe": {"embedding_multiplier": 3.0},
    "granitemoe_swa": MIXED,
    "granitemoeshared": {},
    "helium": {},
    "hunyuan_v1_dense": {},
    "hunyuan_v1_moe": {},
    "hy_v3": {},
    "hyperclovax": {},
    "jais2": {},
    "jetmoe": {},
    "llama": {},
    "llama4_text": {"attention_chunk_size": WINDOW},
    "longcat_flash": {**MLA, "num_hidden_layers": 6},
    "mimo_v2_flash": {},
    "minicpm3": MLA,
    "minimax_m2": {},
    "ministral": {},
    "ministral3": {},
    "mistral": {},
    "mixtral": {},
    "modernbert-decoder": {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "mpt": {},
    "nanochat": {},
    "nemotron": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": MIXED,
    "olmoe": {},
    "opt": {},
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "phimoe": {},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen2_moe": {},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3_moe": {},
    "seed_oss": {},
    "smollm3": {},
    "solar_open": {},
    "stablelm": {},
    "starcoder2": {},
    "vaultgemma": MIXED,
    "xglm": {},
    "youtu": MLA,
}


def build(family: str, **more: Any) -> PreTrainedModel:
    """A random model of a family, wide awake: every input vector changes its output."""
    config_class = CONFIG_MAPPING[family.partition(":")[0]]
    default = config_class()
    values = {name: value for name, value in COMMON.items() if hasattr(default, name)}
    values |= FAMILIES.get(family, {}) | more
    config = config_class(**{name: value for name, value in values.items() if value is not ...})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.generation_config.do_sample = False
    return model


tiny = functools.cache(build)  # the same model for all tests
