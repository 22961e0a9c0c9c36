"""Where this project's task files are."""

from __future__ import annotations

from pathlib import Path


def task_dir() -> Path:
    """The folder that holds this project's task YAML files."""
    import lm_eval_embednoise.tasks as tasks

    return Path(next(iter(tasks.__path__)))
