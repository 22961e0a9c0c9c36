"""The clean states of a loaded model: measured once, on packaged texts, and kept in a file."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from lm_eval_embednoise.engine.jobs import Job
from lm_eval_embednoise.engine.sampler import Sampler
from lm_eval_embednoise.engine.sampling import Sampling
from lm_eval_embednoise.minicoder import load_problems
from lm_eval_embednoise.noise.clean_states import (
    CleanStates,
    covariance_roots,
    decode_norms,
    load,
)
from lm_eval_embednoise.noise.perturbation import Perturbation
from lm_eval_embednoise.store.store import digest
from lm_eval_embednoise.written import cache_folder, whole

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(f"lm_eval.{__name__}")
TEXTS_VERSION = 1  # of the texts below
PROMPTS, TOKENS = 4, 64  # prompts of each task that are decoded, tokens of each
POSITIONS = 8192  # of the text whose covariance is taken


def prompts() -> list[str]:
    """The prompts of `sigma_reference=decode`: the first calibration problems, code and maths."""
    code = [p["prompt"] for p in load_problems("minicode", "calibration")[:PROMPTS]]
    maths = [p["question"] + "\n" for p in load_problems("minimath", "calibration")[:PROMPTS]]
    return code + maths


def texts() -> list[str]:
    """The texts of `noise_law=covariance`: calibration problems with their answers, in turn."""
    code = [p["prompt"] + p["canonical_solution"] for p in load_problems("minicode", "calibration")]
    maths = [f"{p['question']}\n{p['answer']}\n" for p in load_problems("minimath", "calibration")]
    return [text for pair in zip(code, maths, strict=False) for text in pair]


def states_of(
    model: Any,
    perturbation: Perturbation,
    encode: Callable[[str], list[int]],
    identify: Callable[[], str],
    file: str | None,
    blocks: str | None = None,
) -> CleanStates | None:
    """The clean states that a perturbation needs: from their file, or measured and kept there.

    Args:
        model: a causal LM in eval mode.
        perturbation: names sites, reference and law.
        encode: makes token ids of a text.
        identify: gives the model's fingerprint, which takes time.
        file: where they are kept; None for a file of the cache folder.
        blocks: dotted name of the decoder blocks' list, if it can't be found.

    Returns:
        None where none are needed.

    Raises:
        ValueError: for a file of another model, or without one of the sites.
    """
    norms, covariance = (
        perturbation.sigma_reference == "decode",
        perturbation.noise_law == "covariance",
    )
    sites = tuple(perturbation.sites)
    if not sites or not (norms or covariance):
        return None
    fingerprint = identify()
    named = digest([fingerprint, sites, norms, covariance, TEXTS_VERSION])
    path = cache_folder("states") / f"{named}.safetensors" if file is None else Path(file)
    if not path.exists():
        log.info("measuring the clean model's hidden states, once: %s", path)
        states = CleanStates(
            fingerprint,
            _norms(model, sites, encode, blocks) if norms else {},
            _roots(model, sites, encode, blocks) if covariance else {},
        )
        about = {"model": fingerprint, "norms": states.norms, "roots": list(states.roots)}
        written = json.dumps({**about, "hash": states.hash})
        with whole(path) as partial:
            save_file(states.roots, partial, {"clean_states": written})
    states = load(path, fingerprint)
    states.check(perturbation)
    return states


def _norms(model: Any, sites: tuple[str, ...], encode: Any, blocks: str | None) -> dict[str, float]:
    ids = [tuple(encode(text)) for text in prompts()]
    jobs = [Job(prompt, f"prompt {number}", (0,)) for number, prompt in enumerate(ids)]
    sampling = Sampling(max_gen_toks=TOKENS)
    sampler = Sampler(model, Perturbation(), sampling, perplexity=False, blocks=blocks)
    answers = [(ids[sample.job], sample.ids) for sample in sampler.run(jobs)]
    return decode_norms(model, sites, answers, blocks)


def _roots(model: Any, sites: tuple[str, ...], encode: Any, blocks: str | None) -> dict[str, Any]:
    chosen, positions = [], 0
    for text in texts():
        if positions < POSITIONS:
            chosen.append(encode(text)[: POSITIONS - positions])
            positions += len(chosen[-1])
    return covariance_roots(model, sites, chosen, blocks)
