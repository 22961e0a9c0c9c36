"""What is computed in C on a CPU: noise, and what passes do beside matrix products.

The step's functions (step.c) serve float32; every other type and device takes PyTorch's operations,
which are the reference in the tests. Arrays are handed over by address: shapes are the caller's
promise.
"""

from __future__ import annotations

import ctypes
import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lm_eval_embednoise.kernels import build

COLUMNS, WIDEST = 16, 256  # as in step.c
_long, _float, _array = ctypes.c_long, ctypes.c_float, ctypes.c_void_p
_SIGNATURES: dict[str, dict[str, list[Any]]] = {
    "step": {
        "rms_norm": [_long, _long, _float, *[_array] * 3],
        "silu_product": [*[_long] * 2, *[_array] * 2],
        "enter": [*[_long] * 5, *[_array] * 8],
        "attend": [*[_long] * 5, _float, *[_array] * 8],
        "attend_prompt": [*[_long] * 6, _float, *[_array] * 6],
        "attend_causal": [*[_long] * 7, _float, *[_array] * 7],
    },
    "draws": {
        "normals": [*[_long] * 3, *[_array] * 3],
        "add_noise": [*[_long] * 3, *[_array] * 6],
    },
}


@functools.cache
def _library(name: str) -> ctypes.CDLL | None:
    found = build.library(name)
    for function, arguments in _SIGNATURES[name].items() if found else ():
        getattr(found, function).argtypes = arguments
    return found


def _step() -> ctypes.CDLL:
    found = _library("step")
    assert found is not None, "asked for without serve()"
    return found


def normals(keys: Tensor, positions: Tensor, dim: int) -> Tensor | None:
    """`streams.normal`, bit for bit; None where there is no compiled function for it."""
    found = _library("draws") if keys.is_cpu else None
    if found is None:
        return None
    keys, positions = keys.contiguous(), positions.contiguous()
    out = torch.empty(*positions.shape, dim, dtype=torch.float32)
    found.normals(*(*positions.shape, dim, keys.data_ptr(), positions.data_ptr(), out.data_ptr()))
    return out


def add_noise(
    hidden: Tensor, keys: Tensor, positions: Tensor, std: Tensor
) -> tuple[Tensor, Tensor] | None:
    """hidden + std · normals, and how strong that is; None where nothing compiled does it.

    Args:
        hidden: float32 [rows, pos, dim].
        keys: int64 [rows, 2].
        positions: int64 [rows, pos].
        std: float32 [rows, pos]; nothing is drawn where it is 0.

    Returns:
        [rows, pos, dim], and float64 [rows, 2]: the sum of |noise| / |hidden| over the positions
        with noise, and their number.
    """
    floats = hidden.is_cpu and hidden.dtype is torch.float32
    found = _library("draws") if floats else None
    if found is None:
        return None
    hidden, keys, positions = hidden.contiguous(), keys.contiguous(), positions.contiguous()
    std = std.contiguous()
    out = torch.empty_like(hidden)
    ratios = torch.empty(len(hidden), 2, dtype=torch.float64)
    found.add_noise(
        *(*hidden.shape, keys.data_ptr(), positions.data_ptr(), std.data_ptr()),
        *(hidden.data_ptr(), out.data_ptr(), ratios.data_ptr()),
    )
    return out, ratios


def serve(*tensors: Tensor) -> bool:
    """Whether the functions below can be called with these."""
    for tensor in tensors:
        if tensor.dtype is not torch.float32 or not tensor.is_cpu:
            return False
    return _library("step") is not None


