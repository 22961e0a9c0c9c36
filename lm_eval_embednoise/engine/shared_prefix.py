"""A pass over several new entries a row, after a prompt that all rows share."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from lm_eval_embednoise.engine.attention import Part, Shared
from lm_eval_embednoise.engine.slots import additive


class _NewEntries(CacheLayerMixin):
    """One decoder block's entries of the pass; they are let go unless `keep`."""

    is_sliding = False

    def __init__(self, length: int, keep: bool) -> None:
        super().__init__()
        self.length, self.keep = length, keep

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if self.keep:
            self.keys, self.values = key_states, value_states
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1


class SharedPrefixCache(Cache):
    """The cache of such a pass, as `attention.View`.

    Args:
        prompt: of each block, seen by all rows.
        new: new entries a row.
        keep: `slots.entries` finds them after the pass.
    """

    def __init__(self, prompt: list[Shared], new: int, keep: bool = False) -> None:
        self.prompt, self.new, self.length = prompt, new, prompt[0].keys.shape[2]
        super().__init__(layers=[_NewEntries(self.length, keep) for _ in prompt])
        self._masks: dict[object, Tensor] = {}

    def own_mask(self, window: int | None, like: Tensor, new: int) -> Tensor | None:
        """Causal, [1, 1, new, new]."""
        return self._mask(window, 0, new, like)

    def lengths(self, window: int | None) -> None:
        """Rows have several new entries."""

    def prompts(self, layer: int) -> list[Part]:
        """One prompt, seen by all rows."""
        shared = self.prompt[layer]

        def mask(window: int | None) -> Tensor | None:
            if window is None:
                return None
            return self._mask(window, -self.length, self.length, shared.keys)

        return [Part(None, shared, mask)]

    def order(self) -> None:
        """In order: there is one prompt."""

    def _mask(self, window: int | None, start: int, width: int, like: Tensor) -> Tensor:
        key = (window, start, like.device)
        if key not in self._masks:
            query = torch.arange(self.new, device=like.device)[:, None]
            column = torch.arange(start, start + width, device=like.device)[None]
            seen = column <= query
            if window is not None:
                seen &= column > query - window
            self._masks[key] = additive(seen[None, None], like.dtype)
        return self._masks[key]
