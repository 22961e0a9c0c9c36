"""The arguments of `hf-embednoise`, looked at before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lm_eval_embednoise import harness_seed
from lm_eval_embednoise.minicoder import MODEL_DIR
from lm_eval_embednoise.models.dates import parse_date
from lm_eval_embednoise.models.loading import HOST_ARGS, INSTEAD, LOADING_ARGS, Loading
from lm_eval_embednoise.noise.perturbation import Perturbation, suggest

if TYPE_CHECKING:
    from collections.abc import Mapping

OWN_ARGS = (
    *("method", "perplexity", "exact", "compile", "decoder", "blocks", "store", "template_date"),
    "states",
)


def check_arguments(args: Mapping[str, Any]) -> Loading:
    """Refuse what the class would refuse before it loads a model; returns how it would load it.

    Raises:
        ValueError, ImportError: as `HFEmbedNoise` does.
    """
    rest = {name: value for name, value in args.items() if name not in ("pretrained", *OWN_ARGS)}
    parse_date(args.get("template_date"))
    parse_batch_size(rest.pop("batch_size", None))
    _, hf_args = split_args(rest)
    return Loading.from_args(args.get("pretrained") or str(MODEL_DIR), hf_args)


def split_args(kwargs: Mapping[str, Any]) -> tuple[Perturbation, dict[str, Any]]:
    """Divide the user's arguments into the perturbation and what HFLM takes; refuse the rest."""
    own = (*Perturbation.names(), "noise")
    allowed = [*own, *OWN_ARGS, *HOST_ARGS, *LOADING_ARGS]
    for name in kwargs:
        if name not in allowed and name not in INSTEAD:
            raise ValueError(
                f"unknown model argument {name!r}; {suggest(name, allowed)}perturbation: "
                f"{', '.join(own)}; own: {', '.join(OWN_ARGS)}; and those of --model hf"
            )
    if kwargs.get("backend", "default") == "seq2seq":
        raise ValueError("backend='seq2seq' is not supported; hf-embednoise needs a causal LM")
    noise = {k: v for k, v in kwargs.items() if k in own}
    perturbation = Perturbation.from_args(noise, harness_seed.present())
    return perturbation, {k: v for k, v in kwargs.items() if k not in own}


def parse_batch_size(batch_size: int | str | None) -> int | None:
    """Rows to decode at a time; None for `auto`."""
    if batch_size is None or str(batch_size).partition(":")[0] == "auto":
        return None
    try:
        rows = int(batch_size)
    except ValueError:
        rows = 0
    if rows < 1:
        raise ValueError(
            f"batch_size={batch_size!r} is not allowed; it must be a number ≥ 1 or auto"
        )
    return rows
