"""`embednoise probe failures`: how the samples of runs fail, by method and dose.

Shares of each kind (failure_kinds.py), the problems that a method gains and loses against greedy
decoding and against the temperature of nearly equal pass@1, by difficulty and prompt length, and a
few examples of each kind. It reads result folders: nothing is generated.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from lm_eval_embednoise.analysis.arms import dose
from lm_eval_embednoise.analysis.figures import save
from lm_eval_embednoise.analysis.identity import by_method, models_apart
from lm_eval_embednoise.analysis.intervals import Support, mean_intervals
from lm_eval_embednoise.analysis.mechanism import pictures
from lm_eval_embednoise.analysis.mechanism.failure_kinds import KINDS, kind_of
from lm_eval_embednoise.analysis.methods import family, method_order
from lm_eval_embednoise.analysis.pairs import sign_flips
from lm_eval_embednoise.analysis.records import align, read_runs, samples
from lm_eval_embednoise.analysis.resample import Resampler, cluster_codes
from lm_eval_embednoise.analysis.runs import ResultError, Run
from lm_eval_embednoise.analysis.stats import mcnemar_exact
from lm_eval_embednoise.written import dumps, write_text

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Mapping

    from lm_eval_embednoise.analysis.resample import Array

log = logging.getLogger(__name__)
EXAMPLES = 5  # of each kind
THIRDS = ("low", "middle", "high")
_SHOWN = 400  # characters of an example's text


@dataclass(frozen=True)
class Anatomy:
    """The failures of one run.

    Attributes:
        run: the run.
        shares: share of each problem's samples that failed in each kind, [n, kinds] as in `KINDS`.
        lengths: characters of each problem's prompt, [n].
        examples: kind → problem, sample index and beginning of the text of the first few.
    """

    run: Run
    shares: Array
    lengths: Array
    examples: dict[str, list[dict[str, Any]]]

    @property
    def passed(self) -> Array:
        """Share of each problem's samples that passed, [n]."""
        return np.asarray(1 - self.shares.sum(1))


def anatomy(run: Run) -> Anatomy:
    """Sort the failures of a run's samples; a missing sample counts as an early end."""
    place = {problem: i for i, problem in enumerate(run.problems)}
    kinds = {kind: j for j, kind in enumerate(KINDS)}
    shares, lengths = np.zeros((run.n, len(KINDS))), np.zeros(run.n)
    examples: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for problem, doc, records in samples(run):
        i = place[problem]
        lengths[i] = len(str(doc.get("prompt") or doc.get("question") or doc.get("problem") or ""))
        one_of_each: set[str] = set()
        for record in records:
            kind = kind_of(record, doc)
            if kind is None:
                continue
            shares[i, kinds[kind]] += 1 / len(records)
            if kind not in one_of_each and len(examples[kind]) < EXAMPLES:
                one_of_each.add(kind)
                text = str(record["text"])[:_SHOWN]
                examples[kind].append({"problem": problem, "sample": record["index"], "text": text})
    return Anatomy(run, shares, lengths, examples)


def thirds(values: Array) -> Array:
    """The third in which each value lies, 0 to 2; equal values lie in one."""
    low, high = np.quantile(values, [1 / 3, 2 / 3])
    return np.asarray((values > low).astype(int) + (values > high))


def exchange(ours: Anatomy, theirs: Anatomy, difficulty: Array) -> dict[str, Any]:
    """What a method gains and loses against another on the same problems.

    A problem is solved where more than half of its samples pass. `gained` are solved by the first
    only, `lost` by the second only, with the exact McNemar test; `difference` is that of the pass
    rates with the studentised sign-flip test over clusters, and `kinds` the same of each kind.

    Args:
        ours: the method.
        theirs: the reference, of the same problems in the same order.
        difficulty: success rate of each problem by which it is sorted into thirds, [n].
    """
    solved, before = ours.passed > 0.5, theirs.passed > 0.5
    gained, lost, p = mcnemar_exact(solved.astype(np.float64), before.astype(np.float64))
    d = np.column_stack([ours.passed - theirs.passed, ours.shares - theirs.shares])
    p_values = sign_flips(d, cluster_codes(ours.run.clusters, ours.run.n))
    by: dict[str, Any] = {}
    for name, values in (("success rate", difficulty), ("prompt length", ours.lengths)):
        third = thirds(values)
        by[name] = {
            word: {
                "n": int((third == k).sum()),
                "gained": int((solved & ~before & (third == k)).sum()),
                "lost": int((before & ~solved & (third == k)).sum()),
            }
            for k, word in enumerate(THIRDS)
        }
    return {
        "against": theirs.run.method,
        "n": ours.run.n,
        "gained": gained,
        "lost": lost,
        "p_mcnemar": p,
        "difference": float(d[:, 0].mean()),
        "p_permutation": float(p_values[0]),
        "kinds": {
            kind: {"difference": float(d[:, j].mean()), "p": float(p_values[j])}
            for j, kind in enumerate(KINDS, start=1)
        },
        "by": by,
    }


