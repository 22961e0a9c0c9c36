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
from lm_eval_embednoise.engine.choose import token_nll
from lm_eval_embednoise.engine.lanes import Stopped, run_lanes
from lm_eval_embednoise.engine.prefill import run_prompts
from lm_eval_embednoise.engine.runner import EXACT_ROWS, Runner
from lm_eval_embednoise.engine.shared_prefix import SharedPrefixCache
from lm_eval_embednoise.engine.slots import SlotCache

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from lm_eval_embednoise.engine.jobs import Job, Sample

# By device: positions of a pass, so that products run at full speed and little is filled up; the
# most logits that the model's own forward gives at once; and how many are looked at together, of
# which copies in float32 exist.
TOKENS = {"cpu": 1 << 10, "cuda": 1 << 13}
LOGITS = {"cpu": 1 << 26, "cuda": 1 << 28}
PIECE = {"cpu": 1 << 24, "cuda": 1 << 26}
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
        return _clean_nll(runner.clean, prompt_ids, texts, rows)


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
        parts, done = [-first.log_softmax(dim=-1)[0, ids[:, :1]]], 1
        if length > 1:
            # A text's last token is not entered: it may be one that the model makes NaN of, which
            # masks don't hide from the tokens before it.
            entered = filled_up([text[:-1] for text in chosen], length - 1)
            for logits in _teacher_forced(runner, entered, shared):
                next_ids = ids[:, done : done + logits.shape[1]].contiguous()
                nlls = token_nll(logits.float().flatten(0, 1), next_ids.flatten())
                parts.append(nlls.view_as(next_ids))
                done += logits.shape[1]
        each = torch.cat(parts, dim=1)
        summed = [float(each[row, : len(texts[i])].double().sum()) for row, i in enumerate(numbers)]
        return [None if math.isnan(nll) else nll for nll in summed]

    def lane(start: int, stopped: Stopped) -> Iterator[tuple[list[int], list[float | None]]]:
        for numbers, length in passes[start::lanes]:
            yield numbers, score(numbers, length)

    lanes = max(1, min(torch.get_num_threads(), len(passes))) if runner.in_c else 1
    work = [functools.partial(lane, start) for start in range(lanes)]
    scored = run_lanes(work) if runner.in_c else lane(0, lambda: False)
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
    kind = kind_of(runner)
    tokens = TOKENS[kind]
    if not runner.in_c:
        tokens = min(tokens, LOGITS[kind] // vocabulary)
    rows = min(rows, PIECE[kind] // vocabulary)
    while order:
        length = max(1, len(texts[order[-1]]))
        most = max(1, min(tokens // length, rows))
        chosen, order = order[-most:], order[:-most]
        passes.append((chosen, length))
    return passes


def kind_of(runner: Runner) -> str:
    """Which of the sizes by device are a runner's."""
    return runner.device.type if runner.device.type in TOKENS else "cpu"


def _teacher_forced(runner: Runner, ids: Tensor, prompt: list[Shared]) -> Iterator[Tensor]:
    """Logits after each of the ids, after a prompt that all rows see, in pieces of some columns.

    The pieces' sizes depend on the shape of the ids alone.

    Args:
        runner: gives the model.
        ids: int64 [rows, pos].
        prompt: of each block.

    Yields:
        [rows, fewer pos, vocab].
    """
    width = max(1, PIECE[kind_of(runner)] // (len(ids) * len(runner.embedding)))
    if runner.lean is not None and runner.lean.in_c:
        memory = SlotCache(len(prompt), len(ids), ids.shape[1], keep=False)
        vectors = runner.lean.prefill(ids, memory, torch.arange(len(ids)), None, prompt)
        yield from map(runner.lean.logits, vectors.split(width, dim=1))
    else:
        yield from _own_forward(runner, ids, prompt).split(width, dim=1)


def _own_forward(runner: Runner, ids: Tensor, prompt: list[Shared]) -> Tensor:
    """The same by the model's own forward, whole: [rows, pos, vocab]."""
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
