"""Loading: every way that runs on a CPU is run on the embedded model, the others are refused."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lm_eval_embednoise.commands import doctor
from lm_eval_embednoise.engine.families import Decoding, decoding
from lm_eval_embednoise.engine.jobs import Job
from lm_eval_embednoise.engine.sampler import Sampler
from lm_eval_embednoise.engine.sampling import Sampling
from lm_eval_embednoise.minicoder import MODEL_DIR
from lm_eval_embednoise.models import loaded
from lm_eval_embednoise.models.hf_embednoise import HFEmbedNoise
from lm_eval_embednoise.models.loaded import check_tokenizer
from lm_eval_embednoise.models.loading import ATTENTIONS, HOST_ARGS, INSTEAD, LOADING_ARGS, Loading
from lm_eval_embednoise.noise.inject import find_blocks
from lm_eval_embednoise.noise.perturbation import Perturbation
from lm_eval_embednoise.noise.reference import token_norms
from tests.test_hf_embednoise import requests

MINICODER = str(MODEL_DIR)
GREEDY = {"until": ["\ndef "], "do_sample": False, "max_gen_toks": 12}
peft_warns = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def load(**args: Any) -> HFEmbedNoise:
    return HFEmbedNoise(batch_size=16, **args)


def greedy(lm: HFEmbedNoise, **noise: Any) -> list[str]:
    lm.set_perturbation(Perturbation(**noise))
    return [str(text) for text in lm.generate_until(requests(GREEDY, 2, 2), disable_tqdm=True)]


@pytest.fixture(scope="module")
def plain() -> HFEmbedNoise:
    return load()


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_quantized_models_generate_under_noise(quantization: str, plain: HFEmbedNoise) -> None:
    """bitsandbytes on the CPU: blocks are quantized, logits near the plain model's, noise lands."""
    lm = load(quantization=quantization, dtype="bfloat16")
    layer = lm.model.model.layers[3].mlp.up_proj
    assert type(layer).__module__.startswith("bitsandbytes")
    assert layer.weight.dtype == {"int8": torch.int8, "int4": torch.uint8}[quantization]
    assert lm.model.get_input_embeddings().weight.dtype == torch.bfloat16
    ids = torch.tensor([lm.tok_encode("def total(xs):\n    return sum(")])
    with torch.no_grad():
        ours = lm.model(ids).logits[0, -1].float()
        theirs = plain.model(ids).logits[0, -1]
    assert torch.corrcoef(torch.stack([ours, theirs]))[0, 1] > 0.98
    assert not torch.equal(ours, theirs)
    greedy(lm, sigma=0.3, depth="embed+5")
    assert lm.rho()["block.5"] == pytest.approx(0.3, abs=0.03)
    assert 0.25 < lm.rho()["embed"] < 0.45
    table = float(token_norms(plain.model, torch.arange(len(plain.tokenizer))).mean())
    std = lm.get_model_info()["embednoise"]["std"]["embed"]
    assert std == pytest.approx(0.3 * table / 128**0.5, rel=1e-3)
    info = lm.get_model_info()["embednoise"]["model"]
    assert info["quantization"] == quantization and info["dtype"] == "bfloat16"


def test_exact_is_refused_in_int8() -> None:
    with pytest.raises(ValueError, match=r"exact=true is not available.*an int8 layer.*exact out"):
        load(quantization="int8", exact=True)


def test_eager_attention_gives_the_same_texts(plain: HFEmbedNoise) -> None:
    eager = load(attn_implementation="eager")
    assert eager.get_model_info()["embednoise"]["model"]["attn_implementation"] == "eager"
    assert greedy(eager, sigma=0.3) == greedy(plain, sigma=0.3)


