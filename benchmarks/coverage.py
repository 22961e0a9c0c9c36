"""How often intervals cover and tests err: studies simulated where the truth is known.

python benchmarks/coverage.py [--trials 2000] [--draws 10000] [--short] [--out coverage.jsonl]

The first table: 95 % intervals that cover, among those that are stated; the share that is stated
stands in brackets where it is not all. The second: how often the studentised sign-flip test and
the signed-rank test reject a true null hypothesis at 5 %, how often a candidate that is worse by
exactly the margin is shown to be non-inferior at 2.5 and 0.5 %, and a ratio above its true value.

A row is one condition and number of independent problems (clusters). Every row is written to --out
as it finishes and is not simulated again. The process is niced and takes one core.
"""

from __future__ import annotations

import argparse
import json
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_embednoise.analysis import stats
from lm_eval_embednoise.analysis.intervals import Support, mean_intervals, ratio_intervals
from lm_eval_embednoise.analysis.resample import Array, Resampler

GROUPS = (8, 12, 20, 40, 100, 164, 500)
RATE, COUNT, SHARE = Support(-1.0, 1.0, True), Support(), Support(-1.0, 1.0)
FLIPS = 999
KEY = ("condition", "groups", "trials", "draws")
ERRORS = {
    "flips": "sign flips, 5",
    "wilcoxon": "Wilcoxon, 5",
    "passes_025": "non-inferior, 2.5",
    "passes_005": "non-inferior, 0.5",
    "claims_005": "ratio above, 0.5",
}
Make = Callable[[np.random.Generator, int, int], tuple[Array, Array | None]]


@dataclass(frozen=True)
class Condition:
    """What differences look like: `make(rng, problems, trials)` gives [problems, trials] each.

    The second array, where there is one, is the baseline: then the ratio of means is what is asked.
    """

    make: Make
    truth: float
    support: Support = RATE
    per_cluster: int = 1  # mean number of problems of a cluster
    symmetric: bool = False  # the null hypothesis of the tests


def binary(share: float, mean: float) -> Make:
    """0/1 outcomes of which this share are discordant."""

    def make(rng: np.random.Generator, n: int, trials: int) -> tuple[Array, None]:
        u = rng.random((n, trials))
        return np.where(u < (share - mean) / 2, -1.0, np.where(u < share, 1.0, 0.0)), None

    return make


def rates(loss: float, undefined: bool = False) -> Make:
    """pass@1 of 20 samples each at difficulties from Beta(½, ½), the candidate's lowered."""

    def make(rng: np.random.Generator, n: int, trials: int) -> tuple[Array, None]:
        easy = rng.beta(0.5, 0.5, (n, trials))
        d = (rng.binomial(20, easy * (1 - loss)) - rng.binomial(20, easy)) / 20
        return np.where(rng.random(d.shape) < 0.3 + 0.3 * easy, np.nan, d) if undefined else d, None

    return make


def zero_heavy(rng: np.random.Generator, n: int, trials: int) -> tuple[Array, None]:
    """Three problems of five don't differ, the others by 0.05, 0.1 or 0.3."""
    size = rng.choice([0.05, 0.1, 0.3], (n, trials)) * rng.choice([-1, 1], (n, trials))
    return np.where(rng.random((n, trials)) < 0.6, 0.0, size), None


def solutions(rng: np.random.Generator, n: int, trials: int) -> tuple[Array, None]:
    """Counts: four problems of five at 0, the others at 1, 2, 3 and so on."""
    return np.where(rng.random((n, trials)) < 0.8, 0.0, rng.geometric(0.5, (n, trials))), None


def skewed(rng: np.random.Generator, n: int, trials: int) -> tuple[Array, None]:
    """Exponential values."""
    return rng.standard_exponential((n, trials)), None


def normal(rng: np.random.Generator, n: int, trials: int) -> tuple[Array, None]:
    """Normal differences."""
    return rng.normal(0, 0.3, (n, trials)), None


def diversity(rng: np.random.Generator, n: int, trials: int) -> tuple[Array, Array]:
    """distinct_2 of two methods, skewed and related; the true ratio is 1.2."""
    base = 0.1 * np.exp(rng.normal(0, 0.6, (n, trials)) + rng.normal(0, 0.3, (n, trials)))
    return 1.2 * base * np.exp(rng.normal(-0.08, 0.4, (n, trials))), base


def counts(rng: np.random.Generator, n: int, trials: int) -> tuple[Array, Array]:
    """Distinct solutions of two methods, many of them none."""
    rate = rng.gamma(0.6, 3.0, (n, trials))
    return rng.poisson(1.2 * rate).astype(float), rng.poisson(rate).astype(float)


def collapsing(rng: np.random.Generator, n: int, trials: int) -> tuple[Array, Array]:
    """A candidate whose diversity is 0 on three problems of a hundred."""
    base = rng.beta(20, 80, (n, trials))
    broken = rng.random((n, trials)) < 0.03
    return np.where(broken, 0.0, base * 1.2 / 0.97 * rng.uniform(0.8, 1.2, (n, trials))), base


