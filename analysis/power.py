"""`embednoise power`: problems needed, from a pilot's paired differences (and planning.py).

A difference by simulation: the pilot's clusters are drawn with replacement under weights that make
the mean difference the one asked for, and the paper's test is run on each draw. The weights tilt
the pilot exponentially (Efron 1981), so zeros stay zeros and no value appears that no problem
showed; shifting all differences instead would turn ties into wins. The normal approximation stands
beside.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats as _scipy

from lm_eval_embednoise.analysis import stats
from lm_eval_embednoise.analysis.measures import measure
from lm_eval_embednoise.analysis.planning import (
    MOST,
    Needed,
    least_groups,
    noninferiority_needed,
    ratio_needed,
    tilted,
    variance_parts,
)
from lm_eval_embednoise.analysis.records import align, combine, read_runs
from lm_eval_embednoise.analysis.resample import Array, cluster_codes
from lm_eval_embednoise.analysis.runs import ResultError
from lm_eval_embednoise.written import write_text

if TYPE_CHECKING:
    import argparse

    from numpy.typing import NDArray

TRIALS = 1_000
SAMPLED = ("pass@1", "accuracy", "compile_rate", "valid_rate")  # means over samples
_BATCH = 4_000_000  # differences simulated at a time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="the pilot's result folders")
    parser.add_argument("--method", required=True, help="the method, such as embednoise-0.1")
    parser.add_argument("--baseline", default="temp-0.8", metavar="METHOD")
    parser.add_argument("--metric", default="pass@10")
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument(
        "--difference",
        type=float,
        default=0.05,
        help="smallest difference worth finding (0.05: 5 percentage points of a rate)",
    )
    asked.add_argument(
        "--margin", type=float, help="show instead that a rate is worse by less than this"
    )
    asked.add_argument("--ratio", type=float, help="show instead that the ratio is above this")
    parser.add_argument(
        "--expected",
        type=float,
        help="the true difference (with --margin; 0) or ratio (with --ratio; the pilot's)",
    )
    parser.add_argument(
        "--samples", metavar="K,K,…", help="also: problems needed with so many samples of each"
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
    plans = []
    for model, task in pilots:
        sides, samples = [], []
        for name in (args.method, args.baseline):
            mine = [r for r in runs if (r.model, r.task, r.method) == (model, task, name)]
            if not mine or args.metric not in mine[0].metrics:
                raise ResultError(f"{name} has no {args.metric} for {model} on {task}")
            sides.append(combine(mine))
            samples.append(mine[0].k * len(mine))
        a, b = align(sides)
        left, right = a.metrics[args.metric], b.metrics[args.metric]
        keep = np.isfinite(left) & np.isfinite(right)
        left, right = left[keep], right[keep]
        codes = cluster_codes(a.clusters, a.n)[keep]
        needed, aim = _asked(args, left, right, codes)
        plan = {"model": model, "task": task, **needed.__dict__}
        print(_sentence(f"{task} · {model}", args, aim, left - right, codes, needed))
        if args.samples:
            plan["samples"] = _by_samples(args, left, right, min(samples), codes)
        plans.append(plan)
    if args.json:
        write_text(args.json, json.dumps(plans, indent=1) + "\n")
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

    needed, reached = least_groups(simulated, groups, power, per_cluster)
    return Needed(needed and int(np.ceil(needed * per_cluster)), approximate, reached)


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


def _asked(
    args: argparse.Namespace, a: Array, b: Array, codes: NDArray[np.int64]
) -> tuple[Needed, str]:
    """What is to be planned, and the aim in words."""
    level = {"alpha": args.alpha, "power": args.power}
    between = f"{args.metric} between {args.method} and {args.baseline}"
    rate = measure(args.metric).rate
    if args.margin is not None:
        if not rate:
            raise ResultError(f"--margin is for rates, {args.metric} is none")
        expected = args.expected or 0.0
        needed = noninferiority_needed(
            stats.settle(a - b), codes, margin=args.margin, expected=expected, **level
        )
        return needed, (
            f"show that {args.method} is less than {100 * args.margin:g} points of {args.metric} "
            f"worse than {args.baseline} if the true difference is {100 * expected:+g}"
        )
    if args.ratio is not None:
        expected = float(a.mean() / b.mean()) if args.expected is None else args.expected
        needed = ratio_needed(a, b, codes, limit=args.ratio, expected=expected, **level)
        return needed, f"show a ratio above {args.ratio:g} of {between} if it is {expected:.3g}"
    needed = problems_needed(a - b, codes, difference=args.difference, **level)
    size = f"{100 * args.difference:g} points" if rate else f"{args.difference:g}"
    return needed, f"find {size} of {between}"


def _by_samples(
    args: argparse.Namespace, a: Array, b: Array, k: int, codes: NDArray[np.int64]
) -> dict[str, int]:
    """Problems needed for the difference with other numbers of samples; printed as well."""
    if args.metric not in SAMPLED:
        known = ", ".join(SAMPLED)
        raise ResultError(f"--samples is for means over samples ({known}), not for {args.metric}")
    try:
        wanted = [int(part) for part in args.samples.split(",")]
    except ValueError:
        wanted = [0]
    if min(wanted) < 1:
        raise ResultError(f"--samples {args.samples}: whole numbers ≥ 1, such as 10,20,50")
    parts = variance_parts(a, b, k, codes)
    level = {"alpha": args.alpha, "power": args.power}
    problems = {str(n): parts.problems(args.difference, n, **level) for n in wanted}
    print(
        f"  of the difference's variance {parts.between:.4f} lies between problems, "
        f"{parts.within:.4f} / K within; a difference of {100 * args.difference:g} points takes "
        + ", ".join(f"{n} problems at K = {k}" for k, n in problems.items())
    )
    return problems


def _sentence(
    pilot: str,
    args: argparse.Namespace,
    aim: str,
    d: Array,
    codes: NDArray[np.int64],
    needed: Needed,
) -> str:
    groups = len(np.unique(codes))
    families = f" in {groups} families" if groups < len(d) else ""
    answer = (
        f"{needed.simulated} problems (simulated power {100 * needed.power:.0f} %)"
        if needed.simulated
        else f"more than {MOST} problems"
    )
    return (
        f"{pilot}: to {aim} with {100 * args.power:g} % power at {args.alpha:g} takes {answer}; "
        f"the normal approximation says {needed.approximate}. Pilot: {len(d)} problems{families}, "
        f"mean difference {d.mean():+.3f}, SD {d.std(ddof=1) if len(d) > 1 else float('nan'):.3f}."
    )
