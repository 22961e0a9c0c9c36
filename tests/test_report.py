"""The report page: self-contained, complete, with and without samples; what its figures show."""

from __future__ import annotations

import argparse
import base64
import hashlib
import itertools
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_embednoise.analysis import arms, curves, gallery, report, schema, settings, tables
from lm_eval_embednoise.analysis.comparison import compare
from lm_eval_embednoise.analysis.figures import pareto_figure
from lm_eval_embednoise.analysis.records import read_results, read_runs
from lm_eval_embednoise.analysis.runs import ResultError
from lm_eval_embednoise.scoring.passk import pass_at_every_k
from tests.support.synthetic import METHODS, Method, write_run, write_study

METRICS = ("pass@10", "distinct_2", "unique_correct")
NAMES = ("greedy", "temp-0.8", "temp-1.5", "embednoise-0.1", "embednoise-0.5")


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """A study with many arms, as the report must show them."""
    folder = tmp_path_factory.mktemp("arms")
    methods = {**METHODS, "embednoise-0.1-sequence": Method(0.0, 0.1, sigma=0.1)}
    for i, block in enumerate((0, 1, 5, 10, 20)):
        arm = {"sites": {f"block.{block}": 0.1}}
        methods[f"embednoise-0.1-block-{block}"] = Method(-0.1 * i, 0.08, sigma=0.1, arm=arm)
    for positions in ("all", "first:8", "last:8"):
        name = f"embednoise-0.1-{positions.replace(':', '-')}"
        methods[name] = Method(0.0, 0.09, sigma=0.1, arm={"positions": positions})
    for sigma in (0.01, 0.05, 0.1, 0.5, 1.0):
        arm = {"sigma_unit": "norm"}
        methods[f"literal-{sigma}"] = Method(-5 * sigma, 0.1 + sigma / 2, sigma=sigma, arm=arm)
    write_study(folder, methods, n=16, k=12)
    return compare(read_runs([folder]), candidate="embednoise-0.1", draws=100)


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
    [script] = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    [policy] = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert 'name="viewport"' in text
    assert "@media print" in text


def test_every_part_is_there(page):
    text = page.read_text(encoding="utf-8")
    for part in (
        *("Verdict", "Correctness against diversity", "Paired differences", "re-run floor"),
        *("differ most", "How perturbed samples fail", "Settings of every method", "Glossary"),
    ):
        assert part.lower() in text.lower(), part
    assert text.count("<figure") == len(list(page.with_name("figures").glob("*.svg")))
    # The answer, its figure, then everything else, folded.
    order = [text.index(part) for part in ('class="answer"', "<figure", "<details", 'id="run"')]
    assert order == sorted(order)


def test_text_in_figures_is_text_and_every_point_says_what_it_is(page):
    for path in page.with_name("figures").glob("pareto-distinct_2-*.svg"):
        root = ElementTree.parse(path).getroot()
        space = "{http://www.w3.org/2000/svg}"
        assert "greedy" in {text.text for text in root.iter(f"{space}text")}
        titles = [title.text.splitlines() for title in root.iter(f"{space}title") if title.text]
        assert {title[0] for title in titles} == set(NAMES)
        for _, x, y in titles:
            assert re.fullmatch(r"distinct_2: \d\.\d{3} \[.*\]", x)
            assert re.fullmatch(r"success@K, %: \d+\.\d \[.*\]", y)


def test_every_figure_is_saved_as_png_and_svg(page):
    folder = page.with_name("figures")
    stems = {path.stem for path in folder.glob("*.svg")}
    assert stems == {path.stem for path in folder.glob("*.png")}
    kinds = ("pareto-distinct_2-", "pareto-distinct_2_valid-", "differences-pass@10-", "dose-")
    for kind in (*kinds, "pass-at-k-", "cover-", "solutions-", "diversity-", "failures-"):
        assert {f"{kind}{task}_diverse-minicoder" for task in ("minicode", "minimath")} <= stems
    assert not list(folder.glob(".*"))
    for path in folder.glob("*.svg"):
        ElementTree.parse(path)  # well-formed


def _inside(axis):
    """Labels of the major ticks within an axis's limits: the others aren't drawn."""
    low, high = sorted(axis.get_view_interval())
    ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return [tick.label1 for tick in ticks if tick.label1.get_visible()]


