"""Random and edge-case arguments for minicode problems, by domain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random

WORDS = (
    "a", "I", "is", "on", "at", "an", "Ann", "Otto", "level", "noon", "stats", "eye", "did",
    "sea", "tree", "stone", "river", "Rain", "sun", "Snow", "orange", "apple", "Ink", "nest",
    "toast", "rotor", "radar", "Eve", "storm", "ant", "train", "Table", "era", "area", "otter",
    "in", "into", "see", "refer", "Tarn",
)  # fmt: skip
CHARACTERS = "aabdeeiorstxyzgmpcABEORSTXZ  0123789"


def _numbers(rng: random.Random, longest: int = 8) -> list[int]:
    return [rng.randint(-8, 14) for _ in range(rng.randint(0, longest))]


def _words(rng: random.Random, longest: int = 8) -> list[str]:
    return [rng.choice(WORDS) for _ in range(rng.randint(0, longest))]


def random_input(domain: str, rng: random.Random) -> Any:
    """One random first argument for a problem of this domain."""
    if domain == "numbers":
        return _numbers(rng)
    if domain == "range":
        return rng.randint(0, 30)
    if domain == "digits":
        return rng.randrange(10 ** rng.randint(1, 8))
    if domain == "words":
        return _words(rng)
    if domain == "text":
        return " ".join(_words(rng))
    if domain == "chars":
        return "".join(rng.choice(CHARACTERS) for _ in range(rng.randint(0, 12)))
    if domain == "lines":
        return [" ".join(_words(rng, 4)) for _ in range(rng.randint(0, 4))]
    if domain in ("grid", "rows"):
        return [_numbers(rng, 4) for _ in range(rng.randint(0, 4))]
    raise ValueError(f"no domain {domain!r}")


def edge_inputs(domain: str) -> list[Any]:
    """First arguments at the edges: empty, and of one element."""
    edges: dict[str, list[Any]] = {
        "numbers": [[], [4], [-3, -3]],
        "range": [0, 1],
        "digits": [0, 7],
        "words": [[], ["Otto"]],
        "text": ["", "noon"],
        "chars": ["", "e", "7"],
        "lines": [[], ["", "stone"]],
        "grid": [[], [[], [4]]],
        "rows": [[], [[], [3, 5]]],
    }
    return edges[domain]


def random_threshold(options: tuple[int | str, ...], rng: random.Random) -> int | str:
    """A value for the second parameter."""
    return rng.choice(options)
