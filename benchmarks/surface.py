"""What the metrics of the texts say of one program with junk in it, beside ten real ways.

python benchmarks/surface.py [--problems 40]

Three sets of ten samples for each of some problems of the embedded model's grammar: one solution
ten times; the same with its names drawn anew and dead code put in, another in each; solutions in
ten ways. Values are means over problems; `unique_ast` is the number of classes of trees.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

import numpy as np

from lm_eval_embednoise.minicoder.problems import draw_problem, header
from lm_eval_embednoise.minicoder.render import RENDERERS, render
from lm_eval_embednoise.sandbox import Outcome
from lm_eval_embednoise.sandbox.syntax import examine
from lm_eval_embednoise.scoring.records import code_record
from lm_eval_embednoise.scoring.reduce import code_metrics

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.support.random_programs import with_junk

SHOWN = (
    *("distinct_1", "distinct_2", "distinct_3", "ead_2", "distinct_2_rarefied", "self_bleu"),
    *("self_bleu_joint", "edit_distance", "vendi", "compression_ratio", "unique_ast"),
)
K = 10


def samples(seed: int) -> tuple[str, dict[str, list[str]]]:
    """The function of one problem, and the three sets of programs that define it."""
    rng = random.Random(seed)
    problem = draw_problem(rng)
    ways = rng.sample(list(RENDERERS), K)
    head = header(problem)
    one = [head + render(problem.spec, ways[0], rng) for _ in range(K)]  # names are drawn anew
    return problem.name, {
        "one program": one[:1] * K,
        "one program, renamed, with junk": [with_junk(rng, program) for program in one],
        "ten ways": [head + render(problem.spec, way, rng) for way in ways],
    }


def metrics(name: str, programs: list[str]) -> dict[str, float]:
    """All metrics of a problem whose samples are these programs, each said to be correct."""
    outcomes = [Outcome("passed", **examine(program, name)) for program in programs]
    pairs = enumerate(zip(programs, outcomes, strict=True))
    records = [code_record(program, i, program, outcome) for i, (program, outcome) in pairs]
    return code_metrics({}, [records])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--problems", type=int, default=40)
    options = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(options.problems):
        name, sets = samples(seed)
        for kind, programs in sets.items():
            found.setdefault(kind, []).append(metrics(name, programs))
    print(f"| | {' | '.join(found)} |\n|---|{'---|' * len(found)}")
    for metric in SHOWN:
        means = [np.nanmean([one[metric] for one in values]) for values in found.values()]
        print(f"| `{metric}` | {' | '.join(f'{mean:.3g}' for mean in means)} |")


if __name__ == "__main__":
    main()
