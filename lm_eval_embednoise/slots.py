"""A key/value cache whose rows have lengths of their own: rows leave and join while others decode.

Hugging Face's caches keep one length for all rows. Here row i writes its next entry at column
`write[i]`, so column j of a row always holds its input vector j, whatever the other rows do; a
row's unused columns are masked by the 4-D attention mask that `decode_mask` makes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class SlotLayer(CacheLayerMixin):
    """One decoder block's keys and values: [slots, heads, columns, head_dim]."""

    is_sliding = False

    def __init__(self, state: SlotState) -> None:
        super().__init__()
        self.state = state

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        def room(like: Tensor) -> Tensor:
            shape = (self.state.slots, like.shape[1], self.state.columns, like.shape[3])
            return torch.zeros(shape, dtype=like.dtype, device=like.device)

        self.keys, self.values = room(key_states), room(value_states)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Store one new entry a row; return the columns in use, [rows, heads, width, head_dim]."""
        assert self.keys is not None and self.values is not None
        rows, write = self.state.rows.to(self.keys.device), self.state.write.to(self.keys.device)
        self.keys[rows, :, write] = key_states[:, :, 0]
        self.values[rows, :, write] = value_states[:, :, 0]
        used = slice(len(rows)), slice(None), slice(self.state.width)
        return self.keys[used], self.values[used]

    def fill(self, start: int, keys: Tensor, values: Tensor) -> None:
        """Put prefilled rows, [rows or 1, heads, pos, head_dim], into slots from `start` on."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        assert self.keys is not None and self.values is not None
        stop = start + self.state.joining
        self.keys[start:stop, :, : keys.shape[2]] = keys
        self.values[start:stop, :, : values.shape[2]] = values

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copy rows `source` over rows `target`."""
        assert self.keys is not None and self.values is not None
        width = self.state.width
        for held in (self.keys, self.values):
            held[target.to(held.device), :, :width] = held[source.to(held.device), :, :width]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.state.width, 0

    def get_seq_length(self) -> int:
        return self.state.width

    def get_max_length(self) -> int:
        return self.state.columns


class SlotState:
    """What all layers of a slot cache share: its size, and where the next entries go."""

    def __init__(self, slots: int, columns: int) -> None:
        self.slots, self.columns = slots, columns
        self.joining = 0
        self.width = 0
        self.rows = torch.empty(0, dtype=torch.int64)
        self.write = torch.empty(0, dtype=torch.int64)


class SlotCache(Cache):
    """A cache of `slots` rows by `columns` positions for a model of `layers` decoder blocks."""

    def __init__(self, layers: int, slots: int, columns: int) -> None:
        self.state = SlotState(slots, columns)
        self.slot_layers = [SlotLayer(self.state) for _ in range(layers)]
        super().__init__(layers=list(self.slot_layers))

    def fill(self, start: int, rows: int, prefilled: Cache) -> None:
        """Copy a prefill's keys and values into `rows` slots; one prefilled row serves them all."""
        self.state.joining = rows
        self.state.width = max(self.state.width, prefilled.get_seq_length())
        for mine, other in zip(self.slot_layers, prefilled.layers, strict=True):
            assert isinstance(other, CacheLayerMixin)
            assert other.keys is not None and other.values is not None
            mine.fill(start, other.keys, other.values)

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copy rows over others, in every layer."""
        for layer in self.slot_layers:
            layer.move(source, target)

    def write_at(self, columns: Tensor, width: int) -> None:
        """Say where the next pass writes: row i at columns[i], int64 [rows]; `width` are in use."""
        self.state.rows = torch.arange(len(columns), device=columns.device)
        self.state.write = columns
        self.state.width = width


def seen(columns: Tensor, width: int) -> Tensor:
    """int64 [rows, width]: 1 where a row has an entry, for models that make a mask of their own."""
    return (torch.arange(width, device=columns.device) <= columns[:, None]).long()


def decode_mask(columns: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Additive mask for one new entry a row: row i sees columns 0 to columns[i].

    Args:
        columns: int64 [rows], where each row's new entry stands.
        width: columns in use.
        dtype: of the attention scores.

    Returns:
        [rows, 1, 1, width], 0 or the dtype's smallest number.
    """
    seen = torch.arange(width, device=columns.device)[None, :] <= columns[:, None]
    mask = torch.zeros(seen.shape, dtype=dtype, device=columns.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None, None, :]
