"""What to do to the model and how to sample: frozen values, parsed and checked once.

`Perturbation` is the noise of docs/perturbation.md, `Sampling` is the harness's generation
arguments under our rules (nothing inherited silently, nothing unknown accepted).
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

SIGMA_UNITS = ("relative", "norm", "absolute")
SIGMA_REFERENCES = ("site", "table", "prompt", "hidden")
SCOPES = ("token", "sequence")
SCHEDULES = ("constant", "linear", "cosine", "exponential", "step")
POSITIONS = ("prompt", "all", "generated", "first:N", "last:N", "generated:N")

EMBED = "embed"


def suggest(name: str, allowed: Iterable[str]) -> str:
    """`"did you mean 'x'? "` when `name` is a near miss of an allowed name, else nothing."""
    near = difflib.get_close_matches(str(name), list(allowed), n=1)
    return f"did you mean {near[0]!r}? " if near else ""


def _choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(
            f"{name}={value!r} is not known; {suggest(str(value), allowed)}"
            f"allowed: {', '.join(allowed)}"
        )


def _number(name: str, value: Any, *, least: float = 0.0) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"{name}={value!r} is not a number")
    try:
        number = float(value)
    except ValueError:
        raise ValueError(f"{name}={value!r} is not a number") from None
    if not math.isfinite(number) or number < least:
        raise ValueError(f"{name}={value!r} is not allowed; it must be a finite number ≥ {least:g}")
    return number


def _integer(name: str, value: Any, *, least: int) -> int:
    number = _number(name, value, least=least)
    if number != int(number):
        raise ValueError(f"{name}={value!r} is not allowed; it must be a whole number ≥ {least}")
    return int(number)


@dataclass(frozen=True)
class Positions:
    """Which input vectors get noise (the set P): a kind and, for some kinds, a count N."""

    kind: str = "prompt"
    count: int | None = None

    @classmethod
    def parse(cls, text: str) -> Positions:
        """Read `prompt`, `all`, `generated`, `first:N`, `last:N` or `generated:N` (N ≥ 1)."""
        kind, colon, count = str(text).partition(":")
        if text in ("prompt", "all", "generated"):
            return cls(kind)
        if kind in ("first", "last", "generated") and colon:
            return cls(kind, _integer(f"positions={text!r}: N", count, least=1))
        raise ValueError(
            f"positions={text!r} is not known; {suggest(kind, ('prompt', 'all', 'generated'))}"
            f"allowed: {', '.join(POSITIONS)}"
        )

    @property
    def touches_prompt(self) -> bool:
        """Whether a prompt vector can be in P (then K samples can't share one prefill)."""
        return self.kind in ("prompt", "all", "first", "last")

    @property
    def touches_generated(self) -> bool:
        """Whether a generated position can be in P (then a schedule has something to act on)."""
        return self.kind in ("all", "generated")

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
                "or several joined by '+', such as embed+5"
            )
    if len(set(names)) != len(names):
        raise ValueError(f"depth={depth!r} names a site twice")
    return tuple(sorted(names, key=site_order))


def site_order(site: str) -> int:
    """Depth of a site: -1 for the embedding output, k for the output of block k."""
    return -1 if site == EMBED else int(site.removeprefix("block."))


