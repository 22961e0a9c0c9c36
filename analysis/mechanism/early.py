"""`embednoise probe early`: where a problem's samples part, and whether the first token is it all.

It reads a study's results and its store's token ids: nothing is generated. For each method: how
many beginnings the samples have, when pairs of them part and when they leave the greedy path; and
how much of the diversity is left among samples that begin alike, against the comparator that only
stratifies the first token (`first_token=stratified:N`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_eval_embednoise.analysis.identity import by_method, models_apart
from lm_eval_embednoise.analysis.intervals import Support, mean_intervals, ratio_intervals
from lm_eval_embednoise.analysis.mechanism import pictures
from lm_eval_embednoise.analysis.methods import method_order
from lm_eval_embednoise.analysis.pairs import as_json, sign_flips
from lm_eval_embednoise.analysis.records import align, read_runs, samples
from lm_eval_embednoise.analysis.resample import Resampler, cluster_codes
from lm_eval_embednoise.analysis.runs import ResultError, Run
from lm_eval_embednoise.scoring.records import solution
from lm_eval_embednoise.store.store import Store
from lm_eval_embednoise.written import dumps, write_text

if TYPE_CHECKING:
    import argparse
    from collections.abc import Hashable, Mapping, Sequence

    from numpy.typing import NDArray

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


def read_ids(store: Store, run: Run) -> dict[str, dict[int, Ids]]:
    """Problem id → sample index → generated ids of a run's samples, by its texts in the store.

    Raises:
        ResultError: the store doesn't have them.
    """
    texts = {
        problem: {record["index"]: record["text"] for record in records}
        for problem, _, records in samples(run)
    }
    methods = {r["settings"] for r in store.runs().values() if r.get("method") == run.method}
    for settings in sorted(methods):
        prompts = {
            document.prompt: document.task_id
            for document in store.documents(settings)
            if document.task == run.task
        }
        found: dict[str, dict[int, Ids]] = {}
        for row in store.samples(settings).values():
            problem = prompts.get(row.prompt)
            known = texts.get(problem or "", {})
            if problem is not None and row.ids is not None and known.get(row.sample) == row.text:
                found.setdefault(problem, {})[row.sample] = tuple(row.ids[: row.kept])
        if all(len(found.get(problem, {})) == len(known) for problem, known in texts.items()):
            return found
    raise ResultError(
        f"{store.folder} doesn't have the samples of {run.method} on {run.task}: name the store "
        "that the runs were made with (--store)"
    )


def begun(run: Run, ids: Mapping[str, Mapping[int, Ids]]) -> list[Begun]:
    """The samples of a run's problems, in its order."""
    of = {}
    for problem, _, records in samples(run):
        classes = [solution(record) or ("text", record["text"]) for record in records]
        of[problem] = Begun([ids[problem][record["index"]] for record in records], classes)
    return [of[problem] for problem in run.problems]


def table(found: Mapping[str, tuple[Run, list[Begun]]]) -> list[dict[str, Any]]:
    """A row for each method; `against`: the paired test of its total and left with each stratified.

    Args:
        found: method → run and samples, on the same problems in the same order.
    """
    greedy = found.get("greedy")
    comparators = [m for m, (run, _) in found.items() if run.sampling.get("first_token")]
    rows = []
    for method, (run, problems) in sorted(found.items(), key=lambda item: method_order(item[0])):
        clusters = cluster_codes(run.clusters, run.n)
        counts = np.array([[beginnings(p.ids, n) for n in LENGTHS] for p in problems])
        pairs = [parting(p.ids) for p in problems]
        parted = np.concatenate(pairs) if pairs else np.array([])
        row: dict[str, Any] = {
            "method": method,
            "model": run.model,
            "task": run.task,
            "n": run.n,
            "k": run.k,
            "beginnings": dict(zip(LENGTHS, counts[:, :, 0].mean(0).tolist(), strict=True)),
            "entropy": dict(zip(LENGTHS, counts[:, :, 1].mean(0).tolist(), strict=True)),
            "equal_pairs": float(np.isnan(parted).mean()) if len(parted) else float("nan"),
            "parting": _quartiles(parted),
            **mediation(problems, clusters),
        }
        if greedy is not None and greedy[0] is not run:
            paths = [p.ids[0] for p in greedy[1]]
            left = [
                np.nan if ids == path else common(ids, path)
                for p, path in zip(problems, paths, strict=True)
                for ids in p.ids
            ]
            row["leaves_greedy"] = _quartiles(np.array(left))
            row["on_greedy_path"] = float(np.isnan(left).mean())
        row["against"] = {
            other: _tested(problems, found[other][1], clusters)
            for other in comparators
            if other != method
        }
        rows.append(row)
    return rows


