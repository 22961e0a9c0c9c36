"""Verdicts do not depend on how many programs run at once: processor time is what is limited."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from lm_eval_embednoise.sandbox import Job, Limits, run_programs
from lm_eval_embednoise.sandbox.idle import IdleClock

LIMIT = 0.3


def burner(share: float) -> Job:
    """A program that uses this share of its limit, whatever else the machine does."""
    program = (
        "import time\ndef f(x):\n    end = time.process_time() + x\n"
        "    while time.process_time() < end:\n        pass\n    return 1"
    )
    test = f"def check(c):\n    assert c({share * LIMIT}) == 1\n"
    return Job(program, "f", test=test, limits=Limits(cpu_seconds=LIMIT, wall_seconds=60))


def test_the_same_verdicts_with_one_and_with_eight_workers() -> None:
    # A stress run takes more: EMBEDNOISE_LOAD_PROGRAMS=500
    count = int(os.environ.get("EMBEDNOISE_LOAD_PROGRAMS", "12"))
    shares = [0.01, 0.5, 0.01, 1.2, 0.01, 0.9, 0.01, 2.0, 0.01, 0.7, 0.01, 1.5]
    jobs = [burner(shares[i % len(shares)]) for i in range(count)]
    expected = ["timeout" if shares[i % len(shares)] > 1 else "passed" for i in range(count)]
    for workers in (1, 8):
        outcomes = run_programs(jobs, workers=workers, progress=False)
        assert [outcome.verdict for outcome in outcomes] == expected


@pytest.mark.parametrize("workers", [1, 8])
def test_each_call_has_its_own_limit_when_the_benchmark_says_so(workers: int) -> None:
    program = burner(0).program
    test = "def check(c):\n    for seconds in DATA:\n        assert c(seconds) == 1\n"
    limits = Limits(cpu_seconds=0.2, wall_seconds=60)
    jobs = [
        Job(program, "f", test=test, data=data, limits=limits, seconds_are_per_call=True)
        for data in ([0.1] * 4, [0.1, 0.3], [1e9])
    ]
    outcomes = run_programs(jobs, workers=workers, progress=False)
    assert [outcome.verdict for outcome in outcomes] == ["passed", "timeout", "timeout"]


@pytest.mark.parametrize("workers", [1, 8])
def test_waiting_for_a_processor_is_not_waiting(workers: int) -> None:
    # Alone 0.25 s of processor time; beside seven others, on few processors, a multiple of that.
    burn = (
        "import time\nend = time.process_time() + 0.25\nwhile time.process_time() < end: pass\n"
        "time.sleep(0.1)\nprint(1)"
    )
    wait = "import queue\nqueue.Queue().get()"
    called = (
        "import time\ndef f(x):\n    end = time.process_time() + x\n"
        "    while time.process_time() < end: pass\n    return 1"
    )
    test = "def check(c):\n    for _ in range(3): assert c(0.08) == 1\n"
    limits = Limits(cpu_seconds=2.0, wall_seconds=60, idle_seconds=0.25)
    kinds = [Job(burn, limits=limits), Job(wait, limits=limits)]
    kinds.append(Job(called, "f", test=test, limits=limits, seconds_are_per_call=True))
    outcomes = run_programs(kinds * 4, workers=workers, progress=False)
    assert [outcome.verdict for outcome in outcomes] == ["passed", "timeout", "passed"] * 4
    assert {outcome.detail for outcome in outcomes} == {"", "idle limit"}


@pytest.mark.parametrize(
    ("program", "waits"),
    [
        ("while True: pass", False),
        ("import threading; threading.Event().wait()", True),
        (
            "import threading; threading.Thread(target=threading.Event().wait).start()\n"
            "while True: pass",
            False,
        ),
    ],
)
def test_who_is_ready_but_gets_no_processor_is_not_idle(program: str, waits: bool) -> None:
    # On the processor of this test, which takes it all between two looks a moment apart.
    ours = os.sched_getaffinity(0)
    proc = os.open("/proc", os.O_RDONLY)
    os.sched_setaffinity(0, {min(ours)})
    code = f"print(flush=True)\n{program}"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            clock = IdleClock(proc, process.pid, interval=0.1)
            start = time.monotonic()
            while time.monotonic() - start < 1.0:
                clock.look()
            assert (clock.seconds > 0.3) if waits else (clock.seconds == 0)
        finally:
            process.kill()
            os.sched_setaffinity(0, ours)
            os.close(proc)
