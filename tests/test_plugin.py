"""The routes into lm_eval, each in a fresh interpreter as a user's shell would start it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import build_backend

ROOT = Path(__file__).parents[1]

REPORT = """
import json, sys
from lm_eval.api.registry import get_model, model_registry
import lm_eval.models
from lm_eval.tasks import TaskManager
print(json.dumps({
    "ours": "hf-embednoise" in model_registry,
    "stock": sorted({"hf", "vllm", "dummy"} & set(model_registry.keys())),
    "tasks": sorted(n for n in TaskManager().all_tasks if n.startswith("minicode_diverse")),
    "own only": len(TaskManager(include_defaults=False).all_tasks),
    "torch": "lm_eval_embednoise.models.hf_embednoise" in sys.modules,
}))
"""


def report(code: str, **environment: str) -> dict:
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd="/",
        env={**os.environ, **environment},
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_the_hook_serves_the_stock_command() -> None:
    found = report(REPORT)
    assert found["ours"]
    assert found["stock"] == ["dummy", "hf", "vllm"]
    assert found["tasks"] == ["minicode_diverse", "minicode_diverse_k10", "minicode_diverse_k20"]
    assert found["own only"] == 0
    assert not found["torch"]  # registered by path, loaded when asked for


def test_the_hook_can_be_switched_off_and_importing_still_works() -> None:
    off = report(REPORT, EMBEDNOISE_NO_HOOK="1")
    assert not off["ours"] and off["tasks"] == [] and off["stock"] == ["dummy", "hf", "vllm"]
    for code in (f"import lm_eval_embednoise\n{REPORT}", f"{REPORT}\n"):
        explicit = "import lm_eval_embednoise" in code
        assert report(code, EMBEDNOISE_NO_HOOK="1")["ours"] is explicit


def test_importing_after_the_harness_registers_too() -> None:
    late = "import lm_eval.models, lm_eval.evaluator, lm_eval_embednoise\n"
    found = report(late + REPORT, EMBEDNOISE_NO_HOOK="1")
    assert found["ours"] and found["tasks"]


def test_start_up_costs_less_than_a_millisecond() -> None:
    """The hook's own work, measured inside the interpreter: best of many imports."""
    code = """
import sys, time
def once():
    for name in [n for n in sys.modules if n.startswith("lm_eval_embednoise")]:
        del sys.modules[name]
    sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != "_Finder"]
    start = time.perf_counter()
    import lm_eval_embednoise._hook
    return time.perf_counter() - start
print(min(once() for _ in range(20)))
"""
    assert report(code) < 1e-3  # type: ignore[operator]


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
