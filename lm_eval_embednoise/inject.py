"""Where the noise goes: embedding and blocks of a causal LM, hooks that undo themselves.

Sites are found by a table of the names that architectures use, checked against the config; a model
outside it is served by naming its modules. Noise is added to a module's output in a forward hook,
so any code that runs the model sees it, and nothing of the model is changed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lm_eval_embednoise import perturb, streams
from lm_eval_embednoise.config import EMBED, Perturbation, site_order

log = logging.getLogger(__name__)

# Where decoder blocks live, most common first; names below the model with its head.
BLOCK_LISTS = (
    "model.layers",
    "model.decoder.layers",
    "transformer.h",
    "transformer.blocks",
    "gpt_neox.layers",
    "backbone.layers",
    "language_model.layers",
    "model.language_model.layers",
)


def find_blocks(model: nn.Module, blocks: str | None = None) -> nn.ModuleList:
    """The list of decoder blocks.

    Args:
        model: a causal LM.
        blocks: dotted name of the list, for a model the table doesn't know.

    Raises:
        ValueError: teaching the override, when the list isn't where any known family has it.
    """
    for name in (blocks,) if blocks else BLOCK_LISTS:
        try:
            found = model.get_submodule(name)
        except AttributeError:
            continue
        if isinstance(found, nn.ModuleList) and len(found):
            return found
    lists = [n for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 1]
    raise ValueError(
        f"no decoder blocks found in {type(model).__name__}"
        + (f" under blocks={blocks!r}" if blocks else "")
        + f"; name their list with blocks=NAME, such as one of: {', '.join(lists) or 'none'}"
    )


def find_site(model: nn.Module, site: str, blocks: str | None = None) -> nn.Module:
    """The module whose output is `site`.

    Raises:
        ValueError: for a block that the model doesn't have.
    """
    if site == EMBED:
        embedding = model.get_input_embeddings()  # type: ignore[operator]
        if not isinstance(embedding, nn.Module):
            raise ValueError(f"{type(model).__name__} has no input embedding module")
        return embedding
    layers = find_blocks(model, blocks)
    index = site_order(site)
    if index >= len(layers):
        raise ValueError(
            f"depth={index} is beyond the last block; {type(model).__name__} has {len(layers)} "
            f"blocks, so depth can be embed or 0 to {len(layers) - 1}"
        )
    return layers[index]


@contextmanager
def hooked(
    model: nn.Module,
    sites: tuple[str, ...],
    act: Callable[[str, Tensor], Tensor],
    blocks: str | None = None,
) -> Iterator[None]:
    """Within the context, `act(site, hidden [batch, pos, dim])` replaces the output of each site.

    All modules are found before the first hook is attached, and every hook is removed on leaving,
    whether by success, error or interrupt.
    """
    modules = [(site, find_site(model, site, blocks)) for site in sites]
    handles = []
    try:
        for site, module in modules:
            handles.append(module.register_forward_hook(_replace_output(site, act)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _replace_output(site: str, act: Callable[[str, Tensor], Tensor]) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (act(site, output[0]), *output[1:])
        return act(site, output)

    return hook


@torch.no_grad()
def table_norm(model: nn.Module, token_ids: Tensor, chunk: int = 8192) -> float:
    """Mean norm of the embedding output over the given tokens, after the model's own scaling.

    Args:
        model: a causal LM.
        token_ids: int64 [n], the tokens that the tokenizer can emit.
        chunk: rows embedded at a time.
    """
    embedding = find_site(model, EMBED)
    total = 0.0
    for part in token_ids.split(chunk):
        total += float(embedding(part[None])[0].float().norm(dim=-1).double().sum())
    return total / len(token_ids)


@dataclass
class Rows:
    """What the noise needs to know about the rows of the forward passes to come.

    Attributes:
        keys: site → int64 [rows, 2], the rows' noise streams.
        std: site → float64 [rows], standard deviation per coordinate.
        prompt_length: int64 [rows].
        positions: int64 [rows, pos] of the next pass.
    """

    keys: dict[str, Tensor]
    std: dict[str, Tensor]
    prompt_length: Tensor
    positions: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.int64))


class Injector:
    """Adds the noise of one perturbation to whatever rows it is told are running.

    `measured[site]` is float64 [rows, 2] for the current rows: the sum of ‖ε‖/‖h‖ over perturbed
    positions, and their number.
    """

    def __init__(
        self, model: nn.Module, perturbation: Perturbation, blocks: str | None = None
    ) -> None:
        self.model = model
        self.perturbation = perturbation
        self.blocks = blocks
        self.rows: Rows | None = None
        self.measured: dict[str, Tensor] = {}
        for site in perturbation.sites:
            find_site(model, site, blocks)

    @contextmanager
    def running(self, rows: Rows) -> Iterator[None]:
        """Within the context, forward passes are perturbed as these rows."""
        self.rows = rows
        device = rows.prompt_length.device
        count = len(rows.prompt_length)
        self.measured = {
            site: torch.zeros(count, 2, dtype=torch.float64, device=device)
            for site in self.perturbation.sites
        }
        try:
            with hooked(self.model, tuple(self.perturbation.sites), self._add, self.blocks):
                yield
        finally:
            self.rows = None

    def _add(self, site: str, hidden: Tensor) -> Tensor:
        rows = self.rows
        assert rows is not None
        device = hidden.device
        noise = perturb.draw(
            self.perturbation,
            rows.keys[site].to(device),
            rows.positions.to(device),
            rows.prompt_length.to(device),
            rows.std[site].to(device),
            hidden.shape[-1],
        )
        epsilon = noise.norm(dim=-1)
        ratio = epsilon / hidden.float().norm(dim=-1).clamp_min(1e-30)
        summed = torch.stack([ratio.sum(dim=1), (epsilon > 0).sum(dim=1)], dim=1)
        self.measured[site] += summed.to(self.measured[site])
        return hidden + noise.to(hidden.dtype)


def noise_keys(
    perturbation: Perturbation, pairs: list[tuple[str, int]], device: torch.device
) -> dict[str, Tensor]:
    """Streams for rows given as (problem, sample index): site → int64 [rows, 2]."""
    return {
        site: streams.key_words(
            (
                streams.stream_key(perturbation.seed, problem, sample, "noise", site)
                for problem, sample in pairs
            ),
            device,
        )
        for site in perturbation.sites
    }
