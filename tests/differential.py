"""Random cases, engine against reference: `python -m tests.differential --minutes 30`.

A case is a model, a perturbation, a way of sampling and of stopping, jobs, and a way of running
them; a seed and a number determine all of it. The engine decodes the jobs together; then each
sample is held against a pass of its own without any cache (cacheless.py): tokens, end, clean
log-likelihood, standard deviation and ρ of the noise. A token that differs is a near tie if
rounding can explain it (the reference's margin is that small, or the reference itself takes it
when its hidden states are moved in their last digits), otherwise a fault.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import random
import sys
import time
import traceback
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from lm_eval_embednoise.engine.jobs import Job, Sample, Stop
from lm_eval_embednoise.engine.sampler import Sampler
from lm_eval_embednoise.engine.sampling import Sampling
from lm_eval_embednoise.noise.clean_states import CleanStates, covariance_roots, decode_norms
from lm_eval_embednoise.noise.perturbation import Perturbation
from tests.support.cacheless import (
    Cacheless,
    Pass,
    cdf,
    first_token,
    likeliest_at,
    nll_of,
    stream_key,
    uniform,
)
from tests.support.families import VOCABULARY, build

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WIDE = {"hidden_size": 64, "head_dim": 16, "num_attention_heads": 4}  # for the passes in C
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 24,
    "short_factor": [1.0] * 4,
    "long_factor": [3.0] * 4,
}
DYNAMIC_ROPE = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
LONG = {"rope_parameters": LONG_ROPE, "original_max_position_embeddings": 24}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama wide": ("llama", WIDE),
    "llama with bos": ("llama", {**WIDE, "bos_token_id": 1}),
    "qwen2 windowed": ("qwen2", {}),
    "qwen2 tied": ("qwen2", {"tie_word_embeddings": True, "use_sliding_window": False}),
    "qwen2 wide": ("qwen2", {**WIDE, "use_sliding_window": False}),
    "mistral": ("mistral", {}),
    "mixtral": ("mixtral", {}),
    "qwen3": ("qwen3", {}),
    "gemma2": ("gemma2", {}),
    "gpt2": ("gpt2", {}),
    "opt": ("opt", {}),
    "falcon": ("falcon", {}),
    "falcon alibi": ("falcon:alibi", {}),
    "phimoe": ("phimoe", {}),
    "gpt_oss": ("gpt_oss", {}),
    "deepseek_v2": ("deepseek_v2", {}),
    "phi3 longrope": ("phi3", LONG),
    "llama dynamic": ("llama", {"rope_parameters": DYNAMIC_ROPE, "max_position_embeddings": 24}),
}
TEMPERED = (
    "llama",
    "llama wide",
    "qwen2 windowed",
    "qwen2 wide",
    "mistral",
    "gemma2",
    "gpt2",
    "opt",
)
MIXTURES = ("mixtral", "phimoe", "gpt_oss", "deepseek_v2")
LIMIT = 128  # the models' positions
# By how much, relatively, hidden states are moved to see what rounding can do: from one unit in the
# last place to a few; in float32, where a router's tie can be finer than that, to a hundred.
JITTERS = {
    torch.float32: [2.0 ** (n - 23) for n in range(8)],
    torch.bfloat16: [2.0 ** (n // 2 - 8) for n in range(8)],
    torch.float16: [2.0 ** (n // 2 - 11) for n in range(8)],
}


@dataclass(frozen=True)
class Case:
    """All that one comparison needs; drawn by `draw`."""

    model: str
    dtype: torch.dtype
    perturbation: dict[str, Any]
    sampling: dict[str, Any]
    ends: frozenset[int]
    stops: frozenset[tuple[int, int]]
    jobs: tuple[Job, ...]
    batch_size: int
    threads: int
    exact: bool
    kernels: bool
    perplexity: bool
    device: str

    def __str__(self) -> str:
        told = {
            "model": self.model,
            "dtype": str(self.dtype).removeprefix("torch."),
            **self.perturbation,
            **self.sampling,
            "ends": len(self.ends),
            "stops": len(self.stops),
            "prompts": [len(job.prompt_ids) for job in self.jobs[:8]],
            "K": [len(job.samples) for job in self.jobs[:8]],
            "batch_size": self.batch_size,
            "threads": self.threads,
            "exact": self.exact,
            "kernels": self.kernels,
        }
        return ", ".join(f"{name}={value}" for name, value in told.items())


@dataclass
class Result:
    """Counts over cases, and what was wrong."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def fault(self, what: str) -> None:
        self.faults.append(what)
        self.counts["faults"] += 1


