"""What a probe looks at: problems, the samples that each method drew of them, and the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lm_eval_embednoise.analysis.mechanism.capture import Given
from lm_eval_embednoise.engine.runner import Runner
from lm_eval_embednoise.models.text import emittable_ids

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lm_eval_embednoise.engine.jobs import Job
    from lm_eval_embednoise.engine.sampling import Sampling
    from lm_eval_embednoise.noise.clean_states import CleanStates
    from lm_eval_embednoise.noise.perturbation import Perturbation
    from lm_eval_embednoise.scoring.records import Record


@dataclass(frozen=True)
class Draw:
    """One sample: what made it, its token ids, and its record as the task scored it.

    Attributes:
        job: its input; `job.problem` and `index` name its streams.
        index: the sample index.
        ids: generated ids, with those that spell a stop string.
        kept: how many of `ids` come before a stop string.
        finish_reason: as in `engine.jobs.Sample`.
        record: see `scoring.records`.
    """

    job: Job
    index: int
    ids: tuple[int, ...]
    kept: int
    finish_reason: str
    record: Record

    @property
    def given(self) -> Given:
        """The row of a capture that has this sample's states."""
        return Given(self.job, self.index, self.ids)


@dataclass(frozen=True)
class Problem:
    """One problem under one method.

    Attributes:
        name: `task_id`, or the place in the task.
        task: the task's name.
        cluster: what it is not independent within; its name otherwise.
        doc: the harness's document.
        draws: its K samples.
        metrics: of the K samples, as the task reports them (`distinct_2`, `unique_correct`, …).
    """

    name: str
    task: str
    cluster: str
    doc: Mapping[str, Any]
    draws: tuple[Draw, ...]
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Arm:
    """One method with its samples; problems are in the same order in every arm."""

    name: str
    perturbation: Perturbation
    sampling: Sampling
    runner: Runner
    problems: tuple[Problem, ...]

    def piece(self, problem: Problem) -> str:
        """The name of what a probe keeps of this method's samples of a problem."""
        return f"{self.name}@{problem.task}@{problem.name}"

    def alone(self, problem: Problem, index: int = 0) -> Given:
        """The row with a sample's input alone, no continuation."""
        draw = problem.draws[index]
        return Given(draw.job, draw.index, ())


@dataclass(frozen=True)
class Material:
    """All that a probe gets.

    Attributes:
        lm: the loaded `hf-embednoise`.
        clean: the model without a perturbation.
        greedy: the clean model's greedy samples, one a problem.
        arms: the methods asked for.
    """

    lm: Any
    clean: Runner
    greedy: Arm
    arms: tuple[Arm, ...]

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The problems, with the greedy sample of each."""
        return self.greedy.problems


def runner_of(lm: Any, perturbation: Perturbation, states: CleanStates | None = None) -> Runner:
    """A loaded model under a perturbation, for captures: its own forward, which has hooks."""
    width = lm.model.get_input_embeddings().weight.shape[0]
    return Runner(
        lm.model,
        perturbation,
        max_length=lm.max_length,
        token_ids=emittable_ids(lm.tokenizer, width),
        blocks=lm.blocks,
        decoder="model",
        states=states,
    )
