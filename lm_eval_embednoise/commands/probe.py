"""Why noise does, or does not, diversify: a probe of the mechanism (docs/mechanism.md)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

# Probe → (module with add_arguments(parser) and run(args), one line of help).
PROBES = {
    "failures": (
        "lm_eval_embednoise.analysis.mechanism.failures",
        "how samples fail: kinds by method and dose, problems gained and lost",
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the probes as subcommands."""
    probes = parser.add_subparsers(dest="probe", metavar="PROBE", required=True)
    for name, (module, text) in PROBES.items():
        probe = probes.add_parser(name, help=text, description=text)
        implementation = importlib.import_module(module)
        implementation.add_arguments(probe)
        probe.set_defaults(run_probe=implementation.run)


def run(args: argparse.Namespace) -> int:
    """Run the chosen probe; returns the exit status."""
    return int(args.run_probe(args))
