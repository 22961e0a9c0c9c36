"""How many rows fit into the memory that is free: what a run takes beside its model's weights."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import psutil
import torch

from lm_eval_embednoise.engine import likelihood, prefill

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lm_eval_embednoise.engine.jobs import Job
    from lm_eval_embednoise.engine.runner import Runner

SHARE = {"cpu": 0.5, "cuda": 0.6}  # of the free memory, by device: others want some, too
MOST_ROWS = 512
CHOICE = 48  # bytes a logit, while a token is chosen: float32 copies, sorted, summed in float64
PER_VECTOR = 32  # bytes a coordinate of a prefill: what a block computes of [pos, dim], and noise
PER_GATE = 3  # numbers an inner coordinate of a block's MLP

log = logging.getLogger(f"lm_eval.{__name__}")


def rows_that_fit(runner: Runner, jobs: Sequence[Job], tokens: int, most: int | None = None) -> int:
    """Rows to decode at a time. Call it within `runner.ready`: laid-out weights take memory.

    Args:
        runner: the model.
        jobs: the work.
        tokens: most tokens of a sample.
        most: upper bound; MOST_ROWS for None.

    Returns:
        From 1 to the bound, even where nothing fits.
    """
    prompt = max((len(job.prompt_ids) for job in jobs), default=1)
    length = min(prompt + tokens, runner.max_length)
    once, row = needed(runner, min(prompt, length), length)
    room = SHARE[likelihood.kind_of(runner)] * free_bytes(runner)
    rows = max(1, min(int((room - once) // row), most or MOST_ROWS))
    log.info("batch_size=auto: %d rows", rows)
    return rows


def needed(runner: Runner, prompt: int, length: int) -> tuple[int, int]:
    """Bytes that a run takes once, and for each row: the most that they can be.

    Once: a pass that prefills and one that scores texts, in every thread that may have one.

    Args:
        runner: the model.
        prompt: positions of the longest prompt.
        length: positions of the longest sample, with its prompt.
    """
    config = runner.model.config.get_text_config()  # type: ignore[operator, union-attr]
    size, vocab, hidden = runner.dtype.itemsize, len(runner.embedding), config.hidden_size
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    dim = getattr(config, "head_dim", None) or hidden // heads
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    entry = 2 * len(runner.blocks) * kv_heads * dim * size
    # The prompt's entries are there twice until its last row has joined, and a block of the model's
    # own may repeat keys and values for all heads that share them.
    row = entry * (length + prompt) + 2 * heads * dim * size * length + CHOICE * vocab

    kind = likelihood.kind_of(runner)
    position = entry + PER_VECTOR * hidden + PER_GATE * inner * size
    if "eager" in {c._attn_implementation for c in runner.attention_configs}:
        position += 8 * heads * prompt  # scores, and their softmax in float32
    prefilled = position + (0 if runner.keeps_logits else vocab * size)
    once = prefilled * max(prompt, prefill.pass_tokens(runner))
    once += position * max(length - prompt, likelihood.TOKENS[kind]) + 8 * likelihood.PIECE[kind]
    if runner.in_c:
        return once * torch.get_num_threads(), row
    return once + size * max(likelihood.LOGITS[kind], (length - prompt) * vocab), row


def free_bytes(runner: Runner) -> int:
    """Memory on the model's device that this process can have."""
    if runner.device.type == "cuda":
        kept = torch.cuda.memory_reserved(runner.device)
        used = torch.cuda.memory_allocated(runner.device)
        return int(torch.cuda.mem_get_info(runner.device)[0]) + kept - used
    # What files take in the system's cache is free: a model's just after loading.
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return int(psutil.virtual_memory().available) // processes
