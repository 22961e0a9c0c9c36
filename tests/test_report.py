"""The report page: self-contained, complete, with and without samples; what its figures show."""

from __future__ import annotations

import argparse
import itertools
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
from synthetic import METHODS, Method, write_run, write_study

from lm_eval_embednoise.analysis import curves, gallery, report, schema
from lm_eval_embednoise.analysis.comparison import compare
from lm_eval_embednoise.analysis.records import read_results, read_runs

NAMES = ("greedy", "temp-0.8", "temp-1.5", "embednoise-0.1", "embednoise-0.5")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_study(folder / "in", {name: METHODS[name] for name in NAMES}, n=16, k=12)
    write_run(folder / "in2", "temp-0.8", n=16, k=12, replicate=1)
    found = compare(
        read_runs([folder / "in", folder / "in2"]), candidate="embednoise-0.1", draws=200
    )
    schema.write(found, folder / "comparison.json")
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    arguments = [str(folder / "comparison.json"), "--results", str(folder / "in")]
    assert report.run(parser.parse_args(arguments)) == 0
    return folder / "report.html"


class Tags(HTMLParser):
    """Collects addresses, and checks that what opens closes."""

    def __init__(self):
        super().__init__()
        self.addresses, self.open = [], []

    def handle_starttag(self, tag, attributes):
        self.addresses += [v for k, v in attributes if k in ("src", "href", "xlink:href", "data")]
        if tag not in ("meta", "br", "img", "link", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_it_loads_nothing_and_is_well_formed(page):
    text = page.read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert all(address.startswith("#") for address in tags.addresses)
    assert "<script" not in text and "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert 'name="viewport"' in text and "@media print" in text


def test_every_part_is_there(page):
    text = page.read_text(encoding="utf-8")
    for part in (
        *("Verdict", "Correctness against diversity", "Paired differences", "re-run floor"),
        *("differ most", "How perturbed samples fail", "Provenance", "What was run"),
    ):
        assert part.lower() in text.lower(), part
    assert text.count("<figure") == 2 + 2 * 4
    first = text.index("<figure")
    assert "pareto" not in text[:first] and text.index("correctness against".title()[:11]) < first


def test_every_figure_is_saved_as_png_and_svg(page):
    folder = page.with_name("figures")
    stems = {path.stem for path in folder.glob("*.svg")}
    assert stems == {path.stem for path in folder.glob("*.png")} and len(stems) == 10
    for path in folder.glob("*.svg"):
        ElementTree.parse(path)  # well-formed


def test_samples_are_escaped(tmp_path):
    for name in ("temp-0.8", "embednoise-0.1"):
        write_run(tmp_path, name, n=6, k=4, text="<script>alert(1)</script>")
    runs = read_runs([tmp_path])
    found = compare(runs, candidate="embednoise-0.1", draws=50)
    text = report.Page(tmp_path / "figures").render(found, runs)
    assert "<script" not in text and "&lt;script&gt;" in text


def test_pass_at_k_equals_counting_subsets():
    outcomes = [1, 0, 1, 0, 0, 0]
    found = curves.unbiased_pass_at_k(np.array([sum(outcomes)]), 6)[0]
    for k in range(1, 7):
        subsets = list(itertools.combinations(outcomes, k))
        assert found[k - 1] == pytest.approx(sum(any(s) for s in subsets) / len(subsets))
    np.testing.assert_array_equal(curves.unbiased_pass_at_k(np.array([0]), 3), [[0, 0, 0]])


def test_rarefaction_equals_counting_subsets():
    labels = ["a", "a", "b", "c", None, None]  # two failures belong to no class
    found = curves.rarefied(np.array([2, 1, 1]), 6)
    for m in range(1, 7):
        subsets = list(itertools.combinations(range(6), m))
        seen = [len({labels[i] for i in s} - {None}) for s in subsets]
        assert found[m - 1] == pytest.approx(np.mean(seen))
    np.testing.assert_array_equal(curves.rarefied(np.array([], dtype=int), 2), [0, 0])


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        ({"text": ""}, "early end"),
        ({"text": "return x " * 30}, "loop"),
        ({"text": "return ( x + y", "compiled": False}, "does not parse"),
        ({"text": "return a + b", "compiled": True, "verdict": "wrong_answer"}, "wrong answer"),
        ({"text": "the answer is 5"}, "wrong"),
    ],
)
def test_failures_are_named(record, kind):
    assert gallery.failure_kind(record) == kind


def test_the_gallery_counts_all_failures(tmp_path):
    [run] = read_results(write_run(tmp_path, "embednoise-0.5", n=10, k=8))
    failed = round((1 - run.metrics["pass@1"]).sum() * 8)
    assert sum(failure.count for failure in gallery.failures(run)) == failed > 0


def test_the_problems_shown_differ_most(tmp_path):
    [a] = read_results(write_run(tmp_path, "temp-1.5", n=20, k=8))
    [b] = read_results(write_run(tmp_path, "greedy", n=20, k=8))
    d = dict(
        zip(a.problems, a.metrics["unique_correct"] - b.metrics["unique_correct"], strict=True)
    )
    shown = gallery.side_by_side(a, b)
    assert len(shown) == gallery.PROBLEMS
    assert {item.problem for item in shown} >= {max(d, key=d.get), min(d, key=d.get)}
    assert all(item.values[0] - item.values[1] == d[item.problem] for item in shown)
    assert all(1 <= len(side) <= gallery.SHOWN for item in shown for side in item.texts)


def test_a_dose_response_needs_two_doses():
    rows = [{"method": "greedy", "perturbation": {"sites": {}}, "metrics": {}}]
    assert curves.dose_response(rows) is None
    assert curves.dose({"perturbation": {"sites": {"embed": 0.1, "block.5": 0.3}}}) == 0.3
    assert math.isclose(curves.dose({"perturbation": {"sigma": 0.2}}), 0.2)


def test_a_dose_response_draws_one_arm():
    def row(sigma, unit):
        estimate = {"value": sigma, "low": None, "high": None}
        perturbation = {"sites": {"embed": sigma}, "sigma_unit": unit, "seed": 0}
        name = f"{unit}-{sigma}"
        return {"method": name, "perturbation": perturbation, "metrics": {"pass@1": estimate}}

    rows = [row(s, "relative") for s in (0.5, 0.1, 0.2)] + [row(s, "norm") for s in (0.3, 0.4)]
    figure = curves.dose_response(rows)
    [axis] = figure.axes
    np.testing.assert_array_equal(axis.lines[0].get_xdata(), [0.1, 0.2, 0.5])


def test_methods_of_one_family_have_their_own_shade():
    from lm_eval_embednoise.analysis.figures import shades

    found = shades(list(METHODS))
    assert len(set(found.values())) == len(METHODS)
    assert found["greedy"] == "#000000"


def test_a_page_without_results_or_candidate(tmp_path):
    for name in ("temp-0.8", "odd"):
        write_run(tmp_path, name, Method(), n=5, k=4)
    found = compare(read_runs([tmp_path]), draws=50)
    text = report.Page(tmp_path / "figures").render(found, [])
    assert "No verdict" in text and "differ most" not in text
