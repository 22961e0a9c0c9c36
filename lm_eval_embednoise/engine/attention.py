"""Attention of decoding rows: over a prompt that rows share, and over their own entries.

K samples of a problem see one prompt. Their keys and values are kept once: the queries of all rows
attend to them as one matrix product, then to their own entries, and the two results are merged
exactly by their log-sum-exps (as flash attention merges blocks; Dao et al. 2022, arXiv:2205.14135,
and for shared prefixes Juravsky et al. 2024, arXiv:2402.05099). Query heads that share a key head
are further queries of that head, so nothing is repeated.

It is used through transformers' attention interface while the sampler decodes, and only then.
"""

from __future__ import annotations

import functools
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lm_eval_embednoise.kernels import build
from lm_eval_embednoise.kernels.attention import (
    attend,
    attend_prompt,
    columns,
    in_slots,
    merged,
    softmax_attention,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAME = "embednoise_rows"


class View(Protocol):
    """What the rows of the present pass may see beside their own entries."""

    def own_mask(self, window: int | None, like: Tensor, new: int) -> Tensor | None:
        """Additive [rows or 1, 1, new, width], or None where every entry is seen."""

    def lengths(self, window: int | None) -> Tensor | None:
        """int64 [rows], own entries that a row's one new entry sees; None for other patterns."""

    def prompts(self, layer: int) -> list[Part]:
        """The shared prompts; together their rows are all rows, each once."""

    def order(self) -> Tensor | None:
        """Where each row is in the concatenation of the prompts' rows; None for in order."""


class Shared:
    """A prompt's keys and values in one layer, kept once for all rows that see them.

    Attributes:
        keys, values: [1, heads, length, head_dim], contiguous.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys.contiguous(), values.contiguous()

    @functools.cached_property
    def columns(self) -> Tensor:
        """The keys as `attend_prompt` reads them."""
        return columns(self.keys)


class Part(NamedTuple):
    """A shared prompt in one layer and the rows that see it.

    Attributes:
        rows: int64 [n], or None for all rows.
        shared: its keys and values.
        mask: window → additive [n, 1, new, length] or None.
    """

    rows: Tensor | None
    shared: Shared
    mask: Callable[[int | None], Tensor | None]


class _Active(threading.local):
    view: View | None = None


_active = _Active()


def supported(model: nn.Module) -> bool:
    """Whether the model's attention goes through transformers' interface in a form known here."""
    can = getattr(model, "_can_set_attn_implementation", None)
    if can is None or not can():
        return False
    config = model.config.get_text_config()  # type: ignore[operator, union-attr]
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return kinds <= {"full_attention", "sliding_attention"}


def configs(model: nn.Module) -> list[Any]:
    """The configuration objects in which the model's modules look up their attention."""
    by_id = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    return [c for c in by_id.values() if hasattr(c, "_attn_implementation_internal")]


@contextmanager
def serving(where: list[Any], view: View) -> Iterator[None]:
    """Within the context the model's attention is this module's, over `view`.

    Args:
        where: the configuration objects, from `configs`.
        view: the rows of the passes to come.
    """
    before = [config._attn_implementation_internal for config in where]
    outer, _active.view = _active.view, view
    try:
        for config in where:
            config._attn_implementation_internal = NAME
        yield
    finally:
        _active.view = outer
        for config, implementation in zip(where, before, strict=True):
            config._attn_implementation_internal = implementation


def rows_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of the new entries of each row, in the form of transformers' interface.

    Args:
        module: the attention module; its `layer_idx` says whose prompts are meant.
        query: [rows, query_heads, new, head_dim].
        key: [rows, heads, width, head_dim], each row's own entries with the new ones.
        value: [rows, heads, width, value_dim].
        attention_mask: ignored; the active view says what is seen.
        scaling: factor on the scores; 1/√head_dim by default.
        sliding_window: how many entries back a query sees, itself included; None for all.
        softcap: scores are softcap · tanh(score / softcap) (Gemma 2).
        s_aux: [query_heads], logits of attention sinks (GPT-OSS).
        **kwargs: of other attention functions; ignored.

    Returns:
        [rows, new, query_heads, value_dim], and None for the weights.
    """
    view = _active.view
    assert view is not None, "used outside of serving()"
    rows, query_heads, new, dim = query.shape
    heads = key.shape[1]
    group = query_heads // heads
    scale = dim**-0.5 if scaling is None else scaling
    q = query.reshape(rows, heads, group * new, dim)
    layer: int = module.layer_idx  # type: ignore[assignment]
    out, lse = over_rows(
        view, layer, q, key, value, scale, sliding_window, softcap, new, group,
        with_lse=s_aux is not None,
    )  # fmt: skip
    if s_aux is not None:
        assert lse is not None
        sinks = s_aux.float().view(1, heads, group, 1).expand(-1, -1, -1, new)
        share = torch.sigmoid(lse - sinks.reshape(1, heads, group * new))
        out = (out.float() * share[..., None]).to(out.dtype)
    out = out.reshape(rows, heads * group, new, -1)
    return out.transpose(1, 2).contiguous(), None


def over_rows(
    view: View,
    layer: int,
    q: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    new: int = 1,
    group: int = 1,
    compiled: bool = False,
    with_lse: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Attention over the rows' own entries and over their shared prompts.

    Args:
        view: what else the rows see.
        layer: number of the layer.
        q: [rows, heads, group · new, head_dim], the queries of a key head.
        key: [rows, heads, width, head_dim], own entries.
        value: [rows, heads, width, value_dim].
        scale: factor on the scores.
        window: see `rows_attention`.
        softcap: see `rows_attention`.
        new: new entries a row.
        group: query heads a key head; needed only where new > 1.
        compiled: by torch.compile.
        with_lse: False where the log-sum-exps aren't needed: a GPU can do without them.

    Returns:
        [rows, heads, group · new, value_dim], and the float32 log-sum-exps, None without.
    """
    parts = view.prompts(layer)
    own = softcap is None and not compiled and build.serve("step", q, key, value)
    if own and in_slots(key, value):
        lengths = view.lengths(window)
        if lengths is not None and all(part.mask(window) is None for part in parts):
            return by_kernels(parts, q.contiguous(), key, value, lengths, scale)
    attended, joined = _functions(compiled)
    mask = _grouped(view.own_mask(window, q, new), group)
    if q.is_cuda and not parts and not with_lse and softcap is None:
        return fused(q, key, value, mask, scale), None
    out, lse = attended(q, key, value, mask, scale, softcap)
    if not parts:
        return out, lse
    other, other_lse = _over_prompts(parts, q, window, group, scale, softcap, attended)
    order = view.order()
    if order is not None:
        order = order.to(other.device)
        other, other_lse = other[order], other_lse[order]
    return joined(out, lse, other, other_lse)


@functools.cache
def _functions(compiled: bool) -> tuple[Any, Any]:
    """Softmax attention and merging, as they are or compiled: once for all layers and runs."""
    if not compiled:
        return softmax_attention, merged
    return torch.compile(softmax_attention), torch.compile(merged)


def by_kernels(
    parts: list[Part],
    q: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor,
    scale: float,
    room: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """`over_rows` for one new entry a row, by functions in C.

    Args:
        parts: the shared prompts, seen whole.
        q: [rows, heads, group, head_dim], contiguous.
        key: [rows or more, heads, width, head_dim], see `in_slots`.
        value: the same.
        lengths: int64 [rows], how many of its own entries a row sees.
        scale: factor on the scores.
        room: for what the rows see of their prompts, as `room_for` makes it.
    """
    if not parts:
        return attend(q, key, value, lengths, scale)
    prompt = room or room_for(q)
    for rows, shared, _ in parts:
        attend_prompt(q, shared.columns, shared.values, rows, scale, prompt)
    return attend(q, key, value, lengths, scale, prompt)


def room_for(q: Tensor) -> tuple[Tensor, Tensor]:
    """Memory for a result like q, [..., dim], and for its log-sum-exps."""
    return torch.empty_like(q), q.new_empty(q.shape[:-1])


def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Softmax attention without the log-sum-exps, as one operation of PyTorch's on a GPU."""
    if mask is not None:
        mask = mask.to(q.device).expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def _grouped(mask: Tensor | None, group: int) -> Tensor | None:
    """The mask for `group` query heads a key head: [rows, 1, group · new, width]."""
    return mask if mask is None or mask.shape[2] == 1 else mask.repeat(1, 1, group, 1)


def _over_prompts(
    parts: list[Part],
    q: Tensor,
    window: int | None,
    group: int,
    scale: float,
    softcap: float | None,
    attended: Any,
) -> tuple[Tensor, Tensor]:
    """What the rows see of their shared prompts, prompt after prompt, with the log-sum-exps."""
    seen, scores = [], []
    for part in parts:
        chosen = q if part.rows is None else q[part.rows.to(q.device)]
        n, heads, queries, dim = chosen.shape
        mask = _grouped(part.mask(window), group)
        if mask is not None:
            mask = mask.expand(n, 1, queries, -1).reshape(1, 1, n * queries, -1)
        flat = chosen.transpose(0, 1).reshape(1, heads, n * queries, dim)
        o, s = attended(flat, part.shared.keys, part.shared.values, mask, scale, softcap)
        seen.append(o.view(heads, n, queries, -1).transpose(0, 1))
        scores.append(s.view(heads, n, queries).transpose(0, 1))
    if len(parts) == 1:
        return seen[0], scores[0]
    return torch.cat(seen), torch.cat(scores)


ALL_ATTENTION_FUNCTIONS.register(NAME, rows_attention)
