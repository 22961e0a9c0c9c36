"""The command `embednoise`: finds the subcommand, runs it, and turns errors into one line."""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from lm_eval_embednoise import _hook

# Subcommand → (module with add_arguments(parser) and run(args), one line of help).
COMMANDS = {
    "study": ("lm_eval_embednoise.study.run", "run models × tasks × methods and compare them"),
    "calibrate": (
        "lm_eval_embednoise.study.calibrate",
        "find a model's σ* and T* with equal budgets",
    ),
    "compare": ("lm_eval_embednoise.analysis.compare", "compare methods from result folders"),
    "report": ("lm_eval_embednoise.analysis.report", "one self-contained HTML page"),
    "power": ("lm_eval_embednoise.analysis.power", "problems needed to see a difference"),
    "regenerate": (
        "lm_eval_embednoise.commands.regenerate",
        "make one stored sample again, from its key",
    ),
    "generations": (
        "lm_eval_embednoise.commands.generations",
        "show, export, import stored samples",
    ),
    "probe": (
        "lm_eval_embednoise.commands.probe",
        "why: look inside the model while methods draw their samples",
    ),
    "doctor": ("lm_eval_embednoise.commands.doctor", "say what works on this machine"),
}
RUN_HELP = "evaluate: the arguments of `lm_eval run`, -K, --method and --processes"

EPILOG = """\
examples:
  # the whole comparison on the embedded model: nine methods, two tasks, some four minutes
  embednoise study quick --processes 2 --out results/quick

  # one method on your own model, 20 samples a problem, in two processes
  embednoise run --model hf-embednoise --model_args pretrained=MODEL,sigma=0.1,depth=5 \\
      --tasks minicode_diverse -K 20 --processes 2 --output_path results --log_samples

  # the same from a run file and a method file, packaged or yours
  embednoise run --config qwen2.5-coder-7b --method embednoise-0.1 --tasks humaneval_diverse

  # what works here: plug-in routes, sandbox, GPU, quantization, attention kernels
  embednoise doctor

`embednoise COMMAND --help` explains a command. EMBEDNOISE_DEBUG=1 shows errors in full.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status is 1 after an error, 130 after an interrupt."""
    argv = sys.argv[1:] if argv is None else argv
    _hook.wait_shortly()
    try:
        return _dispatch(argv)
    except KeyboardInterrupt:
        print("embednoise: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, KeyError, ImportError, RuntimeError) as error:
        if os.environ.get("EMBEDNOISE_DEBUG", "0") not in ("", "0"):
            raise
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        print(f"embednoise: error: {' '.join(text.split())}", file=sys.stderr)
        return 1


def _dispatch(argv: list[str]) -> int:
    if argv[:1] == ["run"]:  # the harness's own parser reads the rest
        return _run(argv[1:])
    parser = argparse.ArgumentParser(
        prog="embednoise",
        description="Noise on a language model's input instead of temperature: "
        "generate, score, compare.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    from lm_eval_embednoise import __version__

    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser("run", help=RUN_HELP, add_help=False)
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(
            name, help=text, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if argv[:1] == [name]:  # only the chosen command's module is imported
            implementation = importlib.import_module(module)
            command.description = implementation.__doc__
            implementation.add_arguments(command)
            command.set_defaults(run=implementation.run)
    args = parser.parse_args(argv)
    return int(args.run(args) or 0)


def _run(argv: list[str]) -> int:
    """`embednoise run`: the harness's command with the plug-in loaded, and K from `-K`."""
    from lm_eval_embednoise import early, launch, plugin
    from lm_eval_embednoise.study import runfile

    own = argparse.ArgumentParser(prog="embednoise run", add_help=False, allow_abbrev=False)
    own.add_argument("-K", type=int)
    own.add_argument("--method")
    own.add_argument("--pass_at", type=plugin.numbers)
    own.add_argument("--processes", type=int, default=1)
    options, rest = own.parse_known_args(argv)
    for flag, value in (("-K", options.K), ("--processes", options.processes)):
        if value is not None and value < 1:
            raise ValueError(f"{flag} {value} is not allowed; it must be a whole number ≥ 1")

    from lm_eval._cli import HarnessCLI
    from lm_eval.utils import setup_logging

    if not rest or {"-h", "--help"} & set(rest):
        print(
            "embednoise run takes all of `lm_eval run`'s arguments, and\n"
            "  -K <n>                samples of every problem, instead of the task's own number\n"
            "  --pass_at <k,k,…>     pass@k for these k too, each at most the number of samples\n"
            "  --method <name|file>  perturbation and sampling of a method file (methods/)\n"
            "  --config <name|file>  also by the name of a packaged run file; merged with\n"
            "                        --method, --model_args and --gen_kwargs (the latter win)\n"
            "  --processes <n>       share the problems among processes; the samples are the same\n"
        )
        rest = ["--help"]
    setup_logging()
    plugin.register()
    if options.K is not None:
        plugin.load_with_repeats(options.K)
        few = early.few_samples(options.K)
        if few and not launch.in_world():
            print(f"embednoise: {few}", file=sys.stderr)
    if options.pass_at:
        plugin.load_with_pass_at(options.pass_at)
    command = sys.argv
    sys.argv = ["lm_eval", "run", *rest]  # the harness reads its arguments there
    harness = HarnessCLI()
    args = runfile.merge(harness.parse_args(), options.method)
    runfile.check(args)
    if options.processes > 1 and not launch.in_world():
        if args.limit is not None and 1 <= args.limit < options.processes:
            raise ValueError(
                f"--processes {options.processes} with --limit {args.limit:g}: every process "
                "needs a problem"
            )
        sys.argv = command
        return launch.run_in_processes(options.processes, launch.own_command())
    harness.execute(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
