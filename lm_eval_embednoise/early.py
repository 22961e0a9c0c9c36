"""Checks of a run before a model is loaded: what would fail in its middle or at its end."""

from __future__ import annotations

import fnmatch
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_embednoise.checks import suggest
from lm_eval_embednoise.engine.sampling import Sampling
from lm_eval_embednoise.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

OURS = "hf-embednoise"
STOCK = ("hf", "hf-auto", "huggingface")
_TAKEN_OUT = ("until", "max_gen_toks", "max_tokens", "max_completion_tokens")  # by the harness
_SUFFIXES = ("_k1", "_k10", "_k20", "_500")


def check_run(
    *,
    model: str | None,
    model_args: Mapping[str, Any],
    gen_kwargs: Mapping[str, Any],
    tasks: Iterable[str],
    output_path: str | Path | None = None,
    use_cache: Any = None,
    apply_chat_template: Any = False,
) -> None:
    """Refuse arguments with which a run of the harness would fail, or lose its results.

    Raises:
        ValueError: naming the argument, and what to give instead.
    """
    if output_path:
        check_writable("--output_path", Path(output_path))
    if model != "replay":
        check_prompting(tasks, apply_chat_template)
    if model in STOCK and _ours(tasks):
        check_names(gen_kwargs)
    if model != OURS:
        return
    if use_cache:
        raise ValueError(
            "--use_cache is not supported by hf-embednoise: its key holds neither the noise nor "
            "the sample index; use --model_args store=DIR instead, which keeps every sample"
        )
    from lm_eval_embednoise.models.arguments import check_arguments

    check_arguments(model_args)
    check_sampling(gen_kwargs)


def check_sampling(gen_kwargs: Mapping[str, Any]) -> None:
    """Refuse generation arguments that hf-embednoise can't serve.

    Raises:
        ValueError: naming the argument.
    """
    given = dict(gen_kwargs)
    if given and "do_sample" not in given and "temperature" not in given:
        given["do_sample"] = True  # the task may set it; only what the user gave is checked here
    if given.get("do_sample") is True:
        given.setdefault("temperature", 1.0)
    Sampling.from_gen_kwargs(given)


def few_samples(k: int | None) -> str | None:
    """What fewer than ten samples a problem can't show, a line to say before they are generated."""
    if k is None or k >= 10:
        return None
    return (
        f"K = {k}: pass@10 needs ten samples of a problem, so tables have pass@1 and success@K, "
        "and no verdict can be confirmatory"
    )


def check_names(gen_kwargs: Mapping[str, Any]) -> None:
    """Refuse a misspelt generation argument of the stock class.

    Transformers would refuse it too, but only after the model is loaded. An unknown argument that
    resembles no other is left to the model.

    Raises:
        ValueError: with the argument that was meant.
    """
    import inspect

    from transformers import GenerationConfig, GenerationMixin

    own = (name for name in vars(GenerationConfig()) if name[0] != "_")
    known = {*own, *inspect.signature(GenerationMixin.generate).parameters, *_TAKEN_OUT}
    for name in gen_kwargs:
        meant = "" if name in known else suggest(name, sorted(known))
        if meant:
            raise ValueError(
                f"--gen_kwargs {name}={gen_kwargs[name]} is no argument of transformers; "
                f"{meant.strip()}"
            )


def check_writable(flag: str, path: Path) -> None:
    """Refuse a folder (or file) that results could not be written to; nothing is left behind.

    Raises:
        ValueError: naming the obstacle.
    """
    there = path.parent if path.suffix == ".json" else path
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        if not there.is_dir():
            raise NotADirectoryError(0, f"{there} is a file")
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ValueError(
            f"{flag} {path} can't be written to ({error.strerror or error}), and results are "
            "written at the end of a run: give another folder"
        ) from None


def check_store(folder: Path) -> None:
    """Refuse a folder of samples that holds something else or can't be written to.

    Raises:
        ValueError: naming the obstacle.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        Store(folder)
    check_writable("store", folder)


def check_prompting(tasks: Iterable[str], apply_chat_template: Any) -> None:
    """Refuse a chat template around a completion prompt, and a chat prompt without one.

    Stop strings and extraction of each kind of task are made for its own form of prompt.

    Args:
        tasks: names or patterns of tasks and groups; only this project's are looked at.
        apply_chat_template: as the harness takes it.

    Raises:
        ValueError: naming the task, and the one for this way of prompting.
    """
    for name in _ours(tasks):
        chat = name.endswith("_chat")
        if chat and not apply_chat_template:
            raise ValueError(
                f"{name} asks a chat model: add --apply_chat_template, or take "
                f"{name.removesuffix('_chat')}, whose prompt a base model continues"
            )
        if apply_chat_template and not chat:
            stem = next((name.removesuffix(s) for s in _SUFFIXES if name.endswith(s)), name)
            other = (
                f"take {stem}_chat" if f"{stem}_chat" in _ours(["*"]) else "there is no chat form"
            )
            raise ValueError(
                f"{name} is a prompt to be continued, which --apply_chat_template would wrap into "
                f"a chat and its stop strings would cut the answer: {other}, or leave the "
                "template out"
            )


def _ours(tasks: Iterable[str]) -> list[str]:
    """This project's tasks and groups among names and patterns, in the order they are given."""
    from lm_eval_embednoise.problems.task_files import task_dir

    known = sorted({path.stem for path in task_dir().rglob("*.yaml") if path.stem[0] != "_"})
    matching = (name for task in tasks for name in fnmatch.filter(known, str(task)))
    return list(dict.fromkeys(matching))
