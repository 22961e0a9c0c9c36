"""comparison.json: schema, pairs, planes, verdict, output files, and refusals."""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from scipy import stats as scipy_stats

from lm_eval_embednoise.analysis import compare as command
from lm_eval_embednoise.analysis import figures, labels, pareto, schema, tables, verdict
from lm_eval_embednoise.analysis.comparison import compare
from lm_eval_embednoise.analysis.methods import method_order
from lm_eval_embednoise.analysis.protocol import Protocol
from lm_eval_embednoise.analysis.records import read_runs
from lm_eval_embednoise.analysis.resample import Estimate
from lm_eval_embednoise.analysis.runs import ResultError
from lm_eval_embednoise.analysis.statement import statement, wrapped
from tests.support.synthetic import METHODS, Method, write_run, write_study

DRAWS = 300


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return read_runs([write_study(tmp_path_factory.mktemp("study"), n=30)])


@pytest.fixture(scope="module")
def comparison(runs):
    return compare(runs, candidate="embednoise-0.1", draws=DRAWS)


def entry(comparison, part, **wanted):
    [found] = [
        item for item in comparison[part] if all(item[key] == v for key, v in wanted.items())
    ]
    return found


def test_it_fits_its_schema_and_holds_no_nan(comparison):
    text = json.dumps(comparison, allow_nan=False)
    jsonschema.validate(json.loads(text), schema.comparison_schema())
    schema.validate(comparison)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda c: c.pop("pairs"), "comparison lacks 'pairs'"),
        (lambda c: c.update(extra=1), "comparison has an unknown key 'extra'"),
        (
            lambda c: c["leaderboard"][0].update(n="many"),
            "comparison.leaderboard[0].n is 'many', not integer",
        ),
        (
            lambda c: c["leaderboard"][0].update(k=True),
            "comparison.leaderboard[0].k is True, not integer",
        ),
        (
            lambda c: c["verdicts"][0].update(verdict="perhaps"),
            "comparison.verdicts[0].verdict is 'perhaps', not one of ['success', 'partial', ",
        ),
        (
            lambda c: c.update(schema="another/1"),
            "comparison.schema is 'another/1', not one of ['lm-eval-embednoise/comparison/1', ",
        ),
        (lambda c: c.pop("vectors"), "comparison lacks 'vectors'"),
        (
            lambda c: c["vectors"][0]["runs"][1]["metrics"]["distinct_2"].append("0.5"),
            "comparison.vectors[0].runs[1].metrics.distinct_2[30] is '0.5', not number or null",
        ),
        (
            lambda c: c["vectors"][0]["runs"][1]["correct"].append(True),
            "comparison.vectors[0].runs[1].correct[30] is True, not integer",
        ),
        (
            lambda c: c["pairs"][0]["metrics"]["pass@1"]["difference"].pop("reason"),
            "comparison.pairs[0].metrics.pass@1.difference lacks 'reason'",
        ),
    ],
)
def test_own_validator_agrees_with_jsonschema(comparison, damage, said):
    damaged = json.loads(json.dumps(comparison))
    damage(damaged)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(damaged, schema.comparison_schema())
    with pytest.raises(ResultError, match=re.escape(said)):
        schema.validate(damaged)


def test_a_file_with_a_metrics_old_name_is_read():
    path = Path(__file__).parents[1] / "docs" / "results" / "real" / "comparison.json"
    old = json.loads(path.read_text(encoding="utf-8"))
    new = schema.read(path)
    assert all("perplexity" in row["metrics"] for row in old["leaderboard"])
    for part in ("leaderboard", "pairs"):
        for before, after in zip(old[part], new[part], strict=True):
            assert not {"perplexity", "bits_per_byte"} & after["metrics"].keys()
            renamed = {
                f"clean_{metric}" if metric in ("perplexity", "bits_per_byte") else metric: value
                for metric, value in before["metrics"].items()
            }
            assert after == {**before, "metrics": renamed}
            assert list(after["metrics"]) == list(renamed)


