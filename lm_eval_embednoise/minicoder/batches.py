"""Turns the example streams into batches of token ids: a pure function of seed and shard."""

from __future__ import annotations

import random
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import problems, wordproblems

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedTokenizerBase

BUCKETS = (48, 64, 80, 96, 112, 128, 160, 208)
SHARD = 2048
MATH_SHARE = 0.25

HeldOut = tuple[frozenset[problems.Composition], frozenset[wordproblems.Combination]]


def shard_examples(
    seed: int, shard: int, held_out: HeldOut, size: int = SHARD
) -> list[tuple[str, str]]:
    """The (prompt, answer) pairs of one shard, code and word problems mixed."""
    math = int(size * MATH_SHARE)
    key = seed * 1_000_003 + shard
    examples = list(islice(problems.training_examples(key, held_out[0]), size - math))
    examples += islice(wordproblems.training_examples(key, held_out[1]), math)
    random.Random(f"mix-{key}").shuffle(examples)
    return examples


def encode(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> tuple[list[int], int]:
    """Token ids of prompt, answer and end, and the prompt's length.

    Prompt and answer are encoded apart, as they are at inference.
    """
    start = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    tail = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return [*start, *tail, tokenizer.eos_token_id], len(start)


def shard_batches(
    tokenizer: PreTrainedTokenizerBase, seed: int, shard: int, held_out: HeldOut, tokens: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches `(ids, scored)`, both `[batch, bucket + 1]`, of about `tokens` positions each.

    Rows are padded on the right; `scored` marks the answer and its end. Shapes come from a small
    set, so that compiled kernels are reused; examples that fill no batch are left out.
    """
    waiting: dict[int, list[tuple[list[int], int]]] = {bucket: [] for bucket in BUCKETS}
    batches: list[tuple[Tensor, Tensor]] = []
    for prompt, answer in shard_examples(seed, shard, held_out):
        ids, start = encode(tokenizer, prompt, answer)
        bucket = next((b for b in BUCKETS if len(ids) <= b + 1), None)
        if bucket is None:
            continue
        rows = waiting[bucket]
        rows.append((ids, start))
        if len(rows) == tokens // bucket:
            batches.append(_pad(rows, bucket + 1, tokenizer.eos_token_id))
            rows.clear()
    random.Random(f"order-{seed}-{shard}").shuffle(batches)
    yield from batches


def _pad(rows: list[tuple[list[int], int]], length: int, pad: int) -> tuple[Tensor, Tensor]:
    ids = torch.full((len(rows), length), pad)
    scored = torch.zeros(len(rows), length, dtype=torch.bool)
    for row, (tokens, start) in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        scored[row, start : len(tokens)] = True
    return ids, scored
