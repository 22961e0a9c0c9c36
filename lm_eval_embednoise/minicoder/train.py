"""Trains the embedded model from nothing: `python -m lm_eval_embednoise.minicoder.train`.

The defaults reproduce the published model: same data, same order, same seeds. Floating-point sums
depend on the machine's kernels and thread count, so weights agree closely but not bit for bit.
A run that was stopped continues from its newest checkpoint when started again with the same --work.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from . import MODEL_DIR
from .batches import HeldOut, shard_batches, shard_examples
from .evaluate import accuracy
from .heldout import composition_of, minicode_records, minimath_records
from .muon import Muon
from .network import Network, init_parameters, make_config
from .tokens import train_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator

Schedule = tuple[tuple[int, float], ...]

# The published run: warm-up, plateau, decay (steepened once, at update 1400).
SCHEDULE = "0:0.025 39:1 1000:1 1399:0.50125 1400:0.444444 1600:0"


def parse_schedule(text: str) -> Schedule:
    """Knots `update:factor`, separated by spaces, updates increasing from 0."""
    try:
        knots = tuple((int(u), float(f)) for u, f in (pair.split(":") for pair in text.split()))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list like 0:0 40:1 1600:0") from None
    updates = [u for u, _ in knots]
    if len(knots) < 2 or updates[0] != 0 or updates != sorted(set(updates)):
        raise argparse.ArgumentTypeError(f"the updates in {text!r} must increase from 0")
    return knots


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The training settings, from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=MODEL_DIR, help="where the finished model goes")
    parser.add_argument(
        "--work", type=Path, default=Path("minicoder-run"), help="checkpoints and the log"
    )
    parser.add_argument(
        "--schedule",
        type=parse_schedule,
        default=SCHEDULE,
        help="factor on the rates as update:factor knots, linear in between; the last knot ends it",
    )
    parser.add_argument("--tokens", type=int, default=4096, help="positions per update")
    parser.add_argument("--lr", type=float, default=0.02, help="Muon's rate, for matrices")
    parser.add_argument(
        "--lr-other", type=float, default=0.004, help="AdamW's rate, for embeddings, norms, biases"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--save-every", type=int, default=200, help="updates between checkpoints")
    parser.add_argument("--no-compile", action="store_true", help="run without torch.compile")
    return parser.parse_args(argv)


def held_out() -> HeldOut:
    """What training must never see."""
    code = frozenset(composition_of(record) for record in minicode_records())
    math = frozenset(tuple(record["combination"]) for record in minimath_records())
    return code, math


def make_tokenizer(seed: int, excluded: HeldOut) -> Qwen2Tokenizer:
    """The tokenizer learned from shards that training does not use."""
    texts = [
        text
        for shard in range(4)
        for pair in shard_examples(seed, -1 - shard, excluded)
        for text in pair
    ]
    return train_tokenizer(texts)


def batches_from(
    tokenizer: Qwen2Tokenizer, seed: int, shard: int, skip: int, excluded: HeldOut, tokens: int
) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """Endless `(shard, position, ids, scored)`, starting after `skip` batches of `shard`."""
    while True:
        for i, (ids, scored) in enumerate(shard_batches(tokenizer, seed, shard, excluded, tokens)):
            if i >= skip:
                yield shard, i + 1, ids, scored
        shard, skip = shard + 1, 0


def to_model(parameters: dict[str, Tensor], tokenizer: Qwen2Tokenizer) -> Qwen2ForCausalLM:
    """A float32 transformers model with the weights rounded to bfloat16, as they are published."""
    model = Qwen2ForCausalLM(make_config(len(tokenizer), tokenizer.eos_token_id))
    rounded = {name: t.detach().bfloat16().float() for name, t in parameters.items()}
    missing, unexpected = model.load_state_dict(rounded, strict=False)
    if unexpected or missing != ["lm_head.weight"]:
        raise RuntimeError(f"parameter names do not match transformers': {missing} {unexpected}")
    model.tie_weights()
    end = tokenizer.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=end)
    return model.eval()


def publish(parameters: dict[str, Tensor], tokenizer: Qwen2Tokenizer, out: Path) -> None:
    """Write the model folder: bfloat16 on disk, float32 when loaded with `dtype="auto"`."""
    tokenizer.save_pretrained(out)
    model = to_model(parameters, tokenizer).bfloat16()
    model.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    path = out / "config.json"
    config = json.loads(path.read_text())
    config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2) + "\n")


def rate(step: int, schedule: Schedule) -> float:
    """The learning rates' factor at an update (counted from 0), by linear interpolation."""
    for (left, low), (right, high) in pairwise(schedule):
        if left <= step < right:
            return low + (high - low) * (step - left) / (right - left)
    return schedule[-1][1]


