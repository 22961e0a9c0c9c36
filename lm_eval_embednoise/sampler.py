"""Tokens in, tokens out: jobs to samples. Knows no text and no harness.

K samples of a problem are one job. A prompt that the perturbation leaves alone is prefilled once
for all of them, otherwise the K noisy prompts are prefilled as a batch; rows that finish make room
for rows of the next jobs; work that would be identical is done once.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from lm_eval_embednoise.batch import Batch, Row
from lm_eval_embednoise.config import Perturbation, Sampling
from lm_eval_embednoise.families import decoding, find_blocks
from lm_eval_embednoise.inject import Injector, Rows, noise_keys
from lm_eval_embednoise.padded import PaddedBatch
from lm_eval_embednoise.reference import References
from lm_eval_embednoise.slots import SlotCache
from lm_eval_embednoise.soft_prompt import SoftPrompts


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
    """

    prompt_ids: tuple[int, ...]
    problem: str
    samples: tuple[int, ...]
    clean_ids: tuple[int, ...] | None = None
    soft_start: int | None = None

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
        finish_reason: "end_token", "stop_string", "length" or "prompt_too_long".
        nll: summed negative log-likelihood of `ids[:kept]` under the clean model in nats, None if
            unasked.
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
        kept: given the generated ids, how many stand before a stop string, or None without one.
    """

    end_tokens: frozenset[int] = frozenset()
    may_end: Tensor | None = None
    kept: Callable[[list[int]], int | None] | None = None


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
        blocks: str | None = None,
    ) -> None:
        """Prepare a run.

        Args:
            model: a causal LM in eval mode.
            perturbation: the noise; inactive means the plain model.
            sampling: greedy, or temperature with truncation, and the token limit.
            stop: end tokens and stop strings.
            batch_size: rows decoded at a time.
            max_length: most input vectors a sample may have.
            token_ids: int64, tokens the `table` reference averages over; None for all.
            perplexity: also compute the clean negative log-likelihood of every sample.
            blocks: dotted name of the model's list of decoder blocks, if it can't be found.

        Raises:
            ValueError: for a site the model doesn't have.
        """
        self.model = model
        self.perturbation = perturbation
        self.sampling = sampling
        self.stop = stop or Stop()
        self.batch_size = batch_size
        self.max_length = max_length
        self.perplexity = perplexity
        self.blocks = find_blocks(model, blocks)
        self.injector = Injector(model, perturbation, blocks)
        embedding: Tensor = model.get_input_embeddings().weight  # type: ignore[operator]
        self.device, self.dtype = embedding.device, embedding.dtype
        self.references = References(model, perturbation, token_ids, blocks)
        self.soft_prompts = SoftPrompts(model, perturbation, token_ids)
        self._std: dict[int, dict[str, float]] = {}
        parameters = inspect.signature(model.forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}

    @torch.no_grad()
    def run(self, jobs: Sequence[Job]) -> Iterator[Sample]:
        """Generate all samples of all jobs, each given out as it finishes.

        A sample whose clean log-likelihood needs a pass of its own comes when its job is complete.
        """
        self._std = {}
        waiting: deque[Row] = deque()
        # Longest first: rows of like length decode together, and the estimate of time isn't rosy.
        for number in sorted(range(len(jobs)), key=lambda n: -len(jobs[n].prompt_ids)):
            job = jobs[number]
            room = self.max_length - len(job.prompt_ids)
            if room < 1:
                for index in job.samples:
                    yield Sample(number, index, [], 0, "prompt_too_long")
                continue
            limit = min(self.sampling.max_gen_toks, room)
            same = self.sampling.greedy and not self.perturbation.varies
            groups = [job.samples] if same else [(index,) for index in job.samples]
            waiting.extend(Row(number, group[0], group, limit) for group in groups if group)
        if waiting:
            yield from self._decode(jobs, waiting)

    def _decode(self, jobs: Sequence[Job], waiting: deque[Row]) -> Iterator[Sample]:
        columns = max(len(jobs[row.job].prompt_ids) + row.limit for row in waiting)
        slots = min(self.batch_size, len(waiting))
        batch = self._batch(slots, columns)
        missing: dict[int, int] = {}
        for row in waiting:
            missing[row.job] = missing.get(row.job, 0) + 1
        finished: dict[int, list[Row]] = {number: [] for number in missing}
        while waiting or batch.rows:
            joining = [waiting.popleft() for _ in range(min(batch.wants(slots), len(waiting)))]
            for number in dict.fromkeys(row.job for row in joining):
                batch.join(jobs[number], [row for row in joining if row.job == number])
            for row in batch.step():
                finished[row.job].append(row)
                missing[row.job] -= 1
                if missing[row.job] and self.perplexity and not self.perturbation.plain:
                    continue  # the job's texts are scored together
                rows, finished[row.job] = finished[row.job], []
                nlls = self._nlls(jobs[row.job], rows)
                for done, nll in zip(rows, nlls, strict=True):
                    for index in done.copies:
                        seconds = done.seconds if index == done.index else 0.0
                        yield Sample(
                            done.job, index, list(done.ids), len(done.text_ids),
                            done.finish_reason, nll, dict(done.rho),
                            dict(self.site_std(done.job, jobs[done.job])), seconds,
                        )  # fmt: skip

    def _batch(self, slots: int, columns: int) -> Batch:
        """Memory for rows to come, as the family of the model allows it."""
        how = decoding(self.model, self.blocks, columns)
        if how == "padded":
            return PaddedBatch(self)
        cache = SlotCache(len(self.blocks), slots, columns)
        return Batch(self, cache, flat_mask=how == "rows, flat mask")

    def _nlls(self, job: Job, rows: list[Row]) -> list[float] | list[None]:
        """The clean log-likelihood of finished rows; equal texts are scored once."""
        if not self.perplexity:
            return [None] * len(rows)
        if self.perturbation.plain:
            return [sum(row.nlls[: row.kept]) for row in rows]
        texts = list(dict.fromkeys(row.text_ids for row in rows if row.text_ids))
        scores = dict(zip(texts, self.clean_nll(job.clean, texts), strict=True))
        return [scores.get(row.text_ids, 0.0) for row in rows]

    @torch.no_grad()
    def clean_nll(self, prompt_ids: Sequence[int], texts: Sequence[tuple[int, ...]]) -> list[float]:
        """Negative log-likelihood of texts after a prompt, at T = 1, by one teacher-forced pass.

        Args:
            prompt_ids: the clean prompt.
            texts: generated ids, each at least one.

        Returns:
            Summed nats, one a text.
        """
        nlls: list[float] = []
        for start in range(0, len(texts), self.batch_size):
            part = texts[start : start + self.batch_size]
            cache = DynamicCache()
            first = self.forward(torch.tensor([list(prompt_ids)], device=self.device), cache)
            cache.batch_repeat_interleave(len(part))
            longest = max(map(len, part))
            padded = [[*text, *([0] * (longest - len(text)))] for text in part]
            ids = torch.tensor(padded, device=self.device)
            logits = first[:, -1:].expand(len(part), -1, -1)
            if longest > 1:
                after = self.forward(ids[:, :-1], cache, every=True)
                logits = torch.cat([logits, after], dim=1)
            chosen = logits.float().log_softmax(dim=-1).gather(2, ids[:, :, None])[:, :, 0]
            lengths = torch.tensor([len(text) for text in part], device=self.device)
            real = torch.arange(longest, device=self.device) < lengths[:, None]
            nlls += (-(chosen.double() * real).sum(dim=1)).tolist()
        return nlls

    @torch.no_grad()
    def loglikelihood(
        self, number: int, job: Job, continuation: Sequence[int]
    ) -> tuple[float, bool]:
        """Log-probability of a continuation under a perturbed prompt, and whether it is greedy.

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
            std={site: torch.tensor([value], dtype=torch.float64) for site, value in std.items()},
            prompt_length=torch.tensor([length], device=self.device),
            positions=torch.arange(ids.shape[1], device=self.device)[None],
            soft=self.soft_prompts.vectors([pair]),
            soft_start=job.soft_starts(1, self.device),
        )
        with self.injector.running(rows):
            logits = self.forward(ids, DynamicCache(), every=True)
        logprobs = logits[0, length - 1 :].float().log_softmax(dim=-1)
        target = torch.tensor(list(continuation), device=self.device)
        chosen = logprobs.gather(1, target[:, None])[:, 0]
        return float(chosen.double().sum()), bool((logprobs.argmax(dim=-1) == target).all())

    def forward(
        self,
        ids: Tensor,
        cache: Cache,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        every: bool = False,
    ) -> Tensor:
        """Logits of one pass of the model over new tokens.

        Args:
            ids: int64 [rows, pos].
            cache: gets the new entries.
            positions: int64 [rows, pos]; None means behind what the cache holds.
            mask: additive 4-D mask; None means causal.
            every: logits of all positions, not of the last alone.

        Returns:
            [rows, pos or 1, vocab].
        """
        if positions is None:
            start = cache.get_seq_length()
            positions = torch.arange(start, start + ids.shape[1], device=ids.device)
            positions = positions.expand(len(ids), -1)
        output = self.model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            **({} if every else self._last_only),
        )
        logits: Tensor = output.logits
        return logits

    def reference(self, job: Job, site: str) -> float | None:
        """The norm m that scales a site's noise on a job's prompt; None for absolute noise."""
        return self.references.norm(job.clean, site)

    def site_std(self, number: int, job: Job) -> dict[str, float]:
        """Site → per-coordinate standard deviation for a job, computed once a run."""
        if number not in self._std:
            self._std[number] = self.references.std(job.clean)
        return self._std[number]

    def stds(self) -> dict[str, list[float]]:
        """Site → per-coordinate standard deviation of every job of the last run."""
        return {site: [std[site] for std in self._std.values()] for site in self.perturbation.sites}
