"""The report's section on the mechanism: tables and figures of probes, in the page and escaped."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from lm_eval_embednoise.analysis import schema
from lm_eval_embednoise.analysis.comparison import compare
from lm_eval_embednoise.analysis.mechanism import section
from lm_eval_embednoise.analysis.records import read_runs
from lm_eval_embednoise.analysis.runs import ResultError
from lm_eval_embednoise.cli import main
from tests.support.synthetic import write_run

if TYPE_CHECKING:
    from pathlib import Path

ROWS = [
    {"method": "a<b", "task": "t", "n": 40, "passed": {"value": 0.51234, "low": 0.4, "high": 0.6}},
    {"method": "c", "task": "t", "n": 40, "passed": {"value": None, "low": None, "high": None}},
]


@pytest.fixture
def probes(tmp_path: Path) -> Path:
    folder = tmp_path / "mechanism"
    for name, rows in (("failures", ROWS), ("early", [{"method": "m", "total": 0.5}] * 2)):
        (folder / name).mkdir(parents=True)
        (folder / name / "table.json").write_text(json.dumps({"probe": name, "rows": rows}))
    (folder / "failures" / "bars.svg").write_text('<?xml version="1.0"?>\n<svg id="drawn"></svg>')
    return folder


def test_rows_are_flattened_and_what_is_common_is_said_once(probes: Path) -> None:
    early, failures = section.read(probes)
    assert failures.table == (["method", "passed"], [["a<b", "0.512"], ["c", ""]])
    assert failures.same == "task t, n 40" and failures.left_out == 0
    assert early.same == "method m, total 0.5" and early.table[0] == []
    wide = {f"column {i}": float(i) for i in range(20)}
    path = probes / "early" / "table.json"
    path.write_text(json.dumps({"rows": [wide, dict.fromkeys(wide, -1.0)]}))
    assert section.read(probes)[0].left_out == 8


def test_tests_are_a_difference_and_its_p() -> None:
    test = {"difference": {"value": 0.25, "low": 0.1}, "p_permutation": 0.04, "n": 9}
    row = {"means": {"vendi": 2.0}, "tests": {"vendi": test}, "exchange": [{"gained": 1}]}
    assert dict(section.flat(row)) == {"vendi": 2.0, "Δ vendi": 0.25, "p vendi": 0.04}


def test_the_page_has_the_section_where_it_is_asked_for(probes: Path, tmp_path: Path) -> None:
    for name in ("greedy", "temp-0.8"):
        write_run(tmp_path / "in", name, n=6, k=3)
    found = compare(read_runs([tmp_path / "in"]), draws=50)
    schema.write(found, tmp_path / "comparison.json")
    page = tmp_path / "report.html"
    assert main(["report", str(tmp_path / "comparison.json")]) == 0
    assert "Why: the probes" not in page.read_text()
    given = ["report", str(tmp_path / "comparison.json"), "--mechanism", str(probes)]
    assert main(given) == 0
    text = page.read_text()
    assert "Why: the probes" in text and '<svg id="drawn">' in text
    assert "a&lt;b" in text and "a<b" not in text


def test_a_folder_without_probes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match=r"no probe's table\.json under"):
        section.read(tmp_path)
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "table.json").write_text("[]")
    with pytest.raises(ResultError, match="is not a probe's table"):
        section.read(tmp_path)
