"""Whatever a model or its program writes, comparing says yes or no and never throws."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_eval_embednoise.sandbox import Job, run_programs
from lm_eval_embednoise.scoring import compare, judge, latex, maths
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
