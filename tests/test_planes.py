"""Planes: common problems, methods left out, areas for equal numbers of arms; table and figure."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_eval_embednoise.analysis.comparison import compare
from lm_eval_embednoise.analysis.figures import pareto_figure
from lm_eval_embednoise.analysis.planes import planes
from lm_eval_embednoise.analysis.protocol import Protocol
from lm_eval_embednoise.analysis.records import read_runs
from lm_eval_embednoise.analysis.resample import Resampler, cluster_codes
from lm_eval_embednoise.analysis.tables import plane_table
from tests.support.synthetic import METHODS, Method, write_run

N, DRAWS, X, Y = 24, 200, "distinct_2_valid", "success@K"
NAMES = ("greedy", "temp-0.8", "temp-1.5", "embednoise-0.05", "embednoise-0.1", "embednoise-0.5")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planes")
    for name in NAMES:
        write_run(folder, name, n=N, families=8)
    read = {run.method: run for run in read_runs([folder])}
    return {name: read[name] for name in NAMES}


def defined_on(runs, masks):
    """The runs with the gated metric undefined where a method's mask says so."""
    gated = {}
    for (name, run), mask in zip(runs.items(), masks, strict=True):
        values = np.linspace(0.1, 0.4, N) * (1 + METHODS[name].diversity)
        gated[name] = replace(run, metrics={**run.metrics, X: np.where(mask, values, np.nan)})
    return gated


def gated_plane(runs):
    first = next(iter(runs.values()))
    resampler = Resampler(cluster_codes(first.clusters, first.n), DRAWS)
    [plane] = [p for p in planes(runs, resampler, Protocol.load()) if p["x"] == X]
    return plane


def on(run, problems):
    """The run on some of its problems."""
    pick = [i for i, kept in enumerate(problems) if kept]
    return replace(
        run,
        problems=tuple(run.problems[i] for i in pick),
        hashes=tuple(run.hashes[i] for i in pick),
        clusters=tuple(run.clusters[i] for i in pick),
        metrics={name: values[pick] for name, values in run.metrics.items()},
    )


def dominated_area(points):
    """By rectangles: between two neighbouring x, the highest y of any point further right."""
    xs = sorted({0.0, *(x for x, _ in points)})
    return sum(
        (right - left) * max((y for x, y in points if x >= right), default=0.0)
        for left, right in pairwise(xs)
    )


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=N, max_size=N), min_size=6, max_size=6))
def test_everything_is_of_the_common_problems(runs, masks):
    gated = defined_on(runs, masks)
    plane = gated_plane(gated)
    counts = {name: sum(mask) for name, mask in zip(runs, masks, strict=True)}
    drawn = [name for name in runs if 2 * counts[name] >= N]
    assert plane["left_out"] == {name: counts[name] for name in runs if name not in drawn}
    kept = [mask for name, mask in zip(runs, masks, strict=True) if name in drawn]
    common = [bool(drawn) and all(mask[i] for mask in kept) for i in range(N)]
    assert (plane["n"], plane["n_undefined"]) == (sum(common), N - sum(common))
    if not any(common):
        assert plane["points"] == {} and plane["front"] == [] and plane["matched"] == {}
        assert plane["hypervolume"]["noise"]["reason"].startswith("no problem")
        return
    means = {
        name: tuple(
            sum(gated[name].metrics[m][i] for i in range(N) if common[i]) / sum(common)
            for m in (X, Y)
        )
        for name in drawn
    }
    for name, point in plane["points"].items():
        assert (point["x"]["value"], point["y"]["value"]) == pytest.approx(means[name])
        assert point["x"]["n"] == point["y"]["n"] == sum(common)
    assert list(plane["points"]) == drawn
    for name in drawn:
        x, y = means[name]
        better = [p for p in means.values() if p[0] >= x - 1e-12 and p[1] >= y - 1e-12]
        strictly = [p for p in better if p[0] > x + 1e-12 or p[1] > y + 1e-12]
        assert (name in plane["front"]) == (not strictly)
    arms = {
        "noise": [n for n in drawn if n.startswith("embednoise")],
        "sampling": [n for n in drawn if not n.startswith("embednoise")],
    }
    for kind, members in arms.items():
        told = plane["hypervolume"][kind]
        if len(arms["noise"]) != len(arms["sampling"]) or not members:
            assert told["value"] is None and told["n"] == sum(common)
            assert f"{len(arms['sampling'])} sampling and {len(arms['noise'])}" in told["reason"]
        else:
            assert told["value"] == pytest.approx(dominated_area([means[n] for n in members]))


