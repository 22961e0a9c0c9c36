"""The noise itself: which positions, how strong, which draw. Tensors in, tensors out.

ε_{s,ℓ}(p) = 1[p ∈ P] · g(t(p)) · std_ℓ · z_{s,ℓ}(c(p)), see docs/perturbation.md.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lm_eval_embednoise.noise import orthogonal, streams
from lm_eval_embednoise.noise.perturbation import EMBED, Perturbation

PREFIX_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_PASSAGE = """
    lorem ipsum dolor sit amet consectetur adipiscing elit sed do eiusmod tempor incididunt ut
    labore et dolore magna aliqua enim ad minim veniam quis nostrud exercitation ullamco laboris
    nisi aliquip ex ea commodo consequat duis aute irure in reprehenderit voluptate velit esse
    cillum eu fugiat nulla pariatur excepteur sint occaecat cupidatat non proident sunt culpa qui
    officia deserunt mollit anim id est laborum
"""
LOREM = _PASSAGE.split()  # the words of the usual passage, each once


def schedule(perturbation: Perturbation, t: Tensor) -> Tensor:
    """The schedule g over generated positions: 1 at t = 0, `end_ratio` from t = anneal_tokens on.

    Args:
        perturbation: names the schedule.
        t: number of the generated position, 0 on the prompt; any shape.

    Returns:
        float64 of t's shape.
    """
    t = t.to(torch.float64)
    if perturbation.schedule == "constant":
        return torch.ones_like(t)
    end = perturbation.end_ratio
    share = (t / float(perturbation.anneal_tokens or 1)).clamp(0, 1)
    if perturbation.schedule == "linear":
        return 1 + (end - 1) * share
    if perturbation.schedule == "cosine":
        return end + (1 - end) * (1 + torch.cos(math.pi * share)) / 2
    if perturbation.schedule == "exponential":
        return end**share
    return torch.where(share < 1, torch.ones_like(t), end)  # step


def weights(perturbation: Perturbation, positions: Tensor, prompt_length: Tensor) -> Tensor:
    """1[p ∈ P] · g(t(p)).

    Args:
        perturbation: names P and g.
        positions: int64 [rows, pos]; input vectors of a sample counted from 0, −1 for padding.
        prompt_length: int64 [rows].

    Returns:
        float64 [rows, pos], 0 where a position gets no noise.
    """
    length = prompt_length[:, None]
    in_prompt = positions < length
    t = (positions - length + 1).clamp(min=0)
    kind, count = perturbation.where.kind, perturbation.where.count or 0
    inside = {
        "all": lambda: torch.ones_like(in_prompt),
        "prompt": lambda: in_prompt,
        "first": lambda: in_prompt & (positions < count),
        "last": lambda: in_prompt & (positions >= length - count),
        "dummy": lambda: in_prompt & (positions >= length - count),  # they end the prompt
        "generated": lambda: ~in_prompt & ((t <= count) if count else torch.ones_like(in_prompt)),
    }[kind]()
    return torch.where(inside & (positions >= 0), schedule(perturbation, t), 0.0)


def shared_len(perturbation: Perturbation, length: int, soft_start: int | None) -> int:
    """How many vectors a prompt has before the first that the samples don't share.

    Args:
        perturbation: names P.
        length: of the prompt.
        soft_start: position of the first vector of a random soft prompt; None without one.
    """
    shared = length if soft_start is None else soft_start
    if perturbation.sites and perturbation.where.touches_prompt:
        from_end = perturbation.where.kind in ("last", "dummy")
        shared = min(shared, length - (perturbation.where.count or 0) if from_end else 0)
    return max(0, shared)


def reference_kind(perturbation: Perturbation, site: str) -> str | None:
    """Which norm m scales a site: `table`, `prompt`, `hidden`, `decode`, None for `absolute`."""
    if perturbation.sigma_unit == "absolute":
        return None
    if perturbation.sigma_reference == "site":
        return "table" if site == EMBED else "hidden"
    return perturbation.sigma_reference


def site_std(perturbation: Perturbation, site: str, reference: float | None, dim: int) -> float:
    """Standard deviation per coordinate at a site, before the schedule.

    Args:
        perturbation: gives the site's sigma and its unit.
        site: "embed", "block.<k>" or "mlp.<k>".
        reference: m, the norm the unit refers to; ignored for `absolute`.
        dim: d, the width of the site.
    """
    sigma = perturbation.sites[site]
    if perturbation.sigma_unit == "absolute":
        return sigma
    if reference is None:
        raise ValueError(f"sigma_unit={perturbation.sigma_unit!r} needs a reference norm")
    return sigma * reference / (math.sqrt(dim) if perturbation.sigma_unit == "relative" else 1.0)


def counters(perturbation: Perturbation, positions: Tensor) -> Tensor:
    """c(p): where in its stream a position's noise is drawn, of positions' shape."""
    return torch.zeros_like(positions) if perturbation.scope == "sequence" else positions


def draw(
    perturbation: Perturbation, keys: Tensor, positions: Tensor, std: Tensor, dim: int
) -> Tensor:
    """ε for rows of a batch; of the law `covariance` before it is shaped.

    Args:
        perturbation: gives the scope and the law.
        keys: int64 [rows, 2 or 3], one stream a row (its site is in the key): see
            `inject.noise_keys`.
        positions: int64 [rows, pos].
        std: float32 [rows, pos], standard deviation per coordinate; 0 outside P.
        dim: width of the site.

    Returns:
        float32 [rows, pos, dim]; exactly 0 at positions outside P.
    """
    if perturbation.noise_law == "orthogonal":
        return std[:, :, None] * orthogonal.draw(keys, dim)[:, None]
    where = counters(perturbation, positions)
    if perturbation.scope == "sequence":
        where = where[:, :1]
    law = "uniform" if perturbation.noise_law == "uniform" else "gaussian"
    return std[:, :, None] * streams.standard(keys, where, dim, law)


def random_prefix(perturbation: Perturbation, problem: str, sample: int) -> str:
    """The random characters or words of `prefix` for one sample, and a line break."""
    sample = perturbation.draw_of(sample)
    key = streams.stream_key(perturbation.seed, problem, sample, "prefix")
    u = streams.uniform(streams.key_words([key]), torch.arange(perturbation.prefix_length)[None])
    lorem = perturbation.prefix_kind == "lorem"
    units = LOREM if lorem else PREFIX_ALPHABET
    drawn = [units[unit] for unit in (u[0] * len(units)).long().tolist()]
    return (" " if lorem else "").join(drawn) + "\n"


def soft_vectors(perturbation: Perturbation, keys: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Random soft prompts: mean + rsp_scale · std · z, the n-th vector from position n of a stream.

    Args:
        perturbation: number of vectors, fit and scale; of the fit `exact` a row's z are
            standardised to mean 0 and standard deviation 1 over all its entries.
        keys: int64 [rows, 2], one stream a row.
        mean: float32 [dim].
        std: float32 [dim].

    Returns:
        float32 [rows, N, dim]; the same wherever in the prompt they are put.
    """
    numbers = torch.arange(perturbation.rsp, device=keys.device).expand(len(keys), -1)
    drawn = streams.normal(keys, numbers, len(mean))
    if perturbation.rsp_fit == "exact":
        wide = drawn.double()
        centred = wide - wide.mean(dim=(1, 2), keepdim=True)
        drawn = (centred / centred.square().mean(dim=(1, 2), keepdim=True).sqrt()).float()
    return mean + perturbation.rsp_scale * std * drawn


def replace(hidden: Tensor, vectors: Tensor, start: Tensor, positions: Tensor) -> Tensor:
    """Hidden states with vectors put in at positions start, start + 1, and so on.

    Args:
        hidden: [rows, pos, dim].
        vectors: [rows, N, dim].
        start: int64 [rows].
        positions: int64 [rows, pos], of `hidden`.

    Returns:
        [rows, pos, dim] of hidden's type.
    """
    number = positions - start[:, None]
    inside = (number >= 0) & (number < vectors.shape[1])
    index = number.clamp(0, vectors.shape[1] - 1)[:, :, None].expand_as(hidden)
    return torch.where(inside[:, :, None], vectors.to(hidden.dtype).gather(1, index), hidden)
