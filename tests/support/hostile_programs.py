"""Programs that attack the sandbox, and a command that runs them all as whoever calls it.

Each one tries to make `check` pass, whose expected value it cannot compute, or to reach, change or
outlive something outside. Beside it stand the verdicts that it may get. Run as a script (needs the
standard library only) it prints one JSON object: the verdicts, and what was left behind.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import sys
import tempfile
from pathlib import Path

RUNTIME, WRONG, TIMEOUT = {"runtime_error"}, {"wrong_answer"}, {"timeout"}
FAILED = RUNTIME | WRONG
# Looks for a byte string (given in two parts, so as not to find itself) in all of its own memory:
# through /proc/self/maps and /proc/self/mem where they can be opened, else by asking the kernel to
# copy from every address near anything it knows, which fails, and no more, where nothing is mapped.
# It allocates next to nothing while it looks: freed memory that still holds text must keep it.
SCAN = """
import ctypes, mmap, os, re, sys
libc = ctypes.CDLL(None)
PAGE, BLOCK, TAIL = 4096, 1 << 16, 64
GAP = 24 << 20  # so much that isn't mapped ends the search in one direction
window = mmap.mmap(-1, TAIL + BLOCK)
target = ctypes.addressof(ctypes.c_char.from_buffer(window)) + TAIL
inside, outside = os.pipe()

def mapped():
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
        for line in maps:
            place, rights = line.split()[:2]
            low, high = (int(part, 16) for part in place.split("-"))
            if rights.startswith("r") and "[v" not in line and not low <= target < high:
                for at in range(low, high, BLOCK):
                    memory.seek(at)
                    yield memory.readinto(memoryview(window)[TAIL:][: high - at])

def copied(at):
    got = libc.write(outside, ctypes.c_void_p(at), ctypes.c_size_t(BLOCK))
    return libc.read(inside, ctypes.c_void_p(target), ctypes.c_size_t(BLOCK)) if got > 0 else 0

def near(start, ranges):
    low = high = start - start % PAGE
    for step in (PAGE, -PAGE):
        at, hole = low if step > 0 else low + step, 0
        while hole < GAP and at > 0:
            size = copied(at)
            yield size
            hole = 0 if size else hole + PAGE
            at += max(size, PAGE) if step > 0 else step
        low, high = min(low, at), max(high, at)
    ranges.append((low, high))

def known():
    yield id(bytes(600))
    for module in list(sys.modules.values()):
        yield id(module)
        for value in vars(module).values():
            yield id(value)

def probed():
    ranges = [(target - TAIL, target + BLOCK)]
    for start in known():
        if not any(low <= start < high for low, high in ranges):
            yield from near(start, ranges)

def scan(first, second):
    found = set()
    pattern = re.compile(re.escape(first + second) + rb"[0-9a-f]{16}")
    def look(sizes):
        for size in sizes:
            if not size:
                continue
            window[TAIL + size:] = bytes(BLOCK - size) if size < BLOCK else b""
            found.update(m.group().decode() for m in pattern.finditer(window))
            window[:TAIL] = window[-TAIL:]
    try:
        look(mapped())
    except OSError:
        look(probed())
    return found

planted = ["planted" + "-" + os.urandom(8).hex() for i in range(9)]
def check_planted():
    missing = set(planted) - scan(b"plan", b"ted-")
    assert not missing, missing  # the scan sees what is there
