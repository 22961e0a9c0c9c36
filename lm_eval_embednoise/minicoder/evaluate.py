"""Greedy accuracy on held-out problems while training: a progress check, not the benchmark.

Programs run in a child process with a time limit and nothing else around them; the package's own
tasks are the careful way to measure.
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import torch

from . import load_problems
from .wordproblems import prompt_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@torch.inference_mode()
def greedy(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[str], batch: int = 32
) -> list[str]:
    """The model's greedy continuations."""
    texts: list[str] = []
    for i in range(0, len(prompts), batch):
        inputs = tokenizer(
            prompts[i : i + batch], return_tensors="pt", padding=True, padding_side="left"
        )
        out = model.generate(**inputs, max_new_tokens=160, do_sample=False)
        texts += tokenizer.batch_decode(
            out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
    return texts


def passes(problem: dict[str, Any], body: str) -> bool:
    """Whether a minicode body passes its problem's tests within two seconds."""
    parts = (problem["prompt"] + body, problem["test"], f"check({problem['entry_point']})")
    program = "\n".join((*parts, "print('passed')"))
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", program], capture_output=True, timeout=2
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0 and done.stdout == b"passed\n"


def final(answer: str) -> str | None:
    """What follows `####`; None if nothing does."""
    _, mark, number = answer.partition("####")
    return number.strip() if mark else None


def accuracy(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    split: str = "calibration",
    limit: int | None = None,
) -> dict[str, float]:
    """Greedy pass@1 on minicode and greedy accuracy on minimath."""
    code = load_problems("minicode", split)[:limit]
    math = load_problems("minimath", split)[:limit]
    bodies = greedy(model, tokenizer, [p["prompt"] for p in code])
    answers = greedy(model, tokenizer, [prompt_of(p["question"]) for p in math])
    right = [final(p["answer"]) == final(text) for p, text in zip(math, answers, strict=True)]
    solved = [passes(p, body) for p, body in zip(code, bodies, strict=True)]
    return {"minicode": sum(solved) / len(solved), "minimath": sum(right) / len(right)}
