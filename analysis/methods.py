"""What a method is, from its settings and its name: what it does to the input, its family.

Two questions about a perturbation come up, and `input_change` answers both:

* is its input random, so that the method is a *noise* method (the noise's hypervolume, sweeps and
  ablations, K different prefills)? Dummy tokens at σ = 0 are not: they are a control arm, the same
  for every sample, and neither noise nor plain sampling;
* is its input changed at all (a model class without perturbations can't run it)? Dummy tokens are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

# The beginning of a method's name → its family. The first ones are the order of tables.
_FAMILIES = {
    "greedy": "greedy",
    "temp-": "temperature",
    "nucleus-": "nucleus",
    "min-p-": "min-p",
    "embednoise": "noise",
    "literal-": "literal",
    "rsp-": "soft prompt",
    "prefix-": "prefix",
}
_RANKED = 6  # families before the others in tables


def input_change(perturbation: Mapping[str, Any]) -> Literal["none", "control", "noise"]:
    """What a perturbation does to the model's input (hidden states included).

    Args:
        perturbation: as a method file gives it (`sigma`, `depth`), or as results and
            comparison.json record it (`sites`).

    Returns:
        `noise`: the samples of a problem have different inputs (noise with σ > 0, also on the
        weights, a random soft prompt, a random prefix). `control`: all have the same changed input
        (dummy tokens without noise, another scale of attention). `none`: the prompt as it is.
    """
    by_site = (perturbation.get(key) for key in ("sites", "depth"))
    doses = [perturbation.get("sigma"), perturbation.get("weight_sigma")]
    doses += [dose for sites in by_site if isinstance(sites, Mapping) for dose in sites.values()]
    if any(doses) or perturbation.get("rsp") or perturbation.get("prefix") not in (None, "none"):
        return "noise"
    dummies = str(perturbation.get("positions")).startswith("dummy")
    cooled = perturbation.get("attention_temperature") not in (None, 1)
    return "control" if dummies or cooled else "none"


def family(method: str) -> str:
    """The family that a method's name says; `other` where it says none."""
    return next((name for start, name in _FAMILIES.items() if method.startswith(start)), "other")


def method_order(method: str) -> tuple[Any, ...]:
    """Sorting key: greedy, sampling by its dose, noise by dose, the rest by name; 9 before 10."""
    name = tuple(
        (0, float(part), "") if part.isdigit() else (1, 0.0, part)
        for part in re.split(r"(\d+)", method)
        if part
    )
    for rank, start in enumerate(list(_FAMILIES)[:_RANKED]):
        if method.startswith(start):
            dose = re.split("[@+-]", method.removeprefix(start).removeprefix("-"))[0]
            try:
                return (rank, float(dose or 0), name)
            except ValueError:
                return (rank, float("inf"), name)
    return (_RANKED, 0.0, name)
