"""`embednoise probe freshness`: what a fresh random soft prompt for each sample adds.

One fixed soft prompt for all K samples with temperature (`draws=1`), five in turn, and one for each
sample, run by the ordinary study and compared by paired tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lm_eval_embednoise.analysis.mechanism import arms

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the probe's own arguments."""
    parser.add_argument(
        "--vectors", type=int, default=16, metavar="N", help="length of the soft prompt (16)"
    )
    parser.add_argument("--temperature", type=float, default=0.8, help="for all arms (0.8)")


def sets(args: argparse.Namespace) -> list[arms.Arms]:
    """The arms to run."""
    return [arms.freshness(args.vectors, args.temperature)]