"""
# Filled in: @SECRET@ a readable file outside, @OUT@ a writable folder, @SOCK@ and @PORT@ sockets.
PROGRAMS: dict[str, tuple[set[str], str]] = {
    # -- passing without solving
    "sys_exit_zero": (RUNTIME, "import sys\nsys.exit(0)"),
    "os_exit_zero": (RUNTIME, "import os\nos._exit(0)"),
    "exit_in_call": (RUNTIME, "import sys\ndef f(x):\n    sys.exit(0)"),
    "os_exit_in_call": (RUNTIME, "import os\ndef f(x):\n    os._exit(0)"),
    "equal_to_everything": (
        FAILED,
        "class E:\n    __eq__ = lambda s, o: True\n    __ne__ = lambda s, o: False\n"
        "    __bool__ = lambda s: True\ndef f(x):\n    return E()",
    ),
    "equal_string": (
        WRONG,
        "class S(str):\n    __eq__ = lambda s, o: True\n    __hash__ = str.__hash__\n"
        "def f(x):\n    return S('x')",
    ),
    "patched_assertion_error": (
        FAILED,
        "import builtins\nclass Quiet(Exception):\n    def __new__(cls, *a): return None\n"
        "builtins.AssertionError = Quiet\ndef f(x):\n    return None",
    ),
    "patched_builtins": (
        FAILED,
        "import builtins\nfor n in ('len', 'isinstance', 'repr', 'all', 'any', 'print', 'open'):\n"
        "    setattr(builtins, n, lambda *a, **k: True)\ndef f(x):\n    return True",
    ),
    "patched_exec": (
        FAILED,
        "import builtins\nbuiltins.exec = builtins.compile = lambda *a, **k: None\n"
        "def f(x):\n    return None\ndef check(c):\n    return None",
    ),
    "own_check": (FAILED, "def check(candidate):\n    return True\ndef f(x):\n    return 1"),
    "frames": (
        FAILED,
        "import re, sys\ndef f(x):\n    g, out = sys._getframe(), ''\n    while g:\n"
        "        out += repr({**g.f_locals, **g.f_globals})\n        g = g.f_back\n"
        "    return next(iter(re.findall('xyzzy-[0-9a-f]{16}', out)), None)",
    ),
    "garbage_collector": (
        FAILED,
        "import gc\ndef f(x):\n    for o in gc.get_objects():\n        try:\n"
        "            t = repr(o)\n        except Exception:\n            continue\n"
        "        if 'xyzzy' + '-' in t:\n            i = t.index('xyzzy' + '-')\n"
        "            return t[i:i + 22]\n    return None",
    ),
    "memory_scan": (
        WRONG,
        SCAN + "def f(x):\n    check_planted()\n    return max(scan(b'xyz', b'zy-'), default=None)",
    ),
    "look_ahead": (
        FAILED,
        "import json, os, re, struct\ndef f(x):\n    seen = b''\n"
        "    for fd in range(3, 64):\n        try:\n            os.set_blocking(fd, False)\n"
        "            seen += os.read(fd, 9999)\n"
        "        except OSError:\n            pass\n"
        "    m = re.search(b'xyzzy' + b'-[0-9a-f]{16}', seen)\n    m = m and m.group().decode()\n"
        "    b = json.dumps({'value': m}).encode()\n    for fd in range(3, 64):\n        try:\n"
        "            os.write(fd, struct.pack('<Q', len(b)) + b)\n        except OSError:\n"
        "            pass\n    return m",
    ),
    "forged_frames": (
        FAILED | TIMEOUT,
        "import os, json, struct\nb = json.dumps({'outcome': 'passed', 'value': None}).encode()\n"
        "for fd in range(3, 64):\n    try:\n        os.write(fd, struct.pack('<Q', len(b)) + b)\n"
        "    except OSError:\n        pass\ndef f(x):\n    return 1",
    ),
    "forged_facts": (
        FAILED,
        "import os\nfor fd in range(3, 64):\n    try:\n        os.write(fd, b'\\xff' * 4096)\n"
        "    except OSError:\n        pass\ndef f(x):\n    return 1",
    ),
    "steal_the_calls": (
        FAILED | TIMEOUT,
        "import os, struct\nfor fd in range(3, 64):\n    try:\n"
        "        os.set_blocking(fd, False)\n        os.read(fd, 1 << 20)\n    except OSError:\n"
        '        pass\nb = b\'{"value": "xyzzy"}\'\nfor fd in range(3, 64):\n    try:\n'
        "        os.write(fd, struct.pack('<Q', len(b)) + b)\n    except OSError:\n        pass\n"
        "def f(x):\n    return 1",
    ),
    "flood_the_tests": (
        FAILED | TIMEOUT,
        "import os\nwhile True:\n    for fd in range(3, 64):\n        try:\n"
        "            os.write(fd, bytes(1 << 12))\n        except OSError:\n            pass",
    ),
    "printed_pass": (WRONG, "print('passed')\nprint('OK')\ndef f(x):\n    return 'passed'"),
    "atexit_exit": (
        WRONG,
        "import atexit, os\natexit.register(lambda: os._exit(0))\ndef f(x):\n    return 0",
    ),
    "thread_exits": (
        FAILED,
        "import os, threading, time\n"
        "threading.Thread(target=lambda: (time.sleep(0.01), os._exit(0)), daemon=True).start()\n"
        "def f(x):\n    import time\n    time.sleep(0.2)\n    return 0",
    ),
    "import_the_grader": (
        FAILED,
        "def f(x):\n    import lm_eval_embednoise.minicoder as m\n"
        "    return m.load_problems('minicode')[0]['canonical_solution']",
    ),
    "import_worker": (
        FAILED,
        "import sys\ndef f(x):\n    w = sys.modules['sandbox.tester']\n    w.run = None\n"
        "    w.RemoteError = Exception\n    return sys.modules['sandbox.jobs'].DIED",
    ),
    "huge_answer": (FAILED | {"memory"} | TIMEOUT, "def f(x):\n    return [0] * 10**8"),
    "deep_answer": (
        FAILED,
        "def f(x):\n    a = []\n    for _ in range(100000):\n        a = [a]\n    return a",
    ),
    "endless_iterator": (
        WRONG | TIMEOUT,
        "import itertools\ndef f(x):\n    return itertools.count()",
    ),
    # -- reading and changing what is outside
    "read_secret": (FAILED, "def f(x):\n    return open('@SECRET@').read()"),
    "read_passwd": (FAILED, "def f(x):\n    return open('/etc/passwd').read()"),
    "read_home": (
        FAILED,
        "import os\ndef f(x):\n    return os.listdir('/root') + os.listdir('/home')",
    ),
    "read_environment_of_parent": (
        FAILED,
        "import os\ndef f(x):\n    return open(f'/proc/{os.getppid()}/environ').read()",
    ),
    "symlink_to_secret": (
        FAILED,
        "import os\nos.symlink('@SECRET@', 'link')\ndef f(x):\n    return open('link').read()",
    ),
    "write_outside": (FAILED, "def f(x):\n    open('@OUT@/left', 'w').write('here')\n    return 1"),
    "rename_outside": (
        FAILED,
        "import os\ndef f(x):\n    os.rename('@SECRET@', '@OUT@/moved')\n    return 1",
    ),
    "chmod_secret": (FAILED, "import os\ndef f(x):\n    os.chmod('@SECRET@', 0)\n    return 1"),
    "fchmod_outside": (
        RUNTIME,  # the mode that the file has: harmless if it succeeds, and then no error
        "import os\nfd = os.open(os.__file__, os.O_RDONLY)\n"
        "os.fchmod(fd, os.fstat(fd).st_mode & 0o7777)\ndef f(x):\n    return 1",
    ),
    "futimens_outside": (
        RUNTIME,
        "import os\nfd = os.open(os.__file__, os.O_RDONLY)\nt = os.fstat(fd)\n"
        "os.utime(fd, ns=(t.st_atime_ns, t.st_mtime_ns))\ndef f(x):\n    return 1",
    ),
    "fchown_outside": (
        RUNTIME,
        "import os\nos.fchown(os.open(os.__file__, os.O_RDONLY), -1, -1)\ndef f(x):\n    return 1",
    ),
    "setxattr_outside": (
        RUNTIME,
        "import os\nos.setxattr(os.open(os.__file__, os.O_RDONLY), 'user.left', b'here')\n"
        "def f(x):\n    return 1",
    ),
    "truncate_outside": (
        RUNTIME,
        "import os\nos.truncate('@SECRET@', 3)\ndef f(x):\n    return 1",
    ),
    "link_from_outside": (
        RUNTIME,
        "import os\nos.link(os.__file__, 'link')\ndef f(x):\n    return 1",
    ),
    "link_to_outside": (
        RUNTIME,
        "import os\nopen('file', 'w').close()\nos.link('file', '@OUT@/left')\n"
        "def f(x):\n    return 1",
    ),
    "symlink_outside": (
        RUNTIME,
        "import os\nos.symlink('/', '@OUT@/left')\ndef f(x):\n    return 1",
    ),
    "mkdir_outside": (RUNTIME, "import os\nos.mkdir('@OUT@/left')\ndef f(x):\n    return 1"),
    "mkfifo": (RUNTIME, "import os\nos.mkfifo('fifo')\ndef f(x):\n    return 1"),
    "shared_map_outside": (
        RUNTIME,
        "import mmap, os\nfd = os.open(os.__file__, os.O_RDWR)\n"
        "mmap.mmap(fd, 4096)[0:1] = b'!'\ndef f(x):\n    return 1",
    ),
    "remount": (
        FAILED,
        "import ctypes\nlibc = ctypes.CDLL(None)\n"
        "libc.mount(b'none', b'/', None, 0x20 | 0x1000, None)\n"
        "def f(x):\n    open('@OUT@/left', 'w').write('here')\n    return 1",
    ),
    "new_user_namespace": (
        FAILED,
        "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0\ndef f(x):\n    return 1",
    ),
    "chroot_escape": (
        FAILED,
        "import os\nos.mkdir('d')\nos.chroot('d')\nfor _ in range(99): os.chdir('..')\n"
        "def f(x):\n    return open('@SECRET@').read()",
    ),
    # -- network
    "tcp": (
        FAILED,
        "import socket\ndef f(x):\n    s = socket.create_connection(('127.0.0.1', @PORT@), 2)\n"
        "    return s.recv(99).decode()",
    ),
    "udp": (
        FAILED,
        "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "s.sendto(b'hello', ('127.0.0.1', @PORT@))\ndef f(x):\n    return 1",
    ),
    "unix_socket": (
        FAILED,
        "import socket\ndef f(x):\n    s = socket.socket(socket.AF_UNIX)\n    s.connect('@SOCK@')\n"
        "    return s.recv(99).decode()",
    ),
    "unix_pair_to_socket": (
        FAILED,
        "import socket\ndef f(x):\n    a, b = socket.socketpair(type=socket.SOCK_DGRAM)\n"
        "    a.sendto(b'out', '@SOCK@')\n    return 1",
    ),
    # -- processes and signals
    "fork_bomb": (FAILED | TIMEOUT, "import os\nwhile True:\n    os.fork()"),
    "daemon": (
        FAILED,
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        time.sleep(60)\n    os._exit(0)\ndef f(x):\n    return 1",
    ),
    "zombies": (
        FAILED,
        "import os\nfor _ in range(50):\n    if os.fork() == 0:\n        os._exit(0)\n"
        "def f(x):\n    return 1",
    ),
    "subprocess": (
        FAILED,
        "import subprocess\ndef f(x):\n    return subprocess.check_output(['cat', '@SECRET@'])",
    ),
    "exec_shell": (FAILED, "import os\nos.execv('/bin/sh', ['sh', '-c', 'echo passed'])"),
    "kill_parent": (
        FAILED,
        "import os, signal\ndef f(x):\n    os.kill(os.getppid(), signal.SIGKILL)\n    return 1",
    ),
    "kill_everyone": (
        FAILED,
        "import os, signal\nfor p in (-1, 0, 1, 2, 3, 4):\n    try:\n"
        "        os.kill(p, signal.SIGKILL)\n    except OSError:\n        pass\n"
        "def f(x):\n    return 1",
    ),
    "kill_itself": (
        RUNTIME | {"memory"},
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    ),
    "ptrace_sibling": (
        FAILED,
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "hits = [p for p in range(1, 400) if p != os.getpid() and libc.ptrace(16, p, 0, 0) == 0]\n"
        "assert hits\ndef f(x):\n    return hits",
    ),
    "parent_memory": (
        FAILED,
        "import os\ndef f(x):\n    return open(f'/proc/{os.getppid()}/mem', 'rb').read(1)",
    ),
    "lower_parents_limits": (
        FAILED,
        "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))\n"
        "def f(x):\n    return 1",
    ),
    "ignore_signals": (
        TIMEOUT,
        "import signal\nfor s in range(1, 32):\n    try:\n        signal.signal(s, 1)\n"
        "    except (OSError, ValueError):\n        pass\nwhile True:\n    pass",
    ),
    # -- starving the machine
    "busy_loop": (TIMEOUT, "while True:\n    pass"),
    "busy_call": (TIMEOUT, "def f(x):\n    while True:\n        pass"),
    "busy_threads": (
        TIMEOUT,
        "import threading\ndef spin():\n    while True:\n        pass\n"
        "def f(x):\n    threads = [threading.Thread(target=spin) for _ in range(4)]\n"
        "    for t in threads: t.start()\n    threads[0].join()",
    ),
    "sleep_forever": (TIMEOUT, "import time\ntime.sleep(10**6)"),
    "raise_own_limits": (
        FAILED | TIMEOUT,
        "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (10**6, 10**6))\n"
        "while True:\n    pass",
    ),
    "memory_bomb": ({"memory"}, "a = []\nwhile True:\n    a.append(bytes(1 << 24))"),
    "memory_at_once": ({"memory"}, "def f(x):\n    return len(bytearray(1 << 40))"),
    "endless_output": ({"output_limit"}, "while True:\n    print('x' * 10**5)"),
    "endless_errors": (TIMEOUT, "import sys\nwhile True:\n    print('x' * 10**5, file=sys.stderr)"),
    "huge_file": (
        {"output_limit"},
        "f = open('big', 'wb')\nwhile True:\n    f.write(b'x' * (1 << 20))\n    f.flush()",
    ),
    "sparse_file": ({"output_limit"}, "f = open('big', 'wb')\nf.truncate(1 << 50)"),
    "fallocate": (
        RUNTIME,
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\nfor i in range(20):\n"
        "    fd = os.open(f'big{i}', os.O_RDWR | os.O_CREAT)\n"
        "    if libc.fallocate(fd, 1, ctypes.c_long(0), ctypes.c_long(15 << 20)):  # KEEP_SIZE\n"
        "        raise OSError(ctypes.get_errno())\n    os.close(fd)\ndef f(x):\n    return 1",
    ),
    "posix_fallocate": (
        RUNTIME,
        "import os\nos.posix_fallocate(os.open('big', os.O_RDWR | os.O_CREAT), 0, 1 << 20)\n"
        "def f(x):\n    return 1",
    ),
    "memfd": (
        RUNTIME,
        "import os\nos.ftruncate(os.memfd_create('big'), 1 << 20)\ndef f(x):\n    return 1",
    ),
    "sync_everything": (
        RUNTIME,
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "if libc.syncfs(os.open('/', os.O_RDONLY)): raise OSError\ndef f(x):\n    return 1",
    ),
    "long_name_of_error": (
        RUNTIME,
        "def f(x):\n    raise type('x' * (30 << 20), (Exception,), {})",
    ),
    "long_name_of_error_at_once": (RUNTIME, "raise type('x' * (30 << 20), (Exception,), {})"),
    "many_big_files": (
        RUNTIME | {"output_limit"},
        "i = 0\nwhile True:\n    with open(f'big{i}', 'wb') as file:\n"
        "        file.write(bytes(15 << 20))\n    i += 1",
    ),
    "many_files": (
        FAILED | TIMEOUT | {"output_limit"},
        "i = 0\nwhile True:\n    open(f'file{i}', 'w').close()\n    i += 1",
    ),
    "deep_directories": (
        FAILED | TIMEOUT | {"output_limit"},
        "import os\nfor _ in range(5000):\n    os.mkdir('d')\n    os.chdir('d')\n"
        "def f(x):\n    return 1",
    ),
    "locked_directory": (
        FAILED,
        "import os\nos.mkdir('d')\nopen('d/file', 'w').close()\nos.chmod('d', 0)\n"
        "def f(x):\n    return 1",
    ),
    "descriptors": (
        RUNTIME,
        "import os\nkeep = []\nwhile True:\n    keep.append(os.open('/dev/null', os.O_RDONLY))",
    ),
    "thread_bomb": (
        FAILED | TIMEOUT | {"memory"},
        "import threading, time\nwhile True:\n"
        "    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
    ),
    "recursion": (RUNTIME, "def f(x):\n    return f(x + 1)"),
    "recursion_without_limit": (
        RUNTIME | {"memory"} | TIMEOUT,
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(x):\n    return f(x + 1) + 1",
    ),
    "endless_regex": (
        TIMEOUT,
        "import re\ndef f(x):\n    return re.match(r'(a+)+$', 'a' * 60 + 'b')",
    ),
    "huge_integer": (TIMEOUT | {"memory"}, "def f(x):\n    return 9 ** 9 ** 9"),
    "segfault": (RUNTIME, "import ctypes\nctypes.string_at(0)"),
    "read_stdin": (RUNTIME, "while True:\n    input()"),
    # -- texts that attack the parser
    "null_byte": ({"syntax_error"}, "x = 1\0"),
    "unbalanced": ({"syntax_error"}, "(" * 10**5),
    "nested": ({"syntax_error", "wrong_answer", "runtime_error"}, "x = " + "-" * 10**6 + "1"),
    "not_python": ({"syntax_error"}, "Sure! Here is the code:\n\nit loops"),
    "empty": (RUNTIME, ""),
}


def main(level: str) -> None:
    """Run every program at `level` and print what happened as JSON."""
    import lm_eval_embednoise.sandbox as sandbox

    with tempfile.TemporaryDirectory() as folder, _Bait(Path(folder)) as bait:
        tempfile.tempdir = folder  # named in the command line of this run's workers, no other's
        before = bait.state()
        limits = sandbox.Limits(cpu_seconds=0.4, wall_seconds=2.0, memory_bytes=1 << 27)
        patient = sandbox.Limits(cpu_seconds=20.0)  # all of a memory takes a while to read
        jobs = [
            sandbox.Job(
                program=bait.fill(program),
                entry_point="f",
                # The second call tells the answer to the first: too late.
                test=f"def check(c):\n    assert c(1) == {bait.token!r}\n"
                f"    assert c({bait.token!r}) == {bait.token!r}\n",
                limits=patient if name == "memory_scan" else limits,
            )
            for name, (_, program) in PROGRAMS.items()
        ]
        # An honest program after each hostile one: nothing is carried over.
        honest = sandbox.Job(
            program="import os\ndef f(x):\n    return x + len(os.listdir('.'))",
            entry_point="f",
            test="def check(c):\n    assert c(41) == 41\n",
        )
        # Before each, programs that know the answer: nothing of them is left to be found.
        solved = f"def f(x):\n    return {bait.token!r}"
        earlier = [
            sandbox.Job(solved, "f", test=jobs[0].test),
            sandbox.Job(f"print({bait.token!r}, input())", stdin=bait.token.encode()),
        ]
        pairs = sandbox.map_items(
            lambda run, job: (
                [run(before).verdict for before in earlier],
                run(job).verdict,
                run(honest).verdict,
            ),
            jobs,
            level=level,
            progress=False,
        )
        report = {
            "verdicts": dict(zip(PROGRAMS, (found[1] for found in pairs), strict=True)),
            "honest": sorted({found[2] for found in pairs} | {v for f in pairs for v in f[0]}),
            "unchanged": bait.state() == before,
            "heard": bait.heard,
            "left_running": bait.processes(),
        }
    print(json.dumps(report))


class _Bait:
    """Something to steal, to change and to talk to, and how to see that nothing happened to it."""

    def __init__(self, folder: Path) -> None:
        import socket

        self.token = "xyzzy-" + secrets.token_hex(8)
        self.secret, self.out, self.sock = folder / "secret", folder / "out", folder / "sock"
        self.secret.write_text(self.token)
        self.secret.chmod(0o644)
        self.out.mkdir(mode=0o777)
        folder.chmod(0o755)
        self.listeners = [
            socket.create_server(("127.0.0.1", 0)),
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
            socket.socket(socket.AF_UNIX),
        ]
        self.port = self.listeners[0].getsockname()[1]
        self.listeners[1].bind(("127.0.0.1", self.port))
        self.listeners[2].bind(str(self.sock))
        self.listeners[2].listen()
        for listener in self.listeners:
            listener.setblocking(False)

    def fill(self, program: str) -> str:
        """The program with the places of the bait filled in."""
        for name in ("secret", "out", "sock", "port"):
            program = program.replace(f"@{name.upper()}@", str(getattr(self, name)))
        return program

    def state(self) -> list[tuple[str, int, int]]:
        """Names, modes and sizes of everything in the bait's folder."""
        found = sorted(self.secret.parent.rglob("*"))
        return [(str(p), p.lstat().st_mode, p.lstat().st_size) for p in found if p != self.sock]

    @property
    def heard(self) -> list[str]:
        """The sockets that somebody reached."""
        names = []
        for name, listener in zip(("tcp", "udp", "unix"), self.listeners, strict=True):
            try:
                listener.recv(1) if name == "udp" else listener.accept()
                names.append(name)
            except BlockingIOError:
                pass
        return names

    def processes(self) -> list[int]:
        """The processes of this run's workers, and those forked from them, that still live."""
        marker, found = str(self.secret.parent).encode(), []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    command = (entry / "cmdline").read_bytes()
                    if b"sandbox.worker" in command and marker in command:
                        found.append(int(entry.name))
        return found

    def __enter__(self) -> _Bait:
        return self

    def __exit__(self, *_: object) -> None:
        for listener in self.listeners:
            listener.close()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main(sys.argv[1])
