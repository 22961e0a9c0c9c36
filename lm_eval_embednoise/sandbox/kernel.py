"""The few Linux system calls that Python has no function for, through ctypes."""

from __future__ import annotations

import ctypes
import os
import platform
import struct

_libc = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
MNT_DETACH = 2
_ATTR_RDONLY, _ATTR_NOSUID, _AT_RECURSIVE = 1, 2, 0x8000

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38

MACHINE = platform.machine()
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_CAPSET = {"x86_64": 126, "aarch64": 91}
# From 424 on, numbers are the same on every architecture.
_MOUNT_SETATTR, _LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 442, 444, 445, 446


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _syscall(number: int, what: str, *arguments: object) -> int:
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _check(_libc.syscall(ctypes.c_long(number), *wide), what)


def unshare(flags: int) -> None:
    """Move this process (for CLONE_NEWPID: its children) into new namespaces."""
    _check(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """Mount a file system (man 2 mount)."""
    encoded = [None if text is None else text.encode() for text in (source, target, kind, data)]
    result = _libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3])
    _check(result, f"mount {target}")


def make_read_only(path: str) -> None:
    """Make a mount and all below it read-only and blind to set-user-id bits (Linux 5.12)."""
    attributes = struct.pack("<QQQQ", _ATTR_RDONLY | _ATTR_NOSUID, 0, 0, 0)
    arguments = (-100, path.encode(), _AT_RECURSIVE, attributes, len(attributes))
    _syscall(_MOUNT_SETATTR, "mount_setattr", *arguments)


def pivot_root(new_root: str) -> None:
    """Make `new_root` (a mount point) the root and detach everything else."""
    os.chdir(new_root)
    # Stacking the old root on the new one needs no directory to put it in: pivot_root(2), notes.
    _syscall(_PIVOT_ROOT[MACHINE], "pivot_root", b".", b".")
    _check(_libc.umount2(b".", MNT_DETACH), "umount")
    os.chdir("/")


def unmount(path: str) -> None:
    """Detach the mount at `path`."""
    _check(_libc.umount2(path.encode(), MNT_DETACH), f"umount {path}")


def prctl(option: int, value: int) -> None:
    """Change something about this process (man 2 prctl), with one argument."""
    zero = ctypes.c_ulong(0)
    _check(_libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero), "prctl")


def drop_capabilities() -> None:
    """Give up every capability in this user namespace."""
    header = struct.pack("<Ii", 0x20080522, 0)
    _syscall(_CAPSET[MACHINE], "capset", header, bytes(24))


def install_filter(program: bytes) -> None:
    """Attach a seccomp filter: classic BPF, eight bytes an instruction."""
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HL", len(program) // 8, ctypes.addressof(buffer))
    zero = ctypes.c_ulong(0)
    _check(_libc.prctl(22, ctypes.c_ulong(2), header, zero, zero), "seccomp")


_FS_RIGHTS_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1, 2, 4, 8, 1 << 14
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | 1 << 15


def landlock_abi() -> int:
    """The kernel's Landlock version; 0 where it has none."""
    try:
        return _syscall(_LANDLOCK_CREATE, "landlock", None, 0, 1)
    except OSError:
        return 0


class Landlock:
    """A set of file rules that child processes put on themselves for good."""

    def __init__(self) -> None:
        abi = landlock_abi()
        if abi < 1:
            raise OSError("this kernel has no Landlock")
        self._rights = max(v for k, v in _FS_RIGHTS_BY_ABI.items() if k <= abi)
        attributes = struct.pack("<Q", self._rights)
        if abi >= 4:  # TCP bind and connect
            attributes += struct.pack("<Q", 3)
        if abi >= 6:  # abstract unix sockets and signals to processes outside
            attributes += struct.pack("<Q", 3)
        self.fd = _syscall(_LANDLOCK_CREATE, "landlock", attributes, len(attributes), 0)

    def allow(self, path: str, write: bool = False) -> None:
        """Allow reading, or everything, beneath `path`."""
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            rights = self._rights if write else _READ_FILE | _READ_DIR
            if not os.path.isdir(path):
                rights &= _FILE_RIGHTS
            rule = struct.pack("<Qi", rights & self._rights & ~_EXECUTE, parent)
            _syscall(_LANDLOCK_ADD, f"landlock rule for {path}", self.fd, 1, rule, 0)
        finally:
            os.close(parent)

    def allow_listing(self, path: str) -> None:
        """Allow the names in a directory to be listed, but nothing to be read."""
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            rule = struct.pack("<Qi", _READ_DIR, parent)
            _syscall(_LANDLOCK_ADD, f"landlock rule for {path}", self.fd, 1, rule, 0)
        finally:
            os.close(parent)

    def restrict_self(self) -> None:
        """Apply the rules to the calling process; needs no_new_privs."""
        _syscall(_LANDLOCK_RESTRICT, "landlock_restrict_self", self.fd, 0)
