"""Programs that we find in answers, beside those that EvalPlus's sanitizer finds.

python benchmarks/extraction.py [--evalplus PYTHON]

The answers are those of tests/support/extraction_texts.py; a program counts as found when it passes
the answer's test. PYTHON is an interpreter that can import evalplus.sanitize (evalplus 0.3.1,
tree-sitter, tree-sitter-python). It is given the answer alone and, where there is a prompt, the
answer behind it, and has found the program when one of them passes. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from lm_eval_embednoise.sandbox import Job, run_programs
from lm_eval_embednoise.sandbox.reader import Answer, read_answers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.support.extraction_texts import Case, cases

_SANITIZE = """
import json, sys
from evalplus.sanitize import sanitize
def tried(text, name):
    try:
        return sanitize(text, name)
    except Exception:
        return ""
json.dump([[tried(t, name) for t in texts] for texts, name in json.load(sys.stdin)], sys.stdout)
"""


def passing(programs: list[list[str]], asked: list[Case]) -> list[bool]:
    """Whether one of each case's programs passes its test."""
    pairs = [(i, program) for i, some in enumerate(programs) for program in some]
    jobs = [Job(program, asked[i].entry_point, asked[i].test) for i, program in pairs]
    found = [False] * len(asked)
    for (i, _), outcome in zip(pairs, run_programs(jobs, progress=False), strict=True):
        found[i] |= outcome.verdict == "passed"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--evalplus", metavar="PYTHON")
    options = parser.parse_args()
    asked = list(cases())
    taken = read_answers([Answer(c.text, c.prompt, c.entry_point) for c in asked])
    ours = passing([[one.program] for one in taken], asked)
    report: dict[str, object] = {"texts": len(asked), "ours": sum(ours)}
    if options.evalplus:
        given = [
            ([c.text, *([f"{c.prompt}\n{c.text}", c.prompt + c.text] if c.prompt else [])])
            for c in asked
        ]
        texts = json.dumps([[t, c.entry_point] for t, c in zip(given, asked, strict=True)])
        run = subprocess.run(
            [options.evalplus, "-c", _SANITIZE], input=texts, capture_output=True, text=True
        )
        if run.returncode:
            sys.exit(f"{options.evalplus}: {run.stderr.strip().splitlines()[-1]}")
        theirs = passing(json.loads(run.stdout), asked)
        report["evalplus"] = sum(theirs)
        for name, mine, other in (("only ours", ours, theirs), ("only EvalPlus", theirs, ours)):
            alone = [c.name for c, a, b in zip(asked, mine, other, strict=True) if a and not b]
            report[name] = len(alone)
            print(f"{name}: {'; '.join(alone) or 'none'}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