@dataclass
class Run:
    """Everything a run changes: parameters, optimizer states and how far it is."""

    parameters: dict[str, Tensor]
    muon: Muon
    adam: torch.optim.Optimizer
    step: int = 0
    shard: int = 0
    position: int = 0  # batches of the shard already used
    tokens: int = 0
    seconds: float = 0.0

    @classmethod
    def start(cls, config: Qwen2Config, seed: int) -> Run:
        """Fresh parameters: Muon for the blocks' matrices, AdamW for all others."""
        parameters = init_parameters(config, seed)
        inside = {n for n, t in parameters.items() if t.dim() == 2 and "embed" not in n}
        others = [t for name, t in parameters.items() if name not in inside]
        adam = torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        return cls(parameters, Muon([t for n, t in parameters.items() if n in inside]), adam)

    def update(self, loss: Tensor, lr: float, lr_other: float) -> None:
        loss.backward()
        self.muon.step(lr)
        self.adam.param_groups[0]["lr"] = lr_other
        self.adam.step()
        for tensor in self.parameters.values():
            tensor.grad = None
        self.step += 1

    def save(self, folder: Path) -> None:
        state = {
            "progress": [self.step, self.shard, self.position, self.tokens, self.seconds],
            "parameters": {name: t.detach() for name, t in self.parameters.items()},
            "muon": self.muon.buffers,
            "adam": self.adam.state_dict(),
        }
        for name in (f"step{self.step}.pt", "newest.pt"):
            torch.save(state, folder / (name + ".part"))
            (folder / (name + ".part")).replace(folder / name)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.step, self.shard, self.position, self.tokens, self.seconds = state["progress"]
        for name, value in state["parameters"].items():
            self.parameters[name].data.copy_(value)
        self.muon.buffers = state["muon"]
        self.adam.load_state_dict(state["adam"])


def train(args: argparse.Namespace) -> None:
    """Train, report progress on the calibration problems, and publish to `args.out`."""
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    excluded = held_out()
    tokenizer = make_tokenizer(args.seed, excluded)
    config = make_config(len(tokenizer), tokenizer.eos_token_id)
    run = Run.start(config, args.seed)
    if (args.work / "newest.pt").exists():
        run.load(args.work / "newest.pt")
        print(f"continuing after update {run.step}", flush=True)
    network = Network(config, run.parameters, compiled=not args.no_compile)
    source = batches_from(tokenizer, args.seed, run.shard, run.position, excluded, args.tokens)
    started = time.perf_counter() - run.seconds
    losses: list[float] = []
    steps = args.schedule[-1][0]
    while run.step < steps:
        run.shard, run.position, ids, scored = next(source)
        factor = rate(run.step, args.schedule)
        loss = network.loss(ids, scored)
        run.update(loss, args.lr * factor, args.lr_other * factor)
        run.tokens += ids.shape[0] * (ids.shape[1] - 1)
        run.seconds = time.perf_counter() - started
        losses.append(loss.item())
        if run.step % 10 == 0:
            done = f"update {run.step}/{steps} loss {sum(losses) / len(losses):.4f}"
            speed = run.tokens / run.seconds
            print(f"{done} tokens {run.tokens} {speed:.0f}/s {run.seconds:.0f} s", flush=True)
            losses.clear()
        if run.step % args.save_every == 0 or run.step == steps:
            run.save(args.work)
            scores = accuracy(to_model(run.parameters, tokenizer), tokenizer, limit=32)
            print(f"update {run.step} greedy, 32 calibration problems each: {scores}", flush=True)
    publish(run.parameters, tokenizer, args.out)
    scores = accuracy(to_model(run.parameters, tokenizer), tokenizer)
    print(f"wrote {args.out}; greedy on all calibration problems: {scores}", flush=True)


def main(argv: list[str] | None = None) -> None:
    """Train from the command line."""
    train(parse_arguments(argv))


if __name__ == "__main__":
    main()
