"""Early tokens: where a problem's samples part, and whether the first token is it all.

For each method: how many beginnings its samples have, when pairs of them part, when they leave the
greedy path and how unlikely the clean model finds that token; entropy, likeliest token and KL from
the clean model at every early step; and how much of the diversity is left among samples that begin
alike, against the comparator that only stratifies the first token (`first_token=stratified:N`).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_eval_embednoise.analysis.intervals import Support, mean_intervals, ratio_intervals
from lm_eval_embednoise.analysis.mechanism import pictures
from lm_eval_embednoise.analysis.mechanism.means import mean_first
from lm_eval_embednoise.analysis.mechanism.steps import early_steps
from lm_eval_embednoise.analysis.pairs import as_json, sign_flips
from lm_eval_embednoise.analysis.resample import Resampler, cluster_codes
from lm_eval_embednoise.checks import integer
from lm_eval_embednoise.scoring.records import solution

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Hashable, Mapping, Sequence, Sized

    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from lm_eval_embednoise.analysis.mechanism.material import Arm, Material, Problem
    from lm_eval_embednoise.analysis.mechanism.probes import Arrays, Row
    from lm_eval_embednoise.analysis.resample import Array

Ids = tuple[int, ...]
LENGTHS = (1, 2, 4, 8, 16, 32)  # generated tokens that are looked at, and conditioned on
_UNIT = Support(0.0, 1.0)


@dataclass(frozen=True)
class Begun:
    """The samples of one problem.

    Attributes:
        ids: generated token ids of each.
        classes: what tells them apart: programs by their trees, worked answers by their ways.
    """

    ids: Sequence[Ids]
    classes: Sequence[Hashable]


def beginnings(ids: Sequence[Ids], length: int) -> tuple[int, float]:
    """Different beginnings of so many tokens, and the entropy of their shares in nats."""
    _, counts = np.unique([hash(of_one[:length]) for of_one in ids], return_counts=True)
    shares = counts / counts.sum()
    return len(counts), float(-(shares * np.log(shares)).sum())


def common(a: Ids, b: Ids) -> int:
    """How many tokens two samples begin with alike."""
    for place, (one, other) in enumerate(zip(a, b, strict=False)):
        if one != other:
            return place
    return min(len(a), len(b))


def parting(ids: Sequence[Ids]) -> Array:
    """After how many tokens each pair of samples parts, [pairs]; NaN for equal ones."""
    return np.array(
        [
            np.nan if a == b else common(a, b)
            for place, a in enumerate(ids)
            for b in ids[place + 1 :]
        ]
    )


def differing(begun: Begun, length: int) -> tuple[float, float]:
    """Whether two samples of a problem differ in class: any two, and two that begin alike.

    Both are means over the problem's pairs, so that K doesn't enter (Gini and Simpson's index,
    without replacement): the second is NaN where no pair begins with the same `length` tokens.
    """
    codes = np.unique([hash(c) for c in begun.classes], return_inverse=True)[1]
    starts = np.unique([hash(of_one[:length]) for of_one in begun.ids], return_inverse=True)[1]
    upper = np.triu_indices(len(codes), 1)
    differ = (codes[:, None] != codes)[upper]
    alike = (starts[:, None] == starts)[upper]
    if not len(differ):
        return float("nan"), float("nan")
    return float(differ.mean()), float(differ[alike].mean()) if alike.any() else float("nan")


def mediation(problems: Sequence[Begun], clusters: NDArray[np.int64]) -> dict[str, Any]:
    """How much of a method's diversity is left among samples that begin alike.

    Returns:
        `total`: P(two samples differ), with its interval; `left`: length → the same among samples
        with that beginning; `share`: length → left/total on the problems that have both.
    """
    resampler = Resampler(clusters)
    columns = np.array([[differing(p, n) for n in LENGTHS] for p in problems])  # [n, lengths, 2]
    total, left = columns[:, 0, :1], columns[:, :, 1]
    both = np.isfinite(left)
    wholes = np.where(both, columns[:, :, 0], np.nan)
    shares = ratio_intervals(left, wholes, resampler)
    means = mean_intervals(left, resampler, [_UNIT] * len(LENGTHS))
    (whole,) = mean_intervals(total, resampler, [_UNIT])
    return {
        "total": as_json(whole),
        "left": {n: as_json(e) for n, e in zip(LENGTHS, means, strict=True)},
        "share": {n: as_json(e) for n, e in zip(LENGTHS, shares, strict=True)},
    }


def begun(problem: Problem) -> Begun:
    """A problem's samples."""
    classes = [solution(d.record) or ("text", str(d.record["text"])) for d in problem.draws]
    return Begun([d.ids[: d.kept] for d in problem.draws], classes)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The number of steps that are looked at, and defaults."""
    parser.add_argument(
        "--steps", type=int, default=32, metavar="N", help="generated tokens to look at (32)"
    )
    parser.set_defaults(
        method=[
            *("temp-0.8", "embednoise-0.1", "embednoise-0.1-sequence", "rsp-16"),
            *("stratified-20", "stratified-20-temp-0.8"),
        ],
        limit=20,
        k=20,
        layers="embed",
    )


def check(args: argparse.Namespace, blocks: Sized) -> None:
    """Refuse a number of steps below 1, and fewer than two samples."""
    integer("--steps", args.steps, least=1)
    integer("-K", args.k, least=2)


def pieces(material: Material, args: argparse.Namespace) -> dict[str, Callable[[], Arrays]]:
    """One piece for each method and problem: see `early_steps`."""
    return {
        arm.piece(problem): functools.partial(early_steps, material, arm, problem, args.steps)
        for arm in material.arms
        for problem in arm.problems
    }


def table(material: Material, args: argparse.Namespace, found: Mapping[str, Arrays]) -> list[Row]:
    """A row for each method and task."""
    rows: list[Row] = []
    for task in dict.fromkeys(p.task for p in material.problems):
        paths = [p.draws[0] for p in material.problems if p.task == task]
        samples = {arm.name: _of(arm, task) for arm in material.arms}
        stratified = [arm.name for arm in material.arms if arm.sampling.strata]
        for arm in material.arms:
            problems = [p for p in arm.problems if p.task == task]
            clusters = cluster_codes([p.cluster for p in problems], len(problems))
            ours = samples[arm.name]
            row: Row = {"method": arm.name, "task": task, "n": len(ours), "k": args.k}
            row |= _parted(ours)
            row |= _departures(problems, [d.ids[: d.kept] for d in paths], found, arm)
            row |= _stepwise([found[arm.piece(p)] for p in problems], args.steps)
            row |= _flat(mediation(ours, clusters))
            for place in range(2):
                other = stratified[place] if place < len(stratified) else None
                tested = _tested(ours, samples[other], clusters) if other else {}
                row[f"comparator_{place}"] = other or ""
                row |= {f"{key}_against_{place}": tested.get(key, np.nan) for key in _TESTS}
            rows.append(row)
    return rows


def figures(
    material: Material, args: argparse.Namespace, found: Mapping[str, Arrays], rows: list[Row]
) -> dict[str, Figure]:
    """What is left after the first tokens; KL and entropy at each step."""
    made: dict[str, Figure] = {}
    for task in dict.fromkeys(row["task"] for row in rows):
        mine = [row for row in rows if row["task"] == task]
        left = {
            row["method"]: (
                np.array([0.0, *LENGTHS]),
                np.array([row["total"], *(row[f"left_{n}"] for n in LENGTHS)]),
            )
            for row in mine
        }
        labels = ("first tokens in common", "P(two samples differ)")
        made[f"left-{task}"] = pictures.curves(left, *labels)
        for name, label in (
            ("kl", "KL from the clean model (nats)"),
            ("entropy", "entropy (nats)"),
        ):
            lines = {
                arm.name: (
                    np.arange(1.0, args.steps + 1),
                    _by_step([found[arm.piece(p)][name] for p in arm.problems if p.task == task]),
                )
                for arm in material.arms
            }
            made[f"{name}-{task}"] = pictures.curves(lines, "generated token", label)
    return made


_TESTS = ("total_difference", "total_p", "left_difference", "left_p")


def _of(arm: Arm, task: str) -> list[Begun]:
    return [begun(problem) for problem in arm.problems if problem.task == task]


def _parted(problems: Sequence[Begun]) -> Row:
    counts = np.array([[beginnings(p.ids, n) for n in LENGTHS] for p in problems]).mean(0)
    parted = np.concatenate([parting(p.ids) for p in problems])
    row: Row = {f"beginnings_{n}": float(c) for n, c in zip(LENGTHS, counts[:, 0], strict=True)}
    row |= {f"start_entropy_{n}": float(c) for n, c in zip(LENGTHS, counts[:, 1], strict=True)}
    return row | {"parting_median": _median(parted), "equal_pairs": float(np.isnan(parted).mean())}


def _departures(
    problems: Sequence[Problem], paths: Sequence[Ids], found: Mapping[str, Arrays], arm: Arm
) -> Row:
    """After how many tokens samples leave the greedy path, and the clean rank of the next token."""
    steps: dict[bool, list[float]] = {True: [], False: []}
    ranks: dict[bool, list[float]] = {True: [], False: []}
    for problem, path in zip(problems, paths, strict=True):
        rank = found[arm.piece(problem)]["rank"]
        for place, draw in enumerate(problem.draws):
            ids, passed = draw.ids[: draw.kept], bool(draw.record["passed"])
            left = np.nan if ids == path else float(common(ids, path))
            steps[passed].append(left)
            inside = np.isfinite(left) and left < rank.shape[1]
            ranks[passed].append(rank[place, int(left)] if inside else np.nan)
    row: Row = {}
    for passed, word in ((True, "passed"), (False, "failed")):
        row[f"on_path_{word}"] = _share(np.isnan(np.array(steps[passed])))
        row[f"leaves_{word}"] = _median(np.array(steps[passed]))
        row[f"rank_{word}"] = _median(np.array(ranks[passed]))
    return row


def _stepwise(arrays: Sequence[Arrays], steps: int) -> Row:
    row: Row = {}
    for name in ("entropy", "top", "kl"):
        by_step = _by_step([one[name] for one in arrays])
        row |= {f"{name}_{n}": float(by_step[n - 1]) for n in LENGTHS if n <= steps}
    return row


def _by_step(arrays: Sequence[Array]) -> Array:
    """[steps] of each problem's [samples, steps]: mean over samples, then over problems."""
    return mean_first(np.stack([mean_first(one) for one in arrays]))


