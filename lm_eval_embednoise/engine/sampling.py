"""How tokens are chosen and when to stop: the harness's generation arguments, checked when read.

Nothing is inherited silently, and nothing unknown is accepted.
"""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lm_eval_embednoise.noise.perturbation import integer, number, suggest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

GREEDY_KEYS = ("do_sample", "temperature")
TOKEN_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
LEAST_TEMPERATURE = 1e-30  # logits up to 3e8 divided by it are float32 numbers
# What may leave out tokens: name → the value that leaves out none.
TRUNCATION: dict[str, float] = {
    "top_p": 1.0, "top_k": 0, "min_p": 0.0, "typical_p": 1.0, "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0, "top_n_sigma": 0.0, "p_less": False,
}  # fmt: skip
_DRAWN = (*TRUNCATION, "temperature_tokens")  # without effect on greedy decoding
SAMPLING_KEYS = (*GREEDY_KEYS, *_DRAWN, "first_token", "until", *TOKEN_LIMITS)
STRATIFIED = "stratified:"
_ALWAYS_NAMED = ("temperature", "top_p", "top_k", "min_p")  # by stores, since their first version


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from the logits, and when to stop.

    Attributes:
        temperature: 0 for greedy decoding.
        top_p: keep the smallest set of tokens with this probability; 1 keeps all.
        top_k: keep the k most likely tokens; 0 keeps all (transformers would default to 50).
        min_p: keep tokens with at least this share of the most likely one's probability.
        typical_p: keep the tokens of nearly average surprise with this probability; 1 keeps all.
        epsilon_cutoff: keep tokens of at least this probability.
        eta_cutoff: the same, less where the entropy is high.
        top_n_sigma: keep tokens whose logit is within so many standard deviations of the largest;
            0 keeps all.
        p_less: keep tokens of at least the sum of the squared probabilities (arXiv 2509.23234).
        temperature_tokens: draw so many tokens, take the likeliest from then on; None draws all.
        first_token: `stratified:N` gives sample i the ((i mod N) + 1)-th likeliest first token
            (arXiv 2605.28295), whatever temperature and truncation say; the tokens after it are
            chosen as ever. None: the first token as well.
        max_gen_toks: most tokens to generate.
        until: stop strings.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    top_n_sigma: float = 0.0
    p_less: bool = False
    temperature_tokens: int | None = None
    first_token: str | None = None
    max_gen_toks: int = 256
    until: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.temperature and not LEAST_TEMPERATURE <= self.temperature < math.inf:
            raise ValueError(
                f"temperature={self.temperature!r} is not allowed; it must be 0 (greedy) or from "
                f"{LEAST_TEMPERATURE:g} on: below, logits divided by it overflow in float32"
            )
        others = [name for name in self.cuts if name != "p_less"]
        if self.p_less and others:
            named = ", ".join(f"{name}={getattr(self, name):g}" for name in others)
            raise ValueError(
                f"p_less=true with {named}: p-less sampling sets its threshold from the whole "
                "distribution, so nothing else may leave out tokens; keep one of them"
            )
        if self.first_token is not None and not re.fullmatch(
            STRATIFIED + "[1-9][0-9]{0,8}", str(self.first_token)
        ):
            raise ValueError(
                f"gen_kwargs: first_token={self.first_token!r} is not allowed; it must be "
                f"{STRATIFIED}N with N ≥ 1, such as {STRATIFIED}20"
            )

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0

    @property
    def cuts(self) -> tuple[str, ...]:
        """The arguments that leave out tokens."""
        return tuple(name for name, all_ in TRUNCATION.items() if getattr(self, name) != all_)

    @functools.cached_property
    def truncates(self) -> bool:
        """Whether tokens are left out by their probability: top_n_sigma looks at the logits."""
        return any(name != "top_n_sigma" for name in self.cuts)

    def canonical(self) -> dict[str, Any]:
        """All that determines which token is chosen: one form for every way to say greedy."""
        named = ["temperature"]
        if not self.greedy:
            named = [*_ALWAYS_NAMED, *(name for name in self.cuts if name not in _ALWAYS_NAMED)]
        others = ("temperature_tokens", "first_token")
        named += [name for name in others if getattr(self, name) is not None]
        return {name: getattr(self, name) for name in named}

    @property
    def strata(self) -> int:
        """How many first tokens the samples of a problem take in turn; 0 without strata."""
        return int((self.first_token or "0").removeprefix(STRATIFIED))

    def alike(self, samples: Sequence[int]) -> list[tuple[int, ...]]:
        """Samples of a problem that differ by random numbers only: those of one first token."""
        groups: dict[int, list[int]] = {}
        for sample in samples:
            groups.setdefault(sample % max(1, self.strata), []).append(sample)
        return [tuple(group) for group in groups.values()]

    @classmethod
    def from_gen_kwargs(cls, gen_kwargs: Mapping[str, Any], default_tokens: int = 256) -> Sampling:
        """Read the harness's generation arguments.

        Raises:
            ValueError: for an argument the sampler can't serve, a temperature that do_sample=false
                would ignore, do_sample=true without a temperature, or a value out of range.
        """
        given = {name: value for name, value in gen_kwargs.items() if value is not None}
        for name in given:
            if name not in SAMPLING_KEYS:
                raise ValueError(
                    f"gen_kwargs: {name}={given[name]!r} is not supported; "
                    f"{suggest(name, SAMPLING_KEYS)}allowed: {', '.join(SAMPLING_KEYS)}"
                )
        temperature = number("gen_kwargs: temperature", given.get("temperature", 0.0))
        do_sample = given.get("do_sample", temperature > 0)
        if not isinstance(do_sample, bool):
            raise ValueError(f"gen_kwargs: do_sample={do_sample!r} must be true or false")
        if temperature > 0 and not do_sample:
            raise ValueError(
                f"gen_kwargs: temperature={temperature:g} has no effect with do_sample=false; "
                "add do_sample=true or leave temperature out"
            )
        if do_sample and temperature == 0:
            raise ValueError("gen_kwargs: do_sample=true needs a temperature > 0, such as 1.0")
        drawn = _drawn_of(given)
        if not do_sample:
            for name, value in drawn.items():
                if value != TRUNCATION.get(name):
                    raise ValueError(
                        f"gen_kwargs: {name}={value:g} has no effect without do_sample=true"
                    )
        until = given.get("until", ())
        until = (until,) if isinstance(until, str) else tuple(until)
        return cls(
            temperature=temperature,
            **drawn,
            first_token=given.get("first_token"),
            max_gen_toks=_token_limit(given, default_tokens),
            until=tuple(text for text in until if text),
        )


