"""Run untrusted Python programs and say how they ended.

Threat model. The programs are written by a language model: hostile by accident, and treated as
hostile on purpose. A program may try to pass without solving its problem, to read what the user
can read, to change anything outside, to reach the network, to outlive its turn, or to starve the
machine. The defences:

* *Passing without solving*: expected values are in another process (`tester`), the program sees
  arguments, one call at a time, and sends back plain data; the verdict is made where none of its
  code runs. There is no exit code, token or function to forge. The process that forks programs
  (`zygote`) has never held a job, so their memory holds nothing of earlier ones.
* *Reading, changing, network, other processes*: see `docs/sandbox.md` for the three levels:
  namespaces with a small read-only root and a system-call filter; Landlock and the filter; or
  resource limits only, which must be asked for.
* *Starving*: processor time, waiting, memory, output, files, threads are limited; no new
  processes at all at the first two levels; everything is dead before the next program starts.

Not covered: a hole in the kernel or the interpreter; side channels (timing, load); at level
`rlimits` everything but resources. Verdicts are only about the tests: a program that answers them
from a table passes.
"""

from .jobs import VERDICTS, Job, Limits, Outcome, SandboxError, Verdict
from .levels import available_levels, describe, strongest
from .pool import default_workers, map_items, run_programs

__all__ = [
    "VERDICTS",
    "Job",
    "Limits",
    "Outcome",
    "SandboxError",
    "Verdict",
    "available_levels",
    "default_workers",
    "describe",
    "map_items",
    "run_programs",
    "strongest",
]
