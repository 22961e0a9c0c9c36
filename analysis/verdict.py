"""The verdict: each endpoint met, refuted or open; each task and the whole by the protocol's rule.

A missing difference is never evidence of none: what neither holds nor fails at the protocol's level
is inconclusive. A task whose endpoints fail in another way than the protocol's null (correctness
lost, or no gain on valid samples) is called refuted; the whole has four values only. Anything that
departs from the protocol makes the verdict exploratory.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from lm_eval_embednoise.analysis.intervals import mean_intervals, ratio_intervals
from lm_eval_embednoise.analysis.pairs import as_json, support
from lm_eval_embednoise.analysis.protocol import Protocol
from lm_eval_embednoise.analysis.resample import Estimate, Resampler
from lm_eval_embednoise.analysis.runs import Run

SUCCESS, PARTIAL, NULL, INCONCLUSIVE = "success", "partial", "null", "inconclusive"
REFUTED = "refuted"  # of a task only
_SUCCESS_NEEDS = ("correctness", "diversity", "diversity, gated")


def endpoint_metrics(protocol: Protocol, domain: str) -> list[str]:
    """The metrics that decide in a domain."""
    endpoints = protocol["endpoints"]
    named = [
        endpoints["correctness"]["metric"],
        endpoints["diversity"]["metric"],
        endpoints["diversity"]["gated"],
        protocol["coherence"]["metric"].get(domain),
    ]
    return [name for name in named if name]


def endpoint_status(estimate: Estimate, threshold: float) -> str:
    """`met` if the interval lies above the threshold, `refuted` if below, `open` otherwise."""
    if estimate.low > threshold:
        return "met"
    return "refuted" if estimate.high < threshold else "open"


def task_verdict(
    candidate: Run, baseline: Run, resampler: Resampler, protocol: Protocol
) -> dict[str, Any]:
    """Endpoints and outcome of one candidate on one task, against the protocol's baseline."""
    rule, coherence = protocol["endpoints"], protocol["coherence"]
    correctness, diversity = rule["correctness"], rule["diversity"]
    asked = [
        ("correctness", "difference", correctness["metric"], -correctness["margin"]),
        ("diversity", "ratio", diversity["metric"], diversity["ratio"]),
        ("diversity, gated", "ratio", diversity["gated"], diversity["ratio"]),
    ]
    if candidate.domain in coherence["metric"]:
        metric = coherence["metric"][candidate.domain]
        asked.append(("coherence", "difference", metric, -coherence["margin"]))
    endpoints = []
    for name, statistic, metric, threshold in asked:
        estimate = _estimate(candidate, baseline, metric, statistic, resampler, protocol.level)
        endpoints.append(
            {
                "name": name,
                "metric": metric,
                "statistic": statistic,
                "threshold": threshold,
                "estimate": as_json(estimate),
                "status": endpoint_status(estimate, threshold),
            }
        )
    status = {endpoint["name"]: endpoint["status"] for endpoint in endpoints}
    return {
        "task": candidate.task,
        "domain": candidate.domain,
        "baseline": baseline.method,
        "n": candidate.n,
        "outcome": task_outcome(status),
        "endpoints": endpoints,
    }


def task_outcome(status: dict[str, str]) -> str:
    """`success`, `null`, `refuted` or `inconclusive`, from each endpoint's status by its name."""
    if all(status[name] == "met" for name in _SUCCESS_NEEDS):
        return SUCCESS
    if "refuted" in (status["diversity"], status.get("coherence")):
        return NULL
    if "refuted" in (status[name] for name in _SUCCESS_NEEDS):
        return REFUTED
    return INCONCLUSIVE


