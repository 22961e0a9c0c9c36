"""`embednoise probe NAME`: look inside the model while methods draw their samples.

Samples are drawn through the ordinary sampler and store, the model's states are captured again from
their keys, and arrays, a table and figures are written. A run that was killed goes on where it was.
docs/mechanism.md says what each probe measures and how to read it.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lm_eval_embednoise.analysis.mechanism.probes import PROBES, Probe
from lm_eval_embednoise.analysis.mechanism.probes import run as run_probe
from lm_eval_embednoise.checks import integer
from lm_eval_embednoise.commands import probe_study
from lm_eval_embednoise.study import options
from lm_eval_embednoise.study.method import Method, StudyError
from lm_eval_embednoise.study.plan import Model, Task, fingerprint

if TYPE_CHECKING:
    from collections.abc import Sequence, Sized

_PACKAGE = "lm_eval_embednoise.analysis.mechanism"
_SHARED = ("command", "run", "probe", "out", "store", "method", "batch_size", "max_batch_size")
EPILOG = """\
examples:
  # the embedded model, the probe's own methods and problems
  embednoise probe geometry --out runs/mechanism

  # a model and a task of one's own, three methods, ten samples of the first 20 problems
  embednoise probe attention --model_args pretrained=MODEL,dtype=float32 \\
      --tasks humaneval_diverse --method temp-0.8 embednoise-0.1 mine.yaml --limit 20 -K 10 \\
      --layers 1,5,10 --gen_kwargs max_gen_toks=64 --out runs/mechanism
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A subcommand for each probe."""
    parser.epilog = EPILOG
    probes = parser.add_subparsers(dest="probe", metavar="NAME", required=True)
    for name, text in PROBES.items():
        command = probes.add_parser(
            name, help=text, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module = probe(name)
        command.description = cast("Any", module).__doc__
        _add_shared(command)
        module.add_arguments(command)
    probe_study.add_probes(probes)


def probe(name: str) -> Probe:
    """The module of a probe."""
    return cast("Probe", importlib.import_module(f"{_PACKAGE}.{name}"))


def _add_shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--method",
        nargs="+",
        metavar="NAME",
        help="method files, packaged ones by name, or families, NAME=DOSE:DOSE:…; default: "
        "%(default)s",
    )
    parser.add_argument("--tasks", default="minicode_diverse", metavar="NAME,…")
    parser.add_argument(
        "--limit", type=int, metavar="N", help="the first N problems of each task (%(default)s)"
    )
    parser.add_argument("--problems", metavar="I,…", help="instead: problems by place, from 0")
    parser.add_argument(
        "-K", dest="k", type=int, metavar="N", help="samples of a problem (%(default)s)"
    )
    parser.add_argument("--layers", metavar="L,…", help="embed, 0, 1, … or all (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="root of all draws")
    parser.add_argument("--out", required=True, metavar="DIR", help="writes to DIR/NAME")
    parser.add_argument("--store", metavar="DIR", help="of the samples; DIR/store by default")
    options.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run one probe."""
    if hasattr(args, "module"):
        return probe_study.run(args)
    module, out = probe(args.probe), Path(args.out)
    methods = load_methods(args.method)
    tasks = [
        Task(name, None if args.problems else args.limit, integer("-K", args.k, least=1))
        for name in args.tasks.split(",")
    ]
    positions = None if args.problems is None else places(args.problems)
    if positions is None:
        integer("--limit", args.limit, least=1)
    model = options.applied(Model("minicoder", model_args={"perplexity": False}), args)
    store = Path(args.store or out / "store")
    module.check(args, _rehearse(model, tasks, methods, store))

    from lm_eval_embednoise.models.stored import identity
    from lm_eval_embednoise.store.store import digest
    from lm_eval_embednoise.study.gather import gather
    from lm_eval_embednoise.study.session import quiet_harness

    with quiet_harness():
        material = gather(model, tasks, methods, store, positions=positions, seed=args.seed)
    settings = {
        "model": material.lm.model_name(),
        "identity": digest(identity(material.lm)),
        "methods": {
            arm.name: {"perturbation": arm.perturbation.canonical(), "sampling": str(arm.sampling)}
            for arm in material.arms
        },
        "samples": fingerprint(
            {arm.name: [[d.ids for d in p.draws] for p in arm.problems] for arm in material.arms}
        ),
        "arguments": {k: v for k, v in sorted(vars(args).items()) if k not in _SHARED},
    }
    rows = run_probe(module, args.probe, material, args, settings, out / args.probe)
    print(f"{len(rows)} rows and the figures are in {out / args.probe}")
    return 0


def load_methods(names: Sequence[str]) -> list[Method]:
    """Methods by name or file, or a family by its doses, `temp-0.8=0.2:0.4`.

    Raises:
        StudyError: a file that can't be read, or two of one name.
    """
    methods = [method for name in names for method in options.methods_named(name)]
    known = [method.name for method in methods]
    for name in known:
        if known.count(name) > 1:
            raise StudyError(f"--method: {name} is given twice; arms need different names")
    return methods


def places(text: str) -> list[int]:
    """The places in `0,3,7`, in order.

    Raises:
        ValueError: one is no whole number ≥ 0.
    """
    return sorted({integer("--problems", part, least=0) for part in text.split(",")})


def _rehearse(model: Model, tasks: Sequence[Task], methods: Sequence[Method], store: Path) -> Sized:
    """Refuse, before weights are read, what the model can't be asked; returns its blocks."""
    from lm_eval_embednoise.early import check_writable
    from lm_eval_embednoise.models.arguments import check_arguments
    from lm_eval_embednoise.noise.model_parts import find_blocks
    from lm_eval_embednoise.study.rehearse import rehearse
    from lm_eval_embednoise.study.session import build

    check_writable("--out", store.parent)
    check_arguments(dict(model.model_args))
    rehearse(model, [(task, methods) for task in tasks], store)
    lm = build(model, weights=False)
    blocks: Sized = find_blocks(lm.model, lm.blocks)
    return blocks
