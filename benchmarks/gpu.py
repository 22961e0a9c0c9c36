"""What a GPU gives: are its samples the right ones, and how fast are they beside the stock class.

Needs PyTorch, transformers and this repository; no harness, no network, no weights but the embedded
ones: the large models have published shapes (benchmarks/shapes) and random weights. Every part runs
in a process of its own within a time limit, so that one that fails leaves the others' figures, and
the file of results is written after each.

* draws: the random streams on the device against the CPU's, bit for bit.
* equal: on the embedded model, σ = 0 greedy against `generate` run by itself, and sampled and noisy
  texts against the CPU's.
* differential: random cases against a pass without any cache (tests/differential.py).
* speed:<shape>: 100 rows behind one prompt, temperature 0.8, in turn: `generate` (what the stock
  class calls) and ours, plain and with noise; decode steps with noise on and off; the share of the
  measured memory bandwidth that a step's weights and entries take; what a step's time is spent on.
* compiled:<shape>: the same with `compile=true`.
* flash, int8: Flash Attention 2 and bitsandbytes, where installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lm_eval_embednoise.engine.jobs import Job, Sample, Stop
from lm_eval_embednoise.engine.sampler import Sampler
from lm_eval_embednoise.engine.sampling import Sampling
from lm_eval_embednoise.minicoder import MODEL_DIR, load_problems
from lm_eval_embednoise.noise import perturb, streams
from lm_eval_embednoise.noise.perturbation import Perturbation

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
SHAPES = HERE / "shapes"
LIMITS = {"draws": 40, "equal": 90, "differential": 100, "speed": 150, "compiled": 120}
LIMIT = 60  # seconds, of other parts
DIFFERENTIAL = 45  # seconds of cases
ON_CPU = 6  # times as long there
PROMPT, TOKENS, ROWS = 200, 128, 100
STEPS = 48
TEMPERATURE = {"temperature": 0.8}
NOISE = {"sigma": 0.1, "depth": "5"}
CONTENDERS: dict[str, dict[str, Any]] = {  # name → perturbation; the clean log-likelihood is scored
    "ours temperature": {},
    "ours noise on the prompt": NOISE,
    "ours noise everywhere": {**NOISE, "positions": "all"},
}
UNSCORED = "ours noise everywhere, no perplexity"


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def timed(device: str, work: Callable[[], Any]) -> float:
    """Seconds of one call."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


# ── Are they the right samples? ───────────────────────────────────────────────────────────────────


def draws(options: argparse.Namespace) -> dict[str, Any]:
    """The streams on the device against the CPU's."""
    keys = streams.key_words(streams.stream_key(0, "p", s, "noise", "embed") for s in range(100))
    positions = torch.arange(300).expand(100, -1)
    far = (keys.to(options.device), positions.to(options.device))
    figures: dict[str, Any] = {
        "uniforms_equal": torch.equal(streams.uniform(keys, positions), streams.uniform(*far).cpu())
    }
    here, there = streams.normal(keys, positions, 896), streams.normal(*far, 896).cpu()
    apart = (here.view(torch.int32).long() - there.view(torch.int32).long()).abs()
    figures["normals"] = here.numel()
    figures["normals_not_equal"] = int((apart > 0).sum())
    figures["normals_most_units_apart"] = int(apart.max())
    noisy = Perturbation(sigma=0.1)
    std = torch.full((100, 300), 0.1, dtype=torch.float64)
    same = perturb.draw(noisy, keys, positions, std, 64)
    other = perturb.draw(noisy, *far, std.to(options.device), 64).cpu()
    figures["noise_largest_difference"] = float((same - other).abs().max())
    return figures


