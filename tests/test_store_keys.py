"""What is in a stored sample's key: all of the loading and the real prompt, or a reason why not."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from lm_eval.api.instance import Instance
from transformers import AutoModelForCausalLM

from lm_eval_embednoise.commands.regenerate import regenerate
from lm_eval_embednoise.engine.sampling import Sampling
from lm_eval_embednoise.minicoder import MODEL_DIR
from lm_eval_embednoise.models import stored
from lm_eval_embednoise.models.arguments import OWN_ARGS
from lm_eval_embednoise.models.hf_embednoise import HFEmbedNoise
from lm_eval_embednoise.models.loading import (
    HOST_ARGS,
    IN_KEY_AS,
    LOADING_ARGS,
    NOT_IN_KEY,
    Loading,
    keyed,
)
from lm_eval_embednoise.noise.perturbation import Perturbation
from lm_eval_embednoise.store import fingerprint
from lm_eval_embednoise.store.store import Prompt, Store, digest
from tests.test_loading import first_blocks, write_gguf
from tests.test_store_resume import GREEDY, generate, written

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BY_NAME = {"trust_remote_code", "mixed_precision_dtype", "autogptq", "gptqmodel", "use_safetensors"}


@pytest.fixture(scope="module")
def lm() -> HFEmbedNoise:
    return HFEmbedNoise(device="cpu", batch_size=16, perplexity=False)


@pytest.fixture(autouse=True)
def as_before(lm: HFEmbedNoise) -> Iterator[None]:
    given = dict(lm.given)
    yield
    lm.store, lm._max_length, lm.truncation, lm.given = None, None, False, given
    lm.identity = None
    lm.set_perturbation(Perturbation())


def test_every_argument_is_in_the_key_or_there_is_a_reason(lm: HFEmbedNoise) -> None:
    """A new argument of the harness fails here until somebody has looked at it."""
    names = {*HOST_ARGS, *LOADING_ARGS, *OWN_ARGS}
    assert not set(IN_KEY_AS) & set(NOT_IN_KEY)
    assert names - set(IN_KEY_AS) - set(NOT_IN_KEY) == BY_NAME
    assert set(IN_KEY_AS) | set(NOT_IN_KEY) <= names
    assert all(len(reason) > 10 for reason in NOT_IN_KEY.values())
    assert set(keyed(dict.fromkeys(names, "x"))) == BY_NAME
    assert keyed({"trust_remote_code": False, "use_safetensors": None, "peft": "x"}) == {}
    lm.think_end_token, lm.exact = 5, True
    try:
        settings = stored.settings_of(lm, Sampling())
    finally:
        lm.think_end_token, lm.exact = None, False
    assert set(IN_KEY_AS.values()) - {"prompt"} <= set(settings)


def test_an_argument_by_name_changes_the_key(lm: HFEmbedNoise) -> None:
    plain = stored.settings_of(lm, Sampling())
    assert "loading" not in plain
    assert "exact" not in plain
    lm.given["trust_remote_code"], lm.identity = True, None
    assert stored.settings_of(lm, Sampling()) == {**plain, "loading": {"trust_remote_code": True}}


def long_request(lm: HFEmbedNoise, tokens: int, task: str = "t") -> Instance:
    """A prompt of so many tokens."""
    ids = lm.tok_encode("x = 1\n" * 100)[-tokens:]
    prompt = lm.tokenizer.decode(ids)
    assert lm.tok_encode(prompt) == ids
    return Instance("generate_until", {}, (prompt, GREEDY), 0, metadata=(task, 0, 1))


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(
    "added", [{"rsp": 16}, {"positions": "dummy:16"}, {"prefix": "random:40"}], ids=str
)
def test_a_truncated_prompt_has_a_key_of_its_own(
    lm: HFEmbedNoise, tmp_path: Path, first: bool, added: dict[str, Any]
) -> None:
    """The prompt fills the room; what is added to it makes it too long, or its beginning is cut."""
    lm._max_length = 60
    lm.set_perturbation(Perturbation(**added))
    request = long_request(lm, 60 - GREEDY["max_gen_toks"])
    reasons = {}
    for truncation in (first, not first):
        lm.truncation, lm.store = truncation, Store(tmp_path, write=True)
        (found,) = lm.generate_until([request], disable_tqdm=True)
        reasons[truncation] = found.finish_reason
    assert reasons[False] == "prompt_too_long"
    assert reasons[True] != "prompt_too_long"
    assert written(tmp_path) == 2


def test_samples_by_first_token_are_no_copies_and_have_keys_of_their_own(
    lm: HFEmbedNoise,
) -> None:
    greedy, turns = Sampling(), Sampling(first_token="stratified:20")
    assert stored.deterministic(Perturbation(), greedy)
    assert not stored.deterministic(Perturbation(), turns)
    assert stored.settings_of(lm, greedy)["sampling"] == {"temperature": 0.0}
    assert stored.settings_of(lm, turns)["sampling"] == {
        "temperature": 0.0,
        "first_token": "stratified:20",
    }


def test_a_soft_prompts_place_is_in_the_key() -> None:
    job = stored.Job((1, 0, 0, 2), "p", (0,), (1, 2), 1)
    moved = dataclasses.replace(job, soft_start=0)
    assert stored.input_of(job) != stored.input_of(moved) != ""
    assert stored.input_of(stored.Job((1, 2), "p", (0,))) == ""


def test_gguf_files_of_one_folder_are_different_models(
    tmp_path: Path, copies: Path, lm: HFEmbedNoise
) -> None:
    """By their content, whatever their names; each is served its own texts."""
    one, other = first_blocks(), first_blocks()
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(torch.randn_like(weight) * 0.3 * weight.std())
    folder = tmp_path / "model"
    folder.mkdir()
    write_gguf(folder / "a.gguf", one)
    write_gguf(folder / "b.gguf", other)
    texts, identities = {}, {}
    for name in "ab":
        model = HFEmbedNoise(
            str(folder), gguf_file=f"{name}.gguf", tokenizer=str(MODEL_DIR), batch_size=16
        )
        identities[name] = stored.identity(model)["model"]
        texts[name] = generate(model, tmp_path / "store", which=range(1), k=1)
    assert identities["a"] != identities["b"]
    assert texts["a"] != texts["b"]
    loaded = HFEmbedNoise(one, tokenizer=lm.tokenizer, batch_size=16)
    assert texts["a"] == generate(loaded, tmp_path / "other", which=range(1), k=1)
    (folder / "b.gguf").rename(folder / "c.gguf")
    assert identities["b"] == {"fingerprint": fingerprint.of_file(folder / "c.gguf")}


def test_a_place_on_the_hub_is_part_of_the_model() -> None:
    def of(**given: Any) -> dict[str, str]:
        loading = Loading.from_args("org/x", given)
        lm = SimpleNamespace(pretrained="org/x", given=given, loading=loading)
        return stored._model(lm, "c0ffee")  # type: ignore[arg-type]

    assert of() == of(subfolder="") == {"name": "org/x", "commit": "c0ffee"}
    found = [of(), of(subfolder="a"), of(subfolder="b"), of(gguf_file="a"), of(gguf_file="b")]
    assert len({str(sorted(one.items())) for one in found}) == len(found)


def test_a_loaded_model_is_known_by_its_configuration_too(lm: HFEmbedNoise) -> None:
    """Equal weights behind another rotation of positions are another model."""
    identities = []
    for theta in (1e4, 1e4, 5e5):
        model = AutoModelForCausalLM.from_pretrained(str(MODEL_DIR))
        model.config.rope_parameters["rope_theta"] = theta
        model.config.use_cache = theta == 1e4
        given = HFEmbedNoise(model, tokenizer=lm.tokenizer, batch_size=16)
        identities.append(stored.identity(given)["model"])
    assert identities[0] == identities[1] != identities[2]
    assert identities[0]["parameters"] == identities[2]["parameters"]


def test_results_say_which_model_they_are_of(lm: HFEmbedNoise) -> None:
    def model(**given: Any) -> dict[str, Any]:
        lm.given.update(given)
        lm.identity = None
        return lm.get_model_info()["embednoise"]["model"]

    plain = model()
    assert plain["name"] == "minicoder"
    assert plain["fingerprint"] == lm.fingerprint()
    assert model(device="cuda")["identity"] == plain["identity"]
    assert model(use_safetensors=True)["identity"] != plain["identity"]


def as_version_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys as they were: nothing in them of what is made of a prompt, or of the loading."""
    run_of = stored.run_of

    def old_run_of(*args: Any) -> tuple[str, dict[str, Any]]:
        name, facts = run_of(*args)
        del facts["key_version"]
        return name, facts

    monkeypatch.setattr(stored, "run_of", old_run_of)
    monkeypatch.setattr(stored, "input_of", lambda job: "")
    monkeypatch.setattr(stored, "keyed", lambda args: {})


