"""Which isolation this machine offers: tried out once, strongest first, and named."""

from __future__ import annotations

import logging
import os
from functools import lru_cache

from .isolate import LEVELS
from .jobs import SandboxError
from .process import Worker

log = logging.getLogger(__name__)

OPT_IN = "EMBEDNOISE_SANDBOX"
_DESCRIPTIONS = {
    "namespaces": "own user, mount, process, network and IPC namespaces; a small read-only root; "
    "a system-call filter",
    "landlock": "Landlock file rules and a system-call filter; no namespaces",
    "rlimits": "resource limits only: programs can read your files and use your network",
}


@lru_cache
def _refusal(level: str) -> str | None:
    """Why a worker cannot start at this level; None when one did."""
    try:
        Worker(level).close()
    except (SandboxError, OSError) as error:
        return str(error)
    return None


def available_levels() -> list[str]:
    """The levels at which a worker starts on this machine, strongest first."""
    return [level for level in LEVELS if _refusal(level) is None]


def describe() -> dict[str, str]:
    """A line for each level: what it is, or why it is not to be had."""
    lines = {}
    for level in LEVELS:
        reason = _refusal(level)
        lines[level] = _DESCRIPTIONS[level] if reason is None else f"not available: {reason}"
    return lines


def strongest() -> str:
    """The level to use: the strongest available, or the one that EMBEDNOISE_SANDBOX names.

    Raises:
        SandboxError: when nothing but resource limits is left and nobody asked for them.
    """
    wanted = os.environ.get(OPT_IN, "")
    if wanted:
        if wanted not in LEVELS:
            raise SandboxError(f"{OPT_IN}={wanted!r}: choose one of {', '.join(LEVELS)}")
        reason = _refusal(wanted)
        if reason is not None:
            raise SandboxError(f"{OPT_IN}={wanted} is not available here: {reason}")
        if wanted == "rlimits":
            log.warning(
                "SANDBOX OFF: generated programs run with resource limits only. They can read your "
                "files and use your network (%s=rlimits).",
                OPT_IN,
            )
        return wanted
    for level in LEVELS[:-1]:
        if _refusal(level) is None:
            return level
    raise SandboxError(
        "no sandbox available (namespaces: "
        f"{_refusal('namespaces')}; landlock: {_refusal('landlock')}). Run where one of them "
        f"works, or accept that generated programs can read your files and use your network with "
        f"{OPT_IN}=rlimits"
    )
