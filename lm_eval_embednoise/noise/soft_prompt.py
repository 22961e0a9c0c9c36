"""Random soft prompts: vectors from a Gaussian fitted to the embedding table, fresh for a sample.

After "From Noise to Diversity" (arXiv 2605.11936): isotropic, with the entrywise mean and variance
of the pretrained table. What the vectors replace are placeholder tokens of the prompt, at the
embedding module: the model scales and places them as it does a token's vector.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lm_eval_embednoise.noise import perturb, streams
from lm_eval_embednoise.noise.model_parts import find_embedding
from lm_eval_embednoise.noise.perturbation import EMBED, Perturbation

if TYPE_CHECKING:
    from collections.abc import Sequence


@torch.no_grad()
def fit_table(
    embedding: nn.Module, token_ids: Tensor, per_dimension: bool, chunk: int = 8192
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the embedding output over some tokens.

    Args:
        embedding: the embedding module; what it does to a vector beyond looking it up counts.
        token_ids: int64 [n].
        per_dimension: over the tokens for each dimension, or over all entries.
        chunk: tokens at a time.

    Returns:
        Two float32 [dim]; all equal unless per_dimension. The variance divides by the number.
    """
    first = second = torch.zeros(1, dtype=torch.float64, device=token_ids.device)
    for part in token_ids.split(chunk):
        vectors = embedding(part[None])[0].double()
        first, second = first + vectors.sum(dim=0), second + vectors.square().sum(dim=0)
    mean, square = first / len(token_ids), second / len(token_ids)
    if not per_dimension:
        mean, square = mean.mean().expand_as(mean), square.mean().expand_as(square)
    return mean.float(), (square - mean.square()).clamp_min(0).sqrt().float()


class SoftPrompts:
    """The random soft prompts of one model; the table is fitted once, when first needed."""

    def __init__(
        self, model: nn.Module, perturbation: Perturbation, token_ids: Tensor | None = None
    ) -> None:
        """Nothing is measured yet.

        Args:
            model: a causal LM.
            perturbation: number of vectors, fit and scale.
            token_ids: int64, tokens whose vectors the Gaussian is fitted to; None for all.
        """
        self.perturbation = perturbation
        self._embedding = find_embedding(model)
        weight: Tensor = self._embedding.weight  # type: ignore[assignment]
        self._tokens = torch.arange(len(weight)) if token_ids is None else token_ids
        self._device = weight.device
        self._fit: tuple[Tensor, Tensor] | None = None

    @property
    def fit(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation that the vectors are drawn with, before `rsp_scale`."""
        if self._fit is None:
            per_dimension = self.perturbation.rsp_fit == "per-dimension"
            self._fit = fit_table(self._embedding, self._tokens.to(self._device), per_dimension)
        return self._fit

    def vectors(self, pairs: Sequence[tuple[str, int]]) -> Tensor | None:
        """The soft prompts of rows given as (problem, sample index).

        Returns:
            float32 [rows, N, dim], None without `rsp`.
        """
        if not self.perturbation.rsp:
            return None
        seed, draw_of = self.perturbation.seed, self.perturbation.draw_of
        keys = [streams.stream_key(seed, name, draw_of(i), "rsp", EMBED) for name, i in pairs]
        return perturb.soft_vectors(
            self.perturbation, streams.key_words(keys, self._device), *self.fit
        )
