"""Softmax attention by its log-sum-exps, in C and in PyTorch: own entries, a shared prompt, causal.

Attention over two sets of entries is merged exactly from each one's result and log-sum-exp. The C
functions (step.c) take float32 and heads whose width is a multiple of 16, at most 256.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torch.nn import functional as F

from lm_eval_embednoise.kernels import build
from lm_eval_embednoise.kernels.arguments import address, check, refusal

COLUMNS, WIDEST = 16, 256  # as in step.c
_FLOAT, _INT = torch.float32, torch.int64
_flash_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


def serve_heads(dim: int) -> bool:
    """Whether the C functions take heads of this width."""
    return dim % COLUMNS == 0 and 0 < dim <= WIDEST


def in_slots(key: Tensor, value: Tensor) -> bool:
    """Whether keys and values, [rows, heads, width, dim], are laid out as `attend` reads them.

    That is as views of memory [rows, heads, columns, dim], dim a multiple of 16 and at most 256.
    """
    if key.ndim != 4 or key.shape != value.shape or key.stride() != value.stride():
        return False
    (_, heads, width, dim), (of_row, of_head, *inner) = key.shape, key.stride()
    regular = inner == [dim, 1] and of_row == heads * of_head and of_head % dim == 0
    return regular and of_head >= width * dim and serve_heads(dim)


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
        q: [rows, heads, group, dim].
        key: [rows or more, heads, width, dim], laid out as `in_slots` says.
        value: the same.
        lengths: int64 [rows], how many entries a row sees, 1 to width.
        scale: factor on the scores.
        prompt: attention over the prompt and its log-sum-exps, like the result.

    Returns:
        [rows, heads, group, dim] and [rows, heads, group].

    Raises:
        TypeError, ValueError: for a tensor of another type, shape or place, and for a length that
            the entries don't have.
        MemoryError: the C function had none.
    """
    shape = rows, heads, group, dim = _queries(q, 4)
    width, stored = _entries(key, value, rows, heads, dim)
    prompt_at = prompt_lse_at = None
    if prompt is not None:
        prompt_at = address("prompt[0]", prompt[0], _FLOAT, shape)
        prompt_lse_at = address("prompt[1]", prompt[1], _FLOAT, (rows, heads, group))
    out, lse = torch.empty_like(q), q.new_empty(rows, heads, group)
    code = build.functions("step").attend(
        dim,
        rows,
        heads,
        group,
        width,
        stored,
        scale,
        address("q", q, _FLOAT, shape),
        key.data_ptr(),
        value.data_ptr(),
        address("lengths", lengths, _INT, (rows,)),
        prompt_at,
        prompt_lse_at,
        out.data_ptr(),
        lse.data_ptr(),
    )
    if code:
        check(code, f"lengths must be 1 to {width}")
    return out, lse