def test_device_map_is_served(plain: HFEmbedNoise, tmp_path: Path) -> None:
    """A map that spreads the blocks goes through accelerate's hooks; noise lands there too."""
    blocks = {f"model.layers.{i}": "cpu" if i < 16 else "disk" for i in range(24)}
    rest = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    lm = load(device_map={**rest, **blocks}, offload_folder=str(tmp_path))
    assert lm.model.hf_device_map["model.layers.20"] == "disk"
    assert lm.model.model.layers[20].mlp.up_proj.weight.is_meta
    assert greedy(lm, sigma=0.3, depth="2+20") == greedy(plain, sigma=0.3, depth="2+20")
    assert greedy(load(device_map="cpu"), sigma=0.3) == greedy(plain, sigma=0.3)


def test_an_offloaded_embedding_is_refused(tmp_path: Path) -> None:
    where = {"model.embed_tokens": "disk", "model.layers": "cpu", "model.norm": "cpu"}
    rest = {"model.rotary_emb": "cpu", "lm_head": "disk"}
    with pytest.raises(ValueError, match="the input embedding is offloaded"):
        load(device_map={**where, **rest}, offload_folder=str(tmp_path))


def test_flash_attention_prefills_and_rows_attention_decodes(
    plain: HFEmbedNoise, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What can be said without a GPU: a kernel in its place sees prompts, never single rows."""
    config, blocks = plain.model.config, find_blocks(plain.model)
    job = Job(tuple(plain.tokenizer.encode("def f(xs):\n    return ")), "p", tuple(range(6)))
    lengths = []

    def kernel(module: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
        lengths.append(query.shape[2])
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, *args, **kwargs)

    def run() -> list[tuple[int, list[int]]]:
        sampling = Sampling(temperature=0.8, max_gen_toks=8)
        sampler = Sampler(plain.model, Perturbation(), sampling, batch_size=4, decoder="model")
        assert sampler.runner.own_attention
        return sorted((sample.index, sample.ids) for sample in sampler.run([job]))

    expected = run()
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flash_attention_2", kernel)
    monkeypatch.setattr(config, "_attn_implementation_internal", "flash_attention_2")
    assert decoding(plain.model, blocks) is Decoding.ROWS
    assert decoding(plain.model, blocks, 64) is Decoding.PADDED  # under the model's own attention
    assert run() == expected
    assert set(lengths) == {len(job.prompt_ids)}


def test_doctor_runs_what_it_reports() -> None:
    found = {name: (ok, text) for ok, name, text in doctor._kernels()}
    assert found["int8"][0] and found["int4"][0] and "runs on" in found["int8"][1]
    assert found["eager"] == found["sdpa"] == (True, "ready")
    if not torch.accelerator.is_available():
        assert not found["flash_attention_2"][0] and not found["parallelize"][0]
        assert re.search("pip install|needs a GPU", found["flash_attention_2"][1])


def test_the_docs_say_of_every_argument_whether_it_works() -> None:
    text = (Path(__file__).parents[1] / "docs" / "own-model.md").read_text()
    table = text[text.index("## Which arguments work") :]
    for name in (*HOST_ARGS, *LOADING_ARGS, *INSTEAD):
        if name != "use_flash_attention_2":
            assert f"`{name}`" in table, name


def adapter(folder: Path, **lora: Any) -> str:
    """A random LoRA adapter for the embedded model, as peft saves it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(MINICODER)
    config = LoraConfig(
        r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, **lora
    )
    get_peft_model(model, config).save_pretrained(folder)
    return str(folder)


@peft_warns
def test_peft_adapter_is_active_and_its_blocks_are_found(
    plain: HFEmbedNoise, tmp_path: Path
) -> None:
    from peft import PeftModel

    path = adapter(tmp_path, lora_alpha=64)
    lm = load(peft=path)
    assert len(find_blocks(lm.model)) == 24
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(MINICODER), path)
    assert len(find_blocks(merged)) == 24  # through the wrapper, as code outside the harness has it
    reference = HFEmbedNoise(
        merged.merge_and_unload(), tokenizer=plain.tokenizer, device="cpu", batch_size=16
    )
    assert greedy(lm) == greedy(reference) != greedy(plain)
    greedy(lm, sigma=0.3, depth="embed+5")
    assert lm.rho()["block.5"] == pytest.approx(0.3, abs=0.03)
    assert 0.25 < lm.rho()["embed"] < 0.45
    assert lm.get_model_info()["embednoise"]["model"]["peft"] == path


