"""Tokens in, tokens out: jobs to samples, without text and without the harness.

K samples of a problem are one job. A prompt that the perturbation leaves alone is prefilled once
for all of them, otherwise the K noisy prompts are prefilled as a batch; rows that finish make room
for rows of the next jobs; work that would be identical is done once.
"""

from __future__ import annotations

import functools
from collections import Counter, deque
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from lm_eval_embednoise.engine.batch import Batch
from lm_eval_embednoise.engine.choose import choose
from lm_eval_embednoise.engine.families import Decoding
from lm_eval_embednoise.engine.jobs import Job, Row, Sample, Stop
from lm_eval_embednoise.engine.lanes import Stopped, run_lanes
from lm_eval_embednoise.engine.likelihood import clean_nll, scored, unscorable
from lm_eval_embednoise.engine.padded import PaddedBatch
from lm_eval_embednoise.engine.room import MOST_ROWS, free_bytes, rows_that_fit
from lm_eval_embednoise.engine.runner import EXACT_ROWS, Runner
from lm_eval_embednoise.engine.sampling import Sampling
from lm_eval_embednoise.engine.weight_noise import PROBLEMS
from lm_eval_embednoise.noise.inject import Rows, mean_ratio, noise_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from lm_eval_embednoise.engine.weight_noise import WeightNoise
    from lm_eval_embednoise.noise.clean_states import CleanStates
    from lm_eval_embednoise.noise.perturbation import Perturbation

LANE_ROWS = 16  # fewest rows that are worth a lane
GREEDY = Sampling()
SHARED_ROWS = 4  # rows a job on average from which a shared prompt pays
SHARED_ON_GPU = 2  # most prompts in a batch up to which it pays on a GPU