@functools.cache
def model_of(name: str, dtype: torch.dtype, device: str) -> Any:
    """A tiny random model, shared by all cases."""
    family, more = MODELS[name]
    if (dtype, device) != (torch.float32, "cpu"):
        return copy.deepcopy(model_of(name, torch.float32, "cpu")).to(device, dtype)
    return build(family, **more)


# ── Drawing a case ────────────────────────────────────────────────────────────────────────────────


def draw(seed: int, number: int, device: str = "cpu") -> Case:
    """Case `number` of a seed."""
    rng = random.Random(f"{seed}/{number}")
    name = rng.choice(list(MODELS))
    half = name not in MIXTURES and rng.random() < 0.25
    dtype = rng.choice([torch.bfloat16, torch.float16]) if half else torch.float32
    perturbation = _perturbation(rng)
    perturbation |= _newer_noise(random.Random(f"{seed}/{number}/noise"), perturbation, name)
    p = Perturbation(**perturbation)
    sampling: dict[str, Any] = {"max_gen_toks": rng.choice([1, 2, 5, 9, 17, 30])}
    if rng.random() < 0.5:
        sampling["temperature"] = rng.choice([0.3, 0.8, 1.0, 1.5])
        cut = rng.choice(["none", "none", "top_p", "top_k", "min_p"])
        if cut != "none":
            sampling[cut] = {"top_p": 0.9, "top_k": 5, "min_p": 0.1}[cut]
        sampling |= _newer_knobs(random.Random(f"{seed}/{number}/knobs"), cut)
    own = random.Random(f"{seed}/{number}/first token")  # leaves the rest of the case as it was
    if own.random() < 0.2:
        sampling["first_token"] = f"stratified:{own.choice([1, 3, 20, VOCABULARY])}"
    tokens = range(VOCABULARY)
    ends = rng.sample(tokens, rng.choice([0, 1, 5, 20, 50]))
    pairs = [(rng.choice(tokens), rng.choice(tokens)) for _ in range(rng.choice([0, 0, 400, 2000]))]
    exact = rng.random() < 0.15
    return Case(
        name, dtype, perturbation, sampling, frozenset(ends), frozenset(pairs), _jobs(rng, p, name),
        batch_size=rng.choice([1, 3, 7, 33, 64, 200]),
        threads=rng.choice([1, 2]),
        exact=exact,
        kernels=rng.random() < 0.7,
        perplexity=rng.random() < 0.8,
        device=device,
    )  # fmt: skip


def _newer_knobs(rng: random.Random, cut: str) -> dict[str, Any]:
    """From a stream of their own, so that older cases stay what they were."""
    given: dict[str, Any] = {}
    if rng.random() < 0.2:
        given["temperature_tokens"] = rng.choice([1, 3, 8])
    if rng.random() < 0.4:
        knobs = {"typical_p": 0.7, "epsilon_cutoff": 0.02, "eta_cutoff": 0.05, "top_n_sigma": 1.0}
        name = rng.choice([*knobs, "p_less"])
        if name != "p_less":
            given[name] = knobs[name]
        elif cut == "none":
            given["p_less"] = True
    return given


def _newer_noise(rng: random.Random, old: dict[str, Any], name: str) -> dict[str, Any]:
    """The same for the perturbation."""
    given: dict[str, Any] = {}
    if old.get("sigma") and rng.random() < 0.5:
        given["noise_law"] = rng.choice(["gaussian", "uniform", "covariance", "orthogonal"])
        if given["noise_law"] == "orthogonal":
            given["scope"] = "sequence"
        if name in ("llama wide", "qwen2 tied", "gpt2", "falcon", "gemma2") and rng.random() < 0.4:
            given["depth"] = rng.choice(["mlp:0-2", "mlp:1", "embed+mlp:1", ["mlp:0", 1]])
        if rng.random() < 0.3 and given.get("depth", old["depth"]) in ("mlp:0-2", "embed+1", "0+2"):
            given["shared"] = True
    if old.get("sigma") and rng.random() < 0.1 and old["sigma_unit"] != "absolute":
        given["sigma_reference"] = "decode"
    if name in TEMPERED and rng.random() < 0.25:
        given["attention_temperature"] = rng.choice([0.5, 1.5])
        if rng.random() < 0.4:
            given["attention_blocks"] = rng.choice(["1", "0-1"])
    if name in (*TEMPERED, "falcon") and rng.random() < 0.2:
        given["weight_sigma"] = rng.choice([0.02, 0.2])
    if old.get("rsp") and rng.random() < 0.3:
        given["rsp_fit"] = "exact"
    return given


