"""Nothing of an earlier sample, or of a later call, is in the memory that a program can read."""

from __future__ import annotations

import secrets

import pytest

from lm_eval_embednoise import sandbox
from lm_eval_embednoise.sandbox import Job, Limits
from lm_eval_embednoise.sandbox.process import Worker
from tests.support.hostile_programs import SCAN

LEVELS = sandbox.available_levels()
LIMITS = Limits(cpu_seconds=20.0, wall_seconds=120.0)
# What is printed or returned: every marker found, once the scan has found what was planted.
LOOK = SCAN + "\ndef f(*a):\n    check_planted()\n    return sorted(scan(b'mark', b'er-'))\n"


def marker() -> str:
    return "marker-" + secrets.token_hex(8)


@pytest.mark.parametrize("level", LEVELS)
def test_a_program_finds_nothing_of_earlier_jobs_in_its_memory(level: str) -> None:
    looks = (
        Job(LOOK, "f", test="def check(c):\n    return c()\n", limits=LIMITS),
        Job(LOOK + "print(f())", limits=LIMITS),
    )
    with Worker(level) as worker:
        for _ in range(3):
            source, header, given, answer = marker(), marker(), marker(), marker()
            padding = f"# {source}\n" * 400  # freed in one piece, and long enough to stay readable
            called = f"{padding}def f(x):\n    return [x, {source!r}]"
            test = f"def check(c):\n    assert c({given!r}) == [{given!r}, DATA]\n"
            solves = Job(called, "f", test=test, data=source, header=f"# {header}", limits=LIMITS)
            fails = Job(called, "f", test=test, data=answer, setup=f"# {answer}", limits=LIMITS)
            prints = Job(
                f"{padding}print(input(), {source!r})", stdin=given.encode(), header=f"#{header}"
            )
            before = [worker.run(job).verdict for job in (solves, prints, fails)]
            assert before == ["passed", "passed", "wrong_answer"]
            called, alone = (worker.run(look) for look in looks)
            assert (called.verdict, called.value) == ("passed", [])
            assert (alone.verdict, alone.output) == ("passed", b"[]\n")


@pytest.mark.parametrize("level", LEVELS)
def test_the_scan_finds_what_is_there(level: str) -> None:
    own, given, argument = marker(), marker(), marker()
    with Worker(level) as worker:
        alone = f"{LOOK}\nown = {own!r}\ngiven = input()\nprint(f())"
        found = worker.run(Job(alone, stdin=given.encode(), limits=LIMITS)).output.decode()
        assert found == f"{sorted([own, given])}\n"
        test = f"def check(c):\n    return c({argument!r})\n"
        assert worker.run(Job(LOOK, "f", test=test, limits=LIMITS)).value == [argument]


@pytest.mark.parametrize("level", LEVELS)
def test_arguments_of_a_later_call_are_nowhere_before_the_earlier_answer(level: str) -> None:
    first, second = marker(), marker()
    # Straight asserts, which could be read off the test, and which the program before has passed.
    test = f"def check(c):\n    assert c(1) == {first!r}\n    assert c({first!r}) == {second!r}\n"
    table = {1: first, first: second}
    solves = Job(f"def f(x):\n    return {table!r}[x]", "f", test=test, limits=LIMITS)
    peeks = SCAN + (
        "import time\ndef f(x):\n    check_planted()\n    time.sleep(0.1)\n    queued = b''\n"
        "    for fd in range(3, 64):\n        try:\n            os.set_blocking(fd, False)\n"
        "            queued += os.read(fd, 9999)\n            os.set_blocking(fd, True)\n"
        "        except OSError:\n            pass\n"
        "    found = scan(b'mark', b'er-') | {queued} - {b''}\n"
        "    raise type(f'found{sorted(found, key=str)}', (Exception,), {})\n"
    )
    with Worker(level) as worker:
        assert worker.run(solves).verdict == "passed"
        outcome = worker.run(Job(peeks, "f", test=test, limits=LIMITS))
    assert (outcome.verdict, outcome.detail) == ("runtime_error", "found[]")
