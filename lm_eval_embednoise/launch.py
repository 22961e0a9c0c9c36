"""Several processes on one machine, each with its share of the problems.

They are started by torchrun, which ends them all when one fails. `accelerate launch --cpu
--num_processes N` starts a single process (it starts N only through mpirun, given a host file), so
what it was asked for is started here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# Any of these says that a launcher has set up the world already: torchrun's and three MPIs'.
_WORLD = ("RANK", "LOCAL_RANK", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def in_world() -> bool:
    """Whether this process is one that a launcher numbered."""
    return any(name in os.environ for name in _WORLD)


def torchrun(processes: int, program: Sequence[str]) -> list[str]:
    """The command that runs `program` (its command line) in N processes of this machine."""
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"]
    return [*run, "--nproc_per_node", str(processes), *program]


def environment(processes: int) -> dict[str, str]:
    """This process's environment with the cores divided among N, and no GPU taken for granted."""
    import torch

    threads = max(1, (os.cpu_count() or 1) // processes)
    variables = {"OMP_NUM_THREADS": str(threads), **os.environ}
    if not torch.cuda.is_available():
        variables["ACCELERATE_USE_CPU"] = "true"
    return variables


def own_command() -> list[str]:
    """The command line of the present `embednoise …`."""
    return [sys.executable, "-m", "lm_eval_embednoise.cli", *sys.argv[1:]]


def run_in_processes(processes: int, program: Sequence[str]) -> int:
    """Run a command line in N processes and wait; returns their exit status."""
    command = torchrun(processes, program)
    return subprocess.run(command, env=environment(processes), check=False).returncode


def start_missing_processes() -> None:
    """Replace this process by the ones that `accelerate launch --cpu` was asked for, if it was.

    Nothing happens in a process that is part of a world, or that accelerate didn't start.

    Raises:
        ValueError: accelerate was asked for several machines, which it serves through MPI alone.
    """
    processes, machines = _asked_of_accelerate()
    if processes < 2:
        return
    if machines > 1:
        raise ValueError(
            f"accelerate launch --cpu started one process here, not {processes} on {machines} "
            "machines (it does so only through mpirun, with --mpirun_hostfile); run on each "
            "machine: ACCELERATE_USE_CPU=true torchrun --nnodes N --node_rank I "
            "--nproc_per_node M --master_addr HOST -m lm_eval …"
        )
    print(
        f"embednoise: accelerate launch --cpu started one process; starting all {processes} "
        "through torchrun",
        file=sys.stderr,
        flush=True,
    )
    command = torchrun(processes, sys.orig_argv)
    os.execve(command[0], command, environment(processes))


def _asked_of_accelerate() -> tuple[int, int]:
    """Processes and machines named on the command line of the `accelerate launch` above us."""
    # The launcher sets all three, the last for more than one process only.
    marks = ("ACCELERATE_USE_CPU", "ACCELERATE_MIXED_PRECISION", "MASTER_ADDR")
    if in_world() or any(name not in os.environ for name in marks):
        return 1, 1
    import psutil

    try:
        line = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return 1, 1
    return parse_launch(line)


def parse_launch(line: Sequence[str]) -> tuple[int, int]:
    """Processes and machines that an `accelerate launch` command line asks for on CPUs.

    Args:
        line: the launcher's command line, as the system shows it.

    Returns:
        (1, 1) for anything else.
    """
    words = [Path(word).name for word in line]
    start = next(
        (
            at + 1
            for at, word in enumerate(words)
            if word in ("accelerate-launch", "accelerate.commands.launch")
            or (word == "launch" and at and words[at - 1] in _ACCELERATE)
        ),
        None,
    )
    if start is None:
        return 1, 1
    from accelerate.commands.launch import launch_command_parser

    args, _ = launch_command_parser().parse_known_args(list(line[start:]))
    if not args.cpu or args.mpirun_hostfile:
        return 1, 1
    return args.num_processes or 1, args.num_machines or 1


_ACCELERATE = ("accelerate", "accelerate.commands.accelerate_cli")
