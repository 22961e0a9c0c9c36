"""`embednoise power`: problems needed to find a difference, from a pilot's paired differences.

By simulation: the pilot's clusters are drawn with replacement under weights that make the mean
difference the one asked for, and the protocol's test is run on each draw. The weights tilt the
pilot exponentially (Efron 1981), so zeros stay zeros and no value appears that no problem showed;
shifting all differences instead would turn ties into wins. The normal approximation stands beside.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import optimize
from scipy import stats as _scipy

from lm_eval_embednoise.analysis import stats
from lm_eval_embednoise.analysis.measures import measure
from lm_eval_embednoise.analysis.records import align, combine, read_runs
from lm_eval_embednoise.analysis.resample import Array, cluster_codes
from lm_eval_embednoise.analysis.runs import ResultError
from lm_eval_embednoise.written import write_text

TRIALS = 1_000
MOST = 20_000
_BATCH = 4_000_000  # differences simulated at a time


@dataclass(frozen=True)
class Needed:
    """Problems needed; None: more than `MOST`."""

    simulated: int | None
    approximate: int
    power: float  # simulated, at that size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="the pilot's result folders")
    parser.add_argument("--method", required=True, help="the method, such as embednoise-0.1")
    parser.add_argument("--baseline", default="temp-0.8", metavar="METHOD")
    parser.add_argument("--metric", default="pass@10")
    parser.add_argument(
        "--difference",
        type=float,
        default=0.05,
        help="smallest difference worth finding (0.05: 5 percentage points of a rate)",
    )
    parser.add_argument(
        "--alpha", type=float, default=0.01, help="two-sided (0.05 / 5 comparisons)"
    )
    parser.add_argument("--power", type=float, default=0.8)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")


def run(args: argparse.Namespace) -> int:
    """Print the problems needed for each task of the pilot; returns the exit status."""
    if not (0 < args.alpha < 1 and 0 < args.power < 1):
        raise ResultError("--alpha and --power must lie between 0 and 1")
    runs = read_runs(args.results)
    pilots = sorted({(r.model, r.task) for r in runs if r.method == args.method})
    if not pilots:
        known = ", ".join(sorted({r.method for r in runs}))
        raise ResultError(f"no results of {args.method!r}; there are: {known}")
    found = []
    for model, task in pilots:
        sides = []
        for name in (args.method, args.baseline):
            mine = [r for r in runs if (r.model, r.task, r.method) == (model, task, name)]
            if not mine or args.metric not in mine[0].metrics:
                raise ResultError(f"{name} has no {args.metric} for {model} on {task}")
            sides.append(combine(mine))
        a, b = align(sides)
        d = a.metrics[args.metric] - b.metrics[args.metric]
        codes = cluster_codes(a.clusters, a.n)
        keep = np.isfinite(d)
        d, codes = d[keep], codes[keep]
        needed = problems_needed(
            d, codes, difference=args.difference, alpha=args.alpha, power=args.power
        )
        found.append({"model": model, "task": task, **needed.__dict__})
        print(_sentence(f"{task} · {model}", args, d, codes, needed))
    if args.json:
        write_text(args.json, json.dumps(found, indent=1) + "\n")
    return 0


def problems_needed(
    d: Array,
    clusters: NDArray[np.int64] | None = None,
    *,
    difference: float,
    alpha: float,
    power: float = 0.8,
    trials: int = TRIALS,
    seed: int = 0,
) -> Needed:
    """Problems needed for the signed-rank test to find a mean difference.

    Args:
        d: the pilot's differences [n].
        clusters: their cluster codes; the pilot's cluster sizes are kept.
        difference: true mean difference to be found.
        alpha: two-sided level.
        power: share of studies that must find it.
        trials: simulated studies at each size.
        seed: root of the draws.

    Raises:
        ResultError: the pilot has too few problems, or no mixture of its differences has that mean.
    """
    blocks = _blocks(stats.settle(d), clusters)
    per_cluster = len(d) / len(blocks)
    weights = tilted(blocks, difference)
    sums = np.array([block.sum() for block in blocks])
    sizes = np.array([len(block) for block in blocks])
    # Variance of a cluster's contribution to the mean, as `stats.standard_error` has it.
    variance = float(np.sum(weights * (sums - difference * sizes) ** 2)) / per_cluster**2
    reach = _scipy.norm.ppf(1 - alpha / 2) + _scipy.norm.ppf(power)
    groups = int(np.ceil(variance * (reach / difference) ** 2))
    approximate = max(int(np.ceil(groups * per_cluster)), 1)

    def simulated(clusters_drawn: int) -> float:
        return rejection_rate(
            blocks, weights, clusters_drawn, alpha=alpha, trials=trials, seed=seed
        )

    low, high = 1, max(groups, 2)
    while simulated(high) < power:
        low, high = high, 2 * high
        if high * per_cluster > MOST:
            return Needed(None, approximate, simulated(low))
    while high - low > max(1, high // 50):  # to 2 %: the simulation is no more exact than that
        middle = (low + high) // 2
        low, high = (low, middle) if simulated(middle) >= power else (middle, high)
    return Needed(int(np.ceil(high * per_cluster)), approximate, simulated(high))


def tilted(blocks: list[Array], difference: float) -> Array:
    """Weights of the clusters, ∝ exp(λ · mean difference), that give this mean over problems."""
    sums = np.array([block.sum() for block in blocks])
    sizes = np.array([len(block) for block in blocks])
    means = sums / sizes
    if len(blocks) < 2 or not means.min() < difference < means.max():
        raise ResultError(
            f"the pilot's differences ({means.min():.3g} to {means.max():.3g}, {len(blocks)} "
            f"clusters) can't average {difference:g}: use a larger pilot or another difference"
        )
    scale = np.abs(means - difference).max()

    def weights(slope: float) -> Array:
        exponent = slope * (means - difference) / scale
        raw = np.exp(exponent - exponent.max())
        return np.asarray(raw / raw.sum())

    def excess(slope: float) -> float:
        w = weights(slope)
        return float(w @ (sums - difference * sizes))

    limit = 1.0
    while excess(-limit) * excess(limit) > 0 and limit < 1e4:
        limit *= 2
    return weights(float(optimize.brentq(excess, -limit, limit)))


def rejection_rate(
    blocks: list[Array], weights: Array, groups: int, *, alpha: float, trials: int, seed: int
) -> float:
    """Share of simulated studies of `groups` clusters in which the signed-rank test rejects."""
    rng = np.random.default_rng([seed, groups])
    largest = max(len(block) for block in blocks)
    padded = np.full((len(blocks), largest), np.nan)
    for i, block in enumerate(blocks):
        padded[i, : len(block)] = block
    critical = _scipy.norm.ppf(1 - alpha / 2)
    rejected, batch = 0, max(1, _BATCH // (groups * largest))
    for start in range(0, trials, batch):
        count = min(batch, trials - start)
        drawn = padded[rng.choice(len(blocks), size=(groups, count), p=weights)]
        rejected += int(np.sum(np.abs(_deviates(drawn)) > critical))
    return rejected / trials


def _deviates(drawn: Array) -> Array:
    """Signed-rank deviates of simulated studies [clusters, studies, members]; NaN pads members."""
    groups, studies, members = drawn.shape
    flat = np.moveaxis(drawn, 1, 2).reshape(groups * members, studies)
    present = np.isfinite(flat)
    # Absent members would take ranks: as zeros they rank lowest and shift all others equally.
    ranks = stats.signed_ranks(np.where(present, flat, 0.0))
    absent = np.sum(~present, axis=0)
    ranks = ranks - np.sign(ranks) * absent
    totals = ranks.reshape(groups, members, studies).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(totals.sum(0) / np.sqrt(np.sum(totals**2, 0)))


def _blocks(d: Array, clusters: NDArray[np.int64] | None) -> list[Array]:
    if clusters is None:
        return [d[i : i + 1] for i in range(len(d))]
    return [d[clusters == code] for code in np.unique(clusters)]


def _sentence(
    pilot: str, args: argparse.Namespace, d: Array, codes: NDArray[np.int64], needed: Needed
) -> str:
    unit = " points" if measure(args.metric).rate else ""
    size = f"{100 * args.difference:g}" if unit else f"{args.difference:g}"
    groups = len(np.unique(codes))
    families = f" in {groups} families" if groups < len(d) else ""
    answer = (
        f"{needed.simulated} problems (simulated power {100 * needed.power:.0f} %)"
        if needed.simulated
        else f"more than {MOST} problems"
    )
    return (
        f"{pilot}: to find {size}{unit} of {args.metric} between {args.method} and {args.baseline} "
        f"with {100 * args.power:g} % power at {args.alpha:g} takes {answer}; the normal "
        f"approximation says {needed.approximate}. Pilot: {len(d)} problems{families}, mean "
        f"difference {d.mean():+.3f}, SD {d.std(ddof=1) if len(d) > 1 else float('nan'):.3f}."
    )
