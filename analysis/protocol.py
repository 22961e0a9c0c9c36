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

VERSION = 2
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
_SINCE_2 = {"version", "contents", "against"}
# What version 1 says of the curve: nothing, so the verdict's second line follows this.
_AGAINST = {
    "quality": "pass@1",
    "outcomes": ["unique_correct"],
    "decides": "unique_correct",
    "least_doses": 8,
    "level": 0.95,
}


@dataclass(frozen=True)
class Endpoint:
    """One thing that must hold: a difference above −margin, or a ratio above a limit."""

    name: str
    statistic: str  # difference or ratio
    metric: str
    threshold: float


@dataclass(frozen=True)
class Protocol:
    """A protocol file's content; the fields are its keys, see protocol.yaml."""

    content: dict[str, Any]

    @classmethod
    def load(cls, path: str | Path | None = None) -> Protocol:
        """Read a protocol file, the packaged one by default.

        Raises:
            ResultError: the file is missing, lacks a key or is of a later version.
        """
        packaged = resources.files("lm_eval_embednoise.analysis") / "protocol.yaml"
        try:
            text = (Path(path) if path else packaged).read_text(encoding="utf-8")
            content = yaml.safe_load(text)
        except (OSError, yaml.YAMLError) as error:
            raise ResultError(f"cannot read the protocol {path}: {error}") from None
        given = set(content) if isinstance(content, dict) else set()
        keys = _KEYS | _SINCE_2 if "version" in given else _KEYS
        if given != keys:
            raise ResultError(
                f"protocol {path}: missing {sorted(keys - given)}, unknown {sorted(given - keys)}"
            )
        protocol = cls(content)
        if protocol.version not in range(1, VERSION + 1):
            raise ResultError(f"protocol {path}: version {protocol.version}; known: 1 to {VERSION}")
        return protocol

    @property
    def hash(self) -> str:
        """16 hexadecimal digits of the content; comments and layout don't count."""
        canonical = json.dumps(self.content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @property
    def version(self) -> int:
        """Which rules decide; files from before they were counted are version 1."""
        return int(self.content.get("version", 1))

    @property
    def level(self) -> float:
        """Confidence level of the intervals that decide: 1 − α/|family|."""
        return 1 - self.content["alpha"] / len(self.content["family"])

    @property
    def contents(self) -> dict[str, dict[str, Any]]:
        """Label → the settings that it must stand for."""
        return dict(self.content.get("contents", {}))

    @property
    def curve_rule(self) -> dict[str, Any]:
        """How the candidate is held against the temperature curve."""
        return dict(self.content.get("against", _AGAINST))

    def endpoints(self, domain: str) -> list[Endpoint]:
        """What must hold in a domain, the harms and the forms of the gain."""
        rule, coherence = self.content["endpoints"], self.content["coherence"]
        correctness, diversity = rule["correctness"], rule["diversity"]
        least = diversity["ratio"]
        endpoints = [
            Endpoint("correctness", "difference", correctness["metric"], -correctness["margin"]),
            Endpoint("diversity", "ratio", diversity["metric"], least),
            Endpoint("diversity, gated", "ratio", diversity["gated"], least),
        ]
        if "rarefied" in diversity:
            endpoints.append(Endpoint("diversity, rarefied", "ratio", diversity["rarefied"], least))
        if "solutions" in rule:
            solutions = rule["solutions"]
            endpoints.append(
                Endpoint("solutions", "ratio", solutions["metric"], solutions["ratio"])
            )
        if domain in coherence["metric"]:
            metric = coherence["metric"][domain]
            endpoints.append(Endpoint("coherence", "difference", metric, -coherence["margin"]))
        return endpoints

    def __getitem__(self, key: str) -> Any:
        return self.content[key]
