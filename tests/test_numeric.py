"""Logits that are not numbers: no token is made of them, and no other row suffers."""

from __future__ import annotations

import copy
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from transformers import AutoModelForCausalLM, PreTrainedModel

from lm_eval_embednoise import Generation
from lm_eval_embednoise.engine.choose import NO_TOKEN, choose
from lm_eval_embednoise.engine.jobs import Job, Sample, Stop
from lm_eval_embednoise.engine.runner import Runner
from lm_eval_embednoise.engine.sampler import Sampler
from lm_eval_embednoise.engine.sampling import LEAST_TEMPERATURE, Sampling
from lm_eval_embednoise.minicoder import MODEL_DIR
from lm_eval_embednoise.models.hf_embednoise import HFEmbedNoise
from lm_eval_embednoise.noise.perturbation import Perturbation
from lm_eval_embednoise.scoring import maths, records
from lm_eval_embednoise.scoring.reduce import math_metrics
from tests.support.families import tiny
from tests.test_sampler import PROMPTS, jobs

NAN, INF = math.nan, math.inf
WAYS = [
    Sampling(),
    Sampling(temperature=0.7),
    Sampling(temperature=0.7, top_k=3),
    Sampling(temperature=0.7, top_p=0.8),
    Sampling(temperature=0.7, min_p=0.1),
    Sampling(temperature=1.3, top_k=4, top_p=0.9, min_p=0.05),
    Sampling(temperature=1.3, top_n_sigma=1.0),
    Sampling(temperature=1.3, p_less=True),
    Sampling(temperature=1.3, typical_p=0.6, epsilon_cutoff=0.01, eta_cutoff=0.02),
]
VALUES = st.one_of(st.sampled_from([NAN, INF, -INF]), st.floats(-50, 50, width=32))


@given(st.lists(st.lists(VALUES, min_size=6, max_size=6), min_size=1, max_size=5), st.data())
def test_a_token_is_chosen_where_there_is_a_softmax(rows: list[list[float]], data: Any) -> None:
    logits = torch.tensor(rows)
    defined = ~logits.softmax(dim=-1).isnan().any(dim=-1)
    sampling = data.draw(st.sampled_from(WAYS))
    tokens = choose(logits, sampling, torch.full((len(rows),), 0.4, dtype=torch.float64))
    assert torch.equal(tokens != NO_TOKEN, defined)
    for row, token in zip(logits[defined], tokens[defined].tolist(), strict=True):
        assert 0 <= token < 6 and row[token] > -INF
        if sampling.greedy:
            assert token == int(row.argmax())
        (alone,) = choose(row[None], sampling, torch.tensor([0.4], dtype=torch.float64))
        assert alone == token


def breaking(model: PreTrainedModel, tokens: set[int]) -> PreTrainedModel:
    """A copy of a model whose keys, values and logits are NaN from the given tokens on."""
    found = copy.deepcopy(model)
    found.get_input_embeddings().weight.data[list(tokens)] = NAN
    return found


def by_key(samples: Any) -> dict[tuple[int, int], Sample]:
    return {(s.job, s.index): s for s in samples}


METHODS = {
    "greedy": (Perturbation(), Sampling(max_gen_toks=12)),
    "temperature": (Perturbation(), Sampling(temperature=1.0, max_gen_toks=12)),
    "noise": (
        Perturbation(sigma=0.6, positions="all", depth="1", sigma_unit="absolute"),
        Sampling(temperature=1.0, max_gen_toks=12),
    ),
}


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["wide", "narrow", "gpt2", "bloom", "gemma2"])
def test_a_row_ends_where_its_logits_are_no_numbers_and_harms_no_other(
    family: str, method: str, exact: bool, wide_qwen2: Any, qwen2: Any
) -> None:
    """Its slot is taken by waiting rows, whose masks would not hide a NaN in it."""
    if exact and family == "bloom":
        pytest.skip("exact=true is refused for families that decode padded")
    model = {"wide": wide_qwen2, "narrow": qwen2}.get(family) or tiny(family)
    perturbation, sampling = METHODS[method]
    work = jobs((0, 1, 2, 3))

    def run(of: PreTrainedModel) -> dict[tuple[int, int], Sample]:
        sampler = Sampler(of, perturbation, sampling, batch_size=3, exact=exact)
        return by_key(sampler.run(work))

    clean = run(model)
    texts = [set(sample.ids) for sample in clean.values()]
    allowed = set.union(*texts) - {token for prompt in PROMPTS for token in prompt} - {0}
    poison: set[int] = set()  # tokens of some samples, not of all
    for token in sorted(allowed):
        if sum(bool(text & {*poison, token}) for text in texts) <= 0.6 * len(texts):
            poison.add(token)
    ended = 0
    for key, sample in run(breaking(model, poison)).items():
        ids = clean[key].ids
        first = next((at for at, token in enumerate(ids) if token in poison), None)
        if first is None or first == len(ids) - 1:
            assert (sample.ids, sample.finish_reason) == (ids, clean[key].finish_reason)
            continue
        ended += 1
        assert (sample.ids, sample.finish_reason) == (ids[: first + 1], "numeric")
        assert all(math.isfinite(rho) for rho in sample.rho.values())
        with torch.no_grad():
            whole = torch.tensor([[*work[key[0]].prompt_ids, *sample.ids]])
            logits = model(whole).logits[0, -len(sample.ids) - 1 : -1].log_softmax(-1)
        nll = -float(logits.gather(1, torch.tensor(sample.ids)[:, None]).sum())
        assert sample.nll == pytest.approx(nll, rel=1e-4)
    assert 0 < ended < len(clean)


