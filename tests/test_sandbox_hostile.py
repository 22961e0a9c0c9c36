"""None of the hostile programs passes, reaches anything outside or leaves anything behind."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lm_eval_embednoise import sandbox
from tests.support import hostile_programs

LEVELS = [level for level in sandbox.available_levels() if level != "rlimits"]
NOBODY: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []}


@functools.cache
def interpreter_for_nobody() -> str | None:
    """A Python that an ordinary user may run (the one of the tests may lie in root's home)."""
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        try:
            probe = [python, "-c", "import sys, ctypes; sys.exit(sys.version_info < (3, 10))"]
            if subprocess.run(probe, cwd="/", capture_output=True, **NOBODY).returncode == 0:
                return python
        except OSError:
            continue
    return None


@functools.cache
def report(level: str, as_nobody: bool) -> dict[str, Any]:
    python, identity = sys.executable, {}
    if as_nobody:
        python, identity = interpreter_for_nobody() or "", NOBODY
        if os.getuid() != 0:
            pytest.skip("only root can become an ordinary user; these tests run as one already")
        if not python:
            pytest.skip("no interpreter that an ordinary user may run")
    command = [python, hostile_programs.__file__, level]
    environment = {"PATH": os.environ["PATH"], "HOME": "/", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd="/", **identity
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


EVERYONE = [(level, nobody) for level in LEVELS for nobody in (False, True)]
cases = pytest.mark.parametrize(("level", "as_nobody"), EVERYONE)


@cases
def test_every_program_gets_its_verdict(level: str, as_nobody: bool) -> None:
    verdicts = report(level, as_nobody)["verdicts"]
    assert len(verdicts) >= 40
    allowed = {name: verdict for name, (verdict, _) in hostile_programs.PROGRAMS.items()}
    surprising = {name: v for name, v in verdicts.items() if v not in allowed[name]}
    assert not surprising
    assert "passed" not in verdicts.values()


@cases
def test_the_host_is_as_before(level: str, as_nobody: bool) -> None:
    found = report(level, as_nobody)
    assert found["unchanged"]
    assert found["heard"] == []
    assert found["left_running"] == []


@cases
def test_an_honest_program_after_each_hostile_one_passes(level: str, as_nobody: bool) -> None:
    assert report(level, as_nobody)["honest"] == ["passed"]


def test_a_sandbox_is_available_here() -> None:
    if not LEVELS:
        pytest.skip(f"neither namespaces nor Landlock on this machine: {sandbox.describe()}")
    assert sandbox.strongest() in LEVELS


def test_the_folder_of_this_suite_is_readable_by_others() -> None:
    """Else the ordinary user's run would test nothing but a missing file."""
    assert Path(hostile_programs.__file__).stat().st_mode & 0o004
