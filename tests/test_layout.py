"""The direction of imports, and what must stay light (docs of the design, held by one test)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import typecheck
from tests.modules import PACKAGE, ROOT, arrows, circles, imports, modules, of_folders

CHAIN = (
    "kernels", "noise", "engine.attention", "engine.slots", "engine.shared_prefix",
    "engine.weights", "engine.lean_checks", "engine.lean", "engine.graphs", "engine.sampling",
    "engine.choose",
    "engine.lanes", "engine.runner", "engine.prefill", "engine.batch", "engine.padded",
    "engine.likelihood", "engine.sampler", "models",
)  # fmt: skip


def uses(name: str, path: Path, target: str) -> bool:
    return any(i == target or i.startswith(target + ".") for i in imports(name, path))


def test_no_imports_go_in_a_circle() -> None:
    """Neither of modules nor of folders, those for type checking and in functions included."""
    graph = arrows()
    assert circles(graph) == [] and circles(of_folders(graph)) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c"]]


def test_folders_stand_on_each_other() -> None:
    above = of_folders(arrows())
    assert above["noise"] <= {"kernels", "checks"}
    assert above["engine"] <= {"kernels", "noise"}
    assert above["sandbox"] == set()
    assert above["problems"] <= {"minicoder", "sandbox"}
    assert above["scoring"] <= {"problems", "sandbox", "written"}
    assert above["store"] <= {"problems", "scoring", "written"}
    assert above["written"] == set()
    assert not above["models"] & {"commands", "study", "analysis", "plugin", "cli", "early"}
    users = {name for name, targets in above.items() if "analysis" in targets}
    assert users <= {"study", "cli", "commands"}


@pytest.mark.parametrize("position", range(len(CHAIN)))
def test_the_library_imports_one_way(position: int) -> None:
    """kernels → noise → … → engine.sampler → models."""
    part = f"lm_eval_embednoise.{CHAIN[position]}"
    for name, path in modules().items():
        if name == part or name.startswith(part + "."):
            for later in CHAIN[position + 1 :]:
                assert not uses(name, path, f"lm_eval_embednoise.{later}"), (name, later)


def test_only_the_named_modules_know_the_harness() -> None:
    allowed = ("plugin", "host", "models", "scoring.filters", "study", "cli", "commands.doctor")
    for name, path in modules().items():
        short = name.removeprefix("lm_eval_embednoise.")
        if not any(short == a or short.startswith(a + ".") for a in allowed):
            assert not uses(name, path, "lm_eval"), name


def test_scoring_and_analysis_never_import_torch() -> None:
    for name, path in modules().items():
        light = ("lm_eval_embednoise.scoring", "lm_eval_embednoise.sandbox")
        analysis = name.startswith("lm_eval_embednoise.analysis") and "mechanism" not in name
        if name.startswith(light) or analysis:
            assert not uses(name, path, "torch") and not uses(name, path, "transformers"), name


def test_the_store_and_its_formats_know_no_model() -> None:
    """They are read where no model is: in scoring's processes, and by `embednoise generations`."""
    for name, path in modules().items():
        if name.startswith(("lm_eval_embednoise.store", "lm_eval_embednoise.commands.generations")):
            for target in ("torch", "transformers", "lm_eval_embednoise.models"):
                assert not uses(name, path, target), (name, target)


def test_sandbox_knows_no_scoring_and_the_library_no_analysis() -> None:
    for name, path in modules().items():
        if name.startswith("lm_eval_embednoise.sandbox"):
            assert not uses(name, path, "lm_eval_embednoise.scoring"), name
        if name.startswith(("lm_eval_embednoise.scoring", "lm_eval_embednoise.models")):
            assert not uses(name, path, "lm_eval_embednoise.analysis"), name


def test_the_type_checker_sees_calls_into_the_analysis() -> None:
    planted = "\n\ndef planted() -> None:\n    verdict.no_such_thing(1)\n"
    done = typecheck.check(
        {"study/calibrate.py": f"\nfrom {PACKAGE}.analysis import verdict{planted}"}
    )
    assert done.returncode == 1 and 'has no attribute "no_such_thing"' in done.stdout, done.stderr


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, lm_eval_embednoise as e; assert e.__version__;"
        "print(sorted({'torch', 'lm_eval', 'numpy', 'transformers', 'typing'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "[]"
