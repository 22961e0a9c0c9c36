"""Small programs that read standard input and end in one of the ways a Python program can end."""

from __future__ import annotations

STDIN = b"21\nsecond line\n\xc3\xa4 third\n"

# What each prints, and its exit status, must be what `python3 program.py < stdin` gives.
PROGRAMS: dict[str, str] = {
    # -- input
    "input": "print(int(input()) * 2)",
    "lines": "import sys\nfor line in sys.stdin:\n    print(line.rstrip()[::-1])",
    "input_then_rest": "import sys\nprint(input())\nprint(sys.stdin.read())",
    "binary_input": "import sys\nprint(sys.stdin.buffer.read())",
    "read_descriptor": "import os\nprint(os.read(0, 5), os.read(0, 100), os.read(0, 1))",
    "open_descriptor": "print(open(0).read())",
    "device": "print(open('/dev/stdin').read())",
    "device_after_input": "print(input())\nprint(open('/dev/stdin').readlines())",
    "device_binary": "print(open('/dev/stdin', 'rb').read())",
    "fileinput": "import fileinput\nfor line in fileinput.input():\n    print(line, end='')",
    "seek": "import sys\nsys.stdin.read()\nsys.stdin.seek(0)\nprint(sys.stdin.readline())",
    "seekable": "import sys\nprint(sys.stdin.seekable(), sys.stdout.seekable())",
    "names": "import sys\nprint(sys.stdin.name, sys.stdout.name, sys.stdin.mode, sys.stdout.mode)",
    "input_exhausted": "while True:\n    print(input())",
    "map_device": "import os, mmap\nprint(mmap.mmap(0, 0, prot=mmap.PROT_READ)[:5])",
    # -- what a script finds
    "arguments": "import sys\nprint(len(sys.argv), bool(sys.argv[0]), sys.argv[1:])",
    "file": "import os, sys\nprint(os.path.basename(__file__) == os.path.basename(sys.argv[0]))",
    "main": "if __name__ == '__main__':\n    print('main')",
    "main_module": "import __main__\ny = 3\nprint(__main__.y)",
    "settings": "import sys\nprint(sys.getrecursionlimit(), sys.flags.optimize, __debug__)",
    # -- exit statuses
    "end": "print('end')",
    "nothing": "",
    "exit": "print(1)\nexit()\nprint(2)",
    "quit": "print(1)\nquit(3)",
    "sys_exit": "import sys\nprint(1)\nsys.exit()",
    "sys_exit_0": "import sys\nprint(1)\nsys.exit(0)",
    "sys_exit_7": "import sys\nprint(1)\nsys.exit(7)",
    "sys_exit_300": "import sys\nsys.exit(300)",
    "sys_exit_minus_1": "import sys\nsys.exit(-1)",
    "sys_exit_text": "import sys\nprint(1)\nsys.exit('no')",
    "sys_exit_list": "import sys\nprint(1)\nsys.exit([1])",
    "sys_exit_true": "import sys\nsys.exit(True)",
    "sys_exit_huge": "import sys\nsys.exit(1 << 80)",
    "raise_system_exit": "print(1)\nraise SystemExit",
    "exit_in_finally": "import sys\ntry:\n    sys.exit(4)\nfinally:\n    print('finally')",
    "exit_caught": "import sys\ntry:\n    sys.exit(4)\nexcept SystemExit as e:\n    print(e.code)",
    "os_exit": "import os\nprint('lost')\nos._exit(0)",
    "os_exit_5": "import os\nprint('kept', flush=True)\nos._exit(5)",
    "os_exit_finally": "import os\ntry:\n    os._exit(0)\nfinally:\n    print('never')",
    "raise": "print('before')\nraise ValueError('x')",
    "raise_from_function": "def f():\n    print(1)\n    [][0]\nf()",
    "keyboard_interrupt": "print(1)\nraise KeyboardInterrupt",
    "interrupt_itself": "import os, signal\nprint(1)\ntry:\n"
    "    os.kill(os.getpid(), signal.SIGINT)\n    while True: pass\n"
    "except KeyboardInterrupt:\n    print('caught')",
    "terminate_itself": "import os, signal\nprint(1, flush=True)\n"
    "os.kill(os.getpid(), signal.SIGTERM)\nsignal.pause()",
    "abort": "import os\nprint(1, flush=True)\nos.abort()",
    "alarm": "import signal\n"
    "def ring(*a):\n    print('rung')\nsignal.signal(signal.SIGALRM, ring)\n"
    "signal.setitimer(signal.ITIMER_REAL, 0.01)\nsignal.pause()",
    "recursion": "def f(n):\n    return f(n + 1)\ntry:\n    f(0)\nexcept RecursionError:\n"
    "    print('too deep')",
    "recursion_uncaught": "print(1)\ndef f(n):\n    return f(n + 1)\nf(0)",
    "assertion": "print(1)\nassert False",
    "excepthook": "import sys\nsys.excepthook = lambda *a: print('hook', a[0].__name__)\n1 / 0",
    # -- threads
    "thread": "import threading\nthreading.Thread(target=lambda: print(int(input()) * 2)).start()",
    "slow_thread": "import threading, time\ndef f():\n    time.sleep(0.05)\n    print('late')\n"
    "threading.Thread(target=f).start()\nprint('main')",
    "thread_of_thread": "import threading, time\ndef g():\n    time.sleep(0.02)\n    print('g')\n"
    "def f():\n    threading.Thread(target=g).start()\n    print('f')\n"
    "threading.Thread(target=f).start()",
    "big_stack_thread": "import sys, threading\nsys.setrecursionlimit(10**6)\n"
    "threading.stack_size(1 << 26)\n"
    "def f(n):\n    return 0 if n == 0 else 1 + f(n - 1)\n"
    "def main():\n    print(f(int(input()) * 500))\nthreading.Thread(target=main).start()",
    "daemon_thread": "import threading\n"
    "threading.Thread(target=threading.Event().wait, daemon=True).start()\nprint('main')",
    "raise_in_thread": "import threading\nthreading.Thread(target=lambda: 1 / 0).start()\nprint(1)",
    "exit_in_thread": "import sys, threading\n"
    "threading.Thread(target=lambda: sys.exit(3)).start()\nprint(1)",
    "raise_while_thread_runs": "import threading, time\n"
    "def f():\n    time.sleep(0.03)\n    print('thread')\n"
    "threading.Thread(target=f).start()\n1 / 0",
    "exit_while_thread_runs": "import sys, threading, time\n"
    "def f():\n    time.sleep(0.03)\n    print('thread')\nthreading.Thread(target=f).start()\n"
    "sys.exit(9)",
    "timer": "import threading\nthreading.Timer(0.02, print, ['timer']).start()",
    "executor": "from concurrent.futures import ThreadPoolExecutor\n"
    "pool = ThreadPoolExecutor(2)\npool.submit(print, 'in the pool')",
    "queue_and_workers": "import queue, threading\nq = queue.Queue()\ndef work():\n"
    "    while True:\n        x = q.get()\n        print(x * x)\n        q.task_done()\n"
    "threading.Thread(target=work, daemon=True).start()\nfor i in range(9): q.put(i)\nq.join()",
    "low_level_thread": "import _thread, time\n_thread.start_new_thread(print, ('low',))\n"
    "time.sleep(0.05)",
    # -- functions to run at the end
    "atexit": "import atexit\natexit.register(print, 'at exit')\nprint('main')",
    "atexit_order": "import atexit\nfor i in range(3):\n    atexit.register(print, i)",
    "atexit_raises": "import atexit\natexit.register(print, 'second')\n"
    "atexit.register(lambda: 1 / 0)\nprint('main')",
    "atexit_exits": "import atexit, sys\natexit.register(print, 'then')\n"
    "atexit.register(sys.exit, 5)\nprint('main')",
    "atexit_os_exit": "import atexit, os\natexit.register(os._exit, 6)\nprint('lost')",
    "atexit_after_raise": "import atexit\natexit.register(print, 'at exit')\n1 / 0",
    "atexit_unregistered": "import atexit\natexit.register(print, 1)\natexit.unregister(print)",
    "atexit_fast_output": "import atexit, io, os, sys\nout = io.BytesIO()\n"
    "atexit.register(lambda: os.write(1, out.getvalue()))\nout.write(b'collected')",
    "atexit_and_thread": "import atexit, threading, time\natexit.register(print, 'at exit')\n"
    "def f():\n    time.sleep(0.03)\n    print('thread')\nthreading.Thread(target=f).start()",
    "weakref_finalize": "import weakref\nclass A: pass\na = A()\n"
    "weakref.finalize(a, print, 'finalized')",
    "weakref_callback": "import weakref\nclass A: pass\na = A()\n"
    "r = weakref.ref(a, lambda r: print('gone'))\na.r = r",
    # -- what is collected
    "del": "class A:\n    def __del__(self): print('del')\na = A()\nprint('main')",
    "del_without_dict": "class A:\n    __slots__ = ()\n"
    "    def __del__(self): print('del')\na = A()",
    "del_in_cycle": "class A:\n    def __del__(self): print('del')\na = A()\na.a = a\ndel a\n"
    "print('main')",
    "del_order": "class A:\n    def __init__(s, n): s.n = n\n    def __del__(s): print(s.n)\n"
    "a, b = A('a'), A('b')\nc = [a, A('c')]",
    "del_uses_globals": "import math\nk = 3\nclass A:\n    def __del__(self):\n"
    "        print(k, math.floor(2.5))\na = A()",
    "del_raises": "class A:\n    def __del__(self): 1 / 0\na = A()\nprint('main')",
    "del_in_builtins": "import builtins\nclass A:\n    def __del__(self): print('del')\n"
    "builtins.a = A()",
    "del_after_raise": "class A:\n    def __del__(self): print('del')\na = A()\n1 / 0",
    "del_in_frame": "class A:\n    def __del__(self): print('del')\ndef f():\n    a = A()\n"
    "    raise ValueError\nf()",
    "generator_finally": "def g():\n"
    "    try:\n        yield 1\n    finally:\n        print('closed')\n"
    "i = g()\nprint(next(i))",
    "generator_with": "import contextlib\n@contextlib.contextmanager\ndef c():\n    yield\n"
    "    print('left')\ndef g():\n    with c():\n        yield 1\ni = g()\nnext(i)",
    "coroutine": "async def f():\n    print('never')\nc = f()\nprint('main')",
    "metaclass_del": "class M(type):\n    def __del__(cls): print('class gone')\n"
    "class A(metaclass=M): pass",
    # -- output
    "unflushed": "import sys\nsys.stdout.write('no newline')",
    "two_writers": "import os\nprint('second')\nos.write(1, b'first\\n')",
    "dunder_stdout": "import sys\nsys.__stdout__.write('by another name')",
    "buffer": "import sys\nprint('text', flush=True)\nsys.stdout.buffer.write(b'bytes')",
    "open_1": "f = open(1, 'w')\nf.write('through descriptor 1')",
    "fdopen_1": "import os\nout = os.fdopen(1, 'w')\nout.write('a')\nprint('b')",
    "fdopen_binary": "import os\nout = os.fdopen(1, 'wb', 1 << 16)\nout.write(b'a')",
    "open_1_in_function": "def f():\n"
    "    out = open(1, 'w', closefd=False)\n    out.write('x')\nf()",
    "device_stdout": "open('/dev/stdout', 'w').write('by its path')",
    "replaced_stdout": "import os, sys\nsys.stdout = os.fdopen(1, 'w', 1 << 16)\nprint('replaced')",
    "stdout_of_io": "import io, sys\nsys.stdout = io.StringIO()\nprint('lost')",
    "stdout_of_class": "import sys\nclass W:\n"
    "    def write(s, t): sys.__stdout__.write(t.upper())\n"
    "    def flush(s): sys.__stdout__.write('flushed')\nsys.stdout = W()\nprint('shout')",
    "stdout_copy": "import io, os, sys\nsys.stdout = io.TextIOWrapper(os.fdopen(os.dup(1), 'wb'))\n"
    "print('copied')",
    "redirect": "import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()) as s:\n"
    "    print('inside')\nprint(s.getvalue().upper())",
    "close_stdout": "import sys\nprint(1)\nsys.stdout.close()",
    "close_stdout_then_print": "import sys\nprint(1)\nsys.stdout.close()\nprint(2)",
    "close_stdout_and_exit": "import sys\nprint(1)\nsys.stdout.close()\nsys.exit(2)",
    "close_descriptor": "import os\nprint(1)\nos.close(1)",
    "close_stdin": "import sys\nprint(input())\nsys.stdin.close()",
    "stdout_none": "import sys\nprint(1)\nsys.stdout = None",
    "del_stdout": "import sys\nprint(1)\ndel sys.stdout",
    "stderr": "import sys\nprint('err', file=sys.stderr)\nprint('out')",
    "stderr_is_stdout": "import sys\nsys.stderr = sys.stdout\n"
    "print('a', file=sys.stderr)\nprint('b')",
    "binary_zeros": "import sys\nsys.stdout.buffer.write(bytes(range(256)))",
    "unicode": "print('\\xe4\\u4e2d\\U0001f600')",
    "surrogate": "print('\\udc80')",
    "line_buffering": "import os, sys\nsys.stdout.reconfigure(line_buffering=True)\nprint('a')\n"
    "os.write(1, b'b\\n')",
    # -- waiting a little
    "sleep": "import time\ntime.sleep(0.3)\nprint('awake')",
    "event": "import threading\ne = threading.Event()\nprint(e.wait(0.1))",
    "select": "import select\nprint(select.select([0], [], [], 1)[0])",
    "asyncio": "import asyncio\nasync def f():\n    await asyncio.sleep(0.01)\n    print('async')\n"
    "asyncio.run(f())",
}
# Those whose exit status is that of a SystemExit.
EXITS = {name for name in PROGRAMS if "exit" in name and not name.startswith(("os_", "atexit"))}
EXITS |= {"quit"}

