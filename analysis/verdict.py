"""The verdict: harm first, then every endpoint in every form, then the whole temperature curve.

A missing difference is never evidence of none: what neither holds nor fails at the protocol's level
is inconclusive. Protocols of version 1 are judged by their own rule, with fewer endpoints and a
task's fifth outcome, `refuted`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_eval_embednoise.analysis.families import families, plain_temperatures
from lm_eval_embednoise.analysis.intervals import mean_intervals, ratio_intervals
from lm_eval_embednoise.analysis.matched import against
from lm_eval_embednoise.analysis.pairs import as_json, support
from lm_eval_embednoise.analysis.quantities import difference_text, size_text
from lm_eval_embednoise.analysis.resample import Estimate, Resampler

if TYPE_CHECKING:
    from lm_eval_embednoise.analysis.protocol import Endpoint, Protocol
    from lm_eval_embednoise.analysis.runs import Run

SUCCESS, PARTIAL, NULL, INCONCLUSIVE = "success", "partial", "null", "inconclusive"
REFUTED = "refuted"  # of a task, by protocols of version 1 only


def endpoint_status(estimate: Estimate, threshold: float) -> str:
    """`met` if the interval lies above the threshold, `refuted` if below, `open` otherwise."""
    if estimate.low > threshold:
        return "met"
    return "refuted" if estimate.high < threshold else "open"


def task_verdict(
    candidate: Run, baseline: Run, resampler: Resampler, protocol: Protocol
) -> dict[str, Any]:
    """Endpoints and outcome of one candidate on one task, against the protocol's baseline."""
    endpoints: list[dict[str, Any]] = []
    for asked in protocol.endpoints(candidate.domain):
        estimate = _estimate(candidate, baseline, asked, resampler, protocol)
        endpoints.append(
            {
                "name": asked.name,
                "metric": asked.metric,
                "statistic": asked.statistic,
                "threshold": asked.threshold,
                "estimate": as_json(estimate),
                "status": endpoint_status(estimate, asked.threshold),
            }
        )
    status: dict[str, str] = {endpoint["name"]: endpoint["status"] for endpoint in endpoints}
    return {
        "task": candidate.task,
        "domain": candidate.domain,
        "baseline": baseline.method,
        "n": candidate.n,
        "outcome": task_outcome_1(status) if protocol.version == 1 else task_outcome(status),
        "endpoints": endpoints,
    }


def task_outcome(status: dict[str, str]) -> str:
    """`null`, `success` or `inconclusive`, from each endpoint's status by its name.

    Null where harm is shown (correctness or coherence refuted) or that a form of the gain is not
    there; success where all hold; a gain never outweighs a harm.
    """
    if "refuted" in status.values():
        return NULL
    return SUCCESS if set(status.values()) == {"met"} else INCONCLUSIVE


def task_outcome_1(status: dict[str, str]) -> str:
    """The same by version 1 of the protocol: success first, and `refuted` for other failures."""
    needs = [status[name] for name in ("correctness", "diversity", "diversity, gated")]
    if set(needs) == {"met"}:
        return SUCCESS
    if "refuted" in (status["diversity"], status.get("coherence")):
        return NULL
    return REFUTED if "refuted" in needs else INCONCLUSIVE


def curve_verdict(
    candidate: str, runs: dict[str, Run], resampler: Resampler, protocol: Protocol
) -> dict[str, Any]:
    """The candidate against the whole temperature curve at its own quality.

    Returns:
        `says` (above, below, not distinguishable, or null with the `reason`), `metric`, `quality`,
        `difference` and `transposed` with simultaneous bands, `placebo`, and the curve's `doses`.
    """
    rule = protocol.curve_rule
    quality, metric = rule["quality"], rule["decides"]
    nothing = Estimate(np.nan, np.nan, np.nan, 0)
    answer: dict[str, Any] = {"says": None, "metric": metric, "quality": quality, "reason": None}
    empty = {"difference": nothing, "transposed": nothing}
    family = plain_temperatures(families(runs.values()))
    doses = list(family.doses) if family else []
    answer |= {"placebo": None, "doses": doses}
    if family is None or candidate in family.methods:
        reason = "no temperature curve" if family is None else f"{candidate} is on the curve itself"
        return _reasoned(answer, empty, reason)
    wanted = {name: runs[name] for name in (*family.methods, candidate)}
    curve = against(
        family, wanted, rule["outcomes"], resampler, quality=quality, level=rule["level"]
    )
    claim = next((claim for claim in curve.claims if claim.outcome == metric), None)
    if claim is None:
        return _reasoned(answer, empty, f"{metric} or {quality} was not measured for all")
    estimates = {"difference": claim.difference, "transposed": claim.transposed}
    answer["placebo"] = claim.placebo if np.isfinite(claim.placebo) else None
    if len(doses) < rule["least_doses"]:
        reason = f"the curve has {len(doses)} temperatures, {rule['least_doses']} are asked"
        return _reasoned(answer, estimates, reason)
    answer["says"] = claim.says
    return _reasoned(answer, estimates, None if claim.says else claim.difference.reason)


