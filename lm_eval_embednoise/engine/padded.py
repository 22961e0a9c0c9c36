"""Decoding for models whose rows can't have separate columns: rows leave, none joins midway.

The rows are left-padded in transformers' own cache, under a mask of [rows, positions], as its
`generate` has them; those that end are dropped. When all have ended the next batch begins. It
serves every model that `families.decoding` has no better way for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import DynamicCache

from lm_eval_embednoise.engine.batch import Batch

if TYPE_CHECKING:
    from lm_eval_embednoise.engine.slots import Entries


class PaddedCache:
    """Entries of rows of unequal length, aligned at their ends.

    Prefills are kept as they come, in the order of the rows, and put together by the first pass.
    """

    def __init__(self) -> None:
        self._prefilled: list[tuple[int, Entries]] = []
        self._together = DynamicCache()

    def fill(self, slots: Tensor, prefilled: Entries) -> None:
        """Take the prefill of the next rows; one prefilled row serves them all."""
        if int(slots[0]) == 0:
            self._prefilled = []
        self._prefilled.append((len(slots), prefilled))
        self._together = DynamicCache()

    def move(self, source: Tensor, target: Tensor, width: int) -> None:
        """Copy rows over others, whole: their entries end in one column."""
        for layer in self._layers():
            for part in (layer.keys, layer.values):
                part[target.to(part.device)] = part[source.to(part.device)]

    def wipe(self, slot: int) -> None:
        """Nothing: no other row takes this one's place."""

    def of(self, count: int) -> DynamicCache:
        """The cache of the first `count` rows, as the model takes it."""
        for layer in self._layers():
            layer.keys, layer.values = layer.keys[:count], layer.values[:count]
        return self._together

    def _layers(self) -> list[Any]:
        """The layers of all rows' entries, put together from the prefills if they aren't yet."""
        if not self._together.layers:
            width = max(prefilled[0][0].shape[2] for _, prefilled in self._prefilled)
            for number in range(len(self._prefilled[0][1])):
                keys: list[Tensor] = []
                values: list[Tensor] = []
                for rows, prefilled in self._prefilled:
                    for parts, part in zip((keys, values), prefilled[number], strict=True):
                        padded = pad(part, (0, 0, width - part.shape[2], 0))
                        parts.append(padded.expand(rows, -1, -1, -1))
                self._together.update(torch.cat(keys), torch.cat(values), number)
        return self._together.layers


class PaddedBatch(Batch):
    """Rows that begin together; see `Batch`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cache = PaddedCache()  # type: ignore[assignment]

    def wants(self) -> int:
        """All slots when none is taken, otherwise none."""
        return 0 if self.live else self.slots

    def _enter(self, state: dict[str, Tensor], tokens: Tensor, positions: Tensor) -> Tensor:
        """The pass over one token a row, whose entries are aligned at their ends."""
        cache: DynamicCache = self.cache.of(len(tokens))  # type: ignore[attr-defined]
        width = cache.get_seq_length() + 1
        column = torch.arange(width, device=positions.device)
        mask = (column >= width - 1 - positions).long()
        return self._forward(state, positions, tokens, cache, mask)
