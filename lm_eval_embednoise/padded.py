"""Decoding for models whose rows can't have columns of their own: rows leave, none joins midway.

The rows stand left-padded in transformers' own cache, under a mask of [rows, positions], as its
`generate` has them; those that end are dropped. When all have ended the next batch begins. It
serves every model of which `families.decoding` doesn't know more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache, DynamicCache

from lm_eval_embednoise.batch import Batch

if TYPE_CHECKING:
    from lm_eval_embednoise.sampler import Sampler


class PaddedCache:
    """Entries of rows of unequal length, aligned at their ends.

    Prefills are kept as they come, in the order of the rows, and put together by the first pass.
    """

    def __init__(self) -> None:
        self._prefilled: list[tuple[int, Cache]] = []
        self._together = DynamicCache()

    def fill(self, start: int, rows: int, prefilled: Cache) -> None:
        """Take the prefill of the next `rows` rows; one prefilled row serves them all."""
        if start == 0:
            self._prefilled = []
        self._prefilled.append((rows, prefilled))
        self._together = DynamicCache()

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copy rows over others."""
        for layer in self._layers():
            for held in (layer.keys, layer.values):
                held[target.to(held.device)] = held[source.to(held.device)]

    def of(self, count: int) -> DynamicCache:
        """The cache of the first `count` rows, as the model takes it."""
        for layer in self._layers():
            layer.keys, layer.values = layer.keys[:count], layer.values[:count]
        return self._together

    def _layers(self) -> list[Any]:
        """The layers of all rows' entries, put together from the prefills if they aren't yet."""
        if not self._together.layers:
            width = max(cache.get_seq_length() for _, cache in self._prefilled)
            for number in range(len(self._prefilled[0][1].layers)):
                keys: list[Tensor] = []
                values: list[Tensor] = []
                for rows, cache in self._prefilled:
                    layer: Any = cache.layers[number]
                    for found, held in ((keys, layer.keys), (values, layer.values)):
                        padded = pad(held, (0, 0, width - held.shape[2], 0))
                        found.append(padded.expand(rows, -1, -1, -1))
                self._together.update(torch.cat(keys), torch.cat(values), number)
        return self._together.layers


class PaddedBatch(Batch):
    """Rows that begin together; see `Batch`."""

    def __init__(self, sampler: Sampler) -> None:
        super().__init__(sampler, PaddedCache())  # type: ignore[arg-type]

    def wants(self, slots: int) -> int:
        """All slots when none is taken, otherwise none."""
        return 0 if self.rows else slots

    def _advance(self, tokens: Tensor) -> None:
        """One forward pass: the logits after `tokens`, each row's entries aligned at their ends."""
        state, lengths = self.state, self.state["length"]
        cache: DynamicCache = self.cache.of(len(tokens))  # type: ignore[attr-defined]
        width = cache.get_seq_length() + 1
        column = torch.arange(width, device=lengths.device)
        mask = (column >= width - 1 - lengths[:, None]).long()
        if self.sampler.perturbation.perturbs_generated:
            logits = self._perturbed(state, lengths[:, None], tokens[:, None], cache, mask)
        else:
            logits = self.sampler.forward(tokens[:, None], cache, lengths[:, None], mask)
        state["logits"] = logits[:, -1].float()
        state["length"] = lengths + 1
