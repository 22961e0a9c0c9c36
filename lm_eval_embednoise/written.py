"""What the harness writes, made valid JSON: numbers that aren't, half characters, records as dicts.

The harness writes results and samples with `NaN` in them, a record as the text of Python's repr,
and loses the whole samples file at the first lone surrogate (half a character, which a model behind
an API can return): its files are UTF-8, which has no such thing, JSON's escapes do.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

_SURROGATE = re.compile("[\ud800-\udfff]")


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
