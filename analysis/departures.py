"""What departs from the protocol, by content and not by label; any of it: exploratory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lm_eval_embednoise.analysis.identity import method_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lm_eval_embednoise.analysis.protocol import Protocol
    from lm_eval_embednoise.analysis.runs import Run

TUNED = "temp-tuned"


@dataclass(frozen=True)
class Compared:
    """The runs of one task: the candidate's replicates, and one run of every method by label."""

    candidate: list[Run]
    methods: dict[str, Run]


def deviations(tasks: list[Compared], protocol: Protocol, baseline: str) -> list[str]:
    """All departures over the tasks, each once.

    Args:
        tasks: what was compared.
        protocol: the protocol in force.
        baseline: the method that the candidate was held against.
    """
    departures: dict[str, None] = {}
    if baseline != protocol["baseline"]:
        departures[f"the baseline is {baseline}, not {protocol['baseline']}"] = None
    for task in tasks:
        for run in task.candidate:
            departures |= dict.fromkeys(_of_the_candidate(run, protocol))
        if protocol.version > 1:
            departures |= dict.fromkeys(_of_the_others(task, protocol))
        task_name = task.candidate[0].task
        missing = [name for name in protocol["family"] if name not in task.methods]
        if missing:
            departures[f"the family lacks {', '.join(missing)}"] = None
        for run in [*task.candidate, *filter(None, [task.methods.get(baseline)])]:
            lost = run.metrics.get("missing")
            if lost is not None and lost.sum() > 0:
                number = int(lost.sum())
                departures[f"{run.method} lacks {number} samples on {task_name}"] = None
    return list(departures)


def _of_the_candidate(run: Run, protocol: Protocol) -> Iterator[str]:
    for key, value in protocol["primary"].items():
        actual = run.perturbation.get(key)
        if actual != value:
            yield f"{run.method} has {key}={actual}, the primary arm {key}={value}"
    yield from _protocol(run, protocol)
    calibration = run.info.get("calibration")
    if not calibration:
        yield f"{run.method} was not chosen by `embednoise calibrate`"
    else:
        yield from _chosen(run, protocol)
    for endpoint in protocol.endpoints(run.domain):
        if endpoint.metric not in run.metrics:
            yield f"{endpoint.metric} was not measured on {run.task} (K = {run.k})"


def _of_the_others(task: Compared, protocol: Protocol) -> Iterator[str]:
    """Whether the family's labels stand for what the protocol says, on the candidate's model."""
    first = task.candidate[0]
    for name in protocol["family"]:
        run = task.methods.get(name)
        if run is None:
            continue
        asked = protocol.contents.get(name)
        settings = {k: v for k, v in method_of(run).items() if k != "engine"}
        if asked is not None and settings != asked:
            yield f"{name} on {run.task} is {_said(settings)}, the protocol's {_said(asked)}"
        if name == TUNED:
            if not run.info.get("calibration"):
                yield f"{name} was not chosen by `embednoise calibrate`"
            else:
                yield from _chosen(run, protocol)
        yield from _protocol(run, protocol)
        ours, theirs = (r.settings.get("model fingerprint") for r in (first, run))
        if ours != theirs:
            yield f"{name} ran on another model than {first.method}"


def _protocol(run: Run, protocol: Protocol) -> Iterator[str]:
    if run.protocol is None:
        yield "no protocol was stored with the results before generation"
    elif run.protocol != protocol.hash:
        yield f"results carry protocol {run.protocol}, not {protocol.hash}"


def _chosen(run: Run, protocol: Protocol) -> Iterator[str]:
    """Whether a method is what calibration chose for this task, on problems it isn't judged on."""
    record = run.info["calibration"]
    seen = len(set(run.hashes) & set(record["problems"]))
    if seen:
        yield f"{run.method} was calibrated on {seen} of the problems of {run.task}"
    if protocol.version == 1:
        return
    method = method_of(run)
    sites = method.get("sites") or {}
    axis = record.get("axis") or ("sigma" if sites else "temperature")
    dose = max(sites.values(), default=0.0) if axis == "sigma" else method.get(axis)
    if record.get("dose") != dose:
        yield f"{run.method} has dose {dose}, calibration chose {record.get('dose')}"
    shared = set(record.get("clusters") or ()) & {str(name) for name in run.clusters or ()}
    if shared and not seen:
        yield f"{run.method} was calibrated on {len(shared)} of the clusters of {run.task}"
    known = (record.get("model_fingerprint"), run.settings.get("model fingerprint"))
    if None not in known and known[0] != known[1]:
        yield f"{run.method} was calibrated on another model"
    if record.get("task") != run.task:
        yield f"{run.method} was calibrated on {record.get('task')}, not on {run.task}"
    if record.get("k") != run.k:
        yield f"{run.method} was calibrated with K = {record.get('k')}, not {run.k}"
    if not record.get("constraint_met"):
        yield f"no dose of {run.method} met the constraint of the calibration"
    if record.get("protocol") != protocol.hash:
        yield f"{run.method} was calibrated under protocol {record.get('protocol')}"


def _said(settings: dict[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in sorted(settings.items())) or "greedy"