def test_a_pair_holds_what_its_differences_say(runs, comparison):
    [a], [b] = (
        [r for r in runs if (r.method, r.task) == (name, "minicode_diverse")]
        for name in ("temp-1.5", "temp-0.8")
    )
    d = np.round(a.metrics["pass@10"] - b.metrics["pass@10"], 10)
    pair = entry(comparison, "pairs", method="temp-1.5", task="minicode_diverse")
    found = pair["metrics"]["pass@10"]
    assert found["difference"]["value"] == pytest.approx(d.mean())
    assert (found["wins"], found["ties"], found["losses"]) == (
        np.sum(d > 0),
        np.sum(d == 0),
        np.sum(d < 0),
    )
    assert found["difference"]["low"] < d.mean() < found["difference"]["high"]
    # Lower self-BLEU is better: more diverse on every problem means 30 wins.
    assert pair["metrics"]["self_bleu"]["wins"] == 30


def test_clusters_are_resampled_and_said(tmp_path, comparison):
    assert (
        entry(comparison, "leaderboard", method="greedy", task="minicode_diverse")["clusters"] == 10
    )
    for name in ("temp-0.8", "temp-1.5"):
        write_run(tmp_path, name, families=None, n=20)
    alone = compare(read_runs([tmp_path]), draws=DRAWS)
    assert alone["leaderboard"][0]["clusters"] is None
    [pair] = alone["pairs"]
    runs = {run.method: run for run in read_runs([tmp_path])}
    d = runs["temp-1.5"].metrics["pass@1"] - runs["temp-0.8"].metrics["pass@1"]
    theirs = scipy_stats.wilcoxon(np.round(d, 10), zero_method="pratt", method="asymptotic")
    assert pair["metrics"]["pass@1"]["p_wilcoxon"] == pytest.approx(theirs.pvalue)


def test_undefined_values_are_counted_and_null_has_a_reason(comparison):
    pair = entry(comparison, "pairs", method="embednoise-1", task="minicode_diverse")
    gated = pair["metrics"]["distinct_2_valid"]
    assert gated["n_undefined"] > 0
    assert gated["n"] + gated["n_undefined"] == 30

    def estimates(value):
        if isinstance(value, dict):
            if {"value", "low", "high", "reason"} <= value.keys():
                yield value
            for item in value.values():
                yield from estimates(item)
        elif isinstance(value, list):
            for item in value:
                yield from estimates(item)

    found = list(estimates(comparison))
    assert len(found) > 100
    for estimate in found:
        if estimate["value"] is None or estimate["low"] is None:
            assert estimate["reason"]


def test_one_problem_is_reported_without_tests(tmp_path):
    for name in ("temp-0.8", "greedy"):
        write_run(tmp_path, name, n=1)
    [pair] = compare(read_runs([tmp_path]), draws=DRAWS)["pairs"]
    found = pair["metrics"]["pass@1"]
    assert found["p_wilcoxon"] is None
    assert found["difference"]["low"] is None
    assert "one problem" in found["difference"]["reason"]


def test_missing_baseline_or_candidate_names_what_is_there(runs):
    with pytest.raises(ResultError, match=r"baseline 'temp-9' has no results .* there are: greedy"):
        compare(runs, baseline="temp-9", draws=DRAWS)
    with pytest.raises(ResultError, match="candidate 'x' has no results"):
        compare(runs, candidate="x", draws=DRAWS)


def test_replicates_give_the_floor(tmp_path):
    for replicate in range(2):
        for name in ("temp-0.8", "greedy"):
            write_run(tmp_path / str(replicate), name, n=20, replicate=replicate)
    found = compare(read_runs([tmp_path]), draws=DRAWS)
    floor = entry(found, "floor", method="temp-0.8")
    assert floor["seeds"] == [0, 1]
    estimate = floor["metrics"]["pass@1"]
    assert estimate["low"] <= 0 <= estimate["high"]