ADDED = [{}, {"sigma": 0.4}, {"rsp": 2}, {"prefix": "random:5"}, {"positions": "dummy:2"}]


@pytest.mark.parametrize("added", ADDED, ids=str)
def test_samples_of_version_1_are_taken_where_their_key_was_right(
    lm: HFEmbedNoise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, added: dict[str, Any]
) -> None:
    lm.set_perturbation(Perturbation(**added))
    with monkeypatch.context() as old:
        as_version_1(old)
        first = generate(lm, tmp_path)
    rows = written(tmp_path)
    with monkeypatch.context() as no_model:
        no_model.setattr(
            "lm_eval_embednoise.engine.runner.Runner.forward", lambda *a, **k: pytest.fail("ran")
        )
        assert generate(lm, tmp_path) == first
    assert written(tmp_path) == rows
    assert len(Store(tmp_path).settings()) == 1


@pytest.mark.parametrize("left_out", [{"truncation": True}, {"trust_remote_code": True}], ids=str)
@pytest.mark.parametrize("again", [False, True])
def test_samples_of_version_1_are_left_alone_where_it_left_something_out(
    lm: HFEmbedNoise,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    left_out: dict[str, Any],
    again: bool,
) -> None:
    """By runs with that argument, and by those without it; they stay readable."""
    lm.set_perturbation(Perturbation(rsp=2))
    with monkeypatch.context() as old:
        as_version_1(old)
        lm.given.update(left_out)
        generate(lm, tmp_path, which=range(1))
    lm.identity = None
    if not again:
        for name in left_out:
            del lm.given[name]
    before = Store(tmp_path).counts()
    for _ in range(2):  # the second run takes what the first one made
        texts = generate(lm, tmp_path, which=range(1))
        now = Store(tmp_path).counts()
        assert len(now) == 2
        assert before.items() < now.items()
        assert written(tmp_path) == 2 * len(texts)
    (mine,) = set(now) - set(before)
    store = Store(tmp_path)
    row = next(iter(store.samples(mine).values()))
    assert store.settings()[mine].get("key_version") == (
        None if "loading" in store.settings()[mine] else 2
    )
    monkeypatch.setattr("lm_eval_embednoise.models.hf_embednoise.HFEmbedNoise", lambda **given: lm)
    assert regenerate(store, row).equals(row)


