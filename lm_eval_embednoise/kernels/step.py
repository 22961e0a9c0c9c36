"""What a pass does between matrix products and attention, in C and in PyTorch: norms, gate, rotary.

The C functions (step.c) take float32. A row's result is the same in any company.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lm_eval_embednoise.kernels import build
from lm_eval_embednoise.kernels.arguments import address, check, refusal

_FLOAT, _INT = torch.float32, torch.int64


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Vectors divided by their root mean square, times a weight (arXiv 1910.07467).

    Args:
        x: [rows, dim].
        weight: [dim].
        eps: added to the mean square.

    Returns:
        [rows, dim].

    Raises:
        TypeError, ValueError: for a tensor of another type, shape or place.
    """
    shape = x.shape
    if len(shape) != 2:
        raise refusal("x", x, _FLOAT, "rows, dim")
    rows, dim = shape
    at, weight_at = address("x", x, _FLOAT, shape), address("weight", weight, _FLOAT, (dim,))
    out = torch.empty_like(x)
    build.functions("step").rms_norm(rows, dim, eps, at, weight_at, out.data_ptr())
    return out


def rms_norm_torch(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`rms_norm` in one operation of PyTorch's."""
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def silu_product(gate_up: Tensor) -> Tensor:
    """silu(gate) · up of the two side by side.

    Args:
        gate_up: [rows, 2 · dim].

    Returns:
        [rows, dim].

    Raises:
        TypeError, ValueError: for a tensor of another type, shape or place.
    """
    shape = gate_up.shape
    if len(shape) != 2 or shape[1] % 2:
        raise refusal("gate_up", gate_up, _FLOAT, "rows, 2 · dim")
    rows, dim = shape[0], shape[1] // 2
    at = address("gate_up", gate_up, _FLOAT, shape)
    out = gate_up.new_empty(rows, dim)
    build.functions("step").silu_product(rows, dim, at, out.data_ptr())
    return out


def silu_product_torch(gate_up: Tensor) -> Tensor:
    """`silu_product` in PyTorch's operations."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def enter(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    write: Tensor,
    memory: tuple[Tensor, Tensor],
    slots: Tensor | None = None,
) -> Tensor:
    """Rotate queries and keys to their positions (arXiv 2104.09864); store keys and values.

    Args:
        qkv: [rows, heads · (group + 2) · dim]: queries, those of a key head side by side, keys and
            values.
        cos: [rows, dim].
        sin: [rows, dim].
        write: int64 [rows], the column of each row's new entry.
        memory: keys and values, [slots, heads, columns, dim], changed in place.
        slots: int64 [rows], where each row's entry goes; None for slots 0 to rows - 1.

    Returns:
        The rotated queries, [rows, heads, group, dim].

    Raises:
        TypeError, ValueError: for a tensor of another type, shape or place, and for a slot or a
            column that the memory doesn't have.
    """
    keys, values = memory
    shape, qkv_shape = keys.shape, qkv.shape
    if len(shape) != 4 or shape[3] % 2 or 0 in shape:
        raise refusal("memory[0]", keys, _FLOAT, "slots, heads, columns, even dim")
    count, heads, columns, dim = shape
    group, rest = divmod(qkv_shape[-1], heads * dim)
    group -= 2
    if len(qkv_shape) != 2 or rest or group < 1:
        raise refusal("qkv", qkv, _FLOAT, f"rows, {heads} · (group + 2) · {dim}")
    rows = qkv_shape[0]
    if slots is None and rows > count:
        raise refusal("memory[0]", keys, _FLOAT, f"{rows} or more, {heads}, {columns}, {dim}")
    out = qkv.new_empty(rows, heads, group, dim)
    code = build.functions("step").enter(
        rows,
        heads,
        group,
        dim,
        count,
        columns,
        address("qkv", qkv, _FLOAT, qkv_shape),
        address("cos", cos, _FLOAT, (rows, dim)),
        address("sin", sin, _FLOAT, (rows, dim)),
        None if slots is None else address("slots", slots, _INT, (rows,)),
        address("write", write, _INT, (rows,)),
        address("memory[0]", keys, _FLOAT, shape),
        address("memory[1]", values, _FLOAT, shape),
        out.data_ptr(),
    )
    if code:
        check(code, f"slots must be below {count} and write below {columns}")
    return out


def enter_torch(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    write: Tensor,
    memory: tuple[Tensor, Tensor],
    slots: Tensor | None = None,
) -> Tensor:
    """`enter` in PyTorch's operations."""
    _, heads, _, dim = memory[0].shape
    rows = len(qkv)
    q, k, v = split(qkv, cos, signed(sin), heads, dim)
    at = torch.arange(rows, device=qkv.device) if slots is None else slots
    memory[0][at, :, write] = k[:, :, 0]
    memory[1][at, :, write] = v[:, :, 0]
    return q


def signed(sin: Tensor) -> Tensor:
    """Sines of rotary positions, the first half of the last dimension negated: see `split`."""
    half = sin.shape[-1] // 2
    return torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)


def split(
    qkv: Tensor, cos: Tensor, signed_sin: Tensor, heads: int, dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of what one linear layer gives, the first two rotated.

    Args:
        qkv: [rows, heads · (group + 2) · dim], as for `enter`.
        cos: broadcastable to [rows, 1, dim].
        signed_sin: what `signed` makes of the sines, of the same shape.
        heads: of keys and values.
        dim: of a head.

    Returns:
        [rows, heads, group, dim], and twice [rows, heads, 1, dim].
    """
    parts = qkv.unflatten(-1, (-1, dim))
    cos, signed_sin = cos.view(-1, 1, dim), signed_sin.view(-1, 1, dim)
    qk, v = parts[:, :-heads], parts[:, -heads:, None]
    # rotate_half(x) · sin is x rolled by half, times the sines with their first half negated
    qk = torch.addcmul(qk * cos, qk.roll(dim // 2, dims=-1), signed_sin)
    q, k = qk[:, :-heads], qk[:, -heads:, None]
    return q.unflatten(1, (heads, -1)), k, v
