"""A worker process, seen from the harness's side: start it, hand it a program, read its account."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from . import wire
from .jobs import Job, Outcome, SandboxError, outcome
from .scratch import Scratch

# The worker's files are imported as a package without running this package's __init__.
_BOOTSTRAP = (
    "import sys, types; sys.path[:] = [p for p in sys.path if p]; "
    "package = types.ModuleType('sandbox'); package.__path__ = [{path!r}]; "
    "sys.modules['sandbox'] = package; from sandbox.worker import main; main()"
)
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    "LC_ALL": "C.UTF-8",
    "PYTHONHASHSEED": "0",  # programs that print a set get the same verdict every time
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}
_PACKAGES = ("numpy",)  # what the benchmarks' programs may import beside the standard library


def _packages() -> dict[str, str]:
    """Folders of the allowed packages, and of the shared libraries that come with them."""
    folders = {}
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        for path in (spec.submodule_search_locations or ()) if spec else ():
            folders[name] = path
            if os.path.isdir(path + ".libs"):
                folders[name + ".libs"] = path + ".libs"
    return folders


class Worker:
    """A running worker process; not safe to share between threads."""

    def __init__(self, level: str) -> None:
        self.level = level
        self.ended = False  # it gave its last account and is gone
        self._held: Job | None = None
        self._scratch = Scratch()
        options = {"level": level, "tmp": self._scratch.path, "packages": _packages()}
        bootstrap = _BOOTSTRAP.format(path=str(Path(__file__).parent))
        self._process = subprocess.Popen(
            [sys.executable, "-s", "-S", "-B", "-X", "utf8", "-c", bootstrap, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_ENVIRONMENT,
            cwd="/",
            start_new_session=True,  # Ctrl-C is for the harness
        )
        assert self._process.stdout is not None
        self._replies = wire.Reader(self._process.stdout.fileno())
        try:
            hello = self._receive()
            if "refused" in hello:
                raise SandboxError(f"isolation level {level!r}: {hello['refused']}")
        except SandboxError:
            self.close()
            raise

    def run(self, job: Job) -> Outcome:
        """Judge one program.

        Raises:
            SandboxError: when the worker died or could not confine the program.
        """
        limits = job.limits
        header = {
            "mode": "stdin" if job.test is None else "test",
            "program": job.program,
            "entry_point": job.entry_point,
            "header": job.header,
            "cpu": job.total_cpu_seconds,
            "call_cpu": limits.cpu_seconds if job.seconds_are_per_call else None,
            "wall": limits.wall_seconds,
            "memory": limits.memory_bytes,
            "output": limits.output_bytes,
            "idle": limits.idle_seconds,
            "new_tests": job.test is not None and not self._holds_tests_of(job),
        }
        assert self._process.stdin is not None
        try:
            wire.send_json(self._process.stdin.fileno(), header, *self._second_frame(job))
        except BrokenPipeError as error:
            raise SandboxError("a sandbox worker died") from error
        account = self._receive()
        output = self._replies.next() if job.test is None else b""
        self.ended = account.get("out_of_step", False)
        return outcome(job, account, output or b"")

    def _second_frame(self, job: Job) -> list[bytes]:
        """A program's input, or the tests if the tests' process hasn't got them already."""
        if job.test is None:
            return [job.stdin]
        if self._holds_tests_of(job):
            return []
        self._held = job
        data = wire.Encoder(keep_objects=False).encode(job.data)
        return [json.dumps({"setup": job.setup, "test": job.test, "data": data}).encode()]

    def _holds_tests_of(self, job: Job) -> bool:
        """Whether the tests' process has these tests from the job before."""
        held = self._held
        return (
            held is not None
            and (held.test, held.setup, held.entry_point) == (job.test, job.setup, job.entry_point)
            and held.data is job.data
        )

    def _receive(self) -> Any:
        try:
            frame = self._replies.next()
            message = None if frame is None else json.loads(frame)
        except (wire.WireError, ValueError) as error:
            raise SandboxError(f"a sandbox worker sent rubbish ({error})") from error
        if message is None:
            raise SandboxError("a sandbox worker died")
        return message

    def close(self) -> None:
        """End the worker and all that runs in it; remove its directory."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._scratch.remove()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
