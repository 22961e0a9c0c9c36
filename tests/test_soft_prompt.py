"""Random soft prompts against a slow reference, and against the distribution of their draws."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from scipy import stats
from torch import nn
from transformers import PreTrainedModel

from lm_eval_embednoise.engine import sampler as sampler_module
from lm_eval_embednoise.engine.sampler import Sampler
from lm_eval_embednoise.engine.sampling import Sampling
from lm_eval_embednoise.noise.model_parts import find_embedding
from lm_eval_embednoise.noise.perturbation import Perturbation
from lm_eval_embednoise.noise.soft_prompt import SoftPrompts, fit_table
from tests.support.cacheless import Cacheless
from tests.support.families import tiny
from tests.support.one_problem import NEW, PROBLEM, PROMPT, expected, job_of

SLOTS = ("after-prompt", "before-assistant", "after-bos")
FITS = ("isotropic", "per-dimension")
NOISE = (
    {},
    {"sigma": 0.5},
    {"sigma": 0.5, "positions": "last:4", "scope": "sequence"},
    {"sigma": 0.5, "positions": "generated", "depth": "1"},
    {"sigma": 0.5, "positions": "all", "depth": "embed+2", "schedule": "step", "anneal_tokens": 2},
    {"sigma": 0.5, "positions": "dummy:2"},
    {"positions": "dummy:2"},
)
WARM = Sampling(temperature=0.8, max_gen_toks=NEW)
GREEDY = Sampling(max_gen_toks=NEW)


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "temperature"])
def test_sampler_equals_the_slow_reference(
    either: PreTrainedModel, third: int, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every slot × fit × noise, two samples each that share what they can; scales other than 1."""
    monkeypatch.setattr(sampler_module, "SHARED_ROWS", 1)
    monkeypatch.setattr("lm_eval_embednoise.engine.runner.LEAST_SHARED", 1)
    clean = expected(either, Perturbation(), {}, 0, sampling)
    changed = 0
    cases = list(itertools.product(SLOTS, FITS, NOISE))[third::3]
    for number, (slot, fit, noise) in enumerate(cases):
        scale = (1.0, 1.7, 0.5)[number % 3]
        p = Perturbation(rsp=3, rsp_slot=slot, rsp_fit=fit, rsp_scale=scale, **noise)
        sampler = Sampler(either, p, sampling)
        job = job_of(p)
        got = {sample.index: sample for sample in sampler.run([job])}
        std = sampler.runner.site_std(0, job)
        for index, sample in got.items():
            assert sample.ids == expected(either, p, std, index, sampling), (p, index)
            (nll,) = sampler.clean_nll(PROMPT, [tuple(sample.ids)])
            assert sample.nll == pytest.approx(nll, rel=1e-5)
        changed += got[0].ids != clean
    assert changed > len(cases) / 2


@pytest.mark.parametrize("added", [{"rsp": 3}, {"sigma": 0.8, "depth": "embed+1"}])
def test_draws_serve_the_samples_in_turn(qwen2: PreTrainedModel, added: dict[str, Any]) -> None:
    """Greedy samples of one draw are equal; drawn ones differ by the tokens' own numbers."""
    job = job_of(Perturbation(**added), (0, 1, 2, 3))

    def ids(draws: int, sampling: Sampling) -> dict[int, list[int]]:
        p = Perturbation(**added, draws=draws)
        return {s.index: s.ids for s in Sampler(qwen2, p, sampling).run([job])}

    fresh, two, fixed = (ids(n, GREEDY) for n in (0, 2, 1))
    assert fresh[0] != fresh[1] and fresh[2] != fresh[0]
    assert two == {0: fresh[0], 1: fresh[1], 2: fresh[0], 3: fresh[1]}
    assert fixed == dict.fromkeys(range(4), fresh[0])
    warm, fixed = ids(0, WARM), ids(1, WARM)
    assert warm[0] == fixed[0] and len(set(map(tuple, fixed.values()))) > 1


def test_vectors_are_the_slow_ones(qwen2: PreTrainedModel) -> None:
    for fit, scale in itertools.product(FITS, (0.0, 1.0, 2.0)):
        p = Perturbation(rsp=4, rsp_fit=fit, rsp_scale=scale, seed=5)
        got = SoftPrompts(qwen2, p).vectors([("problem", 2), ("problem", 0)])
        assert got is not None
        reference = Cacheless(qwen2, p)
        torch.testing.assert_close(got[0], reference.soft_prompt(PROBLEM, 2))
        torch.testing.assert_close(got[1], reference.soft_prompt(PROBLEM, 0))
    assert SoftPrompts(qwen2, Perturbation()).vectors([("problem", 0)]) is None


