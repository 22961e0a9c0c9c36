"""Samples for the probes: chosen problems under several methods, through sampler and store.

The model is loaded once. Samples that the store has are taken from it; records and metrics are the
tasks' own.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from lm_eval_embednoise.analysis.mechanism.material import (
    Arm,
    Draw,
    Material,
    Problem,
    runner_of,
)
from lm_eval_embednoise.engine.sampling import Sampling
from lm_eval_embednoise.models.stored import Ledger
from lm_eval_embednoise.noise.perturbation import Perturbation
from lm_eval_embednoise.study.method import Method, StudyError
from lm_eval_embednoise.study.rehearse import requests_of
from lm_eval_embednoise.study.session import Session

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lm_eval_embednoise.study.plan import Model, Task

GREEDY = Method("greedy", {}, {"do_sample": False})


def gather(
    model: Model,
    tasks: Sequence[Task],
    methods: Sequence[Method],
    store: Path,
    *,
    positions: Sequence[int] | None = None,
    seed: int = 0,
) -> Material:
    """Load the model and draw the samples.

    Args:
        model: an `hf-embednoise`.
        tasks: with the numbers of problems and of samples.
        methods: different names.
        store: folder of the samples.
        positions: places of the problems in each task; None: the first `limit`.
        seed: root of all draws.

    Raises:
        StudyError: a problem that a task doesn't have.
        ValueError: a method that the model can't be asked.
    """
    session = Session(model, tuple(tasks), store)

    def arm(method: Method, k: int | None) -> Arm:
        given = {"seed": seed, **method.perturbation}
        session.lm.set_perturbation(Perturbation.from_args(given), method=method.name)
        sampled = [
            _sampled(session, dataclasses.replace(task, k=k or task.k), method, positions)
            for task in tasks
        ]
        problems = tuple(problem for _, of_task in sampled for problem in of_task)
        runner = runner_of(session.lm, session.lm.perturbation, session.lm.states)
        return Arm(method.name, runner.perturbation, sampled[0][0], runner, problems)

    arms = tuple(arm(method, None) for method in methods)
    greedy = arm(GREEDY, 1)
    return Material(session.lm, greedy.runner, greedy, arms)


def _sampled(
    session: Session, task: Task, method: Method, positions: Sequence[int] | None
) -> tuple[Sampling, list[Problem]]:
    """The chosen problems of a task with their samples, and how these were drawn."""
    lm, model = session.lm, session.model
    (item,) = session.tasks.load(task)
    gen_kwargs = {**method.gen_kwargs, **model.gen_kwargs}
    item.set_config(key="generation_kwargs", value=gen_kwargs, update=True)
    size = len(item.eval_docs)
    chosen = list(range(min(task.limit or size, size)) if positions is None else positions)
    for place in chosen:
        if not 0 <= place < size:
            raise StudyError(f"--problems {place}: {task.name} has problems 0 to {size - 1}")
    wanted = set(chosen)
    requests = requests_of(model, lm, item, max(chosen) + 1)
    requests = [request for request in requests if request.doc_id in wanted]
    item._instances = requests
    k = item.config.repeats
    texts = lm.generate_until([request for request in requests for _ in range(k)])
    sampling = Sampling.from_gen_kwargs(requests[0].args[1], lm.max_gen_toks)
    for number, request in enumerate(requests):
        request.resps = list(texts[number * k : (number + 1) * k])
    item.apply_filters()
    return sampling, [_problem(lm, item, request, sampling, k) for request in requests]


def _problem(lm: Any, item: Any, request: Any, sampling: Sampling, k: int) -> Problem:
    """One problem's samples as the store has them, with their records."""
    jobs = lm._jobs_of(request, sampling, range(k))
    samples = Ledger(lm, sampling, jobs, [request] * len(jobs)).there
    (records,) = request.filtered_resps.values()
    draws = [
        Draw(
            *(jobs[sample.job], sample.index, tuple(sample.ids), sample.kept),
            *(sample.finish_reason, records[sample.index]),
        )
        for sample in sorted(samples, key=lambda sample: sample.index)
    ]
    name = str(request.doc.get("task_id", request.doc_id))
    return Problem(
        name,
        item.config.task,
        str(request.doc.get("cluster", name)),
        request.doc,
        tuple(draws),
        item.process_results(request.doc, [records]),
    )
