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
    """Sites named by `depth`: `embed`, `k`, `mlp:k`, a range `k-l` of these, several joined by `+`.

    Args:
        depth: their names, or a list of them; blocks are counted from 0, and a range has both ends.

    Returns:
        Site names in depth order: `"embed"`, `"mlp.<k>"` and `"block.<k>"`.

    Raises:
        ValueError: naming the value and what is allowed.
    """
    names = []
    for part in _parts(depth):
        if part == EMBED:
            names.append(EMBED)
            continue
        named = re.fullmatch(r"(block\.|mlp[.:])?(\d+)(?:-(\d+))?", part)
        kind = "mlp" if named and (named[1] or "").startswith("mlp") else "block"
        blocks = range(int(named[2]), int(named[3] or named[2]) + 1) if named else ()
        if not blocks:
            raise ValueError(
                f"depth={depth!r} is not a site; allowed: embed, a block index k ≥ 0, mlp:k, a "
                "rising range of these such as 3-7 or mlp:3-7, several joined by '+', such as "
                "embed+5, or a mapping of sites to sigmas"
            )
        names += [f"{kind}.{block}" for block in blocks]
    if len(set(names)) != len(names):
        raise ValueError(f"depth={depth!r} names a site twice")
    return tuple(sorted(names, key=site_order))


def parse_blocks(blocks: Any) -> tuple[int, ...]:
    """Blocks named by `attention_blocks`, in order: as `depth` names their outputs.

    Raises:
        ValueError: naming the value and what is allowed.
    """
    try:
        named = parse_depth(blocks)
    except ValueError:
        named = ()
    if not named or any(in_mlp(site) or site == EMBED for site in named):
        raise ValueError(
            f"attention_blocks={blocks!r} names no blocks; allowed: block indices k ≥ 0, rising "
            "ranges such as 3-7, several joined by '+'"
        )
    return tuple(block_of(site) for site in named)


def _parts(depth: Any) -> list[str]:
    listed = depth if isinstance(depth, (list, tuple)) else str(depth).split("+")
    return [str(part).strip() for part in listed]


def written(sites: tuple[str, ...]) -> str:
    """Sites as `depth` writes them."""
    return "+".join(s.removeprefix("block.").replace("mlp.", "mlp:") for s in sites)


def block_of(site: str) -> int:
    """The number of a site's block; -1 for the embedding output."""
    return -1 if site == EMBED else int(site.partition(".")[2])


def in_mlp(site: str) -> bool:
    """Whether a site is within a block: what enters the last layer of its MLP."""
    return site.startswith("mlp.")


def site_order(site: str) -> tuple[int, bool]:
    """What sorts sites by depth: the embedding output, then each block's MLP and its output."""
    return block_of(site), not in_mlp(site)
