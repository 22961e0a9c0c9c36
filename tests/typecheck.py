"""mypy over the library as it is installed: `python -m tests.typecheck`.

`analysis/`, `tasks/` and `model_configs/` stand beside the package and are installed into it, which
mypy doesn't see; so it is given a tree of links in which they are in their places.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "lm_eval_embednoise"
BESIDE = ("analysis", "tasks", "model_configs")


def check(planted: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run mypy.

    Args:
        planted: file below the package → text put behind its own, to see that it is found.
    """
    cache = ROOT / ".mypy_cache"
    tree = cache / "installed"
    shutil.rmtree(tree, ignore_errors=True)
    package = tree / PACKAGE
    package.mkdir(parents=True)
    entries = [*(ROOT / PACKAGE).iterdir(), *(ROOT / name for name in BESIDE)]
    changed = {Path(name).parts[0] for name in planted or {}}
    for entry in entries:
        if entry.name in changed:
            shutil.copytree(entry, package / entry.name)
        elif entry.name != "__pycache__":
            (package / entry.name).symlink_to(entry)
    for name, text in (planted or {}).items():
        with (package / name).open("a") as file:
            file.write(text)
    (tree / "build_backend.py").symlink_to(ROOT / "build_backend.py")
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
    command += ["--cache-dir", str(cache), "-p", PACKAGE, "-m", "build_backend"]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)


if __name__ == "__main__":
    done = check()
    print(done.stdout, done.stderr, sep="", end="")
    sys.exit(done.returncode)