def test_a_plane_is_that_of_a_comparison_on_the_common_problems_alone(runs):
    """Intervals included: no other problem has any part in it."""
    rng = np.random.default_rng(0)
    masks = rng.random((6, N)) < 0.9
    gated = defined_on(runs, masks)
    common = masks.all(0)
    assert 5 < common.sum() < N
    alone = {name: on(run, common) for name, run in gated.items()}
    few, whole = (
        next(p for p in compare(list(some.values()), draws=DRAWS)["planes"] if p["x"] == X)
        for some in (alone, gated)
    )
    assert whole["n_undefined"] == N - common.sum() and few["n_undefined"] == 0
    assert {**whole, "n_undefined": 0} == few
    assert any(point["x"]["low"] is not None for point in whole["points"].values())


def test_a_method_that_is_rarely_defined_does_not_shrink_the_others(runs):
    rare = np.arange(N) < N // 2 - 1
    masks = [np.ones(N, dtype=bool)] * 5 + [rare]
    gated = defined_on(runs, masks)
    plane = gated_plane(gated)
    assert plane["left_out"] == {"embednoise-0.5": N // 2 - 1}
    assert plane["n"] == N and "embednoise-0.5" not in plane["points"]
    without = gated_plane({name: run for name, run in gated.items() if name in plane["points"]})
    assert {**without, "left_out": plane["left_out"]} == plane
    masks[5] = np.arange(N) < N // 2  # half of them is enough, and now they are the common ones
    assert gated_plane(defined_on(runs, masks))["n"] == N // 2


def test_areas_of_equal_numbers_of_arms_only_and_dummies_are_none(tmp_path, runs):
    """Three sampling arms and three of noise; a control counts as neither."""
    found = gated_plane(runs)["hypervolume"]
    assert all(0 < found[kind]["low"] < found[kind]["value"] for kind in ("sampling", "noise"))
    control = Method(5.0, 0.9, arm={"positions": "dummy:8"})
    write_run(tmp_path, "dummy-8", control, n=N, families=8)
    [dummy] = read_runs([tmp_path])
    with_control = gated_plane({**runs, "dummy-8": dummy})
    assert "dummy-8" in with_control["points"]
    more = {**runs, "again": replace(runs["embednoise-0.1"], method="again")}
    told = gated_plane(more)["hypervolume"]
    assert told["sampling"] == told["noise"]
    assert told["noise"]["reason"].endswith("3 sampling and 4 noise")


def test_table_and_figure_say_where_the_plane_is_defined(runs):
    masks = [np.arange(N) > 2] * 5 + [np.arange(N) < 5]
    comparison = compare(list(defined_on(runs, masks).values()), draws=DRAWS)
    plane = next(p for p in comparison["planes"] if p["x"] == X)
    rows = {what: value for _, what, value in plane_table([plane])[1]}
    said = "21 of 24; left out, defined on fewer than half: embednoise-0.5 (5)"
    assert rows["problems where all are defined"] == said
    assert "3 sampling and 2 noise" in rows["hypervolume of noise"]
    figure = pareto_figure(comparison, X, [plane])
    [axis] = figure.axes
    assert any(text.get_text().startswith("n = 21,") for text in axis.texts)
    assert "fewer than half:\nembednoise-0.5 (5)" in axis.get_xlabel()
    drawn = {
        (float(line.get_xdata()[0]), float(line.get_ydata()[0]))
        for line in axis.lines
        if len(line.get_xdata()) == 1
    }
    expected = {(p["x"]["value"], p["y"]["value"]) for p in plane["points"].values()}
    assert expected <= drawn and len(expected) == 5
