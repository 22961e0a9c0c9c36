"""The system-call filter: what a Python program may ask the kernel for, and nothing else.

An allow-list: every other call fails with EPERM. No new processes (threads only), no sockets but a
connected pair, no signals to anyone else, no tracing, no mounts, no exec.
"""

from __future__ import annotations

import errno
import struct
from functools import lru_cache

from . import kernel

# name: (x86_64, aarch64); None where the architecture has no such call.
_CALLS: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63),
    "write": (1, 64),
    "open": (2, None),
    "close": (3, 57),
    "stat": (4, None),
    "fstat": (5, 80),
    "lstat": (6, None),
    "poll": (7, None),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "readv": (19, 65),
    "writev": (20, 66),
    "access": (21, None),
    "pipe": (22, None),
    "select": (23, None),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "dup": (32, 23),
    "dup2": (33, None),
    "pause": (34, None),
    "nanosleep": (35, 101),
    "getitimer": (36, 102),
    "alarm": (37, None),
    "setitimer": (38, 103),
    "getpid": (39, 172),
    "sendfile": (40, 71),
    "recvfrom": (45, 207),
    "shutdown": (48, 210),
    "getsockname": (51, 204),
    "getpeername": (52, 205),
    "setsockopt": (54, 208),
    "getsockopt": (55, 209),
    "exit": (60, 93),
    "uname": (63, 160),
    "flock": (73, 32),
    "fsync": (74, 82),
    "fdatasync": (75, 83),
    "truncate": (76, 45),
    "ftruncate": (77, 46),
    "getdents64": (217, 61),
    "getcwd": (79, 17),
    "chdir": (80, 49),
    "fchdir": (81, 50),
    "rename": (82, None),
    "mkdir": (83, None),
    "rmdir": (84, None),
    "unlink": (87, None),
    "symlink": (88, None),
    "readlink": (89, None),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "umask": (95, 166),
    "gettimeofday": (96, 169),
    "getrlimit": (97, 163),
    "getrusage": (98, 165),
    "sysinfo": (99, 179),
    "times": (100, 153),
    "getuid": (102, 174),
    "getgid": (104, 176),
    "geteuid": (107, 175),
    "getegid": (108, 177),
    "getppid": (110, 173),
    "getpgrp": (111, None),
    "getgroups": (115, 158),
    "getresuid": (118, 148),
    "getresgid": (120, 150),
    "getpgid": (121, 155),
    "getsid": (124, 156),
    "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137),
    "rt_sigsuspend": (130, 133),
    "sigaltstack": (131, 132),
    "statfs": (137, 43),
    "fstatfs": (138, 44),
    "getpriority": (140, 141),
    "arch_prctl": (158, None),
    "gettid": (186, 178),
    "time": (201, None),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "epoll_create": (213, None),
    "set_tid_address": (218, 96),
    "restart_syscall": (219, 128),
    "fadvise64": (221, 223),
    "timer_create": (222, 107),
    "timer_settime": (223, 110),
    "timer_gettime": (224, 108),
    "timer_getoverrun": (225, 109),
    "timer_delete": (226, 111),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "epoll_wait": (232, None),
    "epoll_ctl": (233, 21),
    "openat": (257, 56),
    "mkdirat": (258, 34),
    "newfstatat": (262, 79),
    "unlinkat": (263, 35),
    "renameat": (264, 38),
    "symlinkat": (266, 36),
    "readlinkat": (267, 78),
    "fchmodat": (268, 53),
    "faccessat": (269, 48),
    "pselect6": (270, 72),
    "ppoll": (271, 73),
    "set_robust_list": (273, 99),
    "utimensat": (280, 88),
    "epoll_pwait": (281, 22),
    "timerfd_create": (283, 85),
    "eventfd": (284, None),
    "timerfd_settime": (286, 86),
    "timerfd_gettime": (287, 87),
    "eventfd2": (290, 19),
    "epoll_create1": (291, 20),
    "dup3": (292, 24),
    "pipe2": (293, 59),
    "preadv": (295, 69),
    "pwritev": (296, 70),
    "getcpu": (309, 168),
    "sched_getattr": (315, 275),
    "renameat2": (316, 276),
    "getrandom": (318, 278),
    "membarrier": (324, 283),
    "copy_file_range": (326, 285),
    "statx": (332, 291),
    "rseq": (334, 293),
    "close_range": (436, 436),
    "faccessat2": (439, 439),
    "fchmodat2": (452, 452),
}
# What Landlock does not watch: modes and times, and before Linux 6.2 the length, of any file that
# has a path or can be opened for reading.
_UNWATCHED = ("chmod", "fchmod", "fchmodat", "fchmodat2", "utimensat", "truncate")
_COLUMN = {"x86_64": 0, "aarch64": 1}
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# Calls allowed for some arguments only, by the same columns.
_CLONE, _CLONE3, _KILL, _TGKILL = (56, 220), (435, 435), (62, 129), (234, 131)
_IOCTL, _FCNTL, _PRCTL, _PRLIMIT = (16, 29), (72, 25), (157, 167), (302, 261)
_SENDTO, _SOCKETPAIR, _RECVMSG = (44, 206), (53, 199), (47, 212)
_ANYONE = 0x7A6B5C4D  # larger than any process number

