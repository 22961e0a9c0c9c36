"""The temperature of attention: its logits are divided by τ, in all blocks or in some.

Transformers' attention modules keep the factor on their logits q · k as `scaling`. Within
`tempered` it is divided by τ; what is added to logits (ALiBi, masks), caps them (Gemma 2) or stands
beside them (attention sinks) stays as it is. After "attention temperature" (ACL 2026, long.200).
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from lm_eval_embednoise.noise.model_parts import find_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from lm_eval_embednoise.noise.perturbation import Perturbation


class Scale(NamedTuple):
    """The attention module of a block, and the factors on its logits."""

    block: int
    module: Any
    plain: float
    tempered: float


def attention_scales(
    model: nn.Module, perturbation: Perturbation, blocks: str | None = None
) -> list[Scale]:
    """The attention modules that a perturbation tempers; none at temperature 1.

    Args:
        model: a causal LM.
        perturbation: names temperature and blocks.
        blocks: dotted name of the decoder blocks' list, if it can't be found.

    Raises:
        ValueError: for a block that the model doesn't have, or whose attention keeps no scale.
    """
    temperature = perturbation.attention_temperature
    if temperature == 1:
        return []
    layers = find_blocks(model, blocks)
    chosen = perturbation.tempered_blocks or range(len(layers))
    if max(chosen) >= len(layers):
        raise ValueError(
            f"attention_blocks={perturbation.attention_blocks!r}: {type(model).__name__} has "
            f"{len(layers)} blocks, 0 to {len(layers) - 1}"
        )
    scales = []
    for block in chosen:
        found = [m for m in layers[block].modules() if isinstance(vars(m).get("scaling"), float)]
        if len(found) != 1:
            raise ValueError(
                f"attention_temperature={temperature:g} is not available for "
                f"{type(model).__name__}: block {block} keeps {len(found) or 'no'} factors on its "
                "attention's logits under the name `scaling`; leave it out"
            )
        plain: float = found[0].scaling  # type: ignore[assignment]
        scales.append(Scale(block, found[0], plain, plain / temperature))
    return scales


@contextmanager
def tempered(scales: Sequence[Scale], on: bool = True) -> Iterator[None]:
    """Within the context attention is tempered, or with `on=False` as the model has it."""
    before = [scale.module.scaling for scale in scales]
    try:
        for scale in scales:
            scale.module.scaling = scale.tempered if on else scale.plain
        yield
    finally:
        for scale, value in zip(scales, before, strict=True):
            scale.module.scaling = value