def attend_torch(
    q: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor,
    scale: float,
    prompt: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """`attend` in PyTorch's operations."""
    seen = torch.arange(key.shape[2], device=q.device) < lengths[:, None]
    mask = _additive(seen[:, None, None], q)
    out, lse = softmax_attention(q, key[: len(q)], value[: len(q)], mask, scale)
    return (out, lse) if prompt is None else merged(out, lse, *prompt)


def columns(keys: Tensor) -> Tensor:
    """A prompt's keys, [1, heads, length, dim], as `attend_prompt` reads them.

    Returns:
        [heads, dim, padded]: transposed, with zeros up to a multiple of 16.
    """
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
        q: [rows, heads, group, dim].
        keys: what `columns` made of the keys.
        values: [1, heads, length, dim].
        rows: int64 [n], which rows; None for all.
        scale: factor on the scores.
        out: results and log-sum-exps, [rows, heads, group, dim] and [rows, heads, group], of
            which those rows' are written.

    Raises:
        TypeError, ValueError: for a tensor of another type, shape or place, and for a row that q
            doesn't have.
        MemoryError: the C function had none.
    """
    shape = count, heads, group, dim = _queries(q, 4)
    of_values = values.shape
    if len(of_values) != 4:
        raise refusal("values", values, _FLOAT, f"1, {heads}, length, {dim}")
    length = of_values[2]
    padded = length + -length % COLUMNS
    n = count if rows is None else len(rows)
    code = build.functions("step").attend_prompt(
        dim,
        n,
        count,
        heads,
        group,
        length,
        padded,
        scale,
        None if rows is None else address("rows", rows, _INT, (n,)),
        address("q", q, _FLOAT, shape),
        address("keys", keys, _FLOAT, (heads, dim, padded)),
        address("values", values, _FLOAT, (1, heads, length, dim)),
        address("out[0]", out[0], _FLOAT, shape),
        address("out[1]", out[1], _FLOAT, (count, heads, group)),
    )
    if code:
        check(code, f"rows must be below {count}")


def attend_prompt_torch(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: Tensor | None,
    scale: float,
    out: tuple[Tensor, Tensor],
) -> None:
    """`attend_prompt` in PyTorch's operations."""
    chosen = torch.arange(len(q), device=q.device) if rows is None else rows
    _, heads, group, dim = q.shape
    flat = q[chosen].transpose(0, 1).reshape(1, heads, -1, dim)
    prompt = keys[:, :, : values.shape[2]].transpose(1, 2)[None].contiguous()
    result, lse = softmax_attention(flat, prompt, values, None, scale)
    out[0][chosen] = result.view(heads, -1, group, dim).transpose(0, 1)
    out[1][chosen] = lse.view(heads, -1, group).transpose(0, 1)


def attend_causal(
    q: Tensor,
    memory: tuple[Tensor, Tensor],
    slots: Tensor,
    scale: float,
    prompt: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Causal softmax attention of prompts whose entries are the first of slots.

    Args:
        q: [rows, length, heads, group, dim].
        memory: keys and values, [slots, heads, columns, dim], of which the first `length` are read.
        slots: int64 [rows].
        scale: factor on the scores.
        prompt: attention over what comes before, and its log-sum-exps, as `attend_prompt` leaves
            them for rows · length rows.

    Returns:
        The same shape as q.

    Raises:
        TypeError, ValueError: for a tensor of another type, shape or place, and for a slot that
            the memory doesn't have.
        MemoryError: the C function had none.
    """
    shape = rows, length, heads, group, dim = _queries(q, 5)
    keys, values = memory
    if keys.ndim != 4 or keys.shape[2] < length:
        raise refusal("memory[0]", keys, _FLOAT, f"slots, {heads}, {length} or more, {dim}")
    count, _, width, _ = keys.shape
    prompt_at = prompt_lse_at = None
    if prompt is not None:
        sizes = (rows * length, heads, group)
        prompt_at = address("prompt[0]", prompt[0], _FLOAT, (*sizes, dim))
        prompt_lse_at = address("prompt[1]", prompt[1], _FLOAT, sizes)
    given = (
        address("slots", slots, _INT, (rows,)),
        address("q", q, _FLOAT, shape),
        address("memory[0]", keys, _FLOAT, (count, heads, width, dim)),
        address("memory[1]", values, _FLOAT, (count, heads, width, dim)),
        prompt_at,
        prompt_lse_at,
    )
    out = torch.empty_like(q)

    def part(first: int, last: int) -> int:
        code: int = build.functions("step").attend_causal(
            first, last, dim, length, heads, group, count, width, scale, *given, out.data_ptr()
        )
        return code

    problems, threads = rows * heads, torch.get_num_threads()
    if threads == 1:
        code = part(0, problems)
    else:
        bounds = [problems * number // threads for number in range(threads + 1)]
        with ThreadPoolExecutor(threads) as pool:
            code = max(pool.map(part, bounds[:-1], bounds[1:]))
    if code:
        check(code, f"slots must be below {count}")
    return out


def attend_causal_torch(
    q: Tensor,
    memory: tuple[Tensor, Tensor],
    slots: Tensor,
    scale: float,
    prompt: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """`attend_causal` in PyTorch's operations."""
    rows, length, heads, group, dim = q.shape
    key, value = (part[slots, :, :length] for part in memory)
    seen = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    flat = q.permute(0, 2, 3, 1, 4).reshape(rows, heads, group * length, dim)
    mask = _additive(seen.repeat(group, 1)[None, None], q)
    out, lse = softmax_attention(flat, key, value, mask, scale)
    out = out.view(rows, heads, group, length, dim).permute(0, 3, 1, 2, 4)
    if prompt is None:
        return out.contiguous()
    lse = lse.view(rows, heads, group, length).permute(0, 3, 1, 2)
    before, before_lse = prompt[0].view(q.shape), prompt[1].view(q.shape[:4])
    return merged(out, lse, before, before_lse)[0].contiguous()


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention and the log-sum-exps of its scores, in PyTorch.

    Args:
        q: [batch, heads, queries, head_dim].
        k: [batch, heads, width, head_dim]; its last dimension has stride 1, as those of all three.
        v: [batch, heads, width, value_dim].
        mask: additive, broadcastable to [batch, 1, queries, width].
        scale: factor on the scores.
        softcap: scores are softcap · tanh(score / softcap) (Gemma 2).

    Returns:
        [batch, heads, queries, value_dim] in q's dtype and float32 [batch, heads, queries].
    """
    mask = None if mask is None else mask.to(q.device)
    if q.device.type == "cpu" and softcap is None and q.shape[-1] == v.shape[-1]:
        if mask is not None:
            mask = mask.expand(q.shape[0], 1, q.shape[2], k.shape[2])
        out, lse = _flash_cpu(q, k, v, 0.0, False, attn_mask=mask, scale=scale)
        return out, lse
    scores = torch.matmul(q, k.transpose(-1, -2)).float() * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores + mask
    lse = scores.logsumexp(dim=-1)
    weights = (scores - lse[..., None]).exp().to(v.dtype)
    return torch.matmul(weights, v), lse


def merged(a: Tensor, a_lse: Tensor, b: Tensor, b_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over two sets of entries together, from each one's result and log-sum-exps."""
    wide = torch.promote_types(a.dtype, torch.float32)
    share = torch.sigmoid(a_lse - b_lse)[..., None].to(wide)
    return torch.lerp(b.to(wide), a.to(wide), share).to(a.dtype), torch.logaddexp(a_lse, b_lse)


def _queries(q: Tensor, rank: int) -> torch.Size:
    """The shape of queries that the C functions take."""
    shape = q.shape
    if len(shape) != rank or shape[-1] % COLUMNS or not 0 < shape[-1] <= WIDEST:
        rows = "rows, length" if rank == 5 else "rows"
        raise refusal("q", q, _FLOAT, f"{rows}, heads, group, dim of 16, 32, … {WIDEST}")
    return shape


def _entries(key: Tensor, value: Tensor, rows: int, heads: int, dim: int) -> tuple[int, int]:
    """Width and columns of memory that `attend` can read; see there for the errors."""
    shape = key.shape
    if len(shape) == 4 and key.is_contiguous():
        width = shape[2]
        wanted = (max(rows, shape[0]), heads, width, dim)
        address("key", key, _FLOAT, wanted)
        address("value", value, _FLOAT, wanted)
        return width, width
    for name, part in (("key", key), ("value", value)):
        shape = part.shape
        known = len(shape) == 4 and shape[0] >= rows and shape[1] == heads and shape[3] == dim
        if part.dtype is not _FLOAT or not part.is_cpu or not known:
            raise refusal(name, part, _FLOAT, f"{rows} or more, {heads}, width, {dim}")
    if not in_slots(key, value):
        raise ValueError(
            "key and value must be views of memory [rows, heads, columns, dim], and their strides "
            f"are {key.stride()} and {value.stride()} (their shapes {tuple(key.shape)} and "
            f"{tuple(value.shape)})"
        )
    return shape[2], key.stride(1) // dim


def _additive(seen: Tensor, like: Tensor) -> Tensor:
    mask = torch.zeros(seen.shape, dtype=like.dtype, device=like.device)
    return mask.masked_fill_(~seen, torch.finfo(like.dtype).min)