def overall(tasks: list[dict[str, Any]]) -> tuple[str, str]:
    """The four-valued verdict over tasks, and the sentence that says why."""
    domains = {
        domain: _agreed([task["outcome"] for task in tasks if task["domain"] == domain])
        for domain in dict.fromkeys(task["domain"] for task in tasks)
    }
    said = ", ".join(f"{outcome} on {domain}" for domain, outcome in domains.items())
    outcomes = set(domains.values())
    if outcomes == {SUCCESS}:
        return SUCCESS, f"both endpoints hold: {said}"
    if domains.get("code") == SUCCESS:
        return PARTIAL, said
    if outcomes == {NULL}:
        return NULL, said
    return INCONCLUSIVE, said or "no task was compared"


def deviations(
    candidate: list[Run], protocol: Protocol, families: dict[str, list[str]]
) -> list[str]:
    """What departs from the protocol; any of it makes the verdict exploratory.

    Args:
        candidate: the candidate's runs, one a task.
        protocol: the protocol in force.
        families: methods found on each task.
    """
    found: dict[str, None] = {}
    for run in candidate:
        for key, value in protocol["primary"].items():
            actual = run.perturbation.get(key)
            if actual != value:
                found[f"{run.method} has {key}={actual}, the primary arm {key}={value}"] = None
        if run.protocol is None:
            found["no protocol was stored with the results before generation"] = None
        elif run.protocol != protocol.hash:
            found[f"results carry protocol {run.protocol}, not {protocol.hash}"] = None
        calibration = run.info.get("calibration")
        if not calibration:
            found[f"{run.method} was not chosen by `embednoise calibrate`"] = None
        else:
            seen = len(set(run.hashes) & set(calibration["problems"]))
            if seen:
                found[f"{run.method} was calibrated on {seen} of the problems of {run.task}"] = None
        for metric in endpoint_metrics(protocol, run.domain):
            if metric not in run.metrics:
                found[f"{metric} was not measured on {run.task} (K = {run.k})"] = None
        missing = [name for name in protocol["family"] if name not in families[run.task]]
        if missing:
            found[f"the family lacks {', '.join(missing)}"] = None
    return list(found)


def sentence(endpoint: dict[str, Any]) -> str:
    """One endpoint in words, numbers included."""
    estimate, threshold = endpoint["estimate"], endpoint["threshold"]
    named = f"{endpoint['metric']} {endpoint['statistic']}"
    if estimate["low"] is None:
        return f"{named}: open ({estimate['reason']})"
    percent = endpoint["statistic"] == "difference"
    value, low, high, limit = (
        f"{100 * v:+.1f}" if percent else f"{v:.2f}"
        for v in (estimate["value"], estimate["low"], estimate["high"], threshold)
    )
    unit = " points" if percent else ""
    return f"{named} {value} [{low}, {high}]{unit}, limit {limit}: {endpoint['status']}"


def _agreed(outcomes: list[str]) -> str:
    return outcomes[0] if len(set(outcomes)) == 1 else INCONCLUSIVE


def _estimate(
    a: Run, b: Run, metric: str, statistic: str, resampler: Resampler, level: float
) -> Estimate:
    if metric not in a.metrics or metric not in b.metrics:
        return Estimate(np.nan, np.nan, np.nan, 0, f"{metric} was not measured (K = {a.k})")
    left, right = a.metrics[metric], b.metrics[metric]
    both = np.isfinite(left) & np.isfinite(right)
    if not both.any():
        return Estimate(np.nan, np.nan, np.nan, 0, f"{metric} is undefined on every problem")
    left, right = (np.where(both, side, np.nan)[:, None] for side in (left, right))
    if statistic == "ratio":
        [told] = ratio_intervals(left, right, resampler, level=level)
    else:
        supports = [support(metric, difference=True)]
        [told] = mean_intervals(left - right, resampler, supports, level=level)
    # Fewer clusters than an exact sign test needs to reach this level decide nothing.
    groups = len(np.unique(resampler.clusters[both]))
    if 2.0 ** (1 - groups) > 1 - level:
        reason = f"{groups} independent problems can't decide at {100 * level:g} %"
        return replace(told, low=np.nan, high=np.nan, reason=reason)
    return told