def serve_heads(dim: int) -> bool:
    """Whether the functions for attention take heads of this width."""
    return dim % COLUMNS == 0 and dim <= WIDEST


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) · weight over the last of [rows, dim]."""
    out = torch.empty_like(x)
    rows, dim = x.shape
    _step().rms_norm(rows, dim, eps, x.data_ptr(), weight.data_ptr(), out.data_ptr())
    return out


def silu_product(gate_up: Tensor) -> Tensor:
    """silu(gate) · up, [rows, dim], of the two side by side, contiguous [rows, 2 · dim]."""
    rows, both = gate_up.shape
    out = gate_up.new_empty(rows, both // 2)
    _step().silu_product(rows, both // 2, gate_up.data_ptr(), out.data_ptr())
    return out


def enter(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    write: Tensor,
    held: tuple[Tensor, Tensor],
    slots: Tensor | None = None,
) -> Tensor:
    """Rotate queries and keys to their positions and store keys and values.

    Args:
        qkv: [rows, heads · (group + 2) · dim]: queries, those of a key head side by side, keys and
            values; contiguous.
        cos, sin: [rows, dim].
        write: int64 [rows], the column of each row's new entry.
        held: keys and values, [slots, heads, columns, dim], changed in place.
        slots: int64 [rows], where each row's entry goes; None for slots 0 to rows - 1.

    Returns:
        The rotated queries, [rows, heads, group, dim].
    """
    _, heads, columns, dim = held[0].shape
    rows, group = len(qkv), qkv.shape[1] // (heads * dim) - 2
    out = qkv.new_empty(rows, heads, group, dim)
    _step().enter(
        *(rows, heads, group, dim, columns, qkv.data_ptr(), cos.data_ptr(), sin.data_ptr()),
        *(None if slots is None else slots.data_ptr(), write.data_ptr()),
        *(held[0].data_ptr(), held[1].data_ptr(), out.data_ptr()),
    )
    return out


def attend(
    q: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor,
    scale: float,
    prompt: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention of each row's queries over its first entries and over a prompt.

    Args:
        q: [rows, heads, group, dim], contiguous.
        key, value: [rows, heads, width, dim], see `in_slots`.
        lengths: int64 [rows], how many entries a row sees.
        scale: factor on the scores.
        prompt: attention over the prompt and its log-sum-exps, like the result.

    Returns:
        [rows, heads, group, dim] and [rows, heads, group].

    Raises:
        MemoryError: the C function had none.
    """
    rows, heads, group, dim = q.shape
    out, lse = torch.empty_like(q), q.new_empty(rows, heads, group)
    failed = _step().attend(
        *(dim, rows, heads, group, key.stride(1) // dim, scale),
        *(q.data_ptr(), key.data_ptr(), value.data_ptr(), lengths.data_ptr()),
        *((None, None) if prompt is None else (prompt[0].data_ptr(), prompt[1].data_ptr())),
        *(out.data_ptr(), lse.data_ptr()),
    )
    if failed:
        raise MemoryError("no memory for attention scores")
    return out, lse


def columns(keys: Tensor) -> Tensor:
    """A prompt's keys, [1, heads, length, dim], as `attend_prompt` reads them."""
    padding = -keys.shape[2] % COLUMNS
    return F.pad(keys[0].transpose(1, 2), (0, padding)).contiguous()


def attend_prompt(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: Tensor | None,
    scale: float,
    out: tuple[Tensor, Tensor],
) -> None:
    """Softmax attention of rows over a prompt that they share.

    Args:
        q: [rows, heads, group, dim], contiguous; dim is a multiple of 16.
        keys: what `columns` made of the keys.
        values: [1, heads, length, dim], contiguous.
        rows: int64 [n], which rows; None for all.
        scale: factor on the scores.
        out: results and log-sum-exps, [rows, heads, group, dim] and [rows, heads, group], of
            which those rows' are written.

    Raises:
        MemoryError: the C function had none.
    """
    count, heads, group, dim = q.shape
    failed = _step().attend_prompt(
        *(dim, count if rows is None else len(rows), heads, group),
        *(values.shape[2], keys.shape[2], scale),
        None if rows is None else rows.data_ptr(),
        *(q.data_ptr(), keys.data_ptr(), values.data_ptr()),
        *(out[0].data_ptr(), out[1].data_ptr()),
    )
    if failed:
        raise MemoryError("no memory for attention scores")


def attend_causal(
    q: Tensor,
    held: tuple[Tensor, Tensor],
    slots: Tensor,
    scale: float,
    prompt: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Causal softmax attention of prompts whose entries stand at the head of slots.

    Args:
        q: [rows, length, heads, group, dim], contiguous; dim is a multiple of 16.
        held: keys and values, [slots, heads, columns, dim], of which the first `length` are read.
        slots: int64 [rows].
        scale: factor on the scores.
        prompt: attention over what stands before, and its log-sum-exps, as `attend_prompt` leaves
            them for rows · length rows.

    Returns:
        The same shape as q.

    Raises:
        MemoryError: the C function had none.
    """
    rows, length, heads, group, dim = q.shape
    out = torch.empty_like(q)
    before = (None, None) if prompt is None else (prompt[0].data_ptr(), prompt[1].data_ptr())

    def part(first: int, last: int) -> int:
        failed: int = _step().attend_causal(
            *(first, last, dim, length, heads, group, held[0].shape[2], scale, slots.data_ptr()),
            *(q.data_ptr(), held[0].data_ptr(), held[1].data_ptr(), *before, out.data_ptr()),
        )
        return failed

    problems, threads = rows * heads, torch.get_num_threads()
    if threads == 1:
        failed = part(0, problems)
    else:
        bounds = [problems * number // threads for number in range(threads + 1)]
        with ThreadPoolExecutor(threads) as pool:
            failed = any(pool.map(part, bounds[:-1], bounds[1:]))
    if failed:
        raise MemoryError("no memory for attention scores")
    return out


def in_slots(key: Tensor, value: Tensor) -> bool:
    """Whether keys and values, [rows, heads, width, dim], lie as `attend` reads them.

    That is as views of memory [rows, heads, columns, dim], dim a multiple of 16 and at most 256.
    """
    heads, dim = key.shape[1], key.shape[3]
    return (
        serve_heads(dim)
        and key.shape == value.shape
        and key.stride() == value.stride()
        and key.stride()[2:] == (dim, 1)
        and key.stride(0) == heads * key.stride(1)
    )
