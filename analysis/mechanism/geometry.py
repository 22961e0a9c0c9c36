"""Geometry: do draws of the noise, or the hidden states they cause, say which solution is written?

Many samples of a problem, each with its own draw. At the last position of the prompt, where the
first token is chosen, hidden states are captured and clustered, and linear probes try to tell each
sample's strategy from ε and from the state at each layer. Isotropic noise has no clusters by
construction: the probes are the sharper question.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from lm_eval_embednoise.analysis.figures import RC, STYLES
from lm_eval_embednoise.analysis.mechanism import clusters, linear
from lm_eval_embednoise.analysis.mechanism.capture import (
    POST,
    batches,
    capture,
    parse_layers,
    rows_of,
)
from lm_eval_embednoise.analysis.methods import family
from lm_eval_embednoise.minicoder.strategies import strategy
from lm_eval_embednoise.noise import perturb

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence, Sized

    from numpy.typing import NDArray
    from torch import Tensor

    from lm_eval_embednoise.analysis.mechanism.capture import Given
    from lm_eval_embednoise.analysis.mechanism.material import Arm, Material, Problem
    from lm_eval_embednoise.analysis.mechanism.probes import Arrays, Row
    from lm_eval_embednoise.engine.runner import Runner
    from lm_eval_embednoise.scoring.records import Record

KINDS = ("strategy", "tree", "behaviour")
LEAST_SAMPLES = 20
EPSILON = "epsilon"
POSITIONS = 8  # whose noise is drawn at a time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defaults only: the shared arguments are enough."""
    parser.set_defaults(
        method=["temp-0.8", "embednoise-0.1", "embednoise-0.5"],
        limit=1,
        k=1000,
        layers="embed,1,5,10,15,20",
    )


def check(args: argparse.Namespace, blocks: Sized) -> None:
    """Refuse layers that don't exist, and fewer samples than can be clustered."""
    parse_layers(args.layers, blocks)
    if args.k < LEAST_SAMPLES:
        raise ValueError(
            f"-K {args.k}: clusters and probes of a problem need at least {LEAST_SAMPLES} samples"
        )


def pieces(material: Material, args: argparse.Namespace) -> dict[str, Callable[[], Arrays]]:
    """One piece for each method and problem."""
    return {
        arm.piece(problem): functools.partial(_states, arm, problem, args.layers)
        for arm in material.arms
        for problem in arm.problems
    }


def _states(arm: Arm, problem: Problem, layers: str) -> Arrays:
    """What is captured of K samples.

    Returns:
        `<site>` float32 [K, dim], after the noise, at the prompt's last position; `epsilon_gram`
        float32 [K, K], products of all ε on the prompt and all soft vectors, scaled to mean
        diagonal 1; `epsilon_norm` float32 [K], the norm of all of them;
        `rho` float32 [K]; `<kind>` int64 [K], classes of `KINDS`, −1 unknown.
    """
    runner, wanted = arm.runner, parse_layers(layers, arm.runner.blocks)
    states: dict[str, list[NDArray[np.float32]]] = {site: [] for site in wanted}
    given = [arm.alone(problem, index) for index in range(len(problem.draws))]
    for rows in batches(runner, given):
        ends = [row.length - 1 for row in rows]

        def keep(site: str, hidden: Tensor, ends: list[int] = ends) -> None:
            states[site].append(hidden[range(len(ends)), ends].float().cpu().numpy())

        capture(runner, rows, {(site, POST): functools.partial(keep, site) for site in wanted})
    arrays = {site: np.concatenate(values) for site, values in states.items()}
    arrays |= noise_products(runner, given)
    rhos = [draw.record.get("rho") for draw in problem.draws]
    arrays["rho"] = np.array([np.nan if rho is None else rho for rho in rhos], dtype=np.float32)
    records = [draw.record for draw in problem.draws]
    return arrays | {kind: labelled(kind, records) for kind in KINDS}


