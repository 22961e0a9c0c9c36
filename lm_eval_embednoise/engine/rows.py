"""A sample under way, and what the samples of one job have in common while they are decoded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from lm_eval_embednoise.engine.attention import Shared
from lm_eval_embednoise.engine.slots import Entries

if TYPE_CHECKING:
    from lm_eval_embednoise.engine.sampler import Job


@dataclass
class Row:
    """A sample under way.

    Attributes:
        job: index of its job.
        index: its sample index.
        copies: all sample indices it stands for (several when their work is identical).
        limit: most tokens it may generate.
        ids: generated so far.
        kept: how many of `ids` stand before a stop string, once there is one.
        nlls: clean negative log-likelihood of each of `ids`, where decoding itself is clean.
        finish_reason: why it ended, as in `Sample`; empty while it hasn't.
        rho: site → measured ‖ε‖/‖h‖.
        seconds: share of the wall time.
        base: own columns that its prompt takes.
        drawn: generated positions whose noise is drawn.
    """

    job: int
    index: int
    copies: tuple[int, ...]
    limit: int
    ids: list[int] = field(default_factory=list)
    kept: int | None = None
    nlls: list[float] = field(default_factory=list)
    finish_reason: str = ""
    rho: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    base: int = 0
    drawn: int = 0

    @property
    def entered(self) -> int:
        """Own columns that hold its entries: all but that of its latest token, still to come."""
        return self.base + len(self.ids) - 1

    @property
    def text_ids(self) -> tuple[int, ...]:
        """The generated ids without those that spell the stop string."""
        return tuple(self.ids[: self.kept])


@dataclass
class Prepared:
    """What the rows of one job have in common, made when the first of them joins.

    Attributes:
        job: the job.
        place: sample index → its row in the tensors below.
        uniforms: float64 [samples, tokens] for sampling, or None.
        keys: site → int64 [samples, 2], noise streams.
        std: site → standard deviation per coordinate.
        head: positions of the prompt that were prefilled once for all rows, or are about to be.
        entries: their keys and values.
        shared: the same as rows see them that keep none of their own.
        logits: float32 [1, vocab] after them.
    """

    job: Job
    place: dict[int, int]
    uniforms: Tensor | None
    keys: dict[str, Tensor]
    std: dict[str, float]
    head: int
    entries: Entries | None = None
    shared: list[Shared] = field(default_factory=list)
    logits: Tensor | None = None
