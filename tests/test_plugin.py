"""The routes into lm_eval, each in a fresh interpreter as a user's shell would start it."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import build_backend

ROOT = Path(__file__).parents[1]

# The harness's own 14,000 task files take too long.
OWN_FILES_ONLY = """
import lm_eval.tasks._index as index
real = index.TaskIndex._iter_yaml_files
index.TaskIndex._iter_yaml_files = staticmethod(
    lambda root: () if "lm_eval/tasks" in str(root) else real(root)
)
"""
REPORT = f"""
import json, sys
from lm_eval.api.registry import model_registry
import lm_eval.evaluator_utils, lm_eval.models
from lm_eval.tasks import TaskManager
{OWN_FILES_ONLY}
print(json.dumps({{
    "ours": "hf-embednoise" in model_registry,
    "stock": sorted({{"hf", "vllm", "dummy"}} & set(model_registry.keys())),
    "tasks": sorted(n for n in TaskManager().all_tasks if n.startswith("minicode_diverse")),
    "given": TaskManager(include_path="/nowhere").include_path,
    "own only": len(TaskManager(include_defaults=False).all_tasks),
    "loaded": "lm_eval_embednoise.models.hf_embednoise" in sys.modules,
}}))
"""


LATE = "import lm_eval.models, lm_eval.evaluator_utils, lm_eval.tasks, lm_eval_embednoise\n"
OFF = {"EMBEDNOISE_NO_HOOK": "1"}
ROUTES = {
    "hook": (REPORT, {}),
    "switched off": (REPORT, OFF),
    "imported": (f"import lm_eval_embednoise\n{REPORT}", OFF),
    "imported late": (LATE + REPORT, OFF),
}


def two_at_a_time(
    runs: Iterable[tuple[str, dict[str, str]]], inherited: Mapping[str, str]
) -> list[subprocess.CompletedProcess[str]]:
    """Each code in an interpreter of its own, with its own environment beside the inherited one."""

    def start(run: tuple[str, dict[str, str]]) -> subprocess.CompletedProcess[str]:
        line, environment = [sys.executable, "-c", run[0]], {**inherited, **run[1]}
        return subprocess.run(line, capture_output=True, text=True, cwd="/", env=environment)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(start, runs))


@functools.cache
def reports() -> dict[str, subprocess.CompletedProcess[str]]:
    return dict(zip(ROUTES, two_at_a_time(ROUTES.values(), os.environ), strict=True))


def report(route: str) -> dict:
    run = reports()[route]
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_the_hook_serves_the_stock_command() -> None:
    found = report("hook")
    assert found["ours"]
    assert found["stock"] == ["dummy", "hf", "vllm"]
    assert found["tasks"] == [f"minicode_diverse{end}" for end in ("", "_k1", "_k10", "_k20")]
    assert found["own only"] == 0
    assert found["given"] == "/nowhere"  # what the user gave stays what the object shows
    assert not found["loaded"]  # registered by path, imported when asked for


def test_the_hook_can_be_switched_off_and_importing_still_works() -> None:
    off = report("switched off")
    assert not off["ours"] and off["tasks"] == [] and off["stock"] == ["dummy", "hf", "vllm"]
    explicit = report("imported")
    assert explicit["ours"] and explicit["tasks"]


def test_importing_after_the_harness_registers_too() -> None:
    found = report("imported late")
    assert found["ours"] and found["tasks"]


def test_start_up_costs_less_than_a_millisecond_and_imports_nothing() -> None:
    """What the `.pth` line does in every Python process: processor time, best of many."""
    run = compile(build_backend.PTH_LINE, "pth", "exec")
    before, finders = set(sys.modules), list(sys.meta_path)

    def once() -> float:
        start = time.process_time()
        exec(run, {})
        return time.process_time() - start

    try:
        assert min(once() for _ in range(20)) < 1e-3
        assert len(sys.meta_path) == len(finders) + 20
    finally:
        sys.meta_path[:] = finders
    assert set(sys.modules) == before


WAITS = """
import json, os, sys
{first}
from lm_eval_embednoise import _hook
print(json.dumps([_hook.waiting, {{n: os.environ[n] for n in _hook.WAITING if n in os.environ}}]))
"""


# What is imported first, under which environment, and what is found: who decided, and what is set.
DECIDED = [
    ("import lm_eval.models, torch", {}, "ours", {"GOMP_SPINCOUNT": "10000"}),
    ("import torch, lm_eval.models", {}, "too late", {"GOMP_SPINCOUNT": "10000"}),
    ("import lm_eval_embednoise, torch", {}, "not set", {}),  # no harness, nothing changed
    ("import torch", {}, "not set", {}),
    *(
        ("import lm_eval.models, torch", chosen, "the user's", chosen)
        for chosen in ({"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"})
    ),
    (
        "from lm_eval_embednoise import cli\n"
        "try: cli.main(['--version'])\nexcept SystemExit: import torch",
        OFF,
        "ours",
        {"GOMP_SPINCOUNT": "10000"},
    ),
]


@functools.cache
def waits() -> list[subprocess.CompletedProcess[str]]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_"))}
    runs = ((WAITS.format(first=first), environment) for first, environment, _, _ in DECIDED)
    return two_at_a_time(runs, {**clean, "OMP_DISPLAY_ENV": "verbose"})


@pytest.mark.parametrize("number", range(len(DECIDED)))
def test_openmp_threads_soon_sleep_where_the_harness_runs_and_nobody_decided(number: int) -> None:
    """What OpenMP itself says it has read, too, where it is loaded and GNU's."""
    _, _, waiting, found = DECIDED[number]
    run = waits()[number]
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1]) == [waiting, found]
    spins = [line.split("'")[1] for line in run.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
    if spins:  # how often a thread looks before it sleeps: 300,000 unless it is told
        asked = {"ACTIVE": "30000000000"}.get(found.get("OMP_WAIT_POLICY", ""))
        read = asked or found.get("GOMP_SPINCOUNT", "300000")
        assert spins[0] == ("300000" if waiting == "too late" else read)


def test_doctor_says_how_openmp_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval_embednoise.commands import doctor

    said = {state: doctor._waiting("x", state) for state in ("ours", "too late", "not set")}
    assert [ok for ok, _, _ in said.values()] == [True, False, False]
    assert "set before torch" in said["ours"][2] and "not read" in said["too late"][2]
    assert "export GOMP_SPINCOUNT=10000" in said["not set"][2]
    monkeypatch.setattr(doctor, "_PROBE", OWN_FILES_ONLY + doctor._PROBE)
    routes = {name: (ok, text) for ok, name, text in doctor._routes()}
    assert {"OpenMP in lm_eval", "OpenMP in embednoise"} <= set(routes)
    assert routes["import hook *"][0] and routes["tasks *"][0]


def test_a_failing_extension_never_reaches_the_user(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from lm_eval_embednoise import _hook, plugin

    def broken(name: str) -> None:
        raise RuntimeError("changed harness")

    monkeypatch.setattr(plugin, "extend", broken)
    _hook._tell("lm_eval.models")
    assert "embednoise doctor" in caplog.text


def test_standard_errors_come_from_the_aggregation() -> None:
    from lm_eval import evaluator_utils

    from lm_eval_embednoise import plugin

    plugin.register()
    plugin.register()  # twice is as good as once

    def mean(values: list[float]) -> float:
        return sum(values)

    mean.stderr = lambda values: 42.0  # type: ignore[attr-defined]
    assert evaluator_utils.stderr_for_metric(mean, 10)([1.0]) == 42.0
    assert evaluator_utils.stderr_for_metric(len, 10) is None


def test_the_wheel_gets_the_start_up_file(tmp_path: Path) -> None:
    wheel = tmp_path / "x.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("x-1.dist-info/RECORD", "x.py,,\n")
    build_backend._add_pth(wheel)
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(build_backend.PTH_NAME).decode()
        record = archive.read("x-1.dist-info/RECORD").decode()
    assert text.count("\n") == 1 and text.startswith("import ")  # or site would not execute it
    assert f"{build_backend.PTH_NAME},sha256=" in record and f",{len(text)}\n" in record
    exec(compile(text, "pth", "exec"), {})  # harmless whatever is installed