_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS
_CLONE_THREAD = 0x00010000
# TCGETS (isatty), TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
# F_DUPFD, GETFD, SETFD, GETFL, SETFL, GETLK, SETLK, SETLKW, F_DUPFD_CLOEXEC
_FCNTLS = (0, 1, 2, 3, 4, 5, 6, 7, 1030)

_LOAD, _JUMP_EQ, _JUMP_SET, _JUMP_GE, _JUMP_GT, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x25, 0x06
_OFFSET_NUMBER, _OFFSET_ARCH, _OFFSET_ARGUMENTS = 0, 4, 16


def supported() -> bool:
    """Whether the table above has this machine's call numbers."""
    return kernel.MACHINE in _COLUMN


def _op(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("<HBBI", code, yes, no, value)


def _argument(index: int, high: bool = False) -> bytes:
    return _op(_LOAD, _OFFSET_ARGUMENTS + 8 * index + 4 * high)


def _on(number: int, body: list[bytes]) -> list[bytes]:
    """Run `body`, which must return on every path, when the loaded call number is `number`."""
    return [_op(_JUMP_EQ, number, 0, len(body)), *body]


def _one_of(index: int, values: tuple[int, ...]) -> list[bytes]:
    """Allow when argument `index` is one of `values`."""
    body = [_argument(index)]
    for value in values:
        body += [_op(_JUMP_EQ, value, 0, 1), _op(_RETURN, _ALLOW)]
    return [*body, _op(_RETURN, _EPERM)]


def build(pid: int, landlock: bool, receives: bool = False) -> bytes:
    """The filter for the process `pid`: it may signal, and set limits for, itself alone.

    With `landlock` the calls that Landlock does not watch are refused as well; `receives` lets the
    tests' process take descriptors from the worker.
    """
    me, anyone = struct.pack("<I", pid), struct.pack("<I", _ANYONE)
    return _template(landlock, receives).replace(anyone, me)


def allowed(landlock: bool) -> list[int]:
    """The numbers, on this machine, of the calls that are allowed whatever their arguments."""
    column = _COLUMN[kernel.MACHINE]
    names = (name for name in _CALLS if not (landlock and name in _UNWATCHED))
    return sorted(number for name in names if (number := _CALLS[name][column]) is not None)


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    """First and last of each run of successive numbers: a shorter filter is installed sooner."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


@lru_cache
def _template(landlock: bool, receives: bool) -> bytes:
    """The filter with `_ANYONE` in the place of the process's own number."""
    pid = _ANYONE
    column = _COLUMN[kernel.MACHINE]
    program = [
        _op(_LOAD, _OFFSET_ARCH),
        _op(_JUMP_EQ, _AUDIT_ARCH[kernel.MACHINE], 1, 0),
        _op(_RETURN, _KILL_PROCESS),
        _op(_LOAD, _OFFSET_NUMBER),
        _op(_JUMP_GE, 0x40000000, 0, 1),  # the x32 table on x86_64
        _op(_RETURN, _KILL_PROCESS),
    ]
    for first, last in _runs(allowed(landlock)):
        program += [_op(_JUMP_GE, first, 0, 2), _op(_JUMP_GT, last, 1, 0), _op(_RETURN, _ALLOW)]
    if receives:
        program += _on(_RECVMSG[column], [_op(_RETURN, _ALLOW)])
    thread = [_argument(0), _op(_JUMP_SET, _CLONE_THREAD, 0, 1), _op(_RETURN, _ALLOW)]
    program += _on(_CLONE[column], [*thread, _op(_RETURN, _EPERM)])
    # Its flags lie behind a pointer; "not implemented" makes the C library fall back on clone.
    program += _on(_CLONE3[column], [_op(_RETURN, _ENOSYS)])
    program += _on(_KILL[column], _one_of(0, (pid,)))
    program += _on(_TGKILL[column], _one_of(0, (pid,)))
    program += _on(_PRLIMIT[column], _one_of(0, (0, pid)))
    program += _on(_IOCTL[column], _one_of(1, _IOCTLS))
    program += _on(_FCNTL[column], _one_of(1, _FCNTLS))
    program += _on(_PRCTL[column], _one_of(0, (15, 16)))  # the thread's name
    program += _on(_SOCKETPAIR[column], _one_of(0, (1,)))  # AF_UNIX
    # Sending is for connected pairs: an address could name a socket outside.
    no_address = [_argument(4), _op(_JUMP_EQ, 0, 0, 3), _argument(4, high=True)]
    no_address += [_op(_JUMP_EQ, 0, 0, 1), _op(_RETURN, _ALLOW), _op(_RETURN, _EPERM)]
    program += _on(_SENDTO[column], no_address)
    program.append(_op(_RETURN, _EPERM))
    return b"".join(program)