def test_methods_are_listed_by_dose():
    names = ["embednoise-0.5", "zeta", "temp-1.5", "embednoise-0.05", "greedy", "temp-0.8"]
    assert sorted(names, key=method_order) == [
        *("greedy", "temp-0.8", "temp-1.5", "embednoise-0.05", "embednoise-0.5", "zeta")
    ]


# ---- the plane


def test_front_by_hand():
    x = np.array([0.1, 0.2, 0.3, 0.2, np.nan])
    y = np.array([0.9, 0.9, 0.5, 0.4, 1.0])
    np.testing.assert_array_equal(pareto.front(x, y), [False, True, True, False, False])


def test_equal_points_are_both_on_the_front():
    np.testing.assert_array_equal(pareto.front(np.ones(2), np.ones(2)), [True, True])


def test_hypervolume_equals_counting():
    rng = np.random.default_rng(0)
    x, y = rng.random((2, 6))
    grid = (np.arange(1000) + 0.5) / 1000
    covered = ((grid[:, None, None] < x) & (grid[None, :, None] < y)).any(-1).mean()
    assert pareto.hypervolume(x, y) == pytest.approx(covered, abs=2e-3)
    stacked = pareto.hypervolume(np.stack([x, y]), np.stack([y, x]))
    assert stacked[0] == pytest.approx(stacked[1])


def test_a_dominated_point_adds_no_volume():
    assert pareto.hypervolume(np.array([1.0, 0.5]), np.array([1.0, 0.5])) == 1.0
    assert pareto.hypervolume(np.array([np.nan]), np.array([0.5])) == 0.0


def test_matched_difference_is_the_height_over_the_curve():
    curve_x, curve_y = np.array([0.5, 0.1, 0.3]), np.array([0.2, 0.8, 0.6])
    rng = np.random.default_rng(1)
    x = rng.uniform(0.1, 0.5, 50)
    y = rng.random(50)
    order = np.argsort(curve_x)
    expected = y - np.interp(x, curve_x[order], curve_y[order])
    found = pareto.matched_difference(x, y, np.tile(curve_x, (50, 1)), np.tile(curve_y, (50, 1)))
    np.testing.assert_allclose(found, expected)
    assert np.isnan(pareto.matched_difference(np.array(0.6), np.array(0.5), curve_x, curve_y)).all()


def test_matched_difference_outside_the_curve_is_null_with_the_range(comparison):
    plane = entry(comparison, "planes", task="minicode_diverse", x="distinct_2")
    assert plane["curve"] == ["greedy", "temp-0.8", "temp-1.5"]
    assert "outside the curve" in plane["matched"]["embednoise-1"]["reason"]
    inside = plane["matched"]["nucleus-0.95"]
    assert inside["low"] <= inside["value"] <= inside["high"]


# ---- the verdict


@pytest.mark.parametrize(
    ("low", "high", "status"),
    [(0.1, 0.2, "met"), (-0.2, -0.1, "refuted"), (-0.1, 0.1, "open"), (np.nan, np.nan, "open")],
)
def test_endpoint_status(low, high, status):
    assert verdict.endpoint_status(Estimate(0.0, low, high, 10), 0.0) == status


@pytest.mark.parametrize(
    ("code", "maths", "expected"),
    [
        ("success", "success", "success"),
        ("success", "null", "partial"),
        ("success", "inconclusive", "partial"),
        ("null", "null", "null"),
        ("null", "inconclusive", "inconclusive"),
        ("success", "refuted", "partial"),
        ("null", "refuted", "inconclusive"),
        ("inconclusive", "success", "inconclusive"),
    ],
)
def test_overall_verdict(code, maths, expected):
    tasks = [{"domain": "code", "outcome": code}, {"domain": "maths", "outcome": maths}]
    value, why = verdict.overall(tasks)
    assert value == expected
    assert f"{code} on code" in why
    assert f"{maths} on maths" in why