def noise_products(runner: Runner, given: Sequence[Given]) -> Arrays:
    """`epsilon_gram` and `epsilon_norm` of rows, drawn anew a few positions at a time.

    Returns:
        Nothing where the input has no noise, or prompts differ in length (random prefixes).
    """
    lengths = {row.length for row in given}
    soft = runner.soft_prompts.vectors([(row.job.problem, row.sample) for row in given])
    if len(lengths) > 1 or not (runner.perturbation.sites or soft is not None):
        return {}
    parts = [] if soft is None else [soft.flatten(1)]
    products = sum((part @ part.T for part in parts), torch.zeros(len(given), len(given)))
    rows = rows_of(runner, given, max(lengths))
    for site in runner.perturbation.sites:
        width = runner.references.width(site)
        deviations = rows.deviations(runner.perturbation, site)
        for at in torch.arange(max(lengths)).split(POSITIONS):
            drawn = (rows.keys[site], rows.positions[:, at], deviations[:, at], width)
            noise = perturb.draw(runner.perturbation, *drawn)
            if site in rows.roots:
                noise = noise @ rows.roots[site]
            flat = noise.flatten(1)
            products += (flat @ flat.T).cpu()
    norms = products.diagonal().clamp_min(0).sqrt()
    scale = norms.square().mean().clamp_min(1e-30)
    return {"epsilon_gram": (products / scale).numpy(), "epsilon_norm": norms.numpy()}


def labelled(kind: str, records: Sequence[Record]) -> NDArray[np.int64]:
    """The classes of samples, −1 where there is none.

    `strategy`: minicoder's five, from the syntax tree; `tree`: the normalised tree; `behaviour`:
    what it does on the tests. A maths answer's `tree` is its way, its `behaviour` the answer.
    """
    labels: list[object] = []
    for record in records:
        if "code" not in record:
            labels.append({"tree": str(record["way"]), "behaviour": record["answer"]}.get(kind))
        elif not record["compiled"]:
            labels.append(None)
        elif kind == "strategy":
            labels.append(strategy(record["code"]))
        elif kind == "tree":
            labels.append(record["ast"])
        else:
            labels.append((record["verdict"], record["detail"], record["behaviour"]))
    found = clusters.codes(labels)
    return np.where([label is None for label in labels], -1, found)


def table(material: Material, args: argparse.Namespace, found: Mapping[str, Arrays]) -> list[Row]:
    """A row for each method, problem, layer (and ε) and kind of class."""
    rows = []
    for arm in material.arms:
        for problem in arm.problems:
            arrays = found[arm.piece(problem)]
            facts = {"method": arm.name, "problem": problem.name, **_diversity(arrays, problem)}
            for place in (EPSILON, *parse_layers(args.layers, arm.runner.blocks)):
                rows += [{**facts, **row} for row in examined(arrays, place)]
    return rows


def _diversity(arrays: Arrays, problem: Problem) -> Row:
    """Size of the noise beside the diversity that it achieved."""
    texts = [draw.ids for draw in problem.draws]
    common = max(set(texts), key=texts.count)
    moved = np.array([text != common for text in texts], dtype=float)
    norms = arrays.get("epsilon_norm", np.zeros(len(texts)))
    varies = moved.std() > 0 and norms.std() > 1e-6 * max(float(norms.mean()), 1e-30)
    related = spearmanr(norms, moved) if varies else (np.nan, np.nan)
    return {
        "K": len(texts),
        "epsilon_norm": float(norms.mean()) if "epsilon_norm" in arrays else float("nan"),
        "rho": float(np.mean(arrays["rho"])),
        "texts": len(set(texts)),
        **{name: float(problem.metrics.get(name, np.nan)) for name in ("pass@1", "distinct_2")},
        **{f"{kind}_classes": len(set(arrays[kind][arrays[kind] >= 0])) for kind in KINDS},
        "norm_and_leaving": float(related[0]),
        "norm_and_leaving_p": float(related[1]),
    }


