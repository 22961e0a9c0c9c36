"""What is done to the model: `Perturbation`, the noise of docs/perturbation.md, checked once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lm_eval_embednoise.checks import choice, integer, number, suggest
from lm_eval_embednoise.noise.noise_file import with_noise_file
from lm_eval_embednoise.noise.sites import (
    EMBED,
    Positions,
    parse_blocks,
    parse_depth,
    site_order,
    written,
)

SIGMA_UNITS = ("relative", "norm", "absolute")
SIGMA_REFERENCES = ("site", "table", "prompt", "hidden", "decode")
SCOPES = ("token", "sequence")
NOISE_LAWS = ("gaussian", "uniform", "covariance", "orthogonal")
SCHEDULES = ("constant", "linear", "cosine", "exponential", "step")
RSP_SLOTS = ("auto", "after-prompt", "before-assistant", "before-text", "after-bos")
RSP_FITS = ("isotropic", "per-dimension", "exact")
PREFIXES = ("random", "lorem")


@dataclass(frozen=True)
class Perturbation:
    """Noise ε = 1[p ∈ P] · g(t) · std · z on the vectors of one or several sites.

    Attributes:
        sigma: the dose, ≥ 0; 0 attaches nothing to the model.
        depth: the site or sites: `embed`, a block index, `mlp:3`, a range `3-7`, `embed+5`, a list
            of these, or a mapping site → sigma.
        sigma_unit: std per coordinate is σ·m/√d (`relative`), σ·m (`norm`) or σ (`absolute`).
        sigma_reference: what m is: `table`, `prompt`, `hidden`, or `site` (table at the embedding,
            hidden at a block); or `decode`: the norm of generated positions' clean hidden states.
        scope: a draw for every `token` position, or one shared by the whole `sequence`.
        noise_law: of each number, `gaussian` or `uniform` of the same variance; `covariance`:
            Gaussian, shaped as the clean hidden states at the site; or `orthogonal`: the samples of
            a problem get orthogonal Gaussian vectors (scope `sequence` only).
        shared: one draw for all sites.
        positions: `prompt`, `all`, `generated`, `first:N`, `last:N`, `generated:N`, or `dummy:N`:
            N dummy tokens appended to the prompt, and they alone perturbed.
        dummy_token: which token that is; see docs/perturbation.md for the default.
        schedule: g over generated positions: `constant`, `linear`, `cosine`, `exponential`, `step`.
        sigma_end: σ at the end of the schedule.
        anneal_tokens: how many generated tokens the schedule takes.
        rsp: number of random soft-prompt vectors, fresh for every sample.
        rsp_slot: where they go: `after-prompt`, `before-assistant`, `before-text` (of a chat's
            user), `after-bos`, or `auto`: before the assistant's turn of a chat, after any other
            prompt.
        rsp_fit: Gaussian with mean and variance of all entries of the embedding table
            (`isotropic`) or of each dimension (`per-dimension`), or the first with every sample's
            vectors standardised to exactly these (`exact`).
        rsp_scale: factor on the Gaussian's standard deviation.
        prefix: `random:N` puts N random characters before the prompt, `lorem:N` N random words of
            Lorem Ipsum, fresh for every sample.
        draws: so many draws of noise, soft prompt or prefix serve the samples of a problem in
            turn, sample i takes that of sample i mod N; 0: each its own. 1 is one fixed draw.
        weight_sigma: noise on the weights of the blocks' linear layers, relative to the root mean
            square of each; one draw a sample index for all problems.
        attention_temperature: what the logits of attention are divided by, > 0.
        attention_blocks: in which blocks, such as `3-7`; None for all.
        seed: root of all draws.
    """

    sigma: float = 0.0
    depth: str | int | list[str | int] | Mapping[str, float] = EMBED
    sigma_unit: str = "relative"
    sigma_reference: str = "site"
    scope: str = "token"
    noise_law: str = "gaussian"
    shared: bool = False
    positions: str = "prompt"
    dummy_token: str | None = None
    schedule: str = "constant"
    sigma_end: float | None = None
    anneal_tokens: int | None = None
    rsp: int = 0
    rsp_slot: str = "auto"
    rsp_fit: str = "isotropic"
    rsp_scale: float = 1.0
    prefix: str | None = None
    draws: int = 0
    weight_sigma: float = 0.0
    attention_temperature: float = 1.0
    attention_blocks: str | None = None
    seed: int = 0
    sites: Mapping[str, float] = field(init=False, repr=False, compare=False)
    where: Positions = field(init=False, repr=False, compare=False)
    tempered_blocks: tuple[int, ...] = field(init=False, repr=False, compare=False)
    prefix_kind: str | None = field(init=False, repr=False, compare=False)
    prefix_length: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        put("sigma", number("sigma", self.sigma))
        put("weight_sigma", number("weight_sigma", self.weight_sigma))
        choice("sigma_unit", self.sigma_unit, SIGMA_UNITS)
        choice("sigma_reference", self.sigma_reference, SIGMA_REFERENCES)
        choice("scope", self.scope, SCOPES)
        choice("noise_law", self.noise_law, NOISE_LAWS)
        choice("schedule", self.schedule, SCHEDULES)
        put("where", Positions.parse(self.positions))
        put("positions", str(self.where))
        put("seed", integer("seed", self.seed, least=0))
        put("sites", self._parse_sites())
        self._check_law()
        self._check_attention()
        self._check_schedule()
        self._check_additions()

    def _parse_sites(self) -> dict[str, float]:
        if isinstance(self.depth, Mapping):
            if self.sigma:
                raise ValueError(
                    f"sigma={self.sigma:g} contradicts depth={dict(self.depth)!r}, which gives "
                    "every site a sigma of its own; leave sigma out"
                )
            sites = {}
            for name, sigma in self.depth.items():
                named = parse_depth(name)
                if len(named) > 1 or named[0] in sites:
                    raise ValueError(
                        f"depth={dict(self.depth)!r}: {name!r} must name one site, once"
                    )
                sites[named[0]] = number(f"depth: {name}", sigma)
            ordered = sorted(sites, key=site_order)
            return {site: sites[site] for site in ordered if sites[site] > 0}
        names = parse_depth(self.depth)
        object.__setattr__(self, "depth", written(names))
        return dict.fromkeys(names, self.sigma) if self.sigma > 0 else {}

    def _check_law(self) -> None:
        if self.noise_law == "orthogonal" and self.scope != "sequence":
            raise ValueError(
                f"noise_law='orthogonal' with scope={self.scope!r}: the samples of a problem get "
                "one vector each, orthogonal to the others'; use scope=sequence"
            )
        if not isinstance(self.shared, bool):
            raise ValueError(f"shared={self.shared!r} must be true or false")
        if self.shared and len(self.sites) == 1:
            raise ValueError(
                f"shared=true is one draw for several sites, and depth={self.depth!r} is one site"
            )

    def _check_attention(self) -> None:
        temperature = number("attention_temperature", self.attention_temperature)
        if temperature <= 0:
            raise ValueError(
                f"attention_temperature={temperature:g} is not allowed; logits are divided by it, "
                "so it must be above 0 (1 leaves attention as it is)"
            )
        blocks = () if self.attention_blocks is None else parse_blocks(self.attention_blocks)
        if blocks and temperature == 1:
            raise ValueError(
                f"attention_blocks={self.attention_blocks!r} needs an attention_temperature "
                "other than 1"
            )
        object.__setattr__(self, "attention_temperature", temperature)
        object.__setattr__(self, "tempered_blocks", blocks)
        text = "+".join(map(str, blocks)) or None
        object.__setattr__(self, "attention_blocks", text)

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
        tokens = integer("anneal_tokens", self.anneal_tokens, least=1)
        object.__setattr__(self, "anneal_tokens", tokens)
        end = number("sigma_end", 0.0 if self.sigma_end is None else self.sigma_end)
        if isinstance(self.depth, Mapping) and end > 0:
            raise ValueError(
                f"sigma_end={end:g} with a mapping of sites must be 0 or left out: "
                "it is one sigma, and every site has its own"
            )
        if end > 0 and not self.sites:
            raise ValueError(
                f"sigma={self.sigma:g} and sigma_end={end:g}: a schedule multiplies sigma, so a "
                "ramp can't begin at 0 and nothing would be added; begin at a small sigma, such as "
                f"sigma={end / 1000:g}, or leave sigma_end out for the control without noise"
            )
        if self.schedule == "exponential" and end == 0 and self.sites:
            raise ValueError(
                "schedule='exponential' needs sigma_end > 0, and so one sigma for all sites"
            )
        object.__setattr__(self, "sigma_end", end)

    def _check_additions(self) -> None:
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        if self.dummy_token is not None:
            if not self.where.dummies:
                raise ValueError(
                    f"dummy_token={self.dummy_token!r} needs positions=dummy:N, "
                    f"not positions={self.positions!r}"
                )
            put("dummy_token", str(self.dummy_token))
        put("rsp", integer("rsp", self.rsp, least=0))
        put("rsp_scale", number("rsp_scale", self.rsp_scale))
        choice("rsp_slot", self.rsp_slot, RSP_SLOTS)
        choice("rsp_fit", self.rsp_fit, RSP_FITS)
        for field_ in dataclasses.fields(self):
            value = getattr(self, field_.name, None)
            if not self.rsp and field_.name.startswith("rsp_") and value != field_.default:
                raise ValueError(f"{field_.name}={value!r} needs rsp=N (N ≥ 1)")
        kind, count = self._parse_prefix()
        put("prefix_kind", kind)
        put("prefix_length", count)
        put("prefix", f"{kind}:{count}" if kind else None)
        put("draws", integer("draws", self.draws, least=0))
        if self.draws and not self.varies:
            raise ValueError(
                f"draws={self.draws} has no effect: nothing is drawn without sigma, rsp or prefix"
            )

    def _parse_prefix(self) -> tuple[str | None, int]:
        if self.prefix is None or self.prefix == "none":
            return None, 0
        kind, colon, count = str(self.prefix).partition(":")
        if kind not in PREFIXES or not colon:
            raise ValueError(
                f"prefix={self.prefix!r} is not known; {suggest(kind, PREFIXES)}"
                f"allowed: none, {', '.join(f'{kind}:N' for kind in PREFIXES)}"
            )
        return kind, integer(f"prefix={self.prefix!r}: N", count, least=1)

    @property
    def active(self) -> bool:
        """False when nothing is attached to the model at all."""
        return self._random or self.attention_temperature != 1

    @property
    def _random(self) -> bool:
        return bool(self.sites) or self.rsp > 0 or self.weight_sigma > 0

    @property
    def plain(self) -> bool:
        """Whether it leaves the model and its input as they are."""
        return not (self.active or self.where.dummies or self.prefix_length)

    @property
    def varies(self) -> bool:
        """Whether it differs between a problem's samples (dummies and attention's scale don't)."""
        return self._random or self.prefix_length > 0

    def draw_of(self, sample: int) -> int:
        """The sample whose draws a sample takes: itself, or one of the first `draws`."""
        return sample % self.draws if self.draws else sample

    @property
    def perturbs_prompt(self) -> bool:
        """Whether prompt vectors differ between samples, beyond their token ids."""
        return self.rsp > 0 or (bool(self.sites) and self.where.touches_prompt)

    @property
    def perturbs_generated(self) -> bool:
        """Whether generated positions get noise."""
        return bool(self.sites) and self.where.touches_generated

    @property
    def end_ratio(self) -> float:
        """The schedule's g at its end: sigma_end / sigma."""
        return self.sigma_end / self.sigma if self.sigma_end and self.sigma else 0.0

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The arguments a user can give (and `noise`, a file of them)."""
        return tuple(f.name for f in dataclasses.fields(cls) if f.init)

    @classmethod
    def from_args(cls, args: Mapping[str, Any], seed: int | None = None) -> Perturbation:
        """Build from a mapping, refusing unknown names with the near miss.

        `noise` may name a YAML file that gives some or all of the arguments.

        Args:
            args: name → value.
            seed: where neither they nor the file give one; 0 by default.
        """
        given = dict(args)
        path = given.pop("noise", None)
        for name in given:
            if name not in cls.names():
                allowed = (*cls.names(), "noise")
                raise ValueError(
                    f"unknown argument {name!r}; {suggest(name, allowed)}"
                    f"allowed: {', '.join(allowed)}"
                )
        if path is None:
            return cls._from_given({"seed": seed or 0, **given})
        given = with_noise_file(path, given, cls.names())
        try:
            return cls._from_given({"seed": seed or 0, **given})
        except ValueError as error:
            raise ValueError(f"{error} (with noise={path})") from None

    @classmethod
    def _from_given(cls, given: Mapping[str, Any]) -> Perturbation:
        """Build, and refuse what was written down and would have no effect."""
        built = cls(**given)
        dosed = "sigma" in given or isinstance(given.get("depth"), Mapping)
        for name in () if dosed else _OF_THE_NOISE:
            if name in given and not (name == "positions" and built.where.dummies):
                raise ValueError(
                    f"{name}={given[name]!r} says how noise is added, and no sigma is given; add "
                    f"sigma=… (sigma=0 for the control without noise), or leave {name} out"
                )
        if built.sigma_unit == "absolute" and given.get("sigma_reference", "site") != "site":
            raise ValueError(
                f"sigma_reference={built.sigma_reference!r} has no effect with "
                "sigma_unit='absolute', where sigma is the standard deviation itself; leave one out"
            )
        return built

    def canonical(self) -> dict[str, Any]:
        """All that determines the draws, their size and what is added to the prompt.

        One form for every way to say σ = 0; what isn't added to the prompt isn't named.
        """
        named = ["seed"]
        if self.sites:
            named += ["sigma_unit", "sigma_reference", "scope", "positions"]
            named += ["schedule", "sigma_end", "anneal_tokens"]
            named += ["noise_law"] if self.noise_law != "gaussian" else []
            named += ["shared"] if self.shared else []
        elif self.where.dummies:
            named.append("positions")
        if self.where.dummies:
            named.append("dummy_token")
        if self.rsp:
            named += ["rsp", "rsp_slot", "rsp_fit", "rsp_scale"]
        if self.prefix:
            named.append("prefix")
        if self.draws:
            named.append("draws")
        if self.weight_sigma:
            named.append("weight_sigma")
        if self.attention_temperature != 1:
            named += ["attention_temperature", "attention_blocks"]
        return {**{name: getattr(self, name) for name in named}, "sites": dict(self.sites)}

    def signature(self) -> str:
        """One line that identifies the perturbation."""
        canonical = self.canonical()
        sites = ",".join(f"{site}={sigma:g}" for site, sigma in canonical.pop("sites").items())
        first = "clean" if self.plain else f"sites:{sites or 'none'}"
        rest = [f"{name}:{value}" for name, value in canonical.items() if value is not None]
        return "|".join([first, *rest])


# What says how noise is added: without a sigma, or a mapping of sites, it would say nothing.
_OF_THE_NOISE = (
    *("depth", "sigma_unit", "sigma_reference", "scope", "positions"),
    *("schedule", "sigma_end", "anneal_tokens", "noise_law", "shared"),
)
