"""What a command line says instead of a study's file, by the flags of `lm_eval run` and its own."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import yaml

from lm_eval_embednoise.study.method import Method, StudyError, parse_arguments
from lm_eval_embednoise.study.study_file import read_methods, read_seeds

if TYPE_CHECKING:
    import argparse

    from lm_eval_embednoise.study.plan import Model, Study

_INSTEAD = (
    *("batch_size", "max_batch_size", "device", "apply_chat_template", "system_instruction"),
    *("fewshot_as_multiturn", "num_fewshot"),
)
_TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags, with the harness's names."""
    parser.add_argument("--model_args", metavar="K=V,…", help="added to every model: pretrained=…")
    parser.add_argument(
        "--gen_kwargs",
        metavar="K=V,…",
        help="added to every method, and wins: max_gen_toks=256; as in lm_eval",
    )
    parser.add_argument(
        "--apply_chat_template",
        nargs="?",
        const=True,
        metavar="NAME",
        help="for the tasks named …_chat; as in lm_eval",
    )
    parser.add_argument("--system_instruction", metavar="TEXT", help="as in lm_eval")
    parser.add_argument(
        "--fewshot_as_multiturn", nargs="?", const=True, metavar="BOOL", help="as in lm_eval"
    )
    parser.add_argument("--num_fewshot", type=int, metavar="N", help="as in lm_eval")
    parser.add_argument("--batch_size", metavar="B", help="as in lm_eval")
    parser.add_argument("--max_batch_size", type=int, metavar="B", help="as in lm_eval")
    parser.add_argument("--device", help="as in lm_eval")


def applied(model: Model, args: argparse.Namespace) -> Model:
    """A model with what the command line says; other weights go by their own name.

    Raises:
        StudyError: for a value that can't be.
    """
    given = {name: value for name in _INSTEAD if (value := getattr(args, name)) is not None}
    if "fewshot_as_multiturn" in given:
        given["fewshot_as_multiturn"] = _truth(given["fewshot_as_multiturn"])
    added = parse_arguments("--model_args", args.model_args or "")
    sampling = parse_arguments("--gen_kwargs", args.gen_kwargs or "")
    other = added.get("pretrained")
    if other is not None and other != model.model_args.get("pretrained"):
        given["name"] = str(other).rstrip("/").split("/")[-1]
    return dataclasses.replace(
        model,
        model_args={**model.model_args, **added},
        gen_kwargs={**model.gen_kwargs, **sampling},
        **given,
    )


def overridden(study: Study, args: argparse.Namespace) -> Study:
    """A study with what its command line says instead.

    Raises:
        StudyError: for a value that can't be.
    """
    changes: dict[str, Any] = {}
    calibration = study.calibrate
    if args.methods:
        methods = changes["methods"] = _chosen(study, args.methods)
        names = [method.name for method in methods]
        changes |= {r: None for r in ("baseline", "candidate") if getattr(study, r) not in names}
        if not any(method.pending for method in methods):  # there is nothing to calibrate for
            calibration = None
    changes |= {r: name for r in ("baseline", "candidate") if (name := getattr(args, r))}
    if args.seeds:
        given = read_seeds(yaml.safe_load(f"[{args.seeds}]"))
        methods = changes.get("methods", study.methods)
        changes["seeds"] = given
        changes["methods"] = tuple(dataclasses.replace(m, seeds=None) for m in methods)
    sizes = {key: getattr(args, key) for key in ("limit", "k") if getattr(args, key) is not None}
    for key, value in sizes.items():
        if value < 1:
            raise StudyError(f"--{key} {value}: it must be a whole number ≥ 1")
    tasks = study.tasks
    if args.tasks:
        tasks = tuple(dataclasses.replace(tasks[0], name=name) for name in args.tasks.split(","))
    if calibration is not None:  # a smaller study calibrates on less as well
        names = [task.name for task in tasks]
        on = {name: other for name, other in calibration.on.items() if name in names}
        calibration = dataclasses.replace(calibration, on=on, **sizes)
    return dataclasses.replace(
        study,
        tasks=tuple(dataclasses.replace(t, **sizes) for t in tasks),
        models=tuple(applied(model, args) for model in study.models),
        calibrate=calibration,
        **changes,
    )


def _chosen(study: Study, text: str) -> tuple[Method, ...]:
    """The methods that `--methods` names: the study's own by name, else packaged ones or files."""
    own = {method.name: method for method in study.methods}
    calibrated = study.calibrate.names if study.calibrate else ()
    found: list[Method] = []
    for entry in filter(None, text.split(",")):
        found += [own[entry]] if entry in own else methods_named(entry, calibrated)
    return tuple(found)


def methods_named(entry: str, calibrated: tuple[str, ...] = ()) -> list[Method]:
    """Methods as a command line names them: one by name or file, or a family, `NAME=DOSE:DOSE`.

    Args:
        entry: what the user wrote.
        calibrated: see `study_file.read_methods`.
    """
    name, swept, doses = entry.partition("=")
    if not swept:
        return read_methods(name, None, calibrated)
    item = {"name": name, "doses": [yaml.safe_load(dose) for dose in doses.split(":")]}
    return read_methods(item, None, calibrated)


def _truth(value: Any) -> bool:
    known = _TRUTHS.get(str(value).lower())
    if known is None:
        raise StudyError(f"--fewshot_as_multiturn {value}: write true or false")
    return known
