"""A program in the sandbox prints, and ends, as `python3 program.py < stdin` does."""

from __future__ import annotations

import functools
import json
import subprocess
import sys

import pytest

from lm_eval_embednoise import sandbox
from lm_eval_embednoise.sandbox import Job, Limits, Outcome, run_programs
from tests.support.ending_programs import BUSY, EXITS, PROGRAMS, STDIN, WAITING

LEVELS = sandbox.available_levels()
QUICK = Limits(cpu_seconds=0.5, wall_seconds=30.0, idle_seconds=1.0)


@functools.cache
def outcomes(level: str) -> dict[str, Outcome]:
    jobs = [Job(program, stdin=STDIN) for program in PROGRAMS.values()]
    return dict(zip(PROGRAMS, run_programs(jobs, level=level, progress=False), strict=True))


# Runs the programs that it is told, two at a time. A small process of its own: it starts others
# quickly, and has no handler of an interrupt that they would inherit.
BESIDE = """
import json, signal, subprocess, sys, tempfile
from concurrent.futures import ThreadPoolExecutor
signal.signal(signal.SIGINT, signal.SIG_DFL)
programs, given = json.load(sys.stdin)
line = [sys.executable, "-I", "-X", "utf8", "program.py"]

def run(program):
    with tempfile.TemporaryDirectory() as folder:
        for file, content in (("program.py", program), ("stdin", given)):
            with open(f"{folder}/{file}", "w", encoding="utf-8") as made:
                made.write(content)
        with open(f"{folder}/stdin", "rb") as stdin, open(f"{folder}/stdout", "w+b") as stdout:
            null = subprocess.DEVNULL
            process = subprocess.Popen(line, stdin=stdin, stdout=stdout, stderr=null, cwd=folder)
            try:
                status = process.wait(60)
            finally:
                process.kill()
            stdout.seek(0)
            return stdout.read().decode("latin-1"), status

with ThreadPoolExecutor(2) as pool:
    print(json.dumps(list(pool.map(run, programs))))
"""


@functools.cache
def by_python() -> dict[str, tuple[bytes, int]]:
    """What the interpreter itself does with each program: output and exit status."""
    done = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", BESIDE],
        input=json.dumps([list(PROGRAMS.values()), STDIN.decode()]),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=600,
    )
    found = ((output.encode("latin-1"), status) for output, status in json.loads(done.stdout))
    return dict(zip(PROGRAMS, found, strict=True))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_print_and_end_as_under_python(name: str, level: str) -> None:
    ours = outcomes(level)[name]
    output, status = by_python()[name]
    assert (ours.output, ours.exit_status) == (output, status)
    # `sys.exit` is an ordinary end whatever it says, as in the official graders.
    left = status == 0 or name in EXITS
    assert ours.verdict == ("passed" if left else "runtime_error")


@pytest.mark.parametrize("level", LEVELS)
def test_three_runs_of_a_program_with_threads_are_equal(level: str) -> None:
    names = ("thread", "slow_thread", "thread_of_thread", "executor") * 3
    jobs = [Job(PROGRAMS[name], stdin=STDIN) for name in names]
    found = run_programs(jobs, level=level, progress=False)
    ends = {(name, o.verdict, o.output) for name, o in zip(names, found, strict=True)}
    assert ends == {(name, "passed", by_python()[name][0]) for name in names}


@pytest.mark.parametrize("level", LEVELS)
def test_a_program_that_waits_for_ever_is_ended_by_its_idle_time(level: str) -> None:
    jobs = [Job(program, stdin=STDIN, limits=QUICK) for program in WAITING.values()]
    found = run_programs(jobs, level=level, workers=len(jobs) // 2, progress=False)  # all idle
    ends = {name: (o.verdict, o.detail) for name, o in zip(WAITING, found, strict=True)}
    assert ends == dict.fromkeys(WAITING, ("timeout", "idle limit"))
    assert found[0].output == b""  # never flushed: Python would not have either
    assert max(o.cpu_seconds for o in found) < QUICK.cpu_seconds


@pytest.mark.parametrize("level", LEVELS)
def test_time_limits_hold_while_a_program_ends(level: str) -> None:
    jobs = [Job(program, limits=QUICK) for program in BUSY.values()]
    found = run_programs(jobs, level=level, progress=False)
    ends = {name: (o.verdict, o.detail) for name, o in zip(BUSY, found, strict=True)}
    assert ends == dict.fromkeys(BUSY, ("timeout", "cpu limit"))


@pytest.mark.parametrize("level", LEVELS)
def test_a_call_that_waits_for_ever_is_ended_by_its_idle_time(level: str) -> None:
    wait = "import queue\ndef f(x):\n    if x > 1: queue.Queue().get()\n    return x\n"
    nap = "import time\ndef f(x):\n    time.sleep(0.4)\n    return x\n"
    test = "def check(c):\n    for x in range(4):\n        assert c(x) == x\n"
    jobs = [
        Job(program, "f", test=test, limits=QUICK, seconds_are_per_call=per_call)
        for program in (wait, nap)
        for per_call in (False, True)
    ]
    found = run_programs(jobs, level=level, workers=len(jobs), progress=False)
    waited = ("timeout", "idle limit")
    ends = [(o.verdict, o.detail) for o in found]
    assert ends == [waited, waited, waited, ("passed", "")]  # four naps of 0.4 s; or each its own


def test_a_program_does_not_wait_while_its_tests_compute() -> None:
    test = (
        "import time\ndef check(c):\n    time.sleep(1.5)\n    assert c(1) == 1\n"
        "    end = time.process_time() + 1.2\n    while time.process_time() < end: pass\n"
        "    assert c(2) == 2\n"
    )
    limits = Limits(cpu_seconds=5.0, wall_seconds=60.0, idle_seconds=0.5)
    job = Job("def f(x):\n    return x", "f", test=test, limits=limits)
    assert run_programs([job], progress=False)[0].verdict == "passed"


@pytest.mark.parametrize("level", [level for level in LEVELS if level != "rlimits"])
def test_new_processes_are_refused_and_the_program_ends(level: str) -> None:
    attempts = [
        "import os\nos.fork()",
        "import subprocess\nsubprocess.run(['true'])",
        "import multiprocessing\nmultiprocessing.get_context('fork').Process().start()",
        "from concurrent.futures import ProcessPoolExecutor\n"
        "print(list(ProcessPoolExecutor(1).map(abs, [1])))",
    ]
    jobs = [Job(attempt, limits=QUICK) for attempt in attempts]
    found = run_programs(jobs, level=level, progress=False)
    assert [outcome.verdict for outcome in found] == ["runtime_error"] * len(attempts)
