"""Which models are served, and where their parts are: blocks, embedding, layers with a window.

Any decoder-only causal LM of transformers whose memory is a key/value cache. Blocks are found by an
ordered table of the names that architectures use; a model outside it is served by naming its list.
docs/conformance.md is the table of families that the tests run.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.cache_utils import DynamicCache
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

# Where decoder blocks live, the most specific first. A name counts wherever it ends a module's
# name, so that wrappers (peft, torch.compile, data parallel, multimodal shells) don't matter.
BLOCK_LISTS = (
    "language_model.layers",
    "model.decoder.layers",
    "model.layers",
    "transformer.h",
    "transformer.blocks",
    "gpt_neox.layers",
    "gpt_neox_japanese.layers",
    "biogpt.layers",
    "backbone.layers",
)

# Layers of transformers' caches that hold keys and values, one pair a position.
KEY_VALUE_LAYERS = {"DynamicLayer", "DynamicSlidingWindowLayer"}


def _config(model: nn.Module) -> Any:
    """The configuration of the text decoder, None for a model that isn't transformers'."""
    return _text_config(getattr(model, "config", None))


def _text_config(config: Any) -> Any:
    get_text_config = getattr(config, "get_text_config", None)
    return get_text_config(decoder=True) if get_text_config else config


def check_supported(model: nn.Module) -> None:
    """`check_config` of a loaded model; one that isn't transformers' passes."""
    if getattr(model, "config", None) is not None:
        check_config(model.config, type(model).__name__, getattr(model, "_is_stateful", False))


def check_config(config: Any, name: str = "", stateful: bool | None = None) -> None:
    """Refuse what noise on input vectors isn't defined for here.

    Args:
        config: of the model, which needn't be loaded.
        name: of the model's class; looked up if empty.
        stateful: whether that class says it carries a state of its own; looked up if None.

    Raises:
        ValueError: for encoder–decoder models, and for models that remember more than keys and
            values: state-space models, linear attention, their hybrids with attention, and
            attention over compressed or indexed memory.
    """
    served = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    name = name or getattr(served, "__name__", type(config).__name__)
    name = f"{name} (model_type {getattr(config, 'model_type', 'unknown')!r})"
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{name} is an encoder–decoder model, which is not supported; "
            "use a decoder-only causal language model"
        )
    text = _text_config(config)
    other = sorted({type(layer).__name__ for layer in _cache(text)} - KEY_VALUE_LAYERS)
    if stateful is None:
        stateful = getattr(served, "_is_stateful", False)
    if not other and stateful and not hasattr(text, "layer_types"):
        other = ["its own kind"]
    if other:
        raise ValueError(
            f"{name} carries a recurrent or compressed state ({', '.join(other)}: state-space, "
            "linear-attention or hybrid layers), which is not supported; use a decoder-only model "
            "whose every block is attention over keys and values"
        )


def cache_layers(model: nn.Module) -> tuple[str, ...]:
    """The kinds of cache that transformers gives the model's blocks; empty where it says none."""
    return tuple(type(layer).__name__ for layer in _cache(_config(model)))


def smallest_window(model: nn.Module) -> int | None:
    """The fewest positions that a block sees of a long text, None where all see everything."""
    layers = _cache(_config(model))
    windows = [w for layer in layers if (w := getattr(layer, "sliding_window", None))]
    return min(windows, default=None)


def steady_positions(model: nn.Module) -> int | None:
    """How many positions a sample may have before its company could change it; None for any number.

    Rotary embeddings of the types `longrope` and `dynamic` take other frequencies once the longest
    position of the whole batch is beyond a bound. Up to it they are those of a sample on its own.
    """
    bounds = []
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        for layer, kind in (kinds if isinstance(kinds, dict) else {None: kinds}).items():
            if kind == "longrope":
                rope = module.config.rope_parameters  # type: ignore[union-attr]
                rope = rope if layer is None else rope[layer]  # type: ignore[index]
                bounds.append(int(rope["original_max_position_embeddings"]))  # type: ignore
            elif kind is not None and "dynamic" in str(kind):
                bounds.append(int(module.original_max_seq_len))  # type: ignore[arg-type]
    return min(bounds, default=None)


def check_exact(model: nn.Module) -> None:
    """Refuse `exact=true` for models in which rows round by their company at any shape of a batch.

    An expert's product has as many rows as tokens were sent to it, and int8 layers take out the
    columns in which any row has an outlier.

    Raises:
        ValueError: naming the module and the reason.
    """
    for name, module in model.named_modules():
        why = ""
        if name.rpartition(".")[2] == "experts":
            why = "sends tokens to experts, and how an expert rounds depends on all tokens it gets"
        elif type(module).__name__ == "Linear8bitLt":
            why = "is an int8 layer, whose outlier columns are those of the whole batch"
        if why:
            raise ValueError(
                f"exact=true is not available for this {type(model).__name__}: {name} {why}; "
                "leave exact out"
            )


