"""Families: methods that differ along one dose only, such as the temperatures or one site's σ.

Greedy decoding is dose 0 of every family and has no place on a logarithmic axis: it is in none.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lm_eval_embednoise.analysis.identity import method_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lm_eval_embednoise.analysis.runs import Run

TEMPERATURE = "temperature"
_DIRECT = (  # doses that are arguments themselves
    *(TEMPERATURE, "min_p", "top_p", "typical_p"),
    *("epsilon_cutoff", "eta_cutoff", "top_n_sigma", "attention_temperature"),
    "weight_sigma",
)


@dataclass(frozen=True)
class Family:
    """Methods along one dose, in its order.

    Attributes:
        axis: which dose: `sigma`, `rsp_scale`, `temperature` or another of `_DIRECT`.
        fixed: what its methods share beside the dose, as canonical JSON.
        doses: positive, rising.
        methods: their labels.
    """

    axis: str
    fixed: str
    doses: tuple[float, ...]
    methods: tuple[str, ...]

    def without(self, method: str) -> Family:
        """The family less one method."""
        kept = [(d, m) for d, m in zip(self.doses, self.methods, strict=True) if m != method]
        doses, methods = zip(*kept, strict=True) if kept else ((), ())
        return Family(self.axis, self.fixed, doses, methods)


def families(runs: Iterable[Run], least: int = 3) -> list[Family]:
    """All sets of at least so many methods along one dose; a method may be in several.

    Two methods at one dose of one family (a tuned temperature that is also on the grid) are one
    point of it: the first by label.
    """
    by_axis: dict[tuple[str, str], dict[float, str]] = {}
    for run in sorted(runs, key=lambda run: run.method):
        for axis, fixed, dose in _places(run):
            if dose > 0:
                by_axis.setdefault((axis, fixed), {}).setdefault(dose, run.method)
    made = [
        Family(axis, fixed, tuple(sorted(points)), tuple(points[d] for d in sorted(points)))
        for (axis, fixed), points in by_axis.items()
        if len(points) >= least
    ]
    return sorted(made, key=lambda family: (family.axis != TEMPERATURE, -len(family.doses)))


def plain_temperatures(candidates: Iterable[Family]) -> Family | None:
    """The reference: temperature and nothing else."""
    for family in candidates:
        fixed: dict[str, Any] = json.loads(family.fixed)
        unknown = {key for key, value in fixed.items() if isinstance(value, str)}
        # Another engine's top_k is a phrase: what that engine does by default.
        if family.axis == TEMPERATURE and set(fixed) <= {"engine", *({"top_k"} & unknown)}:
            return family
    return None


def _places(run: Run) -> Iterator[tuple[str, str, float]]:
    """Each axis on which the method has a dose, with all that the dose leaves fixed."""
    method = method_of(run)
    for axis in _DIRECT:
        if isinstance(method.get(axis), (int, float)):
            yield axis, _canonical({k: v for k, v in method.items() if k != axis}), method[axis]
    sites = method.get("sites")
    if sites:
        rest = {k: v for k, v in method.items() if k != "sigma"}
        largest = max(sites.values())
        rest["sites"] = {site: sigma / largest for site, sigma in sites.items()} if largest else {}
        yield "sigma", _canonical(rest), largest
    elif method.get("rsp"):
        rest = {k: v for k, v in method.items() if k != "rsp_scale"}
        yield "rsp_scale", _canonical(rest), float(method.get("rsp_scale", 1.0))


def _canonical(content: dict[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, default=str)
