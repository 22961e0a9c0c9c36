"""PEP 517 backend: setuptools, plus one start-up file in the wheel.

The stock `lm_eval` command has no plug-in mechanism, so the installed package needs a `.pth`
file that Python reads when it starts (see lm_eval_embednoise/_hook.py). setuptools can put such a
file into neither an editable wheel nor, without a custom command, into a regular one; adding it to
the finished archive serves both alike.
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path
from typing import Any

from setuptools import build_meta as _setuptools
from setuptools.build_meta import *  # noqa: F403

PTH_NAME = "lm_eval_embednoise.pth"
# What every Python process runs at its start: it waits for the first import of lm_eval and then
# imports the package. Nothing else is imported, EMBEDNOISE_NO_HOOK=1 switches it off, and neither a
# half-removed install nor a defect of ours may disturb the interpreter.
START_UP = """
import os, sys
class EmbednoiseTrigger:
    def find_spec(self, name, path=None, target=None):
        if name == "lm_eval":
            try:
                import lm_eval_embednoise
            except Exception:
                pass
if os.environ.get("EMBEDNOISE_NO_HOOK", "0") in ("", "0"):
    sys.meta_path.insert(0, EmbednoiseTrigger())
"""
PTH_LINE = f"import sys; exec({START_UP!r})\n"  # the format takes one line that starts with import


def build_wheel(wheel_directory: str, *args: Any, **kwargs: Any) -> str:
    """Build the wheel with setuptools and add the start-up file."""
    name: str = _setuptools.build_wheel(wheel_directory, *args, **kwargs)
    _add_pth(Path(wheel_directory) / name)
    return name


def build_editable(wheel_directory: str, *args: Any, **kwargs: Any) -> str:
    """Build the editable wheel with setuptools and add the start-up file."""
    name: str = _setuptools.build_editable(wheel_directory, *args, **kwargs)
    _add_pth(Path(wheel_directory) / name)
    return name


def _add_pth(wheel: Path) -> None:
    """Rewrite the archive with the `.pth` file in it and listed, with its hash, in RECORD."""
    data = PTH_LINE.encode()
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    record_line = f"{PTH_NAME},sha256={digest},{len(data)}\n"
    with zipfile.ZipFile(wheel) as archive:
        entries = [(info, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for info, content in entries:
            if info.filename.endswith(".dist-info/RECORD"):
                content += record_line.encode()
            archive.writestr(info, content)
        archive.writestr(PTH_NAME, data)
