"""Trajectories: do noisy states go to other regions, or to the same ones with jitter?

At each layer a plane and a subspace are fitted to the states of the clean model's greedy answers
(principal components). Then, step by step: where each method's samples lie, how far they are
spread, and which share of their deviation lies outside the subspace that holds nearly all of the
clean variance. Noise is compared with the temperature whose distinct_2 is nearest; no method's own
samples are fitted, so neither has an advantage.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from lm_eval_embednoise.analysis import stats
from lm_eval_embednoise.analysis.figures import RC, STYLES
from lm_eval_embednoise.analysis.mechanism.capture import POST, batches, capture, parse_layers
from lm_eval_embednoise.analysis.mechanism.means import mean, mean_first
from lm_eval_embednoise.analysis.mechanism.spread import Covariance, needed, outside, spread
from lm_eval_embednoise.analysis.methods import family
from lm_eval_embednoise.analysis.pairs import sign_flips
from lm_eval_embednoise.analysis.resample import cluster_codes
from lm_eval_embednoise.engine.room import free_bytes
from lm_eval_embednoise.noise.model_parts import hidden_width

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence, Sized

    from numpy.typing import NDArray

    from lm_eval_embednoise.analysis.mechanism.material import Arm, Draw, Material, Problem
    from lm_eval_embednoise.analysis.mechanism.probes import Arrays, Row
    from lm_eval_embednoise.engine.runner import Runner

CLEAN = "clean"  # the piece that fits the axes
SHARE = 0.9  # of the clean variance that the subspace holds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How many steps are followed, and defaults."""
    parser.add_argument(
        "--steps", type=int, default=32, metavar="T", help="tokens to follow (%(default)s)"
    )
    parser.set_defaults(
        method=["temp-0.8", "temp-1.5", "embednoise-0.1", "embednoise-0.5", "embednoise-1.0"],
        limit=24,
        k=10,
        layers="embed,1,5,10,15,20,23",
    )


def check(args: argparse.Namespace, blocks: Sized) -> None:
    """Refuse layers that don't exist, no steps, and a single sample, which has no spread."""
    parse_layers(args.layers, blocks)
    if args.steps < 1:
        raise ValueError(f"--steps {args.steps} is not allowed; it must be a whole number ≥ 1")
    if args.k < 2:
        raise ValueError(f"-K {args.k}: a spread between samples needs at least 2 of a problem")


def pieces(material: Material, args: argparse.Namespace) -> dict[str, Callable[[], Arrays]]:
    """The clean model's axes, then a piece for each method and problem."""
    layers = parse_layers(args.layers, material.clean.blocks)
    width = hidden_width(material.clean.model)
    size = len(layers) * 4 * 8 * width * width
    if size > free_bytes(material.clean) // 2:
        raise ValueError(
            f"principal components of {len(layers)} layers of width {width} take "
            f"{size / 2**20:,.0f} MB, more than half of what is free: name fewer --layers"
        )
    answers = [problem.draws[0] for problem in material.problems]
    fit = functools.partial(axes, material.clean, answers, layers, args.steps)
    basis = functools.cache(fit)
    found: dict[str, Callable[[], Arrays]] = {CLEAN: basis}
    for arm in material.arms:
        for problem, greedy in zip(arm.problems, material.problems, strict=True):
            found[arm.piece(problem)] = functools.partial(
                _problem, material.clean, arm, problem, greedy.draws[0], layers, args.steps, basis
            )
    return found


def states(
    runner: Runner, draws: Sequence[Draw], layers: Sequence[str], steps: int
) -> NDArray[np.float32]:
    """States after the noise where tokens are chosen.

    Returns:
        float32 [samples, layers, steps, dim]: step 0 is the prompt's last position, t the t-th
        generated token; NaN after a sample's end.
    """
    parts = []
    for rows in batches(runner, [draw.given for draw in draws]):
        width = hidden_width(runner.model)
        found = np.full((len(rows), len(layers), steps, width), np.nan, dtype=np.float32)

        def take(layer: int, hidden: Any, rows: Any = rows, found: Any = found) -> None:
            for number, row in enumerate(rows):
                start, end = row.prompt_length - 1, min(row.length, row.prompt_length - 1 + steps)
                path = hidden[number, start:end].float().cpu().numpy()
                found[number, layer, : len(path)] = path

        places = {(site, POST): functools.partial(take, i) for i, site in enumerate(layers)}
        capture(runner, rows, places)
        parts.append(found)
    return np.concatenate(parts)


