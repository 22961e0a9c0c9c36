"""What a run would stumble over, found before any weights are read: `study` and `calibrate` first.

Tasks are loaded and their prompts written; hf-embednoise is made without its weights, and each
method set on it. What is refused here a run would refuse too, in the same words, only later.
"""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_embednoise import early
from lm_eval_embednoise.noise.perturbation import Perturbation
from lm_eval_embednoise.scoring import latex, maths
from lm_eval_embednoise.study.method import StudyError
from lm_eval_embednoise.study.plan import Cell
from lm_eval_embednoise.study.session import build, check_perturbable
from lm_eval_embednoise.study.tasks import Tasks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lm_eval_embednoise.models.weightless import Room
    from lm_eval_embednoise.study.method import Method
    from lm_eval_embednoise.study.plan import Model, Task

_EXAMPLES_SEED = 1234  # the harness's own
_UNHEEDED = "replay"  # its texts are there already, however they were asked for


def rehearse(
    model: Model,
    work: Sequence[tuple[Task, Sequence[Method]]],
    store: Path,
    processes: int = 1,
) -> list[str]:
    """Refuse what a model can't be asked; returns what is worth knowing before it is.

    Args:
        model: which model.
        work: each task with the methods that it will be run with.
        store: folder of the samples, unless the model's arguments name another.
        processes: how many will share the problems.

    Raises:
        ValueError, ImportError, OSError: naming task, method or argument.
    """
    if model.model != _UNHEEDED:
        early.check_prompting((task.name for task, _ in work), model.apply_chat_template)
    tasks = Tasks(model, tuple(task for task, _ in work))
    if model.model in early.STOCK:
        early.check_names(model.gen_kwargs)
    if model.model == early.OURS:
        early.check_store(Path(model.model_args.get("store") or store))
    lm = build(model, weights=False)
    notes: list[str] = []
    for task, methods in work:
        for item in tasks.load(task):
            size = _size(task, item, processes)
            if task.limit is not None and size < task.limit:
                notes.append(f"limit={task.limit}: {item.config.task} has {size} problems here")
            notes += filter(None, [early.few_samples(item.config.repeats)])
            _check_verifier(item)
            requests = requests_of(model, lm, item, size)
            for room, names in _check_methods(lm, task, methods, model, requests).items():
                notes += _said(item.config.task, room, names)
    return list(dict.fromkeys(notes))


def _size(task: Task, item: Any, processes: int) -> int:
    """How many problems are run."""
    there = len(item.eval_docs)
    size = min(task.limit or there, there)
    if size < processes:
        raise StudyError(
            f"--processes {processes}: {item.config.task} has {size} problems here, and every "
            "process needs one"
        )
    return size


def _check_verifier(item: Any) -> None:
    """Refuse problems that only a package that is missing can judge."""
    if any(maths.form_of(doc) is maths.BOXED for doc in item.eval_docs):
        latex.verifier()


def requests_of(model: Model, lm: Any, item: Any, size: int) -> list[Any]:
    """The harness's requests, one a problem; as chats only where the tokenizer is at hand."""
    template = bool(model.apply_chat_template) and not isinstance(lm, type)
    if item.config.num_fewshot is None:
        item.set_config("num_fewshot", 0)
    item.set_fewshot_seed(seed=_EXAMPLES_SEED)
    with redirect_stderr(io.StringIO()):  # the harness's bar
        item.build_all_requests(
            limit=size,
            system_instruction=model.system_instruction,
            apply_chat_template=template,
            fewshot_as_multiturn=model.multiturn,
            chat_template=lm.apply_chat_template if template else None,
            tokenizer_name=lm.tokenizer_name if template else "",
        )
    return [one for one in item.instances if one.request_type == "generate_until"]


def _check_methods(
    lm: Any, task: Task, methods: Sequence[Method], model: Model, requests: Sequence[Any]
) -> dict[Room, list[str]]:
    """Set each method on a model; returns how the prompts fit its context → methods."""
    measured: dict[tuple[int, int], Room] = {}
    found: dict[Room, list[str]] = {}
    for method in methods:
        check_perturbable(lm, model, method)
        if isinstance(lm, type):
            continue
        try:
            lm.set_perturbation(Perturbation.from_args({**method.perturbation, "seed": 0}))
            if requests:
                asked = {**requests[0].args[1], **Cell(model, task, method, 0).gen_kwargs}
                sampling = lm.sampling(asked)
                key = (sampling.max_gen_toks, id(method) if lm.adds else 0)
                if key not in measured:
                    measured[key] = lm.room(requests, sampling)
                found.setdefault(measured[key], []).append(method.name)
        except ValueError as error:
            raise StudyError(f"method {method.name}: {error}") from None
    return found


def _said(task: str, room: Room, methods: Sequence[str]) -> list[str]:
    """What doesn't fit, in words."""
    whose = f"{task} ({', '.join(methods)})"
    said = []
    if room.too_long:
        said.append(
            f"{whose}: {room.too_long} of {room.prompts} prompts leave no room in max_length="
            f"{room.max_length}; their samples count as failures"
        )
    if room.tight:
        said.append(
            f"{whose}: {room.tight} of {room.prompts} prompts leave fewer than max_gen_toks="
            f"{room.max_gen_toks} of max_length={room.max_length}; answers may be cut there"
        )
    return said
