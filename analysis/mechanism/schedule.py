"""`embednoise probe schedule`: when and where noise diversifies, at equal noise budget.

Three sets of arms (arms.py), each run by the ordinary study and compared by paired tests: σ falling
or rising over the first generated tokens against constant σ; the first, the middle or the last of
some blocks against all of them; one offset a sample on the prompt against noise at every position.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lm_eval_embednoise.analysis.mechanism import arms

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the probe's own arguments."""
    parser.add_argument(
        "--sigma", type=float, default=0.3, help="of the constant schedule, relative (0.3)"
    )
    parser.add_argument("--depth", default="embed", help="site of the schedules (embed)")
    parser.add_argument(
        "--tokens", type=int, default=24, metavar="N", help="generated tokens with noise (24)"
    )
    parser.add_argument(
        "--blocks", type=int, nargs="+", default=[8, 12, 16], metavar="K",
        help="blocks of the layer-specific arms and of the offsets (8 12 16)",
    )  # fmt: skip
    parser.add_argument(
        "--offset-sigma", type=float, default=0.3, help="of the three offset arms, at each block"
    )


def sets(args: argparse.Namespace) -> list[arms.Arms]:
    """The arms to run."""
    return [
        arms.schedules(args.sigma, args.depth, args.tokens),
        arms.layers(args.sigma, args.blocks, args.tokens),
        arms.offsets(args.offset_sigma, args.blocks),
    ]