@peft_warns
def test_peft_on_a_quantized_model(tmp_path: Path) -> None:
    lm = load(peft=adapter(tmp_path), quantization="int4", dtype="bfloat16")
    assert "Linear4bit" in str(type(lm.model.model.layers[0].self_attn.q_proj))
    assert len(greedy(lm, sigma=0.1, depth="embed+5")) == 4


@peft_warns
def test_adapters_that_add_input_vectors_are_refused(tmp_path: Path) -> None:
    from peft import PromptTuningConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(MINICODER)
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    get_peft_model(model, config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="PROMPT_TUNING adapters add input vectors"):
        load(peft=str(tmp_path))


def test_delta_weights_are_added(tmp_path: Path, plain: HFEmbedNoise) -> None:
    """A delta of half the weights (the norms' too): the sum is the model that is run."""
    model = AutoModelForCausalLM.from_pretrained(MINICODER)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.0)
    model.save_pretrained(tmp_path)
    lm = load(delta=str(tmp_path))
    assert greedy(lm, sigma=0.3) == greedy(plain, sigma=0.3)


def write_gguf(path: Path, model: Any) -> None:
    """A model of the embedded one's class as llama.cpp keeps it, in float32."""
    gguf = pytest.importorskip("gguf")
    config = model.config
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        module, _, kind = name.rpartition(".")
        if module != "lm_head":  # tied to the embedding
            writer.add_tensor(f"{names.get_name(module)}.{kind}", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def first_blocks() -> Any:
    """The embedded model cut to three blocks: transformers takes its time over a file's tensors."""
    model = AutoModelForCausalLM.from_pretrained(MINICODER)
    model.model.layers = model.model.layers[:3]
    model.config.num_hidden_layers, model.config.layer_types = 3, model.config.layer_types[:3]
    return model


def test_gguf_file_with_a_tokenizer(tmp_path: Path, copies: Path, plain: HFEmbedNoise) -> None:
    """The embedded model's weights as llama.cpp keeps them, in float32: the same texts."""
    model = first_blocks()
    write_gguf(tmp_path / "model.gguf", model)
    lm = load(pretrained=str(tmp_path), gguf_file="model.gguf", tokenizer=MINICODER)
    same = load(pretrained=model, tokenizer=plain.tokenizer)
    assert greedy(lm, sigma=0.3) == greedy(same, sigma=0.3) != greedy(plain, sigma=0.3)
    with pytest.raises(ValueError, match=r"gguf_file='other\.gguf' is not in"):
        load(pretrained=str(tmp_path), gguf_file="other.gguf", tokenizer=MINICODER)


def test_arguments_of_the_host_that_pass_through(plain: HFEmbedNoise) -> None:
    prompt = "def total(xs):\n"
    assert load(max_length=77).max_length == 77
    assert load(dtype="bfloat16").model.dtype == torch.bfloat16
    assert load(revision="main", trust_remote_code=False, subfolder="").revision == "main"
    other = load(tokenizer=MINICODER, use_fast_tokenizer=True, prefix_token_id=7)
    assert other.tok_encode(prompt) == plain.tok_encode(prompt) and other.prefix_token_id == 7
    narrow = load(max_batch_size=3)
    assert narrow._sampler(Sampling(), narrow._stop_strings(())).most_rows == 3
    assert not load(logits_cache=False).logits_cache
    model = AutoModelForCausalLM.from_pretrained(MINICODER)
    given = HFEmbedNoise(model, tokenizer=plain.tokenizer, batch_size=16)
    assert greedy(given, sigma=0.3) == greedy(plain, sigma=0.3)


def test_truncation_keeps_the_end_of_a_long_prompt() -> None:
    long = Instance("generate_until", {}, ("x = 1\n" * 100, GREEDY), 0, metadata=("t", 0, 1))
    short = load(max_length=60).generate_until([long], disable_tqdm=True)
    assert short[0].finish_reason == "prompt_too_long"
    cut = load(max_length=60, truncation=True).generate_until([long], disable_tqdm=True)
    assert cut[0].finish_reason == "length"
    end = load().tokenizer.decode(load().tok_encode("x = 1\n" * 100)[-48:])
    alone = Instance("generate_until", {}, (end, GREEDY), 0, metadata=("t", 0, 1))
    assert cut == load().generate_until([alone], disable_tqdm=True)


@pytest.mark.parametrize("mark", ["if", 300])
def test_think_end_token_cuts_as_the_stock_class_does(mark: str | int) -> None:
    stock = HFLM(MINICODER, device="cpu", batch_size=4, think_end_token=mark)
    lm = load(think_end_token=mark)
    found = lm.generate_until(requests(GREEDY, k=1), disable_tqdm=True)
    assert found == stock.generate_until(requests(GREEDY, k=1), disable_tqdm=True)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"quantization": "int7"}, r"quantization='int7' is not known; did you mean 'int8'.*int4"),
    ({"load_in_8bit": True}, r"load_in_8bit=True is not supported; use quantization=int8"),
    ({"quantization_config": {}}, r"use quantization=int8 or int4"),
    ({"torch_dtype": "float16"}, r"use dtype"),
    ({"mixed_precision_dtype": "bfloat16"}, r"use dtype=bfloat16"),
    ({"dtype": "bloat16"}, r"dtype='bloat16'.*did you mean 'bfloat16'"),
    ({"attn_implementation": "flash_atention_2"}, r"did you mean 'flash_attention_2'.*eager, sdpa"),
    ({"attn_implementation": "flex_attention"}, r"flex_attention.*every step; allowed: eager"),
    ({"attn_implementation": "flash_attention_2", "dtype": "float32"}, r"use dtype=float16"),
    ({"quantization": "int8", "gguf_file": "x.gguf"}, r"quantization='int8' and gguf_file='x.g"),
    ({"quantization": "int8", "gptqmodel": True}, r"quantized already"),
    ({"quantization": "int8", "delta": "x"}, r"delta weights can't be added"),
    ({"peft": "x", "delta": "y"}, r"can't be combined"),
    ({"device_map": "cpu", "device": "cpu"}, r"device_map='cpu' and device='cpu' contradict"),
    ({"parallelize": True, "device": "cpu"}, r"parallelize=True and device='cpu' contradict"),
    ({"parallelize": True, "tp_plan": "auto"}, r"tp_plan='auto' and parallelize=True"),
    ({"parallelize": "yes"}, r"parallelize='yes' must be true or false"),
    ({"max_length": 0}, r"max_length=0.*≥ 1"),
    ({"pretrained": "/no/such/model"}, r"pretrained='/no/such/model' is no folder"),
    ({"pretrained": "./models/7b"}, r"pretrained='./models/7b' is no folder \(from /"),
    ({"tokenizer": "../tok"}, r"tokenizer='../tok' is no folder"),
    ({"peft": "./adapter"}, r"peft='./adapter' is no folder"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "words"), BAD, ids=[str(args) for args, _ in BAD])
