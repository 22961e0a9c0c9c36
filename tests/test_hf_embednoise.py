"""The model class in the harness: real requests, real tokenizer, the embedded model."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
from lm_eval.api.instance import Instance

from lm_eval_embednoise.minicoder import load_problems
from lm_eval_embednoise.models import progress
from lm_eval_embednoise.models.hf_embednoise import HFEmbedNoise
from lm_eval_embednoise.noise.perturbation import Perturbation
from lm_eval_embednoise.store.generation import Generation

UNTIL = ["\ndef ", "\nclass "]
GREEDY = {"until": UNTIL, "do_sample": False, "max_gen_toks": 40}
WARM = {"until": UNTIL, "do_sample": True, "temperature": 0.8, "max_gen_toks": 40}


@pytest.fixture(scope="module")
def lm() -> HFEmbedNoise:
    return HFEmbedNoise(device="cpu", batch_size=16)


def requests(gen_kwargs: dict[str, Any], k: int = 3, problems: int = 3) -> list[Instance]:
    """Requests as the harness makes them: the same Instance K times in a row."""
    made = []
    for number, problem in enumerate(load_problems("minicode")[:problems]):
        instance = Instance(
            "generate_until",
            problem,
            (problem["prompt"], gen_kwargs),
            0,
            metadata=("minicode_diverse", number, k),
        )
        made += [instance] * k
    return made


def test_k_requests_are_k_samples(lm: HFEmbedNoise) -> None:
    lm.set_perturbation(Perturbation(sigma=0.4, sigma_reference="prompt"))
    texts = lm.generate_until(requests(GREEDY), disable_tqdm=True)
    assert [text.sample_index for text in texts] == [0, 1, 2] * 3
    assert all(isinstance(text, Generation) and text.rho > 0.2 for text in texts)
    assert all(text.nll > 0 and text.nll_tokens == text.tokens for text in texts if text)
    assert set(lm.rho()) == {"embed"} and 0.38 < lm.rho()["embed"] < 0.48
    assert lm.get_model_info()["embednoise"]["rho"] == lm.rho()


def test_every_site_says_how_strong_its_noise_was(lm: HFEmbedNoise) -> None:
    """ρ and std of each site, in every sample and in the run's information."""
    lm.set_perturbation(Perturbation(depth={"embed": 0.2, "5": 0.1}))
    texts = lm.generate_until(requests(GREEDY, k=2, problems=2), disable_tqdm=True)
    info = lm.get_model_info()["embednoise"]
    for site in ("embed", "block.5"):
        rhos = [text.sites[site]["rho"] for text in texts]
        stds = [text.sites[site]["std"] for text in texts]
        assert info["rho"][site] == pytest.approx(sum(rhos) / 4)
        assert min(stds) <= info["std"][site] <= max(stds)
    assert texts[0].rho == max(of["rho"] for of in texts[0].sites.values())
    hidden = {text.sites["block.5"]["std"] for text in texts}
    assert len(hidden) == 2 and len({text.sites["embed"]["std"] for text in texts}) == 1


def test_noise_above_the_signal_is_warned_of_once(
    lm: HFEmbedNoise, caplog: pytest.LogCaptureFixture
) -> None:
    def warnings() -> int:
        return sum("larger than the signal" in record.message for record in caplog.records)

    lm.set_perturbation(Perturbation(sigma=3.0))
    short = {**GREEDY, "max_gen_toks": 2}
    with caplog.at_level("INFO"):
        for _ in range(2):
            lm.generate_until(requests(short, k=2, problems=1), disable_tqdm=True)
    assert warnings() == 1
    assert "std per coordinate" in caplog.text
    lm.set_perturbation(Perturbation(sigma=0.1))
    with caplog.at_level("INFO"):
        lm.generate_until(requests(short, k=2, problems=1), disable_tqdm=True)
    assert warnings() == 1


def test_greedy_equals_the_stock_class(lm: HFEmbedNoise) -> None:
    from lm_eval.models.huggingface import HFLM

    from lm_eval_embednoise.minicoder import MODEL_DIR

    lm.set_perturbation(Perturbation())
    stock = HFLM(str(MODEL_DIR), device="cpu", batch_size=4)
    ours = lm.generate_until(requests(GREEDY, k=2, problems=5), disable_tqdm=True)
    assert ours == stock.generate_until(requests(GREEDY, k=2, problems=5), disable_tqdm=True)


