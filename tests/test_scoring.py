"""Extraction, answers, records, and their reduction to a problem's metrics."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_embednoise.sandbox import Outcome
from lm_eval_embednoise.scoring import filters, latex, maths, records
from lm_eval_embednoise.scoring.extract import extract_program
from lm_eval_embednoise.scoring.filters import CodeRecords, MathRecords
from lm_eval_embednoise.scoring.reduce import code_metrics, math_metrics, plus_metrics
from lm_eval_embednoise.store.generation import Generation

if TYPE_CHECKING:
    from decimal import Decimal

PROMPT = "import math\n\ndef helper(x):\n    return x\n\ndef f(x):\n    '''Double x.'''\n"
BODY = "    return 2 * x\n"
WHOLE = "def f(x):\n    return 2 * x\n"
PREAMBLE = "import math\n\ndef helper(x):\n    return x\n\n"

# What the model wrote, and the program it stands for.
CASES = {
    "bare continuation": (BODY, PROMPT + BODY),
    "continuation closed by a fence": (BODY + "```\nThis doubles x.", PROMPT + BODY),
    "definition repeated": (WHOLE, PREAMBLE + WHOLE),
    "fenced definition": (f"```python\n{WHOLE}```", PREAMBLE + WHOLE),
    "fenced, prose around": (f"Sure:\n\n```py\n{WHOLE}```\nIt works.", PREAMBLE + WHOLE),
    "fenced body": (f"```python\n{BODY}```", PROMPT + BODY),
    "fence without a language": (f"```\n{WHOLE}```", PREAMBLE + WHOLE),
    "fence never closed": (f"```python\n{WHOLE}", PREAMBLE + WHOLE),
    "several blocks, the last definition counts": (
        f"```python\ndef f(x):\n    return x\n```\nBetter:\n```python\n{WHOLE}```\n"
        "```python\nprint(f(1))\n```",
        PREAMBLE + WHOLE,
    ),
    "a block in another language": (f"```bash\nls\n```\n```python\n{WHOLE}```", PREAMBLE + WHOLE),
    "prose around, no fence": (
        f"Here is the code:\n\n{WHOLE}\nThis doubles x.",
        PREAMBLE + WHOLE,
    ),
    "truncated": ("    return 2 *", PROMPT + "    return 2 *"),
    "empty": ("", PROMPT),
}


@pytest.mark.parametrize("name", CASES)
def test_extraction(name: str) -> None:
    text, program = CASES[name]
    assert extract_program(text, PROMPT, "f").rstrip("\n") == program.rstrip("\n")


SOLUTION = "class Solution:\n    def f(self, x):\n        return 2 * x\n"


@pytest.mark.parametrize(
    ("text", "entry_point", "program"),
    [
        (SOLUTION, "f", SOLUTION),
        (
            f"```python\nfrom typing import List\n{SOLUTION}```",
            "f",
            f"from typing import List\n{SOLUTION}",
        ),
        (
            f"The idea is simple.\n```python\n{SOLUTION}```\n```python\nSolution().f(1)\n```",
            "f",
            SOLUTION,
        ),
        ("n = int(input())\nprint(n)\n", None, "n = int(input())\nprint(n)\n"),
        (
            "We read n.\n\nimport sys\nprint(sys.stdin.read())\n",
            None,
            "import sys\nprint(sys.stdin.read())\n",
        ),
    ],
)
def test_extraction_without_a_completion_prompt(
    text: str, entry_point: str | None, program: str
) -> None:
    assert extract_program(text, "", entry_point) == program


@given(st.text(alphabet="` \nabc:()=def", max_size=80))
def test_extraction_never_raises(text: str) -> None:
    assert isinstance(extract_program(text, PROMPT, "f"), str)


# -- answers


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So 2 + 2 = 4.\n#### 4", "4"),
        ("#### 1,200.50", "1200.5"),
        ("#### -3", "-3"),
        ("#### 18.00\n#### 19", "18"),
        ("#### -0", "0"),
        ("the answer is 4", None),
        ("#### .", None),
        ("#### 1. Add\n#### 18", "1"),  # the strict number is the first, as upstream's
        ("#### $18", None),
        ("#### " + "7" * 200, "7" * 200),
        ("#### " + "7" * 5000, None),  # nobody's answer
        ("", None),
    ],
)
def test_answers(text: str, answer: str | None) -> None:
    assert maths.extract_answer(text) == answer


CHAT = {
    "The answer is 5.": "5",
    "so $5$": "5",
    "**5**": "5",
    "\\[5\\]": "5",
    "Answer: 5": "5",
    "#### 1. Find it\n3 + 15\n#### 18": "18",
    "#### $18": "18",
    "#### **18**": "18",
    "#### 1. Find\n5 * 3 = 15.\n#### 2. Add\nSo the answer is 18 apples, not 20.": "18",
    "<think>\n#### 4\n</think>\nIt is 3 * 6 = 18.\n#### 18 apples": "18",
    "#### 1,200.": "1200",
    "### 1. Work\nThe total is $7.": "7",
    "\\boxed{18}, that is \\boxed{1": "18",
    "It costs 3.50 dollars.": "3.5",
    "no number": None,
}


@pytest.mark.parametrize("text", CHAT)
def test_chat_answers_have_a_flexible_number(text: str) -> None:
    assert maths.flexible_answer(text) == CHAT[text]


@given(
    st.decimals(
        allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9
    )
)
def test_numbers_are_normalised_as_decimals(value: Decimal) -> None:
    shortest = format(value.normalize(), "f")
    assert maths.normalise(f"{value:,.3f}") == ("0" if shortest == "-0" else shortest)


def test_votes_for_equivalent_answers_add_up_right_or_wrong() -> None:
    pytest.importorskip("math_verify")
    texts = [rf"\boxed{{{answer}}}" for answer in (r"\frac12", "0.5", "7", "7", "7.0", "3", "3")]
    doc = {"task_id": "t", "answer": r"\boxed{3}", "grader": "math"}
    (made,) = MathRecords(k=7).apply([texts], [doc])
    answers = [record["answer"] for record in made]
    assert answers[0] == answers[1]
    assert answers[2] == answers[3] == answers[4]
    assert math_metrics(doc, [made])["maj@K"] == 0.0  # three wrong votes beat two right ones


def test_the_strict_number_decides_and_the_flexible_one_stands_beside_it() -> None:
    doc = {"task_id": "t", "answer": "#### 4"}
    (made,) = MathRecords(k=2).apply([["The answer is 4.", "#### 4"]], [doc])
    metrics = math_metrics(doc, [made])
    assert (metrics["pass@1"], metrics["accuracy_flexible"]) == (0.5, 1.0)
    assert (metrics["maj@K"], metrics["maj@K_flexible"], metrics["valid_rate"]) == (1.0, 1.0, 0.5)


HOSTILE_ANSWERS = (
    "\\boxed{" * 150_000,
    "answer is " * 100_000,
    "answer is" + " " * 1_000_000,
    "#### " + "1" * 1_000_000,
    "#### " * 200_000,
    "\n####" * 200_000,
    "$" * 1_000_000,
    "\\boxed " + " " * 1_000_000,
)


@pytest.mark.parametrize("text", HOSTILE_ANSWERS, ids=lambda text: text[:9].strip())
def test_answers_are_found_in_linear_time(text: str) -> None:
    """Twice as much text takes about twice the time; a quadratic scan would take four times."""
    small, large = text[: len(text) // 2], text
    for find in (maths.extract_answer, maths.flexible_answer, latex.extract_boxed):
        start = time.process_time()
        find(small)
        middle = time.process_time()
        find(large)
        assert time.process_time() - middle < 3 * (middle - start) + 0.5


def test_majority_shares_a_tie_and_ignores_missing_answers() -> None:
    assert maths.majority(["4", "4", "5", None], "4") == 1.0
    assert maths.majority(["4", "5", None], "4") == 0.5
    assert maths.majority([None, None], "4") == 0.0


# -- records


def outcome(verdict: str = "passed", tree: str | None = "t") -> Outcome:
    return Outcome(verdict, compiled=tree is not None, defined=True, trivial=False, ast=tree)


def code_records(*verdicts: str, missing: int = 0) -> list[dict[str, Any]]:
    made = [
        records.code_record(
            f"    return {i}\n", i, f"{PROMPT}    return {i}\n", outcome(v, f"t{i}")
        )
        for i, v in enumerate(verdicts)
    ]
    return made + [records.code_record(None, 99, "", None) for _ in range(missing)]


FIELDS = {"index", "text", "missing", "tokens", "finish_reason", "nll", "nll_tokens", "rho"}
FIELDS |= {"sites", "seconds", "passed", "valid"}


def test_a_plain_string_has_no_measurements_and_a_generation_brings_its_own() -> None:
    plain = records.math_record("#### 4", 0, "4", maths.MARKED)
    rich = records.math_record(
        Generation("#### 5", tokens=3, nll=1.5, nll_tokens=3, rho=0.1), 1, "4", maths.MARKED
    )
    stated = {"answer", "answer_flexible", "passed_flexible", "detail", "way"}
    assert set(plain) == FIELDS | stated
    assert (plain["nll"], plain["passed"], plain["answer"]) == (None, True, "4")
    assert (rich["nll"], rich["tokens"], rich["rho"], rich["passed"]) == (1.5, 3, 0.1, False)
    assert json.loads(json.dumps([plain, rich])) == [plain, rich]


def test_code_records_have_the_promised_fields() -> None:
    (record,) = code_records("passed")
    found = {"code", "compiled", "verdict", "detail", "ast", "behaviour", "rule", "passed_base"}
    found |= {"undefined"}
    assert set(record) == FIELDS | found
    (gone,) = code_records(missing=1)
    assert set(gone) == set(record)
    assert (gone["missing"], gone["passed"]) == (True, False)


DOC = {
    "task_id": "t/0",
    "prompt": PROMPT,
    "entry_point": "f",
    "test": "def check(c):\n    assert c(2) == 4\n",
}


def test_the_filter_judges_pads_and_cuts() -> None:
    few, many = [BODY, "    return x\n"], [BODY, BODY, "    return 4\n", "    pass\n", "    oops("]
    made = CodeRecords(k=4, workers=1).apply([few, many], [DOC, DOC])
    assert [[r["verdict"] for r in row] for row in made] == [
        ["passed", "wrong_answer", "missing", "missing"],
        ["passed", "passed", "passed", "wrong_answer"],
    ]
    assert [r["valid"] for r in made[1]] == [True, True, True, False]
    assert [r["index"] for r in made[0]] == [0, 1, 2, 3]


def test_the_maths_filter_pads_and_cuts() -> None:
    made = MathRecords(k=2).apply(
        [["#### 4"], ["#### 5", "#### 4", "#### 4"]], [{"task_id": "t", "answer": "#### 4"}] * 2
    )
    assert [[r["passed"] for r in row] for row in made] == [[True, False], [False, True]]


@pytest.mark.parametrize("k", [0, -1, "ten", None])
def test_an_impossible_k_is_refused(k: Any) -> None:
    with pytest.raises(ValueError, match="number of samples"):
        MathRecords(k=k)


# -- reduction


def test_missing_samples_are_failures_and_are_counted() -> None:
    metrics = code_metrics(DOC, [code_records("passed", "wrong_answer", missing=2)])
    assert metrics["pass@1"] == 0.25
    assert metrics["compile_rate"] == 0.5
    assert metrics["missing"] == 2.0


def test_pass_at_k_beyond_the_samples_is_absent() -> None:
    metrics = code_metrics(DOC, [code_records(*["passed"] * 10)])
    assert metrics["pass@10"] == 1.0
    assert "pass@100" not in metrics


def test_unique_correct_counts_trees_among_the_passing_and_is_zero_without_any() -> None:
    metrics = code_metrics(DOC, [code_records("passed", "passed", "wrong_answer")])
    assert (metrics["unique_ast"], metrics["unique_correct"]) == (3.0, 2.0)
    assert code_metrics(DOC, [code_records("timeout")])["unique_correct"] == 0.0


def test_the_prompt_is_no_part_of_the_diversity() -> None:
    metrics = code_metrics(DOC, [code_records("passed", "passed")])
    assert metrics["distinct_1"] == pytest.approx(3 / 4)  # return 0, return 1


def test_perplexity_is_of_the_problem_not_a_mean_over_samples() -> None:
    samples = [
        Generation("#### 4", nll=2.0, nll_tokens=1),
        Generation("#### 4", nll=1.0, nll_tokens=2),
    ]
    made = [records.math_record(sample, i, "4", maths.MARKED) for i, sample in enumerate(samples)]
    metrics = math_metrics({"task_id": "t", "answer": "#### 4"}, [made])
    assert metrics["clean_perplexity"] == pytest.approx(math.e)
    assert metrics["nats_per_token"] == pytest.approx(1.0)
    assert metrics["clean_bits_per_byte"] == pytest.approx(3 / math.log(2) / 12)


def test_what_the_model_cannot_tell_is_nan_not_wrong() -> None:
    metrics = code_metrics(DOC, [code_records("passed", "passed")])
    unknown = (
        "clean_perplexity",
        "clean_bits_per_byte",
        "mean_tokens",
        "mean_seconds",
        "truncated",
        "rho",
    )
    assert all(math.isnan(metrics[name]) for name in unknown)
    assert metrics["pass@1"] == 1.0


def test_maths_counts_distinct_worked_answers_among_the_correct() -> None:
    texts = ["2 + 2 = 4\n#### 4", "2 + 2  = 4\n#### 4", "1 + 3 = 4\n#### 4", "5\n#### 5"]
    made = [records.math_record(text, i, "4", maths.MARKED) for i, text in enumerate(texts)]
    metrics = math_metrics({"task_id": "t", "answer": "#### 4"}, [made])
    assert (metrics["accuracy"], metrics["maj@K"], metrics["unique_correct"]) == (0.75, 1.0, 2.0)


def test_a_problem_without_any_sample_has_numbers_where_they_are_defined() -> None:
    metrics = code_metrics(DOC, [code_records(missing=3)])
    assert (metrics["pass@1"], metrics["unique_correct"], metrics["missing"]) == (0.0, 0.0, 3.0)
    assert math.isnan(metrics["distinct_2"])
    assert math.isnan(metrics["self_bleu"])


def test_empty_generations_are_scored_not_crashed() -> None:
    made = CodeRecords(k=2, workers=1).apply([["", ""]], [DOC])
    metrics = code_metrics(DOC, made)
    assert (metrics["pass@1"], metrics["valid_rate"], metrics["self_bleu"]) == (0.0, 0.0, 1.0)
    assert metrics["edit_distance"] == 0.0


def test_scoring_does_not_import_torch() -> None:
    modules = ["aggregate", "diversity", "extract", "judge", "maths", "ngrams", "records"]
    modules += ["passk", "reduce"]
    code = "import sys\n" + "".join(f"import lm_eval_embednoise.scoring.{m}\n" for m in modules)
    code += "assert 'torch' not in sys.modules and 'lm_eval' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_pass_at_any_k_that_there_are_samples_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDNOISE_PASS_AT", "2,3")
    metrics = code_metrics(DOC, [code_records("passed", "timeout", "timeout")])
    assert metrics["pass@2"] == pytest.approx(2 / 3)
    assert metrics["pass@3"] == 1.0
    with pytest.raises(ValueError, match="pass@3 needs at least 3 samples"):
        code_metrics(DOC, [code_records("passed", "timeout")])


def test_weak_tests_have_numbers_of_their_own() -> None:
    made = code_records("passed", "wrong_answer", "wrong_answer")
    for record, base in zip(made, (True, True, False), strict=True):
        record["passed_base"] = base
    metrics = plus_metrics(DOC, [made])
    assert metrics["pass@1"] == pytest.approx(1 / 3)
    assert metrics["pass@1_base"] == pytest.approx(2 / 3)
    assert (metrics["unique_correct"], metrics["unique_correct_base"]) == (1.0, 2.0)


def test_scoring_says_what_it_does_and_how_far_it_is(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filters, "_SECONDS_BETWEEN_LINES", 0.0)
    with caplog.at_level("INFO", logger="lm_eval"):
        CodeRecords(k=2, workers=1).apply([[BODY, "    return x\n"]], [DOC])
    text = caplog.text
    assert "programs by the rule that found them: continuation: 2" in text
    assert "judging 2 programs of 1 problems in the sandbox (isolation level " in text
    assert "judged 2 of 2 programs" in text