def verdict_for(tmp_path, candidate: Method, protocol=None, **settings):
    """The verdict on one synthetic method, with everything the protocol asks for in place."""
    protocol = protocol or Protocol.load()
    for name in ("greedy", "temp-0.8", "temp-1.5", "nucleus-0.95"):
        write_study(tmp_path, {name: METHODS[name]}, protocol=protocol.hash, **settings)
    write_study(tmp_path, {"temp-tuned": METHODS["temp-0.8"]}, protocol=protocol.hash, **settings)
    write_study(tmp_path, {"star": candidate}, protocol=protocol.hash, **settings)
    for name, dose in (("star", candidate.sigma), ("temp-tuned", 0.8)):
        for path in (tmp_path / name).rglob("results_*.json"):
            content = json.loads(path.read_text())
            [(task, config)] = content["configs"].items()
            content["config"]["embednoise"]["calibration"] = {
                "problems": [],
                "dose": dose,
                "constraint_met": True,
                "protocol": protocol.hash,
                "task": task,
                "k": config["repeats"],
            }
            path.write_text(json.dumps(content))
    found = compare(read_runs([tmp_path]), candidate="star", draws=DRAWS, protocol=protocol)
    schema.validate(found)
    return found["verdicts"][0]


def test_a_better_method_succeeds_and_is_confirmatory(tmp_path):
    found = verdict_for(tmp_path, Method(1.0, 0.3, sigma=0.1), n=220, families=None)
    assert (found["verdict"], found["status"]) == ("success", "confirmatory")
    assert found["deviations"] == []


def test_no_gain_in_diversity_is_null(tmp_path):
    found = verdict_for(tmp_path, Method(0.0, 0.2, sigma=0.1), n=150, families=None)
    assert found["verdict"] == "null"


def test_a_loss_of_correctness_is_null(tmp_path):
    lossy = Method(-6.0, 0.5, sigma=0.1)
    found = verdict_for(tmp_path, lossy, n=60, families=None)
    assert found["verdict"] == "null"
    assert "null on code" in found["why"]
    correctness = found["tasks"][0]["endpoints"][0]
    assert (correctness["name"], correctness["status"]) == ("correctness", "refuted")


def test_version_1_is_read_and_judged_as_such(tmp_path):
    """A loss of correctness was `refuted` then, and no null."""
    data = Path(__file__).parent / "data"
    old = Protocol.load(data / "protocol-1.yaml")
    assert old.version == 1 and old.hash == "4cb42a85223804e5"  # as the results of then carry it
    lossy = Method(-6.0, 0.5, sigma=0.1)
    found = verdict_for(tmp_path, lossy, protocol=old, n=60, families=None)
    assert found["verdict"] == "inconclusive" and "refuted on code" in found["why"]
    assert found["status"] == "confirmatory" and found["deviations"] == []
    assert [e["name"] for e in found["tasks"][0]["endpoints"]] == [
        *("correctness", "diversity", "diversity, gated", "coherence")
    ]
    later = json.dumps({**Protocol.load().content, "version": 3})
    (tmp_path / "later.yaml").write_text(later)
    with pytest.raises(ResultError, match="version 3; known: 1 to 2"):
        Protocol.load(tmp_path / "later.yaml")


def test_a_loss_of_coherence_is_null(tmp_path):
    broken = Method(-1.5, 0.5, sigma=0.1, compile_rate=0.5)
    found = verdict_for(tmp_path, broken, n=40, families=None)
    assert [task["outcome"] for task in found["tasks"]][:1] == ["null"]