def axes(runner: Runner, draws: Sequence[Draw], layers: Sequence[str], steps: int) -> Arrays:
    """Fit the clean model's states.

    Returns:
        `mean` float32 [layers, dim]; `axes` float32 [layers, dim, dim], a column each, largest
        first; `variances` float32 [layers, dim]; `kept` int64 [layers], axes with 90 % of it.
    """
    fitted = [Covariance(hidden_width(runner.model)) for _ in layers]
    for draw in draws:
        for covariance, path in zip(fitted, states(runner, [draw], layers, steps)[0], strict=True):
            covariance.add(path[np.isfinite(path).all(-1)])
    pairs = [covariance.axes() for covariance in fitted]
    return {
        "mean": np.stack([c.mean for c in fitted]).astype(np.float32),
        "axes": np.stack([vectors for vectors, _ in pairs]).astype(np.float32),
        "variances": np.stack([values for _, values in pairs]).astype(np.float32),
        "kept": np.array([needed(values, SHARE) for _, values in pairs]),
    }


def _problem(
    clean: Runner,
    arm: Arm,
    problem: Problem,
    greedy: Draw,
    layers: Sequence[str],
    steps: int,
    basis: Callable[[], Arrays],
) -> Arrays:
    """Where a method's samples of a problem lie.

    Returns:
        `paths` float32 [samples, layers, steps, 2] in the clean plane, `greedy` [layers, steps, 2];
        `spread` float32 [layers, steps], variance between samples over the clean variance; `away`,
        squared distance of the samples' mean from the greedy path, in the same unit; `outside`
        [layers, steps], mean share of a state's deviation outside the clean subspace.
    """
    fit = basis()
    found = states(arm.runner, problem.draws, layers, steps)
    clean_path = states(clean, [greedy], layers, steps)[0]
    total = fit["variances"].sum(-1, dtype=np.float64)[:, None]
    scale = np.where(total > 0, total, np.nan)
    with np.errstate(invalid="ignore"):
        middle = mean_first(found)
        return {
            "paths": np.stack([_plane(found[:, i], fit, i) for i in range(len(layers))], 1),
            "greedy": np.stack([_plane(clean_path[i], fit, i) for i in range(len(layers))]),
            "spread": (spread(found) / scale).astype(np.float32),
            "away": (np.square(middle - clean_path).sum(-1) / scale).astype(np.float32),
            "outside": np.stack([_outside(found[:, i], fit, i) for i in range(len(layers))]),
        }


def _plane(vectors: NDArray[np.float32], fit: Arrays, layer: int) -> NDArray[np.float32]:
    """Coordinates [..., 2] in the clean plane, in clean standard deviations of each axis."""
    deviations = np.sqrt(np.maximum(fit["variances"][layer, :2], 1e-20))
    found = (vectors - fit["mean"][layer]) @ fit["axes"][layer][:, :2] / deviations
    return found.astype(np.float32)


def _outside(vectors: NDArray[np.float32], fit: Arrays, layer: int) -> NDArray[np.float32]:
    """[steps] of [samples, steps, dim]."""
    held = fit["axes"][layer][:, : int(fit["kept"][layer])].astype(np.float64)
    shares = outside(vectors, fit["mean"][layer].astype(np.float64), held)
    return mean_first(shares[..., None])[..., 0].astype(np.float32)


