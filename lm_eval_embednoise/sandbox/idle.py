"""How long a program has waited: time in which it could not have run on any machine.

A program that waits for what never comes uses no processor time, so that limit never ends it; and
a limit on wall time would make verdicts depend on load. So two looks at it are compared. When its
processor clock does not move between them, and each of its threads sleeps at both, it slept all the
time between: a thread that had become ready would have had to run before it could sleep again.
A thread that is ready but gets no processor is in another state and is not counted, however long;
nor is one that waits for a disk.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import time

_ASLEEP = (b"S", b"Z", b"T")  # interruptible sleep; a thread that has ended; stopped by a signal
_COUNTER = struct.Struct("<Q")


class CallCounter:
    """Memory that the tests' process shares with the watch: odd while a call awaits its answer."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _COUNTER.size)

    @property
    def value(self) -> int:
        """Twice the number of calls answered, plus one while one is not."""
        return int(_COUNTER.unpack_from(self._memory)[0])

    def step(self) -> None:
        """A call is made, or answered."""
        _COUNTER.pack_into(self._memory, 0, self.value + 1)

    def reset(self) -> None:
        """No call is waited for."""
        _COUNTER.pack_into(self._memory, 0, 0)

    def close(self) -> None:
        """Not for this process."""
        self._memory.close()


class IdleClock:
    """Adds up the time in which a program slept.

    Args:
        proc: descriptor of the outer /proc.
        pid: the program.
        interval: seconds between two looks. A longer gap counts as twice this: the watching process
            may itself have been kept from running.
        calls, tester: of a program that is called, how far the tests are, and their process. Time
            counts only while the program owes an answer: a call is out, and the tests' process
            sleeps (it would be ready to run if the answer were there).
        apart: start anew for each call.
        children: whether the program may have processes of its own. While it has, it isn't idle.
    """

    def __init__(
        self,
        proc: int,
        pid: int,
        interval: float,
        calls: CallCounter | None = None,
        tester: int = 0,
        apart: bool = False,
        children: bool = False,
    ) -> None:
        self._proc, self.pid, self._longest = proc, pid, 2 * interval
        self._calls, self._tester = calls, tester
        self._apart, self._children = apart, children
        self._before: tuple[float, int] | None = None
        self._was_asleep = False
        self._looked = 0.0
        self.seconds = 0.0

    def look(self) -> float:
        """Look now; the seconds so far."""
        now = time.monotonic()
        count = self._calls.value if self._calls else 1
        if self._apart and self._before and self._before[1] != count:
            self.seconds = 0.0
        # States are read after the clock: who slept, but ran since the last look, has moved it.
        seen = (cpu_seconds(self.pid), count)
        asleep = count % 2 == 1 and self._asleep(self.pid, self._children)
        if self._was_asleep and asleep and seen == self._before and self._tester_asleep():
            self.seconds += min(now - self._looked, self._longest)
        self._before, self._was_asleep, self._looked = seen, asleep, now
        return self.seconds

    def _tester_asleep(self) -> bool:
        return not self._tester or self._asleep(self._tester, False)

    def _asleep(self, pid: int, children: bool) -> bool:
        """Whether every thread of a process sleeps; False where that can't be seen."""
        with contextlib.suppress(OSError, IndexError):
            folder = os.open(f"{pid}/task", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._proc)
            try:
                return all(_thread_asleep(folder, name, children) for name in os.listdir(folder))
            finally:
                os.close(folder)
        return False


def _thread_asleep(folder: int, thread: str, children: bool) -> bool:
    state = _read(folder, f"{thread}/stat").rpartition(b")")[2].split()[0]
    return state in _ASLEEP and not (children and _read(folder, f"{thread}/children").strip())


def _read(folder: int, path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY, dir_fd=folder)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)


def cpu_seconds(pid: int) -> float:
    """Processor time of another process so far, all its threads together."""
    try:
        return time.clock_gettime((~pid << 3) | 2)  # the kernel's id for that process's clock
    except OSError:
        return 0.0