@pytest.mark.parametrize(
    ("correctness", "diversity", "gated", "coherence", "outcome"),
    [
        ("met", "met", "met", "open", "success"),
        ("met", "met", "met", "refuted", "success"),  # the rule's order: success comes first
        ("met", "met", "open", "met", "inconclusive"),
        ("met", "met", "refuted", "met", "refuted"),
        ("refuted", "met", "met", "met", "refuted"),
        ("refuted", "refuted", "met", "met", "null"),
        ("met", "met", "open", "refuted", "null"),
        ("open", "open", "open", "open", "inconclusive"),
    ],
)
def test_the_outcome_of_a_task_by_version_1(correctness, diversity, gated, coherence, outcome):
    status = {"correctness": correctness, "diversity": diversity, "diversity, gated": gated}
    assert verdict.task_outcome_1({**status, "coherence": coherence}) == outcome


NAMES = ("correctness", "coherence", "diversity", "diversity, rarefied", "solutions")


@pytest.mark.parametrize("name", NAMES)
def test_harm_first_and_every_form(name):
    """One endpoint refuted is null whatever the others say; one open keeps from success."""
    met = dict.fromkeys(NAMES, "met")
    assert verdict.task_outcome(met) == "success"
    assert verdict.task_outcome({**met, name: "refuted"}) == "null"
    assert verdict.task_outcome({**met, name: "open"}) == "inconclusive"
    rest = dict.fromkeys(NAMES, "open")
    assert verdict.task_outcome({**rest, name: "refuted"}) == "null"


def test_three_problems_decide_nothing(tmp_path):
    found = verdict_for(tmp_path, Method(-6.0, 0.01, sigma=0.1), n=3, k=20)
    [first, *_] = found["tasks"]
    assert {e["status"] for e in first["endpoints"]} == {"open"}
    assert "3 independent problems can't decide" in first["endpoints"][1]["estimate"]["reason"]
    assert first["endpoints"][1]["estimate"]["value"] is not None


def test_an_endpoint_that_was_not_measured_is_a_departure(tmp_path):
    found = verdict_for(tmp_path, Method(0.0, 0.2, sigma=0.1), n=12, k=4)
    assert found["status"] == "exploratory"
    assert "pass@10 was not measured on minicode_diverse (K = 4)" in found["deviations"]


def test_few_problems_are_inconclusive(tmp_path):
    found = verdict_for(tmp_path, Method(-0.3, 0.25, sigma=0.1), n=12, families=None)
    assert found["verdict"] == "inconclusive"


def test_departures_make_it_exploratory(comparison):
    [found] = comparison["verdicts"]
    said = " ".join(found["deviations"])
    assert found["status"] == "exploratory"
    assert "no protocol was stored" in said
    assert "temp-tuned" in said
    assert "calibrate" in said


def test_the_protocol_hash_is_of_its_content(tmp_path):
    protocol = Protocol.load()
    assert protocol.level == pytest.approx(0.99)
    text = json.dumps(protocol.content)
    (tmp_path / "same.yaml").write_text("# a comment\n" + text)
    assert Protocol.load(tmp_path / "same.yaml").hash == protocol.hash
    (tmp_path / "other.yaml").write_text(text.replace("0.05", "0.06"))
    assert Protocol.load(tmp_path / "other.yaml").hash != protocol.hash
    (tmp_path / "bad.yaml").write_text("name: x\nextra: 1")
    with pytest.raises(ResultError, match=r"missing .*unknown \['extra'\]"):
        Protocol.load(tmp_path / "bad.yaml")


# ---- outputs


def test_the_command_writes_everything_or_nothing(tmp_path, capsys):
    write_study(tmp_path / "in", {k: METHODS[k] for k in ("temp-0.8", "greedy")}, n=10)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    out = tmp_path / "out" / "comparison.json"
    assert command.run(parser.parse_args([str(tmp_path / "in"), "--out", str(out)])) == 0
    names = {path.name for path in out.parent.iterdir()}
    assert names == {f"comparison.{end}" for end in ("json", "csv", "md")} | {
        "pareto.png",
        "pareto.svg",
    }
    assert schema.read(out)["analysis"]["baseline"] == "temp-0.8"
    shown = capsys.readouterr().out
    assert "paired difference from temp-0.8" in shown
    assert "What it can show" in shown
    (tmp_path / "empty").mkdir()
    bad = parser.parse_args([str(tmp_path / "empty"), "--out", str(tmp_path / "none.json")])
    with pytest.raises(ResultError):
        command.run(bad)
    assert not (tmp_path / "none.json").exists()