def _perturbation(rng: random.Random) -> dict[str, Any]:
    given: dict[str, Any] = {"seed": rng.choice([0, 7, 2**40 + 1])}
    if rng.random() < 0.2:
        return given
    if rng.random() < 0.8:
        unit = rng.choice(["relative", "relative", "norm", "absolute"])
        sigma = rng.choice([0.05, 0.3, 1.0]) * (0.1 if unit == "norm" else 1)
        if unit == "absolute" and rng.random() < 0.2:
            sigma = 3e5  # beyond float16
        depth = rng.choice(["embed", "0", "1", "2", "embed+1", "0+2", "map"])
        given |= {"sigma": sigma, "depth": depth, "sigma_unit": unit}
        if depth == "map":
            given |= {"depth": {"embed": sigma, "1": sigma / 2}, "sigma": 0.0}
        given["sigma_reference"] = rng.choice(["site", "table", "prompt", "hidden"])
        given["scope"] = rng.choice(["token", "sequence"])
        n = rng.choice([1, 2, 9])
        where = ("prompt", "all", "generated", "first", "last", "generated:", "dummy")
        kind = rng.choice(where)
        counted = kind in ("first", "last", "generated:", "dummy")
        given["positions"] = f"{kind.strip(':')}:{n}" if counted else kind
        if kind in ("all", "generated", "generated:"):
            given["schedule"] = rng.choice(["constant", "linear", "cosine", "exponential", "step"])
        if given.get("schedule", "constant") != "constant":
            given["anneal_tokens"] = rng.choice([1, 4, 10])
            if depth != "map":
                given["sigma_end"] = rng.choice([0.0, sigma / 3, sigma * 2])
            if given["schedule"] == "exponential" and not given.get("sigma_end"):
                given |= {"schedule": "step"}
    elif rng.random() < 0.5:
        given["positions"] = "dummy:3"
    if rng.random() < 0.25:
        given |= {"rsp": rng.choice([1, 3]), "rsp_scale": rng.choice([0.5, 1.0])}
        given["rsp_slot"] = rng.choice(["auto", "after-prompt", "before-assistant", "after-bos"])
        given["rsp_fit"] = rng.choice(["isotropic", "per-dimension"])
    if rng.random() < 0.1:
        given["prefix"] = "random:4"
    own = random.Random(f"draws {given}")  # leaves the rest of the case as it was
    if own.random() < 0.15 and Perturbation(**given).varies:
        given["draws"] = own.choice([1, 2])
    return given


def _jobs(rng: random.Random, p: Perturbation, name: str) -> tuple[Job, ...]:
    lengths = [1, 2, 5, 8, 13, 20, 40, LIMIT - 3, LIMIT]
    shares = [2, 3, 4, 4, 4, 4, 3, 1, 0.5]
    prompts: list[list[int]] = []
    for _ in range(rng.randint(1, 6)):
        length = rng.choices(lengths, shares)[0]
        kind = rng.choice(["fresh", "fresh", "fresh", "extends", "cut", "equal"])
        before = rng.choice(prompts) if prompts else []
        ids = [rng.randrange(VOCABULARY) for _ in range(length)]
        if kind == "extends":
            ids = [*before, *ids][:LIMIT]
        elif kind == "cut" and before:
            ids = before[: rng.randint(1, len(before))]
        elif kind == "equal" and before:
            ids = before
        if "bos" in name and rng.random() < 0.7:
            ids = [1, *ids[1:]]
        prompts.append(ids)
    jobs = []
    most = rng.choice([1, 1, 4, 12, 37])
    for number, ids in enumerate(prompts):
        samples = sorted(rng.sample(range(40), rng.randint(1, most)))
        problem = f"p{number}" if rng.random() < 0.9 else "p0"
        letters = random.Random(f"{problem}{ids}")  # of a prefix; a function of the problem
        if p.prefix_length:
            for sample in samples:
                prefix = [letters.randrange(VOCABULARY) for _ in range(p.prefix_length)]
                jobs.append(_job(p, [*prefix, *ids], ids, problem, (sample,), rng))
        else:
            jobs.append(_job(p, ids, ids, problem, tuple(samples), rng))
    return tuple(jobs)


