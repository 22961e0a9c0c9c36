"""What is promised of every family of decoder-only models: `python -m tests.conformance`.

Each property is checked on a tiny random model; the command writes docs/conformance.md, and
test_conformance.py compares that page with what holds.
"""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from lm_eval_embednoise.engine.families import Decoding, cache_layers
from lm_eval_embednoise.engine.jobs import Job, Stop
from lm_eval_embednoise.engine.sampler import Sampler
from lm_eval_embednoise.engine.sampling import Sampling
from lm_eval_embednoise.noise import streams
from lm_eval_embednoise.noise.context import perturbed
from lm_eval_embednoise.noise.inject import hooked
from lm_eval_embednoise.noise.model_parts import find_blocks, find_embedding
from lm_eval_embednoise.noise.perturbation import Perturbation
from lm_eval_embednoise.noise.reference import References, token_norms
from tests.support.families import FAMILIES, WINDOW, tiny
from tests.test_inject import hook_count

PAGE = Path(__file__).parents[1] / "docs" / "conformance.md"
PROMPTS = [(5, 17, 3, 60, 61, 62, 63, 64, 65), (9, 9, 2, 8, 30), (60, 7)]
NEW = 4
assert len(PROMPTS[0]) > WINDOW and len(PROMPTS[1]) < WINDOW < len(PROMPTS[1]) + NEW
NOISE = Perturbation(sigma=0.5, depth="embed+1", positions="all")


def generate(model: PreTrainedModel, prompts: list[tuple[int, ...]]) -> list[list[int]]:
    """Greedy decoding by transformers; several prompts are padded on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    out = model.generate(
        input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW,
        eos_token_id=None, pad_token_id=0, use_cache=True,
    )  # fmt: skip
    new: list[list[int]] = out[:, width:].tolist()
    return new


def sampled(
    model: PreTrainedModel, p: Perturbation, batch_size: int, samples: tuple[int, ...] = (0, 1)
) -> dict[Any, list[int]]:
    """(problem, sample) → ids, by the sampler; three problems."""
    sampling = Sampling(max_gen_toks=NEW)
    sampler = Sampler(model, p, sampling, Stop(), batch_size=batch_size, perplexity=False)
    jobs = [Job(prompt, f"problem {i}", samples) for i, prompt in enumerate(PROMPTS)]
    return {(s.job, s.index): s.ids for s in sampler.run(jobs)}


def sigma_zero(model: PreTrainedModel) -> bool:
    """Without noise the sampler is transformers' generate, at any batch size."""
    silent = Perturbation(sigma=0, depth="1")
    plain = [generate(model, [prompt])[0] for prompt in PROMPTS]
    for batch_size in (1, 4):
        got = sampled(model, silent, batch_size)
        if any(got[i, s] != ids for i, ids in enumerate(plain) for s in (0, 1)):
            return False
    return True