def test_regenerate_knows_another_input(
    lm: HFEmbedNoise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm.set_perturbation(Perturbation(rsp=2))
    generate(lm, tmp_path, which=range(1))
    store = Store(tmp_path)
    (settings,) = store.settings()
    row = next(iter(store.samples(settings).values()))
    assert row.input
    assert row.prompt == Prompt(store.prompts()[row.prompt].ids).hash
    assert row.key == digest([settings, f"{row.prompt}:{row.input}", row.problem, row.sample])
    monkeypatch.setattr("lm_eval_embednoise.models.hf_embednoise.HFEmbedNoise", lambda **given: lm)
    assert regenerate(store, row).equals(row)
    with pytest.raises(ValueError, match=r"another input than its prompt gives now"):
        regenerate(store, dataclasses.replace(row, input="0" * 32))


def test_an_exact_run_is_regenerated_exactly(tmp_path: Path) -> None:
    lm = HFEmbedNoise(device="cpu", batch_size=16, exact=True, perplexity=False)
    assert lm.given["exact"] is True
    assert lm.given["compile"] is None
    generate(lm, tmp_path, which=range(1), k=1)
    store = Store(tmp_path)
    ((hash, settings),) = store.settings().items()
    assert settings["exact"] is True
    (row,) = store.samples(hash).values()
    made = regenerate(store, row)
    assert made.lm.exact
    assert made.equals(row)
