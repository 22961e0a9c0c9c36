"""The process in which hostile text is parsed, and the harness's side of it.

A parser can be crashed, filled or kept busy by what it reads. So texts are read in processes of
their own that run nothing, can open no file and know no answers; what they give back is a program,
which goes to the sandbox as any other. A text that ends its process is taken as it is.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import extraction, isolate, kernel, seccomp, wire
from .extraction import Taken

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_MEMORY = 2 << 30
_SECONDS = 5.0  # of processor time for one text
_TOGETHER = 32
_DEEP = 20_000
_BOOTSTRAP = (
    "import sys, types; sys.path[:] = [p for p in sys.path if p]; "
    "package = types.ModuleType('sandbox'); package.__path__ = [{path!r}]; "
    "sys.modules['sandbox'] = package; from sandbox.reader import main; main()"
)


@dataclass(frozen=True)
class Answer:
    """A model's answer, the code it was to complete, if any, and the function to write, if any."""

    text: str
    prompt: str = ""
    entry_point: str | None = None


class Reader:
    """A running process that reads texts; not safe to share between threads."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def read(self, answers: Sequence[Answer]) -> list[Taken]:
        """The program in each answer."""
        taken: list[Taken] = []
        for start in range(0, len(answers), _TOGETHER):
            some = answers[start : start + _TOGETHER]
            programs = self._ask(some)
            if programs is None:  # one of them broke the process
                programs = [
                    one[0] if (one := self._ask([answer])) else _unread(answer) for answer in some
                ]
            taken += programs
        return taken

    def _ask(self, answers: Sequence[Answer]) -> list[Taken] | None:
        if self._process is None:
            self._process = _start()
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        items = [[a.text, a.prompt, a.entry_point] for a in answers]
        try:
            wire.send_json(process.stdin.fileno(), items)
            reply = wire.receive_json(process.stdout.fileno())
            return [Taken(program, rule) for program, rule in reply]
        except Exception:  # whatever a text does to its reader: it is taken as it is
            self.close()
            return None

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None and process.stdout is not None
            with contextlib.suppress(OSError):
                process.stdin.close()
            process.stdout.close()
            process.kill()
            process.wait()


def _unread(answer: Answer) -> Taken:
    return Taken(answer.prompt + answer.text, "a text that cannot be read")


def _start() -> subprocess.Popen[bytes]:
    bootstrap = _BOOTSTRAP.format(path=str(Path(__file__).parent))
    return subprocess.Popen(
        [sys.executable, "-s", "-S", "-B", "-X", "utf8", "-c", bootstrap],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"},
        cwd="/",
        start_new_session=True,
    )


def read_answers(answers: Sequence[Answer], workers: int | None = None) -> list[Taken]:
    """The programs of many answers, in their order, read in several processes at once."""
    count = min(workers or len(os.sched_getaffinity(0)), -(-len(answers) // _TOGETHER))
    if count <= 1:
        return _shared(lambda reader: reader.read(answers))
    size = -(-len(answers) // (count * 4))
    parts = [answers[start : start + size] for start in range(0, len(answers), size)]
    readers = [Reader() for _ in range(count)]
    free = list(readers)

    def work(part: Sequence[Answer]) -> list[Taken]:
        reader = free.pop()  # as many as there are threads
        try:
            return reader.read(part)
        finally:
            free.append(reader)

    try:
        with ThreadPoolExecutor(count) as pool:
            return [taken for part in pool.map(work, parts) for taken in part]
    finally:
        for reader in readers:
            reader.close()


_lock = threading.Lock()
_kept = Reader()
atexit.register(_kept.close)


def _shared(work: Callable[[Reader], list[Taken]]) -> list[Taken]:
    with _lock:
        return work(_kept)


# -- inside ----------------------------------------------------------------------------------


def main() -> None:
    """Read texts until the other end closes."""
    jobs, replies = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    sys.setrecursionlimit(_DEEP)
    # Loads what parsing loads, the tables for names that aren't ASCII too.
    extraction.extract("Prose\n\n```python\nµé = 1\n```\n<code>&lt;</code>", "", "x")
    _confine()
    while (items := wire.receive_json(jobs)) is not None:
        reply: list[Any] = []
        for text, prompt, entry_point in items:
            signal.setitimer(signal.ITIMER_PROF, _SECONDS)
            try:
                taken = extraction.extract(text, prompt, entry_point)
            except (RecursionError, MemoryError):
                taken = _unread(Answer(text, prompt, entry_point))
            signal.setitimer(signal.ITIMER_PROF, 0)
            reply.append([taken.program, taken.rule])
        wire.send_json(replies, reply)


def _confine() -> None:
    """Give up files, network and processes, as far as this kernel can."""
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    for what, value in (
        (resource.RLIMIT_AS, _MEMORY),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_STACK, isolate.STACK_BYTES),
    ):
        hard = resource.getrlimit(what)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(what, (value, value))
    try:
        rules = kernel.Landlock()  # that allows nothing
    except OSError:
        rules = None
    with contextlib.suppress(OSError):
        if seccomp.supported():
            isolate.confine("landlock", False, rules)
