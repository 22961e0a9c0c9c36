"""The rows being decoded together: joining, choosing the next token, leaving.

Row i of every per-row tensor and list is in slot i of the cache. Rows that end leave holes,
which waiting rows take or the last rows move into.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lm_eval_embednoise.engine import attention
from lm_eval_embednoise.engine.choose import NO_TOKEN, choose, stratified, token_nll
from lm_eval_embednoise.engine.graphs import StepGraphs
from lm_eval_embednoise.engine.prefill import Prepared, prefill_clean, prefill_noisy
from lm_eval_embednoise.engine.slots import SlotCache, decode_mask, seen
from lm_eval_embednoise.kernels import build
from lm_eval_embednoise.noise import perturb, streams
from lm_eval_embednoise.noise.inject import Rows, acting, mean_ratio, noise_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from transformers.cache_utils import Cache

    from lm_eval_embednoise.engine.attention import Shared
    from lm_eval_embednoise.engine.jobs import Job, Row, Stop
    from lm_eval_embednoise.engine.runner import Runner
    from lm_eval_embednoise.engine.sampling import Sampling

AHEAD = 8  # generated positions whose noise is drawn together: many small draws cost more


class Batch:
    """Rows under way, their cache, and what the next step needs of each.

    Args:
        runner: the model.
        sampling: how tokens are chosen.
        stop: when rows end.
        score: keep the log-likelihood of every token, where decoding itself is clean.
        slots: rows decoded at a time.
        columns: memory of each row, in own entries.
        share: keep the entries of a prompt's shared beginning once for all its rows (the model's
            attention must be ours).
        fixed: every pass has `slots` rows and `columns` columns, whatever runs (`exact`).
        flat_mask: the model's attention is its own and takes a mask of [rows, columns].
        on_tokens: told after every pass how many tokens of samples came and of prompts were read.
    """

    def __init__(
        self,
        runner: Runner,
        sampling: Sampling,
        stop: Stop,
        slots: int,
        columns: int,
        *,
        score: bool = True,
        share: bool = False,
        fixed: bool = False,
        flat_mask: bool = False,
        on_tokens: Callable[[int, int], None] | None = None,
    ) -> None:
        self.runner, self.sampling, self.stop, self.score = runner, sampling, stop, score
        self.slots, self.share, self.fixed = slots, share, fixed
        self.flat_mask, self.on_tokens = flat_mask, on_tokens
        self.cache = SlotCache(len(runner.blocks), slots, columns)
        self.rows: list[Row | None] = []
        self.state: dict[str, Tensor] = {}  # name → [slots, ...]
        self.tokens = torch.zeros(slots, dtype=torch.int64, device=runner.device)
        self._prepared: dict[int, Prepared] = {}
        self._noisy_steps = runner.perturbation.perturbs_generated
        self._ahead = self._noisy_steps and not build.serve("draws", runner.embedding)
        self._may_end = None if stop.may_end is None else stop.may_end.tolist()
        self._graphs: StepGraphs | None = None
        self._membership_changed = True
        self._alone = fixed or not runner.keeps_logits  # prompts are prefilled one by one

    @property
    def live(self) -> int:
        """How many rows are under way."""
        return len(self.rows) - self.rows.count(None)

    def wants(self) -> int:
        """How many waiting rows should join now.

        Where joining is nearly free, as many as there are free slots; where it takes a prefill of
        their own, only once a quarter of the slots is free.
        """
        free = self.slots - self.live
        cheap = self.share and not self.runner.perturbation.perturbs_prompt and not self._ahead
        return free if cheap or not self.live or free >= max(1, self.slots // 4) else 0

    def prepare(self, jobs: dict[int, Job], rows: list[Row]) -> None:
        """Get ready for the rows of jobs that are about to join; what they share is prefilled."""
        started = time.perf_counter()
        new = [number for number in jobs if number not in self._prepared]
        for number in new:
            self._prepared[number] = self._streams_of(number, jobs[number])
        shared = [self._prepared[number] for number in new if self._prepared[number].shared_len]
        prefill_clean(self.runner, shared, self._alone, self._read)
        _charge(started, rows)

    def join(self, number: int, job: Job, rows: list[Row]) -> None:
        """Put new rows of a prepared job into free slots, choose their first tokens.

        The rows share the prompt's prefill up to where noise or a soft prompt reaches it.
        """
        started = time.perf_counter()
        device = self.runner.device
        ready = self._prepared[number]
        holes = [slot for slot, row in enumerate(self.rows) if row is None]
        free = [*holes, *range(len(self.rows), self.slots)][: len(rows)]
        self.rows += [None] * (max(free) + 1 - len(self.rows))
        slots = torch.tensor(free, device=device)
        places = torch.tensor([ready.place[row.index] for row in rows], device=device)
        length, shared = len(job.prompt_ids), ready.shared_len if self.share else 0
        new = {
            "offset": torch.full((len(rows),), shared, device=device),
            "write": torch.full((len(rows),), length - shared, device=device),
            "prompt": torch.full((len(rows),), length, device=device),
        }
        if ready.uniforms is not None:
            new["uniform"] = ready.uniforms[places]
        for site, keys in ready.keys.items():
            new[f"key {site}"] = keys[places]
            new[f"std {site}"] = torch.full(
                (len(rows),), ready.std[site], dtype=torch.float64, device=device
            )
            new[f"rho {site}"] = torch.zeros(len(rows), 2, dtype=torch.float64, device=device)
        if self.runner.perturbation.perturbs_prompt:
            pairs = [(job.problem, row.index) for row in rows]
            noise = self._streams(new)
            noise.soft = self.runner.soft_prompts.vectors(pairs)
            noise.soft_start = job.soft_starts(len(rows), device)
            tile = self.slots if self.fixed else None
            logits, measured = prefill_noisy(
                self.runner, self.cache, ready, noise, slots, self._read, tile
            )
            _add_up(new, measured)
        else:
            assert ready.logits is not None
            assert ready.entries is not None
            logits = ready.logits.expand(len(rows), -1)
            if not self.share:
                self.cache.fill(slots, ready.entries)
        for name, value in new.items():
            if name not in self.state:
                self.state[name] = value.new_zeros((self.slots, *value.shape[1:]))
            self.state[name][slots] = value
        for slot, row in zip(free, rows, strict=True):
            row.base = length - shared
            self.rows[slot] = row
        self._membership_changed = True
        self._choose(logits, free, slots)
        _charge(started, rows)

    def _streams_of(self, number: int, job: Job) -> Prepared:
        runner, device = self.runner, self.runner.device
        seed = runner.perturbation.seed
        uniforms = None
        if not self.sampling.greedy:
            words = (streams.stream_key(seed, job.problem, s, "sample") for s in job.samples)
            steps = torch.arange(self.sampling.max_gen_toks, device=device)
            keys = streams.key_words(words, device)
            uniforms = streams.uniform(keys, steps.expand(len(job.samples), -1))
        # Where rows keep all entries themselves, a prompt is run once or for each row as a whole.
        whole = not self.share and runner.perturbation.perturbs_prompt
        return Prepared(
            job,
            {sample: place for place, sample in enumerate(job.samples)},
            uniforms,
            noise_keys(runner.perturbation, [(job.problem, s) for s in job.samples], device),
            runner.site_std(number, job),
            0 if whole else runner.shared_len(job),
        )

    def leave(self) -> Iterator[Row]:
        """Take out the rows that have ended; their slots are free."""
        for slot, row in enumerate(self.rows):
            if row is not None and row.finish_reason:
                if row.finish_reason == "numeric":
                    self.cache.wipe(slot)
                row.rho = self._rho(slot)
                self.rows[slot] = None
                self._membership_changed = True
                yield row

    def close_up(self) -> None:
        """Move the last rows into the free slots before them, so that rows are contiguous."""
        if self.fixed:
            return
        keep = self.live
        holes = [slot for slot in range(keep) if self.rows[slot] is None]
        movers = [slot for slot in range(keep, len(self.rows)) if self.rows[slot] is not None]
        moved = [row for slot in movers if (row := self.rows[slot]) is not None]
        if holes:
            source = torch.tensor(movers, device=self.tokens.device)
            target = torch.tensor(holes, device=self.tokens.device)
            self.cache.move(source, target, max(row.entered for row in moved))
            for tensor in (self.tokens, *self.state.values()):
                tensor[target] = tensor[source]
            for hole, row in zip(holes, moved, strict=True):
                self.rows[hole] = row
        del self.rows[keep:]

    def advance(self) -> None:
        """One forward pass: every row's latest token is entered and the one after it chosen."""
        started = time.perf_counter()
        if self._membership_changed and self.share:
            self.cache.share(self._prompts())
        self._membership_changed = False
        count = self.slots if self.fixed else len(self.rows)
        state = {name: values[:count] for name, values in self.state.items()}
        positions = (state["offset"] + state["write"])[:, None]
        logits = self._enter(state, self.tokens[:count, None], positions)
        state["write"] += 1
        if self.fixed:  # slots without a row run along, but not out of their memory
            state["write"].clamp_(max=self.cache.columns - 1)
        present = [slot for slot, row in enumerate(self.rows) if row is not None]
        self._choose(logits[:, -1].float(), present, None)
        _charge(started, [row for row in self.rows if row is not None])

    def _enter(self, state: dict[str, Tensor], tokens: Tensor, positions: Tensor) -> Tensor:
        """The forward pass over one token a row: logits [rows, 1, vocab]."""
        runner = self.runner
        used = [row.entered + 1 for row in self.rows if row is not None]
        write, width = state["write"], self.cache.columns if self.fixed else max(used)
        self.cache.write_at(write, width, even=not self.fixed and min(used) == width)
        if runner.lean is not None:
            return self._lean(state, tokens, positions)
        if runner.own_attention:
            with attention.serving(runner.attention_configs, self.cache):
                return self._forward(state, positions, tokens, self.cache, None)
        mask = seen(write, width) if self.flat_mask else decode_mask(write, width, runner.dtype)
        return self._forward(state, positions, tokens, self.cache, mask)

    def _lean(self, state: dict[str, Tensor], tokens: Tensor, positions: Tensor) -> Tensor:
        """The same by `lean.Lean`, which needs no hooks for the noise."""
        runner = self.runner
        assert runner.lean is not None
        if self._recordable:
            return self._replayed(state, tokens, positions)
        if not self._noisy_steps:
            return runner.lean.step(tokens, self.cache, positions)
        act, measured = acting(runner.perturbation, self._noise(state, positions))
        sites = runner.perturbation.sites.keys()
        logits = runner.lean.step(tokens, self.cache, positions, act, sites)
        _add_up(state, measured)
        return logits

    @property
    def _recordable(self) -> bool:
        """Whether the step can be replayed from a recording (graphs.py)."""
        shaped = bool(self.runner.roots)
        return self.runner.device.type == "cuda" and not (self.share or self.fixed or shaped)

    def _replayed(self, state: dict[str, Tensor], tokens: Tensor, positions: Tensor) -> Tensor:
        """`_lean` on a GPU, where rows have all their entries themselves."""
        runner = self.runner
        assert runner.lean is not None
        if self._graphs is None:
            noisy = runner.perturbation if self._noisy_steps else None
            self._graphs = StepGraphs(runner.lean, self.cache, noisy)
        noise = self._drawn_ahead(positions[:, 0]) if self._noisy_steps else {}
        logits, measured = self._graphs.step(
            tokens, positions, state["write"], self.cache.width, noise
        )
        _add_up(state, measured)
        return logits

    def _forward(
        self,
        state: dict[str, Tensor],
        positions: Tensor,
        tokens: Tensor,
        cache: Cache,
        mask: Tensor | None,
    ) -> Tensor:
        """A pass over generated tokens, with noise where the perturbation puts some there."""
        runner = self.runner
        if not self._noisy_steps:
            return runner.forward(tokens, cache, positions, mask)
        with runner.perturbed(self._noise(state, positions)) as measured:
            logits = runner.forward(tokens, cache, positions, mask)
        _add_up(state, measured)
        return logits

    def _prompts(self) -> list[tuple[Tensor | None, list[Shared]]]:
        """The shared prompts of the present rows, and who sees which."""
        jobs = [row.job for row in self.rows if row is not None]
        prompts: list[tuple[Tensor | None, list[Shared]]] = []
        for number in dict.fromkeys(jobs):
            prompts.append((None, self._prepared[number].shared))
        if len(prompts) > 1:
            of = torch.tensor(jobs, device=self.tokens.device)
            numbers = dict.fromkeys(jobs)
            prompts = [
                (torch.nonzero(of == number)[:, 0], shared)
                for number, (_, shared) in zip(numbers, prompts, strict=True)
            ]
        return prompts

    def _streams(self, state: dict[str, Tensor]) -> Rows:
        """The rows' noise, at no positions yet."""
        sites = self.runner.perturbation.sites
        keys = {site: state[f"key {site}"] for site in sites}
        std = {site: state[f"std {site}"] for site in sites}
        return Rows(keys, std, state["prompt"], roots=self.runner.roots)

    def _noise(self, state: dict[str, Tensor], positions: Tensor) -> Rows:
        """The rows' noise at one position each, [rows, 1]."""
        rows = self._streams(state)
        rows.positions = positions
        if self._ahead:
            rows.drawn = self._drawn_ahead(positions[:, 0])
        return rows

    def _drawn_ahead(self, positions: Tensor) -> dict[str, Tensor]:
        """Site → noise of each row's new entry, [rows, 1, dim]; drawn AHEAD positions at a time."""
        runner, device = self.runner, positions.device
        spent = []
        for slot, row in enumerate(self.rows):
            if row is not None and len(row.ids) > row.drawn:
                row.drawn = len(row.ids) + AHEAD - 1
                spent.append(slot)
        if "ahead" not in self.state:
            self.state["ahead"] = torch.zeros(self.slots, dtype=torch.int64, device=device)
        if spent:
            slots = torch.tensor(spent, device=device)
            self.state["ahead"][slots] = positions[slots]
            coming = positions[slots, None] + torch.arange(AHEAD, device=device)
            rows = self._streams(self.state).chosen(slots, coming)
            for site in runner.perturbation.sites:
                std = rows.deviations(runner.perturbation, site)
                noise = perturb.draw(
                    runner.perturbation, rows.keys[site], coming, std, runner.references.width(site)
                )
                name = f"noise {site}"
                if name not in self.state:
                    self.state[name] = noise.new_zeros((self.slots, *noise.shape[1:]))
                self.state[name][slots] = noise
        count = len(positions)
        ahead = (positions - self.state["ahead"][:count]).clamp(0, AHEAD - 1)
        line = torch.arange(count, device=device)
        return {
            site: self.state[f"noise {site}"][line, ahead][:, None]
            for site in runner.perturbation.sites
        }

    def _choose(self, logits: Tensor, present: list[int], slots: Tensor | None) -> None:
        """Choose the next token of some rows, or of all, and see whether it ends them.

        Args:
            logits: float32 [rows, vocab].
            present: slots of the rows that are there.
            slots: int64 [rows], whose logits these are; None for slots 0 to rows - 1.
        """
        runner, state = self.runner, self.state
        uniforms = step = None
        if "uniform" in state:
            step = state["offset"] + state["write"] - state["prompt"]
            if slots is None:
                step, uniform = step[: len(logits)], state["uniform"][: len(logits)]
            else:
                step, uniform = step[slots], state["uniform"][slots]
            step = step.clamp_max(uniform.shape[1] - 1)
            uniforms = uniform.gather(1, step[:, None])[:, 0]
        strata = self.sampling.strata
        if strata and slots is not None:  # only rows that join have their first token to come
            rows = [row.index for slot in present if (row := self.rows[slot]) is not None]
            samples = torch.tensor(rows, device=logits.device)
            choices = stratified(logits, samples, strata)
        else:
            choices = choose(logits, self.sampling, uniforms, step)
        tokens = choices.clamp_min(0)  # a row without a token ends, but may run along once more
        nlls: list[float] | None = None
        if self.score and runner.perturbation.plain:
            nlls = token_nll(logits, tokens).tolist()
        if slots is None:
            self.tokens[: len(tokens)] = tokens
        else:
            self.tokens[slots] = tokens
        listed, came = choices.tolist(), 0
        for place, slot in enumerate(present):
            at = slot if slots is None else place
            row = self.rows[slot]
            assert row is not None
            before = len(row.ids)
            self._settle(row, listed[at], None if nlls is None else nlls[at])
            came += (len(row.ids) - before) * len(row.copies)
        if self.on_tokens is not None:
            self.on_tokens(came, 0)

    def _read(self, positions: int) -> None:
        if self.on_tokens is not None:
            self.on_tokens(0, positions)

    def _settle(self, row: Row, token: int, nll: float | None) -> None:
        """Append a token to its row, or end the row."""
        stop = self.stop
        if token == NO_TOKEN:
            row.finish_reason = "numeric"
            return
        if token in stop.end_tokens:
            row.finish_reason = "end_token"
            return
        row.ids.append(token)
        if nll is not None:
            row.nlls.append(nll)
        if stop.kept and self._may_end and self._may_end[token]:
            row.kept = stop.kept(row.ids, self._prepared[row.job].job.clean)
        if row.kept is not None:
            row.finish_reason = "stop_string"
        elif len(row.ids) >= row.limit:
            row.finish_reason = "length"

    def _rho(self, slot: int) -> dict[str, float]:
        sites = self.runner.perturbation.sites
        return mean_ratio({site: self.state[f"rho {site}"] for site in sites}, slot)

    def forget(self, number: int) -> None:
        """A job is done: let go of its prompt."""
        self._prepared.pop(number, None)


def _add_up(state: dict[str, Tensor], measured: dict[str, Tensor]) -> None:
    """Add what a pass measured at each site to the rows' sums."""
    for site, sums in measured.items():
        state[f"rho {site}"] += sums.to(state[f"rho {site}"])


def _charge(started: float, rows: list[Row]) -> None:
    """Charge the wall time since `started` to the rows in equal parts."""
    seconds = (time.perf_counter() - started) / max(1, len(rows))
    for row in rows:
        row.seconds += seconds
