"""Files: written whole or not at all, and the harness's own made valid JSON.

The harness writes results and samples with `NaN` in them, a record as the text of Python's repr,
and loses the whole samples file at the first lone surrogate (half a character, which a model behind
an API can return): its files are UTF-8, which has no such thing, JSON's escapes do.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import platformdirs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SURROGATE = re.compile("[\ud800-\udfff]")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Write a file, or a folder, that appears under its name whole or not at all.

    Yields:
        The path to write to, beside `path` and hidden. When the block ends it replaces `path`; if
        the block raises, it is removed and `path` is as before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield partial
        if partial.is_dir():  # a folder replaces only an empty one
            shutil.rmtree(path, ignore_errors=True)
        partial.replace(path)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, UTF-8, whole or not at all."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def cache_folder(name: str) -> Path:
    """The user's cache folder for one kind of file (on Linux below XDG_CACHE_HOME or ~/.cache)."""
    return platformdirs.user_cache_path("lm-eval-embednoise") / name


def dumps(value: Any, **options: Any) -> str:
    """As `json.dumps`: undefined numbers are null, and lone surrogates are escaped.

    So the text is valid JSON that UTF-8 can hold; reading it gives the same strings back.
    """
    options = {**options, "allow_nan": False}
    try:
        text = json.dumps(value, **options)
    except ValueError:
        text = json.dumps(_defined(value), **options)
    return _SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", text)


def as_strings(value: Any) -> Any:
    """Nested lists with strings in them, as the harness wants them; records stay what they are."""
    if isinstance(value, (list, tuple)):
        return type(value)(as_strings(item) for item in value)
    return value if isinstance(value, dict) else str(value)


def _defined(value: Any) -> Any:
    """The same with None for NaN and infinity."""
    if isinstance(value, dict):
        return {key: _defined(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_defined(item) for item in value]
    if isinstance(value, (float, np.floating)) and not np.isfinite(value):
        return None
    return value