def table(material: Material, args: argparse.Namespace, found: Mapping[str, Arrays]) -> list[Row]:
    """A row for each method and layer, noise paired with the temperature of like distinct_2."""
    layers = parse_layers(args.layers, material.clean.blocks)
    distinct = {
        arm.name: mean(p.metrics["distinct_2"] for p in arm.problems) for arm in material.arms
    }
    plain = [arm for arm in material.arms if not arm.sampling.greedy and arm.perturbation.plain]
    rows = []
    for arm in material.arms:
        own = _per_problem(arm, found)
        other = None
        if not arm.perturbation.plain and plain:
            other = min(plain, key=lambda o: abs(distinct[o.name] - distinct[arm.name]))
        for i, layer in enumerate(layers):
            row: Row = {"method": arm.name, "layer": layer, "distinct_2": distinct[arm.name]}
            row |= {name: mean(own[name][:, i]) for name in own}
            row["kept"] = int(found[CLEAN]["kept"][i])
            row["against"] = other.name if other else ""
            row["against_distinct_2"] = distinct[other.name] if other else float("nan")
            rows.append(row | _paired(arm, own, other, found, i))
    return rows


def _per_problem(arm: Arm, found: Mapping[str, Arrays]) -> dict[str, NDArray[np.float64]]:
    """[problems, layers] means over steps."""
    pieces = [found[arm.piece(p)] for p in arm.problems]
    return {
        name: np.stack([mean_first(piece[name].T) for piece in pieces])
        for name in ("spread", "away", "outside")
    }


def _paired(
    arm: Arm,
    own: dict[str, NDArray[np.float64]],
    other: Arm | None,
    found: Mapping[str, Arrays],
    layer: int,
) -> Row:
    """Differences from the other method over the same problems, with their tests."""
    row: Row = {}
    clusters = cluster_codes([p.cluster for p in arm.problems], len(arm.problems))
    theirs = _per_problem(other, found) if other else None
    for name in ("spread", "outside"):
        difference = own[name][:, layer] - theirs[name][:, layer] if theirs else np.empty(0)
        known = np.isfinite(difference)
        row[f"{name}_difference"] = mean(difference)
        if not known.any():
            row |= {f"{name}_p": float("nan"), f"{name}_p_flips": float("nan")}
            continue
        row[f"{name}_p"] = stats.signed_rank(difference[known], clusters[known]).p
        flips = sign_flips(stats.settle(difference)[:, None], clusters)
        row[f"{name}_p_flips"] = float(flips[0])
    row["n"] = int(known.sum())
    return row


def figures(
    material: Material, args: argparse.Namespace, found: Mapping[str, Arrays], rows: list[Row]
) -> dict[str, Figure]:
    """Paths of the first problem in the clean plane of the last layer; spread by step; outside."""
    layers = parse_layers(args.layers, material.clean.blocks)
    with mpl.rc_context(RC):
        figure = Figure(figsize=(11, 3.6), dpi=150, layout="constrained")
        plane, by_step, by_layer = figure.subplots(1, 3)
        first = material.problems[0]
        for number, arm in enumerate(material.arms):
            color = mpl.colors.to_rgba(STYLES[family(arm.name)][0], 1 - 0.2 * (number % 4))
            style = ("-", "--", ":", "-.")[number % 4]
            pieces = [found[arm.piece(p)] for p in arm.problems]
            for path in found[arm.piece(first)]["paths"][:3, -1]:
                plane.plot(*path.T, style, color=color, linewidth=0.8)
            steps = mean_first(np.stack([piece["spread"][-1] for piece in pieces]))
            by_step.plot(steps, style, color=color, label=arm.name)
            shares = [row["outside"] for row in rows if row["method"] == arm.name]
            by_layer.plot(range(len(layers)), shares, style, color=color, marker=".")
        piece = found[material.arms[0].piece(first)]
        plane.plot(*piece["greedy"][-1].T, color="#000000", linewidth=1.5, label="greedy, clean")
        plane.set(xlabel="first clean axis", ylabel="second clean axis", title=f"{first.name}")
        plane.legend(fontsize=8)
        by_step.set(xlabel="generated token", ylabel="spread ÷ clean variance")
        by_step.set_title(f"last layer ({layers[-1].removeprefix('block.')})")
        by_step.legend(fontsize=8)
        by_layer.set_xticks(range(len(layers)), [s.removeprefix("block.") for s in layers])
        by_layer.set(xlabel="block", ylabel="share outside the clean subspace", ylim=(0, None))
    return {"trajectories": figure}
