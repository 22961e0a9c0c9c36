"""How fast generation is, beside the stock `--model hf` and vLLM, in one run on one machine.

    python benchmarks/generation.py                          # the embedded model, on the CPU
    python benchmarks/generation.py --vllm-python PYTHON     # with vLLM from its own environment
    EMBEDNOISE_DATA=DIR python benchmarks/generation.py --model PATH      # a real model's shapes

K = 100 samples a problem, the same prompts, dtype, batch size and sampling on all sides (top_k
off), each contender in a process of its own, in turn, `--repeats` times; medians. Tokens are those
of the returned texts. Conditions are printed; the last line is JSON. On a GPU: gpu.sh.

With `--model` it is 20 samples of each of five HumanEval problems asked as chats, at most 256
tokens, in each of `--dtypes`: stock, ours, noise at block 5 on the prompt, and ours with every
sample's prompt run apart (each begins with a number of its own), as noise has to from its block on;
the limit is PyTorch's matrix products at as many rows, with weights from memory.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

K, ROWS, STOP = 100, 100, ["\ndef ", "\nQuestion:"]
TEMPERATURE = {"do_sample": True, "temperature": 0.8}
GREEDY: dict[str, Any] = {"do_sample": False}
NOISE = {"sigma": 0.3, "positions": "all"}
# contender → (model class, its arguments, sampling)
CONTENDERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "stock temperature": ("hf", {}, {**TEMPERATURE, "top_k": 0}),
    "ours temperature": ("hf-embednoise", {}, TEMPERATURE),
    "ours noise everywhere": ("hf-embednoise", NOISE, TEMPERATURE),
    "ours noise, no perplexity": (
        "hf-embednoise",
        {**NOISE, "perplexity": False},
        TEMPERATURE,
    ),
    "ours soft prompt": ("hf-embednoise", {"rsp": 16}, TEMPERATURE),
    "ours noise at the end": ("hf-embednoise", {"sigma": 0.3, "positions": "last:8"}, TEMPERATURE),
    "ours noise at block 5": (
        "hf-embednoise",
        {"sigma": 0.1, "depth": "5", "perplexity": False},
        TEMPERATURE,
    ),
    "ours, prompts apart": ("hf-embednoise", {}, TEMPERATURE),
    "ours exact": ("hf-embednoise", {"exact": True}, TEMPERATURE),
    "stock greedy": ("hf", {}, GREEDY),
    "ours greedy": ("hf-embednoise", {}, GREEDY),
}
SAMPLED = [
    "stock temperature",
    "ours temperature",
    "ours noise everywhere",
    "ours noise, no perplexity",
]
REAL = {  # contender → its name in the JSON
    "stock temperature": "stock",
    "ours temperature": "ours",
    "ours noise at block 5": "noise",
    "ours, prompts apart": "apart",
}
CONTESTS = {  # part → who takes part
    "short": SAMPLED,
    "long": [*SAMPLED, "ours soft prompt", "ours noise at the end"],
    "greedy": ["stock greedy", "ours greedy"],
    "exact": ["ours temperature", "ours exact"],
}
RATIOS = (  # what, numerator, denominator, goal
    ("temperature", "ours temperature", "stock temperature", 3.0),
    ("noise everywhere", "ours noise everywhere", "stock temperature", 2.0),
    ("noise, no perplexity", "ours noise, no perplexity", "stock temperature", 2.0),
    ("greedy", "ours greedy", "stock greedy", 50.0),
)


def chats(count: int, model: str) -> list[str]:
    """HumanEval's first problems, as `humaneval_diverse_chat` asks them."""
    from transformers import AutoTokenizer

    from lm_eval_embednoise.problems import documents

    tokenizer = AutoTokenizer.from_pretrained(model)
    asked = (
        "Complete the following Python function. Answer with the whole function in one code block."
    )
    texts = (f"{asked}\n\n```python\n{doc['prompt']}```" for doc in documents.humaneval()["test"])
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        for text, _ in zip(texts, range(count), strict=False)
    ]


