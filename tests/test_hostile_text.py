"""Whatever a model or its program writes, comparing says yes or no and never throws."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_eval_embednoise.sandbox import Job, extraction, reader, run_programs, wire
from lm_eval_embednoise.scoring import compare, extract, judge, latex, maths
from lm_eval_embednoise.scoring.filters import CodeRecords, MathRecords
from lm_eval_embednoise.scoring.records import math_record

WORDS = (
    *(
        "sNaN",
        "-sNaN12",
        "NaN",
        "inf",
        "-Infinity",
        "1e999999999",
        "1e-999999999",
        "1e9" + "9" * 30,
    ),
    *(
        "9" * 5000,
        "0." + "0" * 5000 + "1",
        "1_000",
        "_",
        "+",
        "-",
        ".",
        "0x1p3",
        "\u0663",
        "\u00b2",
    ),
    *(
        "\ud800",
        "\0",
        "\x85",
        "\u2028",
        "True",
        "[1]",
        "{",
        "}",
        "$",
        "####",
        "\\boxed",
        "\\boxed{",
    ),
    *("\\fbox", "\\frac{1}{0}", "\\sqrt{", "answer is", "#### " + "9" * 2000, "#### -.,.", "5"),
)
texts = st.lists(
    st.sampled_from(WORDS) | st.text(max_size=6) | st.decimals(allow_nan=True).map(str), max_size=6
).map(" ".join) | st.text(alphabet="0123456789.,-+eE #$\\{}boxedsNaif\n\t", max_size=40)


@settings(deadline=None, max_examples=300)
@given(texts, texts)
def test_outputs_are_compared_without_an_exception(output: str, expected: str) -> None:
    for same in (compare.livecodebench_printed, compare.apps_printed):
        assert same(output, expected) in (True, False)
        assert same(expected, expected) is True


@settings(deadline=None, max_examples=300)
@given(texts)
def test_answers_are_extracted_without_an_exception(text: str) -> None:
    for form in (maths.MARKED, maths.BOXED):
        assert isinstance(form.extract(text), (str, type(None)))
    record = math_record(text, 0, "5", maths.MARKED)
    assert record["passed"] == (record["answer"] == "5")


def test_a_million_digits_are_no_answer_and_nothing_is_rounded() -> None:
    assert maths.extract_answer("#### " + "9" * 1_000_000) is None
    assert maths.normalise("9" * 120) == "9" * 120
    assert maths.normalise("1." + "0" * 60 + "1") == "1." + "0" * 60 + "1"
    assert maths.normalise("1,200.0") == "1200"


def test_a_long_answer_is_not_parsed() -> None:
    pytest.importorskip("math_verify")
    start = time.process_time()
    assert not latex.same_answer("(" * 5000 + "5", "5")
    assert latex.same_answer("5" * 5000, " " + "5" * 5000)
    assert time.process_time() - start < 1.0  # math-verify would try for five seconds


def test_a_program_that_prints_what_cannot_be_compared_is_wrong() -> None:
    doc = {"grader": "livecodebench", "task_id": "a", "entry_point": None, "tests": ""}

    def outcome(program: str) -> str:
        return judge._judge_printed(
            lambda job: run_programs([job], progress=False)[0],
            program,
            [("", "1.0")],
            doc["grader"] or "",
            Job("").limits,
        ).verdict

    assert [outcome(f"print({text!r})") for text in ("sNaN", "1", "x")] == [
        "wrong_answer",
        "passed",
        "wrong_answer",
    ]


def _explode(*_: object) -> bool:
    raise ZeroDivisionError("planted")


def test_what_raises_while_an_output_is_compared_makes_that_sample_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    doc = {"grader": "apps", "task_id": "a", "entry_point": None, "tests": "", "prompt": ""}
    monkeypatch.setattr(judge, "_tests_of", lambda *_: ("stdin", [("", "1"), ("", "1")]))

    def planted(output: str, expected: str) -> bool:
        return _explode() if "boom" in output else output.strip() == expected

    monkeypatch.setitem(judge._PRINTED, "apps", planted)
    texts = ["print('boom')", "print(1)", "print(2)"]
    (records,) = CodeRecords(k=3, verdicts="off").apply([texts], [doc])
    assert [(r["verdict"], r["detail"]) for r in records] == [
        ("wrong_answer", "comparing its output raised ZeroDivisionError"),
        ("passed", ""),
        ("wrong_answer", "output differs"),
    ]


def test_what_raises_while_a_text_is_read_leaves_the_other_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    send = wire.send_json

    def planted(fd: int, value: object) -> None:
        send(fd, _explode() if "boom" in str(value) else value)

    monkeypatch.setattr(reader.wire, "send_json", planted)
    doc = {"prompt": "def f():\n", "entry_point": "f"}
    texts = ["    return 'boom'\n", "    return 1\n", "```python\ndef f():\n    return 2\n```"]
    programs = extract.programs_of([(text, doc) for text in texts])
    assert programs == [
        extraction.Taken("def f():\n    return 'boom'\n", "a text that cannot be read"),
        extraction.Taken("def f():\n    return 1\n", extraction.CONTINUATION),
        extraction.Taken("def f():\n    return 2\n", extraction.FENCE),
    ]


@pytest.mark.parametrize("part", ["extract", "same"])
def test_what_raises_on_an_answer_makes_that_sample_wrong(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = getattr(maths.MARKED, part)

    def planted(text: str, *more: str) -> object:
        return _explode() if "7" in text else original(text, *more)

    changed = {"extract": maths.MARKED.extract, "same": maths.MARKED.same, part: planted}
    monkeypatch.setattr(maths, "MARKED", maths.Form(**changed))
    doc = {"task_id": "a", "answer": "#### 5"}
    texts = ["#### 5", "#### 7", "#### 6", "#### 7"]
    (records,) = MathRecords(k=4).apply([texts], [doc])
    assert [r["passed"] for r in records] == [True, False, False, False]
    raised = "ZeroDivisionError: planted"
    assert [r["detail"] for r in records] == ["", raised, "", raised]
    assert [r["answer"] for r in records] == (
        ["5", None, "6", None] if part == "extract" else ["5", "7", "6", "7"]
    )