def test_labels_of_every_figure_keep_apart(comparison):
    """Numbers on axes, names of methods and of points: no two of one axis overlap."""
    drawn = []
    for rows, pairs in tables.by_task(comparison):
        drawn += [
            curves.dose_response(rows),
            *(curves.paired_differences(pairs, m) for m in METRICS),
        ]
        drawn += [curves.ablation(found, rows[:1], list(METRICS)) for found in arms.ablations(rows)]
    drawn += [pareto_figure(comparison, None, [plane]) for plane in comparison["planes"]]
    assert len(drawn) > 10
    for figure in drawn:
        figure.draw_without_rendering()
        renderer = figure.canvas.get_renderer()
        for axis in figure.axes:
            if not axis.get_visible():
                continue
            named = [t for t in axis.texts if t.get_fontsize() == 8 and t.get_zorder() == 5]
            for group in (named, *(_inside(part) for part in (axis.xaxis, axis.yaxis))):
                boxes = [t.get_window_extent(renderer) for t in group if t.get_text()]
                for i, a in enumerate(boxes):
                    assert not any(a.overlaps(b) for b in boxes[i + 1 :]), axis.get_title()


def test_samples_of_a_run_that_was_labelled_apart_are_shown(tmp_path):
    write_run(tmp_path / "ours", "temp-0.8", n=6, k=4)
    settings = {"n": 6, "k": 4, "text": "return stock_sample"}
    path = write_run(tmp_path / "theirs", "temp-0.8", **settings, replicate=1)
    content = json.loads(path.read_text())
    content["config"] |= {"model": "hf", "embednoise": {}}
    path.write_text(json.dumps(content))
    folder = tmp_path / "page"
    folder.mkdir()
    found = compare(read_runs([tmp_path]), candidate="temp-0.8 [hf]", draws=50)
    schema.write(found, folder / "comparison.json")
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    assert (
        report.run(parser.parse_args([str(folder / "comparison.json"), "--results", str(tmp_path)]))
        == 0
    )
    assert "stock_sample" in (folder / "report.html").read_text(encoding="utf-8")


def test_results_that_were_not_compared_are_refused(tmp_path):
    for name in ("temp-0.8", "greedy"):
        write_run(tmp_path / "a", name, n=6, k=4)
        write_run(tmp_path / "b", name, n=5, k=4)
    found = compare(read_runs([tmp_path / "a"]), draws=50)
    with pytest.raises(ResultError, match=r"has 5 problems, K = 4; the comparison 6, K = 4"):
        report.check_same(found, read_runs([tmp_path / "b"]))


def test_samples_are_escaped(tmp_path):
    for name in ("temp-0.8", "embednoise-0.1"):
        write_run(tmp_path, name, n=12, k=6, text="<script>alert(1)</script>")
    runs = read_runs([tmp_path])
    found = compare(runs, candidate="embednoise-0.1", draws=50)
    text = report.Report(found, runs, tmp_path / "figures").render()
    assert text.count("<script") == 1  # the page's own
    assert "&lt;script&gt;alert" in text


def test_pass_at_k_equals_counting_subsets():
    outcomes = [1, 0, 1, 0, 0, 0]
    found = pass_at_every_k(np.array([sum(outcomes)]), 6)[0]
    for k in range(1, 7):
        subsets = list(itertools.combinations(outcomes, k))
        assert found[k - 1] == pytest.approx(sum(any(s) for s in subsets) / len(subsets))
    np.testing.assert_array_equal(pass_at_every_k(np.array([0]), 3), [[0, 0, 0]])


def test_rarefaction_equals_counting_subsets():
    labels = ["a", "a", "b", "c", None, None]  # two failures belong to no class
    found = gallery.rarefied(np.array([2, 1, 1]), 6)
    for m in range(1, 7):
        subsets = list(itertools.combinations(range(6), m))
        seen = [len({labels[i] for i in s} - {None}) for s in subsets]
        assert found[m - 1] == pytest.approx(np.mean(seen))
    np.testing.assert_array_equal(gallery.rarefied(np.array([], dtype=int), 2), [0, 0])


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        ({"text": ""}, "early end"),
        ({"text": "return x " * 30}, "loop"),
        ({"text": "return ( x + y", "compiled": False}, "does not parse"),
        ({"text": "return a + b", "compiled": True, "verdict": "wrong_answer"}, "wrong answer"),
        ({"text": "while True: pass", "compiled": True, "verdict": "timeout"}, "other"),
        ({"text": "the answer is 5", "answer": "5"}, "wrong answer"),
        ({"text": "I do not know", "answer": None}, "no answer"),
    ],
)
def test_failures_are_named(record, kind):
    assert gallery.failure_kind(record) == kind