@pytest.mark.parametrize("gen_kwargs", [GREEDY, WARM])
def test_order_and_companions_change_nothing(lm: HFEmbedNoise, gen_kwargs: dict) -> None:
    lm.set_perturbation(Perturbation(sigma=0.3))
    whole = lm.generate_until(requests(gen_kwargs), disable_tqdm=True)
    turned = lm.generate_until(requests(gen_kwargs)[::-1], disable_tqdm=True)
    one = lm.generate_until(requests(gen_kwargs)[3:6], disable_tqdm=True)
    by_problem = {0: turned[6:], 1: turned[3:6], 2: turned[:3]}
    assert [*by_problem[0], *by_problem[1], *by_problem[2]] == whole
    assert one == whole[3:6]
    lm.set_perturbation(Perturbation(sigma=0.3, seed=1))
    assert lm.generate_until(requests(gen_kwargs), disable_tqdm=True) != whole


def test_padding_of_a_short_rank_is_copied_not_generated(lm: HFEmbedNoise) -> None:
    """The harness repeats the last problem on a rank that has fewer: 2K responses, K samples."""
    lm.set_perturbation(Perturbation(sigma=0.4))
    own = requests(GREEDY)
    texts = lm.generate_until(own + own[-3:], disable_tqdm=True)
    assert len(texts) == 12 and texts[9:] == texts[6:9]


def test_loglikelihood_is_sample_zero_of_the_perturbation(
    lm: HFEmbedNoise, caplog: pytest.LogCaptureFixture
) -> None:
    request = [SimpleNamespace(args=("def f(xs):\n", "    return xs\n"))]
    lm.set_perturbation(Perturbation())
    ((clean, _),) = lm.loglikelihood(request, disable_tqdm=True)
    lm.set_perturbation(Perturbation(sigma=1e-4))
    ((nearly, _),) = lm.loglikelihood(request, disable_tqdm=True)
    lm.set_perturbation(Perturbation(sigma=0.5))
    caplog.clear()
    with caplog.at_level("INFO"):
        ((noisy, _),) = lm.loglikelihood(request, disable_tqdm=True)
        assert lm.loglikelihood(request, disable_tqdm=True)[0][0] == noisy
    assert caplog.text.count("scored as sample 0 of the perturbation") == 1
    assert 0.3 < lm.rho()["embed"] < 1
    assert nearly == pytest.approx(clean, abs=0.02)
    assert abs(noisy - clean) > 0.02


ADDED = [
    {"rsp": 4},
    {"rsp": 4, "rsp_slot": "after-bos", "sigma": 0.3, "positions": "all", "depth": "embed+5"},
    {"prefix": "random:8"},
    {"prefix": "random:8", "rsp": 2, "positions": "dummy:2", "sigma": 0.3},
]


def test_a_soft_prompt_and_a_dummy_are_in_the_information(lm: HFEmbedNoise) -> None:
    lm.set_perturbation(Perturbation(rsp=3, rsp_scale=2.0, positions="dummy:1"))
    lm.generate_until(requests({**GREEDY, "max_gen_toks": 2}, k=1, problems=1), disable_tqdm=True)
    info = lm.get_model_info()["embednoise"]
    table = lm.model.get_input_embeddings().weight.detach().float()
    assert info["soft_prompt_std"] == pytest.approx(2 * float(table.std()), rel=0.05)
    assert info["dummy_token_id"] == lm.tokenizer.encode("\n")[0]


@pytest.mark.parametrize("options", ADDED, ids=str)
def test_what_is_added_to_prompts_is_each_samples_own(lm: HFEmbedNoise, options: dict) -> None:
    """K different samples, the same in any order and company, whose seed matters."""
    kwargs = {**(WARM if "sigma" in options else GREEDY), "max_gen_toks": 12}
    lm.set_perturbation(Perturbation(**options))
    asked = requests(kwargs, problems=6)
    whole = lm.generate_until(asked, disable_tqdm=True)
    assert [text.sample_index for text in whole] == [0, 1, 2] * 6
    assert any(len(set(whole[start : start + 3])) > 1 for start in range(0, len(whole), 3))
    assert lm.generate_until(asked[3:5], disable_tqdm=True) == whole[3:5]
    assert all(text.nll > 0 for text in whole if text)
    lm.set_perturbation(Perturbation(**options, seed=1))
    assert lm.generate_until(asked, disable_tqdm=True) != whole


@pytest.mark.parametrize(
    "options", [{"rsp": 3}, {"prefix": "random:5"}, {"positions": "dummy:3", "dummy_token": "eos"}]
)
def test_loglikelihood_sees_what_is_added(lm: HFEmbedNoise, options: dict) -> None:
    pairs = [("def f(xs):\n", "    return xs\n"), ("def f(xs):", "\n    return 1\n")]
    request = [SimpleNamespace(args=pair) for pair in pairs]
    lm.set_perturbation(Perturbation())
    clean = [score for score, _ in lm.loglikelihood(request, disable_tqdm=True)]
    lm.set_perturbation(Perturbation(**options))
    got = [score for score, _ in lm.loglikelihood(request, disable_tqdm=True)]
    assert got == [score for score, _ in lm.loglikelihood(request, disable_tqdm=True)]
    assert all(abs(a - b) > 0.01 for a, b in zip(clean, got, strict=True))