@torch.no_grad()
def states(model: PreTrainedModel, change: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Vectors at all sites and the logits of a pass, the given sites' vectors replaced."""
    seen: dict[str, torch.Tensor] = {}

    def note(site: str, hidden: torch.Tensor) -> torch.Tensor:
        seen[site] = change.get(site, hidden).clone()
        return seen[site]

    sites = ("embed", *(f"block.{i}" for i in range(len(find_blocks(model)))))
    with hooked(model, sites, note):
        seen["logits"] = model(input_ids=torch.tensor([PROMPTS[0]])).logits
    return seen


def noise_at_its_site(model: PreTrainedModel) -> bool:
    """At each site: ε = std · z there, everything before untouched, everything after follows."""
    clean = states(model, {})
    order = list(clean)
    length = len(PROMPTS[0])
    for unit, depth in (("relative", "embed"), ("norm", "embed"), ("absolute", "1")):
        p = Perturbation(sigma=0.3, sigma_unit=unit, depth=depth)
        ((site, _),) = p.sites.items()
        with perturbed(model, p, [("problem", 7)]):
            noisy = states(model, {})
        key = streams.key_words([streams.stream_key(0, "problem", 7, "noise", site)])
        dim = clean[site].shape[-1]
        expected = {"absolute": 0.3, "norm": 0.3, "relative": 0.3 / dim**0.5}[unit]
        if unit != "absolute":
            entered = References(model, p).norm(PROMPTS[0], "embed")
            assert entered is not None
            expected *= entered
        z = streams.normal(key, torch.arange(length)[None], dim)
        epsilon = noisy[site] - clean[site]
        scale = float(clean[site].abs().max())
        at = order.index(site)
        replayed = states(model, {site: noisy[site]})
        if not (
            torch.allclose(epsilon, expected * z, atol=1e-6 * max(1.0, scale))
            and all(torch.equal(noisy[name], clean[name]) for name in order[:at])
            and all(not torch.allclose(noisy[name], clean[name]) for name in order[at:])
            and all(torch.equal(noisy[name], replayed[name]) for name in order[at:])
        ):
            return False
    return True


def alone_as_in_company(model: PreTrainedModel) -> bool:
    """A noisy row is the same alone, among others, and left-padded in transformers' generate."""
    alone = sampled(model, NOISE, 1, (1,))
    keys = [(f"problem {i}", 1) for i in range(len(PROMPTS))]
    with perturbed(model, NOISE, keys):
        padded = generate(model, PROMPTS)
    company = sampled(model, NOISE, 4)
    return all(padded[i] == ids == company[i, 1] for (i, _), ids in alone.items())


def one_prompt_for_many(model: PreTrainedModel) -> bool:
    """Samples that share a prompt, or its beginning, are those of generate under `perturbed`."""
    prompt, many = PROMPTS[0] + PROMPTS[0], range(5)
    for positions in ("generated", "last:2"):
        p = Perturbation(sigma=0.5, depth="embed+1", positions=positions)
        sampling = Sampling(max_gen_toks=NEW)
        sampler = Sampler(model, p, sampling, Stop(), batch_size=4, perplexity=False)
        got = {s.index: s.ids for s in sampler.run([Job(prompt, "problem", tuple(many))])}
        with perturbed(model, p, [("problem", s) for s in many]):
            if generate(model, [prompt] * len(many)) != [got[s] for s in many]:
                return False
    return True


def clean_likelihood(model: PreTrainedModel) -> bool:
    """A noisy sample's log-likelihood is the clean model's, as one pass over the text gives it."""
    p = Perturbation(sigma=0.5)
    sampler = Sampler(model, p, Sampling(max_gen_toks=NEW), Stop(), batch_size=4)
    for sample in sampler.run([Job(PROMPTS[1], "problem", (0, 1))]):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*PROMPTS[1], *sample.ids]])).logits[0]
        each = logits[len(PROMPTS[1]) - 1 : -1].log_softmax(-1)
        expected = -float(each.gather(1, torch.tensor(sample.ids)[:, None]).sum())
        if sample.nll != pytest.approx(expected, rel=1e-4, abs=1e-4):
            return False
    return True


def hooks_gone(model: PreTrainedModel) -> bool:
    """After success, error and interrupt, in a pass and outside of one."""
    before = hook_count(model)
    for error in (None, RuntimeError, KeyboardInterrupt):

        def fail(*args: Any, error: Any = error) -> None:
            if error:
                raise error

        handle = find_blocks(model)[1].register_forward_pre_hook(fail)
        ended = pytest.raises(error) if error else contextlib.nullcontext()
        with ended, perturbed(model, NOISE, [("problem", 0)]):
            model(input_ids=torch.tensor([PROMPTS[0]]))
        handle.remove()
        if hook_count(model) != before:
            return False
    return True