def overall(tasks: list[dict[str, Any]]) -> tuple[str, str]:
    """The four-valued verdict over tasks, and the sentence that says why."""
    domains = {
        domain: _agreed([task["outcome"] for task in tasks if task["domain"] == domain])
        for domain in dict.fromkeys(task["domain"] for task in tasks)
    }
    said = ", ".join(f"{outcome} on {domain}" for domain, outcome in domains.items())
    outcomes = set(domains.values())
    if outcomes == {SUCCESS}:
        return SUCCESS, f"all endpoints hold: {said}"
    if domains.get("code") == SUCCESS:
        return PARTIAL, said
    if outcomes == {NULL}:
        return NULL, said
    return INCONCLUSIVE, said or "no task was compared"


def in_figures(endpoint: dict[str, Any]) -> str:
    """An endpoint's estimate: `distinct_2 ratio 0.21 [0.19, 0.23]`."""
    metric, estimate = endpoint["metric"], endpoint["estimate"]
    if endpoint["statistic"] == "ratio":
        value, low, high = (f"{estimate[key]:.2f}" for key in ("value", "low", "high"))
        return f"{metric} ratio {value} [{low}, {high}]"
    return f"{metric} difference {difference_text(metric, estimate)}"


def sentence(endpoint: dict[str, Any]) -> str:
    """One endpoint in words, numbers included."""
    estimate, threshold = endpoint["estimate"], endpoint["threshold"]
    if estimate["low"] is None:
        return f"{endpoint['metric']} {endpoint['statistic']}: open ({estimate['reason']})"
    percent = endpoint["statistic"] == "difference"
    limit = f"{100 * threshold:+.1f} points" if percent else f"{threshold:.2f}"
    return f"{in_figures(endpoint)}, limit {limit}: {endpoint['status']}"


def curve_sentence(curve: dict[str, Any]) -> str:
    """The second line of a verdict in words: against the whole temperature curve."""
    metric = curve["metric"]
    named = f"against all temperatures at equal {curve['quality']}, {metric}"
    if curve["says"] is None:
        return f"{named}: no answer ({curve['reason']})"
    placebo = curve["placebo"]
    beside = "none" if placebo is None else size_text(metric, placebo)
    return (
        f"{named}: {curve['says']}, {difference_text(metric, curve['difference'])}, "
        f"largest placebo {beside} ({len(curve['doses'])} temperatures)"
    )


def _agreed(outcomes: list[str]) -> str:
    return outcomes[0] if len(set(outcomes)) == 1 else INCONCLUSIVE


def _reasoned(
    answer: dict[str, Any], estimates: dict[str, Estimate], reason: str | None
) -> dict[str, Any]:
    written = {
        key: as_json(replace(e, reason=e.reason or (None if np.isfinite(e.value) else reason)))
        for key, e in estimates.items()
    }
    return {**answer, **written, "reason": reason}


def _estimate(
    a: Run, b: Run, asked: Endpoint, resampler: Resampler, protocol: Protocol
) -> Estimate:
    metric, level = asked.metric, protocol.level
    if metric not in a.metrics or metric not in b.metrics:
        return Estimate(np.nan, np.nan, np.nan, 0, f"{metric} was not measured (K = {a.k})")
    left, right = a.metrics[metric], b.metrics[metric]
    if protocol.version > 1 and asked.statistic == "ratio" and np.isfinite(left).any():
        # Where too few of the candidate's samples count, it has shown no diversity among them:
        # to break a problem on which it has little must not help it.
        left = np.where(np.isnan(left) & np.isfinite(right), 0.0, left)
    both = np.isfinite(left) & np.isfinite(right)
    if not both.any():
        return Estimate(np.nan, np.nan, np.nan, 0, f"{metric} is undefined on every problem")
    left, right = (np.where(both, side, np.nan)[:, None] for side in (left, right))
    if asked.statistic == "ratio":
        [estimate] = ratio_intervals(left, right, resampler, level=level)
    else:
        supports = [support(metric, difference=True)]
        [estimate] = mean_intervals(left - right, resampler, supports, level=level)
    # Fewer clusters than an exact sign test needs to reach this level decide nothing.
    groups = len(np.unique(resampler.clusters[both]))
    if 2.0 ** (1 - groups) > 1 - level:
        reason = f"{groups} independent problems can't decide at {100 * level:g} %"
        return replace(estimate, low=np.nan, high=np.nan, reason=reason)
    return estimate
