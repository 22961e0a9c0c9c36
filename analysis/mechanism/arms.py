"""Sets of methods that differ in one thing: when noise comes, where, how long a draw stays.

A set is a mapping of method names to method files' contents, and the one that the others are
compared with. Those of one set spend the same noise budget, Σ (σ_ℓ·g(t))² over sites and generated
positions up to N: each site's noise counts in units of its own norm m.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from lm_eval_embednoise.noise import perturb
from lm_eval_embednoise.noise.perturbation import Perturbation, integer, number

if TYPE_CHECKING:
    from collections.abc import Sequence

GREEDY = {"do_sample": False}
RISE = 10.0  # σ at a rising schedule's end over that at its beginning
SMALL = 1e-3  # σ of a step's silent part over the other's: a schedule can't begin at 0


@dataclass(frozen=True)
class Arms:
    """Methods to compare, and what with.

    Attributes:
        reference: the method that the others are held to.
        perturbations: method → its perturbation's arguments.
        gen_kwargs: how tokens are chosen, for all.
    """

    reference: str
    perturbations: dict[str, dict[str, Any]]
    gen_kwargs: dict[str, Any] = field(default_factory=lambda: dict(GREEDY))

    def files(self) -> dict[str, dict[str, Any]]:
        """Method → content of its file."""
        return {
            name: {"model": "hf-embednoise", "model_args": given, "gen_kwargs": self.gen_kwargs}
            for name, given in self.perturbations.items()
        }


def spent(arguments: dict[str, Any], tokens: int) -> float:
    """The noise budget of the first generated positions, Σ (σ_ℓ·g(t))² for t = 1 … tokens."""
    p = Perturbation.from_args(arguments)
    where = torch.arange(1, tokens + 1)
    g = perturb.weights(p, where[None], torch.tensor([1]))[0].double()
    return float(g.square().sum()) * sum(sigma**2 for sigma in p.sites.values())


def schedules(sigma: float, depth: str, tokens: int) -> Arms:
    """σ constant, falling or rising over the first generated tokens, at equal budget."""
    sigma, tokens = number("--sigma", sigma), integer("--tokens", tokens, least=2)
    shapes: dict[str, dict[str, Any]] = {
        "constant": {},
        "falling-linear": {"schedule": "linear", "sigma_end": 0.0},
        "falling-cosine": {"schedule": "cosine", "sigma_end": 0.0},
        "falling-exponential": {"schedule": "exponential", "sigma_end": sigma / RISE},
        "falling-step": {"schedule": "step", "sigma_end": 0.0, "anneal_tokens": tokens // 2 + 1},
        "rising-linear": {"schedule": "linear", "sigma_end": sigma * RISE},
        "rising-cosine": {"schedule": "cosine", "sigma_end": sigma * RISE},
        "rising-exponential": {"schedule": "exponential", "sigma_end": sigma * RISE},
        "rising-step": {
            "schedule": "step", "sigma_end": sigma / SMALL, "anneal_tokens": tokens // 2 + 1,
        },
    }  # fmt: skip
    common = {"sigma": sigma, "depth": depth, "positions": f"generated:{tokens}"}
    budget = tokens * sigma**2
    arms: dict[str, dict[str, Any]] = {}
    for name, shape in shapes.items():
        given = {**common, **({"anneal_tokens": tokens} if shape else {}), **shape}
        factor = (budget / spent(given, tokens)) ** 0.5
        for key in ("sigma", "sigma_end"):
            if given.get(key):
                given[key] = float(f"{factor * given[key]:.9g}")
        arms[f"schedule-{name}"] = given
    return Arms("schedule-constant", arms)


def layers(sigma: float, blocks: Sequence[int], tokens: int) -> Arms:
    """The same budget at the first, the last or each of some blocks."""
    named = _blocks(blocks)
    tokens = integer("--tokens", tokens, least=1)
    parts = {
        "all": named,
        "first": named[:1],
        "middle": named[len(named) // 2 : len(named) // 2 + 1],
        "last": named[-1:],
    }
    arms = {}
    for name, sites in parts.items():
        each = number("--sigma", sigma) * (len(named) / len(sites)) ** 0.5
        at = {str(block): float(f"{each:.9g}") for block in sites}
        arms[f"layers-{name}"] = {"depth": at, "positions": f"generated:{tokens}"}
    return Arms("layers-all", arms)


def offsets(sigma: float, blocks: Sequence[int]) -> Arms:
    """One offset a sample on the prompt, fresh noise at every position, an offset after the prompt.

    The arms of NoiseEGRA's log: σ at a position is the same, the number of positions is not.
    """
    at = {"depth": dict.fromkeys(map(str, _blocks(blocks)), number("--sigma", sigma))}
    return Arms(
        "offset-prompt",
        {
            "offset-prompt": {**at, "scope": "sequence", "positions": "prompt"},
            "token-all": {**at, "scope": "token", "positions": "all"},
            "offset-generated": {**at, "scope": "sequence", "positions": "generated"},
        },
    )


def freshness(vectors: int, temperature: float) -> Arms:
    """A random soft prompt with temperature: one for all samples, five in turn, one for each."""
    rsp = {"sigma": 0, "rsp": integer("--vectors", vectors, least=1)}
    warm = number("--temperature", temperature)
    return Arms(
        "rsp-fixed",
        {"rsp-fixed": {**rsp, "draws": 1}, "rsp-five": {**rsp, "draws": 5}, "rsp-fresh": rsp},
        {"do_sample": True, "temperature": warm},
    )


def _blocks(blocks: Sequence[int]) -> list[int]:
    named = sorted({integer("--blocks", block, least=0) for block in blocks})
    if not named:
        raise ValueError("--blocks names no block; give some, such as 8,12,16")
    return named
