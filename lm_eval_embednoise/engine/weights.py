"""Linear layers of one input as one layer, for as long as a run takes.

A product of one wide matrix is faster than several of narrow ones, and on a CPU its memory is
better laid out input by input. So that no weight is stored twice, the layers' weights become views
of the joint memory meanwhile; `SideBySide.restore` gives each its own memory and layout back.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence


class Linear(NamedTuple):
    """One layer, or several whose outputs are side by side.

    Attributes:
        weight: [outputs, inputs].
        bias: [outputs], None without.
        transposed: a view of the weight, [inputs, outputs].
    """

    weight: Tensor
    bias: Tensor | None
    transposed: Tensor


class _Moved(NamedTuple):
    """A weight that is a view of joint memory, and the layout it had."""

    parameter: nn.Parameter
    stride: tuple[int, ...]
    joint: int  # address of the memory


class SideBySide:
    """Joint layers of one model, and the way back."""

    def __init__(self, model: nn.Module) -> None:
        """Nothing is moved yet."""
        self._moved: list[list[_Moved]] = []
        self._owners = Counter(_storage(weight) for weight in model.parameters())

    def join(self, *layers: nn.Linear, by_input: bool = False) -> Linear:
        """Layers of one input as one layer.

        A weight that shares its memory with another tensor (a flat buffer of an optimizer, say)
        must stay where it is: then all of them are copied instead.

        Args:
            layers: at least one.
            by_input: lay the memory out input by input: products of few rows take a tenth less.
        """
        weights = [layer.weight.detach() for layer in layers]
        weight = _side_by_side(weights)
        if weight is None or (by_input and weight.is_contiguous()):
            weight = torch.cat(weights)
            if by_input:
                weight = weight.t().contiguous().t()
            if all(map(self._alone, weights)):
                self._move([layer.weight for layer in layers], weight)
        return Linear(weight, joint_bias(layers), weight.t())

    def _alone(self, weight: Tensor) -> bool:
        """Whether a weight has its memory to itself, as far as can be seen."""
        whole = weight.untyped_storage().nbytes() == weight.numel() * weight.element_size()
        return whole and self._owners[_storage(weight)] == 1

    def _move(self, parameters: list[Any], weight: Tensor) -> None:
        joint = _storage(weight)
        # Noted before the first is moved, so that an interrupt in between is undone as well.
        self._moved.append([_Moved(p, p.stride(), joint) for p in parameters])
        parts = weight.split([len(p) for p in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.data = part

    def restore(self) -> None:
        """Give every moved weight its own memory, in the layout it had; values stay.

        Joint memory is let go of layer by layer: drop other references to it before. A weight that
        somebody else has moved in the meantime is left alone. An interrupt is raised at the end.
        """
        interrupt: KeyboardInterrupt | None = None
        while self._moved:
            try:
                for parameter, stride, joint in self._moved[-1]:
                    if _storage(parameter) == joint:
                        own = torch.empty_strided(
                            parameter.shape, stride, dtype=parameter.dtype, device=parameter.device
                        )
                        parameter.data = own.copy_(parameter.detach())
                self._moved.pop()
            except KeyboardInterrupt as raised:
                interrupt = raised
        if interrupt is not None:
            raise interrupt


def joint_bias(layers: Sequence[nn.Linear]) -> Tensor | None:
    """The layers' biases one after the other, zeros for those without; None if all are."""
    if all(layer.bias is None for layer in layers):
        return None
    if len(layers) == 1:
        return layers[0].bias.detach()
    parts: list[Tensor] = [
        layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias
        for layer in layers
    ]
    return torch.cat(parts).detach()


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _side_by_side(weights: list[Tensor]) -> Tensor | None:
    """The memory that holds all of them one after the other, [outputs, inputs]; None without."""
    first, at = weights[0], weights[0].data_ptr()
    for weight in weights:
        if weight.data_ptr() != at or weight.stride() != first.stride():
            return None
        if _storage(weight) != _storage(first):
            return None
        at += len(weight) * weight.stride(0) * weight.element_size()
    return first.as_strided((sum(map(len, weights)), first.shape[1]), first.stride())
