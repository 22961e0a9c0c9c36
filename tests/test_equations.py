"""Calculations of worked answers: read from every notation, of one form, only those that matter."""

from __future__ import annotations

import json
import os
import random
import re
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_eval_embednoise.minicoder import load_problems
from lm_eval_embednoise.problems import datafiles
from lm_eval_embednoise.scoring.equations import LONGEST, calculations
from lm_eval_embednoise.scoring.maths import MARKED, way_of
from lm_eval_embednoise.scoring.records import math_records
from lm_eval_embednoise.scoring.reduce import math_metrics

REAL = Path(os.environ.get(datafiles.VARIABLE) or Path(__file__).parents[2] / "shared" / "data")
THREE_FOURS = calculations("3 * 4 = 12")


@pytest.mark.parametrize(
    "text",
    [
        "4 * 3 = 12",
        "So 3*4=12.",
        "3 × 4 = 12, we see",
        "3 x 4 = 12",
        "3 times 4 = 12",
        "$3*4=$12",
        "\\$3 \\times \\$4 = \\$12",
        "$3 \\cdot 4 = 12$",
        "\\[ 3 \\times 4 = \\boxed{12} \\]",
        "3(4) = 12",
        "12 = 3 * 4",
        "- 3 * 4 = 12",
        "2. **3 * 4 = 12**",
        "(3 * 4 = 12)",
        "3 boxes * 4 nuts per box = 12 nuts",
        "3 hours x $4/hour = $12/day",
        "$3 * 4$ = <<3*4=12>>12",
        "<<3*4=12>>",
        "3 * 4 = 13",
        "3 * 4 + 0 = 12",
        "3 * 4 * 1 = 3 * 4 = 12",
        "3.0 * 04 = 12.00",
        "It is 3 * 4 = 12. Then again 4 * 3 = 12.",
    ],
)
def test_one_calculation_in_all_its_spellings(text: str) -> None:
    assert calculations(text) == THREE_FOURS != []


@pytest.mark.parametrize(
    "text",
    ["3 + 4 = 7", "12 / 4 = 3", "3 * 4 * 2 = 24", "3 * 5 = 15", "3 ^ 4 = 81", "30 * 40% = 12"],
)
def test_other_calculations_are_others(text: str) -> None:
    assert calculations(text) not in (THREE_FOURS, [])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2 - 3 + 4 = 3", "4 + 2 - 3 = 3"),
        ("(2 + 3) * 4 = 20", "4 * (3 + 2) = 20"),
        ("6 / 2 * 5 = 15", "5 * 6 / 2 = 15"),
        ("\\frac{6}{2} = 3", "6 / 2 = 3"),
        ("\\dfrac{1}{2} \\times 8 = 4", "(1/2) * 8 = 4"),
        ("1,200 + 300 = 1,500", "300 + 1200 = 1500"),
        ("20% * 50 = 10", "50 * .2 = 10"),
        ("2^3 = 8", "2**3 = 8"),
        ("7 − 2 = 5", "7 - 2 = 5"),
    ],
)
def test_what_is_the_same_in_another_order_or_notation(one: str, other: str) -> None:
    assert calculations(one) == calculations(other) != []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("7 - 2 = 5", "2 - 7 = -5"),
        ("6 / 2 = 3", "2 / 6 = 0.33"),
        ("7.5 / .5 = 15", "15 / 2 / 1 / 2 = 3.75"),
        ("2 * (3 + 4) = 14", "2 * 3 + 4 = 10"),
        ("2^3 = 8", "3^2 = 9"),
    ],
)
def test_order_matters_where_it_matters(one: str, other: str) -> None:
    assert calculations(one) != calculations(other)


@pytest.mark.parametrize(
    "text",
    [
        *("", "12", "x = 3", "3 = 3", "3 * = 4", "= 3 * 4", "3 * 4", "a * 4 = b", "((((", "1/0 ="),
        *("3 * 1 = 3", "10:30 = half past", "====", "5 and then + 3 * 4 - - = 2", "(3 * 4)) = 12("),
    ],
)
def test_what_is_no_equation_of_numbers(text: str) -> None:
    assert calculations(text) == []


def test_only_what_leads_to_the_answer_counts() -> None:
    way = "8 * 5 = 40\n40 - 10 = 30"
    assert calculations(way, "30") == calculations("40 - 10 = 30. 5 * 8 = 40", "30")
    junk = f"1 + 1 = 2\n{way}\n30 * 1 = 30\n99 / 3 = 33\n40 - 10 = 30"
    assert calculations(junk, "30") == calculations(way, "30")
    assert len(calculations(junk)) == 4
    assert calculations(way, "31") == calculations(way) == calculations(way, "\\frac{1}{2}")


def test_without_equations_the_text_is_the_way() -> None:
    assert way_of("Twelve  it IS.\n#### 12", "12") == ["twelve it is."]
    assert way_of("3 * 4 = 12\n#### 12", "12") == way_of("Now 4*3=12!\n#### 12", "12")