PROPERTIES = {
    "σ = 0 is generate": sigma_zero,
    "noise at its site": noise_at_its_site,
    "alone = in company": alone_as_in_company,
    "one prompt for many": one_prompt_for_many,
    "clean NLL": clean_likelihood,
    "hooks gone": hooks_gone,
}
WINDOWS = {
    frozenset({"DynamicLayer"}): "",
    frozenset({"DynamicSlidingWindowLayer"}): "all blocks",
    frozenset({"DynamicLayer", "DynamicSlidingWindowLayer"}): "some blocks",
}
DECODING = {
    (Decoding.ROWS, Decoding.ROWS): "refill",
    (Decoding.FLAT_MASK, Decoding.FLAT_MASK): "refill",
    (Decoding.PADDED, Decoding.PADDED): "no refill",
}


@functools.cache
def row(family: str) -> dict[str, str]:
    """A family's row of the page: what it is, and which properties hold."""
    model = tiny(family)
    holds = {name: check(model) for name, check in PROPERTIES.items()}
    blocks = find_blocks(model)
    sampler = Sampler(model, Perturbation(), Sampling())
    windows = frozenset(cache_layers(model))
    ids = torch.arange(3, 60)
    table = find_embedding(model).weight[ids].norm(dim=-1).double()
    factor = (token_norms(model, ids) / table).detach()
    even = bool(factor.std() < 1e-4 * factor.mean())
    return {
        "family": family.replace(":", ", "),
        "class": type(model).__name__,
        "blocks": next(name for name, module in model.named_modules() if module is blocks),
        "embedding": f"× {float(factor.mean()):.3g}" if even else "normalised",
        "window": WINDOWS[windows],
        "decoding": DECODING[sampler.runner.decoding(WINDOW), sampler.runner.decoding(WINDOW + 1)],
        "prompt": "once" if sampler.runner.shares_prompts else "each row",
        **{name: "yes" if held else "no" for name, held in holds.items()},
    }


def page() -> str:
    """docs/conformance.md."""
    rows = [row(family) for family in FAMILIES]
    columns = list(rows[0])
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(cells.values()) for cells in rows]
    table = "\n".join(f"| {line} |" for line in lines)
    return f"""# Conformance: families of models and what holds for each

Written by `python -m tests.conformance`, which builds a tiny random model of every family below
from its configuration in transformers (three blocks, float32, CPU, a window of {WINDOW} positions
where there is one) and checks:

* **σ = 0 is generate**: the sampler's greedy tokens are those of transformers' `generate`, token
  for token, one row at a time and in batches, beyond the window.
* **noise at its site**: in each unit, the vectors at the site move by exactly std · z; nothing
  before the site changes, and what follows is the clean model's answer to the moved vectors.
* **alone = in company**: a noisy sample is the same alone, among other problems' rows, and as a
  row of a left-padded batch in transformers' own `generate` under `perturbed`.
* **one prompt for many**: samples that differ only in generated positions, or from near the
  prompt's end on, run what they share once, and are still what `generate` gives under `perturbed`.
* **clean NLL**: the reported log-likelihood of a noisy sample is that of the clean model.
* **hooks gone**: after success, error and interrupt.

`embedding` is the factor by which the model scales the embedding before its first block; `window`
says which blocks attend to a sliding window or to chunks. `decoding`: with `refill`, a row that
ends makes room for another sample at once; with `no refill`, rows start together, left-padded,
those that end are dropped, and the next batch begins when all have ended. All families outside
the table and all code from outside transformers are decoded without refill. `prompt` says whether
what a perturbation leaves alone of a prompt is kept and attended to once for all its samples.

Refused by name: encoder–decoder models, and models that carry more than keys and values:
state-space models (Mamba, RWKV, xLSTM), linear attention and hybrids (Jamba, Zamba, Bamba,
Falcon-H1, Nemotron-H, RecurrentGemma, Qwen3-Next, Qwen3.5, MiniMax, LFM2), and compressed or
indexed memory (DeepSeek-V3.2, DeepSeek-V4). A family that is neither in the table nor refused is
untested.

{table}
"""


if __name__ == "__main__":
    torch.set_num_threads(1)
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
