"""How a model's family is decoded, and what of it would make samples depend on each other.

Where its parts are: noise/model_parts.py. docs/conformance.md is the table of families that the
tests run.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from lm_eval_embednoise.noise.model_parts import cache_kinds, decoder_config, find_owner

if TYPE_CHECKING:
    from torch import nn


def cache_layers(model: nn.Module) -> tuple[str, ...]:
    """The kinds of cache that transformers gives the model's blocks; empty where it says none."""
    return tuple(type(layer).__name__ for layer in cache_kinds(decoder_config(model)))


def smallest_window(model: nn.Module) -> int | None:
    """The fewest positions that a block sees of a long text, None where all see everything."""
    layers = cache_kinds(decoder_config(model))
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
                bounds.append(int(rope["original_max_position_embeddings"]))  # type: ignore[index]
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


# Families whose rows can have separate columns in the cache: a row that ends makes room for
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
# Of these, families that make their biases or masks themselves from a mask of [rows, columns].
FLAT_MASK = frozenset({"bloom", "falcon"})


# Families that change keys and values between cache and attention (latents are expanded, heads
# repeated): a prompt's entries in the cache are not what its attention sees.
CHANGED_ENTRIES = frozenset(
    {"deepseek_v2", "deepseek_v3", "diffllama", "glm4_moe_lite", "jetmoe", "minicpm3", "youtu"}
)


def attends_to_entries(model: nn.Module) -> bool:
    """Whether attention sees the keys and values that the cache holds, as they are."""
    return getattr(decoder_config(model), "model_type", None) not in CHANGED_ENTRIES


class Decoding(Enum):
    """How rows are decoded together."""

    ROWS = "rows with separate columns"
    FLAT_MASK = "the same, under a mask of [rows, columns]"
    PADDED = "left-padded, rows begin together"


def decoding(model: nn.Module, blocks: nn.ModuleList, longest: int | None = None) -> Decoding:
    """How the sampler decodes a model.

    Code from outside transformers is padded, whatever its config calls itself.

    Args:
        model: a causal LM.
        blocks: its decoder blocks.
        longest: most positions of a row, where the model's own attention decodes: it doesn't cut
            rows' columns to the windows of single blocks, and flash attention takes no mask with a
            row and a column for each query. None where `attention.rows_attention` decodes.
    """
    window, config = smallest_window(model), decoder_config(model)
    if longest is not None:
        if window is not None and longest > window:
            return Decoding.PADDED
        if "flash" in str(getattr(config, "_attn_implementation", "")):
            return Decoding.PADDED
    family = getattr(config, "model_type", None)
    if not type(find_owner(model, blocks)).__module__.startswith("transformers."):
        return Decoding.PADDED
    if family in FLAT_MASK:
        return Decoding.FLAT_MASK
    return Decoding.ROWS if family in ROWS else Decoding.PADDED