# These wait for ever. None of their threads can run again, so a few seconds settle it.
WAITING: dict[str, str] = {
    "queue": "import queue\nprint(1)\nqueue.Queue().get()",
    "event": "import threading\nthreading.Event().wait()",
    "sleep": "import time\ntime.sleep(1e6)",
    "many_sleeps": "import time\nwhile True:\n    time.sleep(0.3)",
    "lock_twice": "import threading\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()",
    "deadlock": "import threading, time\na, b = threading.Lock(), threading.Lock()\n"
    "def f(x, y):\n    with x:\n        time.sleep(0.05)\n        with y: pass\n"
    "t = threading.Thread(target=f, args=(a, b))\nt.start()\nf(b, a)",
    "pipe": "import os\nr, w = os.pipe()\nos.read(r, 1)",
    "select": "import select\nselect.select([], [], [])",
    "pause": "import signal\nsignal.pause()",
    "stopped": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "thread_left": "import threading\nthreading.Thread(target=threading.Event().wait).start()",
    "in_atexit": "import atexit, threading\natexit.register(threading.Event().wait)",
    "in_del": "import threading\nclass A:\n    def __del__(s): threading.Event().wait()\na = A()",
    "main_thread_gone": "import ctypes, threading\n"
    "threading.Thread(target=threading.Event().wait).start()\n"
    "ctypes.CDLL(None).pthread_exit(None)",
}
# These never end either, but compute: the limit on processor time ends them.
BUSY: dict[str, str] = {
    "in_thread": "import threading\ndef f():\n    while True: pass\n"
    "threading.Thread(target=f).start()",
    "in_atexit": "import atexit\n@atexit.register\ndef f():\n    while True: pass",
    "in_del": "class A:\n    def __del__(s):\n        while True: pass\na = A()",
    "one_of_two": "import threading\nthreading.Thread(target=threading.Event().wait).start()\n"
    "while True: pass",
}
