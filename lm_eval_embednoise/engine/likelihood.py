"""The log-likelihood of generated texts under the clean model, after the clean prompt."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from lm_eval_embednoise.engine import attention
from lm_eval_embednoise.engine.attention import Shared
from lm_eval_embednoise.engine.lanes import Stopped, run_lanes
from lm_eval_embednoise.engine.prefill import run_prompts
from lm_eval_embednoise.engine.runner import EXACT_ROWS, Runner
from lm_eval_embednoise.engine.shared_prefix import SharedPrefixCache
from lm_eval_embednoise.engine.slots import SlotCache

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from lm_eval_embednoise.engine.jobs import Job, Sample

# By device: positions of a pass, so that products run at full speed and little is filled up, and
# the most logits of one, of which several copies in float32 exist at once.
TOKENS = {"cpu": 1 << 10, "cuda": 1 << 13}
LOGITS = {"cpu": 1 << 26, "cuda": 1 << 28}
BUCKET = (
    32  # lengths of an exact run's passes are multiples of this, or what the model has room for
)


def unscorable(finish_reason: str | None, kept: int | None) -> bool:
    """Whether a sample has no clean log-likelihood, by how it ended: no token could be chosen."""
    return finish_reason == "prompt_too_long" or (finish_reason == "numeric" and not kept)


def scored(
    runner: Runner, jobs: Sequence[Job], samples: Iterable[Sample], rows: int
) -> Iterator[list[Sample]]:
    """Give finished samples their clean log-likelihoods.

    All texts after one clean prompt are scored in one go and in sorted order once the last of them
    is there, so that no digit depends on when a text was decoded and beside which others. Equal
    texts are scored once. Samples that have a score already, or can't have one, don't wait.

    Args:
        runner: gives the model.
        jobs: what the samples belong to; their `samples` are exactly those that will come.
        samples: in any order.
        rows: most rows of a pass.

    Yields:
        The samples that were scored together, or a single one that needed no scoring.
    """
    missing: Counter[tuple[int, ...]] = Counter()
    for job in jobs:
        missing[job.clean] += len(job.samples)
    waiting: dict[tuple[int, ...], list[Sample]] = {}
    for sample in samples:
        clean = jobs[sample.job].clean
        if sample.nll is None and not unscorable(sample.finish_reason, sample.kept):
            waiting.setdefault(clean, []).append(sample)
        else:
            yield [sample]
        missing[clean] -= 1
        if not missing[clean] and clean in waiting:
            yield _with_nlls(runner, clean, waiting.pop(clean), rows)


def _with_nlls(
    runner: Runner, clean: tuple[int, ...], samples: list[Sample], rows: int
) -> list[Sample]:
    """The samples of one clean prompt, scored."""
    own = [tuple(sample.ids[: sample.kept]) for sample in samples]
    texts = sorted({text for text in own if text})
    nlls: dict[tuple[int, ...], float | None] = {(): 0.0}
    if texts:
        nlls.update(zip(texts, clean_nll(runner, clean, texts, rows), strict=True))
    return [
        dataclasses.replace(sample, nll=nlls[text])
        for sample, text in zip(samples, own, strict=True)
    ]


@torch.no_grad()
def clean_nll(
    runner: Runner, prompt_ids: Sequence[int], texts: Sequence[tuple[int, ...]], rows: int
) -> list[float | None]:
    """Negative log-likelihood of texts after a prompt, at T = 1, teacher-forced.

    Args:
        runner: gives the model; with `exact`, what a text scores depends on itself alone.
        prompt_ids: the clean prompt, run once.
        texts: generated ids; an empty text scores 0.
        rows: most rows of a pass.

    Returns:
        Summed nats, one a text; None where the clean model's own logits are not numbers.
    """
    with runner.ready():
        return _clean_nll(runner, prompt_ids, texts, rows)


def _clean_nll(
    runner: Runner, prompt_ids: Sequence[int], texts: Sequence[tuple[int, ...]], most_rows: int
) -> list[float | None]:
    ((first, prompt),) = run_prompts(runner, [prompt_ids])
    room = runner.max_length - len(prompt_ids)
    passes = _passes(runner, texts, room, first.shape[-1], most_rows)
    shared = [Shared(*layer) for layer in prompt]

    def filled_up(rows: Sequence[tuple[int, ...]], width: int) -> Tensor:
        padded = [[*row, *[0] * (width - len(row))] for row in rows]
        return torch.tensor(padded, device=runner.device)

    def score(numbers: list[int], length: int) -> list[float | None]:
        rows = EXACT_ROWS if runner.exact else len(numbers)
        chosen = [texts[i] for i in numbers] + [()] * (rows - len(numbers))
        ids = filled_up(chosen, length)
        logits = first[None].expand(rows, -1, -1)
        if length > 1:
            # A text's last token is not entered: it may be one that the model makes NaN of, which
            # masks don't hide from the tokens before it.
            entered = filled_up([text[:-1] for text in chosen], length - 1)
            after = _teacher_forced(runner, entered, shared)
            logits = torch.cat([logits, after.float()], dim=1)
        logprobs = logits.log_softmax(dim=-1).gather(2, ids[:, :, None])[:, :, 0]
        summed = [
            -float(logprobs[row, : len(texts[i])].double().sum()) for row, i in enumerate(numbers)
        ]
        return [None if math.isnan(nll) else nll for nll in summed]

    def lane(start: int, stopped: Stopped) -> Iterator[tuple[list[int], list[float | None]]]:
        for numbers, length in passes[start::lanes]:
            yield numbers, score(numbers, length)

    in_c = runner.lean is not None and runner.lean.in_c
    lanes = max(1, min(torch.get_num_threads(), len(passes))) if in_c else 1
    work = [functools.partial(lane, start) for start in range(lanes)]
    scored = run_lanes(work) if in_c else lane(0, lambda: False)
    scores = {i: nll for numbers, nlls in scored for i, nll in zip(numbers, nlls, strict=True)}
    return [scores[i] for i in range(len(texts))]


def _passes(
    runner: Runner, texts: Sequence[tuple[int, ...]], room: int, vocabulary: int, rows: int
) -> list[tuple[list[int], int]]:
    """Texts to score together, by their numbers, and the length they are padded to.

    Args:
        runner: says whether passes are `exact`.
        texts: generated ids.
        room: positions that the model has after the prompt; padding must not reach beyond.
        vocabulary: logits a position.
        rows: most of a pass.
    """
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    passes: list[tuple[list[int], int]] = []
    if runner.exact:
        lengths = {}
        for i in order:
            whole = max(1, -(-len(texts[i]) // BUCKET)) * BUCKET
            lengths[i] = max(1, len(texts[i]), min(whole, room))
        for length in sorted(set(lengths.values())):
            alike = [i for i in order if lengths[i] == length]
            passes += [
                (alike[start : start + EXACT_ROWS], length)
                for start in range(0, len(alike), EXACT_ROWS)
            ]
        return passes
    kind = runner.device.type if runner.device.type in TOKENS else "cpu"
    tokens = min(TOKENS[kind], LOGITS[kind] // vocabulary)
    while order:
        length = max(1, len(texts[order[-1]]))
        most = max(1, min(tokens // length, rows))
        chosen, order = order[-most:], order[:-most]
        passes.append((chosen, length))
    return passes


def _teacher_forced(runner: Runner, ids: Tensor, prompt: list[Shared]) -> Tensor:
    """Logits after each of the ids, [rows, pos, vocab], after a prompt that all rows see."""
    if runner.lean is not None and runner.lean.in_c:
        memory = SlotCache(len(prompt), len(ids), ids.shape[1], keep=False)
        return runner.lean.prefill(ids, memory, torch.arange(len(ids)), None, prompt)
    start = prompt[0].keys.shape[2]
    positions = torch.arange(start, start + ids.shape[1], device=ids.device)
    positions = positions.expand(len(ids), -1)
    serving: AbstractContextManager[None] = nullcontext()
    if runner.shares_prompts:
        cache: Cache = SharedPrefixCache(prompt, ids.shape[1])
        serving = attention.serving(runner.attention_configs, cache)  # type: ignore[arg-type]
    else:
        cache = DynamicCache()
        for number, layer in enumerate(prompt):
            keys, values = (part.repeat(len(ids), 1, 1, 1) for part in (layer.keys, layer.values))
            cache.update(keys, values, number)
    with runner.whole_model, serving:
        return runner.forward(ids, cache, positions, at=None)
