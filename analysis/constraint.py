"""The condition under which calibration chooses a dose: correctness not far below greedy's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import special

from lm_eval_embednoise.analysis.resample import Estimate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lm_eval_embednoise.analysis.protocol import Protocol
    from lm_eval_embednoise.analysis.resample import Array, Resampler
    from lm_eval_embednoise.analysis.runs import Run

_LEVEL = 0.95  # of files that name none


@dataclass(frozen=True)
class Constraint:
    """The metric may be less than the margin below that of a reference, by the lower limit.

    Attributes:
        metric: what must not suffer.
        not_below: the reference's label.
        margin: in the metric's unit.
        level: confidence of the one-sided lower limit.
    """

    metric: str
    not_below: str
    margin: float
    level: float

    @classmethod
    def of(cls, protocol: Protocol) -> Constraint:
        """The protocol's constraint."""
        return cls(**{"level": _LEVEL, **protocol["calibration"]["constraint"]})

    def difference(
        self, values: Sequence[float] | Array, reference: Sequence[float] | Array, within: Resampler
    ) -> Estimate:
        """Mean difference over problems, [n] each; `low` is the one-sided lower limit.

        It is Student's, over clusters: mean − t · √(G/(G−1) · Σ(sum − mean · size)²) / n for G
        clusters. A choice among doses needs no guarantee for the worst case, which the bound that
        decides non-inferiority pays for with over sixty clusters at five points.
        """
        paired = np.asarray(values, np.float64) - np.asarray(reference, np.float64)
        known = np.isfinite(paired)
        sums = np.bincount(within.clusters[known], paired[known], within.groups)
        sizes = np.bincount(within.clusters[known], minlength=within.groups)
        n, groups = int(known.sum()), int(np.count_nonzero(sizes))
        if groups < 2:
            return Estimate(np.nan, np.nan, np.nan, n, "fewer than two clusters")
        mean = float(sums.sum() / n)
        error = float(np.sqrt(groups / (groups - 1) * np.sum((sums - mean * sizes) ** 2))) / n
        return Estimate(
            mean, mean - float(special.stdtrit(groups - 1, self.level)) * error, np.nan, n
        )

    def met(self, estimate: Estimate) -> bool:
        """Whether the difference is shown to be within the margin."""
        return estimate.low > -self.margin  # never for NaN

    def on_the_comparison(
        self, candidate: str, methods: Mapping[str, Run], within: Resampler
    ) -> dict[str, Any] | None:
        """Whether it also holds on the problems that were compared; None without the reference."""
        runs = [methods[candidate], methods.get(self.not_below)]
        values = [run.metrics.get(self.metric) for run in runs if run is not None]
        ours, theirs = (*values, None)[:2]
        if ours is None or theirs is None:
            return None
        estimate = self.difference(ours, theirs, within)
        known = {"value": estimate.value, "low": estimate.low}
        return {
            "metric": self.metric,
            "reference": self.not_below,
            "margin": self.margin,
            "level": self.level,
            "n": estimate.n,
            "held": self.met(estimate),
            **{key: value if np.isfinite(value) else None for key, value in known.items()},
        }


def constraint_sentence(held: Mapping[str, Any]) -> str:
    """The answer of `on_the_comparison`, as people read it."""
    metric, reference = held["metric"], held["reference"]
    asked = f"{metric} at most {100 * held['margin']:g} points below {reference}'s"
    if held["low"] is None:
        return f"calibration's constraint ({asked}) can't be checked here"
    return (
        f"calibration's constraint ({asked}) {'held' if held['held'] else 'did not hold'} here: "
        f"{100 * held['value']:+.1f} points, lower limit at {100 * held['level']:g} % "
        f"{100 * held['low']:+.1f}"
    )