# -- against a slow reference: expressions by their meaning, trees drawn at random


def drawn(rng: random.Random, depth: int) -> tuple[str, str, Fraction]:
    """An expression, itself with the operands of + and * swapped at random, and its value."""
    if depth == 0 or rng.random() < 0.3:
        number = rng.randint(2, 30)
        return str(number), str(number), Fraction(number)
    sign = rng.choice("+-*/")
    (a, other_a, x), (b, other_b, y) = drawn(rng, depth - 1), drawn(rng, depth - 1)
    if sign == "/" and y == 0:
        sign = "+"
    value = {"+": x + y, "-": x - y, "*": x * y, "/": x / y if y else x}[sign]
    swapped = (other_a, other_b)
    if sign in "+*" and rng.random() < 0.5:
        swapped = swapped[::-1]
    return f"({a} {sign} {b})", f"({swapped[0]}{sign}{swapped[1]})", value


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 2**32))
def test_swapped_operands_are_one_calculation_and_its_value_is_right(seed: int) -> None:
    rng = random.Random(seed)
    one, other, value = drawn(rng, 3)
    found = calculations(f"{one} = 1")
    assert calculations(f"So 1 = {other}.") == found
    if found and value.denominator == 1:
        # the reader's own value makes it lead to the answer; junk beside it does not
        assert calculations(f"{one} = 7777\n1000 + 2000 = 8888", str(value)) == found


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 2**32))
def test_expressions_of_other_values_are_other_calculations(seed: int) -> None:
    rng = random.Random(seed)
    (one, _, x), (other, _, y) = drawn(rng, 3), drawn(rng, 3)
    first, second = calculations(f"{one} = 1"), calculations(f"{other} = 1")
    assert x == y or first != second or first == []


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet="0123456789+-*/^()=%.,$ x\\{}<>#\n", max_size=120))
def test_any_text_has_calculations_or_none(text: str) -> None:
    found = calculations(text, "12")
    assert found == sorted(set(found))
    assert set(found) <= set(calculations(text))


@pytest.mark.parametrize(
    "text",
    [
        "9^9^9^9^9 = 3",
        f"{'9' * 190}*2 = 3",
        "99999999^30 = 3",
        "(" * 60_000,
        "(" * 90 + "1+1" + ")" * 90 + " = 2",
        "1+1=2 " * 10_000,
        "5" + "a" * 60_000,
        "5 " + "a b " * 15_000 + "= 3",
        "\\frac{" * 10_000,
        "=" * 60_000,
        "3*" * 30_000 + "=",
        "".join(f"{i}+1={i + 1} a " for i in range(6_000)),
    ],
    ids=range(12),
)
def test_hostile_answers_take_no_more_time_than_they_are_long(text: str) -> None:
    start = time.process_time()
    calculations(text, "6000")
    assert time.process_time() - start < 1.5


def test_a_longer_equation_is_not_read() -> None:
    long = "+".join(["12"] * (LONGEST // 3))
    assert calculations(f"{long}+1 = 5") == []
    assert calculations(f"{long[:100]}1 = 5") != []


# -- real answers


def test_every_embedded_answer_is_read_from_its_text() -> None:
    def form(side: str) -> tuple[str, ...]:
        first, sign, second = side.split()
        return (sign, *sorted((first, second))) if sign in "+*" else (sign, first, second)

    for row in load_problems("minimath"):
        worked, target = row["answer"].split("#### ")
        sides = re.findall(r"\d+ [+*/-] \d+(?= =)", worked)
        assert worked.count("=") == len(sides)
        assert len(calculations(worked, target)) == len(set(map(form, sides)))


def test_unique_correct_counts_ways_among_the_correct() -> None:
    texts = [
        "That makes 8 * 5 = 40.\nThat makes 40 - 10 = 30.\n#### 30",
        "So 5*8 = 40. So 40 - 10 = 30. And 7 + 7 = 14.\n#### 30",
        "Now 4 * 10 = 40.\nNow 40 - 10 = 30.\n#### 30",
        "Thirty.\n#### 30",
        "Now 40 - 11 = 29.\n#### 29",
    ]
    doc = {"task_id": "t", "answer": "#### 30"}
    made = math_records(texts, "30", MARKED)
    assert math_metrics(doc, [made])["unique_correct"] == 3.0
    assert made[0]["way"] == made[1]["way"] != made[2]["way"]
    assert json.loads(json.dumps(made)) == made
    for record in made:
        del record["way"]  # as older logs are
    assert math_metrics(doc, [made])["unique_correct"] == 3.0


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the benchmarks' own files")
def test_plain_text_says_what_gsm8ks_annotations_say() -> None:
    """Of 1,319 gold answers nine in ten have the same calculations without their annotations."""
    same = total = 0
    for line in (REAL / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines():
        worked, target = json.loads(line)["answer"].split("#### ")
        plain = re.sub(r"<<[^<>]*>>", "", worked)
        same += calculations(worked, target) == calculations(plain, target) != []
        total += 1
    assert total == 1319
    assert same / total > 0.9
