"""What goes into the engine and comes out of it: jobs, samples, when they end; rows under way.

A job is one problem and the samples wanted of it. A row is a sample being decoded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Job:
    """One problem: its prompt, its name in the random streams, and the samples wanted of it.

    Attributes:
        prompt_ids: the input vectors' token ids.
        problem: the name.
        samples: the sample indices.
        clean_ids: the prompt with nothing added to it, which the clean log-likelihood and the
            norm m refer to; None where that is `prompt_ids`.
        soft_start: position of the first placeholder that a random soft prompt takes.
        too_long: what was added to the prompt leaves no room for any of it.
    """

    prompt_ids: tuple[int, ...]
    problem: str
    samples: tuple[int, ...]
    clean_ids: tuple[int, ...] | None = None
    soft_start: int | None = None
    too_long: bool = False

    @property
    def clean(self) -> tuple[int, ...]:
        """The prompt with nothing added to it."""
        return self.prompt_ids if self.clean_ids is None else self.clean_ids

    def soft_starts(self, rows: int, device: torch.device) -> Tensor | None:
        """`soft_start` for rows of this job, int64 [rows]."""
        if self.soft_start is None:
            return None
        return torch.full((rows,), self.soft_start, device=device)


@dataclass
class Sample:
    """One finished sample.

    Attributes:
        job: index of the job in the call.
        index: the sample index, as in `Job.samples`.
        ids: generated token ids without the end token, with those that spell the stop string.
        kept: how many of `ids` are wholly before the stop string; all of them without one.
        finish_reason: "end_token", "stop_string", "length", "prompt_too_long", or "numeric": the
            logits after `ids` were not numbers, so no token could be chosen.
        nll: summed negative log-likelihood of `ids[:kept]` under the clean model in nats; None if
            unasked, or undefined (see `likelihood.unscorable`).
        rho: site → measured ‖ε‖/‖h‖, mean over the perturbed positions.
        std: site → standard deviation of the noise per coordinate, before the schedule.
        seconds: share of the wall time; 0 for a copy of identical work.
    """

    job: int
    index: int
    ids: list[int]
    kept: int
    finish_reason: str
    nll: float | None = None
    rho: dict[str, float] = field(default_factory=dict)
    std: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Stop:
    """When a row ends.

    Attributes:
        end_tokens: ids that end a text.
        may_end: bool [vocab], tokens that can complete a stop string; the others skip the check.
        kept: given the generated ids and the clean prompt's, how many of the first are before a
            stop string, or None without one.
    """

    end_tokens: frozenset[int] = frozenset()
    may_end: Tensor | None = None
    kept: Callable[[list[int], tuple[int, ...]], int | None] | None = None


@dataclass
class Row:
    """A sample under way.

    Attributes:
        job: index of its job.
        index: its sample index.
        copies: all sample indices it serves (several when their work is identical).
        limit: most tokens it may generate.
        ids: generated so far.
        kept: how many of `ids` are before a stop string, once there is one.
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
