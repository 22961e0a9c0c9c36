"""Result folders as the harness writes them, made from a simple model of problems and methods."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

DATE = "2026-01-02T03-04-05.678901"


@dataclass(frozen=True)
class Method:
    """How a synthetic method behaves: its skill (log-odds), diversity, settings."""

    skill: float = 0.0
    diversity: float = 0.2
    sigma: float = 0.0
    temperature: float | None = None
    top_p: float | None = None
    compile_rate: float = 0.97
    arm: dict[str, Any] | None = None  # further fields of the perturbation, e.g. its scope


METHODS = {
    "greedy": Method(0.2, 0.03),
    "temp-0.8": Method(0.0, 0.20, temperature=0.8),
    "temp-1.5": Method(-1.5, 0.45, temperature=1.5, compile_rate=0.7),
    "nucleus-0.95": Method(-0.1, 0.24, temperature=1.0, top_p=0.95),
    "embednoise-0.01": Method(0.2, 0.03, sigma=0.01),
    "embednoise-0.05": Method(0.2, 0.05, sigma=0.05),
    "embednoise-0.1": Method(0.0, 0.09, sigma=0.1),
    "embednoise-0.5": Method(-2.5, 0.40, sigma=0.5, compile_rate=0.5),
    "embednoise-1": Method(-5.0, 0.60, sigma=1.0, compile_rate=0.1),
}


def pass_at_k(n: int, c: int, k: int) -> float:
    """The unbiased estimator."""
    return 1.0 if n - c < k else 1.0 - float(np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


def write_run(
    folder: Path,
    name: str,
    method: Method | None = None,
    *,
    task: str = "minicode_diverse",
    n: int = 40,
    k: int = 20,
    families: int | None = 10,
    seed: int = 0,
    protocol: str | None = None,
    text: str = "return sum(x for x in values if x % 2)",
    version: int = 1,
    replicate: int = 0,
    changes: dict[str, Any] | None = None,
) -> Path:
    """Write one run below `folder`/name and return the results file.

    Args:
        folder: root of the study.
        name: the method's label.
        method: its behaviour; looked up by name unless given.
        task: task name; maths where it contains "math".
        n: number of problems.
        k: samples of each problem.
        families: number of clusters; None for independent problems.
        seed: of the problems and draws.
        protocol: hash to store.
        text: body of every sample (its length sets the size of the files).
        version: the task's data version.
        replicate: seed of the method's draws.
        changes: problem id → what to overwrite in its samples line.
    """
    method = method or METHODS[name]
    # The same problems for every method; the method's own draws differ.
    difficulty = np.random.default_rng(seed).normal(0.5, 1.5, n)
    stable = int.from_bytes(hashlib.sha256(f"{name}/{task}/{replicate}".encode()).digest()[:4])
    rng = np.random.default_rng([seed, stable])
    maths = "math" in task
    lines = []
    for i in range(n):
        rate = 1 / (1 + np.exp(-(difficulty[i] + method.skill)))
        deterministic = method.temperature is None and not method.sigma
        passed = np.repeat(rng.random(1) < rate, k) if deterministic else rng.random(k) < rate
        lines.append(_line(i, passed, method, rng, k, families, maths, text))
        lines[-1].update((changes or {}).get(f"{task}/{i}", {}))
    target = folder / name / task
    target.mkdir(parents=True, exist_ok=True)
    samples = target / f"samples_{task}_{DATE}.jsonl"
    samples.write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = target / f"results_{DATE}.json"
    results.write_text(json.dumps(_results(name, method, task, n, k, protocol, version, replicate)))
    return results


def write_study(folder: Path, methods: dict[str, Method] | None = None, **settings: Any) -> Path:
    """All methods on minicode and minimath."""
    for name, method in (methods or METHODS).items():
        for task in ("minicode_diverse", "minimath_diverse"):
            write_run(folder, name, method, task=task, **settings)
    return folder


def _line(
    i: int,
    passed: np.ndarray,
    method: Method,
    rng: np.random.Generator,
    k: int,
    families: int | None,
    maths: bool,
    text: str,
) -> dict[str, Any]:
    task_id = f"{'minimath' if maths else 'minicode'}_diverse/{i}"
    doc = {"task_id": task_id, "prompt": f"problem {i}"}
    if families:
        doc["cluster"] = f"family {i % families}"
    c = int(passed.sum())
    diversity = float(np.clip(method.diversity * rng.uniform(0.7, 1.3), 0.0, 1.0))
    metrics: dict[str, float] = {
        f"pass@{j}": pass_at_k(k, c, j) for j in (1, 10, 100) if j <= k
    } | {
        "success@K": float(c > 0),
        "distinct_1": diversity / 2,
        "distinct_2": diversity,
        "distinct_2_rarefied": diversity * 1.05,
        "distinct_2_valid": diversity * 1.1 if c > 1 else float("nan"),
        "self_bleu": 1 - diversity,
        "valid_rate": method.compile_rate,
        "unique_correct": float(min(c, round(1 + 20 * diversity)) if c else 0),
        "clean_perplexity": 1.5 + 3 * diversity,
        "mean_tokens": float(rng.integers(30, 60)),
    }
    if maths:
        metrics |= {"accuracy": c / k, "maj@K": float(c > k / 2)}
    else:
        metrics["compile_rate"] = float(rng.binomial(k, method.compile_rate) / k)
    records = [json.dumps(_record(j, bool(p), method, rng, text)) for j, p in enumerate(passed)]
    return {
        "doc_id": i,
        "doc": doc,
        "target": "",
        "arguments": {"gen_args_0": {"arg_0": doc["prompt"], "arg_1": {"until": ["\n\n"]}}},
        "resps": [[f"{text}  # {j}" for j in range(k)]],
        "filtered_resps": [records],
        "filter": "records",
        "metrics": list(metrics),
        "doc_hash": hashlib.sha256(json.dumps(doc).encode()).hexdigest(),
        "prompt_hash": "",
        "target_hash": "",
        **metrics,
    }


def _record(
    j: int, passed: bool, method: Method, rng: np.random.Generator, text: str
) -> dict[str, Any]:
    """A sample: failing ones parse with the method's compile rate, and some of those loop."""
    compiled = passed or bool(rng.random() < method.compile_rate)
    failed = ("wrong_answer" if compiled else "syntax_error", " return x" * 30)
    looped = not passed and rng.random() < min(0.3, method.sigma)
    code = failed[1] if looped else f"{text}  # {j}"
    return {
        "index": j,
        "text": code,
        "code": code,
        "ast": code,
        "passed": passed,
        "compiled": compiled,
        "verdict": "passed" if passed else failed[0],
        "rho": method.sigma or None,
        "nll": 3.0 + 10 * method.sigma * rng.random(),
        "nll_tokens": 20,
    }


