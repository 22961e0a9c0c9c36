"""Where noise goes: the names of sites in the model, and the sets of positions in a sample."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from lm_eval_embednoise.checks import integer, suggest

EMBED = "embed"
POSITIONS = ("prompt", "all", "generated", "first:N", "last:N", "generated:N", "dummy:N")
_BARE = ("prompt", "all", "generated")
_COUNTED = ("first", "last", "generated", "dummy")


@dataclass(frozen=True)
class Positions:
    """Which input vectors get noise (the set P): a kind and, for some kinds, a count N."""

    kind: str = "prompt"
    count: int | None = None

    @classmethod
    def parse(cls, text: str) -> Positions:
        """Read one of `POSITIONS` (N ≥ 1)."""
        kind, colon, count = str(text).partition(":")
        if text in _BARE:
            return cls(kind)
        if kind in _COUNTED and colon:
            return cls(kind, integer(f"positions={text!r}: N", count, least=1))
        raise ValueError(
            f"positions={text!r} is not known; {suggest(kind, (*_BARE, *_COUNTED))}"
            f"allowed: {', '.join(POSITIONS)}"
        )

    @property
    def touches_prompt(self) -> bool:
        """Whether a prompt vector can be in P (then K samples can't share one prefill)."""
        return self.kind in ("prompt", "all", "first", "last", "dummy")

    @property
    def touches_generated(self) -> bool:
        """Whether a generated position can be in P (then a schedule has something to act on)."""
        return self.kind in ("all", "generated")

    @property
    def dummies(self) -> int:
        """How many dummy tokens follow the prompt."""
        return (self.count or 0) if self.kind == "dummy" else 0

    def __str__(self) -> str:
        return self.kind if self.count is None else f"{self.kind}:{self.count}"


def parse_depth(depth: Any) -> tuple[str, ...]:
    """Sites named by `depth`: `embed`, a 0-based block index, or several joined by `+`.

    Returns:
        Site names in depth order: `"embed"` and `"block.<k>"`.

    Raises:
        ValueError: naming the value and what is allowed.
    """
    names = []
    for part in str(depth).split("+"):
        if part.strip() == EMBED:
            names.append(EMBED)
        elif re.fullmatch(r"(block\.)?\d+", part.strip()):
            names.append(f"block.{int(part.strip().removeprefix('block.'))}")
        else:
            raise ValueError(
                f"depth={depth!r} is not a site; allowed: embed, a block index k ≥ 0, "
                "several joined by '+', such as embed+5, or a mapping of sites to sigmas"
            )
    if len(set(names)) != len(names):
        raise ValueError(f"depth={depth!r} names a site twice")
    return tuple(sorted(names, key=site_order))


def site_order(site: str) -> int:
    """Depth of a site: -1 for the embedding output, k for the output of block k."""
    return -1 if site == EMBED else int(site.removeprefix("block."))
