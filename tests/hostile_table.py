"""Writes docs/hostile.md: what became of every hostile program, level by level, as whom.

python -m tests.hostile_table        (as root, else the columns of the ordinary user are missing)
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from tests.support import hostile_programs
from tests.test_sandbox_hostile import EVERYONE, report

HEAD = """# The hostile suite

Every program of `tests/support/hostile_programs.py`, each trying to pass a test whose expected
value it can't compute, or to reach, change or outlive something outside, was run as root and as an
ordinary user at each level that this machine has. Written by `python -m tests.hostile_table`;
`pytest tests/test_sandbox_hostile.py` holds every run to it. What the levels are:
[sandbox.md](sandbox.md).

"""


def main() -> None:
    runs = (
        EVERYONE if os.getuid() == 0 else [(level, False) for level, nobody in EVERYONE if nobody]
    )
    reports = {run: report(*run) for run in runs}
    names = [f"{level}, {'user' if nobody else 'root'}" for level, nobody in reports]
    lines = [
        f"{len(hostile_programs.PROGRAMS)} programs; Linux {platform.release()}, "
        f"Python {platform.python_version()}.",
        "",
        f"| | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
    ]
    for program in hostile_programs.PROGRAMS:
        verdicts = [found["verdicts"][program] for found in reports.values()]
        lines.append(f"| `{program}` | {' | '.join(verdicts)} |")
    summaries = {
        "programs that passed": [
            list(r["verdicts"].values()).count("passed") for r in reports.values()
        ],
        "verdicts that are not the right one": [
            sum(v not in hostile_programs.PROGRAMS[name][0] for name, v in r["verdicts"].items())
            for r in reports.values()
        ],
        "files outside changed": [int(not r["unchanged"]) for r in reports.values()],
        "sockets outside reached": [len(r["heard"]) for r in reports.values()],
        "processes left": [len(r["left_running"]) for r in reports.values()],
        "an honest program run after each one": ["/".join(r["honest"]) for r in reports.values()],
    }
    for name, values in summaries.items():
        lines.append(f"| **{name}** | {' | '.join(f'**{value}**' for value in values)} |")
    path = Path(__file__).parents[1] / "docs" / "hostile.md"
    path.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"wrote {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
