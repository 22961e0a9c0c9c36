"""Laws and places of the noise beside a block's Gaussian: uniform, orthogonal, shared, MLPs."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lm_eval_embednoise.engine.runner import Runner
from lm_eval_embednoise.engine.sampler import Sampler
from lm_eval_embednoise.engine.sampling import Sampling
from lm_eval_embednoise.noise import orthogonal, streams
from lm_eval_embednoise.noise.inject import find_site, hooked, noise_keys
from lm_eval_embednoise.noise.perturb import draw
from lm_eval_embednoise.noise.perturbation import Perturbation
from lm_eval_embednoise.noise.sites import parse_depth
from lm_eval_embednoise.noise.soft_prompt import SoftPrompts
from tests.support import cacheless
from tests.support.families import tiny
from tests.test_sampler import jobs

CPU = torch.device("cpu")
ORTHOGONAL = {"sigma": 0.1, "noise_law": "orthogonal", "scope": "sequence"}


def vectors(p: Perturbation, pairs: list[tuple[str, int]], dim: int) -> torch.Tensor:
    """z of samples at the first site, one position: float32 [rows, dim]."""
    (site, *_) = p.sites
    keys = noise_keys(p, pairs, CPU)[site]
    ones = torch.ones(len(pairs), 1)
    return draw(p, keys, torch.zeros(len(pairs), 1, dtype=torch.int64), ones, dim)[:, 0]


def test_uniform_noise_has_the_gaussians_variance() -> None:
    pairs = [("p", sample) for sample in range(200)]
    z = vectors(Perturbation(sigma=0.1, noise_law="uniform"), pairs, 300)
    assert stats.kstest(z.flatten().numpy(), stats.uniform(-(3**0.5), 2 * 3**0.5).cdf).pvalue > 1e-3
    assert abs(float(z.var()) - 1) < 0.02
    gaussian = vectors(Perturbation(sigma=0.1), pairs, 300)
    assert torch.equal(z.sign(), gaussian.sign())  # of the same random words


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 99), st.integers(1, 70))
def test_uniform_numbers_are_the_slow_ones(key: int, position: int, dim: int) -> None:
    words, where = streams.key_words([key]), torch.tensor([[position]])
    got = streams.standard(words, where, dim, "uniform")
    assert torch.equal(got[0], cacheless.uniforms(key, [position], dim))


@pytest.mark.parametrize("dim", [5, 64, 130])
def test_samples_of_a_group_are_orthogonal_and_as_long_as_gaussian_ones(dim: int) -> None:
    p = Perturbation(**ORTHOGONAL)
    z = vectors(p, [("p", sample) for sample in range(2 * orthogonal.GROUP)], dim).double()
    gram = z @ z.T
    of = torch.arange(len(z)) // orthogonal.GROUP * 1000
    of += torch.arange(len(z)) % orthogonal.GROUP // dim  # a group's parts of at most d
    together = (of[:, None] == of) & ~torch.eye(len(z), dtype=torch.bool)
    assert float((gram * together).abs().max()) < 1e-4 * dim
    assert float((gram * ~together).fill_diagonal_(0).abs().max()) > 0.1
    key = cacheless.stream_key(0, "p", 1, "orthogonal", "embed")
    gaussian = cacheless.normals(key, range(orthogonal.GROUP), dim).double()
    torch.testing.assert_close(z[orthogonal.GROUP :].norm(dim=1), gaussian.norm(dim=1))


def test_each_orthogonal_vector_is_gaussian() -> None:
    p = Perturbation(**ORTHOGONAL)
    z = vectors(p, [(f"p{n}", 17) for n in range(300)], 24)
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-3


def test_an_orthogonal_vector_depends_on_its_key_alone() -> None:
    p = Perturbation(**ORTHOGONAL)
    together = vectors(p, [("p", sample) for sample in range(10)], 16)
    (alone,) = vectors(p, [("p", 7)], 16)
    assert torch.equal(alone, together[7])
    key = cacheless.stream_key(0, "p", 0, "orthogonal", "embed")
    torch.testing.assert_close(alone, cacheless.orthogonal(key, 7, 16))


def test_shared_noise_is_one_draw_for_all_sites() -> None:
    sites = {"sigma": 0.1, "depth": "mlp:0-1+2"}
    pairs = [("p", 0), ("p", 1)]
    shared = noise_keys(Perturbation(**sites, shared=True), pairs, CPU)
    apart = noise_keys(Perturbation(**sites), pairs, CPU)
    assert list(shared) == ["mlp.0", "mlp.1", "block.2"]
    assert all(torch.equal(keys, shared["mlp.0"]) for keys in shared.values())
    assert len({str(keys.tolist()) for keys in apart.values()}) == 3


def test_depth_names_mlps_ranges_and_lists() -> None:
    assert parse_depth("mlp:3") == parse_depth("mlp.3") == ("mlp.3",)
    assert parse_depth("2-4+mlp:3") == ("block.2", "mlp.3", "block.3", "block.4")
    assert parse_depth(["embed", 1, "mlp:1-2"]) == ("embed", "mlp.1", "block.1", "mlp.2")
    assert Perturbation(depth=["mlp:0", 1]).depth == "mlp:0+1"
    assert Perturbation(depth={"mlp:1": 0.2, "1": 0.1}).sites == {"mlp.1": 0.2, "block.1": 0.1}


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon", "gemma2"])
def test_an_mlps_site_is_its_activations(family: str) -> None:
    """What the MLP's last layer multiplies: of zero only that layer's bias is left."""
    model = tiny(family)
    end: Any = find_site(model, "mlp.1")
    seen: list[torch.Tensor] = []
    handle = end.register_forward_hook(lambda module, args, out: seen.append(out.clone()))
    with torch.no_grad(), hooked(model, ("mlp.1",), lambda site, hidden: hidden * 0):
        model(input_ids=torch.tensor([[5, 6, 7]]))
    handle.remove()
    bias = getattr(end, "bias", None)
    left = torch.zeros(seen[0].shape[-1]) if bias is None else bias
    torch.testing.assert_close(seen[0], left.expand_as(seen[0]))


def test_a_mixture_of_experts_has_no_one_mlp() -> None:
    with pytest.raises(ValueError, match=r"depth=mlp:0: .* use the block's output, depth=0"):
        find_site(tiny("mixtral"), "mlp.0")
    with pytest.raises(ValueError, match=r"depth=mlp:7 is beyond the last block"):
        find_site(tiny("llama"), "mlp.7")


def test_noise_within_blocks_is_decoded_by_the_models_own_forward() -> None:
    llama = tiny("llama")
    assert Runner(llama, Perturbation(sigma=0.1, depth="1")).lean is not None
    assert Runner(llama, Perturbation(sigma=0.1, depth="mlp:1")).lean is None
    with pytest.raises(ValueError, match=r"compile=true is not available .* within its blocks"):
        Runner(llama, Perturbation(sigma=0.1, depth="mlp:1"), compiled=True)


def test_noise_on_an_mlp_varies_the_samples() -> None:
    p = Perturbation(sigma=1.0, depth="mlp:0-2", noise_law="uniform", shared=True)
    sampler = Sampler(tiny("llama"), p, Sampling(max_gen_toks=6))
    samples = [s for s in sampler.run(jobs((0, 1, 2, 3))) if s.job == 0]
    assert len({tuple(sample.ids) for sample in samples}) > 1
    assert all(set(sample.rho) == {"mlp.0", "mlp.1", "mlp.2"} for sample in samples)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 20), st.floats(0.1, 3))
def test_an_exact_soft_prompt_has_the_tables_moments(n: int, scale: float) -> None:
    soft = SoftPrompts(tiny("llama"), Perturbation(rsp=n, rsp_fit="exact", rsp_scale=scale))
    drawn = soft.vectors([("p", sample) for sample in range(3)])
    assert drawn is not None
    mean, std = (float(part[0]) for part in soft.fit)
    for one in drawn.double():
        assert float(one.mean()) == pytest.approx(mean, abs=1e-5)
        assert float(one.std(unbiased=False)) == pytest.approx(scale * std, rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sigma": 0.1, "noise_law": "normal"}, ["noise_law='normal'", "uniform"]),
        ({"sigma": 0.1, "noise_law": "orthogonal"}, ["scope='token'", "scope=sequence"]),
        ({"sigma": 0.1, "shared": True}, ["shared=true", "depth='embed' is one site"]),
        ({"sigma": 0.1, "shared": "yes"}, ["shared='yes'", "true or false"]),
        ({"noise_law": "uniform"}, ["noise_law='uniform'", "no sigma"]),
        ({"sigma": 0.1, "depth": "mlp:5-3"}, ["depth='mlp:5-3'", "rising range"]),
        ({"sigma": 0.1, "depth": "mlp"}, ["depth='mlp'", "mlp:k"]),
        ({"sigma": 0.1, "depth": "1-2+2"}, ["depth='1-2+2' names a site twice"]),
        ({"prefix": "lorm:5"}, ["prefix='lorm:5'", "did you mean 'lorem'"]),
        ({"prefix": "lorem:0"}, ["prefix='lorem:0'", "≥ 1"]),
        ({"rsp_fit": "exact"}, ["rsp_fit='exact' needs rsp=N"]),
    ],
)
def test_bad_noise_is_named(arguments: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        Perturbation.from_args(arguments)
    for word in words:
        assert word in str(error.value)


def test_what_is_gaussian_and_not_shared_has_the_keys_it_had() -> None:
    plain = Perturbation(sigma=0.1, depth="embed+1").canonical()
    assert not {"noise_law", "shared"} & plain.keys()
    others = [
        Perturbation(sigma=0.1, depth="embed+1", noise_law="uniform"),
        Perturbation(sigma=0.1, depth="embed+1", shared=True),
        Perturbation(sigma=0.1, depth="embed+mlp:1"),
    ]
    assert len({str(p.canonical()) for p in others} | {str(plain)}) == 4
    assert len({p.signature() for p in others}) == 3
