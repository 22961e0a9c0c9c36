"""What a run ran on: software and hardware as its results file records them, in few words."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# Name here → the harness's key in a results file.
_FIELDS = {"lm-eval": "lm_eval_version", "transformers": "transformers_version", "git": "git_hash"}
# Name here → its line in torch's survey of the machine, which the harness stores as text.
_LINES = {
    "torch": r"PyTorch version: (.+)",
    "python": r"Python version: ([\d.]+)",
    "os": r"OS: (.+)",
    "cpu": r"Model name: +(.+)",
    "gpu": r"GPU models and configuration:\s+((?:GPU \d+: .+\n?)+)",
    "cuda": r"CUDA used to build PyTorch: ([\d.]+)",
}


def environment(results: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, str]:
    """Versions, commit and processor of a run; what the file doesn't tell is left out.

    Args:
        results: content of the harness's results file.
        info: what the model class reported about itself; its `versions` go before the harness's.
    """
    told = {name: str(version) for name, version in (info.get("versions") or {}).items()}
    fields = {name: results.get(key) for name, key in _FIELDS.items()}
    survey = str(results.get("pretty_env_info") or "")
    lines = {name: re.search(pattern, survey) for name, pattern in _LINES.items()}
    surveyed = {name: _in_words(found[1]) for name, found in lines.items() if found}
    harness = {name: str(value) for name, value in fields.items() if value}
    return {**surveyed, **harness, **told}


def joined(environments: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """One mapping for several runs: the different values of a key with `; ` between them."""
    values: dict[str, dict[str, None]] = {}
    for one in environments:
        for name, value in one.items():
            values.setdefault(name, {}).update(dict.fromkeys(value.split("; ")))
    return {name: "; ".join(different) for name, different in values.items()}


def _in_words(text: str) -> str:
    """A line as it is; of a list of GPUs each kind once, with their number."""
    gpus = re.findall(r"GPU \d+: (.+)", text)
    if not gpus:
        return text.strip()
    return ", ".join(
        f"{gpus.count(name)} × {name}" if gpus.count(name) > 1 else name
        for name in dict.fromkeys(gpu.strip() for gpu in gpus)
    )
