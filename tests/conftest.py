"""Tiny random models, and one thread: the tests share their machine."""

from __future__ import annotations

import os

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from lm_eval_embednoise import kernels

torch.set_num_threads(1)
os.environ["EMBEDNOISE_VERDICTS"] = "off"  # a test judges what it asks for

VOCABULARY = 97
BLOCKS = 3
WIDTH = 24


def random_qwen2(width: int) -> PreTrainedModel:
    """A random Qwen2 of three blocks, wide awake: every input changes its output."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=48,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.4,
        eos_token_id=None,
        pad_token_id=None,
        bos_token_id=None,
    )
    return Qwen2ForCausalLM(config).eval()


@pytest.fixture(scope="session")
def qwen2() -> PreTrainedModel:
    """A random Qwen2; its heads are too narrow for the passes in C (`lean.py`)."""
    return random_qwen2(WIDTH)


@pytest.fixture(scope="session")
def wide_qwen2() -> PreTrainedModel:
    """A random Qwen2 with heads of 16, wide enough for them."""
    return random_qwen2(64)


@pytest.fixture(params=["noise in C", "passes in C", "no compiler"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> PreTrainedModel:
    """A random Qwen2 under each way in which a CPU runs it."""
    if request.param == "no compiler":
        monkeypatch.setattr(kernels, "_library", lambda name: None)
    name = "wide_qwen2" if request.param == "passes in C" else "qwen2"
    return request.getfixturevalue(name)


@pytest.fixture(scope="session")
def llama() -> PreTrainedModel:
    """A random Llama with a BOS token and untied embeddings."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        max_position_embeddings=256,
        initializer_range=0.4,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config).eval()
