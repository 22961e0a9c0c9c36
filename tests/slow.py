"""The slow reference: the formulas written out, a full pass without any cache for every token."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lm_eval_embednoise.engine.jobs import Job
from lm_eval_embednoise.noise import streams
from lm_eval_embednoise.noise.model_parts import find_blocks
from lm_eval_embednoise.noise.perturbation import Perturbation, Sampling

PROMPT = (5, 17, 3, 88, 41)
NEW = 4
DUMMY = 60
PROBLEM = "problem"


def slow_g(p: Perturbation, t: int) -> float:
    """The schedule."""
    if p.schedule == "constant" or t == 0:
        return 1.0
    end, x = (p.sigma_end or 0.0) / (p.sigma or 1.0), min(1.0, t / (p.anneal_tokens or 1))
    return {
        "linear": 1 + (end - 1) * x,
        "cosine": end + (1 - end) * 0.5 * (1 + math.cos(math.pi * x)),
        "exponential": math.exp(x * math.log(end)) if end else 0.0,
        "step": 1.0 if x < 1 else end,
    }[p.schedule]


def slow_inside(p: Perturbation, position: int, length: int) -> bool:
    """Whether a position is in P."""
    kind, _, n = p.positions.partition(":")
    t = position - length + 1
    return {
        "prompt": position < length,
        "all": True,
        "generated": position >= length and (not n or t <= int(n)),
        "first": position < min(length, int(n or 0)),
        "last": length - int(n or 0) <= position < length,
        "dummy": length - int(n or 0) <= position < length,
    }[kind]


def job_of(p: Perturbation, samples: tuple[int, ...] = (0, 1)) -> Job:
    """The problem with what a perturbation adds: soft prompt at its slot, dummies at the end."""
    kind, _, n = p.positions.partition(":")
    dummies = (DUMMY,) * (int(n) if kind == "dummy" else 0)
    at = {"after-prompt": len(PROMPT), "before-assistant": 3, "after-bos": 1}[p.rsp_slot]
    ids = PROMPT[:at] + (0,) * p.rsp + PROMPT[at:] + dummies
    return Job(ids, PROBLEM, samples, clean_ids=PROMPT, soft_start=at if p.rsp else None)


@functools.cache
def z(seed: int, sample: int, purpose: str, site: str, number: int, dim: int) -> Tensor:
    """One Gaussian vector of one stream: [dim]."""
    key = streams.key_words([streams.stream_key(seed, PROBLEM, sample, purpose, site)])
    return streams.normal(key, torch.tensor([[number]]), dim)[0, 0]


def slow_noise(
    p: Perturbation, site: str, std: float, sample: int, length: int, hidden: Tensor
) -> Tensor:
    """ε of every position of one sample, one draw at a time: [pos, dim]."""
    rows = []
    for position in range(hidden.shape[0]):
        c = 0 if p.scope == "sequence" else position
        t = max(0, position - length + 1)
        strength = slow_g(p, t) * std if slow_inside(p, position, length) else 0.0
        rows.append(z(p.seed, sample, "noise", site, c, hidden.shape[1]) * strength)
    return torch.stack(rows)


def slow_soft(p: Perturbation, sample: int, table: Tensor) -> Tensor:
    """The random soft prompt of one sample, one vector at a time: [N, dim]."""
    rows = []
    for n in range(p.rsp):
        over = {"isotropic": table.flatten(), "per-dimension": table}[p.rsp_fit]
        mean, std = over.mean(dim=0), over.std(dim=0, unbiased=False)
        drawn = z(p.seed, sample, "rsp", "embed", n, table.shape[1])
        rows.append(mean + p.rsp_scale * std * drawn)
    return torch.stack(rows)


def slow_choice(logits: Tensor, p: Perturbation, sampling: Sampling, sample: int, step: int) -> int:
    """Argmax, or the first token at which the cumulative probability exceeds a uniform."""
    if sampling.greedy:
        return int(logits.argmax())
    key = streams.key_words([streams.stream_key(p.seed, PROBLEM, sample, "sample")])
    u = float(streams.uniform(key, torch.tensor([[step]])))
    probabilities = (logits / sampling.temperature).softmax(dim=-1).double()
    total = 0.0
    for token, probability in enumerate(probabilities.tolist()):
        total += probability
        if total > u:
            return token
    return len(probabilities) - 1


@torch.no_grad()
def slow_generate(
    model: PreTrainedModel,
    p: Perturbation,
    std: dict[str, float],
    sample: int,
    sampling: Sampling | None = None,
) -> list[int]:
    """Tokens of one sample, by a full pass over all vectors at every step."""
    job, table = job_of(p), model.get_input_embeddings().weight.detach()
    length, new = len(job.prompt_ids), []
    for step in range(NEW):
        vectors = table[torch.tensor([*job.prompt_ids, *new])]
        if p.rsp:
            assert job.soft_start is not None
            vectors[job.soft_start : job.soft_start + p.rsp] = slow_soft(p, sample, table)
        handles = []
        for site in p.sites:
            if site == "embed":
                vectors = vectors + slow_noise(p, site, std[site], sample, length, vectors)
                continue

            def hook(module, args, output, site=site):
                hidden = output[0] if isinstance(output, tuple) else output
                noisy = hidden + slow_noise(p, site, std[site], sample, length, hidden[0])
                return (noisy, *output[1:]) if isinstance(output, tuple) else noisy

            block = find_blocks(model)[int(site.removeprefix("block."))]
            handles.append(block.register_forward_hook(hook))
        logits = model(inputs_embeds=vectors[None], use_cache=False).logits[0, -1]
        for handle in handles:
            handle.remove()
        new.append(slow_choice(logits, p, sampling or Sampling(), sample, step))
    return new
