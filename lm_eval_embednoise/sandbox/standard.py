"""Standard input and output of programs: files, so that `/dev/stdin` can be opened at every level.

Where `/proc` is in sight, `/dev/stdin` leads through it to any file, also to one without a name. A
root without `/proc` needs names: two files on a mount that nobody else sees, the first of them
read-only there. They are emptied after each program.
"""

from __future__ import annotations

import os

from . import isolate, kernel, wire


class Streams:
    """The standard input and output of one program after the other."""

    def __init__(self) -> None:
        self._output = -1

    def open(self, given: bytes) -> tuple[int, int]:
        """Descriptors for a program: standard input, holding `given`, and output. Yours to close.

        Fresh files in memory: there is nothing that the program before could have left in them.
        """
        stdin = os.memfd_create("stdin")
        wire.write_all(stdin, given)
        os.lseek(stdin, 0, os.SEEK_SET)
        self._output = os.memfd_create("stdout")
        return stdin, os.dup(self._output)

    def output(self, limit: int) -> tuple[bytes, int]:
        """What the program has written, cut at `limit`, and how many bytes it was."""
        size = os.fstat(self._output).st_size
        return os.pread(self._output, min(limit, size), 0), size

    def close(self) -> None:
        """Forget the program's input and output."""
        os.close(self._output)


class NamedStreams(Streams):
    """The same through two files of the own root, to be made while it is being built."""

    def __init__(self) -> None:
        flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
        kernel.mount("tmpfs", isolate.BOX, "tmpfs", flags, "mode=755")
        files = []
        for name in ("stdin", "stdout"):
            path = f"{isolate.BOX}/{name}"
            files.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC))
            kernel.mount(path, f"/dev/{name}", None, kernel.MS_BIND)
        kernel.make_read_only("/dev/stdin")
        kernel.unmount(isolate.BOX)
        self._input, self._output = files
        self.close()

    def open(self, given: bytes) -> tuple[int, int]:
        """See `Streams.open`."""
        wire.write_all(self._input, given)
        return os.open("/dev/stdin", os.O_RDONLY), os.open("/dev/stdout", os.O_WRONLY)

    def close(self) -> None:
        """Empty both files, and undo what the program did to the mode of its own."""
        for fd, mode in ((self._input, 0o444), (self._output, 0o666)):
            os.ftruncate(fd, 0)
            os.lseek(fd, 0, os.SEEK_SET)
            os.fchmod(fd, mode)