def test_slot_and_company_do_not_change_the_vectors(qwen2: PreTrainedModel) -> None:
    """Only seed, problem and sample do; fewer vectors are the first of more."""

    def vectors(n: int = 4, seed: int = 0, pair: tuple[str, int] = ("p", 1), **options: str):
        p = Perturbation(rsp=n, seed=seed, **options)
        found = SoftPrompts(qwen2, p).vectors([("q", 9), pair])
        assert found is not None
        return found[1]

    base = vectors()
    assert torch.equal(base, vectors(rsp_slot="after-bos", sigma="0.5"))
    assert torch.equal(base[:2], vectors(2))
    for other in (vectors(seed=1), vectors(pair=("p", 2)), vectors(pair=("q", 1))):
        assert not torch.isclose(base, other).any()


class Scaled(nn.Embedding):
    """An embedding that does more than look up, as Gemma 3's does."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids) * 7.0


def test_the_fit_is_of_the_embedding_output_over_the_named_tokens() -> None:
    torch.manual_seed(0)
    embedding = Scaled(50, 6)
    ids = torch.tensor([3, 4, 7, 20, 49])
    rows = 7 * embedding.weight.detach()[ids]
    for chunk in (2, 100):
        mean, std = fit_table(embedding, ids, per_dimension=True, chunk=chunk)
        torch.testing.assert_close(mean, rows.mean(dim=0))
        torch.testing.assert_close(std, rows.std(dim=0, unbiased=False))
        mean, std = fit_table(embedding, ids, per_dimension=False, chunk=chunk)
        torch.testing.assert_close(mean, rows.mean().expand(6))
        torch.testing.assert_close(std, rows.std(unbiased=False).expand(6))


def test_the_drawn_vectors_have_the_fitted_distribution(qwen2: PreTrainedModel) -> None:
    """Standardised by the fit they are normal, and independent over vectors and samples."""
    for fit in FITS:
        soft = SoftPrompts(qwen2, Perturbation(rsp=8, rsp_fit=fit, rsp_scale=0.7))
        drawn = soft.vectors([("p", sample) for sample in range(60)])
        assert drawn is not None
        mean, std = soft.fit
        z = ((drawn - mean) / (0.7 * std)).double()
        assert stats.kstest(z.flatten(), "norm").pvalue > 1e-3
        assert abs(float(z.mean())) < 4 / z.numel() ** 0.5
        assert abs(float(z.var()) - 1) < 4 * (2 / z.numel()) ** 0.5
        for axis in range(3):
            one, other = z.narrow(axis, 0, z.shape[axis] - 1), z.narrow(axis, 1, z.shape[axis] - 1)
            pair = torch.stack([one.flatten(), other.flatten()])
            assert abs(float(torch.corrcoef(pair)[0, 1])) < 4 / one.numel() ** 0.5


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_samples_do_not_depend_on_the_batch(qwen2: PreTrainedModel, batch_size: int) -> None:
    p = Perturbation(rsp=3, rsp_slot="after-bos", sigma=0.3)
    job = job_of(p, tuple(range(5)))
    sampler = Sampler(qwen2, p, GREEDY, batch_size=batch_size)
    got = {sample.index: sample.ids for sample in sampler.run([job])}
    std = sampler.runner.site_std(0, job)
    assert got == {index: expected(qwen2, p, std, index) for index in range(5)}


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "opt", "gemma", "gemma3_text", "bloom", "mistral"])
def test_the_model_treats_the_vectors_as_a_tokens(family: str) -> None:
    """Learned positions, scaling, normalisation, windows: as a full pass over given embeddings."""
    model = tiny(family)
    p = Perturbation(rsp=3, rsp_slot="before-assistant", rsp_scale=2.0)
    job, sampler = job_of(p), Sampler(model, p, GREEDY, perplexity=False)
    embedding = find_embedding(model)
    for sample in sampler.run([job]):
        soft, new = sampler.runner.soft_prompts.vectors([(job.problem, sample.index)]), []
        assert soft is not None and job.soft_start is not None
        for _ in range(NEW):
            vectors = embedding(torch.tensor([[*job.prompt_ids, *new]]))
            vectors[:, job.soft_start : job.soft_start + 3] = soft
            logits = model(inputs_embeds=vectors, use_cache=False).logits
            new.append(int(logits[0, -1].argmax()))
        assert sample.ids == new
