"""What the model would draw at each early step of a sample, beside what the clean model would.

Both are read off one pass over the sample's own text, the first with its noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lm_eval_embednoise.analysis.mechanism.capture import Given, batches, capture
from lm_eval_embednoise.engine.jobs import Job

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lm_eval_embednoise.analysis.mechanism.material import Arm, Draw, Material, Problem
    from lm_eval_embednoise.analysis.mechanism.probes import Arrays
    from lm_eval_embednoise.engine.runner import Runner


def early_steps(material: Material, arm: Arm, problem: Problem, steps: int) -> Arrays:
    """Compare a problem's samples with the clean model, step by step.

    Returns:
        Each float32 [samples, steps], NaN behind a sample's end. `entropy` and `top`: of the
        distribution that the token is drawn from, at the method's temperature (1 for greedy),
        before truncation; in nats, and the largest probability. `kl`: its Kullback-Leibler
        divergence from the clean model's at temperature 1, in nats. `rank`: how many tokens the
        clean model finds likelier than the one taken.
    """
    shape = (len(problem.draws), steps)
    found = {name: np.full(shape, np.nan, np.float32) for name in ("entropy", "top", "kl", "rank")}
    temperature = arm.sampling.temperature or 1.0
    noisy = _logits(arm.runner, [draw.given for draw in problem.draws], steps)
    clean = _logits(material.clean, [_plain(draw) for draw in problem.draws], steps)
    for place, (draw, ours, theirs) in enumerate(zip(problem.draws, noisy, clean, strict=True)):
        count = min(len(draw.ids), steps)
        if not count:
            continue
        log_q = (ours[:count] / temperature).log_softmax(-1)
        log_p = theirs[:count].log_softmax(-1)
        taken = log_p.gather(1, torch.tensor(draw.ids[:count])[:, None])
        for name, values in measures(log_q, log_p).items():
            found[name][place, :count] = values
        found["rank"][place, :count] = (log_p > taken).sum(-1)
    return found


def measures(log_q: Tensor, log_p: Tensor) -> dict[str, Tensor]:
    """Entropy and largest probability of q, and KL(q ‖ p), in nats.

    Args:
        log_q: log-probabilities, [..., vocab].
        log_p: the same of the clean model.
    """
    q = log_q.exp()
    zero = torch.zeros(())
    return {
        "entropy": -torch.where(q > 0, q * log_q, zero).sum(-1),
        "top": q.max(-1).values,
        "kl": torch.where(q > 0, q * (log_q - log_p), zero).sum(-1),
    }


def _plain(draw: Draw) -> Given:
    """The sample's text behind the prompt with nothing added to it."""
    return Given(Job(draw.job.clean, draw.job.problem, (draw.index,)), draw.index, draw.ids)


def _logits(runner: Runner, given: Sequence[Given], steps: int) -> Iterator[Tensor]:
    """Logits of each row's first tokens, float32 [steps, vocab], in the rows' order."""
    start = 0
    while start < len(given):  # rows of one pass have prompts of one length
        length = given[start].prompt_length
        alike = start
        while alike < len(given) and given[alike].prompt_length == length:
            alike += 1
        for part in batches(runner, given[start:alike], logits=steps):
            width = max(row.length for row in part)
            at = [min(length - 1 + step, width - 1) for step in range(steps)]
            logits = capture(runner, part, {}, at)
            assert logits is not None
            yield from logits.float().cpu()
        start = alike
