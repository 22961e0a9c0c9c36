"""Inputs longer than the model: what is cut, what is refused, what the norm m is measured on."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from lm_eval_embednoise.engine.sampler import Sampler
from lm_eval_embednoise.minicoder import MODEL_DIR
from lm_eval_embednoise.models.hf_embednoise import HFEmbedNoise
from lm_eval_embednoise.noise import streams
from lm_eval_embednoise.noise.perturbation import Perturbation
from lm_eval_embednoise.noise.reference import References
from tests.support.families import tiny

LENGTH = 64  # of a model with learned positions: a longer input raises
LONG = "def f(xs, n):\n    return [x * n for x in xs if x > 3 and n < 17]\n" * 6
SHORT = "def g(x):\n"


@pytest.fixture(scope="module")
def model() -> Any:
    return copy.deepcopy(
        tiny("gpt2", vocab_size=1024, max_position_embeddings=LENGTH, n_positions=LENGTH)
    )


def wrapped(model: Any, **options: Any) -> HFEmbedNoise:
    noise = {name: options.pop(name) for name in list(options) if name in Perturbation.names()}
    lm = HFEmbedNoise(model, tokenizer=str(MODEL_DIR), batch_size=8, **options)
    lm.set_perturbation(Perturbation(**noise))
    return lm


def requests(prompts: list[str], tokens: int, k: int = 2) -> list[Instance]:
    made = []
    for number, prompt in enumerate(prompts):
        settings = {"until": [], "do_sample": False, "max_gen_toks": tokens}
        request = Instance("generate_until", {}, (prompt, settings), 0, metadata=("t", number, k))
        made += [request] * k
    return made


@pytest.mark.parametrize(
    ("options", "tokens", "words"),
    [
        ({"truncation": True}, LENGTH, ["max_gen_toks=64", "truncation=true", "max_length=64"]),
        ({"truncation": True}, 300, ["max_gen_toks=300", "leave truncation out"]),
        ({"truncation": True, "rsp": 14}, 50, ["max_gen_toks=50", "rsp=14"]),
        ({"truncation": True, "positions": "dummy:9", "rsp": 5}, 50, ["positions=dummy:9"]),
        ({"rsp": LENGTH - 1}, 4, ["rsp=63", "max_length=64"]),
        ({"positions": "dummy:70"}, 4, ["positions=dummy:70"]),
    ],
)
def test_settings_that_leave_no_room_for_any_prompt_are_refused(
    options: dict[str, Any], tokens: int, words: list[str], model: Any, monkeypatch: Any
) -> None:
    lm = wrapped(model, **options)
    monkeypatch.setattr(Sampler, "run", lambda *args: pytest.fail("work was done"))
    asked = requests([SHORT], 4 if "truncation" in options else tokens)
    with pytest.raises(ValueError, match="leave no room for a prompt") as error:
        lm.generate_until([*asked, *requests([SHORT], tokens)], disable_tqdm=True)
    for word in words:
        assert word in str(error.value)


def test_the_last_place_is_given_to_the_prompt(model: Any) -> None:
    lm = wrapped(model, truncation=True, rsp=13)
    texts: list[Any] = lm.generate_until(requests([LONG], 50), disable_tqdm=True)
    assert [text.tokens for text in texts] == [50, 50]
    lm = wrapped(model, rsp=LENGTH - 2)
    texts = lm.generate_until(requests([SHORT], 4), disable_tqdm=True)
    assert {text.finish_reason for text in texts} == {"prompt_too_long"}  # it has several tokens


@pytest.mark.parametrize("room", [9, 10])  # the prefix and its line break take 9
def test_a_prefix_that_fills_the_room_fails_its_samples(
    room: int, model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """No prompt is dropped without a word; one token of it is enough."""
    lm = wrapped(model, truncation=True, prefix="random:8")
    with caplog.at_level(logging.WARNING):
        texts: list[Any] = lm.generate_until(requests([LONG], LENGTH - room), disable_tqdm=True)
    prompt = lm.tok_encode(LONG)[-room:]
    jobs = lm._prompts.jobs(LONG, prompt, "p", range(2), room)
    assert [job.too_long for job in jobs] == [room == 9] * 2
    said = "2 of 2 samples ended with the finish reason prompt_too_long"
    assert caplog.text.count(said) == (room == 9)
    if room == 9:
        assert [(t, t.finish_reason, t.tokens) for t in texts] == [("", "prompt_too_long", 0)] * 2
    else:
        assert [job.prompt_ids[-1] for job in jobs] == [prompt[-1]] * 2
        assert all(len(job.prompt_ids) == room for job in jobs)
        assert [text.tokens for text in texts] == [LENGTH - room] * 2


@pytest.mark.parametrize(
    "options", [{}, {"rsp": 3}, {"positions": "dummy:4"}, {"prefix": "random:3"}]
)
def test_the_clean_prompt_is_what_the_model_sees_of_it(options: dict[str, Any], model: Any) -> None:
    """Norm and log-likelihood refer to it, under truncation too."""
    lm = wrapped(model, truncation=True, sigma=0.5, depth="1", **options)
    limit = LENGTH - 20
    prompt = lm._prompt_ids(LONG, limit)
    jobs = lm._prompts.jobs(LONG, prompt, "p", range(3), limit)
    added = 3 * ("rsp" in options) + 4 * ("positions" in options)
    whole = lm.tok_encode(LONG)
    references = References(model, lm.perturbation)
    for job in jobs:
        assert job.clean == tuple(whole[added - limit :])
        assert len(job.prompt_ids) == limit
        again = lm._prompts.jobs(LONG, job.clean, "p", job.samples, limit)[0]
        assert again == job  # as `regenerate` makes it from what is stored
    texts: list[Any] = lm.generate_until(requests([LONG], 20, k=1), disable_tqdm=True)
    (std,) = {text.sites["block.1"]["std"] for text in texts}
    assert std == pytest.approx(references.std(jobs[0].clean)["block.1"], rel=1e-6)


def test_a_prompt_beyond_the_model_is_not_measured_with_a_store(model: Any, tmp_path: Path) -> None:
    lm = wrapped(model, sigma=0.5, depth="1", store=str(tmp_path))
    texts: list[Any] = lm.generate_until(requests([LONG, SHORT], 5), disable_tqdm=True)
    reasons = [text.finish_reason for text in texts]
    assert reasons[:2] == ["prompt_too_long"] * 2 and "prompt_too_long" not in reasons[2:]


# -- log-likelihoods


@pytest.fixture(scope="module")
def pairs(model: Any) -> list[tuple[Any, list[int], list[int]]]:
    """Contexts and continuations of many lengths, most of them longer than the model together."""
    torch.manual_seed(0)
    found = []
    sizes = [(3, 2), (200, 5), (64, 1), (64, 2), (65, 1), (63, 2), (10, 60), (5, 64), (80, 64)]
    for context, continuation in sizes:
        ids = torch.randint(1, 1024, (context + continuation,)).tolist()
        found.append((None, ids[:context], ids[context:]))
    return found


def test_long_contexts_are_scored_as_the_stock_class_does(
    pairs: Any, model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    stock = HFLM(model, tokenizer=str(MODEL_DIR), batch_size=1)
    assert stock.max_length == LENGTH
    expected = stock._loglikelihood_tokens(pairs, disable_tqdm=True)
    for depth in ("embed", "1"):
        lm = wrapped(model, sigma=1e-7, depth=depth)
        with caplog.at_level(logging.WARNING):
            caplog.clear()
            got = lm._loglikelihood_tokens(pairs, disable_tqdm=True)
        assert [greedy for _, greedy in got] == [greedy for _, greedy in expected]
        for (a, _), (b, _) in zip(got, expected, strict=True):
            assert a == pytest.approx(b, rel=1e-4)
        cut = sum(len(context) + len(cont) > LENGTH + 1 for _, context, cont in pairs)
        assert caplog.text.count("of the context are cut from the left") == cut


def test_the_norm_is_measured_on_what_the_model_sees(pairs: Any, model: Any) -> None:
    """What is cut from a context changes nothing, however it differs."""
    torch.manual_seed(1)
    lm = wrapped(model, sigma=0.5, depth="1")
    other = []
    for strings, context, continuation in pairs:
        cut = max(0, len(context) + len(continuation) - LENGTH - 1)
        other.append((strings, context[cut:], continuation))
    names = iter(range(100))
    streams_of = [str(next(names)) for _ in pairs] * 2
    asked = iter(streams_of)
    with pytest.MonkeyPatch.context() as patch:  # noise is keyed by the whole context
        patch.setattr(streams, "problem_id", lambda *args: next(asked))
        got = lm._loglikelihood_tokens(pairs, disable_tqdm=True)
        assert lm._loglikelihood_tokens(other, disable_tqdm=True) == got


def rolling(texts: list[str]) -> list[Instance]:
    return [Instance("loglikelihood_rolling", {}, (text,), n) for n, text in enumerate(texts)]


def test_rolling_windows_are_the_stock_classs(model: Any) -> None:
    stock = HFLM(model, tokenizer=str(MODEL_DIR), batch_size=4)
    expected = stock.loglikelihood_rolling(rolling([LONG, SHORT]), disable_tqdm=True)
    lm = wrapped(model, sigma=1e-7, depth="1")
    got = lm.loglikelihood_rolling(rolling([LONG, SHORT]), disable_tqdm=True)
    assert got == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "options",
    [{"rsp": 5}, {"positions": "dummy:5", "sigma": 0.1}, {"prefix": "random:6", "rsp": 2}],
    ids=str,
)
def test_rolling_windows_leave_room_for_what_is_added(
    options: dict[str, Any],
    model: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Every token of the text is scored once, behind all that is added, in inputs that fit."""
    lm = wrapped(model, **options)
    lengths, scored = [], []
    score = Sampler.loglikelihood

    def seen(self: Sampler, number: int, job: Any, continuation: list[int]) -> Any:
        lengths.append(len(job.prompt_ids) + len(continuation) - 1)
        assert len(job.prompt_ids) >= len(job.clean) + lm._prompts.vectors and not job.too_long
        scored.extend(continuation)
        return score(self, number, job, continuation)

    monkeypatch.setattr(Sampler, "loglikelihood", seen)
    with caplog.at_level(logging.WARNING):
        (got,) = lm.loglikelihood_rolling(rolling([LONG]), disable_tqdm=True)
    assert "cut from the left" not in caplog.text
    assert got < 0 and scored == lm.tok_encode(LONG)
    assert LENGTH - 4 <= max(lengths) <= LENGTH
    assert lm.max_length == LENGTH


def test_what_never_fits_a_score_is_refused(pairs: Any, model: Any) -> None:
    lm = wrapped(model, rsp=4)
    with pytest.raises(ValueError, match="continuation of 64 tokens and rsp=4 leave no room"):
        lm._loglikelihood_tokens(pairs[-2:], disable_tqdm=True)
    lm = wrapped(model, sigma=0.1)
    with pytest.raises(ValueError, match="continuation of 65 tokens leave no room"):
        lm._loglikelihood_tokens([(None, [1], [2] * 65)], disable_tqdm=True)
    lm = wrapped(model, rsp=LENGTH)
    with pytest.raises(ValueError, match="rsp=64 take up to 64 of max_length=64"):
        lm.loglikelihood_rolling(rolling([SHORT]), disable_tqdm=True)
    assert lm.max_length == LENGTH
