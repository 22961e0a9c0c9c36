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
        "import sys\ndef f(x):\n    g, out = sys._getframe(), []\n    while g:\n"
        "        out += [v for v in {**g.f_locals, **g.f_globals}.values() if isinstance(v, str)]\n"
        "        g = g.f_back\n    return next((v for v in out if v.startswith('xyzzy-')), None)",
    ),
    "garbage_collector": (
        FAILED,
        "import gc\ndef f(x):\n    for o in gc.get_objects():\n        try:\n"
        "            t = repr(o)\n        except Exception:\n            continue\n"
        "        if 'xyzzy' + '-' in t:\n            i = t.index('xyzzy' + '-')\n"
        "            return t[i:i + 22]\n    return None",
    ),
    "memory_scan": (
        FAILED,
        "import ctypes, re\nkey = b'xyz' + b'zy-'\ndef f(x):\n"
        "    for line in open('/proc/self/maps'):\n        if 'rw' not in line: continue\n"
        "        a, b = (int(v, 16) for v in line.split()[0].split('-'))\n"
        "        m = re.search(key + b'[0-9a-f]{16}', ctypes.string_at(a, b - a))\n"
        "        if m: return m.group().decode()\n    return None",
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
    "many_files": (
        FAILED | TIMEOUT,
        "i = 0\nwhile True:\n    open(f'file{i}', 'w').close()\n    i += 1",
    ),
    "deep_directories": (
        FAILED | TIMEOUT,
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
        jobs = [
            sandbox.Job(
                program=bait.fill(program),
                entry_point="f",
                test=f"def check(c):\n    assert c(1) == {bait.token!r}\n",
                limits=limits,
            )
            for _, program in PROGRAMS.values()
        ]
        # An honest program after each hostile one: nothing is carried over.
        honest = sandbox.Job(
            program="import os\ndef f(x):\n    return x + len(os.listdir('.'))",
            entry_point="f",
            test="def check(c):\n    assert c(41) == 41\n",
        )
        pairs = sandbox.map_items(
            lambda run, job: (run(job).verdict, run(honest).verdict),
            jobs,
            level=level,
            progress=False,
        )
        report = {
            "verdicts": dict(zip(PROGRAMS, (pair[0] for pair in pairs), strict=True)),
            "honest": sorted({pair[1] for pair in pairs}),
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
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    main(sys.argv[1])
