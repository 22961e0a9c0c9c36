"""The report's HTML: style, tables, figures, sections as strings; no scripts, nothing to load."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

from lm_eval_embednoise.analysis.verdict import curve_sentence, sentence

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
       max-width: 76rem; margin: 0 auto; padding: 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; }
h2 { font-size: 1.25rem; margin-top: 2.5rem; border-top: 1px solid #ccc; padding-top: 1rem; }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .4rem; }
p { max-width: 48rem; }
nav a { display: inline-block; padding: .25rem .9rem .25rem 0; }
a { color: #00558a; }
.grid { display: grid; gap: 1rem 1.5rem; align-items: start;
        grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); }
figure { margin: .5rem 0; max-width: 36rem; } figure svg { width: 100%; height: auto; }
figcaption, .note { color: #555; font-size: .875rem; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #e3e3e3;
         white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
tr.marked td { background: #eef5fa; }
td small { display: block; color: #555; line-height: 1.1; }
.verdict { border-left: .4rem solid #0072B2; background: #f3f7fa; padding: .6rem 1rem;
           margin: .6rem 0; }
.verdict b { text-transform: uppercase; }
.verdict ul { margin: .2rem 0; padding-left: 1.2rem; }
pre { background: #f6f6f6; padding: .5rem; font-size: .8rem; margin: .3rem 0;
      white-space: pre-wrap; overflow-wrap: anywhere; }
pre.passed { border-left: .3rem solid #009E73; } pre.failed { border-left: .3rem double #D55E00; }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 16rem), 1fr));
         gap: 1rem; }
summary { cursor: pointer; padding: .35rem 0; }
@media (max-width: 30rem) {
  body { padding: .6rem; } th, td { padding: .2rem .4rem; } table { font-size: .8rem; }
  td:first-child, th:first-child { white-space: normal; min-width: 6.5rem; }
  h1 { font-size: 1.3rem; } h2 { font-size: 1.12rem; }
}
@media print {
  body { max-width: none; font-size: 10pt; } nav { display: none; }
  .scroll { overflow: visible; } table { font-size: 7pt; } th, td { padding: .1rem .25rem; }
  td:first-child, th:first-child { position: static; }
  .grid { grid-template-columns: 1fr 1fr; } h2, h3 { break-after: avoid; }
  figure, tr, details { break-inside: avoid; }
  details.paper::details-content { content-visibility: visible; height: auto; display: block; }
}
"""


def document(title: str, body: Iterable[str]) -> str:
    """The whole page."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n" + "\n".join(part for part in body if part) + "\n"
        "</body>\n</html>\n"
    )


def navigation(sections: dict[str, str]) -> str:
    """Links to the sections, identifier → heading."""
    links = "".join(f'<a href="#{key}">{escape(text)}</a>' for key, text in sections.items())
    return f"<nav>{links}</nav>"


def figure(svg: str, caption: str) -> str:
    """An inline figure; the caption is also what a screen reader says."""
    svg = svg[svg.index("<svg") :]  # without the XML prologue, which names a remote DTD
    return (
        f'<figure role="img" aria-label="{escape(caption)}">{svg}'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def grid(figures: Iterable[str]) -> str:
    """Figures side by side where there is room."""
    drawn = [text for text in figures if text]
    return f'<div class="grid">{"".join(drawn)}</div>' if drawn else ""


def table(header: list[str], body: list[list[str]], marked: Iterable[str] = ()) -> str:
    """A table that scrolls sideways on its own; what stands in brackets goes on a second line.

    Args:
        header: column names.
        body: rows of cells.
        marked: first cells whose rows are tinted.
    """
    tinted = set(marked)
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    rows = "".join(
        f"<tr{' class=marked' if row[0] in tinted else ''}>{''.join(map(_cell, row))}</tr>"
        for row in body
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{rows}</table></div>'


def verdict(found: dict[str, Any]) -> str:
    """One verdict with the numbers behind it."""
    lines = [
        f"<li>{escape(task['task'])}: {task['outcome']}<ul>"
        + "".join(f"<li>{escape(sentence(e))}</li>" for e in task["endpoints"])
        + (f"<li>{escape(curve_sentence(task['curve']))}</li>" if "curve" in task else "")
        + "</ul></li>"
        for task in found["tasks"]
    ]
    lines += [f"<li>exploratory because {escape(why)}</li>" for why in found["deviations"]]
    return (
        f'<div class="verdict">{escape(found["candidate"])} with {escape(found["model"])}: '
        f"<b>{found['verdict']}</b> ({found['status']}; {escape(found['why'])})"
        f"<ul>{''.join(lines)}</ul></div>"
    )


def details(summary: str, content: str, on_paper: bool = True) -> str:
    """Something to unfold, and unfolded in print unless it is too much; `content` is HTML."""
    opened = ' class="paper"' if on_paper else ""
    return f"<details{opened}><summary>{escape(summary)}</summary>{content}</details>"


def sample(text: str, passed: bool) -> str:
    """One sample, marked by colour and by the form of its edge."""
    state = "passed" if passed else "failed"
    return f'<pre class="{state}" title="{state}">{escape(text)}</pre>'


def _cell(text: str) -> str:
    value, bracket, rest = text.partition(" [")
    if not bracket:
        return f"<td>{escape(text)}</td>"
    return f"<td>{escape(value)}<small>[{escape(rest)}</small></td>"