def test_every_field_of_the_schema_is_documented():
    text = (Path(__file__).parents[1] / "docs" / "comparison.md").read_text(encoding="utf-8")

    def names(schema):
        for name, part in schema.get("properties", {}).items():
            yield name
            yield from names(part)
        for part in schema.get("$defs", {}).values():
            yield from names(part)
        for key in ("items", "additionalProperties"):
            if isinstance(schema.get(key), dict):
                yield from names(schema[key])

    told = [" ".join(match) for match in re.findall(r"`([^`]*)`|^## (\w+)", text, re.M)]
    documented = set(re.findall(r"\w+", " ".join(told)))
    found = set(names(schema.comparison_schema()))
    assert len(found) > 60
    assert found <= documented, sorted(found - documented)


def test_tied_and_undefined_metrics_are_reported_without_tests_or_crash(tmp_path):
    """All values equal on both sides, and a metric that no problem defines."""
    nothing = {"distinct_2_valid": float("nan"), "pass@1": 0.5, "pass@10": 1.0}
    changes = {f"minicode_diverse/{i}": nothing for i in range(12)}
    for name in ("temp-0.8", "embednoise-0.1"):
        write_run(tmp_path, name, n=12, changes=changes)
    found = compare(read_runs([tmp_path]), candidate="embednoise-0.1", draws=DRAWS)
    schema.validate(found)
    [pair] = found["pairs"]
    tied, undefined = (pair["metrics"][name] for name in ("pass@1", "distinct_2_valid"))
    assert (tied["ties"], tied["p_wilcoxon"], tied["effect"]) == (12, 1.0, 0.0)
    assert tied["difference"]["reason"] == "no variation between problems"
    assert undefined["n_undefined"] == 12
    assert undefined["p_wilcoxon"] is None
    assert undefined["difference"]["value"] is None
    assert undefined["difference"]["reason"]
    [verdict] = found["verdicts"]
    gated = verdict["tasks"][0]["endpoints"][2]
    assert gated["status"] == "open"
    assert "undefined on every problem" in gated["estimate"]["reason"]
    assert re.search(r"^embednoise-0\.1 +\+0\.0 \[", tables.terminal(found), re.MULTILINE)


def test_one_problem_or_unpaired_folders_leave_nothing_behind(tmp_path):
    write_run(tmp_path / "in", "temp-0.8", n=6)
    write_run(tmp_path / "in", "greedy", n=5)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    out = tmp_path / "out" / "comparison.json"
    with pytest.raises(ResultError, match=r"1 problems only in .*run both with the same tasks"):
        command.run(parser.parse_args([str(tmp_path / "in"), "--out", str(out)]))
    with pytest.raises(ResultError, match=r"name that ends in \.json"):
        command.run(parser.parse_args([str(tmp_path / "in"), "--out", "table"]))
    assert not out.parent.exists()


def test_noninferiority_follows_the_interval(comparison):
    for pair in comparison["pairs"]:
        for metric, test in pair["metrics"].items():
            told = test["noninferiority"]
            if told is None:
                assert metric not in ("pass@1", "pass@10", "compile_rate", "accuracy")
                continue
            low, high = test["difference"]["low"], test["difference"]["high"]
            expected = "open"
            if low > -told["margin"]:
                expected = "non-inferior"
            elif high < -told["margin"]:
                expected = "inferior"
            assert told["status"] == expected


