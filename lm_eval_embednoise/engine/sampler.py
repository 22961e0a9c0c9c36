"""Tokens in, tokens out: jobs to samples. Knows no text and no harness.

K samples of a problem are one job. A prompt that the perturbation leaves alone is prefilled once
for all of them, otherwise the K noisy prompts are prefilled as a batch; rows that finish make room
for rows of the next jobs; work that would be identical is done once.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from lm_eval_embednoise.engine import attention
from lm_eval_embednoise.engine.batch import EXACT_ROWS, Batch
from lm_eval_embednoise.engine.choose import choose
from lm_eval_embednoise.engine.families import (
    attends_to_entries,
    check_exact,
    decoding,
    find_blocks,
    steady_positions,
)
from lm_eval_embednoise.engine.lanes import Stopped, run_lanes, threads
from lm_eval_embednoise.engine.lean import Lean
from lm_eval_embednoise.engine.lean_checks import obstacle
from lm_eval_embednoise.engine.likelihood import clean_nll, unscorable
from lm_eval_embednoise.engine.padded import PaddedBatch
from lm_eval_embednoise.engine.rows import Row
from lm_eval_embednoise.noise import perturb
from lm_eval_embednoise.noise.inject import Rows, find_site, mean_ratio, noise_keys, running
from lm_eval_embednoise.noise.perturbation import Perturbation, Sampling
from lm_eval_embednoise.noise.reference import References
from lm_eval_embednoise.noise.soft_prompt import SoftPrompts

LANE_ROWS = 16  # fewest rows that are worth a lane of their own
GREEDY = Sampling()
LAST = (-1,)  # the position that decoding needs
SHARED_ROWS = 4  # rows a job on average from which a shared prompt pays
SHARED_ON_GPU = 2  # most prompts in a batch up to which it pays on a GPU
SHARED_HEAD = 8  # positions from which a part of it does


@dataclass(frozen=True)
class Job:
    """One problem: its prompt, its name in the random streams, and the samples wanted of it.

    Attributes:
        prompt_ids: the input vectors' token ids.
        problem: the name.
        samples: the sample indices.
        clean_ids: the prompt with nothing added to it, which the clean log-likelihood and the
            norm m refer to; None where that is `prompt_ids`.
        soft_start: position of the first placeholder that a random soft prompt takes.
        too_long: what was added to the prompt leaves no room for any of it.
    """

    prompt_ids: tuple[int, ...]
    problem: str
    samples: tuple[int, ...]
    clean_ids: tuple[int, ...] | None = None
    soft_start: int | None = None
    too_long: bool = False

    @property
    def clean(self) -> tuple[int, ...]:
        """The prompt with nothing added to it."""
        return self.prompt_ids if self.clean_ids is None else self.clean_ids

    def soft_starts(self, rows: int, device: torch.device) -> Tensor | None:
        """`soft_start` for rows of this job, int64 [rows]."""
        if self.soft_start is None:
            return None
        return torch.full((rows,), self.soft_start, device=device)


@dataclass
class Sample:
    """One finished sample.

    Attributes:
        job: index of the job in the call.
        index: the sample index, as in `Job.samples`.
        ids: generated token ids without the end token, with those that spell the stop string.
        kept: how many of `ids` stand wholly before the stop string; all of them without one.
        finish_reason: "end_token", "stop_string", "length", "prompt_too_long", or "numeric": the
            logits after `ids` were not numbers, so no token could be chosen.
        nll: summed negative log-likelihood of `ids[:kept]` under the clean model in nats; None if
            unasked, or undefined (see `likelihood.unscorable`).
        rho: site → measured ‖ε‖/‖h‖, mean over the perturbed positions.
        std: site → standard deviation of the noise per coordinate, before the schedule.
        seconds: share of the wall time; 0 for a copy of identical work.
    """

    job: int
    index: int
    ids: list[int]
    kept: int
    finish_reason: str
    nll: float | None = None
    rho: dict[str, float] = field(default_factory=dict)
    std: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Stop:
    """When a row ends.

    Attributes:
        end_tokens: ids that end a text.
        may_end: bool [vocab], tokens that can complete a stop string; the others skip the check.
        kept: given the generated ids and the clean prompt's, how many of the first stand before a
            stop string, or None without one.
    """

    end_tokens: frozenset[int] = frozenset()
    may_end: Tensor | None = None
    kept: Callable[[list[int], tuple[int, ...]], int | None] | None = None


class Sampler:
    """Generates the samples of jobs with one model, one perturbation and one way of sampling."""

    def __init__(
        self,
        model: torch.nn.Module,
        perturbation: Perturbation,
        sampling: Sampling,
        stop: Stop | None = None,
        *,
        batch_size: int = 64,
        max_length: int = 2048,
        token_ids: Tensor | None = None,
        perplexity: bool = True,
        exact: bool = False,
        compiled: bool = False,
        blocks: str | None = None,
    ) -> None:
        """Prepare a run.

        Args:
            model: a causal LM in eval mode.
            perturbation: the noise; inactive means the plain model.
            sampling: greedy, or temperature with truncation, and the token limit.
            stop: end tokens and stop strings.
            batch_size: rows decoded at a time.
            max_length: most input vectors a sample may have; fewer where the model's rotary
                frequencies would depend on other samples (`families.steady_positions`).
            token_ids: int64, tokens the `table` reference averages over; None for all.
            perplexity: also compute the clean negative log-likelihood of every sample.
            exact: run every pass in one shape, so that rounding is the same in any company.
            compiled: compile the short decode step (see lean.py).
            blocks: dotted name of the model's list of decoder blocks, if it can't be found.

        Raises:
            ValueError: for a site the model doesn't have, where nothing can be compiled, or for
                `exact` with a model that can't be.
        """
        self.model = model
        self.perturbation = perturbation
        self.sampling = sampling
        self.stop = stop or Stop()
        self.batch_size = batch_size
        self.max_length = min(max_length, steady_positions(model) or max_length)
        self.perplexity = perplexity
        self.exact = exact
        if exact:
            check_exact(model)
        self.blocks = find_blocks(model, blocks)
        how = decoding(model, self.blocks)
        self.own_attention = how == "rows" and attention.supported(model)
        self.lean = Lean.of(model, compiled) if self.own_attention else None
        if compiled and self.lean is None:
            raise self._cannot_compile(obstacle(model) or "its attention is not served")
        self.shares_prompts = self.own_attention and attends_to_entries(model)
        self.attention_configs = attention.configs(model)
        for site in perturbation.sites:
            find_site(model, site, blocks)
        self._list_name = blocks
        self.embedding: Tensor = model.get_input_embeddings().weight  # type: ignore[operator]
        self.device, self.dtype = self.embedding.device, self.embedding.dtype
        self.references = References(model, perturbation, token_ids, blocks)
        self.soft_prompts = SoftPrompts(model, perturbation, token_ids)
        self._std: dict[int, dict[str, float]] = {}
        # Held by a lane that runs the model's own forward, whose hooks are everybody's.
        self.whole_model = threading.RLock()
        parameters = inspect.signature(model.forward).parameters
        self.keeps_logits = "logits_to_keep" in parameters

    def _cannot_compile(self, why: str) -> ValueError:
        name = type(self.model).__name__
        return ValueError(f"compile=true is not available for {name}: {why}; leave compile out")

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Within the context the short passes are laid out, if the model still allows them.

        `run` enters it by itself; around several calls it spares the work of doing so each time.

        Raises:
            ValueError: they should be compiled and can't be run.
        """
        lean = self.lean
        if lean is None:
            yield
            return
        with lean.ready() as why:
            if why is not None and lean.compiled:
                raise self._cannot_compile(why)
            try:
                self.lean = lean if why is None else None
                yield
            finally:
                self.lean = lean

    @torch.inference_mode()
    def run(self, jobs: Sequence[Job]) -> Iterator[Sample]:
        """Generate all samples of all jobs, each given out as it finishes.

        A sample whose clean log-likelihood needs a pass of its own comes when its job is complete.
        Until the iterator ends or is closed, the model's weights may be laid out for speed.
        """
        with self.ready():
            yield from self._run(jobs)

    def _run(self, jobs: Sequence[Job]) -> Iterator[Sample]:
        self._std = {}
        if self.perturbation.rsp:  # now: it runs the embedding, which lanes put hooks on
            _ = self.soft_prompts.fit
        waiting: deque[Row] = deque()
        known: dict[tuple[int, ...], int] = {}
        alike = [known.setdefault(job.clean, number) for number, job in enumerate(jobs)]
        # Longest first: rows of like length decode together, and the estimate of time isn't rosy.
        # Jobs with one clean prompt stand together: their texts are scored together.
        for number in sorted(range(len(jobs)), key=lambda n: (-len(jobs[n].clean), alike[n])):
            job = jobs[number]
            room = self.room(job)
            if room < 1:
                for index in job.samples:
                    yield Sample(number, index, [], 0, "prompt_too_long")
                continue
            limit = min(self.sampling.max_gen_toks, room)
            same = self.sampling.greedy and not self.perturbation.varies
            groups = [job.samples] if same else [(index,) for index in job.samples]
            waiting.extend(Row(number, group[0], group, limit) for group in groups if group)
        while waiting:
            together = waiting
            if self.exact:  # a job's shapes must not depend on the other jobs
                first = waiting[0].job
                together = deque(row for row in waiting if row.job == first)
                waiting = deque(row for row in waiting if row.job != first)
            else:
                waiting = deque()
            missing = Counter(alike[row.job] for row in together)
            yield from self._scored(jobs, alike, missing, self._in_lanes(jobs, together))

    def _scored(
        self, jobs: Sequence[Job], alike: list[int], missing: Counter[int], rows: Iterator[Row]
    ) -> Iterator[Sample]:
        """Samples of finished rows; texts to be scored wait for all behind their clean prompt.

        They are scored together and in an order of their own, so that who decoded them, and when,
        doesn't show in the last digit.

        Args:
            jobs: all of them.
            alike: of each job, the first that has its clean prompt.
            missing: how many rows of all such jobs are to come.
            rows: as they finish.
        """
        finished: dict[int, list[Row]] = {number: [] for number in missing}
        for row in rows:
            group = alike[row.job]
            finished[group].append(row)
            missing[group] -= 1
            if missing[group] and self.perplexity and not self.perturbation.plain:
                continue
            done, finished[group] = finished[group], []
            yield from self._samples(jobs, done)

    def _in_lanes(self, jobs: Sequence[Job], waiting: deque[Row]) -> Iterator[Row]:
        """Decode in one batch, or in several of fewer rows where that keeps more cores busy."""
        slots = min(self.batch_size, len(waiting))
        count = 1
        lean = self.lean is not None and not self.lean.compiled
        if lean and self.device.type == "cpu" and not self.exact:
            count = max(1, min(torch.get_num_threads(), slots // LANE_ROWS))
        if count == 1:
            yield from self._decode(jobs, waiting, slots, lambda: False)
            return
        dealt = [deque(list(waiting)[lane::count]) for lane in range(count)]
        widths = [slots // count + (lane < slots % count) for lane in range(count)]
        yield from run_lanes(
            [
                functools.partial(self._decode, jobs, rows, width)
                for rows, width in zip(dealt, widths, strict=True)
            ]
        )

    def _decode(
        self, jobs: Sequence[Job], waiting: deque[Row], slots: int, stopped: Stopped
    ) -> Iterator[Row]:
        missing = Counter(row.job for row in waiting)
        batch = self._batch(jobs, waiting, missing, slots)
        while (waiting or batch.live) and not stopped():
            for row in batch.leave():
                missing[row.job] -= 1
                if not missing[row.job]:
                    batch.forget(row.job)
                yield row
            joining = [waiting.popleft() for _ in range(min(batch.wants(), len(waiting)))]
            numbers = list(dict.fromkeys(row.job for row in joining))
            if numbers:
                batch.meet({number: jobs[number] for number in numbers}, joining)
            for number in numbers:
                batch.join(number, jobs[number], [row for row in joining if row.job == number])
            if not joining:  # those who joined may have ended at once
                batch.close_up()
                if batch.live:
                    batch.advance()

    def _batch(
        self, jobs: Sequence[Job], waiting: deque[Row], missing: Counter[int], slots: int
    ) -> Batch:
        """Memory for the rows to come, laid out as the perturbation allows."""
        longest = max(row.limit + len(jobs[row.job].prompt_ids) for row in waiting)
        share = (
            self.shares_prompts
            and (self.exact or self._sharing_pays(slots, len(waiting) / len(missing), longest))
            and all(self.head(jobs[number]) for number in missing)
        )
        columns = max(
            row.limit + len(jobs[row.job].prompt_ids) - (self.head(jobs[row.job]) if share else 0)
            for row in waiting
        )
        slots = EXACT_ROWS if self.exact else slots
        how = self.decoding(columns)
        if how == "padded" and self.exact:
            raise ValueError(
                f"exact=true is not available for {type(self.model).__name__}: its rows can't have "
                "columns of their own in the cache (docs/conformance.md); leave exact out"
            )
        if how == "padded":
            return PaddedBatch(self, slots, columns)
        flat_mask = how == "rows, flat mask"
        return Batch(self, slots, columns, share=share, fixed=self.exact, flat_mask=flat_mask)

    def _sharing_pays(self, slots: int, rows: float, longest: int) -> bool:
        """Whether a batch is faster with shared prompts than with a copy for every row.

        Sharing reads less memory and takes more operations, on which a GPU waits: there rows that
        have their prompts themselves are faster while they fit.

        Args:
            slots: rows of the batch.
            rows: of a prompt, on average.
            longest: positions of the longest row.
        """
        if self.device.type != "cuda" or rows < SHARED_ROWS:
            return rows >= SHARED_ROWS
        if self.lean is None:
            return slots <= SHARED_ON_GPU * rows
        free, _ = torch.cuda.mem_get_info(self.device)
        unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        entry = 2 * len(self.blocks) * self.lean.kv_heads * self.lean.dim * self.dtype.itemsize
        return slots * longest * entry > (free + unused) // 2

    def decoding(self, longest: int) -> str:
        """How rows of up to `longest` positions are decoded: see `families.decoding`."""
        return decoding(self.model, self.blocks, None if self.own_attention else longest)

    def _samples(self, jobs: Sequence[Job], rows: list[Row]) -> Iterator[Sample]:
        """Finished rows behind one clean prompt with their clean log-likelihoods."""
        for done, nll in zip(rows, self._nlls(jobs[rows[0].job].clean, rows), strict=True):
            std = self.site_std(done.job, jobs[done.job])
            for index in done.copies:
                seconds = done.seconds if index == done.index else 0.0
                yield Sample(
                    done.job, index, list(done.ids), len(done.text_ids),
                    done.finish_reason, nll, dict(done.rho), dict(std), seconds,
                )  # fmt: skip

    def _nlls(self, clean: tuple[int, ...], rows: list[Row]) -> list[float | None]:
        """The clean log-likelihood of finished rows; equal texts are scored once."""
        if not self.perplexity:
            return [None] * len(rows)
        scores: list[float | None]
        if self.perturbation.plain:
            scores = [sum(row.nlls[: row.kept]) for row in rows]
        else:
            texts = sorted({row.text_ids for row in rows if row.text_ids})
            known = dict(zip(texts, clean_nll(self, clean, texts) if texts else [], strict=True))
            scores = [known.get(row.text_ids, 0.0) for row in rows]
        return [
            None if unscorable(row.finish_reason, len(row.text_ids)) else score
            for row, score in zip(rows, scores, strict=True)
        ]

    @torch.no_grad()
    def loglikelihood(
        self, number: int, job: Job, continuation: Sequence[int]
    ) -> tuple[float, bool, dict[str, float]]:
        """Log-probability of a continuation under a perturbed prompt, whether it is greedy, and ρ.

        Both refer to the model's logits: where these are not numbers the first is NaN and the
        second False.

        Args:
            number: the job's number in its run (its noise scale is computed once).
            job: the context, as sample `job.samples[0]`; the continuation's positions count as
                generated ones.
            continuation: token ids, at least one.
        """
        length, pair = len(job.prompt_ids), (job.problem, job.samples[0])
        ids = torch.tensor([[*job.prompt_ids, *continuation][:-1]], device=self.device)
        std = self.site_std(number, job)
        rows = Rows(
            keys=noise_keys(self.perturbation, [pair], self.device),
            std={
                site: torch.tensor([value], dtype=torch.float64, device=self.device)
                for site, value in std.items()
            },
            prompt_length=torch.tensor([length], device=self.device),
            positions=torch.arange(ids.shape[1], device=self.device)[None],
            soft=self.soft_prompts.vectors([pair]),
            soft_start=job.soft_starts(1, self.device),
        )
        with self.perturbed(rows) as measured:
            logits = self.forward(ids, DynamicCache(), at=None)
        logprobs = logits[0, length - 1 :].float().log_softmax(dim=-1)
        target = torch.tensor(list(continuation), device=self.device)
        chosen = logprobs.gather(1, target[:, None])[:, 0]
        greedy = choose(logits[0, length - 1 :].float(), GREEDY, None)
        score = float(chosen.double().sum())
        return score, bool((greedy == target).all()), mean_ratio(measured, 0)

    def perturbed(self, rows: Rows) -> AbstractContextManager[dict[str, Tensor]]:
        """See `inject.running`; the model's hooks are everybody's, so hold `whole_model`."""
        return running(self.model, self.perturbation, rows, self._list_name)

    def forward(
        self,
        ids: Tensor,
        cache: Cache,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        at: Sequence[int] | None = LAST,
    ) -> Tensor:
        """Logits of one pass of the model over new tokens.

        Args:
            ids: int64 [rows, pos].
            cache: gets the new entries.
            positions: int64 [rows, pos]; None means behind what the cache holds.
            mask: additive 4-D mask; None means causal.
            at: the positions whose logits are wanted; None for all.

        Returns:
            [rows, as many positions, vocab].
        """
        if positions is None:
            start = cache.get_seq_length()
            positions = torch.arange(start, start + ids.shape[1], device=ids.device)
            positions = positions.expand(len(ids), -1)
        kept: dict[str, Any] = {}
        if at is not None and self.keeps_logits:
            wanted = 1 if at == LAST else torch.tensor(at, device=ids.device)
            kept["logits_to_keep"] = wanted
        output = self.model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            **kept,
        )
        logits: Tensor = output.logits
        return logits if at is None or kept else logits[:, list(at)]

    def room(self, job: Job) -> int:
        """How many tokens the model's length leaves behind a job's prompt; none if below 1."""
        return 0 if job.too_long else self.max_length - len(job.prompt_ids)

    def head(self, job: Job) -> int:
        """How many vectors of a job's prompt its samples share; 0 for too few to make use of it."""
        length = len(job.prompt_ids)
        head = perturb.clean_head(self.perturbation, length, job.soft_start)
        return head if head == length or head >= SHARED_HEAD else 0

    def reference(self, job: Job, site: str) -> float | None:
        """The norm m that scales a site's noise on a job's prompt; None for absolute noise."""
        return self.references.norm(job.clean, site)

    def site_std(self, number: int, job: Job) -> dict[str, float]:
        """Site → per-coordinate standard deviation for a job, computed once a run."""
        if number not in self._std:
            with self.whole_model, threads(alone=True):
                self._std[number] = self.references.std(job.clean)
        return self._std[number]

    def stds(self) -> dict[str, list[float]]:
        """Site → per-coordinate standard deviation of every job of the last run."""
        return {site: [std[site] for std in self._std.values()] for site in self.perturbation.sites}
