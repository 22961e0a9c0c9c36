"""The formula of the noise against a slow reference that perturbs a full pass without any cache."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lm_eval_embednoise import perturb, streams
from lm_eval_embednoise.config import Perturbation, Sampling
from lm_eval_embednoise.families import find_blocks, find_embedding
from lm_eval_embednoise.sampler import Job, Sampler

PROMPT = (5, 17, 3, 88, 41)
NEW = 4
DUMMY = 60

SCOPES = ("token", "sequence")
POSITIONS = ("prompt", "all", "generated", "first:2", "last:3", "generated:2", "dummy:2")
SCHEDULES = ("constant", "linear", "cosine", "exponential", "step")
DEPTHS = ("embed", "1", "embed+2")


def slow_g(p: Perturbation, t: int) -> float:
    """The schedule, written out."""
    if p.schedule == "constant" or t == 0:
        return 1.0
    end, x = (p.sigma_end or 0.0) / p.sigma, min(1.0, t / (p.anneal_tokens or 1))
    return {
        "linear": 1 + (end - 1) * x,
        "cosine": end + (1 - end) * 0.5 * (1 + math.cos(math.pi * x)),
        "exponential": math.exp(x * math.log(end)) if end else 0.0,
        "step": 1.0 if x < 1 else end,
    }[p.schedule]


def slow_inside(p: Perturbation, position: int, length: int) -> bool:
    """Whether a position is in P, written out."""
    kind, _, n = p.positions.partition(":")
    t = position - length + 1
    return {
        "prompt": position < length,
        "all": True,
        "generated": position >= length and (not n or t <= int(n)),
        "first": position < min(length, int(n or 0)),
        "last": length - int(n or 0) <= position < length,
        "dummy": length - int(n or 0) <= position < length,
    }[kind]


def prompt_of(p: Perturbation) -> tuple[int, ...]:
    """The prompt with the dummies that a perturbation appends."""
    kind, _, n = p.positions.partition(":")
    return PROMPT + (DUMMY,) * (int(n) if kind == "dummy" else 0)


def slow_noise(p: Perturbation, site: str, std: float, problem: str, sample: int, shape: Tensor):
    """ε of every position of one sample, one draw at a time: [pos, dim]."""
    length = len(prompt_of(p))
    key = streams.key_words([streams.stream_key(p.seed, problem, sample, "noise", site)])
    rows = []
    for position in range(shape.shape[0]):
        c = 0 if p.scope == "sequence" else position
        z = streams.normal(key, torch.tensor([[c]]), shape.shape[1])[0, 0]
        t = max(0, position - length + 1)
        strength = slow_g(p, t) * std if slow_inside(p, position, length) else 0.0
        rows.append(z * strength)
    return torch.stack(rows)


@torch.no_grad()
def slow_generate(model: PreTrainedModel, p: Perturbation, std: dict[str, float], sample: int):
    """Greedy decoding by a full pass over all tokens at every step."""
    ids = list(prompt_of(p))
    for _ in range(NEW):
        handles = []
        for site in p.sites:

            def hook(module, args, output, site=site):
                hidden = output[0] if isinstance(output, tuple) else output
                noisy = hidden + slow_noise(p, site, std[site], "problem", sample, hidden[0])
                return (noisy, *output[1:]) if isinstance(output, tuple) else noisy

            embed = site == "embed"
            module = find_embedding(model) if embed else find_blocks(model)[int(site[6:])]
            handles.append(module.register_forward_hook(hook))
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        for handle in handles:
            handle.remove()
        ids.append(int(logits.argmax()))
    return ids[len(prompt_of(p)) :]


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
def test_sampler_equals_the_slow_reference(qwen2: PreTrainedModel, depth: str) -> None:
    """Every scope × positions × schedule at this site, two samples each."""
    differs = 0
    clean = slow_generate(qwen2, Perturbation(), {}, 0)
    cases = [p for p in combinations() if p.depth == depth]
    for p in cases:
        sampler = Sampler(qwen2, p, Sampling(max_gen_toks=NEW), perplexity=False)
        job = Job(prompt_of(p), "problem", (0, 1), clean_ids=PROMPT)
        got = {sample.index: sample.ids for sample in sampler.run([job])}
        std = sampler.site_std(0, job)
        for index in (0, 1):
            assert got[index] == slow_generate(qwen2, p, std, index), (p, index)
        differs += got[0] != clean
    assert differs > len(cases) / 2  # the noise is strong enough for the test to see it


def test_dummies_at_sigma_zero_are_the_control(qwen2: PreTrainedModel) -> None:
    """They stay in the prompt, the work is done once, and the clean likelihood knows none."""
    p = Perturbation(positions="dummy:2")
    job = Job(prompt_of(p), "problem", (0, 1, 2), clean_ids=PROMPT)
    sampler = Sampler(qwen2, p, Sampling(max_gen_toks=NEW))
    samples = list(sampler.run([job]))
    expected = slow_generate(qwen2, p, {}, 0)
    assert expected != slow_generate(qwen2, Perturbation(), {}, 0)
    assert [s.ids for s in samples] == [expected] * 3
    assert sum(s.seconds > 0 for s in samples) == 1
    clean = sampler.clean_nll(PROMPT, [tuple(expected)])[0]
    assert [s.nll for s in samples] == pytest.approx([clean] * 3)
    assert clean != pytest.approx(sampler.clean_nll(job.prompt_ids, [tuple(expected)])[0])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedule_starts_at_one_and_ends_at_its_end(schedule: str) -> None:
    extra = {} if schedule == "constant" else {"sigma_end": 0.1, "anneal_tokens": 4}
    p = Perturbation(sigma=0.5, positions="all", schedule=schedule, **extra)
    g = perturb.schedule(p, torch.arange(8))
    assert g[0] == 1
    assert torch.allclose(g, torch.tensor([slow_g(p, t) for t in range(8)], dtype=torch.float64))
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
        return Sampler(llama, p, Sampling()).reference(job, next(iter(p.sites)))

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
    assert sampler.reference(Job(PROMPT, "p", (0,)), "embed") == pytest.approx(float(expected))


def test_measured_rho_is_the_dose(qwen2: PreTrainedModel) -> None:
    """relative: ‖ε‖ ≈ σ·m, so ρ ≈ σ·m / mean ‖h‖ on the prompt."""
    p = Perturbation(sigma=0.25, sigma_reference="prompt")
    sampler = Sampler(qwen2, p, Sampling(max_gen_toks=1), perplexity=False)
    samples = list(sampler.run([Job(PROMPT, "p", tuple(range(60)))]))
    rho = sum(s.rho["embed"] for s in samples) / len(samples)
    norms = qwen2.get_input_embeddings().weight.detach()[list(PROMPT)].norm(dim=-1)
    expected = 0.25 * float(norms.mean()) * float((1 / norms).mean())
    assert rho == pytest.approx(expected, rel=0.05)
