"""The rows being decoded together: joining, choosing the next token, leaving.

Row i of every per-row tensor and list stands in slot i of the cache. Rows are kept contiguous: when
some end, the last ones move into their slots.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from lm_eval_embednoise import streams
from lm_eval_embednoise.config import Sampling
from lm_eval_embednoise.inject import Rows, noise_keys
from lm_eval_embednoise.slots import SlotCache, decode_mask, seen

if TYPE_CHECKING:
    from lm_eval_embednoise.sampler import Job, Sampler


def choose(logits: Tensor, sampling: Sampling, uniforms: Tensor | None) -> Tensor:
    """The next token of each row: the argmax, or the inverse distribution function at a uniform.

    Args:
        logits: float32 [rows, vocab].
        sampling: temperature and truncation, applied in transformers' order: temperature, top_k,
            top_p, min_p.
        uniforms: float64 [rows] in [0, 1); unused when greedy.

    Returns:
        int64 [rows].
    """
    if sampling.greedy:
        return logits.argmax(dim=-1)
    assert uniforms is not None
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    probabilities = logits.softmax(dim=-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(dim=-1) - ordered
        drop = torch.zeros_like(before, dtype=torch.bool)
        drop.scatter_(1, order, before >= sampling.top_p)
        probabilities = probabilities.masked_fill(drop, 0.0)
    if sampling.min_p > 0:
        least = sampling.min_p * probabilities.max(dim=-1, keepdim=True).values
        probabilities = probabilities.masked_fill(probabilities < least, 0.0)
    cumulative = probabilities.to(torch.float64).cumsum(dim=-1)
    target = uniforms[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp_max(logits.shape[-1] - 1)


@dataclass
class Row:
    """A sample under way.

    Attributes:
        job: index of its job.
        index: its sample index.
        copies: all sample indices it stands for (several when their work is identical).
        limit: most tokens it may generate.
        ids: generated so far.
        kept: how many of `ids` stand before a stop string, once there is one.
        nlls: clean negative log-likelihood of each of `ids`, where decoding itself is clean.
        finish_reason: why it ended.
        rho: site → measured ‖ε‖/‖h‖.
        seconds: share of the wall time.
    """

    job: int
    index: int
    copies: tuple[int, ...]
    limit: int
    ids: list[int] = field(default_factory=list)
    kept: int | None = None
    nlls: list[float] = field(default_factory=list)
    finish_reason: str = "length"
    rho: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def text_ids(self) -> tuple[int, ...]:
        """The generated ids without those that spell the stop string."""
        return tuple(self.ids[: self.kept])


class Batch:
    """Rows under way, their cache, and what the next step needs of each."""

    def __init__(self, sampler: Sampler, cache: SlotCache, flat_mask: bool = False) -> None:
        self.sampler = sampler
        self.flat_mask = flat_mask
        self.cache = cache
        self.rows: list[Row] = []
        self.state: dict[str, Tensor] = {}  # name → [rows, ...]

    def join(self, job: Job, rows: list[Row]) -> None:
        """Prefill a job's prompt for new rows and put them behind the present ones.

        The rows share one prefill unless noise reaches the prompt.
        """
        started = time.perf_counter()
        sampler, device = self.sampler, self.sampler.device
        perturbation, count, length = sampler.perturbation, len(rows), len(job.prompt_ids)
        pairs = [(job.problem, row.index) for row in rows]
        new = {
            "length": torch.full((count,), length, device=device),
            "prompt": torch.full((count,), length, device=device),
        }
        if not sampler.sampling.greedy:
            keys = [streams.stream_key(perturbation.seed, *pair, "sample") for pair in pairs]
            steps = torch.arange(sampler.sampling.max_gen_toks, device=device)
            new["uniform"] = streams.uniform(
                streams.key_words(keys, device), steps.expand(count, -1)
            )
        std = sampler.site_std(rows[0].job, job)
        for site, site_keys in noise_keys(perturbation, pairs, device).items():
            new[f"key {site}"] = site_keys
            new[f"std {site}"] = torch.full((count,), std[site], dtype=torch.float64).to(device)
            new[f"rho {site}"] = torch.zeros(count, 2, dtype=torch.float64, device=device)
        soft = sampler.soft_prompts.vectors(pairs), job.soft_starts(count, device)
        prompt = torch.tensor([job.prompt_ids], device=device)
        prefilled = DynamicCache()
        if perturbation.perturbs_prompt:
            positions = torch.arange(length, device=device).expand(count, -1)
            logits = self._perturbed(new, positions, prompt.expand(count, -1), prefilled, soft=soft)
        else:
            logits = sampler.forward(prompt, prefilled)
        self.cache.fill(len(self.rows), count, prefilled)
        new["logits"] = logits[:, -1].float().expand(count, -1)
        self.state = {
            name: torch.cat([self.state[name], value]) if self.rows else value
            for name, value in new.items()
        }
        self.rows += rows
        _share(started, rows)

    def wants(self, slots: int) -> int:
        """How many of at most `slots` rows should join now: none until a quarter is free."""
        free = slots - len(self.rows)
        return free if free >= max(1, slots // 4) else 0

    def step(self) -> list[Row]:
        """Append every row's next token, let the rows that have ended leave, run the others on.

        Returns:
            The rows that have ended.
        """
        started = time.perf_counter()
        tokens = self._next_tokens()
        everyone = self.rows
        ended = self._settle(tokens)
        left = [self.rows[i] for i in ended]
        if ended:
            for i in ended:
                self.rows[i].rho = self._rho(i)
            tokens = self._close_up(ended, tokens)
        if self.rows:
            self._advance(tokens)
        _share(started, everyone)
        return left

    def _next_tokens(self) -> Tensor:
        state = self.state
        uniforms = None
        if "uniform" in state:
            generated = state["length"] - state["prompt"]
            uniforms = state["uniform"].gather(1, generated[:, None])[:, 0]
        return choose(state["logits"], self.sampler.sampling, uniforms)

    def _settle(self, tokens: Tensor) -> list[int]:
        """Append the tokens to their rows; the slots of rows that have ended."""
        sampler, stop = self.sampler, self.sampler.stop
        nlls: list[float] | None = None
        if sampler.perplexity and sampler.perturbation.plain:
            logprobs = self.state["logits"].log_softmax(dim=-1)
            nlls = (-logprobs.gather(1, tokens[:, None])[:, 0]).tolist()
        may_end = stop.may_end[tokens].tolist() if stop.may_end is not None else None
        ended = []
        for slot, (row, token) in enumerate(zip(self.rows, tokens.tolist(), strict=True)):
            if token in stop.end_tokens:
                row.finish_reason = "end_token"
                ended.append(slot)
                continue
            row.ids.append(token)
            if nlls is not None:
                row.nlls.append(nlls[slot])
            if stop.kept and may_end and may_end[slot]:
                row.kept = stop.kept(row.ids)
            if row.kept is not None:
                row.finish_reason = "stop_string"
                ended.append(slot)
            elif len(row.ids) >= row.limit:
                ended.append(slot)
        return ended

    def _close_up(self, ended: list[int], tokens: Tensor) -> Tensor:
        """Drop the ended rows, moving the last ones into their slots; the remaining tokens."""
        keep = len(self.rows) - len(ended)
        holes = [slot for slot in ended if slot < keep]
        gone = set(ended)
        movers = [slot for slot in range(keep, len(self.rows)) if slot not in gone]
        order = list(range(keep))
        for hole, mover in zip(holes, movers, strict=True):
            order[hole] = mover
        device = tokens.device
        if holes:
            self.cache.move(torch.tensor(movers, device=device), torch.tensor(holes, device=device))
        index = torch.tensor(order, dtype=torch.int64, device=device)
        self.rows = [self.rows[slot] for slot in order]
        self.state = {name: value[index] for name, value in self.state.items()}
        return tokens[index]

    def _advance(self, tokens: Tensor) -> None:
        """One forward pass: the logits after `tokens`, written behind each row's last entry."""
        sampler, state = self.sampler, self.state
        columns = state["length"]
        width = int(columns.max()) + 1
        self.cache.write_at(columns, width)
        if self.flat_mask:
            mask = seen(columns, width)
        else:
            mask = decode_mask(columns, width, sampler.dtype)
        if sampler.perturbation.perturbs_generated:
            logits = self._perturbed(state, columns[:, None], tokens[:, None], self.cache, mask)
        else:
            logits = sampler.forward(tokens[:, None], self.cache, columns[:, None], mask)
        state["logits"] = logits[:, -1].float()
        state["length"] = columns + 1

    def _perturbed(
        self,
        state: dict[str, Tensor],
        positions: Tensor,
        ids: Tensor,
        cache: SlotCache | DynamicCache,
        mask: Tensor | None = None,
        soft: tuple[Tensor | None, Tensor | None] = (None, None),
    ) -> Tensor:
        """A forward pass with noise; what it measured is added to the rows' `rho`."""
        sampler = self.sampler
        sites = tuple(sampler.perturbation.sites)
        rows = Rows(
            keys={site: state[f"key {site}"] for site in sites},
            std={site: state[f"std {site}"] for site in sites},
            prompt_length=state["prompt"],
            positions=positions,
            soft=soft[0],
            soft_start=soft[1],
        )
        with sampler.injector.running(rows):
            logits = sampler.forward(ids, cache, positions, mask)
        for site in sites:
            state[f"rho {site}"] = state[f"rho {site}"] + sampler.injector.measured[site]
        return logits

    def _rho(self, slot: int) -> dict[str, float]:
        sums = {
            site: self.state[f"rho {site}"][slot].tolist()
            for site in self.sampler.perturbation.sites
        }
        return {site: total / count for site, (total, count) in sums.items() if count}


def _share(started: float, rows: list[Row]) -> None:
    """Charge the wall time since `started` to the rows in equal parts."""
    seconds = (time.perf_counter() - started) / max(1, len(rows))
    for row in rows:
        row.seconds += seconds
