"""`embednoise calibrate`: σ* and T* for a model, on problems that no comparison sees.

Both searches get the same number of evaluations. Each starts at a usual dose, steps up or down by a
fixed factor until pass@1 crosses the constraint (within the protocol's margin of greedy), then
halves the bracket; of all doses tried, the one with the most distinct correct solutions that meets
the constraint is chosen. Writes two method files, for `study` and `lm_eval run --config`, and
calibration.json with the whole dose–response. Every evaluation is kept in points.jsonl as it
finishes, so a killed search goes on where it stopped.
"""

from __future__ import annotations

import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from tqdm import tqdm

from lm_eval_embednoise.analysis.protocol import Protocol
from lm_eval_embednoise.study.plan import (
    CALIBRATED,
    STAR,
    TUNED,
    Calibration,
    Cell,
    Method,
    Model,
    StudyError,
    Task,
    fingerprint,
    parse_arguments,
)
from lm_eval_embednoise.study.session import Session, first_rank, launch, quiet_harness, shared
from lm_eval_embednoise.written import write_text

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

CURVE = ("pass@1", "compile_rate", "valid_rate", "distinct_2", "unique_correct", "rho")
RECORD, POINTS = "calibration.json", "points.jsonl"


@dataclass(frozen=True)
class Arm:
    """One search: which argument is tuned, from where, by which factor, how far."""

    name: str
    argument: str
    start: float
    factor: float
    least: float
    most: float

    def method(self, dose: float, noise: dict[str, Any]) -> Method:
        """The method at a dose."""
        name = f"{self.name}-{dose:.4g}"
        if self.argument == "sigma":
            return Method(name, {**noise, "sigma": dose}, {"do_sample": False})
        return Method(name, {"sigma": 0}, {"do_sample": True, "temperature": dose})


NOISE = Arm(STAR, "sigma", start=0.1, factor=10**0.5, least=1e-4, most=10.0)
TEMPERATURE = Arm(TUNED, "temperature", start=0.8, factor=1.5, least=0.05, most=5.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--model_args", default="", metavar="K=V,…", help="pretrained=…")
    parser.add_argument("--noise", default="", metavar="K=V,…", help="depth=5,positions=prompt, …")
    parser.add_argument("--task", default="minicode_diverse")
    parser.add_argument("--split", default="calibration", help="problems no comparison sees")
    parser.add_argument("--limit", type=int, metavar="N", help="problems of the split")
    parser.add_argument("-K", "--k", type=int, default=20, help="samples a problem")
    parser.add_argument("--budget", type=int, default=8, help="doses tried in each search")
    parser.add_argument("--protocol", metavar="FILE", help="protocol file (the packaged one)")
    parser.add_argument("--out", type=Path, default=Path("results/calibration"), metavar="DIR")
    parser.add_argument("--batch_size", metavar="B", help="as in lm_eval")
    parser.add_argument("--device", help="as in lm_eval")
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N", help="share the problems among N processes"
    )


