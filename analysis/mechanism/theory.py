"""A first-order theory of noise on the prompt: the logits move by J·ε.

J is the Jacobian of the logits along the greedy path in the hidden states of the prompt at a site.
Its products with the draws z themselves (forward-mode derivatives: random projections, no training)
predict, for every dose at once, how far the logits move, with which probability a token of the path
changes, and the temperature that would move its two likeliest logits as far. The same draws added
in full say where the linear picture ends.
"""

from __future__ import annotations

import functools
import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.autograd.forward_ad as forward
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lm_eval_embednoise.analysis.mechanism import pictures
from lm_eval_embednoise.analysis.mechanism.capture import parse_layers
from lm_eval_embednoise.analysis.mechanism.material import runner_of
from lm_eval_embednoise.checks import integer, number
from lm_eval_embednoise.noise import streams
from lm_eval_embednoise.noise.inject import hooked, noise_keys
from lm_eval_embednoise.noise.perturbation import Perturbation

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence, Sized

    from matplotlib.figure import Figure

    from lm_eval_embednoise.analysis.mechanism.material import Material, Problem
    from lm_eval_embednoise.analysis.mechanism.probes import Arrays, Row
    from lm_eval_embednoise.engine.jobs import Job
    from lm_eval_embednoise.engine.runner import Runner

# Two logits under Gumbel noise of scale T (sampling at temperature T) differ by a logistic number
# of standard deviation T·π/√3.
LOGISTIC = math.pi / math.sqrt(3)


@dataclass(frozen=True)
class Path:
    """A problem's greedy path, and what noise of unit size does to its logits.

    Attributes:
        logits: of the clean model before each token of the path, float32 [tokens, vocab].
        slopes: J·z for each draw, float32 [draws, tokens, vocab].
        unit: standard deviation per coordinate at σ = 1.
        moved: standard deviation per coordinate → logits with the noise added in full, less the
            clean ones, [draws, tokens, vocab].
    """

    logits: Tensor
    slopes: Tensor
    unit: float
    moved: Callable[[float], Tensor]


def path_of(
    runner: Runner,
    job: Job,
    ids: Sequence[int],
    site: str,
    draws: Sequence[int],
    blocks: str | None = None,
) -> Path:
    """Differentiate the logits along a greedy path in the direction of each draw.

    Args:
        runner: of the model under relative noise of σ = 1 at this site.
        job: the problem; its streams are those of the samples.
        ids: the clean greedy continuation, at least one token.
        site: where the noise is.
        draws: the samples whose draws are taken.
        blocks: dotted name of the model's list of blocks, if it can't be found.
    """
    device, length = runner.device, len(job.prompt_ids)
    entered = torch.tensor([[*job.prompt_ids, *ids][:-1]], device=device)
    keys = noise_keys(runner.perturbation, [(job.problem, s) for s in draws], device)[site]
    where = torch.arange(length, device=device).expand(len(draws), -1)
    z = streams.normal(keys, where, runner.references.width(site))
    z = torch.cat([z, z.new_zeros(len(draws), entered.shape[1] - length, z.shape[2])], dim=1)

    def run(change: Callable[[Tensor], Tensor], rows: int) -> Tensor:
        with hooked(runner.model, (site,), lambda _, hidden: change(hidden), blocks):
            output: Any = runner.model(input_ids=entered.expand(rows, -1), use_cache=False)
        return output.logits[:, length - 1 :]

    with torch.no_grad():
        clean = run(lambda hidden: hidden, 1)[0].float()
        with (
            warnings.catch_warnings(),
            forward.dual_level(),
            sdpa_kernel(SDPBackend.MATH),  # others have no forward-mode derivative
        ):
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, at its first use
            dual = run(lambda hidden: forward.make_dual(hidden, z.to(hidden.dtype)), len(draws))
            slopes = forward.unpack_dual(dual).tangent
    assert slopes is not None

    def moved(std: float) -> Tensor:
        with torch.no_grad():
            noisy = run(lambda hidden: hidden + (std * z).to(hidden.dtype), len(draws))
        return noisy.float() - clean

    return Path(clean, slopes.detach().float(), runner.site_std(0, job)[site], moved)


def measures(logits: Tensor, change: Tensor) -> dict[str, float]:
    """What a change of the logits does along a path.

    Args:
        logits: [tokens, vocab], clean.
        change: [draws, tokens, vocab].

    Returns:
        `variance`: of a logit over the draws, the mean of all left out as softmax does, mean over
        tokens and vocabulary. `first`: probability that the first token changes. `path`: that any
        token of the path does. `temperature`: √3/π times the standard deviation of the difference
        of the two likeliest logits, the root of its mean square over tokens.
    """
    centred = change - change.mean(dim=-1, keepdim=True)
    best = logits.topk(2, dim=-1).indices
    gap = change.gather(2, best.expand(len(change), -1, -1))
    differs = (logits + change).argmax(dim=-1) != best[:, 0]
    spread = (gap[..., 0] - gap[..., 1]).var(dim=0, unbiased=False)
    return {
        "variance": float(centred.var(dim=0, unbiased=False).mean()),
        "first": float(differs[:, 0].float().mean()),
        "path": float(differs.any(dim=1).float().mean()),
        "temperature": float(spread.mean().sqrt()) / LOGISTIC,
    }


