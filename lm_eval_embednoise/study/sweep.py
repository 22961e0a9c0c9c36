"""A family of methods along one dose: a base method, and the doses that stand in its place.

A study writes `{name: embednoise-0.1-block-5, doses: [0.05, 0.1, 0.2]}`, and calibration tries the
doses that the protocol fixes for each axis.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_eval_embednoise.study.method import Method

_OF_SAMPLING = (
    *("min_p", "top_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_n_sigma"),
    "temperature",
)
AXES = ("sigma", "rsp_scale", "weight_sigma", "attention_temperature", *_OF_SAMPLING)


@dataclass(frozen=True)
class Sweep:
    """The methods that differ from a base in its dose only.

    Attributes:
        base: any one of them.
        axis: the dose, one of `AXES`: the first of them that the base has.
        doses: positive, rising.
    """

    base: Method
    axis: str
    doses: tuple[float, ...]

    @property
    def chosen(self) -> str:
        """The name of the method that calibration chooses from it.

        `embednoise-star` (σ*) for noise on the embedding and `temp-tuned` (T*) for temperature; the
        others likewise, with what else their name says: `embednoise-block-5-star`, `min-p-tuned`.
        """
        rest = [p for p in self.base.name.split("-") if p != self._own]
        return "-".join([*rest, "star" if self.axis == "sigma" else "tuned"])

    def method(self, dose: float) -> Method:
        """The method at a dose; its name has the dose in the place of the base's, or at its end."""
        text, base = str(dose), self.base
        parts = base.name.split("-")
        if text == self._own:
            name = base.name
        elif self._own in parts:
            name = "-".join(text if part == self._own else part for part in parts)
        else:
            name = f"{base.name}-x{text}"
        perturbation, gen_kwargs = dict(base.perturbation), dict(base.gen_kwargs)
        if self.axis in _OF_SAMPLING:
            gen_kwargs[self.axis] = dose
        elif isinstance(sites := base.perturbation.get("depth"), Mapping):
            share = dose / max(sites.values())
            perturbation["depth"] = {site: sigma * share for site, sigma in sites.items()}
        else:
            perturbation[self.axis] = dose
        return dataclasses.replace(
            base, name=name, perturbation=perturbation, gen_kwargs=gen_kwargs
        )

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods at all doses, in their order."""
        return tuple(self.method(dose) for dose in self.doses)

    @property
    def _own(self) -> str:
        return str(own_dose(self.base, self.axis))


def axis_of(method: Method) -> str | None:
    """The axis on which a method has a dose; None for greedy decoding and control arms."""
    has = (axis for axis in AXES if own_dose(method, axis) > 0)
    return next(has, None)


def own_dose(method: Method, axis: str) -> float:
    """A method's dose on an axis; of several sites the largest σ; 0 where it has none."""
    noise, sampling = method.perturbation, method.gen_kwargs
    value: Any = 0.0
    if axis == "sigma":
        sites = noise.get("depth")
        value = max(sites.values()) if isinstance(sites, Mapping) else noise.get("sigma", 0.0)
    elif axis == "rsp_scale":
        value = noise.get("rsp_scale", 1.0) if noise.get("rsp") else 0.0
    elif axis == "weight_sigma":
        value = noise.get(axis, 0.0)
    elif axis == "attention_temperature":
        value = noise.get(axis, 1.0)
        value = 0.0 if value == 1 else value
    elif sampling.get("do_sample"):
        value = sampling.get(axis, 0.0)
    return float(value)