def run(args: argparse.Namespace) -> int:
    """Search, print the dose–response and write the method files; returns the exit status."""
    for name in ("k", "budget", "limit", "processes"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise StudyError(f"--{name} {value}: it must be a whole number ≥ 1")
    protocol = Protocol.load(args.protocol)
    model = Model(
        "model",
        model_args=parse_arguments("--model_args", args.model_args),
        batch_size=args.batch_size,
        device=args.device,
    )
    plan = Calibration(
        Task(args.task, args.limit, args.k, split=args.split),
        args.budget,
        parse_arguments("--noise", args.noise),
    )
    methods = calibrated(args.out, plan, model, protocol)
    if methods is None:
        if args.processes > 1 and "RANK" not in os.environ:
            return launch(args.processes)
        with quiet_harness():
            session = Session(model, (plan.task,), args.out / "generations")
            calibrate(session, plan, protocol, args.out)
    if first_rank():
        print(summary(args.out))
    return 0


def calibrated(
    out: Path, plan: Calibration, model: Model, protocol: Protocol
) -> dict[str, Method] | None:
    """What an earlier calibration in this folder chose; None if there was none.

    Raises:
        StudyError: it was made with other settings.
    """
    path = out / RECORD
    if not path.is_file():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    wanted = _settings(plan, model, protocol)
    changed = [key for key, value in wanted.items() if record.get(key) != value]
    if changed:
        raise StudyError(
            f"{path} was calibrated with another {', '.join(changed)}: choose another --out, or "
            "delete that folder to calibrate again"
        )
    return {name: Method.load(f"{name}.yaml", out) for name in CALIBRATED}


def calibrate(
    session: Session, plan: Calibration, protocol: Protocol, out: Path
) -> dict[str, Method]:
    """Find σ* and T* of a loaded model; write them, and return them by name."""
    rule = protocol["calibration"]
    noise = {"positions": "prompt", **plan.noise}
    total = 1 + 2 * plan.budget
    with tqdm(total=total, unit="dose", disable=not first_rank()) as bar:
        evaluation = Evaluation(session, plan.task, protocol.hash, out / POINTS, bar)
        reference = Method(rule["constraint"]["not_below"], {"sigma": 0}, {"do_sample": False})
        floor = evaluation(reference)[rule["constraint"]["metric"]] - rule["constraint"]["margin"]
        curves = {
            arm.name: search(
                functools.partial(evaluation.at_dose, arm, noise if arm is NOISE else {}),
                lambda point: point[rule["constraint"]["metric"]] >= floor,
                arm,
                plan.budget,
            )
            for arm in (NOISE, TEMPERATURE)
        }
    record: dict[str, Any] = {
        **_settings(plan, session.model, protocol),
        "rule": rule,
        "floor": floor,
        "problems": evaluation.problems,
        "curves": {name: dict(sorted(curve.items())) for name, curve in curves.items()},
        "chosen": {},
    }
    methods = {}
    for arm in (NOISE, TEMPERATURE):
        best, met = choose(curves[arm.name], rule, floor)
        record["chosen"][arm.name] = {"dose": best, "constraint_met": met}
        provenance = {key: record[key] for key in ("protocol", "task", "split", "k", "problems")}
        tuned = arm.method(best, noise if arm is NOISE else {})
        calibration = {"dose": best, "constraint_met": met, **provenance}
        methods[arm.name] = Method(arm.name, tuned.perturbation, tuned.gen_kwargs, calibration)
    if first_rank():
        for method in methods.values():
            write_text(out / f"{method.name}.yaml", _method_file(method, session.model))
        write_text(out / RECORD, json.dumps(record, indent=1) + "\n")
    return methods


class Evaluation:
    """Runs a method on the calibration problems, once; remembers which problems they were."""

    def __init__(self, session: Session, task: Task, protocol: str, points: Path, bar: Any) -> None:
        self.session, self.task, self.protocol, self.points = session, task, protocol, points
        self.bar = bar
        self.problems: list[str] = []
        lines = points.read_text(encoding="utf-8").splitlines() if points.is_file() else []
        self.known = {point["fingerprint"]: point for point in map(_parsed, lines) if point}

    def at_dose(self, arm: Arm, noise: dict[str, Any], dose: float) -> dict[str, float]:
        """The arm's method at a dose."""
        return self(arm.method(dose, noise))

    def __call__(self, method: Method) -> dict[str, float]:
        """Means over problems of the curve's metrics, the same on every rank."""
        self.bar.set_description(method.name)
        cell = Cell(self.session.model, self.task, method, seed=0)
        key = fingerprint({**cell.settings(self.protocol), "split": self.task.split})
        point = self.known.get(key)
        if point is None:
            results = self.session.evaluate(cell, self.protocol)
            point = shared(None if results is None else _point(key, method, results))
            if first_rank():
                self.points.parent.mkdir(parents=True, exist_ok=True)
                with self.points.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(point) + "\n")
        self.bar.update()
        self.problems = point["problems"]
        return dict(point["metrics"])