def compared(path: Path, sigmas: Sequence[float]) -> list[dict[str, float]]:
    """Prediction and measurement at each dose.

    Returns:
        `sigma`; `predicted_…` and `measured_…` of `measures`; `explained`: the share of the squared
        change of the logits that J·ε explains, 1 where all is linear, below 0 where it misleads.
    """
    rows = []
    for sigma in sigmas:
        linear, full = sigma * path.unit * path.slopes, path.moved(sigma * path.unit)
        told = {f"predicted_{k}": v for k, v in measures(path.logits, linear).items()}
        seen = {f"measured_{k}": v for k, v in measures(path.logits, full).items()}
        a, b = (x - x.mean(dim=-1, keepdim=True) for x in (linear, full))
        explained = 1 - float((b - a).square().sum() / b.square().sum())
        rows.append({"sigma": sigma, **told, **seen, "explained": explained})
    return rows


# ── The probe ─────────────────────────────────────────────────────────────────────────────────────


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Doses, draws and the length of the path, and defaults."""
    parser.add_argument(
        "--sigmas", default="0.03,0.1,0.3,1.0", metavar="S,…", help="relative doses (%(default)s)"
    )
    parser.add_argument("--draws", type=int, default=16, metavar="N", help="of each problem (16)")
    parser.add_argument("--path", type=int, default=16, metavar="N", help="greedy tokens (16)")
    parser.set_defaults(method=["greedy"], limit=10, k=1, layers="embed,1,5,10,15,20")


def check(args: argparse.Namespace, blocks: Sized) -> None:
    """Refuse layers that don't exist, and numbers that can't be."""
    parse_layers(args.layers, blocks)
    sigmas_of(args)
    integer("--draws", args.draws, least=2)
    integer("--path", args.path, least=1)


def sigmas_of(args: argparse.Namespace) -> list[float]:
    """The doses.

    Raises:
        ValueError: one is not a number above 0.
    """
    found = [number("--sigmas", part) for part in args.sigmas.split(",")]
    if 0 in found:
        raise ValueError(f"--sigmas {args.sigmas}: a dose of 0 moves nothing")
    return found


def pieces(material: Material, args: argparse.Namespace) -> dict[str, Callable[[], Arrays]]:
    """One piece for each problem and layer: the rows of `compared` as arrays of [doses]."""

    def piece(problem: Problem, site: str) -> Arrays:
        draw = problem.draws[0]
        depth = site.removeprefix("block.")
        lm, perturbation = material.lm, Perturbation(sigma=1, depth=depth, seed=args.seed)
        runner = runner_of(lm, perturbation)
        ids = draw.ids[: args.path] or (0,)
        path = path_of(runner, draw.job, ids, site, range(args.draws), lm.blocks)
        rows = compared(path, sigmas_of(args))
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    sites = parse_layers(args.layers, material.clean.blocks)
    return {
        f"{site}@{problem.task}@{problem.name}": functools.partial(piece, problem, site)
        for problem in material.problems
        for site in sites
    }


def table(material: Material, args: argparse.Namespace, found: Mapping[str, Arrays]) -> list[Row]:
    """A row for each task, layer and dose: means over problems."""
    rows: list[Row] = []
    for task in dict.fromkeys(p.task for p in material.problems):
        names = [p.name for p in material.problems if p.task == task]
        for site in parse_layers(args.layers, material.clean.blocks):
            of_one = [found[f"{site}@{task}@{name}"] for name in names]
            for place, sigma in enumerate(sigmas_of(args)):
                means = {
                    name: float(np.mean([one[name][place] for one in of_one]))
                    for name in of_one[0]
                    if name != "sigma"
                }
                rows.append({"task": task, "layer": site, "sigma": sigma, "n": len(names), **means})
    return rows


def figures(
    material: Material, args: argparse.Namespace, found: Mapping[str, Arrays], rows: list[Row]
) -> dict[str, Figure]:
    """The share of the logits' change that is explained, over the dose, a line a layer."""
    made = {}
    for task in dict.fromkeys(row["task"] for row in rows):
        lines = {}
        for site in dict.fromkeys(row["layer"] for row in rows):
            mine = [row for row in rows if (row["task"], row["layer"]) == (task, site)]
            lines[site] = (
                np.array([row["sigma"] for row in mine]),
                np.array([row["explained"] for row in mine]),
            )
        made[f"explained-{task}"] = pictures.curves(lines, "σ", "explained by J·ε")
    return made
