"""Where the noise goes: the sites of a causal LM, hooks that undo themselves.

Noise is added in forward hooks, so any code that runs the model sees it, and nothing of the model
is changed. The site `embed` is what enters the first block: the token's vector after all that the
model itself does to it (scaling, learned positions, normalisation). Block k is what leaves block k,
and MLP k what enters the last layer of its MLP.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lm_eval_embednoise.kernels import build, draws
from lm_eval_embednoise.noise import orthogonal, perturb, streams
from lm_eval_embednoise.noise.model_parts import find_blocks, find_embedding, find_mlp_end
from lm_eval_embednoise.noise.perturbation import EMBED, Perturbation
from lm_eval_embednoise.noise.sites import block_of, in_mlp, written

Act = Callable[[str, Tensor], Tensor]  # replaces the vectors [rows, pos, dim] at a site


def find_site(model: nn.Module, site: str, blocks: str | None = None) -> nn.Module:
    """The module of a site: the first block, whose input is `embed`, block k, or its MLP's end.

    Raises:
        ValueError: for a block that the model doesn't have, or whose MLP doesn't end in one layer.
    """
    layers = find_blocks(model, blocks)
    if site == EMBED:
        return layers[0]
    index = block_of(site)
    if index >= len(layers):
        raise ValueError(
            f"depth={written((site,))} is beyond the last block; {type(model).__name__} has "
            f"{len(layers)} blocks, so depth can be embed or 0 to {len(layers) - 1}"
        )
    return find_mlp_end(layers[index], site) if in_mlp(site) else layers[index]


@contextmanager
def hooked(
    model: nn.Module,
    sites: tuple[str, ...],
    act: Act,
    blocks: str | None = None,
) -> Iterator[None]:
    """Within the context, `act(site, hidden [batch, pos, dim])` replaces the vectors at each site.

    All modules are found before the first hook is attached, and every hook is removed on leaving,
    whether by success, error or interrupt.
    """
    modules = [(site, find_site(model, site, blocks)) for site in sites]
    handles = []
    try:
        for site, module in modules:
            if site == EMBED or in_mlp(site):
                hook = _replace_input(site, act)
                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(_replace_output(site, act)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _replace_input(site: str, act: Act) -> Any:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (act(site, args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": act(site, kwargs["hidden_states"])}

    return hook


def _replace_output(site: str, act: Act) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (act(site, output[0]), *output[1:])
        return act(site, output)

    return hook


@dataclass
class Rows:
    """What the noise depends on in the rows of the forward passes to come.

    Attributes:
        keys: site → int64 [rows, 2 or more], the rows' noise streams: see `noise_keys`.
        std: site → float64 [rows], standard deviation per coordinate.
        prompt_length: int64 [rows].
        positions: int64 [rows, pos] of the next pass.
        soft: float32 [rows, N, dim], random soft prompts to put in the place of embeddings.
        soft_start: int64 [rows], the positions of their first vectors.
        drawn: site → noise [rows, pos, dim] for them where it is at hand; None to draw it.
        roots: site → float32 [dim, dim] that shapes it (see `CleanStates`), where it is shaped.
    """

    keys: dict[str, Tensor]
    std: dict[str, Tensor]
    prompt_length: Tensor
    positions: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.int64))
    soft: Tensor | None = None
    soft_start: Tensor | None = None
    drawn: dict[str, Tensor] | None = None
    roots: dict[str, Tensor] = field(default_factory=dict)
    _weights: tuple[Tensor, Tensor] | None = None

    def deviations(self, perturbation: Perturbation, site: str) -> Tensor:
        """Standard deviation per coordinate at each of `positions`, float32 [rows, pos]."""
        if self._weights is None or self._weights[0] is not self.positions:
            weights = perturb.weights(perturbation, self.positions, self.prompt_length)
            self._weights = (self.positions, weights)
        return (self._weights[1] * self.std[site][:, None]).float()

    def replaced(self, embedded: Tensor) -> Tensor:
        """Token vectors [rows, pos, dim] with the soft prompts in their places."""
        if self.soft is None:
            return embedded
        assert self.soft_start is not None
        device = embedded.device
        soft, start, positions = (
            value.to(device) for value in (self.soft, self.soft_start, self.positions)
        )
        return perturb.replace(embedded, soft, start, positions)

    def chosen(self, rows: Tensor, positions: Tensor) -> Rows:
        """Some of the rows, int64 [n], at positions [n, pos]."""
        return Rows(
            {site: keys[rows] for site, keys in self.keys.items()},
            {site: std[rows] for site, std in self.std.items()},
            self.prompt_length[rows],
            positions,
            None if self.soft is None else self.soft[rows],
            None if self.soft_start is None else self.soft_start[rows],
            roots=self.roots,
        )


@contextmanager
def running(
    model: nn.Module, perturbation: Perturbation, rows: Rows, blocks: str | None = None
) -> Iterator[dict[str, Tensor]]:
    """Within the context, the model's next pass is perturbed as these rows.

    Args:
        model: a causal LM.
        perturbation: names the sites.
        rows: the rows of the pass, with their positions and soft prompts.
        blocks: dotted name of the decoder blocks' list, if it can't be found.

    Yields:
        What the pass measures, as `add_noise` gives it: site → float64 [rows, 2].
    """
    act, measured = acting(perturbation, rows)
    with ExitStack() as stack:
        stack.enter_context(hooked(model, tuple(perturbation.sites), act, blocks))
        if rows.soft is not None:
            hook = find_embedding(model).register_forward_hook(
                lambda module, args, embedded: rows.replaced(embedded)
            )
            stack.callback(hook.remove)
        yield measured


def add_noise(
    perturbation: Perturbation, rows: Rows, site: str, hidden: Tensor
) -> tuple[Tensor, Tensor]:
    """Hidden states with ε added at a site, and how strong it is.

    Args:
        perturbation: names the scope and the set of positions.
        rows: their streams, positions and standard deviations.
        site: "embed", "block.<k>" or "mlp.<k>".
        hidden: [rows, pos, dim].

    Returns:
        [rows, pos, dim], and float64 [rows, 2]: the sum of ‖ε‖/‖h‖ over the perturbed positions,
        and their number.
    """
    device = hidden.device
    if rows.drawn is not None:
        noise = rows.drawn[site].to(device)
    else:
        keys, positions = rows.keys[site].to(device), rows.positions.to(device)
        std = rows.deviations(perturbation, site).to(device)
        counters = perturb.counters(perturbation, positions)
        if perturbation.noise_law in draws.LAWS and build.serve("draws", hidden):
            given = (hidden.contiguous(), keys.contiguous(), counters.contiguous())
            return draws.add_noise(*given, std.contiguous(), perturbation.noise_law)
        noise = perturb.draw(perturbation, keys, positions, std, hidden.shape[-1])
    if site in rows.roots:
        noise = noise @ rows.roots[site].to(device)
    return draws.add_drawn(hidden, noise)


def acting(perturbation: Perturbation, rows: Rows) -> tuple[Act, dict[str, Tensor]]:
    """A function that adds the noise at a site, and where it leaves what `add_noise` measured."""
    measured: dict[str, Tensor] = {}

    def act(site: str, hidden: Tensor) -> Tensor:
        noisy, measured[site] = add_noise(perturbation, rows, site, hidden)
        return noisy

    return act, measured


def mean_ratio(measured: dict[str, Tensor], row: int) -> dict[str, float]:
    """Site → ‖ε‖/‖h‖ of one row, mean over its perturbed positions; undefined ones left out."""
    sums = {site: values[row].tolist() for site, values in measured.items()}
    means = {site: total / count for site, (total, count) in sums.items() if count}
    return {site: mean for site, mean in means.items() if math.isfinite(mean)}


def noise_keys(
    perturbation: Perturbation, pairs: list[tuple[str, int]], device: torch.device
) -> dict[str, Tensor]:
    """Streams for rows given as (problem, sample index): site → int64 [rows, 2].

    Of the law `orthogonal` they are those of the rows' groups, and a third number [rows, 3] is the
    sample's place in its group.
    """
    coordinated = perturbation.noise_law == "orthogonal"
    purpose, group = ("orthogonal", orthogonal.GROUP) if coordinated else ("noise", 1)

    draws = [(problem, perturbation.draw_of(sample)) for problem, sample in pairs]

    def words(site: str) -> Tensor:
        named = "" if perturbation.shared else site
        keys = streams.key_words(
            (
                streams.stream_key(perturbation.seed, problem, draw // group, purpose, named)
                for problem, draw in draws
            ),
            device,
        )
        if not coordinated:
            return keys
        places = torch.tensor([draw % group for _, draw in draws], device=device)
        return torch.cat([keys, places[:, None]], dim=1)

    return {site: words(site) for site in perturbation.sites}