def prompts_of(kind: str, count: int, model: str) -> list[str]:
    """Minicode prompts, as many of them in a row as make 1,000 tokens, or HumanEval's as chats."""
    from transformers import AutoTokenizer

    if kind == "chat":
        return chats(count, model)

    from lm_eval_embednoise.minicoder import load_problems

    texts = [problem["prompt"] for problem in load_problems("minicode")]
    if kind == "short":
        return texts[:count]
    tokenizer = AutoTokenizer.from_pretrained(model)
    long = []
    for number in range(count):
        ids: list[int] = []
        for text in texts[number + 1 :]:
            ids += tokenizer.encode(text + "    pass\n\n\n")
        last = tokenizer.encode(texts[number])
        long.append(tokenizer.decode([*ids[: 1000 - len(last)], *last]))
    return long


def load(model: str, args: dict[str, Any], options: argparse.Namespace) -> Any:
    """A model of the harness."""
    import torch
    from lm_eval.models.huggingface import HFLM

    from lm_eval_embednoise.models.hf_embednoise import HFEmbedNoise

    if options.threads:
        torch.set_num_threads(options.threads)
    cls = HFLM if model == "hf" else HFEmbedNoise
    device = "cuda" if torch.cuda.is_available() else "cpu"  # stock's own choice fails without one
    return cls(options.model, dtype=options.dtype, batch_size=options.rows, device=device, **args)