def _drawn_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of drawing that are given, as numbers.

    Raises:
        ValueError: for one out of its range.
    """
    drawn: dict[str, Any] = {}
    for name in _DRAWN:
        if name not in given:
            continue
        value, argument = given[name], f"gen_kwargs: {name}"
        if name == "p_less":
            if not isinstance(value, bool):
                raise ValueError(f"{argument}={value!r} must be true or false")
            drawn[name] = value
        elif name in ("top_k", "temperature_tokens"):
            drawn[name] = integer(argument, value, least=0 if name == "top_k" else 1)
        else:
            drawn[name] = number(argument, value)
            share = drawn[name]
            if name in ("top_p", "typical_p") and not 0 < share <= 1:
                raise ValueError(f"{argument}={share:g} is not allowed; it must be in (0, 1]")
            if name in ("min_p", "epsilon_cutoff", "eta_cutoff") and share >= 1:
                raise ValueError(f"{argument}={share:g} is not allowed; it must be in [0, 1)")
    return drawn


def _token_limit(given: Mapping[str, Any], default: int) -> int:
    """Most tokens to generate, whichever of its names was used.

    Raises:
        ValueError: two names with different values: the harness adds --gen_kwargs to the task's own
            arguments name by name, so another name doesn't replace the task's.
    """
    limits = {
        name: integer(f"gen_kwargs: {name}", given[name], least=1)
        for name in TOKEN_LIMITS
        if name in given
    }
    if len(set(limits.values())) > 1:
        both = " and ".join(f"{name}={value}" for name, value in limits.items())
        (first, *others) = limits
        raise ValueError(
            f"gen_kwargs: {both} are different limits of the same tokens. The task file gives one "
            f"of them, and --gen_kwargs replaces it only under its own name: write {first}=N "
            f"alone, without {', '.join(others)}"
        )
    return next(iter(limits.values()), default)
