"""`embednoise compare`: result folders to comparison.json, CSV, Markdown, plot and table.

Examples:
  embednoise compare results/quick --candidate embednoise-0.1
  embednoise compare temp=runs/a noise=runs/b --out comparison.json
  embednoise compare --merge ours.json theirs.json --out both.json
  embednoise compare results/quick --every_eval_ever shared --organization "Example Lab"
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_embednoise.analysis import every_eval_ever, schema, tables
from lm_eval_embednoise.analysis.comparison import compare
from lm_eval_embednoise.analysis.merge import merge
from lm_eval_embednoise.analysis.protocol import Protocol
from lm_eval_embednoise.analysis.records import read_runs
from lm_eval_embednoise.analysis.runs import ResultError
from lm_eval_embednoise.analysis.statement import wrapped
from lm_eval_embednoise.written import write_text

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "results",
        nargs="+",
        metavar="RESULTS",
        help="folders or results_*.json files of lm_eval (with --log_samples) or of a study, or "
        "files of verdicts by problem (id and passed, or counts n and c); "
        "LABEL=PATH names the method",
    )
    parser.add_argument(
        "--merge",
        action="store_true",
        help="RESULTS are comparison.json files of several groups: compare all their methods",
    )
    parser.add_argument(
        "--intersect",
        action="store_true",
        help="compare on the problems that all runs have, where some lack a few",
    )
    parser.add_argument("--baseline", metavar="METHOD", help="paired with all others (temp-0.8)")
    parser.add_argument("--candidate", metavar="METHOD", help="σ*, the method the verdict is about")
    parser.add_argument("--protocol", metavar="FILE", help="protocol file (the packaged one)")
    parser.add_argument(
        "--out", type=Path, default=Path("comparison.json"), metavar="FILE", help="comparison.json"
    )
    parser.add_argument(
        "--every_eval_ever",
        type=Path,
        metavar="DIR",
        help="also write DIR/data/TASK/DEVELOPER/MODEL/*.json, one file a method in the shared "
        f"format Every Eval Ever, version {every_eval_ever.VERSION} (needs --organization)",
    )
    parser.add_argument("--organization", metavar="NAME", help="who provides these results")


def run(args: argparse.Namespace) -> int:
    """Compare and write; returns the exit status."""
    _check_name(args.out)
    if args.every_eval_ever:
        every_eval_ever.check(args.organization)
    if args.merge:
        if args.baseline or args.candidate or args.protocol:
            raise ResultError("--merge takes baseline, candidate and protocol from the files")
        files = {name: schema.read(Path(name)) for name in args.results}
        comparison = merge(files, intersect=args.intersect)
    else:
        comparison = compare(
            read_runs(args.results, partial=args.intersect),
            baseline=args.baseline,
            candidate=args.candidate,
            protocol=Protocol.load(args.protocol),
            intersect=args.intersect,
        )
    written = write_outputs(comparison, args.out)
    print(tables.terminal(comparison))
    print(wrapped(comparison))
    if args.merge:
        print(_said_of_merging(comparison["merged"]))
    print("\nwritten:", ", ".join(str(path) for path in written))
    if args.every_eval_ever:
        shared = every_eval_ever.export(comparison, args.every_eval_ever, args.organization)
        print(f"{len(shared)} files for Every Eval Ever below {args.every_eval_ever / 'data'}")
    return 0


def write_outputs(comparison: dict[str, Any], out: Path) -> list[Path]:
    """Write comparison.json and beside it the CSV, the Markdown tables and the Pareto plot.

    Raises:
        ResultError: `out` is not a .json file.
    """
    from lm_eval_embednoise.analysis.figures import pareto_figure, save

    _check_name(out)
    schema.write(comparison, out)
    write_text(out.with_suffix(".csv"), tables.as_csv(comparison))
    write_text(out.with_suffix(".md"), tables.markdown(comparison))
    figures = save(pareto_figure(comparison), out.parent, "pareto")
    return [out, out.with_suffix(".csv"), out.with_suffix(".md"), *figures]


def _said_of_merging(merged: dict[str, list[str]]) -> str:
    """Which files' methods were paired with each other."""
    paired, separate = (", ".join(merged[key]) or "none" for key in ("paired", "separate"))
    return (
        f"Compared anew, problem by problem: {paired}. As their files have it, methods of other "
        f"files not paired: {separate}."
    )


def _check_name(out: Path) -> None:
    if out.suffix != ".json":
        raise ResultError(f"--out {out}: give a file name that ends in .json")