def test_bad_arguments_are_refused_before_loading(
    args: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HFLM, "__init__", lambda *a, **k: pytest.fail("loaded"))
    with pytest.raises(ValueError, match=words) as error:
        HFEmbedNoise(**args)
    assert "\n" not in str(error.value)


def test_without_a_gpu_what_needs_one_is_refused() -> None:
    if torch.accelerator.is_available():
        pytest.skip("there is a GPU")
    for args in ({"parallelize": True}, {"device_map": "balanced"}):
        with pytest.raises(ValueError, match=r"spreads the model over GPUs, and PyTorch sees none"):
            Loading.from_args(MINICODER, args)


@pytest.mark.parametrize(
    ("missing", "args", "line"),
    [
        ("bitsandbytes", {"quantization": "int8"}, r'pip install "lm-eval-embednoise\[quant\]"'),
        ("peft", {"peft": MINICODER}, r'pip install "lm-eval-embednoise\[peft\]"'),
        ("gguf", {"gguf_file": "x.gguf"}, r'pip install "lm-eval-embednoise\[gguf\]"'),
        ("gguf", {"pretrained": "x.gguf"}, r'pip install "lm-eval-embednoise\[gguf\]"'),
        ("gguf", {"pretrained": "smollm2-135m"}, r'pip install "lm-eval-embednoise\[gguf\]"'),
        (
            "flash_attn",
            {"attn_implementation": "flash_attention_2"},
            r'pip install "lm-eval-embednoise\[flash\]"',
        ),
        ("flash_attn_interface", {"attn_implementation": "flash_attention_3"}, "pip install"),
        ("kernels", {"attn_implementation": "kernels-community/flash-attn2"}, "pip install"),
    ],
)
def test_a_missing_package_gives_the_install_line(
    missing: str, args: dict[str, Any], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    gone = (missing, "kernels")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name in gone else real(name, *a)
    )
    with pytest.raises(ImportError, match=f"{missing}, which is missing: {line}"):
        Loading.from_args(args.pop("pretrained", MINICODER), args)


