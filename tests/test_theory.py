"""The first-order theory against finite differences, closed forms, and draws of other seeds."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from scipy.stats import norm

from lm_eval_embednoise.analysis.mechanism.theory import LOGISTIC, Path, compared, measures, path_of
from lm_eval_embednoise.engine.jobs import Job
from lm_eval_embednoise.engine.runner import Runner
from lm_eval_embednoise.noise.perturbation import Perturbation
from tests.support.cacheless import Cacheless
from tests.support.families import tiny

if TYPE_CHECKING:
    from torch import Tensor

JOB = Job((5, 17, 3, 88, 41), "problem", (0, 1, 2))
IDS, DRAWS = (7, 9, 4), (0, 1, 2)


@pytest.mark.parametrize(("family", "site"), [("qwen2", "embed"), ("llama", "block.0")])
def test_slopes_are_the_differences_of_the_reference(family: str, site: str) -> None:
    """Central differences of passes without the engine, with its own draws and norm m."""
    model = tiny(family)
    depth = site.removeprefix("block.")
    path = path_of(Runner(model, Perturbation(sigma=1, depth=depth)), JOB, IDS, site, DRAWS)
    reference = Cacheless(model, Perturbation(sigma=1, depth=depth))
    unit = reference.std(JOB.prompt_ids)[site]
    assert path.unit == pytest.approx(unit, rel=1e-4)
    clean = reference.run(JOB, 0, IDS[:-1], {site: 0.0}).logits
    torch.testing.assert_close(path.logits, clean, rtol=1e-4, atol=1e-4)
    for place, draw in enumerate(DRAWS):
        step = 1e-3 * unit  # these small random models are far from linear
        up = reference.run(JOB, draw, IDS[:-1], {site: step}).logits
        down = reference.run(JOB, draw, IDS[:-1], {site: -step}).logits
        slope = (up - down) / (2 * step)
        off = (path.slopes[place] - slope).abs().max() / slope.abs().max()
        assert off < 0.02
        full = reference.run(JOB, draw, IDS[:-1], {site: 0.5 * unit}).logits - clean
        torch.testing.assert_close(path.moved(0.5 * unit)[place], full, rtol=1e-3, atol=1e-4)


def test_two_logits_under_gaussian_noise_have_closed_forms() -> None:
    gap, sd = 1.0, 0.8
    z = torch.randn(20000, 1, 1, generator=torch.Generator().manual_seed(0))
    change = torch.cat([sd * z, torch.zeros_like(z)], dim=-1)
    found = measures(torch.tensor([[gap, 0.0]]), change)
    assert found["first"] == found["path"] == pytest.approx(norm.cdf(-gap / sd), abs=0.01)
    assert found["temperature"] == pytest.approx(sd * math.sqrt(3) / math.pi, rel=0.02)
    assert found["variance"] == pytest.approx(sd**2 / 4, rel=0.03)  # ± half the difference


def test_the_temperature_is_that_of_gumbel_noise() -> None:
    """Sampling at T adds Gumbel numbers of scale T to the logits."""
    u = torch.rand(40000, 1, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gumbel = -0.7 * (-u.log()).log()
    found = measures(torch.tensor([[2.0, 0.0]], dtype=torch.float64), gumbel)
    assert found["temperature"] == pytest.approx(0.7, rel=0.02)
    assert pytest.approx(1.8138, abs=1e-4) == LOGISTIC
    assert found["first"] == pytest.approx(1 / (1 + math.exp(2 / 0.7)), abs=0.01)


def linear(slopes: Tensor, curve: float = 0.0) -> Path:
    logits = torch.randn(3, 9, generator=torch.Generator().manual_seed(2))
    return Path(logits, slopes, 1.0, lambda std: std * slopes + curve * (std * slopes) ** 2)


def test_what_is_linear_is_explained_and_what_is_not_only_where_it_is_small() -> None:
    slopes = torch.randn(50, 3, 9, generator=torch.Generator().manual_seed(3))
    for row in compared(linear(slopes), [0.1, 1.0]):
        assert row["explained"] == pytest.approx(1)
        assert row["predicted_path"] == row["measured_path"]
    small, large = compared(linear(slopes, curve=3.0), [1e-3, 3.0])
    assert small["explained"] > 0.99 and large["explained"] < 0.2


def test_draws_of_other_seeds_explain_nothing() -> None:
    slopes = torch.randn(200, 3, 9, generator=torch.Generator().manual_seed(4))
    shuffled = replace(linear(slopes), slopes=slopes[torch.randperm(200)])
    (row,) = compared(shuffled, [0.5])
    assert row["explained"] < 0.1
    assert row["predicted_variance"] == pytest.approx(row["measured_variance"], rel=1e-4)
