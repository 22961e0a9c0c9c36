"""How samples fail: the classifier against labels made by hand, each rule, and the probe's sums."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_eval_embednoise.analysis.mechanism import failures
from lm_eval_embednoise.analysis.mechanism.failure_kinds import KINDS, kind_of, loops
from lm_eval_embednoise.analysis.records import read_runs
from lm_eval_embednoise.cli import main
from lm_eval_embednoise.sandbox.syntax import examine
from tests.support.synthetic import write_run

LABELLED = Path(__file__).parent / "data" / "failures"
DOC = {
    "prompt": 'def f(items, least):\n    """Add those of items above 7 and below least."""\n',
    "entry_point": "f",
}


def labelled(name: str) -> list[dict[str, Any]]:
    text = (LABELLED / f"{name}.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def judged(text: str, verdict: str = "wrong_answer", reason: str = "end_token") -> dict[str, Any]:
    """A failed record with the facts that the sandbox reads off the program."""
    code = DOC["prompt"] + text
    facts = examine(code, "f")
    compiled = facts["compiled"]
    valid = compiled and facts["defined"] and not facts["trivial"] and facts["undefined"] is None
    return {
        "text": text, "code": code, "passed": False, "finish_reason": reason, "detail": "",
        "compiled": compiled, "undefined": facts["undefined"], "valid": valid,
        "verdict": verdict if compiled else "syntax_error",
    }  # fmt: skip


@pytest.mark.parametrize(("name", "agree", "of"), [("development", 74, 75), ("reported", 30, 37)])
def test_agreement_with_labels_made_by_hand(name: str, agree: int, of: int) -> None:
    """The rules were made on the first file only; docs/mechanism.md reports the second."""
    found = labelled(name)
    same = sum(kind_of(one["record"], one["doc"]) == one["label"] for one in found)
    assert (same, len(found)) == (agree, of)
    assert {one["label"] for one in found} <= KINDS.keys()


@pytest.mark.parametrize(
    ("text", "verdict", "reason", "kind"),
    [
        ("    return sum(items))\n", "", "end_token", "syntax"),
        ("    return sum(values)\n", "runtime_error", "end_token", "copied wrongly"),
        ("    return sum(itmes[:least])\n", "runtime_error", "end_token", "copied wrongly"),
        ("    return zork + least + len(items)\n", "runtime_error", "end_token", "undefined name"),
        (
            "    return sum(x for x in items if 9 < x < least)\n",
            "wrong_answer", "end_token", "copied wrongly",
        ),
        (
            "    return sum(x for x in items if 8 <= x <= least)\n",
            "wrong_answer", "end_token", "wrong answer",
        ),
        ("    return items[least]\n", "runtime_error", "end_token", "runtime error"),
        ("    while least: least += 1\n", "timeout", "end_token", "timeout"),
        ("    pass\n", "wrong_answer", "end_token", "early end"),
        ("", "wrong_answer", "end_token", "early end"),
        ("    return sum(x for x in\n", "", "end_token", "early end"),
        ("    return sum(x for x in\n", "", "length", "truncation"),
        ("    total = 0\n" + "    total += 1\n" * 9 + "    tot", "", "length", "repetition loop"),
        ("8 * 4 = 32\n#### 32", "", "end_token", "change of language"),
        ("    返回 (列表的和 以及 其他\n", "", "end_token", "change of language"),
    ],
)  # fmt: skip
def test_each_rule(text: str, verdict: str, reason: str, kind: str) -> None:
    assert kind_of(judged(text, verdict, reason), DOC) == kind


def test_a_signature_is_the_prompts() -> None:
    record = judged("", "runtime_error")
    for code, kind in (
        ("def f(items):\n    return items[7]", "wrong signature"),
        ("def g(items, least):\n    return items[7]", "wrong signature"),
        ("def f(items, least, more=1):\n    return items[7]", "runtime error"),
        ("def f(*all):\n    return all[7]", "runtime error"),
    ):
        record |= {"text": code, "code": code, "compiled": True, "undefined": None, "valid": True}
        assert kind_of(record, DOC) == kind


@pytest.mark.parametrize(
    ("text", "valid", "kind"),
    [
        ("9 + 3 = 12\n#### 12", True, "copied wrongly"),
        ("8 + 4 = 13\n#### 13", True, "wrong answer"),
        ("8 + 4", False, "early end"),
        ("return 8 + 4\n#### 12", True, "change of language"),
    ],
)
def test_worked_answers(text: str, valid: bool, kind: str) -> None:
    record = {"text": text, "passed": False, "valid": valid, "finish_reason": "end_token"}
    assert kind_of(record, {"question": "Ann has 8 pens and 4 books. How many?"}) == kind


def test_passed_samples_have_no_kind() -> None:
    assert kind_of({"passed": True}, DOC) is None


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=60), compiled=st.booleans(), reason=st.sampled_from(["length", ""]))
def test_every_failure_has_one_kind_whatever_its_text(
    text: str, compiled: bool, reason: str
) -> None:
    record = {
        "text": text, "code": text, "passed": False, "compiled": compiled, "valid": compiled,
        "undefined": None, "verdict": "wrong_answer", "detail": "", "finish_reason": reason,
    }  # fmt: skip
    assert kind_of(record, DOC) in KINDS


def naive_loops(tokens: list[str]) -> bool:
    """The definition: some block of 1 to 60 tokens, four times and 20 tokens at the end."""
    for size in range(1, 61):
        whole = tokens[-max(4 * size, 20) :]
        if len(whole) < max(4 * size, 20):
            continue
        if all(whole[i] == whole[i % size] for i in range(len(whole))):
            return True
    return False


@settings(max_examples=200, deadline=None)
@given(
    head=st.lists(st.sampled_from("abc"), max_size=9),
    block=st.lists(st.sampled_from("abc"), min_size=1, max_size=8),
    times=st.integers(0, 25),
)
def test_a_loop_is_a_block_over_and_over(head: list[str], block: list[str], times: int) -> None:
    tokens = head + block * times
    assert loops(" ".join([*tokens, "cut"])) == naive_loops(tokens)


def test_numbers_in_a_loop_may_count() -> None:
    assert loops("".join(f"if n == {i}: return x == {i * i}\n" for i in range(5)))
    assert not loops("".join(f"if n == {i}: return x == {i * i}\n" for i in range(3)))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, failures.Anatomy]:
    """Two methods on 24 problems: one never fails, one fails the hardest half by its syntax."""
    path = write_run(tmp_path_factory.mktemp("runs"), "greedy", n=24, k=4, families=None)
    run = read_runs([path])[0]
    none = np.zeros((24, len(KINDS)))
    planted = none.copy()
    planted[12:, list(KINDS).index("syntax")] = 1
    lengths = np.arange(24.0)
    return {
        name: failures.Anatomy(replace(run, method=name), shares, lengths, {})
        for name, shares in (("greedy", none), ("temp-0.8", planted))
    }


def test_a_planted_kind_is_found_with_what_it_costs(found: dict[str, failures.Anatomy]) -> None:
    greedy, warm = failures.table(found)
    assert greedy["passed"]["value"] == 1 and warm["passed"]["value"] == 0.5
    assert warm["kinds"]["syntax"]["value"] == 0.5
    assert warm["kinds"]["syntax"]["low"] > 0.2 and warm["kinds"]["wrong answer"]["value"] == 0
    (exchange,) = warm["exchange"]
    assert (exchange["against"], exchange["gained"], exchange["lost"]) == ("greedy", 0, 12)
    assert exchange["p_mcnemar"] == pytest.approx(2 * 0.5**12)
    assert exchange["p_permutation"] < 0.01 and exchange["difference"] == -0.5
    assert exchange["kinds"]["syntax"]["difference"] == 0.5
    assert exchange["kinds"]["syntax"]["p"] == exchange["p_permutation"]
    assert exchange["kinds"]["timeout"]["difference"] == 0
    assert [part["lost"] for part in exchange["by"]["prompt length"].values()] == [0, 4, 8]


def test_shuffled_failures_differ_from_nothing(found: dict[str, failures.Anatomy]) -> None:
    warm = found["temp-0.8"]
    rng = np.random.default_rng(0)
    p = []
    for _ in range(40):
        parts = [rng.permutation(warm.shares) for _ in range(2)]
        first, second = (replace(warm, shares=shares) for shares in parts)
        p.append(failures.exchange(first, second, warm.passed)["p_permutation"])
    assert np.mean(np.array(p) < 0.05) <= 0.15


def test_thirds_keep_equal_values_together() -> None:
    assert failures.thirds(np.array([0.0, 0, 0, 1, 1, 1])).tolist() == [0, 0, 0, 1, 1, 1]
    assert Counter(failures.thirds(np.arange(9.0)).tolist()) == {0: 3, 1: 3, 2: 3}


def test_the_command_reads_results_and_writes_all_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("greedy", "temp-0.8", "embednoise-0.5"):
        write_run(tmp_path / "in", name, n=6, k=3)
    out = tmp_path / "out"
    assert main(["probe", "failures", "--results", str(tmp_path / "in"), "--out", str(out)]) == 0
    content = json.loads((out / "failures" / "table.json").read_text())
    assert [row["method"] for row in content["rows"]] == ["greedy", "temp-0.8", "embednoise-0.5"]
    for row in content["rows"]:
        total = row["passed"]["value"] + sum(kind["value"] for kind in row["kinds"].values())
        assert total == pytest.approx(1)
    arrays = np.load(out / "failures" / "shares.npz")
    assert {a.shape for a in arrays.values()} == {(6, len(KINDS))}
    assert len(list(out.glob("failures/*.svg"))) == 1
    given = ["--results", str(tmp_path / "in"), "--methods", "temp-9", "--out", str(out)]
    assert main(["probe", "failures", *given]) == 1
    assert "no run of temp-9; there are embednoise-0.5" in capsys.readouterr().err