class Sampler:
    """Generates the samples of jobs with one model, one perturbation and one way of sampling."""

    def __init__(
        self,
        model: torch.nn.Module,
        perturbation: Perturbation,
        sampling: Sampling,
        stop: Stop | None = None,
        *,
        batch_size: int | None = 64,
        most_rows: int | None = None,
        max_length: int = 2048,
        token_ids: Tensor | None = None,
        perplexity: bool = True,
        exact: bool = False,
        compiled: bool = False,
        blocks: str | None = None,
        decoder: str = "auto",
        on_tokens: Callable[[int, int], None] | None = None,
        states: CleanStates | None = None,
    ) -> None:
        """Prepare a run.

        Args:
            model: a causal LM in eval mode.
            perturbation: the noise; inactive means the plain model.
            sampling: greedy, or temperature with truncation, and the token limit.
            stop: end tokens and stop strings.
            batch_size: rows decoded at a time; None for as many as fit (room.py).
            most_rows: upper bound of these; `room.MOST_ROWS` by default.
            max_length: most input vectors a sample may have; fewer where the model's rotary
                frequencies would depend on other samples (`families.steady_positions`).
            token_ids: int64, tokens the `table` reference averages over; None for all.
            perplexity: also compute the clean negative log-likelihood of every sample.
            exact: run every pass in one shape, so that rounding is the same in any company.
            compiled: compile the short decode step (see lean.py).
            blocks: dotted name of the model's list of decoder blocks, if it can't be found.
            decoder: "auto" takes the fastest way that serves the model; "torch" leaves out the
                functions in C, "model" the short decode step as well.
            on_tokens: told after every pass how many tokens of samples came and how many of
                prompts were read, by the thread that decodes: one of several on a CPU. Tokens of
                identical work count for each of its samples, a prompt as often as it is run.
            states: the clean model's, for `sigma_reference=decode` and `noise_law=covariance`.

        Raises:
            ValueError: for a site the model doesn't have, where nothing can be compiled, or for
                `exact` with a model that can't be.
        """
        self.runner = Runner(
            model, perturbation, max_length=max_length, token_ids=token_ids, exact=exact,
            compiled=compiled, blocks=blocks, decoder=decoder, states=states,
        )  # fmt: skip
        config: Any = model.config
        if sampling.strata > (tokens := config.get_text_config().vocab_size):
            raise ValueError(
                f"first_token={sampling.first_token}: the model has {tokens} tokens, and N must "
                "not be above that"
            )
        self.perturbation, self.sampling, self.stop = perturbation, sampling, stop or Stop()
        self.batch_size, self.most_rows = batch_size, most_rows or MOST_ROWS
        self.perplexity, self.exact = perplexity, exact
        self.on_tokens = on_tokens

    @property
    def max_length(self) -> int:
        """Most input vectors that a sample may have."""
        return self.runner.max_length

    def ready(self) -> AbstractContextManager[None]:
        """See `Runner.ready`; with noise on the weights they are laid out for each draw alone."""
        return nullcontext() if self.runner.weights else self.runner.ready()

    @torch.inference_mode()
    def run(self, jobs: Sequence[Job]) -> Iterator[Sample]:
        """Generate all samples of all jobs, each given out as it finishes.

        A sample whose clean log-likelihood needs a separate pass comes once all texts after its
        clean prompt are there. Until the iterator ends or is closed, the model's weights may be
        laid out for speed.
        """
        with self.ready():
            for together in self.scored(jobs, self.generate(jobs)):
                yield from together

    def rows(self, jobs: Sequence[Job]) -> int:
        """Rows decoded at a time: what fits is found at the first call, within `ready`."""
        if self.batch_size is None:
            tokens = self.sampling.max_gen_toks
            self.batch_size = rows_that_fit(self.runner, jobs, tokens, self.most_rows)
        return self.batch_size

    def scored(self, jobs: Sequence[Job], samples: Iterable[Sample]) -> Iterator[list[Sample]]:
        """Finished samples with their clean log-likelihoods, if these are wanted at all.

        See `likelihood.scored`.
        """
        if self.perplexity:
            yield from scored(self.runner, jobs, samples, self.batch_size or self.most_rows)
        else:
            yield from ([sample] for sample in samples)

    @torch.inference_mode()
    def generate(self, jobs: Sequence[Job]) -> Iterator[Sample]:
        """Generate all samples of all jobs, without a pass to score them.

        They have a clean log-likelihood only where decoding itself is clean.
        """
        with self.ready():
            yield from self._generate(jobs)

    def _generate(self, jobs: Sequence[Job]) -> Iterator[Sample]:
        rsp = self.runner.perturbation.rsp
        for job in jobs:
            if (job.soft_start is not None) != bool(rsp):
                raise ValueError(
                    f"job {job.problem!r} has soft_start={job.soft_start} and the perturbation "
                    f"rsp={rsp}; a soft prompt takes the place of rsp placeholders from there on"
                )
        self.runner.begin()
        waiting: deque[Row] = deque()
        known: dict[tuple[int, ...], int] = {}
        alike = [known.setdefault(job.clean, number) for number, job in enumerate(jobs)]
        # Longest first: rows of like length decode together, and time isn't underestimated.
        # Jobs with one clean prompt follow each other: their texts are scored together.
        for number in sorted(range(len(jobs)), key=lambda n: (-len(jobs[n].clean), alike[n])):
            job = jobs[number]
            room = self.runner.room(job)
            if room < 1:
                for index in job.samples:
                    yield Sample(number, index, [], 0, "prompt_too_long")
                continue
            limit = min(self.sampling.max_gen_toks, room)
            same = self.sampling.greedy and not self.perturbation.varies
            groups = self.sampling.alike(job.samples) if same else [(i,) for i in job.samples]
            waiting.extend(Row(number, group[0], group, limit) for group in groups)
        if self.runner.weights is None:
            yield from self._decoded(jobs, waiting)
        else:
            yield from self._by_draws(self.runner.weights, jobs, waiting)

    def _by_draws(
        self, weights: WeightNoise, jobs: Sequence[Job], waiting: deque[Row]
    ) -> Iterator[Sample]:
        """Samples under noise on the weights: those of one draw and some problems run together.

        They are given out when its weights are gone, since scores and norms are the plain model's.
        """
        draw_of = self.perturbation.draw_of
        numbers = list(dict.fromkeys(row.job for row in waiting))
        for number in numbers:
            self.runner.site_std(number, jobs[number])
        for start in range(0, len(numbers), PROBLEMS):
            group = set(numbers[start : start + PROBLEMS])
            rows = [row for row in waiting if row.job in group]
            for draw in sorted({draw_of(row.index) for row in rows}):
                together = deque(row for row in rows if draw_of(row.index) == draw)
                with weights.drawn(draw), self.runner.ready():
                    samples = list(self._decoded(jobs, together))
                with self.runner.ready():
                    yield from samples

    def _decoded(self, jobs: Sequence[Job], waiting: deque[Row]) -> Iterator[Sample]:
        while waiting:
            together = waiting
            if self.exact:  # a job's shapes must not depend on the other jobs
                first = waiting[0].job
                together = deque(row for row in waiting if row.job == first)
                waiting = deque(row for row in waiting if row.job != first)
            else:
                waiting = deque()
            for row in self._in_lanes(jobs, together):
                yield from self._samples(jobs[row.job], row)

    def _in_lanes(self, jobs: Sequence[Job], waiting: deque[Row]) -> Iterator[Row]:
        """Decode in one batch, or in several of fewer rows where that keeps more cores busy."""
        slots = min(self.rows(jobs), len(waiting))
        count = 1
        lean = self.runner.lean is not None and not self.runner.lean.compiled
        if lean and self.runner.device.type == "cpu" and not self.exact:
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
                batch.prepare({number: jobs[number] for number in numbers}, joining)
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
        runner = self.runner
        longest = max(row.limit + len(jobs[row.job].prompt_ids) for row in waiting)
        share = (
            runner.shares_prompts
            and (self.exact or self._sharing_pays(slots, len(waiting) / len(missing), longest))
            and all(runner.shared_len(jobs[number]) for number in missing)
        )
        columns = longest
        if share:
            shared = {number: runner.shared_len(jobs[number]) for number in missing}
            columns = max(
                row.limit + len(jobs[row.job].prompt_ids) - shared[row.job] for row in waiting
            )
        slots = EXACT_ROWS if self.exact else slots
        how = runner.decoding(columns)
        if how is Decoding.PADDED and self.exact:
            raise ValueError(
                f"exact=true is not available for {type(runner.model).__name__}: its rows can't "
                "have columns of their own in the cache (docs/conformance.md); leave exact out"
            )
        if how is Decoding.PADDED:
            return PaddedBatch(
                runner, self.sampling, self.stop, slots, columns,
                score=self.perplexity, on_tokens=self.on_tokens,
            )  # fmt: skip
        return Batch(
            runner, self.sampling, self.stop, slots, columns,
            score=self.perplexity, share=share, fixed=self.exact,
            flat_mask=how is Decoding.FLAT_MASK, on_tokens=self.on_tokens,
        )  # fmt: skip

    def _sharing_pays(self, slots: int, rows: float, longest: int) -> bool:
        """Whether a batch is faster with shared prompts than with a copy for every row.

        Sharing reads less memory and takes more operations, on which a GPU waits: there rows that
        have their prompts themselves are faster while they fit.

        Args:
            slots: rows of the batch.
            rows: of a prompt, on average.
            longest: positions of the longest row.
        """
        runner = self.runner
        if runner.device.type != "cuda" or rows < SHARED_ROWS:
            return rows >= SHARED_ROWS
        if runner.lean is None:
            return slots <= SHARED_ON_GPU * rows
        lean = runner.lean
        entry = 2 * len(runner.blocks) * lean.kv_heads * lean.dim * runner.dtype.itemsize
        return slots * longest * entry > free_bytes(runner) // 2

    def _samples(self, job: Job, row: Row) -> Iterator[Sample]:
        """A finished row's samples: several where their work was identical."""
        nll = None
        clean = self.perplexity and self.perturbation.plain
        if clean and not unscorable(row.finish_reason, len(row.text_ids)):
            nll = sum(row.nlls[: row.kept])
        std = self.runner.site_std(row.job, job)
        for index in row.copies:
            seconds = row.seconds if index == row.index else 0.0
            yield Sample(
                row.job, index, list(row.ids), len(row.text_ids),
                row.finish_reason, nll, dict(row.rho), dict(std), seconds,
            )  # fmt: skip

    def clean_nll(
        self, prompt_ids: Sequence[int], texts: Sequence[tuple[int, ...]]
    ) -> list[float | None]:
        """See `likelihood.clean_nll`."""
        return clean_nll(self.runner, prompt_ids, texts, self.batch_size or self.most_rows)

    def drawn(self, index: int) -> AbstractContextManager[None]:
        """Within the context the weights are those of a sample index, where they have noise."""
        weights = self.runner.weights
        drawn = self.perturbation.draw_of(index)
        return nullcontext() if weights is None else weights.drawn(drawn)

    @torch.no_grad()
    def loglikelihood(
        self, number: int, job: Job, continuation: Sequence[int]
    ) -> tuple[float, bool, dict[str, float]]:
        """Log-probability of a continuation under a perturbed prompt, whether it is greedy, and ρ.

        Both refer to the model's logits: where these are not numbers the first is NaN and the
        second False.

        Args:
            number: the job's number in its run (its noise scale is computed once, outside of
                `drawn`).
            job: the context, as sample `job.samples[0]`; the continuation's positions count as
                generated ones.
            continuation: token ids, at least one.
        """
        length, pair = len(job.prompt_ids), (job.problem, job.samples[0])
        ids = torch.tensor([[*job.prompt_ids, *continuation][:-1]], device=self.runner.device)
        std = self.runner.site_std(number, job)
        rows = Rows(
            keys=noise_keys(self.perturbation, [pair], self.runner.device),
            std={
                site: torch.tensor([value], dtype=torch.float64, device=self.runner.device)
                for site, value in std.items()
            },
            prompt_length=torch.tensor([length], device=self.runner.device),
            positions=torch.arange(ids.shape[1], device=self.runner.device)[None],
            soft=self.runner.soft_prompts.vectors([pair]),
            soft_start=job.soft_starts(1, self.runner.device),
            roots=self.runner.roots,
        )
        with self.drawn(job.samples[0]), self.runner.perturbed(rows) as measured:
            logits = self.runner.forward(ids, DynamicCache(), at=None)
        logprobs = logits[0, length - 1 :].float().log_softmax(dim=-1)
        target = torch.tensor(list(continuation), device=self.runner.device)
        chosen = logprobs.gather(1, target[:, None])[:, 0]
        greedy = choose(logits[0, length - 1 :].float(), GREEDY, None)
        score = float(chosen.double().sum())
        return score, bool((greedy == target).all()), mean_ratio(measured, 0)
