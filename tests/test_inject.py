"""Injection: noise at the named site and nowhere else, and no trace left behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from lm_eval_embednoise.engine.sampler import Sampler
from lm_eval_embednoise.engine.sampling import Sampling
from lm_eval_embednoise.noise.inject import Rows, hooked, noise_keys, running
from lm_eval_embednoise.noise.model_parts import find_blocks, find_embedding
from lm_eval_embednoise.noise.perturbation import Perturbation

IDS = torch.tensor([[5, 17, 3, 88], [9, 9, 9, 9]])


def hook_count(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def rows_for(p: Perturbation, std: float, count: int = 2, length: int = 4) -> Rows:
    return Rows(
        keys=noise_keys(p, [("problem", i) for i in range(count)], torch.device("cpu")),
        std={site: torch.full((count,), std, dtype=torch.float64) for site in p.sites},
        prompt_length=torch.full((count,), length),
        positions=torch.arange(length).expand(count, -1),
    )


@torch.no_grad()
def outputs(model: PreTrainedModel, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The output of the embedding and of every block."""
    seen: dict[str, torch.Tensor] = {}

    def note(site: str, hidden: torch.Tensor) -> torch.Tensor:
        seen[site] = hidden.clone()
        return hidden

    sites = ("embed", *(f"block.{i}" for i in range(len(find_blocks(model)))))
    with hooked(model, sites, note):
        model(ids)
    return seen


@pytest.mark.parametrize("depth", ["embed", "0", "1", "2"])
def test_noise_lands_at_the_named_site(qwen2: PreTrainedModel, depth: str) -> None:
    """Sites above are untouched, the site itself is moved by exactly ε, the output changes."""
    p = Perturbation(sigma=1.0, sigma_unit="absolute", depth=depth)
    (site,) = p.sites
    clean = outputs(qwen2, IDS)
    with running(qwen2, p, rows_for(p, 0.3)):
        noisy = outputs(qwen2, IDS)
    order = list(clean)
    for name in order[: order.index(site)]:
        assert torch.equal(clean[name], noisy[name])
    epsilon = noisy[site] - clean[site]
    assert abs(float(epsilon.std()) - 0.3) < 0.06
    for name in order[order.index(site) :]:
        assert not torch.allclose(clean[name], noisy[name])


def test_rows_keep_their_noise_in_other_company(qwen2: PreTrainedModel) -> None:
    p = Perturbation(sigma=1.0, sigma_unit="absolute")
    rows = rows_for(p, 0.3)
    with running(qwen2, p, rows):
        both = outputs(qwen2, IDS)["embed"]
    rows = rows_for(p, 0.3)
    rows.keys = {site: keys[1:] for site, keys in rows.keys.items()}
    rows.prompt_length, rows.positions = rows.prompt_length[1:], rows.positions[1:]
    rows.std = {site: std[1:] for site, std in rows.std.items()}
    with running(qwen2, p, rows):
        alone = outputs(qwen2, IDS[1:])["embed"]
    assert torch.equal(both[1:], alone)


def test_hooks_are_gone_after_success_error_and_interrupt(qwen2: PreTrainedModel) -> None:
    before = hook_count(qwen2)
    p = Perturbation(sigma=1.0, sigma_unit="absolute", depth="embed+1")
    with running(qwen2, p, rows_for(p, 0.1)):
        assert hook_count(qwen2) == before + 2
    assert hook_count(qwen2) == before
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), running(qwen2, p, rows_for(p, 0.1)):
            raise error
        assert hook_count(qwen2) == before


def test_a_missing_site_attaches_nothing(qwen2: PreTrainedModel) -> None:
    before = hook_count(qwen2)
    with (
        pytest.raises(ValueError, match=r"depth=7 is beyond the last block.*0 to 2"),
        hooked(qwen2, ("embed", "block.7"), lambda site, hidden: hidden),
    ):
        pass
    assert hook_count(qwen2) == before
    with pytest.raises(ValueError, match="has 3 blocks"):
        Sampler(qwen2, Perturbation(sigma=0.1, depth=3), Sampling())


def test_blocks_are_found_by_family_or_by_name(qwen2: PreTrainedModel) -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=2, n_head=2))
    assert len(find_blocks(gpt2)) == 2
    assert find_embedding(gpt2) is gpt2.transformer.wte
    assert find_blocks(qwen2, "model.layers") is qwen2.model.layers
    with pytest.raises(ValueError, match=r"blocks='nowhere'.*blocks=NAME.*model\.layers"):
        find_blocks(qwen2, "nowhere")
    with pytest.raises(ValueError, match="no decoder blocks found in Linear"):
        find_blocks(nn.Linear(2, 2))
