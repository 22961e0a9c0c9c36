"""`embednoise calibrate`: σ* and T* for a model, on problems that no comparison sees.

Both searches get the same number of evaluations. Each starts at a usual dose, steps up or down by a
fixed factor until pass@1 crosses the constraint (within the protocol's margin of greedy), then
halves the bracket; of all doses tried, the one with the most distinct correct solutions that meets
the constraint is chosen. Writes two method files, for `study` and `lm_eval run --config`, and
calibration.json with the whole dose–response.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lm_eval_embednoise.analysis.protocol import Protocol
from lm_eval_embednoise.analysis.schema import write_text
from lm_eval_embednoise.plan import Cell, Method, Model, StudyError, Task, parse_arguments
from lm_eval_embednoise.study import Session, quiet_harness

CURVE = ("pass@1", "compile_rate", "valid_rate", "distinct_2", "unique_correct", "rho")


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


NOISE = Arm("embednoise-star", "sigma", start=0.1, factor=10**0.5, least=1e-4, most=10.0)
TEMPERATURE = Arm("temp-tuned", "temperature", start=0.8, factor=1.5, least=0.05, most=5.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
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


def run(args: argparse.Namespace) -> int:
    """Search, print the dose–response and write the method files; returns the exit status."""
    for name in ("k", "budget", "limit"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise StudyError(f"--{name} {value}: it must be a whole number ≥ 1")
    protocol = Protocol.load(args.protocol)
    rule = protocol["calibration"]
    noise = {"positions": "prompt", **parse_arguments("--noise", args.noise)}
    model = Model(
        "model",
        model_args=parse_arguments("--model_args", args.model_args),
        batch_size=args.batch_size,
        device=args.device,
    )
    task = Task(args.task, args.limit, args.k, split=args.split)
    with quiet_harness():
        session = Session(model, (task,))
        evaluation = Evaluation(session, task, protocol.hash)
        reference = Method(rule["constraint"]["not_below"], {"sigma": 0}, {"do_sample": False})
        floor = evaluation(reference)[rule["constraint"]["metric"]] - rule["constraint"]["margin"]
        curves = {}
        for arm in (NOISE, TEMPERATURE):
            settings = noise if arm is NOISE else {}
            curves[arm.name] = search(
                functools.partial(evaluation.at_dose, arm, settings),
                lambda point: point[rule["constraint"]["metric"]] >= floor,
                arm,
                args.budget,
            )
    record: dict[str, Any] = {
        "protocol": protocol.hash,
        "rule": rule,
        "task": args.task,
        "split": args.split,
        "k": args.k,
        "budget": args.budget,
        "problems": evaluation.problems,
        "curves": {name: dict(sorted(curve.items())) for name, curve in curves.items()},
    }
    print(f"{args.task}, split {args.split}: {len(evaluation.problems)} problems, K = {args.k}")
    for arm in (NOISE, TEMPERATURE):
        curve = curves[arm.name]
        best, met = choose(curve, rule, floor)
        print(_table(arm, curve, best))
        if not met:
            print(
                f"  no {arm.argument} tried keeps {rule['constraint']['metric']} at "
                f"{100 * floor:.1f} or more; {best:.4g} comes nearest"
            )
        calibration = {"dose": best, "constraint_met": met}
        calibration |= {key: record[key] for key in ("protocol", "task", "split", "k", "problems")}
        method = arm.method(best, noise if arm is NOISE else {})
        content = {
            "model": model.model,
            "model_args": dict(method.perturbation),
            "gen_kwargs": dict(method.gen_kwargs),
            "metadata": {"calibration": calibration},
        }
        path = args.out / f"{arm.name}.yaml"
        head = (
            f"# Chosen by `embednoise calibrate` for {args.model_args or 'the embedded model'}.\n"
        )
        write_text(path, head + yaml.safe_dump(content, sort_keys=False))
        print(f"  {arm.argument} = {best:.4g} → {path}")
    write_text(args.out / "calibration.json", json.dumps(record, indent=1) + "\n")
    return 0


class Evaluation:
    """Runs a method on the calibration problems; remembers which problems they were."""

    def __init__(self, session: Session, task: Task, protocol: str) -> None:
        self.session, self.task, self.protocol = session, task, protocol
        self.problems: list[str] = []

    def at_dose(self, arm: Arm, noise: dict[str, Any], dose: float) -> dict[str, float]:
        """The arm's method at a dose."""
        return self(arm.method(dose, noise))

    def __call__(self, method: Method) -> dict[str, float]:
        """Means over problems of the curve's metrics."""
        cell = Cell(self.session.model, self.task, method, seed=0)
        results = self.session.evaluate(cell, self.protocol)
        if results is None:
            raise StudyError("calibrate runs in one process; start it without a launcher")
        [rows] = results["samples"].values()
        self.problems = sorted({row["doc_hash"] for row in rows})
        return {
            name: float(np.nanmean([row[name] for row in rows]))
            for name in CURVE
            if name in rows[0] and np.isfinite([row[name] for row in rows]).any()
        }


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
