"""`embednoise report`: one self-contained HTML page from comparison.json, figures as files too.

With the result folders (found beside comparison.json where a study wrote it) the page also holds
pass@k against k, diversity against K, problems side by side and the failures.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from tqdm import tqdm

from lm_eval_embednoise.analysis import arms, curves, gallery, page, schema, tables
from lm_eval_embednoise.analysis.figures import pareto_figure, save
from lm_eval_embednoise.analysis.identity import as_compared
from lm_eval_embednoise.analysis.measures import headline
from lm_eval_embednoise.analysis.records import read_runs
from lm_eval_embednoise.analysis.runs import ResultError, Run
from lm_eval_embednoise.analysis.statement import statement
from lm_eval_embednoise.written import write_text

TITLE = "Embedding noise against temperature"
FOLDED = 10  # pairs, from which on their table is folded: the figures show them
LINES = 9  # methods in a figure with a line for each
_PLANES = {
    "distinct_2": "all samples",
    "distinct_2_valid": "valid samples only, rarefied to equal numbers",
    "distinct_2_correct": "correct samples only, rarefied to equal numbers",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("comparison", type=Path, metavar="COMPARISON.JSON")
    parser.add_argument(
        "--results",
        nargs="+",
        metavar="DIR",
        help="result folders, for the samples themselves (the folder `results` beside "
        "COMPARISON.JSON unless told)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the page, or a folder for report.html; beside the comparison unless told",
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
    report = Report(comparison, runs, out.with_name("figures"))
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
    for found in runs:
        row = rows.get((found.model, found.task, found.method))
        if row is not None and (row["problems"], row["k"]) != (found.problem_hash, found.k):
            raise ResultError(
                f"{found.path.parent} is not what was compared: {found.method} on {found.task} has "
                f"{found.n} problems, K = {found.k}; the comparison {row['n']}, K = {row['k']}. "
                "Run `embednoise compare` on these folders first"
            )


class Report:
    """The page; saves each figure as PNG and SVG and puts the SVG into the page.

    Args:
        comparison: content of comparison.json.
        runs: the runs it was made from, or none.
        folder: where the figures go.
    """

    def __init__(self, comparison: dict[str, Any], runs: list[Run], folder: Path) -> None:
        self.comparison, self.runs, self.folder, self.count = comparison, runs, folder, 0
        self.candidate, self.baseline = (
            comparison["analysis"][role] for role in ("candidate", "baseline")
        )

    def render(self) -> str:
        """The whole HTML document."""
        parts = list(tables.by_task(self.comparison))
        sections = {"plane": "Correctness against diversity", "run": "What was run"}
        sections |= {self._key(rows): rows[0]["task"] for rows, _ in parts}
        sections |= {"floor": "Re-run floor", "provenance": "Provenance"}
        body = [page.navigation(sections), *self._verdicts(), *self._planes()]
        body.append('<h2 id="run">What was run, and what it can show</h2>')
        body += [f"<p>{escape(text)}</p>" for text in statement(self.comparison)]
        for rows, pairs in tqdm(parts, unit="task", desc="report", disable=None):
            body += self._task(rows, pairs)
        body += [*self._floor(), *self._provenance()]
        return page.document(TITLE, body)

    def _verdicts(self) -> Iterator[str]:
        yield from map(page.verdict, self.comparison["verdicts"])
        if not self.comparison["verdicts"]:
            yield '<div class="verdict">No verdict: no candidate was named beforehand.</div>'

    def _planes(self) -> Iterator[str]:
        yield '<h2 id="plane">Correctness against diversity</h2>'
        planes = self.comparison["planes"]
        for x in dict.fromkeys(plane["x"] for plane in planes):
            mine = [plane for plane in planes if plane["x"] == x]
            yield page.grid(
                self._figure(
                    pareto_figure(self.comparison, x, [plane]),
                    f"pareto-{x}-{plane['task']}-{plane['model']}",
                    f"{plane['task']}: {_PLANES.get(x, x)}",
                )
                for plane in mine
            )
            header, body = tables.plane_table(mine)
            yield page.details(
                f"Front, hypervolume and distance from the temperature curve ({_PLANES.get(x, x)})",
                page.table(header, body),
            )

    def _task(self, rows: list[dict[str, Any]], pairs: list[dict[str, Any]]) -> Iterator[str]:
        name = f"{rows[0]['task']}-{rows[0]['model']}"
        marked = [self.candidate, self.baseline]
        level = 100 * self.comparison["analysis"]["level"]
        yield f'<h2 id="{self._key(rows)}">{escape(tables.title(rows[0]))}</h2>'
        yield page.table(*tables.values(rows, intervals=True, cost=True), marked)
        everything = page.table(*tables.values(rows, intervals=True, every=True), marked)
        yield page.details("Every metric", everything, on_paper=False)
        family = tables.family(self.comparison, rows)
        if family:
            yield f"<h3>{escape(self.candidate)} against its family</h3>"
            yield f'<p class="note">{escape(tables.family_title(self.comparison))}</p>'
            yield page.table(*family)
        if pairs:
            yield "<h3>Paired differences</h3>"
            yield f'<p class="note">{escape(tables.paired_title(self.comparison, pairs))}</p>'
            listed = page.table(*tables.differences(pairs), marked)
            yield listed if len(pairs) <= FOLDED else page.details("All as a table", listed)
            yield page.grid(
                self._figure(
                    curves.paired_differences(pairs, metric),
                    f"differences-{metric}-{name}",
                    f"{metric} of every method and arm, less {self.baseline}; bars: "
                    f"{level:.0f} % intervals",
                )
                for metric in curves.PAIRED
            )
        yield from self._arms(rows, name)
        mine = [run for run in self.runs if (run.model, run.task) == _where(rows)]
        if mine:
            yield from self._samples(mine, rows, name)

    def _arms(self, rows: list[dict[str, Any]], name: str) -> Iterator[str]:
        """Dose–response and ablations."""
        drawn = [
            self._figure(
                curves.dose_response(rows),
                f"dose-{name}",
                "dose–response of the noise; dashed: greedy",
            )
        ]
        references = [row for row in rows if row["method"] in ("greedy", self.baseline)]
        for found in arms.ablations(rows):
            drawn.append(
                self._figure(
                    curves.ablation(found, references),
                    f"ablation-{found.axis.replace(' ', '-')}-{name}",
                    f"ablation of {found.axis} at {_dose_text(found)}; dashed: greedy, dotted: "
                    f"{self.baseline}",
                )
            )
        if any(drawn):
            yield "<h3>Dose and ablations</h3>"
            yield page.grid(drawn)

    def _samples(self, runs: list[Run], rows: list[dict[str, Any]], name: str) -> Iterator[str]:
        by_method = {run.method: run for run in reversed(runs)}
        featured = arms.featured(rows, self.comparison, LINES)
        perturbed = {row["method"]: max(row["rho"].values()) for row in rows if row["rho"]}
        chosen = self.candidate or next(iter(perturbed), "")
        pair = [by_method.get(method) for method in (chosen, self.baseline)]
        ours, theirs = pair
        shown = gallery.differing(ours, theirs) if ours and theirs and ours is not theirs else []
        unlikely = gallery.unlikely_from(theirs) if theirs else None
        digests = {
            method: gallery.digest(
                by_method[method], set(shown), unlikely=unlikely, curves=method in featured
            )
            for method in dict.fromkeys([*featured, *perturbed, chosen, self.baseline])
            if method in by_method
        }
        lines = [digests[method] for method in featured if method in digests]
        read = max((found.problems for found in digests.values()), default=0)
        scope = "" if read == rows[0]["n"] else f", on {read} of {rows[0]['n']} problems"
        yield "<h3>More samples</h3>"
        yield page.grid(
            [
                self._figure(
                    curves.pass_at_k(by_method[m] for m in featured if m in by_method),
                    f"pass-at-k-{name}",
                    "pass@k, unbiased, mean over problems",
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
        if ours and theirs and shown:
            named = f"{escape(chosen)} and {escape(self.baseline)}"
            yield f"<h3>Problems where {named} differ most</h3>"
            for item in gallery.side_by_side(ours, theirs, digests[chosen], digests[self.baseline]):
                yield _side_by_side(item, chosen, self.baseline)
        yield from self._failures(digests, perturbed, name, scope)

    def _failures(
        self,
        digests: dict[str, gallery.Digest],
        rhos: dict[str, float],
        name: str,
        scope: str,
    ) -> Iterator[str]:
        figure = curves.failure_kinds(list(digests.values()), rhos)
        if figure is None:
            return
        yield "<h3>How perturbed samples fail, by measured ρ</h3>"
        caption = (
            f"how samples end, by ρ = ‖ε‖/‖h‖{scope}; drift: less likely under the clean model "
            f"than 99 % of {self.baseline}'s samples"
        )
        yield page.grid([self._figure(figure, f"failures-{name}", caption)])
        failed = [f for method, d in digests.items() if method in rhos for f in d.failures]
        for failure in sorted(failed, key=lambda f: (f.rho or 0.0, f.method)):
            yield _failure(failure)

    def _floor(self) -> Iterator[str]:
        yield '<h2 id="floor">The re-run floor</h2>'
        floor = self.comparison["floor"]
        if not floor:
            yield "<p>Every method was run once: what re-running alone changes is not known.</p>"
            return
        yield "<p>Difference between two runs of one method; nothing smaller means anything.</p>"
        for domain in dict.fromkeys("maj@K" in entry["metrics"] for entry in floor):
            mine = [entry for entry in floor if ("maj@K" in entry["metrics"]) == domain]
            names = headline("maths" if domain else "code", list(mine[0]["metrics"]))
            body = [
                [
                    f"{entry['task']} · {entry['method']}",
                    *(curves.value_text(n, entry["metrics"][n]) for n in names),
                ]
                for entry in mine
            ]
            yield page.table(["task · method", *names], body)

    def _provenance(self) -> Iterator[str]:
        protocol, software = self.comparison["protocol"], self.comparison["software"]
        versions = ", ".join(f"{name} {version}" for name, version in software.items())
        yield '<h2 id="provenance">Provenance</h2>'
        yield (
            f'<p class="note">Protocol {escape(protocol["name"])} ({protocol["hash"]}), baseline '
            f"{escape(self.baseline)}, {self.comparison['analysis']['draws']:,} resamples. "
            f"Compared {self.comparison['created']} with {escape(versions)}.</p>"
        )
        header = ["method", "task", "n", "K", "ρ", "seeds", "signature"]
        body = [
            [
                *(row["method"], row["task"], str(row["n"]), str(row["k"]), tables.rho_text(row)),
                ", ".join(map(str, row["seeds"])),
                row["signature"] or "–",
            ]
            for row in self.comparison["leaderboard"]
        ]
        yield page.details("Settings of every method", page.table(header, body))

    def _figure(self, figure: Figure | None, name: str, caption: str) -> str:
        if figure is None:
            return ""
        _, drawn = save(figure, self.folder, re.sub(r"[^\w.@-]+", "-", name))
        self.count += 1
        return page.figure(drawn.read_text(encoding="utf-8"), caption)

    @staticmethod
    def _key(rows: list[dict[str, Any]]) -> str:
        return re.sub(r"\W+", "-", "-".join(_where(rows)))


def _where(rows: list[dict[str, Any]]) -> tuple[str, str]:
    return rows[0]["model"], rows[0]["task"]


def _dose_text(found: arms.Ablation) -> str:
    doses = sorted({arms.dose(row) for row in found.levels.values()} - {0.0})
    return "σ = " + ", ".join(f"{value:g}" for value in doses) if doses else "no noise"


def _side_by_side(item: gallery.Comparison, method: str, baseline: str) -> str:
    sides = []
    for name, value, texts in zip((method, baseline), item.values, item.texts, strict=True):
        shown = "".join(page.sample(text, passed) for text, passed in texts)
        sides.append(f"<div><b>{escape(name)}</b>: {value:g} distinct correct{shown}</div>")
    return page.details(
        f"{item.problem}: {item.values[0]:g} against {item.values[1]:g} distinct correct solutions",
        f'<pre>{escape(item.prompt)}</pre><div class="sides">{"".join(sides)}</div>',
    )


def _failure(failure: gallery.Failure) -> str:
    rho = "ρ unknown" if failure.rho is None else f"ρ = {failure.rho:.3g}"
    return page.details(
        f"{failure.method}, {rho}: {failure.kind} ({failure.count} samples)",
        f'<p class="note">{escape(failure.problem)}</p>{page.sample(failure.text, False)}',
        on_paper=False,
    )
