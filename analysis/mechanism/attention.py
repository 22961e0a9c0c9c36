"""Attention: what methods do to it, and whether noise breaks the heads that repeat.

Per layer and head, at the positions where tokens are chosen: entropy, and KL from the clean model
over the same token ids, both on one continuation for all (the clean model's greedy one) and on each
sample's own. Repetition (induction) heads are found on random tokens given twice; how much they
give to what followed an earlier same token is compared in pairs. For soft prompts, dummies and
random prefixes: the mass on what was added, step by step.
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure

from lm_eval_embednoise.analysis import stats
from lm_eval_embednoise.analysis.figures import RC, STYLES
from lm_eval_embednoise.analysis.mechanism import weights as of
from lm_eval_embednoise.analysis.mechanism.capture import (
    ATTENTION,
    Given,
    batches,
    capture,
    check_attention,
    parse_layers,
    sites_of,
)
from lm_eval_embednoise.analysis.mechanism.means import mean
from lm_eval_embednoise.analysis.methods import family
from lm_eval_embednoise.analysis.pairs import sign_flips
from lm_eval_embednoise.analysis.resample import cluster_codes
from lm_eval_embednoise.engine.jobs import Job
from lm_eval_embednoise.noise.perturbation import EMBED
from lm_eval_embednoise.noise.sites import block_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence, Sized

    from numpy.typing import NDArray
    from torch import Tensor

    from lm_eval_embednoise.analysis.mechanism.material import Arm, Draw, Material, Problem
    from lm_eval_embednoise.analysis.mechanism.probes import Arrays, Row
    from lm_eval_embednoise.engine.runner import Runner

REPEATED, ROUNDS = 25, 4  # length of the random sequence that is given twice, and how many of them
log = logging.getLogger(f"lm_eval.{__name__}")

HEADS = "heads"  # the piece that finds repetition heads
LEAST_HEADS = 3
MEASURES = ("entropy", "kl", "repetition")
ROUNDING = 1e-6  # by which means over a sample of two equal passes differ in float32
WAYS = ("forced", "free")  # on the greedy continuation, on the sample's own


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The threshold of repetition heads, and defaults."""
    parser.add_argument(
        "--induction",
        type=float,
        default=0.4,
        metavar="S",
        help="score from which a head counts as a repetition head (%(default)s); of fewer than "
        f"{LEAST_HEADS} the {LEAST_HEADS} highest count",
    )
    parser.set_defaults(
        method=["temp-0.8", "embednoise-0.1", "embednoise-0.5", "rsp-16"],
        limit=24,
        k=4,
        layers="1,5,10",
    )


def check(args: argparse.Namespace, blocks: Sized) -> None:
    """Refuse layers that don't exist or have no attention, and a threshold outside 0 … 1."""
    if EMBED in parse_layers(args.layers, blocks) and args.layers != "all":
        raise ValueError(f"--layers {args.layers}: attention is in blocks; leave embed out")
    if not 0 <= args.induction <= 1:
        raise ValueError(f"--induction {args.induction:g} is not allowed; it must be from 0 to 1")


def _blocks(args: argparse.Namespace, runner: Runner) -> tuple[str, ...]:
    return tuple(site for site in parse_layers(args.layers, runner.blocks) if site != EMBED)


def pieces(material: Material, args: argparse.Namespace) -> dict[str, Callable[[], Arrays]]:
    """The heads of the clean model, then a piece for each method and problem."""
    check_attention(material.clean)
    layers = _blocks(args, material.clean)
    found: dict[str, Callable[[], Arrays]] = {
        HEADS: functools.partial(heads, material.clean, args.seed)
    }
    for arm in material.arms:
        for number, problem in enumerate(arm.problems):
            greedy = material.problems[number].draws[0]
            work = functools.partial(_problem, material.clean, arm, problem, greedy, layers)
            found[arm.piece(problem)] = work
    return found


def heads(runner: Runner, seed: int) -> Arrays:
    """`scores` float32 [blocks, heads]: the standard test on random tokens given twice."""
    layers = sites_of(runner.blocks)[1:]
    rng = np.random.default_rng(seed)
    table = runner.references.token_ids.cpu().numpy()
    bos = getattr(runner.model.config, "bos_token_id", None)
    start = [] if bos is None else [int(bos)]
    rows = [
        Given(Job((*start, *once), "", (0,)), 0, once)
        for once in (tuple(map(int, rng.choice(table, REPEATED))) for _ in range(ROUNDS))
    ]
    sums: dict[str, Tensor] = {}

    def add(site: str, weights: Tensor) -> None:
        scores = of.induction_scores(weights.float(), REPEATED, len(start)).sum(0)
        sums[site] = sums.get(site, 0) + scores

    places = {(site, ATTENTION): functools.partial(add, site) for site in layers}
    for part in batches(runner, rows, attention=True):
        capture(runner, part, places)
    return {"scores": torch.stack([sums[site] for site in layers]).cpu().numpy() / ROUNDS}


