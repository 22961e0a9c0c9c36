"""`embednoise calibrate`: σ*, T* and every other family's dose, on problems no comparison sees.

Every family tries equally many doses, the protocol's grid for its axis. Of those whose pass@1
stays within the protocol's margin of greedy's, by the lower limit of the paired difference over
clusters, the one with the most distinct correct solutions is chosen. Writes a method file for each
family, for `study` and `lm_eval run --config`, and calibration.json with all dose–responses. Every
evaluation is kept in points.jsonl as it finishes, so a killed calibration goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from tqdm import tqdm

from lm_eval_embednoise import early
from lm_eval_embednoise.analysis.constraint import Constraint
from lm_eval_embednoise.analysis.protocol import Protocol
from lm_eval_embednoise.analysis.resample import Resampler, cluster_codes
from lm_eval_embednoise.study import options, study_file
from lm_eval_embednoise.study.evaluation import CURVE, Evaluation, described
from lm_eval_embednoise.study.method import Method, StudyError, parse_arguments
from lm_eval_embednoise.study.plan import Model, Task
from lm_eval_embednoise.study.rehearse import rehearse
from lm_eval_embednoise.study.session import Session, first_rank, launch, quiet_harness
from lm_eval_embednoise.study.study_file import FAMILIES
from lm_eval_embednoise.study.sweep import AXES
from lm_eval_embednoise.study.tasks import Tasks
from lm_eval_embednoise.written import write_text

if TYPE_CHECKING:
    import argparse

    from lm_eval_embednoise.study.sweep import Sweep

RECORD, POINTS = "calibration.json", "points.jsonl"
EXAMPLES = """\
examples:
  embednoise calibrate
      T* and σ* of the embedded model, on its calibration problems
  embednoise calibrate --model_args pretrained=MODEL --task humaneval_diverse --held_out 50 -K 100
      on 50 of the problems; compare on the rest: lm_eval --samples "$(cat others.json)"
  embednoise calibrate --families temp-0.8 min-p-0.1 embednoise-0.1-block-5 --doses sigma=0.1,0.2
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = EXAMPLES
    options.add_arguments(parser)
    parser.add_argument("--noise", default="", metavar="K=V,…", help="of σ*: depth=5,scope=…")
    parser.add_argument(
        "--families",
        nargs="+",
        metavar="METHOD",
        help=f"method files, each with its family along its dose (default: {', '.join(FAMILIES)})",
    )
    parser.add_argument(
        "--doses",
        action="append",
        default=[],
        metavar="AXIS=D,D,…",
        help=f"instead of the protocol's grid for {', '.join(AXES)}; equally many for every family",
    )
    parser.add_argument("--task", default="minicode_diverse")
    parser.add_argument(
        "--split", help="problems no comparison sees (calibration, unless --held_out is given)"
    )
    parser.add_argument(
        "--held_out", type=int, metavar="N", help="keep N problems of the test split for this"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="problems of the split")
    parser.add_argument(
        "-K", "--k", type=int, default=20, help="samples a problem, as many as you will compare"
    )
    parser.add_argument("--protocol", metavar="FILE", help="protocol file (the packaged one)")
    parser.add_argument("--out", type=Path, default=Path("results/calibration"), metavar="DIR")
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N", help="share the problems among N processes"
    )


def run(args: argparse.Namespace) -> int:
    """Try all doses, print the dose–responses, write the method files; returns the exit status."""
    for name in ("k", "held_out", "limit", "processes"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise StudyError(f"--{name} {value}: it must be a whole number ≥ 1")
    protocol = Protocol.load(args.protocol)
    model = options.applied(Model("model"), args)
    task, families = _task(args), _families(args)
    if not calibrated(args.out, task, families, model, protocol):
        samples = args.out / "generations"
        if "RANK" not in os.environ:
            early.check_writable("--out", args.out)
            with quiet_harness():
                work = [(task, tried(families, protocol))]
                notes = rehearse(model, work, samples, args.processes)
                check_task(Tasks(model, (task,)), task, protocol)
            print("\n".join(notes), end="\n" if notes else "", flush=True)
            if args.processes > 1:
                return launch(args.processes)
        with quiet_harness():
            session = Session(model, (task,), samples)
            calibrate(session, task, families, protocol, args.out)
    if first_rank():
        print(summary(args.out))
    return 0


def calibrated(
    out: Path, task: Task, families: tuple[Sweep, ...], model: Model, protocol: Protocol
) -> dict[str, Method]:
    """What an earlier calibration in this folder chose; nothing if there was none.

    Raises:
        StudyError: it was made with other settings.
    """
    path = out / RECORD
    if not path.is_file():
        return {}
    record = json.loads(path.read_text(encoding="utf-8"))
    wanted = _settings(task, families, model, protocol)
    changed = [key for key, value in wanted.items() if record.get(key) != value]
    if changed:
        raise StudyError(
            f"{path} was calibrated with another {', '.join(changed)}: choose another --out, or "
            "delete that folder to calibrate again"
        )
    return {f.chosen: Method.load(f"{f.chosen}.yaml", out) for f in families}


def calibrate(
    session: Session, task: Task, families: tuple[Sweep, ...], protocol: Protocol, out: Path
) -> dict[str, Method]:
    """Choose every family's dose for a loaded model on a task; write them, and return them by name.

    Args:
        session: the loaded model.
        task: the problems to calibrate on.
        families: what is tuned.
        protocol: says what is maximised under which constraint.
        out: folder of the records.
    """
    check_task(session.tasks, task, protocol)
    constraint = Constraint.of(protocol)
    with tqdm(
        total=1 + sum(len(f.doses) for f in families), unit="dose", disable=not first_rank()
    ) as bar:
        evaluation = Evaluation(session, task, protocol, out / POINTS, bar)
        reference = evaluation(_greedy(protocol))
        tried = {f.chosen: {d: evaluation(f.method(d)) for d in f.doses} for f in families}
    resampler = Resampler(cluster_codes(reference.clusters, len(reference.clusters)))
    record: dict[str, Any] = {
        **_settings(task, families, session.model, protocol),
        "model_fingerprint": reference.model,
        "rule": protocol["calibration"],
        "problems": reference.problems,
        "clusters": sorted(set(reference.clusters)),
        "greedy": reference.means,
        "curves": {},
        "chosen": {},
    }
    methods = {}
    for one in families:
        points = tried[one.chosen]
        differences = {
            dose: constraint.difference(point.constrained, reference.constrained, resampler)
            for dose, point in points.items()
        }
        maximised = protocol["calibration"]["maximise"]
        best, met = choose(
            {dose: point.means[maximised] for dose, point in points.items()},
            {dose: estimate.low for dose, estimate in differences.items()},
            constraint.margin,
        )
        record["curves"][one.chosen] = {
            str(dose): {
                **point.means,
                "difference": differences[dose].value,
                "lower_limit": _number(differences[dose].low),
            }
            for dose, point in points.items()
        }
        record["chosen"][one.chosen] = {"axis": one.axis, "dose": best, "constraint_met": met}
        kept = ("protocol", "task", "split", "k", "model_fingerprint", "problems", "clusters")
        provenance = {key: record[key] for key in kept}
        calibration = {"axis": one.axis, "dose": best, "constraint_met": met, **provenance}
        methods[one.chosen] = dataclasses.replace(
            one.method(best), name=one.chosen, calibration=calibration, seeds=None
        )
    if first_rank():
        for method in methods.values():
            write_text(out / f"{method.name}.yaml", _method_file(method, session.model))
        write_text(out / RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        if task.part is not None:
            others = dataclasses.replace(task, part="comparison")
            write_text(out / "others.json", json.dumps(session.tasks.positions(others)) + "\n")
    return methods


def check_task(tasks: Tasks, task: Task, protocol: Protocol) -> None:
    """Refuse a task on which no dose can be chosen.

    Raises:
        StudyError: it is a group, or lacks a metric by which the protocol chooses.
    """
    loaded = tasks.load(task)
    if len(loaded) != 1:
        raise StudyError(f"{task.name} is a group: calibrate each of its tasks")
    rule = protocol["calibration"]
    for name in (rule["constraint"]["metric"], rule["maximise"]):
        if name not in loaded[0].aggregation():
            raise StudyError(f"{task.name} has no {name}, by which the protocol chooses a dose")


def tried(families: tuple[Sweep, ...], protocol: Protocol) -> list[Method]:
    """Every method that a calibration runs."""
    return [_greedy(protocol), *(method for family in families for method in family.methods)]


def choose(
    solutions: dict[float, float], lowest: dict[float, float], margin: float
) -> tuple[float, bool]:
    """The best dose that meets the constraint, or the one nearest to it; and whether it does.

    Args:
        solutions: dose → what is maximised; of equal ones the smaller dose.
        lowest: dose → lower limit of the difference to greedy; NaN: none can be given.
        margin: how far below greedy it may be.
    """
    known = {dose: -np.inf if np.isnan(low) else low for dose, low in lowest.items()}
    meeting = [dose for dose, low in known.items() if low > -margin]
    if meeting:
        return max(meeting, key=lambda dose: (solutions[dose], -dose)), True
    return max(known, key=lambda dose: (known[dose], -dose)), False


def summary(out: Path) -> str:
    """The dose–responses of a finished calibration and what was chosen, as text."""
    record = json.loads((out / RECORD).read_text(encoding="utf-8"))
    constraint = record["rule"]["constraint"]
    metric, margin = constraint["metric"], 100 * constraint["margin"]
    lines = [
        f"{record['task']}: {len(record['problems'])} problems of {len(record['clusters'])} "
        f"clusters, K = {record['k']}; {metric} of {constraint['not_below']}: "
        f"{100 * record['greedy'][metric]:.1f} %. Chosen is the dose with the most "
        f"{record['rule']['maximise']} whose {metric} is, by its lower limit, less than "
        f"{margin:g} points below that."
    ]
    for name, chosen in record["chosen"].items():
        lines.append(_table(chosen["axis"], record["curves"][name], chosen["dose"]))
        if not chosen["constraint_met"]:
            lines.append(f"  no dose is shown to keep {metric}; {chosen['dose']:g} comes nearest")
        lines.append(f"  {chosen['axis']} = {chosen['dose']:g} → {out / name}.yaml")
    return "\n".join(lines)


def _greedy(protocol: Protocol) -> Method:
    """What no dose may be far below."""
    return Method(Constraint.of(protocol).not_below, {"sigma": 0}, {"do_sample": False})


def _task(args: argparse.Namespace) -> Task:
    if args.held_out is not None:
        if args.split is not None:
            raise StudyError("--split names other problems, --held_out keeps some: give one")
        return Task(args.task, None, args.k, held_out=args.held_out, part="calibration")
    split = args.split or "calibration"
    compared = None if split == "test" else Task(args.task)
    return Task(args.task, args.limit, args.k, split=split, apart_from=compared)


def _families(args: argparse.Namespace) -> tuple[Sweep, ...]:
    """The families that the command line names, at the protocol's doses or its own."""
    grids: dict[str, list[float]] = {}
    for text in args.doses:
        axis, _, values = text.partition("=")
        grids[axis] = yaml.safe_load(f"[{values}]")
    named = [{"name": name} for name in args.families or FAMILIES]
    found = study_file.calibration({"families": named}, args.protocol, None, grids)
    assert found is not None
    noise = parse_arguments("--noise", args.noise)
    return tuple(
        dataclasses.replace(
            family,
            base=dataclasses.replace(
                family.base, perturbation={**family.base.perturbation, **noise}
            ),
        )
        if family.axis == "sigma"
        else family
        for family in found.families
    )


def _settings(
    task: Task, families: tuple[Sweep, ...], model: Model, protocol: Protocol
) -> dict[str, Any]:
    """What an earlier calibration must share to be taken over, as JSON."""
    return {
        "protocol": protocol.hash,
        "task": task.name,
        "split": task.split,
        "k": task.k,
        "chosen_on": described(task),
        "families": [
            {
                "name": family.base.name,
                "perturbation": dict(family.base.perturbation),
                "gen_kwargs": dict(family.base.gen_kwargs),
                "axis": family.axis,
                "doses": list(family.doses),
            }
            for family in families
        ],
        "model": model.model,
        "model_args": dict(model.model_args),
        # Records of earlier versions lack what follows: there it was none.
        "gen_kwargs": dict(model.gen_kwargs) or None,
        "apply_chat_template": model.apply_chat_template or None,
        "system_instruction": model.system_instruction,
        "fewshot_as_multiturn": model.fewshot_as_multiturn,
        "num_fewshot": model.num_fewshot,
    }


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None


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


def _table(axis: str, curve: dict[str, dict[str, float | None]], best: float) -> str:
    shown = (*CURVE, "difference", "lower_limit")
    names = [name for name in shown if any(name in point for point in curve.values())]
    lines = ["  ".join(f"{name:>14}" for name in (axis, *names))]
    for dose, point in curve.items():
        values = (point.get(name) for name in names)
        cells = [" " * 13 + "–" if value is None else f"{value:14.3f}" for value in values]
        mark = "  ←" if float(dose) == best else ""
        lines.append("  ".join([f"{dose:>14}", *cells]) + mark)
    return "\n".join(lines)