def test_a_model_that_is_loaded_already_takes_no_loading_arguments(plain: HFEmbedNoise) -> None:
    with pytest.raises(ValueError, match="quantization has no effect on a model that is loaded"):
        Loading.from_args(plain.model, {"quantization": "int8"})


def test_a_name_the_hub_cannot_serve_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="pretrained='nobody/no-such-model' can't be read") as e:
        HFEmbedNoise("nobody/no-such-model", device="cpu")
    assert "\n" not in str(e.value)


def test_folders_without_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is a folder without config\.json"):
        Loading.from_args(str(tmp_path), {})
    with pytest.raises(ValueError, match=r"is a folder without adapter_config\.json"):
        Loading.from_args(MINICODER, {"peft": str(tmp_path)})
    shutil.copy(MODEL_DIR / "config.json", tmp_path)  # a model, but no tokenizer
    with pytest.raises(ValueError, match=r"the tokenizer of .* knows no text: its files"):
        HFEmbedNoise(str(tmp_path), device="cpu")
    with pytest.raises(ValueError, match=r"pretrained=.* can't be read: Error no file named model"):
        HFEmbedNoise(str(tmp_path), tokenizer=MINICODER, device="cpu")


def test_a_checkpoint_that_is_quantized_already(tmp_path: Path) -> None:
    config = json.loads((MODEL_DIR / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"is quantized already \(awq\); leave quantization out"):
        HFEmbedNoise(str(tmp_path), tokenizer=MINICODER, quantization="int8", device="cpu")


def test_tokenizers_that_do_not_fit(plain: HFEmbedNoise, caplog: pytest.LogCaptureFixture) -> None:
    class Bare:
        eos_token_id = bos_token_id = None
        encode = plain.tokenizer.encode

    with pytest.raises(ValueError, match="neither an end token nor a start token"):
        check_tokenizer(Bare(), plain.config, "tokenizer='x'")
    small = type(plain.config)(vocab_size=100)
    with caplog.at_level(logging.WARNING, logger="lm_eval"):
        check_tokenizer(plain.tokenizer, small, "tokenizer='x'")
    assert "only 100 rows" in caplog.text


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, None),
        ({"temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.0, "num_beams": 1}, None),
        ({"eos_token_id": [1, 2], "max_new_tokens": 9, "do_sample": True, "use_cache": True}, None),
        (
            {"repetition_penalty": 1.1, "temperature": 0.7, "top_k": 20, "no_repeat_ngram_size": 3},
            "of the model's generation_config these are not applied: no_repeat_ngram_size=3, "
            "repetition_penalty=1.1 (--model hf applies it, so its texts differ from σ = 0); "
            "temperature=0.7, top_k=20 (give temperature, top_p, … by --gen_kwargs)",
        ),
        (
            {"min_new_tokens": 1, "bad_words_ids": [[3]], "forced_eos_token_id": 2},
            "of the model's generation_config these are not applied: bad_words_ids=[[3]], "
            "forced_eos_token_id=2, min_new_tokens=1 (--model hf applies it, so its texts differ "
            "from σ = 0)",
        ),
        (
            {"top_p": 0.8},
            "of the model's generation_config these are not applied: top_p=0.8 (give temperature, "
            "top_p, … by --gen_kwargs)",
        ),
    ],
)
def test_what_the_models_own_settings_would_do_is_said_once_at_loading(
    settings: dict[str, Any], said: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(MODEL_DIR, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(settings))
    with caplog.at_level(logging.INFO, "lm_eval"):
        lm = load(pretrained=str(tmp_path / "model"))
        greedy(lm)
        greedy(lm)
    found = [r.getMessage() for r in caplog.records if "generation_config" in r.getMessage()]
    assert found == ([] if said is None else [said])


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")  # the harness does
def test_a_checkpoint_saved_in_int8_is_loaded_as_it_is_and_quietly(
    tmp_path: Path, plain: HFEmbedNoise, caplog: pytest.LogCaptureFixture
) -> None:
    """bitsandbytes would tell at every layer of every pass that it rounds to float16."""
    made = load(quantization="int8", dtype="bfloat16")
    made.model.save_pretrained(tmp_path)
    plain.tokenizer.save_pretrained(tmp_path)
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.NOTSET)
    lm = load(pretrained=str(tmp_path))
    assert type(lm.model.model.layers[3].mlp.up_proj).__module__.startswith("bitsandbytes")
    assert greedy(lm) == greedy(made)
    assert not [r for r in caplog.records if r.name.startswith("bitsandbytes")]


