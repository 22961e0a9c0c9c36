"""Is σ = 0 the plain model? `python -m tests.company MODEL`: text alone against text in company.

Short prompts, each decoded greedily up to a line's end: alone, by transformers' `generate`, and
all together by `hf-embednoise` at several batch sizes. MODEL is what `pretrained=` takes; without
one it is the embedded model. Texts that differ are near ties where rounding can close the gap
between the plain model's two best tokens, and faults otherwise.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from typing import Any

import torch
from lm_eval.api.instance import Instance
from transformers import GenerationConfig

from lm_eval_embednoise.models.hf_embednoise import HFEmbedNoise

NEW = 24
TIE = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}
PROMPTS = (
    "Q: What is 2+2?\nA: 4\nQ: What is 3+3?\nA: 6",  # its first token is the line's end
    "Q: Name the capital of France.\nA:",
    "Q: Name the largest planet.\nA:",
    "The days of the week are Monday,",
    "def add(a, b):\n    return",
    "import os\nimport",
    "1, 2, 3, 4, 5,",
    "Once upon a time",
    "x = [1, 2, 3]\nprint(len(x))  # prints",
    "Translate to French: good morning =",
    "for i in range(10):\n    print(",
    "Water boils at",
)


def together(lm: HFEmbedNoise, rows: int) -> list[str]:
    """The texts of all prompts, decoded in batches of so many rows."""
    lm._rows = rows
    gen_kwargs = {"until": ["\n"], "do_sample": False, "max_gen_toks": NEW}
    requests = [
        Instance("generate_until", {}, (prompt, gen_kwargs), 0, metadata=("company", number, 1))
        for number, prompt in enumerate(PROMPTS)
    ]
    return [str(text) for text in lm.generate_until(requests, disable_tqdm=True)]


@torch.no_grad()
def alone(lm: HFEmbedNoise, prompt: str) -> tuple[str, list[float]]:
    """A prompt's text by transformers, and how far each token was ahead of the second best."""
    ids = torch.tensor([lm.tok_encode(prompt)], device=lm.device)
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=NEW,
        eos_token_id=lm.model.generation_config.eos_token_id,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    lm.model.generation_config, before = config, lm.model.generation_config
    try:
        found: Any = lm.model.generate(ids, attention_mask=torch.ones_like(ids))
    finally:
        lm.model.generation_config = before
    best = [logits[0].float().topk(2).values for logits in found.logits]
    text = lm.tokenizer.decode(found.sequences[0, ids.shape[1] :], skip_special_tokens=True)
    return text.partition("\n")[0], [float(first - second) for first, second in best]


def main() -> int:
    """Compare; the exit status is 1 if a text differs that no near tie explains."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.company",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", nargs="?", help="as pretrained= takes it")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    lm = HFEmbedNoise(args.model, device="cpu", dtype=args.dtype, batch_size=1, perplexity=False)
    plain = [alone(lm, prompt) for prompt in PROMPTS]
    counts = {"texts": 0, "equal": 0, "near ties": 0, "faults": 0}
    for rows in (1, 3, 7, 64):
        texts = together(lm, rows)
        for prompt, text, (right, gaps) in zip(PROMPTS, texts, plain, strict=True):
            tie = min(gaps) < TIE[lm.model.dtype]
            how = "equal" if text == right else "near ties" if tie else "faults"
            counts["texts"] += 1
            counts[how] += 1
            if text != right:
                print(f"{how}, {rows} rows, {prompt!r}: {text!r}, alone {right!r}")
    print(json.dumps({"model": args.model or "minicoder", "dtype": args.dtype, **counts}))
    return 1 if counts["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
