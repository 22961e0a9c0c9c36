"""Keys and values of the rows being decoded: rows of any length, which leave and join.

Hugging Face's caches keep one length for all rows and grow at every step. Here row i writes its
next entry at column `write[i]` of memory taken once. The prompt's entries either come before
the row's own, or, where K samples share a prompt, are kept once for all of them.
"""

from __future__ import annotations

import math
import weakref
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from lm_eval_embednoise.engine.attention import Part, Shared

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Entries = list[tuple[Tensor, Tensor]]  # for each layer keys and values, [rows, heads, pos, dim]


def entries(cache: Cache) -> Entries:
    """What a prefill left in a cache of transformers'."""
    kept = []
    for layer in cache.layers:
        assert isinstance(layer, CacheLayerMixin)
        assert layer.keys is not None
        assert layer.values is not None
        kept.append((layer.keys, layer.values))
    return kept


class SlotLayer(CacheLayerMixin):
    """One decoder block's keys and values: [slots, heads, columns, head_dim]."""

    is_sliding = False

    def __init__(self, cache: SlotCache) -> None:
        super().__init__()
        self.cache: SlotCache = weakref.proxy(cache)  # no circle: memory goes with the last user

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        def room(like: Tensor) -> Tensor:
            shape = (self.cache.slots, like.shape[1], self.cache.columns, like.shape[3])
            return _zeros(shape, like)

        self.keys, self.values = room(key_states), room(value_states)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Store one new entry a row; return the columns in use, [rows, heads, width, head_dim]."""
        given = (key_states, value_states)
        for memory, new in zip(self.memory(*given), given, strict=True):
            _, heads, _, dim = new.shape
            where = self.cache.flat(heads).to(memory.device)
            memory.view(-1, dim).index_copy_(0, where, new.reshape(-1, dim))
        return self.used(len(key_states))

    def memory(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values, [slots, heads, columns, head_dim], made for entries like these."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def used(self, rows: int) -> tuple[Tensor, Tensor]:
        """The columns in use, [rows, heads, width, head_dim]."""
        assert self.keys is not None
        assert self.values is not None
        width = self.cache.width
        return self.keys[:rows, :, :width], self.values[:rows, :, :width]

    def fill(self, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Put prefilled entries, [slots or 1, heads, pos, head_dim], in slots' first columns."""
        for memory, new in zip(self.memory(keys, values), (keys, values), strict=True):
            memory[slots.to(memory.device), :, : new.shape[2]] = new

    def move(self, source: Tensor, target: Tensor, width: int) -> None:
        """Copy the first columns of rows `source` over those of rows `target`."""
        for memory in (self.keys, self.values):
            if memory is not None:
                moved = memory[source.to(memory.device), :, :width]
                memory[target.to(memory.device), :, :width] = moved

    def wipe(self, slot: int) -> None:
        """Zero a row's entries: a mask hides a number from other rows, but not a NaN."""
        for memory in (self.keys, self.values):
            if memory is not None:
                memory[slot] = 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.width, 0

    def get_seq_length(self) -> int:
        return self.cache.width

    def get_max_length(self) -> int:
        return self.cache.columns


