"""The protocol: endpoints, margins, family and arms; the hash of its file is its identity."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from lm_eval_embednoise.analysis.runs import ResultError

_KEYS = {
    "name",
    "baseline",
    "endpoints",
    "coherence",
    "family",
    "alpha",
    "test",
    "primary",
    "calibration",
    "plane",
    "curve",
}


@dataclass(frozen=True)
class Protocol:
    """A protocol file's content; the fields are its keys, see protocol.yaml."""

    content: dict[str, Any]

    @classmethod
    def load(cls, path: str | Path | None = None) -> Protocol:
        """Read a protocol file, the packaged one unless told.

        Raises:
            ResultError: the file is missing or lacks a key.
        """
        packaged = resources.files("lm_eval_embednoise.analysis") / "protocol.yaml"
        try:
            text = (Path(path) if path else packaged).read_text(encoding="utf-8")
            content = yaml.safe_load(text)
        except (OSError, yaml.YAMLError) as error:
            raise ResultError(f"cannot read the protocol {path}: {error}") from None
        given = set(content) if isinstance(content, dict) else set()
        if given != _KEYS:
            raise ResultError(
                f"protocol {path}: missing {sorted(_KEYS - given)}, unknown {sorted(given - _KEYS)}"
            )
        return cls(content)

    @property
    def hash(self) -> str:
        """16 hexadecimal digits of the content; comments and layout don't count."""
        canonical = json.dumps(self.content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @property
    def level(self) -> float:
        """Confidence level of the intervals that decide: 1 − α/|family|."""
        return 1 - self.content["alpha"] / len(self.content["family"])

    def __getitem__(self, key: str) -> Any:
        return self.content[key]
