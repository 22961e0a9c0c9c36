"""Checks of what is handed to C by its address: a wrong tensor is an error, not a wild read."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

NO_MEMORY, OUT_OF_RANGE = 1, 2  # what C functions return; 0 is success


def address(name: str, tensor: Tensor, dtype: torch.dtype, shape: Sequence[int]) -> int:
    """Where a tensor's numbers start in memory.

    Raises:
        TypeError: it isn't a tensor of this type.
        ValueError: it has another shape, is not contiguous, or not in the CPU's memory.
    """
    # A decode step hands over some 500 tensors: four looks of a tenth of a microsecond each.
    if tensor.dtype is dtype and tensor.is_cpu and tensor.shape == shape and tensor.is_contiguous():
        return tensor.data_ptr()
    raise refusal(name, tensor, dtype, shape)


def refusal(
    name: str, tensor: Tensor, dtype: torch.dtype, shape: Sequence[int] | str
) -> TypeError | ValueError:
    """The error for a tensor that is not as it must be.

    Args:
        name: of the argument.
        tensor: what was given.
        dtype: what its type must be.
        shape: its sizes, or their names where any size will do.
    """
    wanted = f"{name} must be a contiguous {dtype} tensor {_sizes(shape)} on the CPU, and it is"
    if tensor.dtype is not dtype:
        return TypeError(f"{wanted} of {tensor.dtype}")
    if not tensor.is_cpu:
        return ValueError(f"{wanted} on {tensor.device}")
    if isinstance(shape, str) or tensor.shape != shape:
        return ValueError(f"{wanted} {_sizes(tensor.shape)}")
    return ValueError(f"{wanted} not contiguous (strides {tensor.stride()})")


def _sizes(shape: Sequence[int] | str) -> str:
    return f"[{shape if isinstance(shape, str) else ', '.join(map(str, shape))}]"


def check(code: int, indices: str) -> None:
    """Turn what a C function returns into an error.

    Args:
        code: 0, NO_MEMORY or OUT_OF_RANGE.
        indices: the arguments whose values are indices, and their bounds, in words.

    Raises:
        MemoryError: there was none for its intermediate results.
        ValueError: an index is out of its bounds. Nothing was read or written there.
    """
    if code == NO_MEMORY:
        raise MemoryError("no memory for intermediate results")
    if code:
        raise ValueError(f"out of range: {indices}")