def _results(
    name: str,
    method: Method,
    task: str,
    n: int,
    k: int,
    protocol: str | None,
    version: int,
    replicate: int,
) -> dict[str, Any]:
    sampling: dict[str, Any] = {"do_sample": method.temperature is not None}
    sampling |= {"temperature": method.temperature} if method.temperature else {}
    sampling |= {"top_p": method.top_p} if method.top_p else {}
    return {
        "results": {task: {"alias": task}},
        "configs": {
            task: {
                "task": task,
                "repeats": k,
                "num_fewshot": 0,
                "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 64, **sampling},
            }
        },
        "versions": {task: version},
        "n-samples": {task: {"original": n, "effective": n}},
        "higher_is_better": {task: {"distinct_2": True, "self_bleu": False}},
        "config": {
            "model": "hf-embednoise",
            "model_args": {"pretrained": "minicoder"},
            "embednoise": {
                "method": name,
                "perturbation": {
                    "seed": replicate,
                    "sites": {"embed": method.sigma} if method.sigma else {},
                    **({"sigma_unit": "relative", "positions": "prompt"} if method.sigma else {}),
                    **(method.arm or {}),
                },
                "signature": f"sigma:{method.sigma}",
                "rho": {"embed": method.sigma} if method.sigma else {},
                "std": {"embed": method.sigma / 8} if method.sigma else {},
                "stream_version": 1,
                "protocol": protocol,
                "model": {"name": "minicoder"},
            },
        },
        "model_name": "minicoder",
        "date": 1767322800.0 + replicate,
    }
