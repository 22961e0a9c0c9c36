"""Why noise does, or does not, diversify: a probe of the mechanism (docs/mechanism.md)."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lm_eval_embednoise.analysis.identity import by_method, models_apart
from lm_eval_embednoise.analysis.mechanism import contrast
from lm_eval_embednoise.analysis.records import read_runs
from lm_eval_embednoise.study import run as study
from lm_eval_embednoise.written import dumps, write_text

if TYPE_CHECKING:
    import argparse

    from lm_eval_embednoise.analysis.mechanism.arms import Arms

# Probe → (its module, one line of help). A module has add_arguments(parser), and either run(args)
# or sets(args): methods to run by the ordinary study and to compare with a reference.
PROBES = {
    "early": ("early", "whether diversity is the first tokens': samples of a study, conditioned"),
    "schedule": ("schedule", "when and where noise diversifies, at equal noise budget"),
    "freshness": ("freshness", "what a fresh soft prompt for each sample adds to a fixed one"),
    "failures": ("failures", "how samples fail: kinds by method, problems gained and lost"),
}
TASKS, LIMIT, K = ["minicode_diverse"], 40, 20  # unless the flags say otherwise


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the probes as subcommands."""
    probes = parser.add_subparsers(dest="probe", metavar="PROBE", required=True)
    for name, (module, text) in PROBES.items():
        implementation = importlib.import_module(f"lm_eval_embednoise.analysis.mechanism.{module}")
        probe = probes.add_parser(name, help=text, description=implementation.__doc__)
        implementation.add_arguments(probe)
        if hasattr(implementation, "sets"):
            study.add_flags(probe)
        probe.set_defaults(implementation=implementation)


def run(args: argparse.Namespace) -> int:
    """Run the chosen probe; returns the exit status."""
    if hasattr(args.implementation, "sets"):
        return _compare(args)
    return int(args.implementation.run(args))


def _compare(args: argparse.Namespace) -> int:
    """Run each set's methods by a study of their own, and write what differs from its reference."""
    name: str = args.implementation.NAME
    out: Path = args.out or Path("mechanism")
    sets: list[Arms] = args.implementation.sets(args)  # refused here where a value can't be
    args.study = str(_write_study(name, sets, out / name))
    args.out = out / name
    status = study.run(args)
    if status or args.dry_run or not study.first_rank():
        return status
    groups: dict[tuple[str, str], list[Any]] = {}
    for one in models_apart(read_runs([args.out / "results"])):
        groups.setdefault((one.model, one.task), []).append(one)
    rows = []
    for runs in groups.values():
        known = {method: same[0] for method, same in by_method(runs).items()}
        for arms in sets:
            of_one = [known[m] for m in arms.perturbations if m in known]
            rows += contrast.contrast(of_one, arms.reference)
    write_text(out / f"{name}.json", dumps({"probe": name, "rows": rows}, indent=1))
    write_text(out / f"{name}.md", contrast.markdown(rows))
    print(contrast.markdown(rows))
    print(f"written: {out / name}.json and .md; the study is in {args.out}")
    return 0


def _write_study(name: str, sets: list[Arms], folder: Path) -> Path:
    """The methods and the study as files, which can be run again as they are."""
    names = []
    for arms in sets:
        for method, content in arms.files().items():
            path = folder / "methods" / f"{method}.yaml"
            write_text(path, yaml.safe_dump(content, sort_keys=False))
            names.append(f"methods/{method}.yaml")
    content = {
        "name": name,
        "models": [{"name": "minicoder"}],
        "tasks": TASKS,
        "limit": LIMIT,
        "k": K,
        "methods": names,
        "baseline": sets[0].reference,
        "candidate": next(m for m in sets[0].perturbations if m != sets[0].reference),
    }
    path = folder / f"{name}.yaml"
    write_text(path, yaml.safe_dump(content, sort_keys=False))
    return path