def repetition_heads(scores: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
    """Which heads count, bool [layers, heads]."""
    enough = scores >= threshold
    if enough.sum() >= LEAST_HEADS:
        return enough
    kept: NDArray[np.bool_] = scores >= np.sort(scores, axis=None)[-min(LEAST_HEADS, scores.size)]
    return kept


def _problem(
    clean: Runner, arm: Arm, problem: Problem, greedy: Draw, layers: Sequence[str]
) -> Arrays:
    """What a method does to attention on one problem.

    Returns:
        For `forced` and `free`, float32 [samples, layers, heads], means over the positions that
        choose tokens: `<way>_entropy`; `<way>_kl` from the clean model over the same ids, added
        vectors left out; `<way>_repetition`, mass on what followed an earlier same token, and
        `<way>_repetition_clean`. And `added_mass` float32 [layers, steps] on added vectors of the
        forced continuation, mean over samples and heads, with `added` and `prompt_length` [1].
    """
    draws = problem.draws[:1] if _alike(problem) else problem.draws
    arrays: dict[str, np.ndarray] = {}
    for way in WAYS:
        found = [_sample(clean, arm.runner, d, greedy.ids, way, layers) for d in draws]
        for name in ("entropy", "kl", "repetition", "repetition_clean"):
            arrays[f"{way}_{name}"] = np.stack([one[name] for one in found])
        if way == "forced":
            arrays["added_mass"] = np.mean([one["added"] for one in found], axis=0)
    job = problem.draws[0].job
    arrays["added"] = np.array([len(job.prompt_ids) - len(job.clean)])
    return arrays | {"prompt_length": np.array([len(job.prompt_ids)])}


def _alike(problem: Problem) -> bool:
    """Whether all samples have one input and one text."""
    return len({(draw.ids, draw.job.prompt_ids) for draw in problem.draws}) == 1


def _sample(
    clean: Runner,
    runner: Runner,
    draw: Draw,
    forced: tuple[int, ...],
    way: str,
    layers: Sequence[str],
) -> dict[str, np.ndarray]:
    """One sample's means, layer by layer: a pass of the clean model, then one of the method."""
    ids = forced if way == "forced" else draw.ids
    given = Given(draw.job, draw.index, ids)
    plain = Given(Job(draw.job.clean, draw.job.problem, (draw.index,)), draw.index, ids)
    columns = of.kept_columns(draw.job)
    first = draw.job.soft_start if draw.job.soft_start is not None else _gap(columns)
    added = given.prompt_length - plain.prompt_length
    pairs = of.repetition_targets((*plain.job.prompt_ids, *ids), plain.prompt_length - 1)
    found: dict[str, list[Tensor]] = {}

    def note(name: str, values: Tensor) -> None:
        found.setdefault(name, []).append(values.float().cpu())

    for site in layers:  # one layer at a time: two passes' weights of it are all that is kept
        held: list[Tensor] = []
        for model, row in ((clean, plain), (runner, given)):
            (part,) = batches(model, [row], attention=True)
            capture(model, part, {(site, ATTENTION): held.append})
        before, after = (weights[0].float() for weights in held)
        note("repetition_clean", of.repetition_mass(before, pairs))
        chosen = after[:, given.prompt_length - 1 :]
        note("entropy", of.entropy(chosen).mean(-1))
        note("added", of.mass(chosen, first, added).mean(0) if added else chosen.new_zeros(1))
        if columns is None:
            nothing = torch.full((len(after),), torch.nan)
            note("kl", nothing)
            note("repetition", nothing)
            continue
        real = [*columns, *range(given.prompt_length, given.length)]
        same = of.on_columns(after, torch.tensor(real, device=after.device))[:, real]
        start = plain.prompt_length - 1
        note("kl", of.divergence(same[:, start:], before[:, start:]).mean(-1))
        note("repetition", of.repetition_mass(same, pairs))
    return {name: torch.stack(values).numpy() for name, values in found.items()}


def _gap(columns: list[int] | None) -> int:
    """The first position that is not among the columns."""
    return next((i for i, c in enumerate(columns or []) if i != c), len(columns or []))


def table(material: Material, args: argparse.Namespace, found: Mapping[str, Arrays]) -> list[Row]:
    """A row for each method, way and layer, paired over problems with the clean model."""
    layers = _blocks(args, material.clean)
    everywhere = found[HEADS]["scores"]
    scores = everywhere[[block_of(site) for site in layers]]
    chosen = repetition_heads(scores, args.induction)
    if (best := float(scores.max())) < args.induction <= float(everywhere.max()):
        others = np.flatnonzero((everywhere >= args.induction).any(axis=1))
        log.warning(
            "no head of the chosen layers repeats (the highest score is %.2f); blocks %s have such "
            "heads: name some by --layers", best, ", ".join(map(str, others)),
        )  # fmt: skip
    rows = []
    for arm in material.arms:
        of_arm = [found[arm.piece(p)] for p in arm.problems]
        clusters = cluster_codes([p.cluster for p in arm.problems], len(arm.problems))
        facts = {"method": arm.name, "rep_4": mean(p.metrics.get("rep_4") for p in arm.problems)}
        for way in WAYS:
            for place, at in [*((s, i) for i, s in enumerate(layers)), ("repetition heads", None)]:
                row: Row = {**facts, "way": way, "layer": place}
                row |= _summary(of_arm, way, at, chosen, clusters)
                row["induction_score"] = float(
                    scores[chosen].mean() if at is None else scores[at].max()
                )
                rows.append(row)
    return rows


def _summary(
    pieces: Sequence[Arrays],
    way: str,
    layer: int | None,
    chosen: NDArray[np.bool_],
    clusters: NDArray[np.int64],
) -> Row:
    """Means over problems at a layer (None: at the chosen heads) and the paired test."""

    def values(name: str) -> NDArray[np.float64]:
        """[problems], means over samples and heads."""
        per = [piece[f"{way}_{name}"].astype(np.float64) for piece in pieces]
        return np.array([p[:, chosen].mean() if layer is None else p[:, layer].mean() for p in per])

    row: Row = {name: mean(values(name)) for name in MEASURES}
    difference = values("repetition") - values("repetition_clean")
    difference[np.abs(difference) < ROUNDING] = 0.0
    known = np.isfinite(difference)
    test = stats.signed_rank(difference[known], clusters[known])
    row |= {"repetition_change": mean(difference), "n": int(known.sum())}
    row |= {"change_p_wilcoxon": test.p, "effect": test.rank_biserial}
    row["change_p_flips"] = float(sign_flips(stats.settle(difference)[:, None], clusters)[0])
    masses = [piece["added_mass"] for piece in pieces if piece["added"][0] > 0]
    if way == "forced" and layer is not None and masses:
        row["added_mass_first"] = mean(m[layer, 0] for m in masses)
        row["added_mass_last"] = mean(m[layer, -1] for m in masses)
    else:
        row |= {"added_mass_first": float("nan"), "added_mass_last": float("nan")}
    return row


def figures(
    material: Material, args: argparse.Namespace, found: Mapping[str, Arrays], rows: list[Row]
) -> dict[str, Figure]:
    """KL and change of repetition by layer; for methods that add vectors, their mass by step."""
    layers = [site.removeprefix("block.") for site in _blocks(args, material.clean)]
    drawn = {}
    with mpl.rc_context(RC):
        figure = Figure(figsize=(9, 3.4), dpi=150, layout="constrained")
        kl, change = figure.subplots(1, 2)
        width = 0.8 / len(material.arms)
        for number, arm in enumerate(material.arms):
            line = [r for r in rows if (r["method"], r["way"]) == (arm.name, "forced")]
            xs = np.arange(len(line)) + width * (number - (len(material.arms) - 1) / 2)
            color = mpl.colors.to_rgba(STYLES[family(arm.name)][0], 1 - 0.15 * (number % 4))
            kl.bar(xs[:-1], [r["kl"] for r in line[:-1]], width, color=color, label=arm.name)
            change.bar(xs, [r["repetition_change"] for r in line], width, color=color)
        kl.set_xticks(range(len(layers)), layers)
        kl.set(xlabel="block", ylabel="KL from clean, nats (greedy continuation)")
        change.set_xticks(range(len(layers) + 1), [*layers, "repetition\nheads"])
        change.set(xlabel="block", ylabel="change of repetition mass")
        change.axhline(0, color="#999999", linewidth=0.8)
        figure.legend(loc="outside upper center", ncols=len(material.arms), fontsize=8)
        drawn["attention"] = figure
        adding = [arm for arm in material.arms if arm.runner.perturbation.rsp]
        if adding:
            drawn["added-mass"] = _masses(adding, found, layers)
    return drawn


def _masses(arms: Sequence[Arm], found: Mapping[str, Arrays], layers: Sequence[str]) -> Figure:
    """Mass on soft vectors by step, and what a head of constant score would give them: L/(L+t)."""
    figure = Figure(figsize=(4.2 * len(arms), 3.4), dpi=150, layout="constrained")
    for arm, axis in zip(arms, np.ravel(figure.subplots(1, len(arms))), strict=True):
        pieces = [found[arm.piece(p)] for p in arm.problems]
        steps = max(p["added_mass"].shape[1] for p in pieces)
        padded = np.full((len(pieces), len(layers), steps), np.nan)
        constant = np.full((len(pieces), steps), np.nan)
        for number, piece in enumerate(pieces):
            size = piece["added_mass"].shape[1]
            padded[number, :, :size] = piece["added_mass"]
            constant[number, :size] = piece["added"] / (piece["prompt_length"] + np.arange(size))
        for layer, line in zip(layers, np.nanmean(padded, axis=0), strict=True):
            axis.plot(line, label=f"block {layer}")
        axis.plot(np.nanmean(constant, axis=0), "--", color="#999999", label="constant score")
        axis.set(
            xlabel="generated token", ylabel="mass on added vectors", title=arm.name, ylim=(0, 1)
        )
        axis.legend(fontsize=8)
    return figure
