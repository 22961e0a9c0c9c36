"""Folders for programs' files, and the end of those whose run was killed.

A folder is locked by the process that made it, for as long as it lives; the kernel drops the lock
of a dead one. So a folder that can be locked has no owner: no process number is compared, which
another container on the same disk would read differently.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from pathlib import Path

from . import isolate

PREFIX = "embednoise-sandbox-"


class Scratch:
    """A new folder of this process, in the place for temporary files."""

    def __init__(self) -> None:
        while True:
            self.path = tempfile.mkdtemp(prefix=PREFIX)
            self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            if _locked(self._lock) and os.path.isdir(self.path):
                return
            os.close(self._lock)  # somebody's sweep came between making and locking

    def remove(self) -> None:
        """Remove the folder and all in it."""
        _remove(self.path)
        os.close(self._lock)


def sweep() -> int:
    """Remove this user's folders that no living process owns; how many they were."""
    removed = 0
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(fd).st_uid == os.geteuid() and _locked(fd):
                    _remove(str(path))
                    removed += 1
            finally:
                os.close(fd)
    return removed


def _locked(fd: int) -> bool:
    """Whether the folder is now ours."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        isolate.empty_directory(path)
        os.rmdir(path)