def _cache(config: Any) -> list[Any]:
    if config is None or not hasattr(config, "num_hidden_layers"):
        return []
    return list(DynamicCache(config=config).layers)


def find_blocks(model: nn.Module, blocks: str | None = None) -> nn.ModuleList:
    """The list of decoder blocks.

    Args:
        model: a causal LM.
        blocks: dotted name of the list, for a model the table doesn't know.

    Raises:
        ValueError: teaching the override, when the list isn't where any known family has it; for a
            model that is not supported at all.
    """
    check_supported(model)
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module)
    }
    for suffix in (blocks,) if blocks else BLOCK_LISTS:
        for name, module in lists.items():
            if name == suffix or (name.endswith(f".{suffix}") and not blocks):
                return module
    raise ValueError(
        f"no decoder blocks found in {type(model).__name__}"
        + (f" under blocks={blocks!r}" if blocks else "")
        + f"; name their list with blocks=NAME, such as one of: {', '.join(lists) or 'none'}"
    )


# Families whose rows can have columns of their own in the cache: a row that ends makes room for
# another at once. The conformance test runs each of them; all others decode padded.
# fmt: off
ROWS = frozenset({
    "afmoe", "apertus", "arcee", "aria_text", "biogpt", "bitnet", "codegen", "cohere", "cohere2",
    "cohere2_moe", "cwm", "dbrx", "deepseek_v2", "deepseek_v3", "diffllama", "dots1", "ernie4_5",
    "ernie4_5_moe", "exaone4", "exaone_moe", "flex_olmo", "gemma", "gemma2", "gemma3_text", "glm",
    "glm4", "glm4_moe", "glm4_moe_lite", "gpt2", "gpt_bigcode", "gpt_neox", "gpt_oss", "gptj",
    "granite", "granite_swa", "granitemoe", "granitemoe_swa", "granitemoeshared", "helium",
    "hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3", "hyperclovax", "jais2", "jetmoe", "llama",
    "mimo_v2_flash", "minicpm3", "minimax_m2", "ministral", "ministral3", "mistral", "mixtral",
    "modernbert-decoder", "mpt", "nanochat", "nemotron", "olmo", "olmo2", "olmo3", "olmoe", "opt",
    "persimmon", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3",
    "solar_open", "stablelm", "starcoder2", "vaultgemma", "xglm", "youtu",
})
# fmt: on
# Of these, families that make biases or masks of their own from a mask of [rows, columns].
FLAT_MASK = frozenset({"bloom", "falcon"})


# Families that change keys and values between cache and attention (latents are expanded, heads
# repeated): a prompt's entries in the cache are not what its attention sees.
CHANGED_ENTRIES = frozenset(
    {"deepseek_v2", "deepseek_v3", "diffllama", "glm4_moe_lite", "jetmoe", "minicpm3", "youtu"}
)


def attends_to_entries(model: nn.Module) -> bool:
    """Whether attention sees the keys and values that the cache holds, as they are."""
    return getattr(_config(model), "model_type", None) not in CHANGED_ENTRIES


def decoding(model: nn.Module, blocks: nn.ModuleList, longest: int | None = None) -> str:
    """How the sampler decodes a model: "rows", "rows, flat mask" or "padded".

    Code from outside transformers is padded, whatever its config calls itself.

    Args:
        model: a causal LM.
        blocks: its decoder blocks.
        longest: most positions of a row, where the model's own attention decodes: it doesn't cut
            rows' columns to the windows of single blocks, and flash attention takes no mask with a
            row and a column for each query. None where `attention.rows_attention` decodes.
    """
    window, config = smallest_window(model), _config(model)
    if longest is not None:
        if window is not None and longest > window:
            return "padded"
        if "flash" in str(getattr(config, "_attn_implementation", "")):
            return "padded"
    family = getattr(config, "model_type", None)
    if not type(find_owner(model, blocks)).__module__.startswith("transformers."):
        return "padded"
    return "rows, flat mask" if family in FLAT_MASK else "rows" if family in ROWS else "padded"


def find_embedding(model: nn.Module) -> nn.Module:
    """The module that turns token ids into vectors.

    Raises:
        ValueError: for a model without one.
    """
    get = getattr(model, "get_input_embeddings", None)
    embedding = get() if get else None
    if not isinstance(embedding, nn.Module):
        raise ValueError(f"{type(model).__name__} has no input embedding module")
    return embedding


def hidden_width(model: nn.Module) -> int:
    """d, the width of the vectors between blocks (which an embedding can differ from)."""
    width = getattr(_config(model), "hidden_size", None)
    return int(width) if width else int(find_embedding(model).weight.shape[1])  # type: ignore


def find_owner(model: nn.Module, blocks: nn.ModuleList) -> nn.Module:
    """The module that runs the blocks and is called with ids, mask, positions and cache."""
    for module in model.modules():
        if any(child is blocks for child in module.children()):
            return module
    raise ValueError(f"{type(model).__name__} does not hold the given blocks")
