"""The direction of imports, and what must stay light (docs of the design, held by one test)."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "lm_eval_embednoise": ROOT / "lm_eval_embednoise",
    "lm_eval_embednoise.analysis": ROOT / "analysis",
}
CHAIN = (
    "kernels", "noise", "engine.attention", "engine.slots", "engine.behind", "engine.weights",
    "engine.lean_checks", "engine.lean", "engine.graphs", "engine.choose", "engine.lanes",
    "engine.runner", "engine.prefill", "engine.batch", "engine.padded", "engine.likelihood",
    "engine.sampler", "models",
)  # fmt: skip


def modules() -> dict[str, Path]:
    found = {}
    for package, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = path
    return found


def imports(name: str, path: Path, at_import_only: bool = False) -> set[str]:
    """Dotted names that a module imports, TYPE_CHECKING blocks left out."""
    tree = ast.parse(path.read_text())
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if at_import_only and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = package.split(".")[: len(package.split(".")) - child.level + 1]
                stem = ".".join([*base, child.module or ""]) if child.level else child.module or ""
                found.update(f"{stem.strip('.')}.{alias.name}" for alias in child.names)
            visit(child)

    visit(tree)
    return found


def uses(name: str, path: Path, target: str) -> bool:
    return any(i == target or i.startswith(target + ".") for i in imports(name, path))


@pytest.mark.parametrize("position", range(len(CHAIN)))
def test_the_library_imports_one_way(position: int) -> None:
    """kernels → noise → … → engine.sampler → models."""
    part = f"lm_eval_embednoise.{CHAIN[position]}"
    for name, path in modules().items():
        if name == part or name.startswith(part + "."):
            for later in CHAIN[position + 1 :]:
                assert not uses(name, path, f"lm_eval_embednoise.{later}"), (name, later)


def test_only_the_named_modules_know_the_harness() -> None:
    allowed = ("plugin", "models", "scoring.filters", "study", "cli", "commands.doctor")
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
