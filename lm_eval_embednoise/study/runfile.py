"""What `embednoise run` evaluates: a run file, a method file and the command line in one.

The harness takes one `--config`, and a `--model_args` or `--gen_kwargs` beside it replaces the
file's whole mapping. Here they are merged key by key: the command line over the method over the
run file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_embednoise import early
from lm_eval_embednoise.analysis.methods import input_change
from lm_eval_embednoise.study.method import Method, find_file, mapping_of, read_file

if TYPE_CHECKING:
    import argparse

DEFAULT_MODEL = "hf-embednoise"


def merge(args: argparse.Namespace, method: str | None = None) -> argparse.Namespace:
    """Fill the harness's parsed arguments with what the run file and the method file say.

    Args:
        args: as the harness's parser gives them; changed and returned.
        method: a packaged method's name or a file.

    Raises:
        ValueError: for a file that isn't there, one with unknown keys, or noise for a model that
            takes none.
    """
    content: dict[str, Any] = {}
    if args.config:
        path = find_file(str(args.config), "", Path.cwd())
        content = read_file(path, None)
        args.config = str(path)
    args.model = args.model or content.get("model") or DEFAULT_MODEL
    ours = args.model == DEFAULT_MODEL
    chosen = Method.load(method) if method else Method("", {}, {})
    if input_change(chosen.perturbation) != "none" and not ours:
        raise ValueError(
            f"--method {method}: model {args.model!r} can't be perturbed; use {DEFAULT_MODEL}, or "
            "a method without noise, such as greedy or temp-0.8"
        )
    perturbation = dict(chosen.perturbation) if ours else {}
    if chosen.name and ours:
        perturbation["method"] = chosen.name
    args.model_args = {
        **_mapping(content, "model_args"), **perturbation, **(args.model_args or {})
    }  # fmt: skip
    args.gen_kwargs = {
        **_mapping(content, "gen_kwargs"), **chosen.gen_kwargs, **(args.gen_kwargs or {})
    }  # fmt: skip
    return args


def check(args: argparse.Namespace) -> None:
    """Refuse what can't work, before tasks are searched and a model is loaded.

    Raises:
        ValueError: see `early.check_run`.
    """
    tasks = getattr(args, "tasks", None) or ()
    early.check_run(
        model=args.model,
        model_args=args.model_args,
        gen_kwargs=args.gen_kwargs,
        tasks=tasks.split(",") if isinstance(tasks, str) else tasks,
        output_path=getattr(args, "output_path", None),
        use_cache=getattr(args, "use_cache", None),
        apply_chat_template=getattr(args, "apply_chat_template", None),
    )


def _mapping(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = mapping_of(key, content.get(key) or {})
    if not isinstance(value, Mapping):
        raise ValueError(f"{key} of a run file must be a mapping, got {value!r}")
    return dict(value)
