"""The report in a real browser: its answer, its tables through the script, phone and desktop.

Without Chromium these tests are skipped; EMBEDNOISE_BROWSER=required, as CI sets it, makes that a
failure.
"""

from __future__ import annotations

import json
import os

import pytest

from lm_eval_embednoise.analysis import report
from lm_eval_embednoise.analysis.comparison import compare
from lm_eval_embednoise.analysis.records import read_runs
from tests.support.browser import CHROMIUM, INSTALL, browser
from tests.support.synthetic import METHODS, Method, write_study

HEATS = (0.2, 0.35, 0.5, 0.65, 1.0, 1.25)
VALUES = "document.querySelector('table')"
FIRST_COLUMN = (
    f"[...{VALUES}.tBodies[0].rows].filter(r => !r.hidden).map(r => r.cells[0].innerText)"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A study with a whole temperature curve and its samples."""
    folder = tmp_path_factory.mktemp("browser")
    methods = {f"temp-{heat}": Method(0.5 - heat, 0.2 * heat, temperature=heat) for heat in HEATS}
    write_study(folder / "in", methods | METHODS, n=16, k=12, families=None)
    runs = read_runs([folder / "in"])
    found = compare(runs, candidate="embednoise-0.1", draws=100)
    target = folder / "report.html"
    target.write_text(report.Report(found, runs, folder / "figures").render(), encoding="utf-8")
    return target


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    if not CHROMIUM:
        assert os.environ.get("EMBEDNOISE_BROWSER") != "required", INSTALL
        pytest.skip(INSTALL)
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def desktop(tab, page):
    tab.open(page.as_uri(), width=1280)
    tab.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    return tab


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("unfolded", [False, True])
def test_no_width_scrolls_sideways_and_nothing_is_loaded(tab, page, width, unfolded):
    tab.open(page.as_uri(), width=width)
    if unfolded:
        tab.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("innerWidth") == width
    assert tab.requests() == [page.as_uri()]
    assert tab.faults() == []


def test_the_answer_comes_first_and_is_in_view_on_a_phone(tab, page):
    tab.open(page.as_uri(), width=390)
    first = tab.evaluate("document.querySelector('p.first').innerText")
    assert first.startswith("Exploratory: embednoise-0.1 is no replacement for temperature")
    assert tab.evaluate("document.querySelector('p.first').getBoundingClientRect().bottom") < 300
    said = tab.evaluate("document.querySelector('.answer').innerText")
    for part in ("temperature's diversity", "n = 16", "temp-0.8", "99 %", "Against all temper"):
        assert part in said
    assert tab.evaluate("document.querySelector('figure svg').getBoundingClientRect().width") > 300
    smallest = "Math.min(...[...document.querySelectorAll('#first svg text')].map(t => "
    smallest += "t.getBoundingClientRect().height))"
    assert tab.evaluate(smallest) > 8  # CSS pixels


def test_text_stays_inside_its_figure(desktop):
    """With the reader's fonts: matplotlib laid it out with its own."""
    outside = desktop.evaluate(
        "JSON.stringify([...document.querySelectorAll('figure svg')].flatMap(svg => { "
        "const room = svg.getBoundingClientRect(); return [...svg.querySelectorAll('text')]"
        ".filter(t => { const r = t.getBoundingClientRect(); return r.left < room.left - 2 || "
        "r.right > room.right + 2 || r.top < room.top - 2 || r.bottom > room.bottom + 2; })"
        ".map(t => t.textContent); }))"
    )
    assert json.loads(outside) == []


def test_a_table_is_sorted_by_keyboard(desktop):
    """Tab to a head's button, Enter: up, then down; what has no number stays last."""
    column = 2
    desktop.evaluate(f"{VALUES}.tHead.rows[0].cells[{column - 1}].querySelector('button').focus()")
    desktop.press("Tab")
    if desktop.evaluate("document.activeElement.tagName") == "A":  # the head's link to its entry
        desktop.press("Tab")
    cells = f"[...{VALUES}.tBodies[0].rows].map(r => r.cells[{column}].dataset.value)"
    before = [float(cell) for cell in desktop.evaluate(cells)]
    for direction in ("ascending", "descending"):
        desktop.press("Enter", "\r")
        told = desktop.evaluate(f"{VALUES}.tHead.rows[0].cells[{column}].ariaSort")
        assert told == direction
        shown = [float(cell) for cell in desktop.evaluate(cells)]
        assert shown == sorted(before, reverse=direction == "descending") != before
    assert desktop.faults() == []


def test_methods_sort_by_their_dose(desktop):
    button = f"{VALUES}.tHead.rows[0].cells[0].querySelector('button')"
    desktop.evaluate(f"{button}.click()")
    names = desktop.evaluate(FIRST_COLUMN)
    heats = [float(name.removeprefix("temp-")) for name in names if name.startswith("temp-")]
    assert len(heats) == len(HEATS) + 2 and heats == sorted(heats)


def test_a_table_is_filtered(desktop):
    everything = desktop.evaluate(FIRST_COLUMN)
    filter_ = "document.querySelector('.filter input')"
    desktop.evaluate(f"{filter_}.focus()")
    desktop.call("Input.insertText", text="Noise-0.")
    shown = desktop.evaluate(FIRST_COLUMN)
    assert shown == [name for name in everything if "noise-0." in name] != everything
    said = desktop.evaluate("document.querySelector('.filter output').innerText")
    assert said == f"{len(shown)} of {len(everything)}"
    desktop.evaluate(f"{filter_}.value = ''; {filter_}.dispatchEvent(new Event('input'))")
    assert desktop.evaluate(FIRST_COLUMN) == everything


def test_a_link_opens_what_it_points_into(tab, page):
    tab.open(page.as_uri(), width=1280)
    tab.evaluate("document.querySelector('a.term').click()")
    place = "document.getElementById(decodeURIComponent(location.hash.slice(1)))"
    top = tab.evaluate(f"{place}.getBoundingClientRect().top")
    assert tab.evaluate(f"{place}.tagName") == "DT" and 0 <= top < 900


def test_points_say_what_they_are(desktop):
    said = desktop.evaluate("document.querySelector('#first svg g > title').textContent")
    method, x, y = said.splitlines()
    assert method in METHODS
    assert x.startswith("pass@1, %: ") and y.startswith("unique_correct: ")


def test_without_script_the_page_is_complete(tab, page):
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.open(page.as_uri(), width=1280)
        document = tab.call("DOM.getDocument")["root"]["nodeId"]
        count = {}
        for what in ("table", "td", "button, input"):
            found = tab.call("DOM.querySelectorAll", nodeId=document, selector=what)
            count[what] = len(found["nodeIds"])
    finally:
        tab.call("Emulation.setScriptExecutionDisabled", value=False)
    text = page.read_text(encoding="utf-8")
    assert count["table"] == text.count("<table") > 5
    assert count["td"] == text.count("<td ") > 100
    assert count["button, input"] == 0
