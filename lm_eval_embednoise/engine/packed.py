"""Wide linear layers in oneDNN's own layout, for as long as a run takes.

PyTorch's products bring a weight into such a layout block by block in every call, which few rows
don't pay for: at 50 rows, 896 inputs and thousands of outputs it is a third of the time. The packed
copy is beside the weights, so it is made only where these are too large for the processor's caches
(smaller ones gain nothing) and memory is there. The names are PyTorch's private ones, those of its
compiler (tried with torch 2.13); without them nothing is packed.
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, NamedTuple

import psutil
import torch
from torch import Tensor

from lm_eval_embednoise.engine.weights import joint_bias

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

LEAST_BYTES = 1 << 27  # of all layers to pack: several times what caches hold
TUNED_ROWS = 50  # the layout is chosen for about as many; any number may come
NAMES = ("_reorder_linear_weight", "_linear_pointwise")


class Packed(NamedTuple):
    """Layers whose outputs are side by side.

    Attributes:
        weight: opaque, of [outputs, inputs].
        bias: [outputs], None without.
    """

    weight: Tensor
    bias: Tensor | None

    def product(self, x: Tensor) -> Tensor:
        """The layers' output, [..., outputs], for float32 [..., inputs]."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return out


def pack(*layers: nn.Linear) -> Packed:
    """Layers of one input as one; their own weights stay as they are."""
    weight = torch.cat([layer.weight.detach() for layer in layers])
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, TUNED_ROWS)
    return Packed(packed, joint_bias(layers))


def pays(layers: Sequence[nn.Linear]) -> bool:
    """Whether layers should be packed: large ones in float32 on a CPU, with memory for a copy."""
    size = sum(layer.weight.nbytes for layer in layers)
    return (
        size >= LEAST_BYTES
        and all(layer.weight.dtype is torch.float32 and layer.weight.is_cpu for layer in layers)
        and available()
        and psutil.virtual_memory().available > 2 * size
    )


def available() -> bool:
    """Whether this PyTorch can pack, on a processor where it was measured to gain."""
    return (
        platform.machine().lower() in ("x86_64", "amd64")
        and torch.backends.mkldnn.is_available()
        and all(hasattr(torch.ops.mkldnn, name) for name in NAMES)
    )