def test_a_soft_prompt_in_a_slot_the_model_lacks_is_refused(lm: HFEmbedNoise) -> None:
    with pytest.raises(ValueError, match=r"no chat template; use rsp_slot=after-prompt"):
        lm.set_perturbation(Perturbation(rsp=2, rsp_slot="before-assistant"))
    with pytest.raises(ValueError, match=r"dummy_token='a b c'.*exactly one token"):
        lm.set_perturbation(Perturbation(positions="dummy:2", dummy_token="a b c"))


def test_prompt_too_long_is_a_failure_of_that_problem_alone(lm: HFEmbedNoise) -> None:
    lm.set_perturbation(Perturbation())
    long = Instance("generate_until", {}, ("x " * 5000, GREEDY), 0, metadata=("t", 0, 2))
    texts = lm.generate_until([long] * 2 + requests(GREEDY, problems=1), disable_tqdm=True)
    assert [text.finish_reason for text in texts[:2]] == ["prompt_too_long"] * 2
    assert texts[2] and texts[2].finish_reason != "prompt_too_long"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"sigm": 0.1}, ["unknown model argument 'sigm'", "did you mean 'sigma'"]),
        ({"attn_implementatio": "x"}, ["did you mean 'attn_implementation'"]),
        ({"sigma": -1}, ["sigma=-1", "≥ 0"]),
        ({"rsp": 4, "rsp_slot": "end"}, ["rsp_slot='end'", "after-prompt"]),
        ({"prefix": "random:x"}, ["prefix='random:x'", "'x'"]),
        ({"noise": "nowhere.yaml"}, ["noise=nowhere.yaml", "No such file"]),
        ({"batch_size": 0}, ["batch_size=0", "≥ 1 or auto"]),
        ({"backend": "seq2seq"}, ["backend", "causal"]),
    ],
)
def test_bad_arguments_are_refused_before_loading(
    args: dict, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "lm_eval.models.huggingface.HFLM.__init__", lambda *a, **k: pytest.fail("loaded")
    )
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        HFEmbedNoise(**args)
    for word in words:
        assert word in str(error.value)


def test_bad_sampling_and_depth_are_refused(lm: HFEmbedNoise) -> None:
    bad = requests({**GREEDY, "temperature": 0.8}, problems=1)
    with pytest.raises(ValueError, match=r"temperature=0\.8.*do_sample=true"):
        lm.generate_until(requests(GREEDY) + bad)
    with pytest.raises(ValueError, match=r"depth=24 is beyond.*0 to 23"):
        lm.set_perturbation(Perturbation(sigma=0.1, depth=24))


def test_the_harness_cache_is_refused_by_name(lm: HFEmbedNoise) -> None:
    with pytest.raises(ValueError, match="--use_cache"):
        lm.set_cache_hook(SimpleNamespace(dbdict={}))
    lm.set_cache_hook(SimpleNamespace(dbdict=None))


def test_batch_size_of_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness's default, the number 1, is `auto`; a user's own 1 comes as a string."""
    seen: list[Any] = []
    monkeypatch.setattr(HFEmbedNoise, "__init__", lambda self, **kw: seen.append(kw))
    HFEmbedNoise.create_from_arg_obj({}, {"batch_size": 1, "device": None})
    HFEmbedNoise.create_from_arg_obj({}, {"batch_size": "1"})
    HFEmbedNoise.create_from_arg_obj({"batch_size": 1}, {"batch_size": 1})
    HFEmbedNoise.create_from_arg_string("sigma=0.5", {"batch_size": 8})
    assert [kw["batch_size"] for kw in seen] == ["auto", "1", 1, 8]
    assert seen[3]["sigma"] == 0.5


def test_the_bar_shows_tokens_before_a_sample_has_ended(
    lm: HFEmbedNoise, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    lm.set_perturbation(Perturbation())
    texts = lm.generate_until(requests(WARM, k=4, problems=1))
    lines = re.split(r"[\r\n]+", capsys.readouterr().err)
    counts = [int(found[1]) for line in lines if (found := re.search(r"(\d+) tokens, ", line))]
    assert counts == sorted(counts)
    assert counts[-1] >= sum(text.tokens for text in texts)
    assert any("0/4" in line and " tokens/s" in line for line in lines)
    prompt = len(lm.tok_encode(requests(WARM, k=4, problems=1)[0].args[0]))
    assert any(f"0 tokens, 0 tokens/s, {prompt} of prompts" in line for line in lines)
