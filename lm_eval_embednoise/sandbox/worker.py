"""The warm worker: one process that never runs foreign code and forks for each program.

Protocol on its own pipes: frames in (a job, then the input or, unless they are those of the job
before, the tests), frames out (an account; for a program that ran alone its output). The tests'
frame is read by the tests' process alone, which stays outside the programs' process namespace: this
process, whose memory every candidate inherits, never holds an expected value.
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
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from . import candidate, isolate, kernel, syntax, tester, wire

_PROCESSES = {"namespaces": 256, "landlock": 4096, "rlimits": 64}
_POLL_SECONDS = 0.05
_DEATH_GRACE = 2.0
# Imported before the walls go up, so that a fork finds what programs use already loaded.
_WARM = (
    *("ast", "bisect", "cmath", "collections", "contextlib", "copy", "dataclasses", "datetime"),
    *("decimal", "enum", "fractions", "functools", "hashlib", "heapq", "io", "itertools", "math"),
    *("numbers", "operator", "random", "re", "statistics", "string", "struct", "typing"),
)


class Worker:
    """A worker behind its walls."""

    def __init__(self, level: str, tmp: str, packages: dict[str, str]) -> None:
        self.level = level
        self.tmp = tmp
        self.own_user = False
        self.rules: kernel.Landlock | None = None
        self.helpers: list[int] = []
        self.cores = os.cpu_count() or 1
        self._claim_pipes()
        try:
            self._prepare(packages)
        except OSError as error:
            wire.send_json(self.replies, {"refused": str(error)})
            sys.exit(1)
        wire.send_json(self.replies, {"ready": level})

    def _claim_pipes(self) -> None:
        """Move the harness's pipes away from 0 and 1, which belong to the programs."""
        self.jobs, self.replies = os.dup(0), os.dup(1)
        nothing = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(nothing, standard)
        os.close(nothing)

    def _prepare(self, packages: dict[str, str]) -> None:
        for name in _WARM:
            importlib.import_module(name)
        readable = [*isolate.readable_paths(), *packages.values()]
        for parent in sorted({os.path.dirname(path) for path in packages.values()}):
            sys.path.append(parent)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        if self.level == "namespaces":
            self.own_user = isolate.enter_namespaces(readable)
            self.tmp = isolate.BOX
        elif self.level == "landlock":
            self.rules = isolate.landlock_rules(readable, self.tmp)
        else:
            kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        gc.collect()
        self.examiner = self._start(syntax.serve, [])
        self.tester = self._start(lambda control: tester.serve(control, self.jobs), [self.jobs])
        if self.level == "namespaces":
            isolate.become_process_one()
        gc.disable()
        gc.freeze()

    def _start(self, serve: Callable[[socket.socket], None], keep: list[int]) -> socket.socket:
        """A process beside this one that serves until the socket returned is closed."""
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            with _never_returning():
                kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
                isolate.confine(self.level, self.own_user, self.rules, receives=True)
                _close_all_but([0, 1, 2, theirs.fileno(), *keep])
                serve(theirs)
        theirs.close()
        self.helpers.append(pid)
        return ours

    def serve(self) -> None:
        """Judge programs until the harness closes the pipe."""
        while (job := wire.receive_json(self.jobs)) is not None:
            if job["mode"] == "stdin":
                account, output = _Run(self, job).alone()
                wire.send_json(self.replies, account)
                wire.send(self.replies, output)
            else:
                account = self._try_with_tests(job)
                wire.send_json(self.replies, account)
            if account["out_of_step"]:
                sys.exit(1)
            self._clean_up()

    def _try_with_tests(self, job: dict[str, Any]) -> dict[str, Any]:
        """With predicted calls if possible; without, when what happened then proves nothing."""
        run = _Run(self, job)
        account = run.with_tests()
        if not account["out_of_step"] and run.predicted_in_vain(account):
            self._clean_up()
            job.update(predict=False, new_tests=False)
            account = _Run(self, job).with_tests()
        return account

    def _clean_up(self) -> None:
        """Kill whatever the program left behind, then empty its directory."""
        os.chdir("/")
        if self.level == "namespaces":
            _kill(-1)  # as process 1: everyone else in here
            _reap()
            isolate.renew_box()
            return
        if self.level == "rlimits":
            _kill_descendants(but=self.helpers)
        isolate.empty_directory(self.tmp)