class SlotCache(Cache):
    """Memory for `slots` rows by `columns` own entries, in each of a model's decoder blocks.

    Own entry j of a row is input vector j of its sample or, where the prompt is shared, the one
    that comes j after the prompt.

    Args:
        layers: the model's decoder blocks.
        slots, columns: see above.
        keep: False for a pass whose entries nobody reads later: all blocks use the same memory.
    """

    def __init__(self, layers: int, slots: int, columns: int, keep: bool = True) -> None:
        self.slots, self.columns = slots, columns
        self.width = 0
        made = [SlotLayer(self) for _ in range(layers if keep else 1)]
        self.slot_layers = made if keep else made * layers
        super().__init__(layers=list(self.slot_layers))
        self._parts: list[list[Part]] = []
        self._order: Tensor | None = None

    def wipe(self, slot: int) -> None:
        """Zero all of a row's entries."""
        for layer in self.slot_layers:
            layer.wipe(slot)

    def fill(self, slots: Tensor, prefilled: Entries) -> None:
        """Copy a prefill's entries to rows' first columns; one prefilled row serves all of them."""
        for mine, (keys, values) in zip(self.slot_layers, prefilled, strict=True):
            mine.fill(slots, keys, values)

    def move(self, source: Tensor, target: Tensor, width: int) -> None:
        """Copy the first `width` columns of rows over those of others, in every layer."""
        for layer in self.slot_layers:
            layer.move(source, target, width)

    def share(self, prompts: Sequence[tuple[Tensor | None, list[Shared]]]) -> None:
        """Say which rows see which shared prompt: int64 [n] row numbers, None for all rows."""
        self._parts = [
            [
                Part(rows, shared[layer], self._prompt_mask(rows, shared[layer].keys))
                for rows, shared in prompts
            ]
            for layer in range(len(self.layers))
        ]
        self._order = None
        if len(prompts) > 1:
            order = torch.cat([rows for rows, _ in prompts if rows is not None])
            self._order = torch.empty_like(order)
            self._order[order] = torch.arange(len(order), device=order.device)

    def write_at(self, columns: Tensor, width: int, even: bool) -> None:
        """Say where the next pass writes.

        Args:
            columns: int64 [rows], the own column of each row's new entry.
            width: own columns in use then.
            even: whether all rows write to the last of them.
        """
        self.write, self.width, self.even = columns, width, even
        self._flat: dict[int, Tensor] = {}
        self._masks: dict[object, Tensor | None] = {}

    def flat(self, heads: int) -> Tensor:
        """Where the new entries go in [slots · heads · columns]: int64 [rows · heads]."""
        if heads not in self._flat:
            count = len(self.write) * heads
            line = torch.arange(count, device=self.write.device) * self.columns
            self._flat[heads] = line + self.write.repeat_interleave(heads)
        return self._flat[heads]

    def own_mask(self, window: int | None, like: Tensor, new: int) -> Tensor | None:
        """Additive [rows, 1, 1, width], or None where all is seen: see `attention.View`."""
        if self.even and (window is None or window >= self.width):
            return None
        if ("own", window) not in self._masks:
            self._masks["own", window] = decode_mask(self.write, self.width, like.dtype, window)
        return self._masks["own", window]

    def lengths(self, window: int | None) -> Tensor | None:
        """See `attention.View`."""
        return self.write + 1 if window is None or window >= self.width else None

    def prompts(self, layer: int) -> list[Part]:
        """The shared prompts in a layer: see `attention.View`."""
        return self._parts[layer] if self._parts else []

    def order(self) -> Tensor | None:
        """See `attention.View`."""
        return self._order

    def _prompt_mask(
        self, rows: Tensor | None, keys: Tensor
    ) -> Callable[[int | None], Tensor | None]:
        length, dtype = keys.shape[2], keys.dtype
        cache = weakref.proxy(self)

        def mask_of(window: int | None) -> Tensor | None:
            if window is None:
                return None
            write = cache.write if rows is None else cache.write[rows]
            key = ("prompt", window, id(rows))
            if key not in cache._masks:
                newest = length + write
                visible = torch.arange(length, device=write.device) > newest[:, None] - window
                mask = None if bool(visible.all()) else additive(visible[:, None, None], dtype)
                cache._masks[key] = mask
            mask = cache._masks[key]
            assert mask is None or isinstance(mask, Tensor)
            return mask

        return mask_of


def _zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Zeros that take memory only where they are written: what is masked may be read."""
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    memory = np.zeros(math.prod(shape) * like.element_size(), dtype=np.uint8)
    return torch.from_numpy(memory).view(like.dtype).view(shape)


def decode_mask(
    columns: Tensor, width: int, dtype: torch.dtype, window: int | None = None
) -> Tensor:
    """Additive mask for one new entry a row: row i sees columns 0 to columns[i].

    Args:
        columns: int64 [rows], where each row's new entry is.
        width: columns in use.
        dtype: of the attention scores.
        window: how many entries back a row sees, the new one included; None for all.

    Returns:
        [rows, 1, 1, width], 0 or the dtype's smallest number.
    """
    column = torch.arange(width, device=columns.device)[None, :]
    visible = column <= columns[:, None]
    if window is not None:
        visible &= column > columns[:, None] - window
    return additive(visible[:, None, None], dtype)


def seen(columns: Tensor, width: int) -> Tensor:
    """int64 [rows, width]: 1 where a row has an entry, for models that make masks themselves."""
    return (torch.arange(width, device=columns.device) <= columns[:, None]).long()


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where `visible`, the dtype's smallest number elsewhere; of the same shape."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)