def _job(
    p: Perturbation,
    ids: list[int],
    clean: list[int],
    problem: str,
    samples: tuple[int, ...],
    rng: random.Random,
) -> Job:
    """The prompt with what the perturbation adds to it, as models/prompts.py lays it out."""
    at = {"after-prompt": len(ids), "after-bos": min(1, len(ids))}.get(p.rsp_slot)
    at = rng.randrange(len(ids) + 1) if at is None else at
    whole = [*ids[:at], *[0] * p.rsp, *ids[at:], *[60] * p.where.dummies]
    return Job(tuple(whole), problem, samples, tuple(clean), at if p.rsp else None)


# ── Running it ────────────────────────────────────────────────────────────────────────────────────


def kept_by(stops: frozenset[tuple[int, int]]) -> Any:
    """A stop rule on ids, such as stop strings make: a pair of neighbours ends the text.

    A pair of even sum stands wholly in the stop string, of the others only the second token.
    """

    def kept(ids: list[int], prompt: tuple[int, ...] = ()) -> int | None:
        for end in range(2, len(ids) + 1):
            if (ids[end - 2], ids[end - 1]) in stops:
                return end - (2 if sum(ids[end - 2 : end]) % 2 == 0 else 1)
        return None

    return kept


@contextmanager
def way_of(case: Case) -> Iterator[None]:
    """Threads and kernels as the case wants them."""
    before = torch.get_num_threads()
    torch.set_num_threads(case.threads)
    try:
        if case.kernels:
            yield
        else:
            with patch("lm_eval_embednoise.kernels.build.library", lambda name: None):
                yield
    finally:
        torch.set_num_threads(before)


def sampler_of(case: Case, batch_size: int | None = None) -> Sampler:
    """The engine, set up for a case."""
    stop = Stop(case.ends)
    if case.stops:
        may_end = torch.zeros(VOCABULARY, dtype=torch.bool)
        may_end[[second for _, second in case.stops]] = True
        stop = Stop(case.ends, may_end, kept_by(case.stops))
    return Sampler(
        model_of(case.model, case.dtype, case.device),
        Perturbation(**case.perturbation),
        Sampling(**case.sampling),
        stop,
        batch_size=batch_size or case.batch_size,
        max_length=LIMIT,
        perplexity=case.perplexity,
        exact=case.exact,
        states=states_of(case),
    )


def states_of(case: Case) -> CleanStates | None:
    """Some clean states, of every site that the perturbation has, where it needs them."""
    needed = case.perturbation.get("noise_law") == "covariance"
    if not needed and case.perturbation.get("sigma_reference") != "decode":
        return None
    model = model_of(case.model, torch.float32, "cpu")
    sites = tuple(Perturbation(**case.perturbation).sites)
    texts = [range(start, start + 20) for start in (0, 30, 60)]
    answers = [(text[:5], text[5:]) for text in texts]
    norms = decode_norms(model, sites, answers) if sites else {}
    return CleanStates("", norms, covariance_roots(model, sites, texts) if sites else {})


def check(case: Case, result: Result) -> None:
    """Run a case and hold every sample against the reference."""
    result.counts["cases"] += 1
    with way_of(case):
        sampler = sampler_of(case)
        longest = sampler.max_length
        samples = list(sampler.run(case.jobs))
        _check_exact(case, samples, result)
        _check_likelihood(case, sampler, result)
    wanted = Counter((j, s) for j, job in enumerate(case.jobs) for s in job.samples)
    if Counter((s.job, s.index) for s in samples) != wanted:
        result.fault("not every sample came exactly once")
    judge = _Judge(case, longest, result)
    for sample in samples:
        judge.check(sample)


