"""Walls around a worker (once) and around each program (after every fork), level by level."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
from pathlib import Path

from . import kernel, seccomp

LEVELS = ("namespaces", "landlock", "rlimits")
NOBODY = 65534
_INSIDE_UID = 1000
BOX = "/box"  # the one writable place of level 1; /tmp points to it
BOX_BYTES, BOX_FILES = 64 << 20, 4096  # what a program may leave in its directory
_BOX_OPTIONS = f"size={BOX_BYTES},nr_inodes={BOX_FILES},mode=1777"
_DEVICES = ("null", "zero", "full", "random", "urandom")
_PACKAGE_DIRECTORIES = ("site-packages", "dist-packages", "test", "idlelib", "ensurepip")
STACK_BYTES = 64 << 20


def readable_paths() -> list[str]:
    """What a program may read: the standard library and shared libraries, no installed packages."""
    standard = Path(os.__file__).parent
    paths = [str(p) for p in standard.iterdir() if p.name not in _PACKAGE_DIRECTORIES]
    for directory in sorted(_library_directories()):
        if any(entry.name.startswith("python3") for entry in directory.iterdir()):
            paths += [str(p) for p in directory.iterdir() if p.is_file() and ".so" in p.name]
        else:
            paths.append(str(directory))
    return paths + [p for p in ("/etc/ld.so.cache", "/usr/share/zoneinfo") if os.path.exists(p)]


def _library_directories() -> set[Path]:
    """The directories of the shared libraries of this process, and of those it may still load."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    files = {line.split(maxsplit=5)[5] for line in lines if ".so" in line}
    folders = {Path(file).parent for file in files} | {Path(sys.base_prefix) / "lib"}
    standard = Path(os.__file__).parent
    return {d for d in folders if d.is_dir() and standard not in (d, *d.parents)}


# -- level 1: namespaces ---------------------------------------------------------------------


def enter_namespaces(readable: list[str]) -> bool:
    """Move into own user, mount, network and IPC namespaces with a minimal root.

    Returns:
        True when programs can be given a user id of their own (only root may map two).
    """
    uid, gid = os.geteuid(), os.getegid()
    as_root = uid == 0
    ready, go = os.pipe(), os.pipe()
    helper = os.fork()
    if helper == 0:  # stays outside, where the right to map more than one id lives
        os.close(ready[1])
        os.close(go[0])
        try:
            os.read(ready[0], 1)
            _write_id_maps(os.getppid(), uid, gid, as_root)
            os.write(go[1], b"1")
        finally:
            os._exit(0)
    os.close(ready[0])
    os.close(go[1])
    kernel.unshare(
        kernel.CLONE_NEWUSER
        | kernel.CLONE_NEWNS
        | kernel.CLONE_NEWNET
        | kernel.CLONE_NEWIPC
        | kernel.CLONE_NEWUTS
    )
    os.write(ready[1], b"1")
    mapped = os.read(go[0], 1)
    os.close(ready[1])
    os.close(go[0])
    os.waitpid(helper, 0)
    if not mapped:
        raise OSError("the user id map was refused")
    _build_root(readable)
    return as_root


def _write_id_maps(pid: int, uid: int, gid: int, as_root: bool) -> None:
    if as_root:
        text = f"0 0 1\n{_INSIDE_UID} {NOBODY} 1\n"
        Path(f"/proc/{pid}/uid_map").write_text(text)
        Path(f"/proc/{pid}/gid_map").write_text(text)
        return
    Path(f"/proc/{pid}/setgroups").write_text("deny")
    Path(f"/proc/{pid}/uid_map").write_text(f"{_INSIDE_UID} {uid} 1\n")
    Path(f"/proc/{pid}/gid_map").write_text(f"{_INSIDE_UID} {gid} 1\n")