def test_the_gallery_counts_all_failures(tmp_path):
    [run] = read_results(write_run(tmp_path, "embednoise-0.5", n=10, k=8))
    found = gallery.digest(run, set())
    failed = round((1 - run.metrics["pass@1"]).sum() * 8)
    assert sum(failure.count for failure in found.failures) == failed > 0
    assert sum(found.shares.values()) == pytest.approx(1.0)
    assert found.shares["passed"] == pytest.approx(run.metrics["pass@1"].mean())
    assert {"does not parse", "loop"} <= found.kinds.keys()


def test_only_so_many_samples_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "READ", 160)
    [run] = read_results(write_run(tmp_path, "temp-0.8", n=50, k=4))
    found = gallery.digest(run, {run.problems[1]})
    assert found.problems == 40
    assert len(gallery.counted(run)) == 40
    assert set(found.texts) == {run.problems[1]}


def test_the_curves_end_at_the_metrics_of_all_samples(tmp_path):
    """Distinct-2 of m = K samples is the metric itself, and solutions are the distinct correct."""
    from lm_eval_embednoise.scoring.reduce import math_metrics

    words = "each box holds three red balls or four green ones so the answer is"
    rng = np.random.default_rng(0)
    records = [
        {"text": " ".join(rng.choice(words.split(), 12)), "missing": False, "passed": i % 3 == 0}
        | {"answer": "7", "valid": True, "tokens": 12, "finish_reason": "stop_string"}
        | {"nll": None, "nll_tokens": None, "rho": None, "seconds": None}
        for i in range(9)
    ]
    metrics = math_metrics({"answer": "#### 7"}, [records])
    line = {"filtered_resps": [[json.dumps(record) for record in records]], **metrics}
    changes = {"minimath_diverse/0": line}
    [run] = read_results(
        write_run(tmp_path, "temp-0.8", task="minimath_diverse", n=1, k=9, changes=changes)
    )
    found = gallery.digest(run, set())
    assert found.distinct[-1] == pytest.approx(metrics["distinct_2"])
    assert (np.diff(found.distinct) < 0).all()  # falls with the number of samples
    assert found.solutions[-1] == metrics["unique_correct"] == 3


def test_drift_is_what_the_clean_model_finds_unlikely(tmp_path):
    [run] = read_results(write_run(tmp_path, "temp-0.8", n=6, k=8))
    limit = gallery.unlikely_from(run)
    assert limit == pytest.approx(3.0 / 20)
    record = {"text": "return a + b", "compiled": True, "nll": 9.0, "nll_tokens": 20}
    assert gallery.failure_kind(record, limit) == "drift"
    assert gallery.failure_kind({**record, "nll": 1.0}, limit) == "wrong answer"
    assert gallery.failure_kind(record) == "wrong answer"


def test_the_problems_shown_differ_most(tmp_path):
    [a] = read_results(write_run(tmp_path, "temp-1.5", n=20, k=8))
    [b] = read_results(write_run(tmp_path, "greedy", n=20, k=8))
    d = dict(
        zip(a.problems, a.metrics["unique_correct"] - b.metrics["unique_correct"], strict=True)
    )
    chosen, _ = gallery.differing(a, b)
    ours, theirs = (gallery.digest(run, set(chosen)) for run in (a, b))
    shown = gallery.side_by_side(chosen, a, b, ours, theirs)
    assert [item.problem for item in shown] == chosen
    assert all(item.values[0] - item.values[1] == d[item.problem] for item in shown)
    assert all(1 <= len(side) <= gallery.SHOWN for item in shown for side in item.texts)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40))