def _check_exact(case: Case, samples: list[Sample], result: Result) -> None:
    """With exact=true another batch and other company change no bit."""
    if not case.exact:
        return
    number = len(case.jobs) - 1
    alone = {s.index: s for s in sampler_of(case, 5).run(case.jobs[-1:])}
    for sample in samples:
        if sample.job == number:
            other = alone[sample.index]
            same = (sample.ids, sample.nll, sample.rho) == (other.ids, other.nll, other.rho)
            result.counts["exact samples"] += 1
            if not same:
                result.fault(f"exact: {sample} differs in other company: {other}")


def _check_likelihood(case: Case, sampler: Sampler, result: Result) -> None:
    """The score of a continuation, under the perturbation."""
    job = case.jobs[0]
    continuation = [3, 14, 15, 9][: max(0, sampler.max_length - len(job.prompt_ids))]
    if not continuation or case.dtype is not torch.float32:
        return
    got, _ = sampler.loglikelihood(0, job, continuation)[:2]
    reference = Cacheless(sampler.runner.model, sampler.perturbation, states_of(case))
    std = reference.std(job.clean)
    scores = []
    for jitter in (0.0, *JITTERS[case.dtype]):
        logits = reference.run(job, job.samples[0], continuation[:-1], std, jitter).logits
        scores.append(-nll_of(logits, continuation))
        if abs(got - scores[0]) < 1e-3 * len(continuation):
            return
    if not min(scores) - 1e-2 < got < max(scores) + 1e-2:
        result.fault(f"log-likelihood of a continuation {got}, reference {scores[0]}")