def summary(out: Path) -> str:
    """The dose–response of a finished calibration and what was chosen, as text."""
    record = json.loads((out / RECORD).read_text(encoding="utf-8"))
    constraint = record["rule"]["constraint"]
    lines = [
        f"{record['task']}, split {record['split']}: {len(record['problems'])} problems, "
        f"K = {record['k']}; {constraint['metric']} must be {100 * record['floor']:.1f} or more"
    ]
    for arm in (NOISE, TEMPERATURE):
        curve = {float(dose): point for dose, point in record["curves"][arm.name].items()}
        chosen = record["chosen"][arm.name]
        lines.append(_table(arm, curve, chosen["dose"]))
        if not chosen["constraint_met"]:
            lines.append(
                f"  no {arm.argument} tried keeps {constraint['metric']} there; "
                f"{chosen['dose']:.4g} comes nearest"
            )
        lines.append(f"  {arm.argument} = {chosen['dose']:.4g} → {out / arm.name}.yaml")
    return "\n".join(lines)


def _settings(plan: Calibration, model: Model, protocol: Protocol) -> dict[str, Any]:
    """What an earlier calibration must share to be taken over, as JSON."""
    return {
        "protocol": protocol.hash,
        "task": plan.task.name,
        "split": plan.task.split,
        "limit": plan.task.limit,
        "k": plan.task.k,
        "budget": plan.budget,
        "noise": dict(plan.noise),
        "model": model.model,
        "model_args": dict(model.model_args),
    }


def _point(key: str, method: Method, results: dict[str, Any]) -> dict[str, Any]:
    [rows] = results["samples"].values()
    metrics = {
        name: float(np.nanmean([row[name] for row in rows]))
        for name in CURVE
        if name in rows[0] and np.isfinite([row[name] for row in rows]).any()
    }
    problems = sorted({row["doc_hash"] for row in rows})
    return {"fingerprint": key, "method": method.name, "metrics": metrics, "problems": problems}


def _parsed(line: str) -> dict[str, Any] | None:
    """A finished point; None for a line that a kill cut off."""
    try:
        point: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return point


def _method_file(method: Method, model: Model) -> str:
    content = {
        "model": model.model,
        "model_args": dict(method.perturbation),
        "gen_kwargs": dict(method.gen_kwargs),
        "metadata": {"calibration": dict(method.calibration or {})},
    }
    given = ",".join(f"{key}={value}" for key, value in model.model_args.items())
    comment = f"# Chosen by `embednoise calibrate` for {given or 'the embedded model'}.\n"
    return comment + yaml.safe_dump(content, sort_keys=False)


def search(
    evaluate: Callable[[float], dict[str, float]],
    feasible: Callable[[dict[str, float]], bool],
    arm: Arm,
    budget: int,
) -> dict[float, dict[str, float]]:
    """Doses tried and their metrics: bracket the constraint, then halve the bracket (in logs)."""
    tried: dict[float, dict[str, float]] = {}
    below, above = 0.0, np.inf  # the largest feasible dose, the smallest infeasible one
    dose = arm.start
    while len(tried) < budget:
        dose = float(f"{dose:.4g}")
        if dose in tried or not arm.least <= dose <= arm.most:
            break
        tried[dose] = evaluate(dose)
        if feasible(tried[dose]):
            below = max(below, dose)
        else:
            above = min(above, dose)
        if not below:
            dose = above / arm.factor
        elif not np.isfinite(above):
            dose = below * arm.factor
        else:
            dose = float(np.sqrt(below * above))
    return tried


def choose(
    curve: dict[float, dict[str, float]], rule: dict[str, Any], floor: float
) -> tuple[float, bool]:
    """The best dose that meets the constraint, or the one nearest to it; and whether it does."""
    constrained = rule["constraint"]["metric"]
    meeting = [dose for dose, point in curve.items() if point[constrained] >= floor]
    if meeting:
        return max(meeting, key=lambda dose: curve[dose][rule["maximise"]]), True
    return max(curve, key=lambda dose: curve[dose][constrained]), False


def _table(arm: Arm, curve: dict[float, dict[str, float]], best: float) -> str:
    names = [name for name in CURVE if any(name in point for point in curve.values())]
    lines = ["  ".join(f"{name:>14}" for name in (arm.argument, *names))]
    for dose, point in sorted(curve.items()):
        cells = [f"{point[name]:14.3f}" if name in point else " " * 13 + "–" for name in names]
        lines.append("  ".join([f"{dose:14.4g}", *cells]) + ("  ←" if dose == best else ""))
    return "\n".join(lines)