def _build_root(readable: list[str]) -> None:
    """Replace the root by a small read-only tree with a private, bounded directory."""
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    # Sources are opened first: the new root is mounted over /tmp, where one of them may lie.
    sources = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in readable}
    sources |= {f"/dev/{d}": os.open(f"/dev/{d}", os.O_PATH | os.O_CLOEXEC) for d in _DEVICES}
    links = {p: os.readlink(p) for p in ("/lib", "/lib64", "/bin") if os.path.islink(p)}
    kernel.mount("tmpfs", "/tmp", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=1m,mode=755")
    for path, source in sources.items():
        target = Path("/tmp" + path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if os.path.isdir(f"/proc/self/fd/{source}"):
            target.mkdir(exist_ok=True)
        else:
            target.touch()
        kernel.mount(f"/proc/self/fd/{source}", str(target), None, kernel.MS_BIND | kernel.MS_REC)
        os.close(source)
    for path, destination in links.items():
        if not os.path.lexists("/tmp" + path):
            os.symlink(destination, "/tmp" + path)
    for name in ("stdin", "stdout"):
        Path(f"/tmp/dev/{name}").touch()
    os.symlink("null", "/tmp/dev/stderr")
    os.mkdir("/tmp" + BOX)
    if not os.path.exists("/tmp/tmp"):
        os.symlink(BOX, "/tmp/tmp")
    kernel.pivot_root("/tmp")
    kernel.make_read_only("/")


def mount_box() -> None:
    """Mount the private directory, empty."""
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("tmpfs", BOX, "tmpfs", flags, _BOX_OPTIONS)


def renew_box() -> None:
    """Throw away what the last program left in its directory."""
    if os.listdir(BOX):
        kernel.unmount(BOX)
        mount_box()


# -- level 2: Landlock -----------------------------------------------------------------------


def landlock_rules(readable: list[str], tmp: str) -> kernel.Landlock:
    """File rules with the same reach as level 1's small root."""
    if not seccomp.supported():
        raise OSError(f"no table of system calls for {kernel.MACHINE}")
    rules = kernel.Landlock()
    for path in readable:
        rules.allow(path)
    for directory in {*sys.path, *map(os.path.dirname, readable)}:
        if os.path.isdir(directory):
            rules.allow_listing(directory)
    for device in _DEVICES:
        rules.allow(f"/dev/{device}", write=device == "null")
    rules.allow(tmp, write=True)
    return rules


def overfull(top: str) -> bool:
    """Whether `top` holds more than fits into level 1's private directory."""
    size = count = 0
    waiting = [top]
    while waiting:
        try:
            for entry in os.scandir(waiting.pop()):
                size += entry.stat(follow_symlinks=False).st_blocks * 512
                count += 1
                if size > BOX_BYTES or count > BOX_FILES:
                    return True
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return True  # nested thousands deep; else it was removed meanwhile
    return False


def empty_directory(top: str) -> None:
    """Remove everything in `top`, however deep, without following links."""
    moved = 0
    while entries := list(os.scandir(top)):
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
                continue
            os.chmod(entry.path, 0o700)
            for inner in list(os.scandir(entry.path)):
                if inner.is_dir(follow_symlinks=False):  # up one floor: paths stay short
                    moved += 1
                    os.rename(inner.path, os.path.join(top, f"{moved}.{entry.inode()}.up"))
                else:
                    os.unlink(inner.path)
            os.rmdir(entry.path)


# -- every program ---------------------------------------------------------------------------


def set_limits(cpu_seconds: float, memory_bytes: int, file_bytes: int, processes: int) -> None:
    """Resource limits of the calling process, for good (soft and hard alike)."""
    whole = int(cpu_seconds) + 1  # the kernel counts whole seconds; the worker measures finely
    for what, value in (
        (resource.RLIMIT_CPU, whole),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_STACK, STACK_BYTES),
        (resource.RLIMIT_MEMLOCK, 0),
    ):
        hard = resource.getrlimit(what)[1]
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(what, (value, value))


def confine(
    level: str, own_user: bool, rules: kernel.Landlock | None, receives: bool = False
) -> None:
    """Give up, for good, whatever the level takes away. Called after the fork, as a program.

    With `receives` the process may still take descriptors from the worker (the tests' process).
    """
    if level == "rlimits":
        return
    if own_user:
        os.setgroups([])
        os.setresgid(_INSIDE_UID, _INSIDE_UID, _INSIDE_UID)
        os.setresuid(_INSIDE_UID, _INSIDE_UID, _INSIDE_UID)
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)  # a new user id has cleared it
    kernel.drop_capabilities()
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    if rules is not None:
        rules.restrict_self()
    kernel.install_filter(seccomp.build(os.getpid(), rules is not None, receives))
