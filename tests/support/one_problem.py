"""One short problem, and its samples by the reference: a pass without any cache for every token."""

from __future__ import annotations

from transformers import PreTrainedModel

from lm_eval_embednoise.engine.jobs import Job
from lm_eval_embednoise.engine.sampling import Sampling
from lm_eval_embednoise.noise.perturbation import Perturbation
from tests.support.cacheless import Cacheless

PROMPT = (5, 17, 3, 88, 41)
NEW = 4
DUMMY = 60
PROBLEM = "problem"


def job_of(p: Perturbation, samples: tuple[int, ...] = (0, 1)) -> Job:
    """The problem with what a perturbation adds: soft prompt at its slot, dummies at the end."""
    kind, _, n = p.positions.partition(":")
    dummies = (DUMMY,) * (int(n) if kind == "dummy" else 0)
    at = {"before-assistant": 3, "after-bos": 1}.get(p.rsp_slot, len(PROMPT))  # no chat
    ids = PROMPT[:at] + (0,) * p.rsp + PROMPT[at:] + dummies
    return Job(ids, PROBLEM, samples, clean_ids=PROMPT, soft_start=at if p.rsp else None)


def expected(
    model: PreTrainedModel,
    p: Perturbation,
    std: dict[str, float],
    sample: int,
    sampling: Sampling | None = None,
) -> list[int]:
    """Tokens of one sample of it."""
    return Cacheless(model, p).tokens(job_of(p), sample, std, sampling or Sampling(), NEW)