def child(options: argparse.Namespace) -> dict[str, Any]:
    """One contender, once: seconds, tokens of its texts, peak memory."""
    import torch
    from lm_eval.api.instance import Instance

    model, args, sampling = CONTENDERS[options.child]
    prompts = prompts_of(options.prompts, options.problems, options.model)
    k = options.k
    if options.child == "ours, prompts apart":  # a number before the first word of each
        head, k = "<|im_start|>user\n", 1
        prompts = [
            text.replace(head, f"{head}{number}\n") if head in text else f"{number}\n{text}"
            for text in prompts
            for number in range(options.k)
        ]
    lm = load(model, args, options)
    until = [] if options.prompts == "chat" else STOP
    settings = {**sampling, "max_gen_toks": options.tokens, "until": until}

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

    run(["def f(xs):\n"], 2)  # the first pass of a process is slow
    seconds, texts = run(prompts, k)
    tokens = sum(len(ids) for ids in lm.tokenizer(texts, add_special_tokens=False)["input_ids"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "tokens": tokens, "peak_mib": peak}


def vllm_child(options: argparse.Namespace) -> dict[str, Any]:
    """Run vLLM with n = K on the same prompts; runs in an environment that has vllm alone."""
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    given = json.load(sys.stdin)
    llm = LLM(
        given["model"], dtype=options.dtype, enforce_eager=True, max_num_seqs=options.rows,
        max_model_len=2048, gpu_memory_utilization=0.5,
    )  # fmt: skip
    settings = SamplingParams(
        n=options.k,
        temperature=0.8,
        max_tokens=options.tokens,
        top_k=0,
        stop=None if options.prompts == "chat" else STOP,
    )
    llm.generate(["def f(xs):\n"], SamplingParams(max_tokens=4), use_tqdm=False)
    start = time.perf_counter()
    found = llm.generate(given["prompts"], settings, use_tqdm=False)
    seconds = time.perf_counter() - start
    texts = [output.text for request in found for output in request.outputs]
    tokenizer = llm.get_tokenizer()
    return {"seconds": seconds, "tokens": sum(len(tokenizer.encode(text)) for text in texts)}


def measured(name: str, kind: str, problems: int, options: argparse.Namespace) -> dict[str, Any]:
    """Run one contender in a process of its own."""
    python, given = sys.executable, None
    if name == "vllm temperature":
        python = options.vllm_python
        prompts = prompts_of(kind, problems, options.model)
        given = json.dumps({"model": options.model, "prompts": prompts})
    command = [
        *(python, __file__, "--child", name, "--prompts", kind, "--problems", str(problems)),
        *("--model", options.model, "--dtype", options.dtype, "--k", str(options.k)),
        *("--tokens", str(options.tokens), "--rows", str(options.rows)),
        *(("--threads", str(options.threads)) if options.threads else ()),
    ]
    environment = {
        **os.environ,
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    with tempfile.TemporaryFile("w+") as fed, tempfile.TemporaryFile("w+") as said:
        fed.write(given or "")
        fed.seek(0)
        done = subprocess.run(
            command, stdin=fed, stdout=said, stderr=subprocess.STDOUT, check=False, env=environment
        )
        said.seek(0)
        lines = said.read().splitlines()
    if done.returncode:
        raise SystemExit(f"{name} failed:\n" + "\n".join(lines[-30:]))
    # vLLM's processes may have the last word.
    return dict(json.loads([line for line in lines if line[:1] == "{"][-1]))


def compare(kind: str, problems: int, names: list[str], options: argparse.Namespace) -> Any:
    """Medians over repeats of contenders that take turns."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for repeat in range(options.repeats):
        for name in names:
            runs[name].append(measured(name, kind, problems, options))
            last = runs[name][-1]
            rate = last["tokens"] / last["seconds"]
            print(f"  {kind} {repeat + 1}: {name:38} {rate:9.0f} tokens/s", flush=True)
    medians = {
        name: {
            "tokens_per_second": statistics.median(r["tokens"] / r["seconds"] for r in found),
            "seconds_per_sample": statistics.median(r["seconds"] for r in found)
            / (options.k * problems),
            "peak_mib": max(r.get("peak_mib", 0.0) for r in found),
        }
        for name, found in runs.items()
    }
    for name, median in medians.items():
        print(
            f"{kind:6} {name:38} {median['tokens_per_second']:9.0f} tokens/s "
            f"{1e3 * median['seconds_per_sample']:9.2f} ms a sample "
            f"{median['peak_mib']:7.0f} MiB peak"
        )
    return medians


def ratios(kind: str, medians: dict[str, Any], options: argparse.Namespace) -> dict[str, float]:
    """Ours against the others: useful tokens a second, for greedy samples a second."""
    found = {}
    pairs = [*RATIOS]
    if "vllm temperature" in medians:
        pairs.append(("vllm", "ours temperature", "vllm temperature", 1.0))
    for what, mine, other, goal in pairs:
        if mine in medians and other in medians:
            found[what] = medians[mine]["tokens_per_second"] / medians[other]["tokens_per_second"]
            print(f"{kind:6} {what:20} {found[what]:8.2f} × {other} (goal {goal:g} ×)")
    return found


def overhead(options: argparse.Namespace) -> dict[str, float]:
    """Noise on against noise off per decode step, in our sampler; the prefill apart."""
    from lm_eval_embednoise.engine.jobs import Job
    from lm_eval_embednoise.engine.sampler import Sampler
    from lm_eval_embednoise.engine.sampling import Sampling
    from lm_eval_embednoise.noise.perturbation import Perturbation

    lm = load("hf-embednoise", {}, options)
    steps = 48
    job = Job(
        tuple(lm.tokenizer.encode(prompts_of("short", 1, options.model)[0])),
        "p",
        tuple(range(options.rows)),
    )
    seconds: dict[str, list[float]] = {}
    settings = {
        "off": (Perturbation(), steps),
        "embed": (Perturbation(sigma=0.1, positions="generated"), steps),
        "embed+5": (Perturbation(sigma=0.1, positions="generated", depth="embed+5"), steps),
        "shared prefill": (Perturbation(), 1),
        "noisy prefill": (Perturbation(sigma=0.1), 1),
    }
    for _ in range(max(7, options.repeats)):
        for name, (perturbation, tokens) in settings.items():
            sampling = Sampling(temperature=0.8, max_gen_toks=tokens)
            sampler = Sampler(
                lm.model, perturbation, sampling, batch_size=options.rows, perplexity=False
            )
            sampler.runner.site_std(0, job)
            start = time.perf_counter()
            for _sample in sampler.run([job]):
                pass
            seconds.setdefault(name, []).append(time.perf_counter() - start)
    base = statistics.median(seconds["shared prefill"])
    off = (statistics.median(seconds["off"]) - base) / (steps - 1)
    # Neighbours in time are compared, so that a slow moment falls on both.
    paired = {
        name: statistics.median(
            (on - base) / (off - base) - 1
            for on, off in zip(seconds[name], seconds["off"], strict=True)
        )
        for name in ("embed", "embed+5")
    }
    found = {
        "step_ms": 1e3 * off,
        "embed_overhead": paired["embed"],
        "embed+5_overhead": paired["embed+5"],
        "shared_prefill_ms": 1e3 * base,
        "noisy_prefill_ms": 1e3 * statistics.median(seconds["noisy prefill"]),
    }
    print(
        f"a decode step of {options.rows} rows takes {found['step_ms']:.1f} ms; with noise at the "
        f"embedding {found['embed_overhead']:+.1%}, at the embedding and block 5 "
        f"{found['embed+5_overhead']:+.1%}\n"
        f"prefill: {found['shared_prefill_ms']:.1f} ms shared by {options.rows} samples, "
        f"{found['noisy_prefill_ms']:.1f} ms for {options.rows} noisy prompts"
    )
    return found


def where(options: argparse.Namespace) -> dict[str, float]:
    """Where a decode step's time goes: matrix products at their limit, overhead, the rest."""
    import torch
    from torch import nn
    from transformers.cache_utils import DynamicCache

    from lm_eval_embednoise.engine import attention
    from lm_eval_embednoise.engine.lean import Lean
    from lm_eval_embednoise.engine.slots import SlotCache, entries

    lm = load("hf-embednoise", {}, options)
    torch.set_num_threads(1)  # as in a lane
    rows = options.rows

    def best(work: Any) -> float:
        for _ in range(3):
            work()
        times = []
        for _ in range(15):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return 1e3 * statistics.median(times)

    with torch.inference_mode():
        linears = [m for m in lm.model.modules() if isinstance(m, nn.Linear)]
        inputs = {
            m.in_features: torch.randn(rows, m.in_features, device=lm.device, dtype=lm.model.dtype)
            for m in linears
        }
        products = best(lambda: [m(inputs[m.in_features]) for m in linears])

        prefilled = DynamicCache()
        lm.model(input_ids=torch.full((1, 40), 7, device=lm.device), past_key_values=prefilled)
        prompt = [attention.Shared(*held) for held in entries(prefilled)]

        def step(count: int, in_c: bool) -> float:
            """With 30 own entries a row behind a shared prompt of 40."""
            lean = Lean.of(lm.model)
            assert lean is not None
            lean.suits_kernels &= in_c
            ids = torch.full((count, 1), 7, device=lm.device)
            cache = SlotCache(len(prompt), count, 64)
            cache.share([(None, prompt)])
            cache.write_at(torch.full((count,), 30, device=lm.device), 31, even=True)
            with lean.ready():
                return best(lambda: lean.step(ids, cache, torch.full_like(ids, 70)))

        found = {
            "matrix_products_ms": products,
            "step_ms": step(rows, in_c=True),
            "one_row_ms": step(1, in_c=True),
            "in_pytorch_ms": step(rows, in_c=False),
        }
    print(
        f"a decode step of {rows} rows: {found['step_ms']:.1f} ms; the matrix products alone "
        f"{products:.1f} ms ({products / found['step_ms']:.0%}); for a single row "
        f"{found['one_row_ms']:.1f} ms; all of it in PyTorch's operations "
        f"{found['in_pytorch_ms']:.1f} ms"
    )
    return found


def limit(options: argparse.Namespace) -> dict[str, float]:
    """What the matrix products of a decode step allow, weights read from memory; all threads.

    Beside it, on one thread as in a lane of half the rows: the same products, the choice of tokens
    and the whole step, in milliseconds.
    """
    import torch
    from torch import nn

    from lm_eval_embednoise.engine.choose import choose
    from lm_eval_embednoise.engine.sampling import Sampling

    lm = load("hf-embednoise", {}, options)
    linears = [m for m in lm.model.modules() if isinstance(m, nn.Linear)]
    numbers = sum(m.weight.numel() for m in linears)

    def products(rows: int) -> float:
        inputs = {
            m.in_features: torch.randn(rows, m.in_features).to(lm.model.dtype) for m in linears
        }

        def work() -> None:
            for m in linears:
                m(inputs[m.in_features])

        return best(work)

    def best(work: Any) -> float:
        work()
        times = []
        for _ in range(5):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return min(times)

    with torch.inference_mode():
        together = products(options.rows)
        torch.set_num_threads(1)
        half = options.rows // 2
        logits = torch.randn(half, linears[-1].out_features)
        uniforms = torch.rand(half, dtype=torch.float64)
        choice = best(lambda: choose(logits, Sampling(temperature=0.8), uniforms))
        lane = products(half)
    found = {
        "gflop_per_token": 2 * numbers / 1e9,
        "gflop_per_s": 2 * numbers * options.rows / together / 1e9,
        "tokens_per_s": options.rows / together,
        "lane_products_ms": 1e3 * lane,
        "lane_choice_ms": 1e3 * choice,
    }
    print(
        f"limit: {found['tokens_per_s']:.0f} tokens/s ({found['gflop_per_s']:.0f} GFLOP/s in "
        f"products of {options.rows} rows, {found['gflop_per_token']:.2f} GFLOP a token); a lane "
        f"of {half} rows: products {1e3 * lane:.0f} ms, choice of tokens {1e3 * choice:.1f} ms"
    )
    return found


def real(options: argparse.Namespace) -> dict[str, Any]:
    """A real model: tokens a second of all contenders, and their ratios, in one dtype."""
    names = [*REAL, *(["vllm temperature"] if options.vllm_python else [])]
    at_most = limit(options)
    medians = compare("chat", options.problems, names, options)
    rates = {name: medians[of]["tokens_per_second"] for of, name in REAL.items()}
    vllm = medians.get("vllm temperature", {}).get("tokens_per_second")
    ratios = {
        "ours_over_stock": rates["ours"] / rates["stock"],
        "ours_over_vllm": vllm and rates["ours"] / vllm,
        "noise_over_ours": rates["noise"] / rates["ours"],
        "noise_over_apart": rates["noise"] / rates["apart"],
        "share_of_limit": rates["ours"] / at_most["tokens_per_s"],
    }
    for name, ratio in ratios.items():
        print(f"{options.dtype} {name:18} {'-' if ratio is None else f'{ratio:.2f}'}")
    memory = {name: medians[of]["peak_mib"] for of, name in REAL.items()}
    return {
        "tokens_per_s": {**rates, "vllm": vllm},
        "ratios": ratios,
        "peak_mib": memory,
        "limit": at_most,
    }


def arguments() -> argparse.Namespace:
    """The command line's."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default="short,long,greedy,overhead,where", help="which to run")
    parser.add_argument("--model", metavar="PATH", help="folder of a real model, instead of parts")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="with --model")
    parser.add_argument("--problems", type=int, help="3 short prompts (of long ones, one); 5 chats")
    parser.add_argument("--k", type=int, help=f"{K}; with --model 20")
    parser.add_argument("--rows", type=int, default=ROWS, help="batch size, on all sides")
    parser.add_argument("--tokens", type=int, help="most tokens a sample: 128; with --model 256")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, help="PyTorch's threads; its own choice otherwise")
    parser.add_argument("--vllm-python", metavar="PYTHON", help="of an environment with vLLM")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--prompts", default="short", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = {"problems": 5, "k": 20, "tokens": 256} if options.model else {}
    for name, size in {"problems": 3, "k": K, "tokens": 128, **sizes}.items():
        if getattr(options, name) is None:
            setattr(options, name, size)
    return options


def main() -> None:
    """Run the parts asked for and print them; the last line is JSON."""
    options = arguments()
    if options.child:
        with contextlib.redirect_stdout(sys.stderr):
            found = vllm_child(options) if options.child.startswith("vllm") else child(options)
        print(json.dumps(found))
        return
    import torch
    import transformers

    from lm_eval_embednoise.minicoder import MODEL_DIR

    chat, options.model = bool(options.model), options.model or str(MODEL_DIR)
    report: dict[str, Any] = {
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "threads": options.threads or torch.get_num_threads(),
        "load_before": os.getloadavg()[0],
        "model": Path(options.model).name if chat else "minicoder",
        "dtype": options.dtypes if chat else options.dtype,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        **{name: getattr(options, name) for name in ("k", "rows", "tokens", "repeats", "problems")},
    }
    for name, value in report.items():
        print(f"{name:14} {value}")
    if chat:
        for dtype in options.dtypes.split(","):
            options.dtype = dtype
            report[dtype] = real(options)
        print(json.dumps(report))
        return
    parts = options.parts.split(",")
    report["medians"], report["ratios"] = {}, {}
    for part, contenders in CONTESTS.items():
        if part in parts:
            names = [*contenders]
            if part == "short" and options.vllm_python:
                names.append("vllm temperature")
            kind, problems = ("long", 1) if part == "long" else ("short", options.problems)
            report["medians"][part] = compare(kind, problems, names, options)
            report["ratios"][part] = ratios(kind, report["medians"][part], options)
    if "where" in parts:
        report["where"] = where(options)
    if "overhead" in parts:
        report["overhead"] = overhead(options)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
