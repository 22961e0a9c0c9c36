"""Tiny random models, and one thread: the tests share their machine."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from lm_eval_embednoise.kernels import build
from lm_eval_embednoise.models import gguf_file

torch.set_num_threads(1)
os.environ["EMBEDNOISE_VERDICTS"] = "off"  # a test judges what it asks for
# 290 small tensors, each handed to threads that wait for each other, take longer than one by one.
os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"

VOCABULARY = 97
BLOCKS = 3
WIDTH = 24


@pytest.fixture(scope="session", autouse=True)
def harness_looks_once() -> Iterator[None]:
    """What the harness reads anew in every run is read once in these tests.

    That is its index of its own 14,000 task files, and its survey of the machine (pip's list and
    more). Both are the real ones; files elsewhere, ours among them, are read every time.
    """
    import lm_eval.tasks
    from lm_eval.tasks._index import TaskIndex
    from torch.utils import collect_env

    own, build = Path(lm_eval.tasks.__file__).parent, TaskIndex.build
    stock = functools.cache(lambda: build([own]))

    def build_once(paths: Any, **options: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for path in paths:
            found |= stock() if Path(path) == own else build([path], **options)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskIndex, "build", staticmethod(build_once))
        survey = functools.cache(collect_env.get_pretty_env_info)
        patch.setattr(collect_env, "get_pretty_env_info", survey)
        yield


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in the place of the cache's, for the copies of GGUF files."""
    monkeypatch.setattr(gguf_file, "cache_folder", lambda name: tmp_path / "cache" / name)
    return tmp_path / "cache" / "gguf"


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


WAYS = ("noise in C", "passes in C", "no compiler")


@pytest.fixture
def third(request: pytest.FixtureRequest) -> int:
    """0, 1 or 2 for the ways of `either`: cases are dealt to them where each would take long."""
    return WAYS.index(request.node.callspec.params["either"])


@pytest.fixture(params=WAYS)
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> PreTrainedModel:
    """A random Qwen2 under each way in which a CPU runs it."""
    if request.param == "no compiler":
        monkeypatch.setattr(build, "library", lambda name: None)
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