def test_the_cost_of_a_solution_is_a_ratio_of_totals(runs, comparison):
    [run] = [r for r in runs if (r.method, r.task) == ("temp-0.8", "minicode_diverse")]
    row = entry(comparison, "leaderboard", method="temp-0.8", task="minicode_diverse")
    cost = row["cost"]["tokens_per_unique_correct"]
    spent = run.k * run.metrics["mean_tokens"].sum()
    assert cost["value"] == pytest.approx(spent / run.metrics["unique_correct"].sum())
    assert cost["low"] < cost["value"] < cost["high"]
    assert row["cost"]["seconds_per_sample"]["reason"]  # no seconds in these results


def test_the_candidates_family_is_tabled(tmp_path, comparison):
    rows, _ = next(iter(tables.by_task(comparison)))
    header, body = tables.family(comparison, rows)
    assert header[:4] == ["against", "pass@10, points [95 % interval]", "p", "p Bonferroni"]
    assert [line[0] for line in body] == ["temp-0.8", "greedy", "temp-1.5", "nucleus-0.95"]
    lines = tables.markdown(comparison).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| against"))
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[start:]]
    assert cells[0] == header
    assert cells[2 : 2 + len(body)] == body


def test_a_value_outside_the_schema_is_not_written(tmp_path, comparison):
    with pytest.raises(ResultError):
        schema.write({**comparison, "extra": 1}, tmp_path / "c.json")
    assert list(tmp_path.iterdir()) == []


def test_csv_and_markdown_hold_the_numbers(comparison):
    lines = list(csv.DictReader(io.StringIO(tables.as_csv(comparison))))
    assert len(lines) == sum(len(row["metrics"]) for row in comparison["leaderboard"])
    [line] = [
        item
        for item in lines
        if (item["method"], item["task"], item["metric"])
        == ("greedy", "minicode_diverse", "pass@1")
    ]
    row = entry(comparison, "leaderboard", method="greedy", task="minicode_diverse")
    assert float(line["value"]) == row["metrics"]["pass@1"]["value"]
    cells = [re.split(r" *\| *", line) for line in tables.markdown(comparison).splitlines()]
    [shown] = [row for row in cells if row[1:2] == ["greedy"]][:1]
    estimate = row["metrics"]["pass@1"]
    low, high = (f"{100 * estimate[side]:.1f}" for side in ("low", "high"))
    assert shown[2] == f"{100 * estimate['value']:.1f} [{low}, {high}]"


def test_the_statement_says_what_was_run_and_its_limits(comparison):
    text = " ".join(statement(comparison))
    assert max(map(len, wrapped(comparison).splitlines())) <= 100
    assert "1 model × 2 tasks × 9 methods, 10,800 samples" in text
    assert "no evidence that there is none" in text


def test_figure_labels_do_not_overlap(comparison):
    figure = figures.pareto_figure(comparison)
    renderer = figure.canvas.get_renderer()
    for axis in figure.axes:
        names = [t for t in axis.texts if t.get_text() in METHODS or t.get_text().startswith("emb")]
        assert len(names) == 9
        boxes = [text.get_window_extent(renderer) for text in names]
        for i, a in enumerate(boxes):
            assert not any(a.overlaps(b) for b in boxes[i + 1 :])


def test_labels_stay_inside_and_apart_even_when_points_coincide():
    points = np.full((6, 2), 200.0)
    sizes = np.tile([60.0, 10.0], (6, 1))
    centres = labels.place(points, sizes, (0, 0, 400, 400), np.empty((0, 4)))
    low, high = centres - sizes / 2, centres + sizes / 2
    assert (low >= 0).all()
    assert (high <= 400).all()
    for i in range(6):
        for j in range(i):
            assert (low[i] >= high[j]).any() or (low[j] >= high[i]).any()


def test_figures_are_reproducible(tmp_path, comparison):
    first = figures.save(figures.pareto_figure(comparison), tmp_path / "a", "pareto")
    second = figures.save(figures.pareto_figure(comparison), tmp_path / "b", "pareto")
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
