"""What a clean model's hidden states are like at sites: norms while it decodes, their covariance.

For `sigma_reference=decode` and `noise_law=covariance`. Both are measured once a model, on a stated
text, and kept in a file: samples depend on its content, whose hash is part of their key.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lm_eval_embednoise.noise.inject import hooked

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lm_eval_embednoise.noise.perturbation import Perturbation


@dataclass(frozen=True)
class CleanStates:
    """Measured at the sites of one model.

    Attributes:
        model: the model's fingerprint.
        norms: site → median norm over generated positions of clean greedy decoding.
        roots: site → float32 [d, d], the symmetric square root of the covariance of hidden states,
            scaled to the trace d: z times it has the expected squared norm of z.
    """

    model: str
    norms: dict[str, float] = field(default_factory=dict)
    roots: dict[str, Tensor] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        """32 hexadecimal digits of the content."""
        hasher = hashlib.blake2b(json.dumps([self.model, self.norms]).encode(), digest_size=16)
        for site, root in sorted(self.roots.items()):
            hasher.update(site.encode())
            hasher.update(root.cpu().numpy().tobytes())
        return hasher.hexdigest()

    def check(self, perturbation: Perturbation) -> None:
        """Refuse a perturbation that needs what wasn't measured.

        Raises:
            ValueError: with the sites that are missing.
        """
        for name, wanted, there in (
            ("sigma_reference='decode'", perturbation.sigma_reference == "decode", self.norms),
            ("noise_law='covariance'", perturbation.noise_law == "covariance", self.roots),
        ):
            missing = perturbation.sites.keys() - there.keys() if wanted else set()
            if missing:
                raise ValueError(
                    f"{name}: the clean states were measured at {', '.join(there) or 'no sites'}, "
                    f"not at {', '.join(sorted(missing))}; measure them anew: leave states out, or "
                    "name a file that isn't there yet"
                )


def load(path: Path, model: str) -> CleanStates:
    """Read a file of clean states.

    Args:
        path: the file.
        model: the fingerprint of the model that it is for.

    Raises:
        ValueError: for a file that is none, is damaged, or is of another model.
    """
    try:
        with safe_open(path, "pt") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {})["clean_states"])
            roots = {site: file.get_tensor(site) for site in about["roots"]}
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"states={path} is not a file of clean states: {error}") from None
    states = CleanStates(about["model"], about["norms"], roots)
    if states.hash != about["hash"]:
        raise ValueError(f"states={path} is damaged: its content is not what was written")
    if states.model != model:
        raise ValueError(
            f"states={path} is of another model (fingerprint {states.model}, not {model}); leave "
            "states out to measure this one"
        )
    return states


def roots_of(perturbation: Perturbation, states: CleanStates | None) -> dict[str, Tensor]:
    """What shapes a perturbation's noise: site → root; empty where nothing does.

    Raises:
        ValueError: for the law `covariance` without clean states, or without those of its sites.
    """
    if perturbation.noise_law != "covariance" or not perturbation.sites:
        return {}
    if states is None:
        raise ValueError(
            "noise_law='covariance' needs the clean model's states, which hf-embednoise measures; "
            "from Python give states=clean_states.load(FILE, FINGERPRINT)"
        )
    states.check(perturbation)
    return {site: states.roots[site] for site in perturbation.sites}


@torch.no_grad()
def decode_norms(
    model: nn.Module,
    sites: tuple[str, ...],
    texts: Sequence[tuple[Sequence[int], Sequence[int]]],
    blocks: str | None = None,
) -> dict[str, float]:
    """Site → median norm of hidden states over generated positions.

    Args:
        model: a causal LM.
        sites: where.
        texts: (prompt, generated ids) pairs of clean greedy decoding; at least one has two ids.
        blocks: dotted name of the decoder blocks' list, if it can't be found.
    """
    seen: dict[str, list[Tensor]] = {site: [] for site in sites}
    for prompt, ids in texts:

        def note(site: str, hidden: Tensor, start: int = len(prompt)) -> Tensor:
            seen[site].append(hidden[0, start:].float().norm(dim=-1))
            return hidden

        _run(model, sites, [*prompt, *ids][:-1], note, blocks)
    return {site: float(torch.cat(norms).quantile(0.5)) for site, norms in seen.items()}


@torch.no_grad()
def covariance_roots(
    model: nn.Module,
    sites: tuple[str, ...],
    texts: Sequence[Sequence[int]],
    blocks: str | None = None,
) -> dict[str, Tensor]:
    """Site → `CleanStates.roots` of the positions of texts, the first of each left out."""
    sums: dict[str, list[Tensor]] = {}

    def note(site: str, hidden: Tensor) -> Tensor:
        h = hidden[0, 1:].double()
        part = [h.new_tensor(float(len(h))), h.sum(dim=0), h.T @ h]
        before = sums.get(site, [torch.zeros_like(value) for value in part])
        sums[site] = [a + b for a, b in zip(before, part, strict=True)]
        return hidden

    for ids in texts:
        _run(model, sites, ids, note, blocks)
    return {site: _root(*parts) for site, parts in sums.items()}


def _run(
    model: nn.Module, sites: tuple[str, ...], ids: Sequence[int], note: Any, blocks: Any
) -> None:
    device = next(model.parameters()).device
    with hooked(model, sites, note, blocks):
        model(input_ids=torch.tensor([list(ids)], device=device), use_cache=False)


def _root(count: Tensor, total: Tensor, products: Tensor) -> Tensor:
    mean = total / count
    covariance = products / count - mean[:, None] * mean
    covariance *= len(mean) / covariance.trace()
    values, vectors = torch.linalg.eigh(covariance)
    return ((vectors * values.clamp_min(0).sqrt()) @ vectors.T).float()
