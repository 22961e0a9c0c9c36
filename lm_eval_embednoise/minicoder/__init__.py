"""The embedded model, its problems, and the scripts that make them; importing this is cheap."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MODEL_DIR = Path(__file__).resolve().parent / "model"
DATA_DIR = Path(__file__).resolve().parent / "data"
SPLITS = ("test", "calibration")
NAMES = ("minicode", "minimath")


def load_problems(name: str, split: str = "test") -> list[dict[str, Any]]:
    """The held-out problems of `minicode` or `minimath`, in file order.

    Raises:
        ValueError: for another name or split.
    """
    if name not in NAMES:
        raise ValueError(f"no problems called {name!r}; there are {', '.join(NAMES)}")
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; there are {', '.join(SPLITS)}")
    lines = (DATA_DIR / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["split"] == split]