def _tested(
    ours: Sequence[Begun], theirs: Sequence[Begun], clusters: NDArray[np.int64]
) -> dict[str, Any]:
    """Differences of P(two samples differ), any two and two with one first token; sign-flip p."""
    a, b = (np.array([differing(p, 1) for p in problems]) for problems in (ours, theirs))
    d = a - b
    p = sign_flips(d, clusters)
    return {
        name: {
            "n": int(np.isfinite(d[:, j]).sum()),
            "difference": float(np.nanmean(d[:, j])) if np.isfinite(d[:, j]).any() else None,
            "p": float(p[j]),
        }
        for j, name in enumerate(("total", "left"))
    }


def _quartiles(values: Array) -> list[float]:
    """Quartiles of the defined values; NaN without any."""
    defined = values[np.isfinite(values)]
    if not len(defined):
        return [float("nan")] * 3
    return [float(q) for q in np.quantile(defined, [0.25, 0.5, 0.75])]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the probe's arguments."""
    parser.add_argument(
        "--results", nargs="+", required=True, metavar="DIR", help="result folders of a study"
    )
    parser.add_argument(
        "--store", nargs="+", required=True, metavar="DIR",
        help="their stores: `generations` in a study's folder",
    )  # fmt: skip
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="only these (default: all)")
    parser.add_argument("--out", type=Path, default=Path("mechanism"), metavar="DIR")


def run(args: argparse.Namespace) -> int:
    """Write early.json, .md and a figure for each task; returns the exit status."""
    stores = [Store(folder) for folder in args.store]
    groups: dict[tuple[str, str], list[Run]] = {}
    for one in models_apart(read_runs(args.results)):
        if not args.methods or one.method in args.methods:
            groups.setdefault((one.model, one.task), []).append(one)
    if not groups:
        raise ResultError(f"no run of {', '.join(args.methods)} under {', '.join(args.results)}")
    rows: list[dict[str, Any]] = []
    for (model, task), runs in groups.items():
        known = {method: same[0] for method, same in by_method(runs).items()}
        aligned = align(list(known.values()))
        found = {one.method: (one, begun(one, _ids(stores, one))) for one in aligned}
        part = table(found)
        rows += part
        lines = {
            row["method"]: (
                np.array([0, *LENGTHS], dtype=float),
                np.array([row["total"]["value"], *(e["value"] for e in row["left"].values())]),
            )
            for row in part
        }
        labels = ("first tokens in common", "P(two samples differ)")
        pictures.curves(lines, args.out, f"early-{task}-{model}", *labels)
    write_text(args.out / "early.json", dumps({"probe": "early", "rows": rows}, indent=1))
    write_text(args.out / "early.md", markdown(rows))
    print(markdown(rows))
    print(f"written: {args.out / 'early.json'}, early.md and figures")
    return 0


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Beginnings, parting and what is left after the first tokens, as a table."""
    head = ["method", "task", "n", "beginnings of 1", "of 8", "parting (median)"]
    head += ["P(differ)", "same first token", "same first 4", "left after 1 [95 %]"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        share = row["share"][1]
        cells = [row["method"], row["task"], str(row["n"])]
        cells += [f"{row['beginnings'][n]:.2f}" for n in (1, 8)]
        cells += [f"{row['parting'][1]:.0f}", f"{row['total']['value']:.3f}"]
        cells += [pictures.number(row["left"][n]["value"], ".3f") for n in (1, 4)]
        cells.append(
            " ".join(pictures.number(share[key], ".2f") for key in ("value", "low", "high"))
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _ids(stores: Sequence[Store], run: Run) -> dict[str, dict[int, Ids]]:
    for store in stores[:-1]:
        try:
            return read_ids(store, run)
        except ResultError:
            continue
    return read_ids(stores[-1], run)