CONDITIONS = {
    **{f"binary, {p} % discordant": Condition(binary(p / 100, 0.0), 0.0, symmetric=True)
       for p in (2, 10, 30)},
    "binary, 2 %, mean −1 point": Condition(binary(0.02, -0.01), -0.01),
    "binary, 10 %, mean −5 points": Condition(binary(0.1, -0.05), -0.05),
    "binary, 10 %, all losses": Condition(binary(0.1, -0.1), -0.1),
    "binary, 30 %, mean −5 points": Condition(binary(0.3, -0.05), -0.05),
    "Beta, K = 20": Condition(rates(0.0), 0.0, symmetric=True),
    "Beta, K = 20, mean −5 points": Condition(rates(0.1), -0.05),
    "Beta, nearly half undefined": Condition(rates(0.0, undefined=True), 0.0, symmetric=True),
    "zero-heavy": Condition(zero_heavy, 0.0, SHARE, symmetric=True),
    "zero-heavy counts": Condition(solutions, 0.4, COUNT),
    "skewed (exponential)": Condition(skewed, 1.0, COUNT),
    "clustered": Condition(normal, 0.0, COUNT, per_cluster=3, symmetric=True),
    "clustered, binary, 10 %, mean −5 points": Condition(binary(0.1, -0.05), -0.05, per_cluster=3),
    "ratio of diversities": Condition(diversity, 1.2),
    "ratio of counts": Condition(counts, 1.2),
    "ratio, collapsing": Condition(collapsing, 1.2),
}  # fmt: skip


def simulate(name: str, groups: int, *, trials: int, draws: int) -> dict[str, Any]:
    """One row: the condition's rates of covering and erring at this number of clusters."""
    condition = CONDITIONS[name]
    rng = np.random.default_rng([zlib.crc32(name.encode()), groups])
    clusters = np.arange(groups)
    a, b = condition.make(rng, groups, trials)
    if condition.per_cluster > 1:  # half of a cluster's problems, on average, show the same
        clusters = np.repeat(clusters, 1 + np.arange(groups) % (2 * condition.per_cluster - 1))
        own, _ = condition.make(rng, len(clusters), trials)
        a = np.where(rng.random(own.shape) < 0.5, a[clusters], own)
    resampler = Resampler(clusters, draws=draws)
    row: dict[str, Any] = {"condition": name, "groups": groups, "trials": trials, "draws": draws}
    truth = condition.truth
    if b is not None:
        told = ratio_intervals(a, b, resampler)
        strict = ratio_intervals(a, b, resampler, level=0.99)
        row["claims_005"] = float(np.mean([e.low > truth for e in strict]))
    else:
        supports = [condition.support] * trials
        told = mean_intervals(a, resampler, supports)
        if condition.support.decides:
            for key, level in (("passes_025", 0.95), ("passes_005", 0.99)):
                found = mean_intervals(a, resampler, supports, level=level)
                row[key] = float(np.mean([e.low > truth for e in found]))
        if condition.symmetric:
            row |= _rejections(a, clusters)
    told = [e for e in told if np.isfinite(e.low)]
    missed = [not e.low - 1e-9 <= truth <= e.high + 1e-9 for e in told]
    row["stated"] = len(missed) / trials
    row["missed"] = sum(missed) / trials
    row["covers"] = 1 - float(np.mean(missed)) if missed else None
    row["width"] = float(
        np.median([e.high - e.low for e in told if np.isfinite(e.low)] or [np.nan])
    )
    return row


def _rejections(d: Array, clusters: np.ndarray) -> dict[str, float]:
    flips, ranks = [], []
    for column in d.T:
        known = np.isfinite(column)
        if len(np.unique(clusters[known])) < 2:
            continue
        part, codes = column[known], clusters[known]
        sizes = stats.cluster_sums(np.ones((len(part), 1)), codes)[:, 0]
        totals = stats.cluster_sums(part[:, None], codes)
        flips.append(float(stats.sign_flip_p(totals, sizes, flips=FLIPS)[0]))
        ranks.append(stats.signed_rank(part, codes).p)
    return {"flips": float(np.mean(np.array(flips) <= 0.05)),
            "wilcoxon": float(np.mean(np.array(ranks) <= 0.05))}  # fmt: skip


def tables(rows: list[dict[str, Any]]) -> str:
    """Two Markdown tables in percent: what the intervals cover, and how often the tests err."""
    groups = sorted({row["groups"] for row in rows})
    names = list(dict.fromkeys(row["condition"] for row in rows))
    found = {(row["condition"], row["groups"]): row for row in rows}
    lines = _head("95 % intervals cover, clusters:", *map(str, groups))
    lines += [_line(name, *(_covers(found[name, g]) for g in groups)) for name in names]
    lines += ["", *_head("largest error, any number of clusters", *ERRORS.values())]
    for name in names:
        cells = []
        for key in ERRORS:
            at = [100 * found[name, g][key] for g in groups if key in found[name, g]]
            cells.append(f"{max(at):.1f}" if at else "")
        if any(cells):
            lines.append(_line(name, *cells))
    return "\n".join(lines)


def _covers(row: dict[str, Any]) -> str:
    if row["covers"] is None:
        return "refused"
    stated = f" ({100 * row['stated']:.0f})" if row["stated"] < 0.995 else ""
    return f"{100 * row['covers']:.1f}{stated}"


def _head(*cells: str) -> list[str]:
    return [_line(*cells), "|---" * len(cells) + "|"]


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Simulate what --out does not hold yet, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--short", action="store_true", help="300 trials of 1,000 draws, to 40")
    parser.add_argument("--out", type=Path, default=Path("coverage.jsonl"))
    args = parser.parse_args()
    os.nice(10)
    size = (300, 1000) if args.short else (args.trials, args.draws)
    lines = args.out.read_text(encoding="utf-8").splitlines() if args.out.is_file() else []
    known = {
        (r["condition"], r["groups"], r["trials"], r["draws"]): r for r in map(json.loads, lines)
    }
    rows = []
    for name in CONDITIONS:
        for groups in [g for g in GROUPS if g <= 40] if args.short else GROUPS:
            key = (name, groups, *size)
            if key not in known:
                known[key] = simulate(name, groups, trials=size[0], draws=size[1])
                with args.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(known[key]) + "\n")
            rows.append(known[key])
    print(tables(rows))


if __name__ == "__main__":
    main()
