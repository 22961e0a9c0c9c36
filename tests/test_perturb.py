"""The formula of the noise against a slow reference that perturbs a full pass without any cache."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import PreTrainedModel

from lm_eval_embednoise.engine import sampler as sampler_module
from lm_eval_embednoise.engine.jobs import Job
from lm_eval_embednoise.engine.sampler import Sampler
from lm_eval_embednoise.engine.sampling import Sampling
from lm_eval_embednoise.noise import perturb
from lm_eval_embednoise.noise.perturbation import Perturbation
from tests.support.cacheless import dose
from tests.support.one_problem import NEW, PROMPT, expected, job_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SCOPES = ("token", "sequence")
POSITIONS = ("prompt", "all", "generated", "first:2", "last:3", "generated:2", "dummy:2")
SCHEDULES = ("constant", "linear", "cosine", "exponential", "step")
DEPTHS = ("embed", "1", "embed+2")


def combinations():
    for scope, positions, schedule, depth in itertools.product(
        SCOPES, POSITIONS, SCHEDULES, DEPTHS
    ):
        if schedule != "constant" and positions in ("prompt", "first:2", "last:3", "dummy:2"):
            continue  # refused: nothing for the schedule to act on
        extra = {} if schedule == "constant" else {"sigma_end": 0.2, "anneal_tokens": 3}
        yield Perturbation(
            sigma=0.8, scope=scope, positions=positions, schedule=schedule, depth=depth, **extra
        )


@pytest.mark.parametrize("depth", DEPTHS)
def test_sampler_equals_the_slow_reference(
    either: PreTrainedModel, third: int, depth: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every scope × positions × schedule at this site, two samples each.

    Where noise begins within the prompt, they share what stands before.
    """
    monkeypatch.setattr(sampler_module, "SHARED_ROWS", 1)
    monkeypatch.setattr("lm_eval_embednoise.engine.runner.LEAST_SHARED", 1)
    differs = 0
    clean = expected(either, Perturbation(), {}, 0)
    cases = [p for p in combinations() if p.depth == depth][third::3]
    for p in cases:
        sampler = Sampler(either, p, Sampling(max_gen_toks=NEW), perplexity=False)
        job = job_of(p)
        got = {sample.index: sample.ids for sample in sampler.run([job])}
        std = sampler.runner.site_std(0, job)
        for index in (0, 1):
            assert got[index] == expected(either, p, std, index), (p, index)
        differs += got[0] != clean
    assert differs > len(cases) / 2  # the noise is strong enough for the test to see it


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "step"])
@pytest.mark.parametrize("scope", SCOPES)
def test_sites_with_a_sigma_each(either: PreTrainedModel, scope: str, schedule: str) -> None:
    """A mapping of sites to sigmas, at all positions, against the slow reference."""
    extra = {} if schedule == "constant" else {"anneal_tokens": 3}
    sigmas = {"embed": 0.5, "0": 0.2, "2": 0.9}
    p = Perturbation(depth=sigmas, scope=scope, positions="all", schedule=schedule, **extra)
    sampler = Sampler(either, p, Sampling(max_gen_toks=NEW), perplexity=False)
    job = job_of(p)
    std = sampler.runner.site_std(0, job)
    for sample in sampler.run([job]):
        assert sample.ids == expected(either, p, std, sample.index)
        assert set(sample.rho) == {"embed", "block.0", "block.2"}
    for site, sigma in p.sites.items():
        same = Perturbation(sigma=sigma, depth=site)
        assert Sampler(either, same, Sampling()).runner.site_std(0, job)[site] == std[site]


