"""Whether the short passes are the model's own: a look at every module, and a trial pass.

The short passes (lean.py) read weights and leave out the modules around them. So every module must
be exactly the one that transformers puts there, with nothing attached; and what a look can't see
(a function replaced in transformers' own code) shows in the logits of one small pass.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from transformers.activations import ACT2FN
from transformers.cache_utils import DynamicCache

from lm_eval_embednoise.engine.slots import SlotCache, entries

# The classes served, and where transformers defines them.
CLASSES = {
    f"{name}ForCausalLM": f"transformers.models.{name.lower()}.modeling_{name.lower()}"
    for name in ("Llama", "Mistral", "Qwen2")
}
# Every module of theirs, by its name with * for a number: its class, or that in the same file with
# {} for the family.
PARTS: dict[str, str | type[nn.Module]] = {
    "": "{}ForCausalLM",
    "lm_head": nn.Linear,
    "model": "{}Model",
    "model.embed_tokens": nn.Embedding,
    "model.rotary_emb": "{}RotaryEmbedding",
    "model.norm": "{}RMSNorm",
    "model.layers": nn.ModuleList,
    "model.layers.*": "{}DecoderLayer",
    "model.layers.*.input_layernorm": "{}RMSNorm",
    "model.layers.*.self_attn": "{}Attention",
    **{f"model.layers.*.self_attn.{name}_proj": nn.Linear for name in "qkvo"},
    "model.layers.*.post_attention_layernorm": "{}RMSNorm",
    "model.layers.*.mlp": "{}MLP",
    **{f"model.layers.*.mlp.{name}_proj": nn.Linear for name in ("gate", "up", "down")},
    "model.layers.*.mlp.act_fn": type(ACT2FN["silu"]),
}
# Largest deviation of logits that rounding explains, as a share of their standard deviation.
ROUNDING = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.25}
TRIAL = 6  # tokens of the trial pass


def obstacle(model: nn.Module) -> str | None:
    """What the short passes would leave out of a model, naming the module; None for nothing."""
    kind = type(model)
    if CLASSES.get(kind.__name__) != kind.__module__:
        return f"it is not one of {', '.join(CLASSES)} as transformers has them"
    family = kind.__name__.removesuffix("ForCausalLM")
    missing = dict(PARTS)
    for name, module in model.named_modules(remove_duplicate=False):
        part = re.sub(r"\d+", "*", name)
        expected = PARTS.get(part)
        missing.pop(part, None)
        where = f"{name or 'the model'} ({type(module).__name__})"
        if expected is None:
            return f"{where} is not part of the architecture"
        if not _is(type(module), expected, family, kind.__module__):
            wanted = expected.format(family) if isinstance(expected, str) else expected.__name__
            return f"{where} is not {wanted} itself"
        if (why := _changed(module)) is not None:
            return f"{where} {why}"
    if missing:
        return f"it has no {next(iter(missing))}"
    return _elsewhere(model)


def _is(kind: type, expected: str | type, family: str, file: str) -> bool:
    if isinstance(expected, str):
        return (kind.__module__, kind.__qualname__) == (file, expected.format(family))
    return kind is expected


def _changed(module: nn.Module) -> str | None:
    """What makes a module do other than its class says."""
    kind, own = type(module), vars(module)
    if "forward" in own:
        return "has a forward of its own"
    if module._forward_hooks or module._forward_pre_hooks or "_hf_hook" in own:
        return "has hooks"
    if kind is not nn.ModuleList and kind.forward.__module__ != kind.__module__:
        return f"has the forward of {kind.forward.__module__}"
    for name, parameter in module._parameters.items():
        if parameter is not None and (type(parameter) is not nn.Parameter):
            return f"has a {name} that is a {type(parameter).__name__}"
        if parameter is not None and parameter.is_inference():
            return f"has a {name} made in inference mode"
    if isinstance(module, (nn.Linear, nn.Embedding)) and module._parameters.get("weight") is None:
        return "has no weight among its parameters"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "renormalises its vectors (max_norm)"
    if module.training and getattr(module, "attention_dropout", None):
        return "is in training mode and has dropout"
    return None


def _elsewhere(model: nn.Module) -> str | None:
    """What prevents the short passes outside of single modules."""
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return "a hook on all modules is registered"
    kinds = {(p.device, p.dtype) for p in model.parameters()}
    if len(kinds) != 1:
        return "its weights are of several types or on several devices"
    ((device, dtype),) = kinds
    if dtype not in ROUNDING:
        return f"its weights are {dtype}"
    if torch.is_autocast_enabled(device.type):
        return "autocast is on"
    return None


@torch.no_grad()
def deviation(model: Any, lean: Any) -> float:
    """How far the logits of short passes are from the model's own, after some tokens and one more.

    Args:
        model: a causal LM.
        lean: its `lean.Lean`, ready.

    Returns:
        Root mean square as a share of the logits' standard deviation: about 1e-6 in float32, and
        1 for logits that have nothing in common. What isn't a number on both sides counts as equal.
    """
    size, device = len(lean.embedding), lean.embedding.device
    ids = torch.linspace(0, size - 1, TRIAL + 2, device=device).long()[None, 1:-1]
    positions = torch.arange(TRIAL, device=device)[None]
    prompt, last = slice(TRIAL - 1), slice(TRIAL - 1, TRIAL)
    own, slots = DynamicCache(), torch.zeros(1, dtype=torch.int64, device=device)
    logits = [_own(model, ids[:, prompt], positions[:, prompt], own)]
    cache = SlotCache(len(lean.blocks), 1, TRIAL)
    cache.fill(slots, entries(own))
    cache.write_at(positions[:, -1], TRIAL, even=True)
    logits.append(_own(model, ids[:, last], positions[:, last], own))
    got = [logits[0]]
    if lean.in_c:
        memory = SlotCache(len(lean.blocks), 1, TRIAL)
        got = [lean.prefill(ids[:, prompt], memory, slots, slots + TRIAL - 2)]
    got.append(lean.step(ids[:, last], cache, positions[:, last])[:, -1])
    return max(_apart(a, b) for a, b in zip(got, logits, strict=True))


def _own(model: Any, ids: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
    output = model(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True)
    logits: Tensor = output.logits[:, -1]
    return logits


def _apart(got: Tensor, expected: Tensor) -> float:
    got, expected = got.double().flatten(), expected.double().flatten()
    real = expected.isfinite()
    if not torch.equal(got.isfinite(), real):
        return float("inf")
    if not real.any():
        return 0.0
    got, expected = got[real], expected[real]
    spread = float(expected.std(correction=0).clamp_min(1e-30))
    return float((got - expected).square().mean().sqrt()) / spread