def _flat(found: Mapping[str, Any]) -> Row:
    whole = found["total"]
    row: Row = {"total": whole["value"], "total_low": whole["low"], "total_high": whole["high"]}
    for n in LENGTHS:
        row[f"left_{n}"] = found["left"][n]["value"]
    for n in LENGTHS:
        for key, name in (("value", "share"), ("low", "share_low"), ("high", "share_high")):
            row[f"{name}_{n}"] = found["share"][n][key]
    return {key: np.nan if value is None else value for key, value in row.items()}


def _tested(
    ours: Sequence[Begun], theirs: Sequence[Begun], clusters: NDArray[np.int64]
) -> dict[str, float]:
    """Differences of P(two samples differ), any two and two with one first token; sign-flip p."""
    a, b = (np.array([differing(p, 1) for p in problems]) for problems in (ours, theirs))
    d = a - b
    p = sign_flips(d, clusters)
    told: dict[str, float] = {}
    for j, name in enumerate(("total", "left")):
        defined = d[np.isfinite(d[:, j]), j]
        told[f"{name}_difference"] = float(defined.mean()) if len(defined) else np.nan
        told[f"{name}_p"] = float(p[j])
    return told


def _median(values: Array) -> float:
    defined = values[np.isfinite(values)]
    return float(np.median(defined)) if len(defined) else float("nan")


def _share(which: NDArray[np.bool_]) -> float:
    return float(which.mean()) if len(which) else float("nan")