def test_dummies_at_sigma_zero_are_the_control(qwen2: PreTrainedModel) -> None:
    """They stay in the prompt, the work is done once, and the clean likelihood knows none."""
    p = Perturbation(positions="dummy:2")
    job = job_of(p, (0, 1, 2))
    sampler = Sampler(qwen2, p, Sampling(max_gen_toks=NEW))
    samples = list(sampler.run([job]))
    right = expected(qwen2, p, {}, 0)
    assert right != expected(qwen2, Perturbation(), {}, 0)
    assert [s.ids for s in samples] == [right] * 3
    assert sum(s.seconds > 0 for s in samples) == 1
    clean = sampler.clean_nll(PROMPT, [tuple(right)])[0]
    assert [s.nll for s in samples] == pytest.approx([clean] * 3)
    assert clean != pytest.approx(sampler.clean_nll(job.prompt_ids, [tuple(right)])[0])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedule_starts_at_one_and_ends_at_its_end(schedule: str) -> None:
    extra = {} if schedule == "constant" else {"sigma_end": 0.1, "anneal_tokens": 4}
    p = Perturbation(sigma=0.5, positions="all", schedule=schedule, **extra)
    g = perturb.schedule(p, torch.arange(8))
    assert g[0] == 1
    right = [dose(p, position, 1) for position in range(8)]  # t = 0 at a prompt of one vector
    assert torch.allclose(g, torch.tensor(right, dtype=torch.float64))
    if schedule != "constant":
        assert torch.allclose(g[4:], torch.tensor(0.2, dtype=torch.float64))


def test_std_in_every_unit() -> None:
    def std(unit: str) -> float:
        return perturb.site_std(Perturbation(sigma=0.1, sigma_unit=unit), "embed", 3.0, 64)

    assert std("relative") == pytest.approx(0.1 * 3.0 / 8)
    assert std("norm") == pytest.approx(0.1 * 3.0)
    assert std("absolute") == 0.1


def test_references(llama: PreTrainedModel) -> None:
    """`table`, `prompt` and `hidden` against their definitions; BOS is left out of `hidden`."""
    job = Job((1, 5, 17, 3), "problem", (0,))
    table = llama.get_input_embeddings().weight.detach()
    with torch.no_grad():
        hidden = llama(torch.tensor([job.prompt_ids]), output_hidden_states=True).hidden_states

    def reference(depth: str, **options: str) -> float | None:
        p = Perturbation(sigma=0.1, depth=depth, **options)
        return Sampler(llama, p, Sampling()).runner.reference(job, next(iter(p.sites)))

    rows = table[list(job.prompt_ids)].norm(dim=-1)
    assert reference("embed") == pytest.approx(float(table.norm(dim=-1).mean()), rel=1e-5)
    assert reference("embed", sigma_reference="prompt") == pytest.approx(float(rows.mean()))
    median = float(hidden[1][0, 1:].norm(dim=-1).quantile(0.5))
    assert reference("0") == pytest.approx(median, rel=1e-5)
    assert reference("0", sigma_reference="table") == pytest.approx(
        float(table.norm(dim=-1).mean()), rel=1e-5
    )
    assert reference("0", sigma_unit="absolute") is None


def test_table_reference_averages_emittable_tokens_only(qwen2: PreTrainedModel) -> None:
    ids = torch.tensor([2, 3, 5])
    sampler = Sampler(qwen2, Perturbation(sigma=0.1), Sampling(), token_ids=ids)
    expected = qwen2.get_input_embeddings().weight.detach()[ids].norm(dim=-1).mean()
    assert sampler.runner.reference(Job(PROMPT, "p", (0,)), "embed") == pytest.approx(
        float(expected)
    )


def test_measured_rho_is_the_dose(either: PreTrainedModel) -> None:
    """relative: ‖ε‖ ≈ σ·m, so ρ ≈ σ·m / mean ‖h‖ on the prompt."""
    p = Perturbation(sigma=0.25, sigma_reference="prompt")
    sampler = Sampler(either, p, Sampling(max_gen_toks=1), perplexity=False)
    samples = list(sampler.run([Job(PROMPT, "p", tuple(range(60)))]))
    rho = sum(s.rho["embed"] for s in samples) / len(samples)
    norms = either.get_input_embeddings().weight.detach()[list(PROMPT)].norm(dim=-1)
    expected = 0.25 * float(norms.mean()) * float((1 / norms).mean())
    assert rho == pytest.approx(expected, rel=0.05)