class _Judge:
    """Holds the samples of one case against the reference."""

    def __init__(self, case: Case, longest: int, result: Result) -> None:
        self.case, self.longest, self.result = case, longest, result
        self.perturbation = Perturbation(**case.perturbation)
        self.sampling = Sampling(**case.sampling)
        self.model = model_of(case.model, case.dtype, case.device)
        states = states_of(case)
        self.reference = Cacheless(self.model, self.perturbation, states)
        wide = model_of(case.model, torch.float32, case.device)
        if case.dtype is not torch.float32:  # the same weights, without the rounding between
            wide = copy.deepcopy(self.model).float()
        self.wide = Cacheless(wide, self.perturbation, states)
        self.plain = Cacheless(self.model, Perturbation())
        self.half = case.dtype is not torch.float32
        self._stds: dict[tuple[int, ...], dict[str, float]] = {}
        self._nlls: dict[Any, float] = {}
        self._known: set[Any] = set()

    def check(self, sample: Sample) -> None:
        """Compare one sample."""
        job = self.case.jobs[sample.job]
        self.result.counts["samples"] += 1
        if len(job.prompt_ids) >= self.longest:
            if (sample.finish_reason, sample.ids) != ("prompt_too_long", []):
                self._fault(sample, "a prompt that leaves no room was decoded")
            return
        same = self.sampling.greedy and not self.perturbation.varies  # the reference as well
        found = (job.prompt_ids, job.problem, tuple(sample.ids), sample.finish_reason, sample.nll)
        found += (sample.index % (self.sampling.strata or 1),)
        if same and found in self._known:
            return
        self._known.add(found)
        std = self._std(job)
        self._near(sample, "std", sample.std, std, 0.03 if self.half else 1e-4)
        self._check_end(sample, job)
        ended = sample.finish_reason in ("end_token", "numeric")
        entered = sample.ids if ended else sample.ids[:-1]
        passed = self.reference.run(job, sample.index, entered, std)
        self._near(sample, "ρ", sample.rho, passed.rho, 0.03 if self.half else 1e-4)
        self._check_tokens(sample, job, entered, passed, std)
        if self.case.perplexity:
            self._check_nll(sample, job, passed)

    def _std(self, job: Job) -> dict[str, float]:
        if job.clean not in self._stds:
            self._stds[job.clean] = self.reference.std(job.clean)
        return self._stds[job.clean]

    def _near(
        self, sample: Sample, what: str, got: dict[str, float], right: dict[str, float], by: float
    ) -> None:
        sites = got.keys() | right.keys()
        if any(abs(got.get(s, 0) - right.get(s, 0)) > by * right.get(s, 0) for s in sites):
            self._fault(sample, f"{what} {got}, reference {right}")

    def _check_end(self, sample: Sample, job: Job) -> None:
        """The end that the tokens themselves imply."""
        ids, case = sample.ids, self.case
        limit = min(self.sampling.max_gen_toks, self.longest - len(job.prompt_ids))
        kept = kept_by(case.stops)
        before = any(kept(ids[:n]) is not None for n in range(len(ids))) if case.stops else False
        cut = kept(ids) if case.stops else None
        reason = sample.finish_reason
        right = not before and not case.ends.intersection(ids) and len(ids) <= limit
        right &= sample.kept == (len(ids) if cut is None else cut)
        right &= (reason == "stop_string") == (cut is not None)
        right &= reason != "length" or len(ids) == limit
        right &= reason not in ("end_token", "numeric") or len(ids) < limit
        if not right or reason not in ("stop_string", "length", "end_token", "numeric"):
            self._fault(sample, f"ended wrongly: {reason}, kept {sample.kept} of {len(ids)}")

    def _check_tokens(
        self, sample: Sample, job: Job, entered: Sequence[int], passed: Pass, std: dict[str, float]
    ) -> None:
        chosen: list[int | None] = [*sample.ids]
        if sample.finish_reason == "end_token":
            chosen.append(None)  # one of the end tokens
        self.result.counts["tokens"] += len(chosen)
        if not bool(passed.logits.amax(dim=-1).isfinite().all()):
            # A mask doesn't hide what isn't a number from the positions before it: one at a time.
            steps = range(len(entered) + 1)
            runs = [self.reference.run(job, sample.index, entered[:n], std).logits for n in steps]
            passed = Pass(torch.stack([logits[-1] for logits in runs]), passed.rho)
        numbers = passed.logits.amax(dim=-1).isfinite().tolist()
        if sample.finish_reason == "numeric":
            self.result.counts["numeric"] += 1
            if numbers.pop():
                self._fault(sample, "ended as numeric, and the reference's logits are numbers")
        if not all(numbers):
            self._fault(sample, "tokens were chosen from logits that are not numbers")
            return
        off = 1e-4 * (1 + passed.logits.abs().amax(dim=-1))
        if self.half:
            wide = self.wide.run(job, sample.index, entered, std)
            off = 6 * (wide.logits - passed.logits).abs().amax(dim=-1) + 1e-3
        doubtful = []
        for step, token in enumerate(chosen):
            how = self._agrees(
                passed.logits[step], token, job, sample.index, step, float(off[step])
            )
            if how == "no" and self.half:  # a token at the edge of what is kept may be in or out
                by = float(off[step])
                nudged = passed.logits[step].clone()
                nudged[sorted(self.case.ends) if token is None else token] += by / 2
                others = (wide.logits[step], nudged)
                found = [self._agrees(o, token, job, sample.index, step, by) for o in others]
                how = "no" if found == ["no", "no"] else "near"
            if how == "near":
                self.result.counts["near ties"] += 1
            if how == "no":
                doubtful.append(step)
        if doubtful and not self._rounding(sample, job, entered, chosen, doubtful, std):
            self._fault(sample, f"token {doubtful[0]} of {len(chosen)} is not the reference's")

    def _agrees(
        self, logits: Tensor, token: int | None, job: Job, index: int, step: int, off: float
    ) -> str:
        """ "yes", "near" or "no": whether a token is the reference's choice."""
        tokens = sorted(self.case.ends) if token is None else [token]
        if self.sampling.first_token and not step:
            right = logits[first_token(logits, self.sampling.first_token, index)]
            gap = float((logits[tokens] - right).abs().min())
            return "yes" if gap == 0 else "near" if gap <= off else "no"
        if likeliest_at(self.sampling, step):
            gap = float(logits.max() - logits[tokens].max())
            return "yes" if gap == 0 else "near" if gap <= off else "no"
        key = stream_key(self.perturbation.seed, job.problem, index, "sample")
        u, edges = uniform(key, step), np.concatenate([[0.0], cdf(logits, self.sampling)])
        widths = [(edges[t], edges[t + 1]) for t in tokens if edges[t + 1] > edges[t]]
        if any(low <= u < high for low, high in widths):
            return "yes"
        by = 2 * off / self.sampling.temperature
        return "near" if any(low - by <= u < high + by for low, high in widths) else "no"

    def _rounding(
        self,
        sample: Sample,
        job: Job,
        entered: Sequence[int],
        chosen: list[int | None],
        doubtful: list[int],
        std: dict[str, float],
    ) -> bool:
        """Whether the reference takes every doubtful token once its last digits are moved."""
        left = set(doubtful)
        for number, size in enumerate(JITTERS[self.case.dtype]):
            torch.manual_seed(number)
            logits = self.reference.run(job, sample.index, entered, std, size).logits
            off = 1e-4 * (1 + float(logits.abs().max()))
            for step in sorted(left):
                how = self._agrees(logits[step], chosen[step], job, sample.index, step, off)
                if how != "no":
                    left.discard(step)
                    self.result.counts["near ties"] += 1
        return not left

    def _check_nll(self, sample: Sample, job: Job, passed: Pass) -> None:
        ids = sample.ids[: sample.kept]
        key = (job.clean, tuple(ids))
        if key not in self._nlls:
            if self.perturbation.plain:  # the pass at hand is the clean one
                self._nlls[key] = nll_of(passed.logits, ids)
            else:
                self._nlls[key] = self.plain.clean_nll(job.clean, ids)
        right = self._nlls[key]
        if sample.finish_reason == "numeric" and not ids:
            if sample.nll is not None:
                self._fault(sample, f"clean log-likelihood {sample.nll} of no text at all")
            return
        got = sample.nll
        self.result.counts["log-likelihoods"] += 1
        if got is not None and abs(got - right) <= 1e-4 * (1 + len(ids) + abs(right)):
            return
        scores = [right]
        for number, size in enumerate(JITTERS[self.case.dtype]):
            torch.manual_seed(number)
            scores.append(self.plain.clean_nll(job.clean, ids, size))
        spread = max(scores) - min(scores)
        if got is None or not min(scores) - spread <= got <= max(scores) + spread:
            self._fault(sample, f"clean log-likelihood {got}, reference {right} ± {spread}")

    def _fault(self, sample: Sample, what: str) -> None:
        job = self.case.jobs[sample.job]
        self.result.fault(
            f"job {sample.job} ({len(job.prompt_ids)} vectors), sample {sample.index}: {what}; "
            f"{sample.finish_reason}, ids {sample.ids}"
        )


