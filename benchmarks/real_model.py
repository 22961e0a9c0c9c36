"""How fast a model of your own generates: `generation.py --model PATH`.

    EMBEDNOISE_DATA=DIR python benchmarks/generation.py --model PATH [--vllm-python PYTHON]
    … --problems 2 --k 4 --tokens 16 --repeats 1 --dtypes float32     # a look in two minutes

HumanEval's first problems as chat prompts (as they are for a model without a chat template),
temperature 0.8, top_k off, all samples in one batch. Contenders, each in a process of its own, in
turn: the stock class, ours, ours with noise (σ 0.1 at block 5, on the prompt), vLLM. Ours is also
given with prompts that are not shared: its seconds plus those that K clean prefills of every prompt
take longer than one, in the blocks that noise reaches (all behind block 5). The limit is what the
matrix products of one step take at full batch, with weights from memory, in PyTorch's own layers.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import platform
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import children

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

DEPTH = 5
ASKED = "Complete the following Python function. Answer with the whole function in one code block."
SAMPLING = {"do_sample": True, "temperature": 0.8, "until": []}
CONTENDERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # as in generation.py
    "stock": ("hf", {}, {**SAMPLING, "top_k": 0}),
    "ours": ("hf-embednoise", {}, SAMPLING),
    "noise": ("hf-embednoise", {"sigma": 0.1, "depth": str(DEPTH)}, SAMPLING),
}


def prompts_of(model: str, count: int) -> list[str]:
    """HumanEval's first problems as a user's turn of a chat."""
    from transformers import AutoTokenizer

    from lm_eval_embednoise.problems.datafiles import locate, read_rows
    from lm_eval_embednoise.problems.documents import HUMANEVAL

    rows = (row for path in locate(HUMANEVAL) for _, row in read_rows(path))
    texts = [str(row["prompt"]) for row in itertools.islice(rows, count)]
    tokenizer = AutoTokenizer.from_pretrained(model)
    if tokenizer.chat_template is None:
        return texts
    turns = [[{"role": "user", "content": f"{ASKED}\n\n```python\n{text}```"}] for text in texts]
    return [
        str(tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False))
        for turn in turns
    ]


def child(given: dict[str, Any]) -> dict[str, Any]:
    """One contender, once: seconds, tokens of its texts, peak memory; of ours where time goes."""
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from lm_eval_embednoise.models.hf_embednoise import HFEmbedNoise

    if given["threads"]:
        torch.set_num_threads(given["threads"])
    kind, args, sampling = CONTENDERS[given["contender"]]
    cls = HFLM if kind == "hf" else HFEmbedNoise
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lm: Any = cls(
        given["model"], dtype=given["dtype"], batch_size=given["rows"], device=device, **args
    )
    settings = {**sampling, "max_gen_toks": given["tokens"]}

    def run(texts: list[str], k: int) -> tuple[float, list[str]]:
        requests = []
        for number, text in enumerate(texts):
            request = Instance(
                "generate_until", {}, (text, settings), number, metadata=("bench", number, k)
            )
            requests += [request] * k
        start = time.perf_counter()
        with torch.no_grad():
            found = lm.generate_until(requests, disable_tqdm=True)
        return time.perf_counter() - start, found

    settings["max_gen_toks"] = 2  # the first pass of a process is slow
    run(["def f(xs):\n"], 2)
    settings["max_gen_toks"] = given["tokens"]
    seconds, texts = run(given["prompts"], given["k"])
    tokens = sum(len(ids) for ids in lm.tokenizer(texts, add_special_tokens=False)["input_ids"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {"seconds": seconds, "tokens": tokens, "peak_mib": peak}
    return {**found, **parts(lm, given)} if given["contender"] == "ours" else found


def parts(lm: Any, given: dict[str, Any]) -> dict[str, float]:
    """What ours spends its time on, in seconds, and the limit, in tokens a second."""
    import torch
    from torch import nn

    from lm_eval_embednoise.engine.choose import choose, token_nll
    from lm_eval_embednoise.engine.jobs import Job
    from lm_eval_embednoise.engine.sampler import Sampler
    from lm_eval_embednoise.engine.sampling import Sampling
    from lm_eval_embednoise.noise.perturbation import Perturbation

    def best(work: Callable[[], Any], times: int = 5) -> float:
        taken = []
        for _ in range(times):
            start = time.perf_counter()
            work()
            taken.append(time.perf_counter() - start)
        return min(taken)

    jobs = [
        Job(tuple(lm.tok_encode(text)), str(number), tuple(range(given["k"])))
        for number, text in enumerate(given["prompts"])
    ]
    blocks = lm.model.config.num_hidden_layers
    rows, warm = given["rows"], Sampling(temperature=0.8, max_gen_toks=1)
    # A dose that is 0 in float32: prompts are not shared, and nothing is drawn.
    silent = Perturbation(sigma=1e-60, sigma_unit="absolute", depth=str(min(DEPTH, blocks - 1)))

    def prefilled(perturbation: Perturbation) -> float:
        sampler = Sampler(lm.model, perturbation, warm, batch_size=rows, perplexity=False)
        with sampler.ready():
            return best(lambda: list(sampler.run(jobs)), 1)

    with torch.inference_mode():
        shared, unshared = prefilled(Perturbation()), prefilled(silent)
        sampler = Sampler(lm.model, Perturbation(), warm)

        def lay_out() -> None:
            with sampler.ready():
                pass

        layout = best(lay_out, 2)
        linears = [m for m in lm.model.modules() if isinstance(m, nn.Linear)]
        inputs = {m.in_features: torch.randn(rows, m.in_features).to(m.weight) for m in linears}
        products = best(lambda: [m(inputs[m.in_features]) for m in linears])
        flops = 2 * rows * sum(m.weight.numel() for m in linears)
        logits = 3 * torch.randn(rows, lm.model.config.vocab_size)
        uniforms = torch.rand(rows, dtype=torch.float64)
        choice = best(lambda: token_nll(logits, choose(logits, warm, uniforms).clamp_min(0)))
    share = (blocks - 1 - min(DEPTH, blocks - 1)) / blocks
    return {
        "unshared_s": (unshared - shared) * share,
        "prefill_s": shared,
        "layout_s": layout,
        "choice_s_a_row": choice / rows / torch.get_num_threads(),  # a lane on each
        "limit": rows / products,
        "gflops": flops / products / 1e9,
    }


def figures(dtype: str, options: argparse.Namespace) -> dict[str, Any]:
    """All contenders with one dtype: medians over repeats of contenders that take turns."""
    given = {
        "model": options.model, "dtype": dtype, "stop": [],
        "prompts": prompts_of(options.model, options.problems),
        **{name: getattr(options, name) for name in ("k", "rows", "tokens", "threads")},
    }  # fmt: skip
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    if options.vllm:
        runs["vllm"] = []
    for repeat in range(options.repeats):
        for name, found in runs.items():
            if name == "vllm":
                command = [options.vllm, children.__file__]
            else:
                command = [sys.executable, __file__]
            found.append(children.said(command, {**given, "contender": name}))
            last = found[-1]
            rate = last["tokens"] / last["seconds"]
            print(f"  {dtype} {repeat + 1}: {name:6} {rate:8.1f} tokens/s", flush=True)

    def median(name: str, of: Callable[[dict[str, Any]], float]) -> float | None:
        return statistics.median(map(of, runs[name])) if name in runs else None

    rates = {
        name: median(name, lambda run: run["tokens"] / run["seconds"])
        for name in ("stock", "ours", "noise", "vllm")
    }
    unshared = median("ours", lambda run: run["tokens"] / (run["seconds"] + run["unshared_s"]))
    limit = median("ours", lambda run: run["limit"])

    def ratio(over: float | None, under: float | None) -> float | None:
        return None if over is None or under is None else over / under

    for name in runs:
        peak = max(run.get("peak_mib", 0.0) for run in runs[name])
        print(f"{dtype} {name:6} {rates[name]:8.1f} tokens/s  {peak:8.0f} MiB peak")
    print(
        f"{dtype} limit  {limit:8.1f} tokens/s, of the products of {options.rows} rows alone "
        f"({median('ours', lambda run: run['gflops']):.0f} GFLOP/s)\n"
        f"{dtype} ours with unshared prompts, behind block {DEPTH}: {unshared:.1f} tokens/s; "
        f"noise over ours with shared ones: {ratio(rates['noise'], rates['ours']):.2f}"
    )
    print_rest(dtype, min(runs["ours"], key=lambda run: run["seconds"]))
    return {
        "tokens_per_s": rates,
        "ratios": {
            "ours_over_stock": ratio(rates["ours"], rates["stock"]),
            "ours_over_vllm": ratio(rates["ours"], rates["vllm"]),
            "noise_over_ours": ratio(rates["noise"], unshared),
            "share_of_limit": ratio(rates["ours"], limit),
        },
    }


def print_rest(dtype: str, run: dict[str, Any]) -> None:
    """Where the seconds of a run of ours go."""
    spent = {
        "products at the limit": run["tokens"] / run["limit"],
        "choice of tokens": run["tokens"] * run["choice_s_a_row"],
        "prefill": run["prefill_s"],
        "layout of weights": run["layout_s"],
    }
    spent["rest (attention, small operations, batches that thin out)"] = run["seconds"] - sum(
        spent.values()
    )
    for what, seconds in spent.items():
        print(f"{dtype} {seconds:8.1f} s {seconds / run['seconds']:6.0%}  {what}")


def main(options: argparse.Namespace) -> None:
    """All dtypes; the last line is JSON."""
    import torch
    import transformers

    conditions = {
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": options.threads or torch.get_num_threads(),
        "load_before": os.getloadavg()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        **{name: getattr(options, name) for name in ("problems", "k", "rows", "tokens", "repeats")},
    }
    for name, value in conditions.items():
        print(f"{name:14} {value}")
    print(json.dumps({dtype: figures(dtype, options) for dtype in options.dtypes.split(",")}))


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        said = child(json.load(sys.stdin))
    print(json.dumps(said))