# The generation settings of transformers by which its texts differ, or may.
CHANGE_TEXTS = {
    *("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff"),
    *("eta_cutoff", "penalty_alpha", "dola_layers", "guidance_scale", "watermarking_config"),
    *("repetition_penalty", "encoder_repetition_penalty", "no_repeat_ngram_size"),
    *("encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "sequence_bias"),
    *("bad_words_ids", "force_words_ids", "constraints", "suppress_tokens"),
    *("begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id", "token_healing"),
    *("min_length", "min_new_tokens", "stop_strings", "early_stopping", "length_penalty"),
    *("num_beams", "num_beam_groups", "diversity_penalty", "renormalize_logits"),
    *("remove_invalid_values", "prompt_lookup_num_tokens", "max_matching_ngram_size"),
    *("target_lookbehind", "speculation_type"),
}


def test_every_setting_of_transformers_that_changes_texts_is_said_and_no_other() -> None:
    """A new release's setting fails here until somebody says whether it changes texts."""
    said = set()
    for name in GenerationConfig().to_dict():
        config = GenerationConfig()
        setattr(config, name, 7)
        if loaded.not_applied(config) is not None:
            said.add(name)
    assert said == CHANGE_TEXTS


def test_the_command_lines_default_device_is_nobodys_choice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(HFEmbedNoise, "__init__", lambda self, **kw: seen.append(kw))
    HFEmbedNoise.create_from_arg_obj({"parallelize": True}, {"device": "cuda:0"})
    HFEmbedNoise.create_from_arg_obj({"device_map": "auto"}, {"device": "cpu"})
    HFEmbedNoise.create_from_arg_obj({}, {"device": "cuda:0"})
    assert [kw.get("device") for kw in seen] == [None, "cpu", "cuda:0"]


def test_every_attention_named_is_known_to_transformers() -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    assert set(ATTENTIONS) <= {"eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()}
