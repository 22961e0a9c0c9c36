"""The process that forks programs: it imports, forks and buries, and never holds a job.

Every program inherits this process's memory. So nothing of any job comes near it: an order says
how much a program may use, and brings the descriptors from which the forked child reads its own
program and input; the process beside it (`worker`) reads jobs, watches and cleans up.
"""

from __future__ import annotations

import array
import contextlib
import gc
import os
import select
import signal
import socket
import struct
import sys
import traceback
from dataclasses import dataclass

from . import isolate, kernel, seccomp, wire

_ORDER = struct.Struct("<dQQ")  # processor seconds, bytes of memory, bytes of output
_END = struct.Struct("<id")  # wait status, processor seconds
_CREDENTIALS = struct.Struct("3i")
_PROCESSES = {"namespaces": 256, "landlock": 4096, "rlimits": 64}
_MOST_DESCRIPTORS = 6
_FORKED, _NOT_FORKED = b"forked", b"not forked"


@dataclass(frozen=True)
class Child:
    """What a forked child finds: its report, its program, and in call-based jobs two pipes."""

    report: int
    program: int
    pipes: tuple[int, int] | None


class Zygote:
    """The worker's side: have programs forked and buried, one at a time."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        # The kernel then says from whom a message is, in this process's own numbering.
        control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)

    def close(self) -> None:
        """End the forking process."""
        self._control.close()

    def fork(self, cpu: float, memory: int, output: int, descriptors: list[int]) -> int:
        """The process number of a new child.

        `descriptors`: report, program, standard input, standard output; of a call-based job the
        program's ends of its two pipes.

        Raises:
            OSError: when the kernel has no process to give.
            ConnectionError: when the forking process is gone.
        """
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
        self._control.sendmsg([_ORDER.pack(cpu, memory, output)], [rights])
        space = socket.CMSG_SPACE(_CREDENTIALS.size)
        word, ancillary, _, _ = self._control.recvmsg(64, space)
        if word == _FORKED:
            return int(_CREDENTIALS.unpack(ancillary[0][2])[0])
        if word.startswith(_NOT_FORKED):
            raise OSError(word.decode("utf-8", "replace"))
        raise ConnectionError("the forking process is gone")

    def fileno(self) -> int:
        """A descriptor that is readable once the child has ended."""
        return self._control.fileno()

    def await_end(self, seconds: float) -> bool:
        """Wait until the child has ended, but no longer than this; returns whether it has."""
        return bool(select.select([self._control], [], [], seconds)[0])

    def bury(self, pid: int) -> tuple[int, float]:
        """Kill the child if it runs, with all that it left; its wait status, processor seconds."""
        if not self.await_end(0):
            kill(pid)
        answer = self._control.recv(_END.size)
        if len(answer) != _END.size:
            raise ConnectionError("the forking process is gone")
        status, cpu = _END.unpack(answer)
        return status, cpu


def serve(
    control: socket.socket, level: str, tmp: str, own_user: bool, rules: kernel.Landlock | None
) -> Child:
    """Fork a child for each order until the worker closes `control`.

    Returns:
        In the children only: behind their walls, with their own descriptors and nothing else.
    """
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if level == "rlimits":
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    close_all_but([0, 1, 2, control.fileno(), *([rules.fd] if rules else [])])
    os.chdir("/")
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # ends a program that writes too much
    if level != "rlimits":
        seccomp.build(0, rules is not None)  # assembled here, once, and not in each child
    gc.disable()
    gc.freeze()
    space = socket.CMSG_SPACE(_MOST_DESCRIPTORS * 4)
    while True:
        order, ancillary, _, _ = control.recvmsg(_ORDER.size, space)
        if not order:
            os._exit(0)
        descriptors = array.array("i", ancillary[0][2])
        try:
            pid = os.fork()
        except OSError as error:
            control.send(_NOT_FORKED + f": {error.strerror}".encode())
            for fd in descriptors:
                os.close(fd)
            continue
        if pid == 0:
            control.send(_FORKED)
            control.detach()
            return _enter(order, descriptors, level, tmp, own_user, rules)
        for fd in descriptors:
            os.close(fd)
        control.send(_END.pack(*_end(pid, level)))


def _enter(
    order: bytes,
    descriptors: array.array[int],
    level: str,
    tmp: str,
    own_user: bool,
    rules: kernel.Landlock | None,
) -> Child:
    """In the child: go behind the walls. One that can't be confined says why and runs nothing."""
    report, program, stdin, stdout, *pipes = descriptors
    try:
        cpu, memory, output = _ORDER.unpack(order)
        os.dup2(stdin, 0)
        os.dup2(stdout, 1)
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.chdir(tmp)
        isolate.set_limits(cpu, memory, output, _PROCESSES[level])
        isolate.confine(level, own_user, rules)
        close_all_but([0, 1, 2, report, program, *pipes])
        gc.enable()
    except BaseException:
        wire.send_json(report, {"failure": traceback.format_exc()})
        os._exit(1)
    return Child(report, program, (pipes[0], pipes[1]) if pipes else None)


def _end(pid: int, level: str) -> tuple[int, float]:
    """Wait until a child has ended, then kill all that it left; its status, processor seconds."""
    _, status, usage = os.wait4(pid, 0)
    if level == "namespaces":
        kill(-1)  # as process 1: everyone else in here
        _reap()
    elif level == "rlimits":
        _kill_descendants()
    return status, usage.ru_utime + usage.ru_stime


def kill(pid: int) -> None:
    """Kill a process; no matter if it is dead."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()


def _kill_descendants() -> None:
    """Kill all children, those adopted when their parents died included."""
    while True:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            children = [int(child) for child in file.read().split()]
        if not children:
            return
        for child in children:
            kill(child)
        for child in children:
            os.waitpid(child, 0)


def close_all_but(keep: list[int]) -> None:
    """Close every descriptor that is not in `keep`."""
    low = 0
    for fd in sorted(set(keep)):
        if low < fd:
            os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, 1 << 16)


def renew_standard_streams() -> None:
    """Make `sys.stdin` and `sys.stdout` anew, for what descriptors 0 and 1 are now: files.

    Those of the start were made for the harness's pipes, and remember that pipes can't be sought.
    """
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w")):
        stream = open(  # noqa: SIM115
            fd, mode, encoding="utf-8", errors="surrogateescape", closefd=False
        )
        stream.buffer.raw.name = f"<{name}>"  # type: ignore[attr-defined]
        getattr(sys, name).detach()
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
