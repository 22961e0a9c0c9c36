"""`embednoise report`: one self-contained HTML page from comparison.json, figures as files too.

Without result folders the page holds what comparison.json holds; with `--results` it adds pass@k
against k, solutions against samples, problems side by side and the failures.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lm_eval_embednoise.analysis import curves, gallery, schema, tables
from lm_eval_embednoise.analysis.figures import pareto_figure, save
from lm_eval_embednoise.analysis.measures import headline
from lm_eval_embednoise.analysis.records import Run, read_runs
from lm_eval_embednoise.analysis.statement import statement
from lm_eval_embednoise.analysis.verdict import sentence

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
       max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; border-top: 1px solid #ccc;
     padding-top: 1rem; } h3 { font-size: 1.05rem; }
figure { margin: 1rem 0; } figure svg { width: 100%; height: auto; }
figcaption, .note { color: #555; font-size: .875rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #e3e3e3;
         white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.verdict { border-left: .4rem solid #0072B2; background: #f3f7fa; padding: .6rem 1rem; }
.verdict b { text-transform: uppercase; }
pre { background: #f6f6f6; padding: .5rem; overflow-x: auto; font-size: .8rem; margin: .3rem 0;
      white-space: pre-wrap; overflow-wrap: anywhere; }
pre.passed { border-left: .25rem solid #009E73; } pre.failed { border-left: .25rem solid #D55E00; }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); gap: 1rem; }
summary { cursor: pointer; padding: .2rem 0; }
@media print { details > * { display: block; } h2 { break-after: avoid; }
               figure { break-inside: avoid; } }
"""
_PLANES = {
    "distinct_2": "all samples",
    "distinct_2_valid": "valid samples only, rarefied to equal numbers",
    "distinct_2_correct": "correct samples only, rarefied to equal numbers",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("comparison", type=Path, metavar="COMPARISON.JSON")
    parser.add_argument(
        "--results", nargs="+", metavar="DIR", help="result folders, for the samples themselves"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="report.html beside the comparison unless told"
    )


def run(args: argparse.Namespace) -> int:
    """Write the page and its figures; returns the exit status."""
    comparison = schema.read(args.comparison)
    runs = read_runs(args.results) if args.results else []
    out = args.out or args.comparison.with_name("report.html")
    page = Page(out.with_name("figures"))
    text = page.render(comparison, runs)
    schema.write_text(out, text)
    print(f"written: {out} ({len(text) / 1e6:.1f} MB), {page.count} figures in {page.folder}")
    return 0


class Page:
    """The report page; saves each figure as PNG and SVG and puts the SVG into the page."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0

    def render(self, comparison: dict[str, Any], runs: list[Run]) -> str:
        """The whole HTML document."""
        body = "\n".join(self._body(comparison, runs))
        title = "Embedding noise against temperature"
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
            f"<h1>{title}</h1>\n{body}\n</body>\n</html>\n"
        )

    def _body(self, comparison: dict[str, Any], runs: list[Run]) -> Iterator[str]:
        level = 100 * comparison["analysis"]["level"]
        yield from _verdicts(comparison)
        yield "<h2>Correctness against diversity</h2>"
        for x in dict.fromkeys(plane["x"] for plane in comparison["planes"]):
            caption = f"{_PLANES.get(x, x)}; bars are {level:.0f} % intervals over problems"
            yield self._figure(pareto_figure(comparison, x), f"pareto-{x}", caption)
        yield "<h2>What was run, and what it can show</h2>"
        yield "".join(f"<p>{escape(line)}</p>" for line in statement(comparison).split("\n\n"))
        for rows, pairs in tables.by_task(comparison):
            name = f"{rows[0]['task']}-{rows[0]['model']}"
            yield f"<h2>{escape(tables.title(rows[0]))}</h2>"
            yield _table(*tables.values(rows, intervals=True))
            if pairs:
                note = escape(tables.paired_title(comparison, pairs))
                yield f"<h3>Paired differences</h3><p class=note>{note}</p>"
                yield _table(*tables.differences(pairs))
                figure = curves.paired_differences(pairs, comparison["analysis"]["level"])
                yield self._figure(figure, f"differences-{name}", "every method and ablation arm")
            caption = "dose–response of the noise; dashed: greedy"
            yield self._figure(curves.dose_response(rows), f"dose-{name}", caption)
            mine = [
                run for run in runs if (run.model, run.task) == (rows[0]["model"], rows[0]["task"])
            ]
            yield from self._samples(mine, comparison, name)
        yield from _floor(comparison)
        yield from _provenance(comparison)

    def _samples(self, runs: list[Run], comparison: dict[str, Any], name: str) -> Iterator[str]:
        if not runs:
            return
        yield self._figure(
            curves.pass_at_k(runs), f"pass-at-k-{name}", "pass@k, unbiased, mean over problems"
        )
        solutions = {run.method: gallery.solution_curve(run) for run in runs}
        yield self._figure(
            curves.solutions_by_samples(solutions),
            f"solutions-{name}",
            "distinct correct solutions expected among the first m samples",
        )
        by_method = {run.method: run for run in runs}
        chosen = comparison["analysis"]["candidate"] or next(
            (run.method for run in runs if run.noisy), ""
        )
        baseline = comparison["analysis"]["baseline"]
        if chosen in by_method and baseline in by_method:
            yield f"<h3>Problems where {escape(chosen)} and {escape(baseline)} differ most</h3>"
            for item in gallery.side_by_side(by_method[chosen], by_method[baseline]):
                yield _side_by_side(item, chosen, baseline)
        failed = [f for run in runs if run.noisy for f in gallery.failures(run)]
        if failed:
            yield "<h3>How perturbed samples fail, by measured ρ</h3>"
            for failure in sorted(failed, key=lambda f: f.rho or 0.0):
                yield _failure(failure)

    def _figure(self, figure: Figure | None, name: str, caption: str) -> str:
        if figure is None:
            return ""
        with warnings.catch_warnings():
            # A metric that is the same everywhere leaves a log axis without a range to show.
            warnings.simplefilter("ignore", UserWarning)
            _, drawn = save(figure, self.folder, name)
        self.count += 1
        svg = drawn.read_text(encoding="utf-8")
        svg = svg[svg.index("<svg") :]  # without the XML prologue, which names a remote DTD
        return (
            f'<figure role="img" aria-label="{escape(caption)}">{svg}'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )


def _verdicts(comparison: dict[str, Any]) -> Iterator[str]:
    for found in comparison["verdicts"]:
        lines = [
            f"<li>{escape(task['task'])}: {task['outcome']}<ul>"
            + "".join(f"<li>{escape(sentence(e))}</li>" for e in task["endpoints"])
            + "</ul></li>"
            for task in found["tasks"]
        ]
        lines += [f"<li>exploratory because {escape(why)}</li>" for why in found["deviations"]]
        yield (
            f'<div class="verdict">{escape(found["candidate"])} with {escape(found["model"])}: '
            f"<b>{found['verdict']}</b> ({found['status']}; {escape(found['why'])})"
            f"<ul>{''.join(lines)}</ul></div>"
        )
    if not comparison["verdicts"]:
        yield '<div class="verdict">No verdict: no candidate was named beforehand.</div>'


def _side_by_side(item: gallery.Comparison, method: str, baseline: str) -> str:
    sides = []
    for name, value, texts in zip((method, baseline), item.values, item.texts, strict=True):
        shown = "".join(
            f'<pre class="{"passed" if passed else "failed"}">{escape(text)}</pre>'
            for text, passed in texts
        )
        sides.append(f"<div><b>{escape(name)}</b>: {value:g} distinct correct{shown}</div>")
    return (
        f"<details><summary>{escape(item.problem)}: {item.values[0]:g} against "
        f"{item.values[1]:g} distinct correct solutions</summary>"
        f'<pre>{escape(item.prompt)}</pre><div class="sides">{"".join(sides)}</div></details>'
    )


def _failure(failure: gallery.Failure) -> str:
    rho = "ρ unknown" if failure.rho is None else f"ρ = {failure.rho:.3g}"
    return (
        f"<details><summary>{escape(failure.method)}, {rho}: {escape(failure.kind)} "
        f"({failure.count} samples)</summary><p class=note>{escape(failure.problem)}</p>"
        f'<pre class="failed">{escape(failure.text)}</pre></details>'
    )


def _floor(comparison: dict[str, Any]) -> Iterator[str]:
    yield "<h2>The re-run floor</h2>"
    if not comparison["floor"]:
        yield "<p>Every method was run once: the difference that re-running makes is not known.</p>"
        return
    yield "<p>Difference between two runs of the same method; nothing smaller means anything.</p>"
    names = headline("code", list(comparison["floor"][0]["metrics"]))
    yield _table(
        ["task · method", *names],
        [
            [
                f"{entry['task']} · {entry['method']}",
                *(
                    curves.value_text(n, entry["metrics"][n]) if n in entry["metrics"] else "–"
                    for n in names
                ),
            ]
            for entry in comparison["floor"]
        ],
    )


def _provenance(comparison: dict[str, Any]) -> Iterator[str]:
    protocol, software = comparison["protocol"], comparison["software"]
    versions = ", ".join(f"{name} {version}" for name, version in software.items())
    yield "<h2>Provenance</h2>"
    yield (
        f"<p class=note>Protocol {escape(protocol['name'])} ({protocol['hash']}), baseline "
        f"{escape(comparison['analysis']['baseline'])}, {comparison['analysis']['draws']:,} "
        f"resamples. Compared {comparison['created']} with {escape(versions)}.</p>"
    )


def _table(header: list[str], body: list[list[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    rows = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in body
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{rows}</table></div>'
