"""The sandbox's ordinary work: verdicts, values across the process border, order, failure."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_eval_embednoise import sandbox
from lm_eval_embednoise.sandbox import Job, Limits, SandboxError, kernel, levels, seccomp, wire
from lm_eval_embednoise.sandbox.process import Worker

QUICK = Limits(cpu_seconds=0.3, wall_seconds=1.5, memory_bytes=1 << 28, output_bytes=1 << 20)


def judge(program: str, test: str = "", **options: object) -> sandbox.Outcome:
    body = "".join(f"    {line}\n" for line in test.splitlines()) or "    pass\n"
    job = Job(program, "f", test="def check(candidate):\n" + body, limits=QUICK, **options)
    return sandbox.run_programs([job], progress=False)[0]


@pytest.mark.parametrize(
    ("program", "verdict"),
    [
        ("def f(x): return x + 1", "passed"),
        ("def f(x): return x", "wrong_answer"),
        ("def f(x): return x.y", "runtime_error"),
        ("def g(x): return x + 1", "runtime_error"),
        ("raise ValueError", "runtime_error"),
        ("def f(x) return x", "syntax_error"),
        ("def f(x):\n    while True: pass", "timeout"),
        ("def f(x): return [0] * 10**9", "memory"),
        ("def f(x):\n    while True: print('x' * 9999)", "output_limit"),
    ],
)
def test_verdicts(program: str, verdict: str) -> None:
    assert judge(program, "assert candidate(1) == 2").verdict == verdict


def test_every_verdict_is_documented() -> None:
    assert set(sandbox.VERDICTS) == {
        *("passed", "wrong_answer", "runtime_error", "syntax_error"),
        *("timeout", "memory", "output_limit"),
    }


def test_static_facts_come_with_the_verdict() -> None:
    trivial = judge("def f(x):\n    '''doc'''\n    pass", "assert candidate(1) == 2")
    assert (trivial.compiled, trivial.defined, trivial.trivial) == (True, True, True)
    broken = judge("def f(x:", "assert True")
    assert (broken.compiled, broken.ast) == (False, None)


def test_a_program_alone_reads_its_input_and_prints() -> None:
    program = "import sys\nfor line in sys.stdin:\n    print(int(line) * 2)\nexit()"
    outcome = sandbox.run_programs([Job(program, stdin=b"1\n21\n")], progress=False)[0]
    assert (outcome.verdict, outcome.output) == ("passed", b"2\n42\n")


def test_the_tests_may_use_helpers_of_the_prompt_and_classes_of_the_program() -> None:
    setup = "import math\ndef double(x):\n    return 2 * x\ndef f(x):\n    '''to do'''\n"
    program = "class Pair:\n    def __init__(s, a): s.a = a\ndef f(p): return p.a + 1"
    assert judge(
        program, "assert candidate(Pair(1)) == double(math.sqrt(1))", setup=setup
    ).verdict == ("passed")


def test_the_tests_see_what_the_program_did_to_its_arguments() -> None:
    check = "rows = [3, 1, 2]\ncandidate(rows)\nassert rows == [1, 2, 3]"
    assert judge("def f(rows): rows.sort()", check).verdict == "passed"
    assert judge("def f(rows): sorted(rows)", check).verdict == "wrong_answer"


def test_state_lives_from_call_to_call() -> None:
    program = "seen = []\ndef f(x):\n    seen.append(x)\n    return len(seen)"
    assert (
        judge(program, "assert [candidate(0) for _ in range(3)] == [1, 2, 3]").verdict == "passed"
    )


def test_a_test_that_does_not_compile_is_the_sandboxs_failure_not_the_programs() -> None:
    with pytest.raises(SandboxError, match="does not compile"):
        judge("def f(x): return 1", "assert (")


def test_one_failure_does_not_lose_the_others() -> None:
    done = []

    def work(run: object, index: int) -> int:
        done.append(index)
        if index == 3:
            raise SandboxError("broken")
        return index

    with pytest.raises(SandboxError, match=r"1 of 20 .* number 3: broken"):
        sandbox.map_items(work, list(range(20)), workers=2, progress=False)
    assert set(done) == set(range(20))


def test_outcomes_keep_the_order_of_the_jobs() -> None:
    jobs = [Job(f"print({i})") for i in range(30)]
    outputs = [o.output for o in sandbox.run_programs(jobs, workers=3, progress=False)]
    assert outputs == [f"{i}\n".encode() for i in range(30)]


def test_a_killed_worker_is_a_sandbox_error() -> None:
    with Worker(sandbox.strongest()) as worker:
        worker._process.kill()
        with pytest.raises(SandboxError, match="died"):
            [worker.run(Job("pass")) for _ in range(3)]


def test_workers_import_nothing_heavy() -> None:
    program = (
        "import sys\nprint([m for m in ('torch', 'numpy', 'lm_eval', 'transformers', 'datasets', "
        "'lm_eval_embednoise') if m in sys.modules])"
    )
    assert sandbox.run_programs([Job(program)], progress=False)[0].output == b"[]\n"


def test_the_environment_is_empty_of_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    outcome = sandbox.run_programs([Job("import os\nprint(dict(os.environ))")], progress=False)[0]
    assert b"secret" not in outcome.output


def test_sets_print_in_the_same_order_every_time() -> None:
    jobs = [Job("print({str(i) for i in range(50)})")] * 4
    assert len({o.output for o in sandbox.run_programs(jobs, workers=2, progress=False)}) == 1


def test_no_sandbox_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels, "_refusal", lambda level: "not permitted")
    monkeypatch.delenv(levels.OPT_IN, raising=False)
    with pytest.raises(SandboxError, match=r"no sandbox available.*EMBEDNOISE_SANDBOX=rlimits"):
        sandbox.strongest()


def test_resource_limits_alone_must_be_asked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(levels.OPT_IN, "rlimits")
    assert sandbox.strongest() == "rlimits"
    assert "SANDBOX OFF" in caplog.text
    monkeypatch.setenv(levels.OPT_IN, "jail")
    with pytest.raises(SandboxError, match="namespaces, landlock, rlimits"):
        sandbox.strongest()


def test_the_weakest_level_judges_and_kills_daemons_too() -> None:
    daemon = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        time.sleep(60)\n    os._exit(0)\nprint(os.getpid())"
    )
    with Worker("rlimits") as worker:
        first = worker.run(Job(daemon))
        second = worker.run(Job("print(1)"))
        children = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(worker._process.pid)], capture_output=True, text=True
        )
    assert (first.verdict, second.output) == ("passed", b"1\n")
    assert len(children.stdout.split()) == 3  # one parses, one holds tests, one forks


def test_limits_and_jobs_are_checked_where_they_are_made() -> None:
    with pytest.raises(ValueError, match="cpu_seconds"):
        Limits(cpu_seconds=0)
    with pytest.raises(ValueError, match="entry_point"):
        Job("pass", test="check")


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=15,
)


@settings(deadline=None)
@given(plain | st.frozensets(st.integers()) | st.complex_numbers(allow_nan=False) | st.binary())
def test_values_survive_the_border(value: object) -> None:
    sent = json.loads(json.dumps(wire.Encoder(keep_objects=False).encode(value)))
    back = wire.decode(sent)
    assert back == value
    assert type(back) is type(value)


@settings(deadline=None)
@given(
    st.recursive(
        st.text(max_size=5) | st.integers(),
        lambda i: (
            st.dictionaries(
                st.sampled_from(["t", "v", "kind"]),
                i | st.sampled_from(["int", "set", "object", "range"]),
            )
            | st.lists(i)
        ),
        max_leaves=8,
    )
)
def test_malformed_values_raise_nothing_but_wire_errors(message: object) -> None:
    try:
        wire.decode(message)
    except wire.WireError:
        return
    json.dumps(message)


def test_a_pipe_that_ends_inside_a_frame_is_an_error() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"\x05\0\0\0\0\0\0\0ab")
    os.close(writer)
    with pytest.raises(wire.WireError):
        wire.receive(reader)
    os.close(reader)


def test_the_sandbox_needs_the_standard_library_only() -> None:
    code = "import lm_eval_embednoise.sandbox, sys; "
    code += "print('numpy' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


OWNER = """
import os, sys, tempfile
from lm_eval_embednoise.sandbox.scratch import Scratch
tempfile.tempdir = sys.argv[1]
folder = Scratch()
os.makedirs(folder.path + "/deep" * 30)
os.chmod(folder.path + "/deep", 0)
print(folder.path, flush=True)
sys.stdin.read()
"""


def test_the_next_start_removes_the_folders_of_killed_runs_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def owner() -> tuple[subprocess.Popen[str], Path]:
        process = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    (dead, left), (living, kept) = owner(), owner()
    dead.kill()
    dead.communicate()
    others = [tmp_path / "embednoise-store-x", tmp_path / "embednoise-sandbox"]
    for folder in others:
        folder.mkdir()
    (tmp_path / "target").mkdir()
    (tmp_path / "embednoise-sandbox-link").symlink_to(tmp_path / "target")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    try:
        assert left.is_dir()
        assert sandbox.run_programs([Job("print(1)")], progress=False)[0].output == b"1\n"
        assert not left.exists()
        assert all(folder.is_dir() for folder in (kept, *others, tmp_path / "target"))
    finally:
        living.communicate()
    assert sorted(p.name for p in tmp_path.iterdir() if p != kept) == [
        "embednoise-sandbox",
        "embednoise-sandbox-link",
        "embednoise-store-x",
        "target",
    ]


@pytest.mark.parametrize("level", sandbox.available_levels())
def test_the_text_of_an_exception_is_cut(level: str) -> None:
    name = "raise type('x' * (30 << 20), (Exception,), {})"
    test = "def check(c):\n    c(1)\n"
    jobs = [Job(f"def f(x): {name}", "f", test=test), Job(name), Job(name, "f", test=test)]
    for outcome in sandbox.run_programs(jobs, level=level, progress=False):
        assert outcome.verdict == "runtime_error"
        assert outcome.detail == "x" * 200


def answer_of(program: bytes, number: int, arguments: tuple[int, ...] = (0,) * 6) -> int:
    """What a filter says to a system call: an interpreter of the few instructions it has."""
    architecture = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[kernel.MACHINE]
    data = struct.pack("<IIQ6Q", number, architecture, 0, *arguments)
    place = loaded = 0
    while True:
        code, yes, no, value = struct.unpack_from("<HBBI", program, 8 * place)
        place += 1
        if code == 0x06:
            return int(value)
        if code == 0x20:
            (loaded,) = struct.unpack_from("<I", data, value)
            continue
        tests = {0x15: loaded == value, 0x25: loaded > value, 0x35: loaded >= value}
        place += yes if {**tests, 0x45: bool(loaded & value)}[code] else no


@pytest.mark.skipif(not seccomp.supported(), reason="no table of system calls for this machine")
@pytest.mark.parametrize("landlock", [False, True])
def test_the_filter_allows_its_list_and_nothing_else(landlock: bool) -> None:
    program = seccomp.build(4321, landlock)
    answers = {number: answer_of(program, number) for number in range(1024)}
    allow, refuse, absent = 0x7FFF0000, 0x00050001, 0x00050026
    listed = set(seccomp.allowed(landlock))
    by_arguments = {number for number in answers if answers[number] == allow} - listed
    assert all(answers[number] == allow for number in listed)
    assert set(answers.values()) == {allow, refuse, absent}
    assert [number for number in answers if answers[number] == absent] == [435]  # clone3
    # With all arguments 0: fcntl(0, F_DUPFD), prlimit(0) and sendto without an address.
    x86, arm = {44, 72, 302}, {25, 206, 261}
    assert by_arguments == (x86 if kernel.MACHINE == "x86_64" else arm)
    kill = 62 if kernel.MACHINE == "x86_64" else 129
    assert answer_of(program, kill, (4321, 9, 0, 0, 0, 0)) == allow
    assert answer_of(program, kill, (4322, 9, 0, 0, 0, 0)) == refuse
