"""Noise on weights: the definition, one draw an index, and weights that come back bit for bit."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from lm_eval_embednoise.engine.runner import Runner
from lm_eval_embednoise.engine.sampler import Sampler
from lm_eval_embednoise.engine.sampling import Sampling
from lm_eval_embednoise.engine.weight_noise import WeightNoise
from lm_eval_embednoise.noise.context import perturbed
from lm_eval_embednoise.noise.perturbation import Perturbation
from tests.support.cacheless import normals, stream_key
from tests.support.families import tiny
from tests.test_sampler import PROMPTS, jobs

NOISY = Perturbation(weight_sigma=0.3, seed=5)


def weights_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(model: PreTrainedModel, before: dict[str, torch.Tensor]) -> bool:
    bits = {name: value.view(torch.int32) for name, value in model.state_dict().items()}
    return all(torch.equal(bits[name], value.view(torch.int32)) for name, value in before.items())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_linear_layer_gets_noise_of_its_size(family: str) -> None:
    model = copy.deepcopy(tiny(family))
    before = weights_of(model)
    seen = 0
    with WeightNoise(model, NOISY).drawn(3):
        for name, after in model.state_dict().items():
            found = re.search(r"(?:layers|h)\.(\d+)\.(.*)\.weight$", name)
            linear = found is not None and after.ndim == 2
            assert torch.equal(after, before[name]) != linear, name
            if found is None or not linear:
                continue
            seen += 1
            key = stream_key(5, "", 3, "weights", f"block.{found[1]}.{found[2]}")
            std = 0.3 * float(before[name].double().square().mean().sqrt())
            right = before[name] + std * normals(key, range(len(after)), after.shape[1])
            torch.testing.assert_close(after, right)
    assert seen == {"llama": 21, "gpt2": 12}[family]
    assert same(model, before)


def test_weights_come_back_whatever_ends_the_run() -> None:
    model = copy.deepcopy(tiny("llama"))
    before = weights_of(model)
    sampling = Sampling(max_gen_toks=6)
    ran = Sampler(model, NOISY, sampling).run(jobs((0, 1)))
    next(ran)
    assert same(model, before)  # while samples are given out
    ran.close()
    assert same(model, before)

    def stop(*tokens: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(Sampler(model, NOISY, sampling, on_tokens=stop).run(jobs((0, 1))))
    assert same(model, before)


def test_an_index_is_one_draw_for_all_problems_in_any_company(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, sampling = tiny("llama"), Sampling(max_gen_toks=6)
    draws: list[str] = []
    add = WeightNoise._add

    def counted(self: WeightNoise, name: str, weight: torch.Tensor, sample: int) -> None:
        if name == "block.0.self_attn.q_proj":
            draws.append(str(sample))
        add(self, name, weight, sample)

    monkeypatch.setattr(WeightNoise, "_add", counted)
    work = jobs((0, 1, 2))
    together = {(s.job, s.index): s for s in Sampler(model, NOISY, sampling).run(work)}
    assert draws == ["0", "1", "2"] and len(together) == 3 * len(PROMPTS)
    monkeypatch.setattr("lm_eval_embednoise.engine.sampler.PROBLEMS", 2)
    apart = list(Sampler(model, NOISY, sampling, batch_size=1).run(work[::-1]))
    for sample in apart:
        other = together[len(work) - 1 - sample.job, sample.index]
        assert sample.ids == other.ids
        assert sample.nll == pytest.approx(other.nll, rel=1e-4)
    texts = {tuple(s.ids) for (job, _), s in together.items() if job == 0}
    assert len(texts) > 1


def test_scores_and_norms_are_the_plain_models() -> None:
    model, sampling = tiny("llama"), Sampling(max_gen_toks=6)
    plain = Sampler(model, Perturbation(), sampling)
    noise: dict[str, Any] = {"sigma": 0.1, "depth": "1"}
    both = Sampler(model, Perturbation(weight_sigma=0.3, **noise), sampling)
    alone = Runner(model, Perturbation(**noise))
    for sample in both.run(jobs((0, 4))):
        prompt = PROMPTS[sample.job]
        (nll,) = plain.clean_nll(prompt, [tuple(sample.ids)])
        assert sample.nll == pytest.approx(nll, rel=1e-4)
        assert sample.std == pytest.approx(alone.references.std(prompt), rel=1e-5)


def test_models_whose_weights_would_not_come_back_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weight_sigma: block\.0\..* holds several matrices"):
        Runner(tiny("mixtral"), NOISY)
    quantized = copy.deepcopy(tiny("llama"))
    layer = quantized.model.layers[1].mlp.up_proj
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    quantized.config.quantization_config = {"quant_method": "gguf"}
    with pytest.raises(ValueError, match=r"block\.1\.mlp\.up_proj \(Linear\) is quantized"):
        Runner(quantized, NOISY)
    flagged = copy.deepcopy(tiny("llama"))
    flagged.config.quantization_config = {"quant_method": "gguf"}  # left set by transformers
    assert Runner(flagged, NOISY).weights is not None
    with pytest.raises(ValueError, match=r"weight_sigma=0\.3 needs a pass for each sample index"):
        perturbed(tiny("llama"), NOISY).__enter__()
    with pytest.raises(ValueError, match=r"weight_sigma=-1"):
        Perturbation(weight_sigma=-1)


def test_a_dose_is_part_of_what_a_method_is() -> None:
    p = Perturbation(weight_sigma=0.1)
    assert p.varies and p.active and not p.plain and not p.perturbs_prompt
    assert p.signature() != Perturbation(weight_sigma=0.2).signature()
    assert Perturbation(weight_sigma=0).canonical() == Perturbation().canonical()
