"""Calls handed over together give the verdicts that calls made one by one give."""

from __future__ import annotations

import dataclasses

import pytest

from lm_eval_embednoise.sandbox import Job, Limits, run_programs
from lm_eval_embednoise.sandbox.predict import predict

LIMITS = Limits(cpu_seconds=0.3, wall_seconds=2.0, memory_bytes=1 << 28, output_bytes=1 << 20)
STRAIGHT = "def check(candidate):\n" + "".join(
    f"    assert candidate({i}) == {i + 1}\n" for i in range(4)
)
LOOP = "def check(c):\n    for i in range(4):\n        assert c(i) == i + 1\n"
CHAINED = "def check(c):\n    assert c(0) == 1\n    assert c(c(1)) == 3\n    assert c(3) == 4\n"
RANDOM = (
    "import random\ndef check(c):\n    for _ in range(3):\n        x = random.randrange(10**6)\n"
    "        assert c(x) == x + 1\n"
)
PROGRAMS = {
    "right": "def f(x):\n    return x + 1",
    "right in another way": "def f(x):\n    return 1 + x",
    "wrong": "def f(x):\n    return x",
    "wrong first, then never ends": "def f(x):\n    while x > 1: pass\n    return 7",
    "right, then never ends": "def f(x):\n    while x > 1: pass\n    return x + 1",
    "wrong first, then prints too much": "def f(x):\n    while x > 1: print('x' * 999)\n    return",
    "raises first, then ends": "import os\ndef f(x):\n    if x > 1: os._exit(0)\n    raise A",
    "right, then raises": "def f(x):\n    return [1, 2][x]",
    "wrong first, then sleeps": "import time\ndef f(x):\n    if x > 1: time.sleep(9)\n    return",
    "remembers its calls": "n = []\ndef f(x):\n    n.append(x)\n    return len(n)",
    "ends in a call": "import sys\ndef f(x):\n    sys.exit(0)",
    "never starts": "while True:\n    pass",
}


@pytest.mark.parametrize("test", [STRAIGHT, LOOP, CHAINED, RANDOM])
def test_the_same_verdicts_with_and_without_prediction(test: str) -> None:
    jobs = [Job(p, "f", test=test, limits=LIMITS) for p in PROGRAMS.values()]
    alone = [dataclasses.replace(job, predict=False) for job in jobs]
    together, apart = run_programs(jobs, progress=False), run_programs(alone, progress=False)
    for name, ahead, single in zip(PROGRAMS, together, apart, strict=True):
        assert (ahead.verdict, ahead.detail) == (single.verdict, single.detail), name
        assert ahead.behaviour == single.behaviour, name
    assert [outcome.verdict for outcome in together][:3] == ["passed", "passed", "wrong_answer"]


def test_what_is_predicted() -> None:
    test = (
        "METADATA = {}\ndef check(candidate):\n    assert True, 'about'\n"
        "    assert candidate([1, -2], k='a') == candidate((3,))\n"
        "    assert abs(candidate(2.5) - 1) < 1e-6\n    for i in range(9):\n"
        "        assert candidate(i)\n"
    )
    assert predict(test, "f") == [
        ([[1, -2]], {"t": "dict", "v": [["k", "a"]]}),
        ([{"t": "tuple", "v": [3]}], {"t": "dict", "v": []}),
        ([2.5], {"t": "dict", "v": []}),
    ]
    assert predict("assert f(1) == 2\nassert f(x) == 3\nassert f(4) == 5", "f") == [
        ([1], {"t": "dict", "v": []})
    ]
    assert predict("def check(", "f") == []


def test_tests_that_draw_their_inputs_draw_the_same_for_every_program() -> None:
    test = "import random\ndef check(c):\n    return [c(random.random()) for _ in range(3)]\n"
    jobs = [Job("def f(x):\n    return x", "f", test=test)] * 4
    outcomes = run_programs(jobs, workers=2, progress=False)
    assert len({str(outcome.value) for outcome in outcomes}) == 1
    assert all(len(outcome.value) == 3 for outcome in outcomes)
