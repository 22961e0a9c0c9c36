"""Random streams: Philox as published, Gaussian draws, numbers that depend on keys only."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import special, stats

from lm_eval_embednoise.kernels.draws import _normal_from_words
from lm_eval_embednoise.noise import perturb, streams
from lm_eval_embednoise.noise.inject import Rows
from lm_eval_embednoise.noise.perturbation import Perturbation

# Known-answer vectors of Random123 1.14 (kat_vectors, philox 4x32 10): counter, key, output.
KNOWN = [
    ("00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_philox_known_answers(counter: str, key: str, answer: str) -> None:
    c = [torch.tensor([word]) for word in words(counter)]
    out = streams.philox((c[0], c[1], c[2], c[3]), torch.tensor([words(key)]))
    assert out[0].tolist() == words(answer)


def test_inverse_distribution_function() -> None:
    ends = torch.tensor([0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1])
    inside = torch.randint(0, 2**32, (20000,), generator=torch.Generator().manual_seed(0))
    u = torch.cat([ends, inside])
    got = _normal_from_words(u).double().numpy()
    exact = special.ndtri((u.numpy() + 0.5) / 2**32)
    np.testing.assert_allclose(got, exact, rtol=6e-8, atol=1e-9)  # one float32 rounding


def draws(rows: int = 40, pos: int = 25, dim: int = 30) -> torch.Tensor:
    keys = streams.key_words(streams.stream_key(0, "p", s, "noise", "embed") for s in range(rows))
    return streams.normal(keys, torch.arange(pos).expand(rows, -1), dim)


def test_gaussian_moments_and_shape() -> None:
    z = draws().numpy().ravel()
    n = len(z)
    assert abs(z.mean()) < 4 / np.sqrt(n)
    assert abs(z.var() - 1) < 4 * np.sqrt(2 / n)
    assert stats.kstest(z, "norm").pvalue > 1e-3


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_rows_positions_and_coordinates_are_independent(axis: int) -> None:
    z = np.moveaxis(draws().numpy(), axis, 0)
    left, right = z[:-1].ravel(), z[1:].ravel()
    assert abs(np.corrcoef(left, right)[0, 1]) < 4 / np.sqrt(len(left))


def test_sites_purposes_samples_problems_and_seeds_have_streams_of_their_own() -> None:
    base = (0, "p", 0, "noise", "embed")
    others = [
        (1, "p", 0, "noise", "embed"),
        (0, "q", 0, "noise", "embed"),
        (0, "p", 1, "noise", "embed"),
        (0, "p", 0, "sample", "embed"),
        (0, "p", 0, "noise", "block.0"),
    ]
    keys = {streams.stream_key(*fields) for fields in [base, *others]}
    assert len(keys) == 6


STREAMS = {
    "sites": [("noise", site, 0) for site in ("embed", "block.0", "block.1", "block.11")],
    "purposes": [("noise", "embed", 0), ("rsp", "embed", 0), ("sample", "", 0), ("prefix", "", 0)],
    "samples": [("noise", "embed", sample) for sample in range(4)],
}


@pytest.mark.parametrize("kind", STREAMS)
def test_streams_are_normal_and_independent_of_each_other(kind: str) -> None:
    """Each against N(0, 1); each pair, at equal positions, uncorrelated in z and in z²."""
    keys = [streams.stream_key(0, "p", n, purpose, site) for purpose, site, n in STREAMS[kind]]
    z = streams.normal(streams.key_words(keys), torch.arange(200).expand(len(keys), -1), 64)
    flat = z.double().numpy().reshape(len(keys), -1)
    n = flat.shape[1]
    for row in flat:
        assert stats.kstest(row, "norm").pvalue > 1e-3
        assert abs(row.mean()) < 4 / np.sqrt(n)
        assert abs(row.var() - 1) < 4 * np.sqrt(2 / n)
        assert abs(stats.skew(row)) < 4 * np.sqrt(6 / n)
        assert abs(stats.kurtosis(row)) < 4 * np.sqrt(24 / n)
    for values in (flat, flat**2):
        correlation = np.corrcoef(values) - np.eye(len(keys))
        assert np.abs(correlation).max() < 4.5 / np.sqrt(n)


def test_common_random_numbers_for_two_doses() -> None:
    """Noise of two doses, units or schedules differs by a factor alone: the draws are shared."""
    keys = streams.key_words([streams.stream_key(0, "p", 1, "noise", "embed")])
    positions, length = torch.arange(6)[None], torch.tensor([4])
    std = torch.ones(1, dtype=torch.float64)

    def drawn(perturbation: Perturbation, std: torch.Tensor) -> torch.Tensor:
        rows = Rows({"embed": keys}, {"embed": std}, length, positions)
        where = rows.deviations(perturbation, "embed")
        return perturb.draw(perturbation, keys, positions, where, 16)

    weak = drawn(Perturbation(sigma=0.1), 0.5 * std)
    strong = drawn(Perturbation(sigma=2.0, sigma_unit="norm", positions="all"), std)
    torch.testing.assert_close(2 * weak[:, :4], strong[:, :4])
    assert not weak[:, 4:].any() and strong[:, 4:].all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: draws compared on none")
def test_cuda_draws_equal_the_cpus_bit_for_bit() -> None:
    keys = streams.key_words(streams.stream_key(0, "p", s, "noise", "embed") for s in range(64))
    positions = torch.arange(50).expand(64, -1)
    counter = (positions, positions * 7919 % 2**32, positions, positions)
    cuda = torch.device("cuda")
    integers = streams.philox(counter, keys[:, None, :])
    there = streams.philox(tuple(c.to(cuda) for c in counter), keys[:, None, :].to(cuda))
    assert torch.equal(integers, there.cpu())
    for draw in (streams.uniform, lambda k, p: streams.normal(k, p, 130)):
        assert torch.equal(draw(keys, positions), draw(keys.to(cuda), positions.to(cuda)).cpu())


def test_draws_do_not_depend_on_companions_or_order() -> None:
    whole = draws(rows=7, pos=11, dim=10)
    keys = streams.key_words(streams.stream_key(0, "p", s, "noise", "embed") for s in (5, 2))
    some = streams.normal(keys, torch.tensor([[9, 0], [3, 3]]), 10)
    assert torch.equal(some[0], whole[5, [9, 0]])
    assert torch.equal(some[1], whole[2, [3, 3]])


def test_width_only_cuts() -> None:
    assert torch.equal(draws(dim=5), draws(dim=30)[..., :5])


def test_uniform_is_uniform_and_keyed() -> None:
    keys = streams.key_words(streams.stream_key(0, "p", s, "sample") for s in range(50))
    u = streams.uniform(keys, torch.arange(100).expand(50, -1))
    assert u.min() >= 0 and u.max() < 1
    assert stats.kstest(u.numpy().ravel(), "uniform").pvalue > 1e-3
    assert torch.equal(u[3:4, 7:8], streams.uniform(keys[3:4], torch.tensor([[7]])))


def test_global_generators_are_left_alone() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first = draws()
    torch.manual_seed(4)
    assert torch.equal(first, draws())
    torch.manual_seed(3)
    draws()
    assert torch.equal(before, torch.random.get_rng_state())


def test_problem_id_is_task_and_prompt() -> None:
    one = streams.problem_id("t", [1, 2])
    assert one == streams.problem_id("t", (1, 2))
    assert len({one, streams.problem_id("u", [1, 2]), streams.problem_id("t", [12])}) == 3


def test_values_are_pinned_to_the_stream_version() -> None:
    """A change here changes every published sample: raise STREAM_VERSION with it."""
    assert streams.STREAM_VERSION == 1
    key = streams.stream_key(0, "problem", 3, "noise", "embed")
    z = streams.normal(streams.key_words([key]), torch.tensor([[2]]), 3)
    assert hex(key) == "0x48ce6fb5797e7b8c"
    assert [round(float(x), 6) for x in z.ravel()] == [0.809009, 0.840623, 0.494885]
