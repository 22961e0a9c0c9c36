"""Where a model's parts are: its decoder blocks, its embedding; and which models can have noise.

Any decoder-only causal LM of transformers whose memory is a key/value cache. Blocks are found by an
ordered table of the names that architectures use; a model outside it is served by naming its list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from transformers.cache_utils import DynamicCache
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from lm_eval_embednoise.noise.sites import block_of, written

if TYPE_CHECKING:
    from lm_eval_embednoise.noise.perturbation import Perturbation

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


def decoder_config(model: nn.Module) -> Any:
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
        stateful: whether that class says it carries a recurrent state; looked up if None.

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
    other = sorted({type(layer).__name__ for layer in cache_kinds(text)} - KEY_VALUE_LAYERS)
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


def cache_kinds(config: Any) -> list[Any]:
    """The cache layers that transformers gives a decoder of this configuration, none if unknown."""
    if config is None or not hasattr(config, "num_hidden_layers"):
        return []
    return list(DynamicCache(config=config).layers)


def find_blocks(model: nn.Module, blocks: str | None = None) -> nn.ModuleList:
    """The list of decoder blocks.

    Args:
        model: a causal LM.
        blocks: dotted name of the list, for a model that the table doesn't have.

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


# The last layer of a block's MLP, by the names that architectures use.
MLP_ENDS = (
    *("mlp.down_proj", "mlp.c_proj", "mlp.dense_4h_to_h", "mlp.fc2", "mlp.fc_out", "mlp.proj"),
    *("ffn.down_proj", "feed_forward.down_proj"),
)


def find_mlp_end(block: nn.Module, site: str) -> nn.Module:
    """The last layer of a block's MLP: what enters it are the MLP's activations.

    Raises:
        ValueError: for a block whose MLP isn't built like that, such as a mixture of experts.
    """
    modules = dict(block.named_modules())
    for name in MLP_ENDS:
        weight = getattr(modules.get(name), "weight", None)
        if weight is not None and weight.ndim == 2:
            return modules[name]
    raise ValueError(
        f"depth={written((site,))}: {type(block).__name__} has no MLP that ends in one layer (one "
        f"of {', '.join(MLP_ENDS)}); use the block's output, depth={block_of(site)}"
    )


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
    width = getattr(decoder_config(model), "hidden_size", None)
    return int(width) if width else int(find_embedding(model).weight.shape[1])  # type: ignore[index]


def find_owner(model: nn.Module, blocks: nn.ModuleList) -> nn.Module:
    """The module that runs the blocks and is called with ids, mask, positions and cache."""
    for module in model.modules():
        if any(child is blocks for child in module.children()):
            return module
    raise ValueError(f"{type(model).__name__} does not hold the given blocks")


def check_sites(perturbation: Perturbation, config: Any) -> None:
    """Refuse a block that a model of this configuration doesn't have.

    Raises:
        ValueError: with the number of blocks.
    """
    blocks = getattr(config.get_text_config(), "num_hidden_layers", None)
    if not isinstance(blocks, int):
        return
    for site in perturbation.sites:
        if block_of(site) >= blocks:
            raise ValueError(
                f"depth={written((site,))} is beyond the last block; the model has {blocks} "
                f"blocks, so depth can be embed or 0 to {blocks - 1}"
            )
    if max(perturbation.tempered_blocks, default=-1) >= blocks:
        raise ValueError(
            f"attention_blocks={perturbation.attention_blocks!r}: the model has {blocks} blocks, "
            f"0 to {blocks - 1}"
        )