def equal(options: argparse.Namespace) -> dict[str, Any]:
    """The embedded model's samples on the device: against `generate`, and against the CPU's."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    models = {
        device: AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
        .eval()
        .to(device)
        for device in {"cpu", options.device}
    }
    model = models[options.device]
    prompts = [
        tuple(tokenizer.encode(problem["prompt"])) for problem in load_problems("minicode")[:20]
    ]
    end = model.generation_config.eos_token_id
    stop = Stop(frozenset([end] if isinstance(end, int) else end))

    def ours(where: str, k: int, perturbation: dict[str, Any], sampling: dict[str, Any]) -> Any:
        soft = perturbation.get("rsp", 0)
        jobs = [
            Job(
                ids + (0,) * soft,
                f"p{number}",
                tuple(range(k)),
                clean_ids=ids,
                soft_start=len(ids) if soft else None,
            )
            for number, ids in enumerate(prompts)
        ]
        settings = Sampling(max_gen_toks=64, **sampling)
        sampler = Sampler(
            models[where], Perturbation(**perturbation), settings, stop, batch_size=ROWS
        )
        return {(s.job, s.index): s for s in sampler.run(jobs)}

    plain, same = ours(options.device, 1, {}, {}), 0
    for number, ids in enumerate(prompts[:8]):
        given = torch.tensor([ids], device=options.device)
        with torch.inference_mode():
            out = model.generate(given, do_sample=False, max_new_tokens=64, pad_token_id=0)
        right = [token for token in out[0, len(ids) :].tolist() if token not in stop.end_tokens]
        same += right == plain[number, 0].ids
    figures: dict[str, Any] = {"greedy_equal_to_generate": f"{same} of {len(prompts[:8])}"}
    cases: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "temperature": ({}, TEMPERATURE),
        "nucleus": ({}, {**TEMPERATURE, "top_p": 0.95}),
        "noise": ({"sigma": 0.3}, {}),
        "noise_everywhere": ({"sigma": 0.1, "depth": "5", "positions": "all"}, TEMPERATURE),
        "soft_prompt": ({"rsp": 8}, {}),
    }
    for name, (perturbation, sampling) in cases.items():
        here, there = (
            ours(device, 8, perturbation, sampling) for device in ("cpu", options.device)
        )
        same = sum(here[at].ids == there[at].ids for at in here)
        figures[f"{name}_equal_to_cpu"] = f"{same} of {len(here)}"
        figures[f"{name}_nll_most_apart"] = max(
            (_apart(here[at], there[at]) for at in here if here[at].ids == there[at].ids),
            default=0.0,
        )
    return figures


def _apart(here: Sample, there: Sample) -> float:
    return abs((here.nll or 0.0) - (there.nll or 0.0))


def differential(options: argparse.Namespace) -> dict[str, Any]:
    """Random cases on the device."""
    command = [sys.executable, "-m", "tests.differential", "--device", options.device]
    command += ["--minutes", str(DIFFERENTIAL / 60), "--seed", "16"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout[-6000:], done.stderr[-2000:], file=sys.stderr)
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


# ── How fast are they? ────────────────────────────────────────────────────────────────────────────


def random_model(shape: str, device: str) -> Any:
    """Random weights in a published shape; they never end a text."""
    config = AutoConfig.from_pretrained(SHAPES / f"{shape}.json")
    dtype = torch.bfloat16 if device == "cuda" else torch.float32  # which CPUs often emulate
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    model.generation_config.eos_token_id = None
    return model


def ours(
    model: Any, perturbation: dict[str, Any], tokens: int = TOKENS, **settings: Any
) -> Callable[[], list[Sample]]:
    """A run of 100 samples of one prompt by our sampler."""
    sampling = Sampling(max_gen_toks=tokens, **TEMPERATURE)
    sampler = Sampler(model, Perturbation(**perturbation), sampling, batch_size=ROWS, **settings)
    job = Job(tuple(prompt(model)), "p", tuple(range(ROWS)))
    return lambda: list(sampler.run([job]))


def prompt(model: Any) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (PROMPT,), generator=generator)
    return [int(token) for token in ids]


def stock(model: Any, tokens: int = TOKENS) -> Callable[[], Tensor]:
    """The same by `generate`, as the stock class calls it: every row with the whole prompt."""
    ids = torch.tensor([prompt(model)] * ROWS, device=model.device)

    def work() -> Tensor:
        with torch.inference_mode():
            out: Tensor = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, pad_token_id=0,
                max_new_tokens=tokens, use_cache=True, **TEMPERATURE,
            )  # fmt: skip
        return out

    return work


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of all contenders, in turn; then what a decode step costs."""
    shape, device = options.shape, options.device
    begun = time.perf_counter()
    model = random_model(shape, device)
    figures: dict[str, Any] = {"load_seconds": time.perf_counter() - begun}
    everywhere = CONTENDERS["ours noise everywhere"]
    contenders: dict[str, Callable[[], Any]] = {
        "stock temperature": stock(model),
        **{name: ours(model, given) for name, given in CONTENDERS.items()},
        UNSCORED: ours(model, everywhere, perplexity=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    peak: dict[str, float] = {}
    for repeat in range(1 + options.repeats):
        if repeat > 1 and time.perf_counter() - begun > 0.5 * LIMITS["speed"]:
            break
        for name, work in contenders.items():
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            taken = timed(device, work)
            print(f"  {name}: {taken:.2f} s", file=sys.stderr)
            if repeat:  # the first time every shape is new to the libraries
                seconds[name].append(taken)
            if device == "cuda":
                peak[name] = torch.cuda.max_memory_allocated() / 2**30
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    figures["repeats"] = len(seconds["stock temperature"])
    figures["seconds"] = seconds
    figures["tokens_per_second"] = {n: ROWS * TOKENS / m for n, m in medians.items()}
    figures["ratio_to_stock"] = {n: medians["stock temperature"] / m for n, m in medians.items()}
    figures["peak_gib"] = peak
    figures.update(steps(model, device))
    figures.update(bandwidth(model, device, figures["step_ms"]))
    figures["profile"] = profile(model, device)
    return figures


def compiled(options: argparse.Namespace) -> dict[str, Any]:
    """`compile=true` against not, and whether its samples are the same."""
    model, device = random_model(options.shape, options.device), options.device
    eager, fused = ours(model, {}), ours(model, {}, compiled=True)
    figures: dict[str, Any] = {"first_run_seconds": timed(device, fused)}
    times: dict[str, list[float]] = {"eager": [], "compiled": []}
    for _ in range(options.repeats):
        times["eager"].append(timed(device, eager))
        times["compiled"].append(timed(device, fused))
    figures |= {name: ROWS * TOKENS / statistics.median(t) for name, t in times.items()}
    figures["compiled_over_eager"] = figures["compiled"] / figures["eager"]
    alike = {s.index: s.ids for s in eager()}
    texts = {s.index: s.ids for s in fused()}
    # Random weights in bfloat16 are near ties throughout: how far do equal texts reach?
    reach = [
        next((n for n, (a, b) in enumerate(zip(alike[i], texts[i], strict=True)) if a != b), TOKENS)
        for i in alike
    ]
    figures["tokens_until_they_part"] = statistics.median(reach)
    return figures


def steps(model: Any, device: str) -> dict[str, float]:
    """A decode step of 100 rows with noise off and on, and prefills: milliseconds."""
    settings: dict[str, tuple[dict[str, Any], int]] = {
        "off": ({}, STEPS),
        "embed": ({"sigma": 0.1, "positions": "generated"}, STEPS),
        "embed+5": ({"sigma": 0.1, "positions": "generated", "depth": "embed+5"}, STEPS),
        "shared prefill": ({}, 1),
        "noisy prefill": (NOISE, 1),
    }
    work = {
        name: ours(model, given, tokens, perplexity=False)
        for name, (given, tokens) in settings.items()
    }
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(3):
        for name, run in work.items():
            times[name].append(timed(device, run))
    median = {name: 1e3 * statistics.median(seconds) for name, seconds in times.items()}
    base = median["shared prefill"]
    off = (median["off"] - base) / (STEPS - 1)
    return {
        "step_ms": off,
        **{
            f"noise_at_{name}_a_step": (median[name] - base) / (STEPS - 1) / off - 1
            for name in ("embed", "embed+5")
        },
        "shared_prefill_ms": base,
        "noisy_prefill_ms": median["noisy prefill"],
    }


def bandwidth(model: Any, device: str, step_ms: float) -> dict[str, float]:
    """The share of the measured memory bandwidth that a step's weights and entries take."""
    source = torch.empty(2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    seconds = timed(device, lambda: [target.copy_(source) for _ in range(20)]) / 20
    measured = 2 * source.numel() / seconds
    weights = sum(p.numel() for p in model.parameters())
    if not model.config.tie_word_embeddings:
        weights -= model.get_input_embeddings().weight.numel()  # a row for each token, no more
    layer = model.model.layers[0].self_attn
    heads = model.config.num_key_value_heads * layer.head_dim
    entries = model.config.num_hidden_layers * 2 * heads * (ROWS * STEPS / 2 + PROMPT)
    size = model.dtype.itemsize
    return {
        "bandwidth_gb_per_second": measured / 1e9,
        "least_step_ms": 1e3 * (weights + entries) * size / measured,
        "share_of_bandwidth": (weights + entries) * size / measured / (step_ms / 1e3),
    }


def profile(model: Any, device: str) -> dict[str, Any]:
    """A prefill and 16 steps: the kernels' time against wall time, and the longest kernels."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as watched

    if device != "cuda":
        return {}
    run = ours(model, {}, 17, perplexity=False)
    run()
    wall = timed(device, run)
    with watched(activities=[ProfilerActivity.CUDA]) as seen:
        run()
        torch.cuda.synchronize()
    events = sorted(seen.key_averages(), key=lambda e: -e.self_device_time_total)
    busy = sum(e.self_device_time_total for e in events) / 1e6
    return {
        "wall_ms": 1e3 * wall,
        "kernels_ms": 1e3 * busy,
        "kernels": sum(e.count for e in events),
        "longest_ms": {
            e.key[:80]: [round(e.self_device_time_total / 1e3, 2), e.count] for e in events[:12]
        },
    }


# ── What isn't always there ───────────────────────────────────────────────────────────────────────


def flash(options: argparse.Namespace) -> dict[str, Any]:
    """Flash Attention 2 for the prompts: texts against those with PyTorch's attention."""
    if importlib.util.find_spec("flash_attn") is None:
        return {"absent": "flash_attn is not installed"}
    model = random_model(options.shape, options.device)
    there = {s.index: s.ids for s in ours(model, NOISE, 16)()}
    model.set_attn_implementation("flash_attention_2")
    here = {s.index: s.ids for s in ours(model, NOISE, 16)()}
    return {"first_tokens_equal": sum(here[i][:1] == there[i][:1] for i in here)}


def int8(options: argparse.Namespace) -> dict[str, Any]:
    """The embedded model in int8: σ = 0 greedy against its own `generate`."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return {"absent": "bitsandbytes is not installed"}
    from transformers import BitsAndBytesConfig

    model = AutoModelForCausalLM.from_pretrained(
        MODEL_DIR, quantization_config=BitsAndBytesConfig(load_in_8bit=True), dtype=torch.float16
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    same, prompts = 0, [p["prompt"] for p in load_problems("minicode")[:10]]
    end = model.generation_config.eos_token_id
    stop = Stop(frozenset([end] if isinstance(end, int) else end))
    for text in prompts:
        ids = tokenizer.encode(text)
        given = torch.tensor([ids], device=model.device)
        with torch.inference_mode():
            out = model.generate(given, do_sample=False, max_new_tokens=48, pad_token_id=0)
        right = [token for token in out[0, len(ids) :].tolist() if token not in stop.end_tokens]
        job = Job(tuple(ids), "p", (0,))
        (sample,) = Sampler(model, Perturbation(), Sampling(max_gen_toks=48), stop).run([job])
        same += sample.ids == right
    return {"greedy_equal_to_generate": f"{same} of {len(prompts)}"}


# ── The command ───────────────────────────────────────────────────────────────────────────────────

PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "draws": draws,
    "equal": equal,
    "differential": differential,
    "speed": speed,
    "compiled": compiled,
    "flash": flash,
    "int8": int8,
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks/gpu.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="which to run (default: all)")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument(
        "--shapes", default="qwen2.5-coder-7b,qwen2.5-coder-32b", help="of the timed models"
    )
    parser.add_argument("--repeats", type=int, default=3, help="of every timing, while time allows")
    parser.add_argument("--minutes", type=float, default=8.0, help="of all parts together")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="file of results")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--shape", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.parts.split(",")) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    for shape in options.shapes.split(","):
        if not (SHAPES / f"{shape}.json").is_file():
            known = ", ".join(sorted(path.stem for path in SHAPES.glob("*.json")))
            parser.error(f"no shape {shape}; there are {known}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch sees no CUDA device; --device cpu runs every part on a CPU")
    return options


def conditions(options: argparse.Namespace) -> dict[str, Any]:
    """What the figures hold for."""
    return {
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "rows": ROWS,
        "prompt": PROMPT,
        "tokens": TOKENS,
        "dtype": "float32; bfloat16 for shapes on a GPU",
    }


def main() -> int:
    options = arguments()
    if options.part:
        print(json.dumps(PARTS[options.part](options)))
        return 0
    report: dict[str, Any] = {"conditions": conditions(options), "parts": {}}
    began = time.monotonic()
    shapes = options.shapes.split(",")
    wanted: list[tuple[str, str]] = []
    for part in options.parts.split(","):
        several = {"speed": shapes, "compiled": shapes[:1]}.get(part)
        wanted += [(part, shape) for shape in several or shapes[:1]]
    for part, shape in wanted:
        name = f"{part}:{shape}" if part in ("speed", "compiled") else part
        left = 60 * options.minutes - (time.monotonic() - began)
        start = time.monotonic()
        limit = LIMITS.get(part, LIMIT) * (1 if options.device == "cuda" else ON_CPU)
        figures = run_part(part, shape, min(limit, left), options)
        report["parts"][name] = {"seconds": round(time.monotonic() - start, 1), **figures}
        print(json.dumps({name: report["parts"][name]}, indent=1), flush=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))
    return int(any("failed" in figures for figures in report["parts"].values()))


def run_part(part: str, shape: str, limit: float, options: argparse.Namespace) -> dict[str, Any]:
    """One part in a process of its own: what it found, or how it failed."""
    if limit < 5:
        return {"failed": "no time was left for it"}
    command = [sys.executable, __file__, "--part", part, "--shape", shape]
    command += ["--device", options.device, "--repeats", str(options.repeats)]
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=False, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"it ran longer than {limit:.0f} s"}
    if done.returncode:
        return {"failed": f"exit status {done.returncode}"}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


if __name__ == "__main__":
    sys.exit(main())
