"""`embednoise report`: one self-contained HTML page from comparison.json, figures as files too.

With the result folders (beside comparison.json where a study wrote it) the page also shows pass@k
against k, diversity against K, problems side by side and the failures.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from lm_eval_embednoise.analysis import arms, curves, gallery, page, schema, settings, tables
from lm_eval_embednoise.analysis.answer import answers, few_samples
from lm_eval_embednoise.analysis.curve_plane import claims, curve_plane
from lm_eval_embednoise.analysis.figures import pareto_figure, save
from lm_eval_embednoise.analysis.glossary import GLOSSARY
from lm_eval_embednoise.analysis.identity import as_compared
from lm_eval_embednoise.analysis.measures import headline
from lm_eval_embednoise.analysis.mechanism import section
from lm_eval_embednoise.analysis.protocol import Protocol
from lm_eval_embednoise.analysis.quantities import estimated, headed, paired, percent
from lm_eval_embednoise.analysis.records import read_runs
from lm_eval_embednoise.analysis.runs import ResultError
from lm_eval_embednoise.analysis.statement import statement
from lm_eval_embednoise.written import write_text

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Sequence

    from matplotlib.figure import Figure

    from lm_eval_embednoise.analysis.runs import Run

TITLE = "Embedding noise against temperature"
LINES = 9  # methods in a figure with a line for each
_PLANES = {
    "distinct_2": "all samples",
    "distinct_2_valid": "valid samples only, rarefied to equal numbers",
    "distinct_2_correct": "correct samples only, rarefied to equal numbers",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("comparison", type=Path, metavar="COMPARISON.JSON")
    parser.add_argument(
        "--results",
        nargs="+",
        metavar="DIR",
        help="result folders, for the samples themselves (default: the folder `results` "
        "beside COMPARISON.JSON)",
    )
    parser.add_argument(
        "--mechanism",
        type=Path,
        metavar="DIR",
        help="what `embednoise probe … --out DIR` wrote, for a section on why",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the page, or a folder for report.html (default: beside the comparison)",
    )


def run(args: argparse.Namespace) -> int:
    """Write the page and its figures; returns the exit status."""
    comparison = schema.read(args.comparison)
    beside = args.comparison.with_name("results")
    folders = args.results or ([beside] if beside.is_dir() else [])
    runs = as_compared(comparison["leaderboard"], read_runs(folders)) if folders else []
    check_same(comparison, runs)
    out = args.out or args.comparison.with_name("report.html")
    out = out / "report.html" if out.is_dir() else out
    probes = section.read(args.mechanism) if args.mechanism else []
    report = Report(comparison, runs, out.with_name("figures"), probes)
    text = report.render()
    write_text(out, text)
    print(f"written: {out} ({len(text) / 1e6:.1f} MB), {report.count} figures in {report.folder}")
    if not runs:
        print("without samples: name their folders with --results to see them in the page")
    return 0


def check_same(comparison: dict[str, Any], runs: list[Run]) -> None:
    """Refuse result folders that are not what was compared.

    Raises:
        ResultError: names the first run whose problems or K are others.
    """
    rows = {(r["model"], r["task"], r["method"]): r for r in comparison["leaderboard"]}
    for run in runs:
        row = rows.get((run.model, run.task, run.method))
        if row is not None and (row["problems"], row["k"]) != (run.problem_hash, run.k):
            raise ResultError(
                f"{run.path.parent} is not what was compared: {run.method} on {run.task} has "
                f"{run.n} problems, K = {run.k}; the comparison {row['n']}, K = {row['k']}. "
                "Run `embednoise compare` on these folders first"
            )


class Report:
    """What the page shows; each figure is also saved as PNG and SVG.

    Args:
        comparison: content of comparison.json.
        runs: the runs it was made from, or none.
        folder: where the figures go.
        probes: what the probes found about the mechanism, or nothing.
    """

    def __init__(
        self,
        comparison: dict[str, Any],
        runs: list[Run],
        folder: Path,
        probes: Sequence[section.Part] = (),
    ) -> None:
        self.comparison, self.runs, self.folder, self.count = comparison, runs, folder, 0
        self.probes = probes
        self.candidate, self.baseline = (
            comparison["analysis"][role] for role in ("candidate", "baseline")
        )
        self.marked = (self.candidate, self.baseline)

    def render(self) -> str:
        """The whole HTML document."""
        parts = list(tables.by_task(self.comparison))
        given = ("verdicts", "protocol", "analysis", "software", "created")
        return page.render(
            {
                **{name: self.comparison[name] for name in given},
                "title": TITLE,
                "candidate": self.candidate,
                "baseline": self.baseline,
                "marked": self.marked,
                "answers": answers(self.comparison),
                "few_samples": few_samples(self.comparison),
                "statement": statement(self.comparison),
                "tasks": [
                    self._task(rows, pairs)
                    for rows, pairs in tqdm(parts, unit="task", desc="report", disable=None)
                ],
                "probes": self.probes,
                "floor": self._floor(),
                "glossary": GLOSSARY.values(),
            }
        )

    def _task(self, rows: list[dict[str, Any]], pairs: list[dict[str, Any]]) -> dict[str, Any]:
        name = f"{rows[0]['task']}-{rows[0]['model']}"
        level = self.comparison["analysis"]["level"]
        family = tables.family(self.comparison, rows)
        mine = [run for run in self.runs if (run.model, run.task) == _where(rows)]
        planes = self._planes(rows)
        first, others = self._curve_figures(rows, name)
        if planes and not first:  # without a temperature curve the plane stands in its place
            first, planes[0]["figures"] = planes[0]["figures"], []
        return {
            "key": re.sub(r"\W+", "-", "-".join(_where(rows))),
            "name": rows[0]["task"],
            "model": rows[0]["model"],
            "title": tables.title(rows[0]),
            "first": first,
            "curves": others,
            "planes": planes,
            "leaderboard": tables.values(rows, level, cost=True),
            "every": tables.values(rows, level, every=True),
            "family": family,
            "family_title": tables.family_title(self.comparison) if family else "",
            "differences": tables.differences(pairs, level) if pairs else None,
            "differences_title": tables.paired_title(self.comparison, pairs) if pairs else "",
            "difference_figures": self._difference_figures(pairs, name),
            "dose_figures": self._dose_figures(rows, pairs, name),
            "samples": self._samples(mine, rows, name) if mine else None,
            "shared": settings.shared(rows),
            "settings": settings.of_each(rows, self.candidate),
        }

    def _planes(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """A task's planes of correctness and diversity, each with its figure and its table."""
        shown = []
        for plane in self.comparison["planes"]:
            if (plane["model"], plane["task"]) != _where(rows):
                continue
            scope = _PLANES.get(plane["x"], plane["x"])
            drawn = self._figure(
                pareto_figure(self.comparison, plane["x"], [plane]),
                f"pareto-{plane['x']}-{plane['task']}-{plane['model']}",
                f"{plane['task']}: {plane['y']} against {plane['x']}, {scope}",
            )
            table = tables.plane_table([plane])
            shown.append({"scope": scope, "figures": _present([drawn]), "table": table})
        return shown

    def _curve_figures(
        self, rows: list[dict[str, Any]], name: str
    ) -> tuple[list[page.Figure], list[page.Figure]]:
        """The temperature curve in the outcome that decides, and in the others."""
        decides = Protocol(self.comparison["protocol"]["content"]).curve_rule["decides"]
        drawn: tuple[list[page.Figure], list[page.Figure]] = ([], [])
        for entry in self.comparison.get("curves", []):
            if (entry["model"], entry["task"]) != _where(rows):
                continue
            figure = self._figure(
                curve_plane(entry, rows, self.marked),
                f"curve-{entry['outcome']}-{name}",
                f"{entry['task']}: {entry['outcome']} against {entry['quality']}, the temperature "
                f"curve and the noise's; {claims(entry)}",
            )
            drawn[entry["outcome"] != decides].extend(_present([figure]))
        return drawn

    def _difference_figures(self, pairs: list[dict[str, Any]], name: str) -> list[page.Figure]:
        level = percent(self.comparison["analysis"]["level"])
        return _present(
            self._figure(
                curves.paired_differences(pairs, metric),
                f"differences-{metric}-{name}",
                f"{metric} of every method and arm, less {self.baseline}; bars: {level} intervals",
            )
            for metric in paired(pairs)
        )

    def _dose_figures(
        self, rows: list[dict[str, Any]], pairs: list[dict[str, Any]], name: str
    ) -> list[page.Figure]:
        """Dose–response and ablations."""
        level = percent(self.comparison["analysis"]["level"])
        drawn = [
            self._figure(
                curves.dose_response(rows),
                f"dose-{name}",
                f"dose–response of the noise; bars: {level} intervals, dashed: greedy",
            )
        ]
        references = [row for row in rows if row["method"] in ("greedy", self.baseline)]
        drawn += [
            self._figure(
                curves.ablation(ablation, references, paired(pairs)),
                f"ablation-{ablation.axis.replace(' ', '-')}-{name}",
                f"ablation of {ablation.axis} at {_dose_text(ablation)}; bars: {level} intervals, "
                f"dashed: greedy, dotted: {self.baseline}",
            )
            for ablation in arms.ablations(rows)
        ]
        return _present(drawn)

    def _samples(self, runs: list[Run], rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
        by_method = {run.method: run for run in reversed(runs)}
        featured = arms.featured(rows, self.comparison, LINES)
        rhos = {row["method"]: max(row["rho"].values()) for row in rows if row["rho"]}
        chosen = self.candidate or next(iter(rhos), "")
        ours, theirs = (by_method.get(method) for method in (chosen, self.baseline))
        shown, more = gallery.differing(ours, theirs) if ours and theirs else ([], 0)
        unlikely = gallery.unlikely_from(theirs) if theirs else None
        digests = {
            method: gallery.digest(
                by_method[method], set(shown), unlikely=unlikely, curves=method in featured
            )
            for method in dict.fromkeys([*featured, *rhos, chosen, self.baseline])
            if method in by_method
        }
        lines = [digests[method] for method in featured if method in digests]
        read = max((digest.problems for digest in digests.values()), default=0)
        scope = "" if read == rows[0]["n"] else f", on {read} of {rows[0]['n']} problems"
        figures = _present(
            [
                self._figure(
                    curves.pass_at_k(by_method[m] for m in featured if m in by_method),
                    f"pass-at-k-{name}",
                    "pass@k, unbiased, mean over problems; 95 % bands for all k at once",
                ),
                self._figure(
                    curves.cover_at(by_method[m] for m in featured if m in by_method),
                    f"cover-{name}",
                    "cover@τ: problems solved by a share τ of the samples or more; 95 % bands",
                ),
                self._figure(
                    curves.solutions_by_samples(lines),
                    f"solutions-{name}",
                    f"distinct correct solutions expected among m samples{scope}",
                ),
                self._figure(
                    curves.diversity_by_samples(lines),
                    f"diversity-{name}",
                    f"distinct_2 expected of m samples{scope}",
                ),
            ]
        )
        caption = (
            f"how samples end, by ρ = ‖ε‖/‖h‖{scope}; drift: less likely under the clean model "
            f"than 99 % of {self.baseline}'s samples"
        )
        failures = curves.failure_kinds(list(digests.values()), rhos)
        failed = [f for method, d in digests.items() if method in rhos for f in d.failures]
        pairs = []
        if ours and theirs and shown:
            items = gallery.side_by_side(
                shown, ours, theirs, digests[chosen], digests[self.baseline]
            )
            pairs = [_pair(item, chosen, self.baseline) for item in items]
        return {
            "figures": figures,
            "method": chosen,
            "pairs": pairs,
            "more": more,
            "compared": bool(ours and theirs and ours is not theirs),
            "failure_figures": _present([self._figure(failures, f"failures-{name}", caption)]),
            "failures": [
                _failure(f) for f in sorted(failed, key=lambda f: (f.rho or 0.0, f.method))
            ],
        }

    def _floor(self) -> list[tables.Table]:
        """A table for each domain of what re-running alone changes."""
        floor, level = self.comparison["floor"], self.comparison["analysis"]["level"]
        shown = []
        for maths in dict.fromkeys("maj@K" in entry["metrics"] for entry in floor):
            mine = [entry for entry in floor if ("maj@K" in entry["metrics"]) == maths]
            names = headline("maths" if maths else "code", list(mine[0]["metrics"]))
            body = [
                [
                    f"{entry['task']} · {entry['method']}",
                    *(estimated(n, entry["metrics"][n], signed=True) for n in names),
                ]
                for entry in mine
            ]
            heads = [headed(name, difference=True, level=level) for name in names]
            shown.append((["task · method", *heads], body))
        return shown

    def _figure(self, figure: Figure | None, name: str, caption: str) -> page.Figure | None:
        """Save a figure and return what the page shows of it."""
        if figure is None:
            return None
        _, drawn = save(figure, self.folder, re.sub(r"[^\w.@-]+", "-", name))
        self.count += 1
        return page.Figure.from_svg(drawn.read_text(encoding="utf-8"), caption)


def _present(figures: Iterable[page.Figure | None]) -> list[page.Figure]:
    return [figure for figure in figures if figure is not None]


def _where(rows: list[dict[str, Any]]) -> tuple[str, str]:
    return rows[0]["model"], rows[0]["task"]


def _dose_text(ablation: arms.Ablation) -> str:
    doses = sorted({arms.dose(row) for row in ablation.levels.values()} - {0.0})
    return "σ = " + ", ".join(f"{value:g}" for value in doses) if doses else "no noise"


def _pair(item: gallery.Comparison, method: str, baseline: str) -> dict[str, Any]:
    """One problem with samples of both methods."""
    ours, theirs = item.values
    sides = zip((method, baseline), item.values, item.texts, strict=True)
    return {
        "summary": f"{item.problem}: {ours:g} against {theirs:g} distinct correct solutions",
        "prompt": item.prompt,
        "sides": [
            {"name": name, "value": f"{value:g}", "texts": texts} for name, value, texts in sides
        ],
    }


def _failure(failure: gallery.Failure) -> dict[str, str]:
    rho = "ρ unknown" if failure.rho is None else f"ρ = {failure.rho:.3g}"
    return {
        "summary": f"{failure.method}, {rho}: {failure.kind} ({failure.count} samples)",
        "problem": failure.problem,
        "text": failure.text,
    }