def test_no_ties_are_shown_and_what_is_left_out_is_counted(differences):
    """Against the definition: no shown problem is equal, none left out differs more."""

    def run(values):
        names = tuple(f"p{i:02}" for i in range(len(values)))
        return SimpleNamespace(problems=names, metrics={"unique_correct": np.array(values, float)})

    shown, more = gallery.differing(run(differences), run([0] * len(differences)))
    d = dict(zip(run(differences).problems, differences, strict=True))
    assert all(d[p] for p in shown) and len(shown) == len(set(shown))
    assert len(shown) == min(gallery.PROBLEMS, sum(map(bool, differences)))
    left = 0
    for sign in (1, -1):
        side = [p for p in d if sign * d[p] > 0]
        mine = [p for p in shown if sign * d[p] > 0]
        assert mine == sorted(side, key=lambda p: (-abs(d[p]), p))[: len(mine)]
        assert len(mine) >= min(len(side), gallery.PROBLEMS // 2)
        left += sum(d[p] == d[mine[-1]] for p in set(side) - set(mine)) if mine else 0
    assert more == left


# ---- arms: sweeps, ablations, which to name


def row(method, sigma=0.1, **perturbation):
    estimate = {"value": sigma, "low": None, "high": None}
    sites = perturbation.pop("sites", {"embed": sigma} if sigma else {})
    settings = {"seed": 0, "sites": sites, **perturbation}
    shared = {"model": "m", "task": "t", "sampling": {"do_sample": False}, "rho": None}
    return {"method": method, "perturbation": settings, "metrics": {"pass@1": estimate}, **shared}


ARMS = [
    row("greedy", 0),
    *(row(f"embednoise-{s}", s, scope="token", positions="prompt") for s in (0.5, 0.1, 0.2)),
    *(row(f"literal-{s}", s, scope="token", positions="prompt", sigma_unit="norm") for s in (1, 2)),
    row("sequence", scope="sequence", positions="prompt"),
    row("first", scope="token", positions="first:8"),
    row("deep", sites={"block.10": 0.1}, scope="token", positions="prompt"),
    row("deeper", sites={"block.20": 0.1}, scope="token", positions="prompt"),
    row("deep-strong", sites={"block.20": 0.5}, scope="token", positions="prompt"),
    row("all", scope="token", positions="all"),
    row("fading", scope="token", positions="all", schedule="linear", anneal_tokens=64),
    row("rsp", 0, rsp=8),
]


def test_a_dose_response_needs_two_doses():
    assert curves.dose_response([row("greedy", 0)]) is None
    assert arms.dose(row("x", sites={"embed": 0.1, "block.5": 0.3})) == 0.3
    assert math.isclose(arms.dose({"perturbation": {"sigma": 0.2}}), 0.2)


def test_sweeps_differ_in_their_dose_only():
    first, second, *rest = arms.sweeps(ARMS)
    assert [r["method"] for r in first] == [f"embednoise-{s}" for s in (0.1, 0.2, 0.5)]
    assert [r["method"] for r in second] == ["literal-1", "literal-2"]
    assert [[r["method"] for r in sweep] for sweep in rest] == [["deeper", "deep-strong"]]


def test_a_dose_response_draws_the_longest_sweep():
    [axis, *_] = curves.dose_response(ARMS).axes
    np.testing.assert_array_equal(axis.lines[0].get_xdata(), [0.1, 0.2, 0.5])


def test_an_ablation_changes_one_choice():
    found = {a.axis: {k: r["method"] for k, r in a.levels.items()} for a in arms.ablations(ARMS)}
    assert found == {
        "depth": {"embed": "embednoise-0.1", "block 10": "deep", "block 20": "deeper"},
        "scope": {"token": "embednoise-0.1", "sequence": "sequence"},
        "structure": {"prompt": "embednoise-0.1", "all": "all", "first:8": "first"},
        "schedule": {"none": "all", "linear 64": "fading"},
        "added input": {"embednoise-0.1": "embednoise-0.1", "rsp": "rsp"},
    }
    assert list(found["depth"]) == ["embed", "block 10", "block 20"]
    assert arms.ablations([row("greedy", 0)]) == []


def test_the_methods_named_are_the_protocols_first():
    content = {"family": ["greedy", "temp-0.8"], "plane": {"x": ["x"]}}
    comparison = {
        "analysis": {"candidate": "rsp", "baseline": "greedy"},
        "protocol": {"content": content},
        "planes": [{"model": "m", "task": "t", "front": ["deep"]}],
    }
    assert set(arms.featured(ARMS, comparison, 4)) == {"rsp", "greedy", "deep", "embednoise-0.1"}
    assert len(arms.featured(ARMS, comparison, 99)) == len(ARMS)


def test_methods_of_one_family_have_their_own_shade():
    from lm_eval_embednoise.analysis.figures import shades

    found = shades(list(METHODS))
    assert len(set(found.values())) == len(METHODS)
    assert found["greedy"] == "#000000"


def test_a_page_without_results_or_candidate(tmp_path):
    for name in ("temp-0.8", "odd"):
        write_run(tmp_path, name, Method(), n=5, k=4)
    found = compare(read_runs([tmp_path]), draws=50)
    text = report.Report(found, [], tmp_path / "figures").render()
    words = re.sub("<[^>]*>", "", text)
    assert "No method was named as the candidate" in words and "No verdict" in words
    assert "differ most" not in text


def test_fewer_than_ten_samples_show_other_numbers_than_pass_at_10(tmp_path):
    for name in ("greedy", "temp-0.8", "embednoise-0.1", "embednoise-0.5"):
        write_run(tmp_path, name, n=24, k=4)
    found = compare(read_runs([tmp_path]), candidate="embednoise-0.1", draws=50)
    for row in found["leaderboard"]:  # as a task reports it that always lists pass@10
        row["metrics"]["pass@10"] = {
            **dict.fromkeys(("value", "low", "high")), "n": 0, "reason": "K = 4"
        }  # fmt: skip
    text = report.Report(found, [], tmp_path / "figures").render()
    assert "there is no pass@10" in re.sub("<[^>]*>", "", text)
    heads = re.findall(r"<th[^>]*>(.*?)</th>", text, re.DOTALL)
    heads = [re.sub("<[^>]*>", "", head) for head in heads]
    assert not any(head.startswith("pass@10") for head in heads)
    assert {"pass@1, points [95 % interval]", "success@K, points [95 % interval]"} <= set(heads)
    stems = {path.stem for path in (tmp_path / "figures").glob("*.svg")}
    assert "differences-success@K-minicode_diverse-minicoder" in stems
    assert not any("pass@10" in stem for stem in stems)


def test_the_settings_identify_every_method(tmp_path):
    for name in ("greedy", "temp-0.8", "embednoise-0.1"):
        write_run(tmp_path, name, n=12, k=4)
    found = compare(read_runs([tmp_path]), candidate="embednoise-0.1", draws=50)
    for row in found["leaderboard"]:
        row["environment"] = {"torch": "2.13", "gpu": "A" if row["method"] == "greedy" else "B"}
    text = report.Report(found, [], tmp_path / "figures").render()
    rows = found["leaderboard"]
    common = dict(settings.shared(rows)[1])
    assert common["torch"] == "2.13" and "gpu" not in common and "data version" in common
    header, body = settings.of_each(rows, "embednoise-0.1")
    table = {line[0]: dict(zip(header, line, strict=True)) for line in body}
    assert table["embednoise-0.1"]["dose"] == "σ* = 0.1"
    assert table["embednoise-0.1"]["site"] == "embed"
    assert table["embednoise-0.1"]["perturbation"] == "sigma_unit relative, positions prompt"
    assert table["temp-0.8"]["dose"] == "T = 0.8"
    assert table["greedy"]["sampling"] == "greedy"
    assert table["greedy"]["differs in"] == "gpu A"
    assert "sigma_unit relative" in text


def test_the_page_goes_to_a_file_or_into_a_folder(tmp_path):
    for name in ("temp-0.8", "odd"):
        write_run(tmp_path / "runs", name, Method(), n=5, k=4)
    found = tmp_path / "comparison.json"
    found.write_text(json.dumps(compare(read_runs([tmp_path / "runs"]), draws=50)))
    (tmp_path / "pages").mkdir()
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    for out, page in (("pages", "pages/report.html"), ("mine.html", "mine.html")):
        arguments = parser.parse_args([str(found), "--out", str(tmp_path / out)])
        assert report.run(arguments) == 0
        assert (tmp_path / page).read_text()[:9].lower() == "<!doctype"
        assert any((tmp_path / page).with_name("figures").iterdir())
