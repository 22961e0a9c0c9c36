"""Greedy pass@1 of a model beside what its authors report, and beside EvalPlus's own verdicts.

    python benchmarks/published.py RESULTS [--evalplus FILE_eval_results.json …]

RESULTS is what this writes, with EMBEDNOISE_DATA set:
    embednoise run --model_args pretrained=MODEL,store=S --method greedy -K 1 --apply_chat_template
      --tasks humanevalplus_diverse_chat,mbppplus_diverse_chat --gen_kwargs max_gen_toks=768
      --log_samples --output_path RESULTS

The samples for EvalPlus come by `embednoise generations export S --to evalplus --task TASK`; its
evaluator runs in an environment of its own and writes the file given here. Published are those of
Qwen2.5-Coder-0.5B-Instruct (arXiv 2409.12186, full precision, EvalPlus v0.2.0 and its prompt), in
per cent. MBPP here is v0.1.0's 399 tasks, so its rows can't be compared with them. Intervals are
Clopper and Pearson's over problems. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from scipy.stats import binomtest

from lm_eval_embednoise.analysis.records import read_runs
from lm_eval_embednoise.store.matching import Id, id_of

ROWS = (  # name, task, metric, EvalPlus's key, published, whether on the same problems
    ("HumanEval", "humanevalplus", "pass@1_base", "base_status", 61.6, True),
    ("HumanEval+", "humanevalplus", "pass@1", "plus_status", 57.3, True),
    ("MBPP (v0.1.0)", "mbppplus", "pass@1_base", "base_status", 52.4, False),
    ("MBPP+ (v0.1.0)", "mbppplus", "pass@1", "plus_status", 43.7, False),
)


def theirs(paths: list[Path]) -> dict[Id, dict[str, bool]]:
    """EvalPlus's verdict of each task's first sample; one that fails the base tests fails all."""
    found: dict[Id, dict[str, bool]] = {}
    for path in paths:
        for task_id, samples in json.loads(path.read_text())["eval"].items():
            base = samples[0]["base_status"] == "pass"
            plus = base and samples[0]["plus_status"] == "pass"
            found[id_of(task_id)] = {"base_status": base, "plus_status": plus}
    return found


def main() -> None:
    """Print the table and, last, JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="folder that the run wrote")
    parser.add_argument("--evalplus", type=Path, nargs="*", default=[], help="its results files")
    options = parser.parse_args()
    runs = {run.task.split("_")[0]: run for run in read_runs([options.results])}
    verdicts, report = theirs(options.evalplus), {}
    print("| benchmark | problems | reported | here [95 %] | EvalPlus on these samples | differ |")
    print("|---|---|---|---|---|---|")
    for name, task, metric, key, published, same in ROWS:
        if task not in runs:
            continue
        run = runs[task]
        ours = dict(zip(run.problems, run.metrics[metric] > 0, strict=True))
        passed, count = sum(map(bool, ours.values())), len(ours)
        interval = binomtest(passed, count).proportion_ci(0.95)
        known = {name: verdicts[id_of(name)][key] for name in ours if id_of(name) in verdicts}
        differ = sorted(name for name, status in known.items() if status != ours[name])
        report[name] = {
            "n": count, "passed": passed, "low": interval.low, "high": interval.high,
            "reported": published / 100, "comparable": same,
            "evalplus": sum(known.values()) if known else None, "differ": differ,
        }  # fmt: skip
        here = f"{passed / count:.1%} [{interval.low:.1%}, {interval.high:.1%}]"
        other = f"{sum(known.values()) / len(known):.1%} of {len(known)}" if known else "–"
        reported = f"{published} %" + ("" if same else " (of other problems)")
        print(f"| {name} | {count} | {reported} | {here} | {other} | {', '.join(differ) or '–'} |")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