def run_case(seed: int, number: int, result: Result, device: str = "cpu") -> list[str]:
    """Run case `number` of a seed: its faults, a crash among them."""
    before, case = len(result.faults), draw(seed, number, device)
    try:
        check(case, result)
    except ValueError as error:
        if not case.exact or "exact=true is not available" not in str(error):
            result.fault(f"refused: {error}")
        result.counts["refused"] += 1
    except Exception:
        result.fault(f"crashed: {traceback.format_exc(limit=-6)}")
    return result.faults[before:]


def main() -> int:
    """Run cases until the time is over; the exit status is 1 if there was a fault."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.differential",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  python -m tests.differential --minutes 30\n"
        "  python -m tests.differential --seed 3 --case 41   # one case again, told in full\n"
        "  python -m tests.differential --device cuda",
    )
    parser.add_argument("--minutes", type=float, default=1.0, help="how long (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the cases (default: 0)")
    parser.add_argument("--case", type=int, help="run this case only")
    parser.add_argument("--device", default="cpu", help="of engine and reference (default: cpu)")
    args = parser.parse_args()
    torch.set_num_threads(1)  # but where a case says otherwise
    result, started, number = Result(), time.monotonic(), args.case or 0
    while True:
        case = draw(args.seed, number, args.device)
        if args.case is not None:
            print(case)
        for fault in run_case(args.seed, number, result, args.device)[:3]:
            print(f"--seed {args.seed} --case {number}: {fault}\n  {case}", flush=True)
        number += 1
        minutes = (time.monotonic() - started) / 60
        if sys.stderr.isatty():
            print(f"\r{minutes:.1f} min {dict(result.counts)}", end="", file=sys.stderr)
        if args.case is not None or minutes >= args.minutes:
            break
    about = {"seed": args.seed, "device": args.device, "minutes": round(minutes, 1)}
    print(json.dumps({**about, **result.counts}))
    return 1 if result.faults else 0


if __name__ == "__main__":
    sys.exit(main())
