"""`embednoise power`: problems needed, from a pilot's paired values (planning.py computes them)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lm_eval_embednoise.analysis import stats
from lm_eval_embednoise.analysis.measures import measure
from lm_eval_embednoise.analysis.planning import (
    MOST,
    Needed,
    difference_needed,
    noninferiority_needed,
    ratio_needed,
    variance_parts,
)
from lm_eval_embednoise.analysis.records import align, combine, read_runs
from lm_eval_embednoise.analysis.resample import cluster_codes
from lm_eval_embednoise.analysis.runs import ResultError
from lm_eval_embednoise.written import write_text

if TYPE_CHECKING:
    import argparse

    from numpy.typing import NDArray

    from lm_eval_embednoise.analysis.resample import Array

SAMPLED = ("pass@1", "accuracy", "compile_rate", "valid_rate")  # means over samples


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
        help="smallest difference worth finding by the sign-flip test of the mean, the test that "
        "decides (0.05: 5 percentage points of a rate)",
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
    needed = difference_needed(a - b, codes, difference=args.difference, **level)
    size = f"{100 * args.difference:g} points" if rate else f"{args.difference:g}"
    return needed, f"find {size} of {between} by the sign-flip test of the mean"


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
