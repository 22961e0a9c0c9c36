"""The worker: reads jobs, has each program run by a process that never read one, and watches it.

Protocol on its own pipes: frames in (a job, then the input or, unless they are those of the job
before, the tests), frames out (an account; for a program that ran alone its output). Four kinds of
process: this one reads programs and inputs; the tests' process alone reads the tests (`tester`);
one parses (`syntax`); one forks the programs, which inherit its memory, and reads nothing
(`zygote`). None of the first three is an ancestor of a program after it has read its first job.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

from . import candidate, isolate, kernel, standard, syntax, tester, wire, zygote
from .idle import CallCounter, IdleClock, cpu_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_POLL_SECONDS = 0.05
_DEATH_GRACE = 2.0
# Imported before the walls go up, so that a fork finds what programs use already loaded.
_WARM = (
    *("ast", "bisect", "cmath", "collections", "contextlib", "copy", "dataclasses", "datetime"),
    *("decimal", "enum", "fractions", "functools", "hashlib", "heapq", "io", "itertools", "math"),
    *("numbers", "operator", "random", "re", "statistics", "string", "struct", "typing"),
)


class Worker:
    """A worker behind its walls, its helpers started."""

    def __init__(self, level: str, tmp: str, packages: dict[str, str]) -> None:
        self.level = level
        self.tmp = isolate.BOX if level == "namespaces" else tmp
        self.cores = os.cpu_count() or 1
        self._claim_pipes()
        try:
            self._prepare(packages)
        except OSError as error:
            wire.send_json(self.replies, {"refused": str(error)})
            sys.exit(1)

    def _claim_pipes(self) -> None:
        """Move the harness's pipes away from 0 and 1, which belong to the programs."""
        self.jobs, self.replies = os.dup(0), os.dup(1)
        nothing = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(nothing, fd)
        os.close(nothing)
        zygote.renew_standard_streams()

    def _prepare(self, packages: dict[str, str]) -> None:
        for name in _WARM:
            importlib.import_module(name)
        readable = [*isolate.readable_paths(), *packages.values()]
        for parent in sorted({os.path.dirname(path) for path in packages.values()}):
            sys.path.append(parent)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        self.proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
        self.own_user, self.rules = False, None
        self.streams = standard.Streams()
        if self.level == "namespaces":
            self.own_user = isolate.enter_namespaces(readable)
            self.streams = standard.NamedStreams()
            isolate.mount_box()
        elif self.level == "landlock":
            self.rules = isolate.landlock_rules(readable, self.tmp)
        gc.collect()
        self.counter = CallCounter()
        self.examiner, _ = self._start(syntax.serve, [])
        self.tester, self.tester_pid = self._start(
            lambda control: tester.serve(control, self.jobs, self.counter), [self.jobs]
        )
        if self.level == "namespaces":
            kernel.unshare(kernel.CLONE_NEWPID)  # from here on for children

    def _start(
        self, serve: Callable[[socket.socket], None], keep: list[int]
    ) -> tuple[socket.socket, int]:
        """A process beside this one that serves until the socket returned is closed."""
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            with _never_returning():
                kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
                isolate.confine(self.level, self.own_user, self.rules, receives=True)
                zygote.close_all_but([0, 1, 2, theirs.fileno(), *keep])
                serve(theirs)
        theirs.close()
        return ours, pid

    def start_zygote(self) -> zygote.Child | None:
        """Start the process that forks programs. Returns None here, and a child in each program."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            self.counter.close()
            for unused in (self.examiner, self.tester, ours):
                unused.detach()  # else closed again when the interpreter of a program ends
            return zygote.serve(theirs, self.level, self.tmp, self.own_user, self.rules)
        theirs.close()
        self.zygote, self.zygote_pid = zygote.Zygote(ours), pid
        return None

    def serve(self) -> None:
        """Judge programs until the harness closes the pipe."""
        gc.freeze()
        wire.send_json(self.replies, {"ready": self.level})
        while (job := wire.receive_json(self.jobs)) is not None:
            if job["mode"] == "stdin":
                account, output = _Run(self, job).alone(wire.receive(self.jobs) or b"")
                wire.send_json(self.replies, account, output)
            else:
                account = _Run(self, job).with_tests()
                wire.send_json(self.replies, account)
            if account["out_of_step"]:
                sys.exit(1)
            self.streams.close()
            if self.level == "namespaces":
                isolate.renew_box()
            else:
                isolate.empty_directory(self.tmp)
        self.zygote.close()
        os.waitpid(self.zygote_pid, 0)  # its time, and its children's, count as this process's


class _Run:
    """One program: watch it while it runs, report on it afterwards."""

    def __init__(self, worker: Worker, job: dict[str, Any]) -> None:
        self._worker, self._job = worker, job
        self._killed_for: str | None = None
        self._began = time.monotonic()
        self._report, self._report_out = os.pipe()
        self.out_of_step = False
        self._ask_for_facts()

    def alone(self, given: bytes) -> tuple[dict[str, Any], bytes]:
        """Run a program that reads its input and prints its answer."""
        pid = self._fork(given, [])
        zygote = self._worker.zygote
        self._watch(zygote.fileno(), self._idle_clock(pid))
        status, cpu = zygote.bury(pid)
        output, size = self._worker.streams.output(self._job["output"])
        return self._account(status, cpu, None, size), output

    def with_tests(self) -> dict[str, Any]:
        """Run a program whose functions the tests call from a process of their own."""
        worker = self._worker
        calls_in, calls_out = os.pipe()
        returns_in, returns_out = os.pipe()
        pid = self._fork(b"", [calls_in, returns_out])
        message = {key: self._job[key] for key in ("entry_point", "memory", "cpu", "call_cpu")}
        message |= {"new_tests": self._job["new_tests"], "pid": pid}
        with contextlib.suppress(BrokenPipeError):
            tester.send(worker.tester, message, [calls_out, returns_in])
        for fd in (calls_out, returns_in):
            os.close(fd)
        control = worker.tester.fileno()
        clock = self._idle_clock(pid, worker.counter, self._job["call_cpu"] is not None)
        self._watch(control, clock)
        if self._killed_for:
            zygote.kill(pid)  # what it answered before counts, as soon as the tests have seen it
        answer = None
        if not self._killed_for or select.select([control], [], [], _DEATH_GRACE)[0]:
            with contextlib.suppress(ConnectionError, wire.WireError):
                answer = wire.receive_json(control)
        self.out_of_step = answer is None
        if not self._killed_for:  # tests that fail before their first call are quick
            self._watch(self._report, clock)
        if answer is not None and answer.get("kind") == tester.DIED:
            worker.zygote.await_end(_DEATH_GRACE)  # its pipes close a moment before it has ended
        elif answer is None and not self._killed_for:
            answer = {"outcome": "raised", "kind": tester.TIME_IS_UP}  # of the tests themselves
        status, cpu = worker.zygote.bury(pid)
        return self._account(status, cpu, answer, worker.streams.output(0)[1])

    def _fork(self, given: bytes, pipes: list[int]) -> int:
        """Have the program's process forked; its number. What it needs, it reads for itself."""
        program = os.memfd_create("program")
        wire.send_json(program, {key: self._job[key] for key in ("program", "header")})
        os.lseek(program, 0, os.SEEK_SET)
        theirs = [self._report_out, program, *self._worker.streams.open(given), *pipes]
        job = self._job
        pid = self._worker.zygote.fork(job["cpu"], job["memory"], job["output"], theirs)
        for fd in theirs:
            os.close(fd)
        return pid

    def _idle_clock(
        self, pid: int, calls: CallCounter | None = None, apart: bool = False
    ) -> IdleClock:
        worker = self._worker
        children = worker.level == "rlimits"
        tests = worker.tester_pid if calls else 0
        return IdleClock(worker.proc, pid, _POLL_SECONDS, calls, tests, apart, children)

    def _ask_for_facts(self) -> None:
        keys = ("program", "entry_point", "header", "memory", "cpu")
        with contextlib.suppress(BrokenPipeError):
            message = {key: self._job[key] for key in keys}
            wire.send_json(self._worker.examiner.fileno(), message)

    def _facts(self) -> Any:
        """What the program is; None when it broke the process that reads it."""
        try:
            facts = wire.receive_json(self._worker.examiner.fileno())
        except (ConnectionError, wire.WireError):
            facts = None
        self.out_of_step |= facts is None
        return facts

    def _watch(self, ended: int, idle: IdleClock) -> None:
        """Wait until `ended` is readable, or some time of the program is up."""
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        poll.register(self._worker.jobs, 0)  # reports only that the harness is gone
        left = self._job["cpu"]
        while self._killed_for is None:
            wait = min(max(left / self._worker.cores, 0.002), _POLL_SECONDS)
            for fd, event in poll.poll(wait * 1000):
                if fd == ended:
                    return
                if event & select.POLLHUP:
                    os._exit(1)
            left = self._job["cpu"] - cpu_seconds(idle.pid)
            if left < 0:
                self._killed_for = "cpu"
            elif time.monotonic() - self._began > self._job["wall"]:
                self._killed_for = "wall"
            elif idle.look() > self._job["idle"]:
                self._killed_for = "idle"
            elif self._worker.level != "namespaces" and isolate.overfull(self._worker.tmp):
                self._killed_for = "files"

    def _account(self, status: int, cpu: float, answer: Any, size: int) -> dict[str, Any]:
        failure, error = candidate.read_report(self._report)
        facts = failure or self._facts()
        os.close(self._report)
        return {
            "facts": facts,
            "error": error,
            "answer": answer,
            "killed_for": self._killed_for,
            "status": os.waitstatus_to_exitcode(status),
            "output_bytes": size,
            "cpu": cpu,
            "wall": time.monotonic() - self._began,
            "out_of_step": self.out_of_step,
        }


@contextlib.contextmanager
def _never_returning() -> Iterator[None]:
    """A forked child must not fall back into the worker's own code, whatever it raises."""
    try:
        yield
    finally:
        os._exit(1)


def main() -> None:
    """Entry point of the worker process; its one argument is JSON. Programs return from it too."""
    import site

    site.setquit()  # `exit()` and `quit()`, which the interpreter's -S leaves out
    options = json.loads(sys.argv[1])
    worker = Worker(options["level"], options["tmp"], options["packages"])
    child = worker.start_zygote()
    if child is None:
        worker.serve()
        return
    job = wire.receive_json(child.program)
    os.close(child.program)
    candidate.run(job, child.report, child.pipes)
