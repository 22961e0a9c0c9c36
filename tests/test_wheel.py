"""The wheel: built without a network, installed apart from this tree, used from elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.test_plugin import OWN_FILES_ONLY

ROOT = Path(__file__).parents[1]
PLACES = {  # folder of the tree → its place in the wheel
    "lm_eval_embednoise": "lm_eval_embednoise",
    "analysis": "lm_eval_embednoise/analysis",
    "model_configs": "lm_eval_embednoise/model_configs",
    "tasks": "lm_eval_embednoise/tasks",
}
STOCK = "from lm_eval.__main__ import cli_evaluate; cli_evaluate()"
COMMAND = """--model hf-embednoise --model_args sigma=0.1 --tasks minicode_diverse_k1 --limit 1
--gen_kwargs max_gen_toks=24 --output_path out"""
FILES = ("pyproject.toml", "build_backend.py", "README.md", "LICENSE")


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that succeeds, far from the network."""
    hidden = {"PYTHONPATH", "PYTHONWARNINGS"}
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    environment = {**kept, "HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, where no earlier build has left anything."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in PLACES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run(*pip, "--wheel-dir", out, source, cwd=out)
    (path,) = out.glob("lm_eval_embednoise-*.whl")
    return path


def test_every_file_of_the_package_is_in_it(wheel: Path) -> None:
    """Modules, task files, run files, schema, C sources, and the embedded model."""
    expected = {
        f"{place}/{path.relative_to(ROOT / name).as_posix()}"
        for name, place in PLACES.items()
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == {*expected, "lm_eval_embednoise.pth"}


def test_it_serves_the_stock_command_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    """In an environment that sees the packages around it, but not this tree."""
    environment = tmp_path / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=tmp_path)
    python = environment / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--no-deps", wheel, cwd=tmp_path)
    (site,) = environment.glob("lib/python*/site-packages")
    # Folders only: .pth files in them, an editable install's among them, aren't read.
    around = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "zz_around.pth").write_text("\n".join(around) + "\n")

    place = run(python, "-c", "import lm_eval_embednoise as e; print(e.__file__)", cwd=tmp_path)
    assert Path(place.strip()).is_relative_to(site)
    version = run(environment / "bin" / "embednoise", "--version", cwd=tmp_path)
    assert wheel.name.split("-")[1] in version
    run(python, "-c", f"{OWN_FILES_ONLY}{STOCK}", *COMMAND.split(), cwd=tmp_path)
    (results,) = (tmp_path / "out").rglob("results_*.json")
    measured = json.loads(results.read_text(encoding="utf-8"))["results"]["minicode_diverse_k1"]
    assert 0 <= measured["pass@1,records"] <= 1