def test_a_model_without_numbers_gives_no_tokens_and_no_likelihood(qwen2: PreTrainedModel) -> None:
    broken = breaking(qwen2, set(range(97)))
    noise = Perturbation(sigma=0.5, sigma_unit="absolute")
    for perturbation in (Perturbation(), noise):
        sampler = Sampler(broken, perturbation, Sampling(max_gen_toks=5), Stop(frozenset({0})))
        samples = list(sampler.run(jobs((0, 1))))
        assert len(samples) == 10
        for sample in samples:
            assert (sample.ids, sample.finish_reason, sample.nll) == ([], "numeric", None)
    assert sampler.clean_nll(PROMPTS[0], [(4, 5), ()]) == [None, pytest.approx(0)]
    score, greedy, _ = sampler.loglikelihood(0, Job(PROMPTS[0], "p", (0,)), [0])
    assert math.isnan(score) and not greedy


@pytest.mark.parametrize("temperature", [1e-320, 1e-38, LEAST_TEMPERATURE / 2, -1.0, NAN, INF])
def test_a_temperature_that_leaves_float32_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match=r"temperature=.* is not allowed; it must be"):
        Sampling(temperature=temperature)


def test_a_temperature_that_is_barely_allowed_is_greedy_in_effect() -> None:
    logits = 1e4 * torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    uniforms = torch.linspace(0, 0.999, 50, dtype=torch.float64)
    tokens = choose(logits, Sampling(temperature=LEAST_TEMPERATURE), uniforms)
    assert torch.equal(tokens, logits.argmax(-1))
    with pytest.raises(ValueError, match=r"1e-320.*1e-30"):
        Sampling.from_gen_kwargs({"temperature": 1e-320, "do_sample": True})


# -- in the harness


def requests(k: int, prompts: list[str], tokens: int = 6) -> list[Instance]:
    made = []
    for number, prompt in enumerate(prompts):
        settings = {"until": [], "do_sample": False, "max_gen_toks": tokens}
        request = Instance("generate_until", {}, (prompt, settings), 0, metadata=("t", number, k))
        made += [request] * k
    return made


@pytest.fixture(scope="module")
def half() -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float16)


@pytest.mark.parametrize("stored", [False, True])
def test_a_dose_beyond_half_precision_is_counted_and_warned_of(
    half: Any, stored: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more: dict[str, Any] = {"store": str(tmp_path)} if stored else {}
    lm = HFEmbedNoise(half, tokenizer=str(MODEL_DIR), batch_size=8, **more)
    lm.set_perturbation(Perturbation(sigma=1e6, positions="generated"))
    asked = requests(3, ["def f(xs):\n", "def g(x, y):\n"])
    with caplog.at_level(logging.WARNING):
        texts: list[Any] = lm.generate_until(asked, disable_tqdm=True)
        lm.generate_until(requests(1, ["def h():\n"]), disable_tqdm=True)
    assert [text.finish_reason for text in texts] == ["numeric"] * 6
    assert all(text.tokens == 1 and text.nll > 0 and text.nll_tokens == 1 for text in texts)
    lines = [r.getMessage() for r in caplog.records if "numeric" in r.getMessage()]
    assert len(lines) == 1
    for words in ("6 of 6 samples", "sigma=1e+06 at embed", "std per coordinate", "float16"):
        assert words in lines[0]
    if stored:
        again: list[Any] = lm.generate_until(asked, disable_tqdm=True)
        assert [(str(a), a.measurements()) for a in again] == [
            (str(t), t.measurements()) for t in texts
        ]


@pytest.mark.parametrize("plain", [False, True])
def test_samples_without_a_likelihood_are_stored_once(
    half: Any, plain: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed run neither generates nor scores them again."""
    broken = copy.deepcopy(half)
    broken.model.layers[3].mlp.down_proj.weight.data.fill_(60000)
    lm = HFEmbedNoise(broken, tokenizer=str(MODEL_DIR), batch_size=8, store=str(tmp_path))
    lm.set_perturbation(Perturbation() if plain else Perturbation(sigma=0.1))
    asked = requests(2, ["def f(xs):\n"])
    first: list[Any] = lm.generate_until(asked, disable_tqdm=True)
    assert [(str(t), t.finish_reason, t.nll) for t in first] == [("", "numeric", None)] * 2
    monkeypatch.setattr(Runner, "forward", lambda *a, **k: pytest.fail("the model ran"))
    again: list[Any] = lm.generate_until(asked, disable_tqdm=True)
    assert [t.measurements() for t in again] == [t.measurements() for t in first]


def test_the_share_of_numeric_ends_is_a_metric() -> None:
    samples = [
        Generation("#### 4", finish_reason="numeric"),
        Generation("#### 4", finish_reason="x"),
    ]
    made = [records.math_record(s, i, "4", maths.MARKED) for i, s in enumerate(samples)]
    assert math_metrics({"task_id": "t", "answer": "#### 4"}, [made])["numeric"] == 0.5
    plain = [records.math_record("#### 4", 0, "4", maths.MARKED)]
    assert math.isnan(math_metrics({"task_id": "t", "answer": "#### 4"}, [plain])["numeric"])