class _Run:
    """One program: its processes, the watch over them, the account afterwards."""

    def __init__(self, worker: Worker, job: dict[str, Any]) -> None:
        self._worker, self._job = worker, job
        self._killed_for: str | None = None
        self._began = time.monotonic()
        self._output = os.memfd_create("output")
        self._report, self._report_out = os.pipe()
        self.out_of_step = False

    def alone(self) -> tuple[dict[str, Any], bytes]:
        """Run a program that reads its input and prints its answer."""
        stdin = os.memfd_create("stdin")
        wire.write_all(stdin, wire.receive(self._worker.jobs) or b"")
        os.lseek(stdin, 0, os.SEEK_SET)
        pid = os.fork()
        if pid == 0:
            with _never_returning():
                self._enter(self._report_out, stdin, self._output, [])
                candidate.run(self._job, self._report_out)
        os.close(stdin)
        os.close(self._report_out)
        self._ask_for_facts()
        ended = os.pidfd_open(pid)
        self._watch(ended, [pid])
        os.close(ended)
        status, cpu = _end(pid)
        output = os.pread(self._output, self._job["output"], 0)
        return self._account(status, cpu, None), output

    def with_tests(self) -> dict[str, Any]:
        """Run a program whose functions the tests call from a process of their own."""
        worker = self._worker
        calls_in, calls_out = os.pipe()
        returns_in, returns_out = os.pipe()
        done_in, done_out = os.pipe()
        nothing = os.open(os.devnull, os.O_RDWR)
        pid = os.fork()
        if pid == 0:
            with _never_returning():
                pipes = (calls_in, returns_out, done_out)
                self._enter(self._report_out, nothing, self._output, [*pipes])
                candidate.run(self._job, self._report_out, pipes)
        for fd in (nothing, calls_in, returns_out, done_out, self._report_out):
            os.close(fd)
        keys = ("entry_point", "memory", "cpu", "call_cpu", "predict", "new_tests")
        message = {key: self._job[key] for key in keys}
        # From another process namespace the tests' process knows this one by another number.
        message["pid"] = None if worker.level == "namespaces" else pid
        with contextlib.suppress(BrokenPipeError):
            tester.send(worker.tester, message, [calls_out, returns_in, done_in], pid)
        for fd in (calls_out, returns_in, done_in):
            os.close(fd)
        self._ask_for_facts()
        control = worker.tester.fileno()
        self._watch(control, [pid])
        if self._killed_for:
            _kill(pid)  # what it answered before counts, as soon as the tests have looked at it
        answer = None
        if not self._killed_for or select.select([control], [], [], _DEATH_GRACE)[0]:
            with contextlib.suppress(ConnectionError, wire.WireError):
                answer = wire.receive_json(control)
        self.out_of_step = answer is None
        if not self._killed_for:  # tests that fail before their first call are quick
            self._watch(self._report, [pid])
        if answer is not None and answer.get("kind") == tester.DIED:
            _await_end(pid)  # its pipes close a moment before its status is there
        elif answer is None and not self._killed_for:
            answer = {"outcome": "raised", "kind": tester.TIME_IS_UP}  # of the tests themselves
        status, cpu = _end(pid)
        return self._account(status, cpu, answer)

    def predicted_in_vain(self, account: dict[str, Any]) -> bool:
        """Whether calls made ahead of the tests may have changed how the program ended."""
        answer, job = account["answer"], self._job
        if not answer or "outcome" not in answer or not job["predict"]:
            return False
        if answer["outcome"] == tester.MISPREDICTED:
            return True
        kind = answer.get("kind")  # none when all tests passed: then every call counted
        settled = answer["predicted"] and kind not in (None, tester.DIED, tester.TIME_IS_UP)
        beyond = account["killed_for"] or account["cpu"] > job["cpu"]
        return bool(settled and (beyond or account["output_bytes"] >= job["output"]))

    def _ask_for_facts(self) -> None:
        keys = ("program", "entry_point", "memory", "cpu")
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

    def _enter(self, failures: int, stdin: int, stdout: int, keep: list[int]) -> None:
        """In the child: limits, walls, own descriptors only. What fails is reported, not run."""
        try:
            os.dup2(stdin, 0)
            os.dup2(stdout, 1)
            level, job = self._worker.level, self._job
            kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            os.chdir(self._worker.tmp)
            isolate.set_limits(job["cpu"], job["memory"], job["output"], _PROCESSES[level])
            isolate.confine(level, self._worker.own_user, self._worker.rules)
            _close_all_but([0, 1, 2, failures, *keep])
            gc.enable()
        except BaseException:
            wire.send_json(failures, {"failure": traceback.format_exc()})
            os._exit(1)

    def _watch(self, ended: int, pids: list[int]) -> None:
        """Wait until `ended` is readable, or the time of one of `pids` or of the clock is up."""
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        poll.register(self._worker.jobs, 0)  # reports only that the harness is gone
        limit = self._job["cpu"]
        while True:
            left = limit - max(tester.cpu_seconds(pid) for pid in pids)
            if left < 0:
                self._killed_for = "cpu"
            elif time.monotonic() - self._began > self._job["wall"]:
                self._killed_for = "wall"
            if self._killed_for:
                return
            wait = min(max(left / self._worker.cores, 0.002), _POLL_SECONDS)
            for fd, event in poll.poll(wait * 1000):
                if fd == ended:
                    return
                if event & select.POLLHUP:
                    os._exit(1)

    def _account(self, status: int, cpu: float, answer: Any) -> dict[str, Any]:
        failure, error = _read_report(self._report)
        facts = failure or self._facts()
        os.close(self._report)
        size = os.fstat(self._output).st_size
        os.close(self._output)
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


