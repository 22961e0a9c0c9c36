"""Clean states: covariance and norms from their definitions, their file, and what needs them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lm_eval_embednoise.engine.runner import Runner
from lm_eval_embednoise.engine.sampling import Sampling
from lm_eval_embednoise.models import states as measuring
from lm_eval_embednoise.models.hf_embednoise import HFEmbedNoise
from lm_eval_embednoise.models.stored import settings_of
from lm_eval_embednoise.noise.clean_states import (
    CleanStates,
    covariance_roots,
    decode_norms,
    load,
)
from lm_eval_embednoise.noise.context import perturbed
from lm_eval_embednoise.noise.inject import Rows, add_noise, noise_keys
from lm_eval_embednoise.noise.perturbation import Perturbation
from tests.support.families import tiny
from tests.test_hf_embednoise import requests

SITES = ("embed", "block.1", "mlp.2")
TEXTS = [list(range(start, start + 33)) for start in range(0, 60, 7)]
SHAPED: dict[str, Any] = {"sigma": 0.3, "noise_law": "covariance", "depth": "1"}


def states_at(model: Any, text: list[int]) -> torch.Tensor:
    """Hidden states that leave block 1: float64 [pos, dim]."""
    model = copy.deepcopy(model)  # asking for hidden states leaves hooks in it
    with torch.no_grad():
        output = model(torch.tensor([text]), output_hidden_states=True, use_cache=False)
    return output.hidden_states[2][0].double()


def test_a_root_is_that_of_the_covariance() -> None:
    model = tiny("llama")
    roots = covariance_roots(model, SITES, TEXTS)
    assert {site: len(root) for site, root in roots.items()} == {
        "embed": 32, "block.1": 32, "mlp.2": 48,
    }  # fmt: skip
    rows = torch.cat([states_at(model, text)[1:] for text in TEXTS]).numpy()
    right = np.cov(rows, rowvar=False, bias=True)
    right *= len(right) / np.trace(right)
    root = roots["block.1"].double().numpy()
    np.testing.assert_allclose(root, root.T, atol=1e-6)
    np.testing.assert_allclose(root @ root, right, atol=1e-4)


def test_shaped_noise_has_the_covariance_and_the_gaussians_length() -> None:
    roots = covariance_roots(tiny("llama"), ("block.1",), TEXTS)
    p = Perturbation(**SHAPED)
    pairs = [("p", sample) for sample in range(3000)]
    keys = noise_keys(p, pairs, torch.device("cpu"))
    ones = torch.ones(len(pairs), dtype=torch.float64)
    rows = Rows(keys, {"block.1": ones}, torch.full((len(pairs),), 4), roots=roots)
    rows.positions = torch.zeros(len(pairs), 1, dtype=torch.int64)
    noise = add_noise(p, rows, "block.1", torch.zeros(len(pairs), 1, 32))[0][:, 0].double()
    assert float(noise.square().sum(dim=1).mean()) == pytest.approx(32, rel=0.05)
    right = roots["block.1"].double() @ roots["block.1"].double()
    assert float((noise.T @ noise / len(pairs) - right).norm() / right.norm()) < 0.15


def test_norms_are_medians_over_generated_positions() -> None:
    model = tiny("llama")
    answers = [(text[:5], text[5:12]) for text in TEXTS]
    norms = decode_norms(model, ("block.1",), answers)
    each = [states_at(model, text[:11])[5:].norm(dim=1) for text in TEXTS]
    assert norms["block.1"] == pytest.approx(float(np.median(torch.cat(each))), rel=1e-5)
    p = Perturbation(sigma=0.2, sigma_reference="decode", depth="1")
    runner = Runner(model, p, states=CleanStates("", norms))
    assert runner.references.std((5, 6))["block.1"] == pytest.approx(
        0.2 * norms["block.1"] / 32**0.5
    )


@pytest.mark.parametrize(
    "needing", [SHAPED, {"sigma": 0.1, "sigma_reference": "decode"}], ids=["covariance", "decode"]
)
def test_what_needs_clean_states_says_so(needing: dict[str, Any]) -> None:
    p, model = Perturbation(**needing), tiny("llama")
    with pytest.raises(ValueError, match=r"needs the clean model's states"):
        Runner(model, p)
    with pytest.raises(ValueError, match=r"measured at no sites, not at (block.1|embed)"):
        Runner(model, p, states=CleanStates("x"))
    with pytest.raises(ValueError, match=r"needs the clean model's states"):
        perturbed(model, p).__enter__()


def test_states_are_measured_once_kept_and_part_of_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "POSITIONS", 300)
    monkeypatch.setattr(measuring, "TOKENS", 4)
    file = tmp_path / "states.safetensors"
    args: dict[str, Any] = {**SHAPED, "sigma_reference": "decode", "states": str(file)}
    lm = HFEmbedNoise(batch_size=8, **args)
    greedy = {"do_sample": False, "max_gen_toks": 6}
    texts = [str(text) for text in lm.generate_until(requests(greedy, 1, 3), disable_tqdm=True)]
    assert file.is_file() and lm.states is not None
    assert set(lm.states.norms) == set(lm.states.roots) == {"block.1"}
    settings = settings_of(lm, Sampling())  # type: ignore[arg-type]
    assert settings["perturbation"]["states"] == lm.states.hash
    assert lm.get_model_info()["embednoise"]["states"] == lm.states.hash

    monkeypatch.setattr(measuring, "_roots", None)  # measuring again would fail
    again = HFEmbedNoise(batch_size=8, **args)
    assert texts == [
        str(t) for t in again.generate_until(requests(greedy, 1, 3), disable_tqdm=True)
    ]
    again.set_perturbation(Perturbation(**{**SHAPED, "depth": "2"}))
    with pytest.raises(ValueError, match=r"measured at block\.1, not at block\.2"):
        _ = again.states
    with pytest.raises(ValueError, match=r"is of another model \(fingerprint"):
        load(file, "0" * 32)
    file.write_bytes(file.read_bytes()[:-4] + b"abcd")
    with pytest.raises(ValueError, match=r"is damaged"):
        load(file, lm.fingerprint())
    file.write_text("something else")
    with pytest.raises(ValueError, match=r"is not a file of clean states"):
        load(file, lm.fingerprint())


def test_without_need_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval_embednoise.models.hf_embednoise.HFEmbedNoise.fingerprint", None)
    lm = HFEmbedNoise(batch_size=8, sigma=0.1)
    assert lm.states is None
    lm.set_perturbation(Perturbation(noise_law="covariance"))  # sigma 0: the control
    assert lm.states is None