def examined(arrays: Arrays, place: str) -> list[Row]:
    """Clusters at a place and their agreement with each kind of class, and the linear probe.

    Args:
        arrays: a piece's.
        place: a site, or `epsilon`.
    """
    if place == EPSILON:
        if "epsilon_gram" not in arrays or not arrays["epsilon_gram"].any():
            return []
        products = _centred(arrays["epsilon_gram"].astype(np.float64))
        vectors = _coordinates(products)
    else:
        states = arrays[place]
        if np.ptp(states, axis=0).max() <= 1e-6 * np.abs(states).max():
            return []  # one state for all samples: the method leaves the prompt alone
        products, vectors = linear.gram(states), clusters.reduced(states)
    means, silhouette = clusters.k_means(vectors)
    dense = clusters.densest(vectors)
    rows = []
    for kind in KINDS:
        labels = arrays[kind]
        known = labels >= 0
        told = linear.predict(products, labels)
        row: Row = {"place": place, "classes_of": kind, "n": told.n, "classes": told.classes}
        row |= {"accuracy": told.accuracy, "chance": told.chance, "probe_p": told.p}
        row |= {"k_means": int(means.max()) + 1, "silhouette": silhouette}
        row["hdbscan"] = int(dense.max()) + 1
        for name, partition in (("k_means", means), ("hdbscan", dense)):
            ami, p = clusters.agreement(partition[known], labels[known])
            row |= {f"{name}_ami": ami, f"{name}_p": p}
        rows.append(row)
    return rows


def _centred(products: NDArray[np.float64]) -> NDArray[np.float64]:
    """Products of the same vectors with their mean taken away."""
    mean = products.mean(0)
    return products - mean - mean[:, None] + mean.mean()


def _coordinates(products: NDArray[np.float64]) -> NDArray[np.float32]:
    """Principal components [n, at most 20] of vectors given by their centred products."""
    values, vectors = np.linalg.eigh(products)
    kept = slice(-min(clusters.DIMENSIONS, len(values)), None)
    return (vectors[:, kept] * np.sqrt(np.maximum(values[kept], 0.0))).astype(np.float32)


def figures(
    material: Material, args: argparse.Namespace, found: Mapping[str, Arrays], rows: list[Row]
) -> dict[str, Figure]:
    """The probe's balanced accuracy from ε through the layers, for each method; chance dashed.

    Of the strategy, or of the tree where there is no strategy to tell.
    """
    defined = [row for row in rows if np.isfinite(row["accuracy"])]
    kind = next((k for k in KINDS if any(row["classes_of"] == k for row in defined)), KINDS[0])
    sites = parse_layers(args.layers, material.clean.blocks)
    places = (EPSILON, *sites)
    with mpl.rc_context(RC):
        figure = Figure(figsize=(6, 3.6), dpi=150, layout="constrained")
        axis = figure.subplots()
        shown = [row for row in defined if row["classes_of"] == kind]
        for number, key in enumerate(dict.fromkeys((r["method"], r["problem"]) for r in shown)):
            line = [row for row in shown if (row["method"], row["problem"]) == key]
            color, marker = STYLES[family(key[0])]
            style = ("-", "--", ":", "-.")[number % 4]
            at = np.array([[places.index(row["place"]), row["accuracy"]] for row in line]).T
            axis.plot(*at, style, color=color, marker=marker, label=": ".join(key))
            x, y = at[:, [row["probe_p"] <= 0.05 for row in line]]
            axis.scatter(x, y, s=90, facecolors="none", edgecolors=color)
            axis.axhline(line[0]["chance"], color="#999999", linewidth=0.8, linestyle="--")
        axis.set_xticks(range(len(places)), ["ε", *(s.removeprefix("block.") for s in sites)])
        axis.set_xlabel("where the probe looks (block; last position of the prompt)")
        axis.set_ylabel(f"balanced accuracy, {kind}")
        axis.set_ylim(0, 1.02)
        if shown:
            axis.legend(fontsize=8, title="ring: p ≤ 0.05; dashed grey: chance", title_fontsize=8)
    return {"probe-accuracy": figure}