@dataclass(frozen=True)
class Perturbation:
    """Noise ε = 1[p ∈ P] · g(t) · std · z on the vectors of one or several sites.

    Attributes:
        sigma: the dose, ≥ 0; 0 attaches nothing to the model.
        depth: the site or sites: `embed`, a block index, `embed+5`, or a mapping site → sigma.
        sigma_unit: std per coordinate is σ·m/√d (`relative`), σ·m (`norm`) or σ (`absolute`).
        sigma_reference: what m is: `table`, `prompt`, `hidden`, or `site` (table at the embedding,
            hidden at a block).
        scope: a draw for every `token` position, or one shared by the whole `sequence`.
        positions: `prompt`, `all`, `generated`, `first:N`, `last:N`, `generated:N`.
        schedule: g over generated positions: `constant`, `linear`, `cosine`, `exponential`, `step`.
        sigma_end: σ at the end of the schedule.
        anneal_tokens: how many generated tokens the schedule takes.
        seed: root of all draws.
    """

    sigma: float = 0.0
    depth: str | int | Mapping[str, float] = EMBED
    sigma_unit: str = "relative"
    sigma_reference: str = "site"
    scope: str = "token"
    positions: str = "prompt"
    schedule: str = "constant"
    sigma_end: float | None = None
    anneal_tokens: int | None = None
    seed: int = 0
    sites: Mapping[str, float] = field(init=False, repr=False, compare=False)
    where: Positions = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        put("sigma", _number("sigma", self.sigma))
        _choice("sigma_unit", self.sigma_unit, SIGMA_UNITS)
        _choice("sigma_reference", self.sigma_reference, SIGMA_REFERENCES)
        _choice("scope", self.scope, SCOPES)
        _choice("schedule", self.schedule, SCHEDULES)
        put("positions", str(self.positions))
        put("where", Positions.parse(self.positions))
        put("seed", _integer("seed", self.seed, least=0))
        put("sites", self._parse_sites())
        self._check_schedule()

    def _parse_sites(self) -> dict[str, float]:
        if isinstance(self.depth, Mapping):
            if self.sigma:
                raise ValueError(
                    f"sigma={self.sigma:g} contradicts depth={dict(self.depth)!r}, which gives "
                    "every site a sigma of its own; leave sigma out"
                )
            sites = {}
            for name, sigma in self.depth.items():
                (site,) = parse_depth(name)
                sites[site] = _number(f"depth: {name}", sigma)
            ordered = sorted(sites, key=site_order)
            return {site: sites[site] for site in ordered if sites[site] > 0}
        names = parse_depth(self.depth)
        object.__setattr__(self, "depth", "+".join(n.removeprefix("block.") for n in names))
        return dict.fromkeys(names, self.sigma) if self.sigma > 0 else {}

    def _check_schedule(self) -> None:
        extras = {"sigma_end": self.sigma_end, "anneal_tokens": self.anneal_tokens}
        if self.schedule == "constant":
            for name, value in extras.items():
                if value is not None:
                    raise ValueError(f"{name}={value!r} needs a schedule other than constant")
            return
        if not self.where.touches_generated:
            raise ValueError(
                f"schedule={self.schedule!r} acts on generated positions, and "
                f"positions={self.positions!r} has none; use positions=all or generated"
            )
        if self.anneal_tokens is None:
            raise ValueError(f"schedule={self.schedule!r} needs anneal_tokens=N (N ≥ 1)")
        tokens = _integer("anneal_tokens", self.anneal_tokens, least=1)
        object.__setattr__(self, "anneal_tokens", tokens)
        end = _number("sigma_end", 0.0 if self.sigma_end is None else self.sigma_end)
        if isinstance(self.depth, Mapping) and end > 0:
            raise ValueError(f"sigma_end={end:g} with a mapping of sites must be 0 or left out")
        if self.schedule == "exponential" and end == 0:
            raise ValueError("schedule='exponential' needs sigma_end > 0")
        object.__setattr__(self, "sigma_end", end)

    @property
    def active(self) -> bool:
        """False when nothing is attached to the model at all."""
        return bool(self.sites)

    @property
    def end_ratio(self) -> float:
        """g at the end of the schedule: sigma_end / sigma."""
        return self.sigma_end / self.sigma if self.sigma_end and self.sigma else 0.0

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The arguments a user can give."""
        return tuple(f.name for f in dataclasses.fields(cls) if f.init)

    @classmethod
    def from_args(cls, args: Mapping[str, Any]) -> Perturbation:
        """Build from a mapping, refusing unknown names with the near miss."""
        for name in args:
            if name not in cls.names():
                raise ValueError(
                    f"unknown argument {name!r}; {suggest(name, cls.names())}"
                    f"allowed: {', '.join(cls.names())}"
                )
        return cls(**dict(args))

    def canonical(self) -> dict[str, Any]:
        """All that determines the draws and their size; one form for every way to say σ = 0."""
        if not self.active:
            return {"seed": self.seed, "sites": {}}
        values = {n: getattr(self, n) for n in self.names() if n not in ("sigma", "depth")}
        return {**values, "sites": dict(self.sites)}


GREEDY_KEYS = ("do_sample", "temperature")
TOKEN_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
SAMPLING_KEYS = (*GREEDY_KEYS, "top_p", "top_k", "min_p", "until", *TOKEN_LIMITS)


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from the logits, and when to stop.

    Attributes:
        temperature: 0 for greedy decoding.
        top_p: keep the smallest set of tokens with this probability; 1 keeps all.
        top_k: keep the k most likely tokens; 0 keeps all (transformers would default to 50).
        min_p: keep tokens with at least this share of the most likely one's probability.
        max_gen_toks: most tokens to generate.
        until: stop strings.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_gen_toks: int = 256
    until: tuple[str, ...] = ()

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

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
        temperature = _number("gen_kwargs: temperature", given.get("temperature", 0.0))
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
        top_p = _number("gen_kwargs: top_p", given.get("top_p", 1.0))
        min_p = _number("gen_kwargs: min_p", given.get("min_p", 0.0))
        if not 0 < top_p <= 1:
            raise ValueError(f"gen_kwargs: top_p={top_p:g} is not allowed; it must be in (0, 1]")
        if min_p >= 1:
            raise ValueError(f"gen_kwargs: min_p={min_p:g} is not allowed; it must be in [0, 1)")
        top_k = _integer("gen_kwargs: top_k", given.get("top_k", 0), least=0)
        if not do_sample:
            for name, value, neutral in (
                ("top_p", top_p, 1),
                ("top_k", top_k, 0),
                ("min_p", min_p, 0),
            ):
                if value != neutral:
                    raise ValueError(
                        f"gen_kwargs: {name}={value:g} has no effect without do_sample=true"
                    )
        limits = [given[name] for name in TOKEN_LIMITS if name in given]
        until = given.get("until", ())
        until = (until,) if isinstance(until, str) else tuple(until)
        return cls(
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            max_gen_toks=_integer(
                "gen_kwargs: max_gen_toks", limits[0] if limits else default_tokens, least=1
            ),
            until=tuple(text for text in until if text),
        )