def _read_report(fd: int) -> tuple[Any, Any]:
    """A report: why the program was not started (ours), its end (which it may have forged)."""
    os.set_blocking(fd, False)  # a stray process may still hold the other end
    try:
        failure = wire.receive_json(fd)
    except BlockingIOError:
        return None, None
    try:
        error = wire.receive_json(fd)
    except (BlockingIOError, ValueError, RecursionError, wire.WireError):
        error = None
    return failure, error if isinstance(error, str) else None


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _end(pid: int) -> tuple[int, float]:
    """Kill a child if it still lives; its wait status and processor seconds."""
    _kill(pid)
    _, status, usage = os.wait4(pid, 0)
    return status, usage.ru_utime + usage.ru_stime


def _await_end(pid: int) -> None:
    fd = os.pidfd_open(pid)
    select.select([fd], [], [], _DEATH_GRACE)
    os.close(fd)


def _reap() -> None:
    try:
        while True:
            os.wait()
    except ChildProcessError:
        pass


def _kill_descendants(but: list[int]) -> None:
    """Kill all other children, those adopted when their parents died included."""
    while True:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            children = [child for child in file.read().split() if int(child) not in but]
        if not children:
            return
        for child in children:
            _kill(int(child))
        for child in children:
            os.waitpid(int(child), 0)


def _close_all_but(keep: list[int]) -> None:
    low = 0
    for fd in sorted(set(keep)):
        if low < fd:
            os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, 1 << 16)


def main() -> None:
    """Entry point of the worker process; its one argument is JSON."""
    import site

    site.setquit()  # `exit()` and `quit()`, which the interpreter's -S leaves out
    options = json.loads(sys.argv[1])
    Worker(options["level"], options["tmp"], options["packages"]).serve()
