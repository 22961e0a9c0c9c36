"""The norm m that a relative sigma refers to, measured on the model, and the std that follows."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lm_eval_embednoise.noise import perturb
from lm_eval_embednoise.noise.inject import find_site, hooked
from lm_eval_embednoise.noise.model_parts import find_embedding, hidden_width
from lm_eval_embednoise.noise.perturbation import EMBED, Perturbation
from lm_eval_embednoise.noise.sites import in_mlp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lm_eval_embednoise.noise.clean_states import CleanStates


class _Reached(Exception):
    """Ends a forward pass at the first block, with what entered it."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


@torch.no_grad()
def token_norms(
    model: nn.Module, token_ids: Tensor, blocks: str | None = None, chunk: int = 8192
) -> Tensor:
    """Norms of tokens' vectors as they enter the first block, after the model's own scaling.

    A learned position that the model adds is no part of the token's vector: what counts is how far
    the first block's input is from that of a zero embedding at the same position. Where positions
    are added elsewhere (rotary, ALiBi) that is the scaled embedding itself.

    Args:
        model: a causal LM.
        token_ids: int64 [n].
        blocks: dotted name of the decoder blocks' list, if it can't be found.
        chunk: tokens at a time.

    Returns:
        float64 [n].
    """
    nothing = _entering(model, token_ids[:1], blocks, silent=True)
    norms = [
        (_entering(model, part, blocks).float() - nothing.float()).norm(dim=-1)
        for part in token_ids.split(chunk)
    ]
    return torch.cat(norms).double()


def _zero(module: nn.Module, args: object, output: Tensor) -> Tensor:
    return torch.zeros_like(output)


def _entering(
    model: nn.Module, token_ids: Tensor, blocks: str | None, silent: bool = False
) -> Tensor:
    """What enters the first block for each token on its own, [n, dim]; no block is run."""

    def stop(site: str, hidden: Tensor) -> Tensor:
        raise _Reached(hidden)

    with ExitStack() as stack:
        stack.enter_context(hooked(model, (EMBED,), stop, blocks))
        if silent:
            handle = find_embedding(model).register_forward_hook(_zero)
            stack.callback(handle.remove)
        try:
            model(input_ids=token_ids[:, None], use_cache=False)
        except _Reached as reached:
            return reached.hidden[:, 0]
    raise RuntimeError(f"{type(model).__name__} did not run its first block")


class References:
    """The norms and standard deviations of one model under one perturbation, measured once."""

    def __init__(
        self,
        model: nn.Module,
        perturbation: Perturbation,
        token_ids: Tensor | None = None,
        blocks: str | None = None,
        states: CleanStates | None = None,
    ) -> None:
        """Nothing is measured yet.

        Args:
            model: a causal LM.
            perturbation: names the unit, the reference and the sites.
            token_ids: int64, tokens the `table` reference averages over; None for all.
            blocks: dotted name of the decoder blocks' list, if it can't be found.
            states: the clean model's, for the reference `decode`.

        Raises:
            ValueError: for the reference `decode` without them.
        """
        if perturbation.sites and perturbation.sigma_reference == "decode":
            if states is None:
                raise ValueError(
                    "sigma_reference='decode' needs the clean model's states, which hf-embednoise "
                    "measures; from Python give states=clean_states.load(FILE, FINGERPRINT)"
                )
            states.check(perturbation)
        self._decoded = {} if states is None else states.norms
        weight: Tensor = find_embedding(model).weight  # type: ignore[assignment]
        self.model, self.perturbation, self.blocks = model, perturbation, blocks
        self.device = weight.device
        self.token_ids = torch.arange(len(weight)) if token_ids is None else token_ids
        self._table: float | None = None
        self._stds: dict[tuple[int, ...], dict[str, float]] = {}

    def width(self, site: str) -> int:
        """d, the width of the vectors at a site."""
        if not in_mlp(site):
            return hidden_width(self.model)
        end: Any = find_site(self.model, site, self.blocks)
        return int(end.nx if isinstance(end, Conv1D) else end.in_features)

    @torch.no_grad()
    def norm(self, prompt_ids: Sequence[int], site: str) -> float | None:
        """The norm m that scales a site's noise on a prompt; None for absolute noise."""
        kind = perturb.reference_kind(self.perturbation, site)
        if kind is None:
            return None
        if kind == "decode":
            return self._decoded[site]
        if kind == "table":
            if self._table is None:
                norms = token_norms(self.model, self.token_ids.to(self.device), self.blocks)
                self._table = float(norms.mean())
            return self._table
        ids = torch.tensor(list(prompt_ids), device=self.device)
        if kind == "prompt":
            return float(token_norms(self.model, ids, self.blocks).mean())
        seen: list[Tensor] = []

        def note(name: str, hidden: Tensor) -> Tensor:
            seen.append(hidden[0].float().norm(dim=-1))
            return hidden

        with hooked(self.model, (site,), note, self.blocks):
            self.model(input_ids=ids[None], use_cache=False)
        bos = getattr(self.model.config, "bos_token_id", None)
        start = 1 if len(ids) > 1 and bos is not None and int(ids[0]) == bos else 0
        return float(seen[0][start:].quantile(0.5))

    def std(self, prompt_ids: Sequence[int]) -> dict[str, float]:
        """Site → standard deviation per coordinate on a prompt, measured once."""
        prompt = tuple(prompt_ids)
        if prompt not in self._stds:
            self._stds[prompt] = {
                site: perturb.site_std(
                    self.perturbation, site, self.norm(prompt, site), self.width(site)
                )
                for site in self.perturbation.sites
            }
        return self._stds[prompt]
