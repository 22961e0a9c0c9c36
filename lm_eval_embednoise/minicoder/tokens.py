"""The tokenizer: byte-level BPE behind Qwen2's own pre-tokenizer, so that AutoTokenizer agrees."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tokenizers import pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable

END = "<|endoftext|>"
VOCABULARY = 1024


def train_tokenizer(texts: Iterable[str], size: int = VOCABULARY) -> Qwen2Tokenizer:
    """A Qwen2Tokenizer whose merges were learned from `texts`; its end token also pads."""
    backend = Qwen2Tokenizer().backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    state = json.loads(backend.to_str())["model"]
    merges: list[Any] = [tuple(merge) for merge in state["merges"]]
    return Qwen2Tokenizer(
        vocab=state["vocab"],
        merges=merges,
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )
