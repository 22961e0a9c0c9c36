"""The probes that look at a study's samples, not into the model: failures, schedule, freshness.

`failures` reads result folders. The others make arms (analysis/mechanism/arms.py), run them by the
ordinary study, with its flags, and compare each set with its reference.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import yaml

from lm_eval_embednoise.analysis.identity import by_method, models_apart
from lm_eval_embednoise.analysis.mechanism import contrast
from lm_eval_embednoise.analysis.records import read_runs
from lm_eval_embednoise.study import run as study
from lm_eval_embednoise.written import dumps, write_text

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from lm_eval_embednoise.analysis.mechanism.arms import Arms

# Probe → one line of help. Its module has add_arguments(parser), and run(args) or sets(args), which
# gives the arms to run and compare.
PROBES = {
    "schedule": "does it matter when and where noise comes, at equal noise budget?",
    "freshness": "what does a fresh soft prompt for each sample add to a fixed one?",
    "failures": "how do samples fail, and which problems are gained and lost?",
}
TASKS, LIMIT, K = ["minicode_diverse"], 40, 20  # of a study's file; the flags win


def add_probes(probes: Any) -> None:
    """Add them to the subcommands of `embednoise probe`."""
    for name, text in PROBES.items():
        module = importlib.import_module(f"lm_eval_embednoise.analysis.mechanism.{name}")
        parser = probes.add_parser(name, help=text, description=module.__doc__)
        module.add_arguments(parser)
        if hasattr(module, "sets"):
            study.add_flags(parser)
        parser.set_defaults(module=module, name=name)  # --probe is a flag of the study


def run(args: argparse.Namespace) -> int:
    """Run the chosen probe; returns the exit status."""
    if not hasattr(args.module, "sets"):
        return int(args.module.run(args))
    if args.out is None:
        raise ValueError("--out DIR is needed: the study and its table go to DIR/" + args.name)
    sets: list[Arms] = args.module.sets(args)  # refuses values that can't be
    out: Path = args.out / args.name
    args.out, args.study = out / "study", str(_write_study(args.name, sets, out))
    status = study.run(args)
    if status or args.dry_run or not study.first_rank():
        return status
    rows = compared(sets, args.out / "results")
    content = {"probe": args.name, "rows": rows}
    write_text(out / "table.json", dumps(content, indent=1) + "\n")
    write_text(out / "table.md", contrast.markdown(rows))
    print(f"{contrast.markdown(rows)}\nwritten: table.json and table.md in {out}")
    return 0


def compared(sets: list[Arms], results: Path) -> list[dict[str, Any]]:
    """Rows of `contrast` for each set of arms, model and task under a study's results."""
    groups: dict[tuple[str, str], list[Any]] = {}
    for one in models_apart(read_runs([results])):
        groups.setdefault((one.model, one.task), []).append(one)
    rows = []
    for runs in groups.values():
        known = {method: same[0] for method, same in by_method(runs).items()}
        for arms in sets:
            of_one = [known[method] for method in arms.perturbations]
            rows += contrast.contrast(of_one, arms.reference)
    return rows


def _write_study(name: str, sets: list[Arms], folder: Path) -> Path:
    """The methods and the study as files, which can be run again as they are."""
    names = []
    for arms in sets:
        for method, content in arms.files().items():
            write_text(
                folder / "methods" / f"{method}.yaml", yaml.safe_dump(content, sort_keys=False)
            )
            names.append(f"methods/{method}.yaml")
    first = sets[0]
    content = {
        "name": name,
        "models": [{"name": "minicoder"}],
        "tasks": TASKS,
        "limit": LIMIT,
        "k": K,
        "methods": names,
        "baseline": first.reference,
        "candidate": next(method for method in first.perturbations if method != first.reference),
    }
    path = folder / f"{name}.yaml"
    write_text(path, yaml.safe_dump(content, sort_keys=False))
    return path