def nearest_temperature(ours: Anatomy, others: Iterable[Anatomy]) -> Anatomy | None:
    """The temperature whose pass@1 is nearest; None where none is among the others."""
    rate = ours.passed.mean()
    warm = [a for a in others if family(a.run.method) == "temperature" and a is not ours]
    return min(warm, key=lambda a: abs(a.passed.mean() - rate), default=None)


def table(found: Mapping[str, Anatomy]) -> list[dict[str, Any]]:
    """A row for each method: its dose, what passed, and each kind's share with its interval.

    Args:
        found: method → its failures, on the same problems in the same order.
    """
    greedy = found.get("greedy")
    rows = []
    for method, ours in sorted(found.items(), key=lambda item: method_order(item[0])):
        run = ours.run
        resampler = Resampler(cluster_codes(run.clusters, run.n))
        columns = np.column_stack([ours.passed, ours.shares])
        estimates = mean_intervals(columns, resampler, [Support(0.0, 1.0, True)] * columns.shape[1])
        told = [{"value": e.value, "low": e.low, "high": e.high} for e in estimates]
        warm = nearest_temperature(ours, found.values())
        references = [a for a in (greedy, warm) if a is not None and a is not ours]
        difficulty = (warm or greedy or ours).passed
        rows.append(
            {
                "method": method,
                "task": run.task,
                "model": run.model,
                "dose": dose({"perturbation": run.perturbation}),
                "n": run.n,
                "k": run.k,
                "passed": told[0],
                "kinds": dict(zip(KINDS, told[1:], strict=True)),
                "exchange": [exchange(ours, other, difficulty) for other in references],
            }
        )
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the probe's arguments."""
    parser.add_argument(
        "--results", nargs="+", required=True, metavar="DIR",
        help="result folders of `embednoise run --log_samples`, `study`, or LABEL=DIR",
    )  # fmt: skip
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="only these (default: all)")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="writes to DIR/failures"
    )


def run(args: argparse.Namespace) -> int:
    """Write failures.json, .npz and a figure for each task; returns the exit status."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for one in models_apart(read_runs(args.results)):
        groups.setdefault((one.model, one.task), []).append(one)
    known = {run.method for runs in groups.values() for run in runs}
    if args.methods and (absent := sorted(set(args.methods) - known)):
        raise ResultError(f"no run of {', '.join(absent)}; there are {', '.join(sorted(known))}")
    rows: list[dict[str, Any]] = []
    examples: dict[str, Any] = {}
    arrays: dict[str, Array] = {}
    with tqdm(total=sum(len(runs) for runs in groups.values()), desc="runs", unit="run") as bar:
        for (model, task), runs in groups.items():
            labelled = {name: same[0] for name, same in by_method(runs).items()}
            chosen = {m: r for m, r in labelled.items() if not args.methods or m in args.methods}
            if not chosen:
                continue
            aligned = dict(zip(chosen, align(list(chosen.values())), strict=True))
            found = {}
            for method, one in aligned.items():
                found[method] = anatomy(one)
                arrays[f"{model}/{task}/{method}"] = found[method].shares
                examples[f"{model}/{task}/{method}"] = found[method].examples
                bar.update()
            rows += table(found)
    out: Path = args.out / "failures"
    kinds = {kind: says for kind, (_, says) in KINDS.items()}
    content = {"probe": "failures", "kinds": kinds, "rows": rows, "examples": examples}
    write_text(out / "table.json", dumps(content, indent=1))
    pictures.write_arrays(out / "shares.npz", arrays)
    write_text(out / "table.md", markdown(rows))
    for model, task in groups:
        part = [row for row in rows if (row["model"], row["task"]) == (model, task)]
        if part:
            save(pictures.bars(part, list(KINDS)), out, f"failures-{task}-{model}")
    print(f"written: table.json, table.md, shares.npz and figures in {out}")
    return 0


def markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    """The shares as a table, in per cent; what a method gains and loses below it."""
    rows = list(rows)
    head = ["method", "task", "n", "passed", *KINDS]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [row["passed"], *(row["kinds"][kind] for kind in KINDS)]
        shown = [f"{100 * cell['value']:.1f}" for cell in cells]
        lines.append("| " + " | ".join([row["method"], row["task"], str(row["n"]), *shown]) + " |")
    lines += ["", "| method | task | against | gained | lost | p | pass@1 difference | p |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for row in rows:
        for e in row["exchange"]:
            cells = [row["method"], row["task"], e["against"], str(e["gained"]), str(e["lost"])]
            cells += [f"{e['p_mcnemar']:.3g}", f"{100 * e['difference']:+.1f}"]
            cells.append(f"{e['p_permutation']:.3g}")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
