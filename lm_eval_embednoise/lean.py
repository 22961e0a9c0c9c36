"""The decode step of Llama-like models in few operations.

Decoding one token a row is bound by the number of operations more than by their size: transformers'
blocks take some 55 each. For the plainest and commonest architecture (Llama, DeepSeek-Coder, Qwen2,
Mistral; ordinary linear layers, one device) the same arithmetic on the same weights takes 20. Every
other model, and any with hooks, adapters or quantized layers, is decoded by its own forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lm_eval_embednoise import attention
from lm_eval_embednoise.config import EMBED
from lm_eval_embednoise.slots import SlotCache

CLASSES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
Act = Callable[[str, Tensor], Tensor]


def lean_step(model: Any) -> LeanStep | None:
    """The step for a model that has this architecture to the letter, None for any other."""
    kind = type(model)
    if kind.__name__ not in CLASSES or not kind.__module__.startswith("transformers.models."):
        return None
    if getattr(model.config, "hidden_act", None) != "silu":
        return None
    for module in model.modules():
        if module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook"):
            return None
    for block in model.model.layers:
        parts = [getattr(block.self_attn, f"{name}_proj") for name in "qkvo"]
        parts += [getattr(block.mlp, f"{name}_proj") for name in ("gate", "up", "down")]
        if any(type(part) is not nn.Linear for part in parts):  # adapters, quantized layers
            return None
    if len({(p.device, p.dtype) for p in model.parameters()}) != 1:
        return None
    return LeanStep(model)


class LeanStep:
    """One token a row in, logits out; keys and values go to a `SlotCache`."""

    def __init__(self, model: Any) -> None:
        self.model = model
        body = model.model
        config = model.config
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.dim = body.layers[0].self_attn.head_dim
        self.windows = [_window(block.self_attn, config) for block in body.layers]

    def __call__(
        self, ids: Tensor, cache: SlotCache, positions: Tensor, act: Act | None, sites: set[str]
    ) -> Tensor:
        """Run the step.

        Args:
            ids: int64 [rows, 1].
            cache: told where to write; its prompts are seen.
            positions: int64 [rows, 1].
            act: replaces the vectors [rows, 1, dim] at the sites.
            sites: "embed", "block.<k>".

        Returns:
            [rows, 1, vocab].
        """
        body, dim = self.model.model, self.dim
        x = F.embedding(ids[:, 0], body.embed_tokens.weight)
        if act is not None and EMBED in sites:
            x = act(EMBED, x[:, None])[:, 0]
        cos, sin = body.rotary_emb(x[:, None], positions)  # [rows, 1, head_dim]
        sin = torch.cat((-sin[..., : dim // 2], sin[..., dim // 2 :]), dim=-1)
        for number, block in enumerate(body.layers):
            x = self._block(number, block, x, cos, sin, cache)
            if act is not None and (site := f"block.{number}") in sites:
                x = act(site, x[:, None])[:, 0]
        logits: Tensor = self.model.lm_head(_norm(body.norm, x))
        return logits[:, None]

    def _block(
        self, number: int, block: Any, x: Tensor, cos: Tensor, sin: Tensor, cache: SlotCache
    ) -> Tensor:
        """One decoder block over [rows, hidden]."""
        at, mlp, rows = block.self_attn, block.mlp, len(x)
        heads, kv_heads, dim = self.heads, self.kv_heads, self.dim
        n = _norm(block.input_layernorm, x)
        qk = torch.cat((at.q_proj(n), at.k_proj(n)), dim=-1).view(rows, heads + kv_heads, dim)
        # rotate_half(v) · sin is v rolled by half, times sin with its first half negated
        qk = torch.addcmul(qk * cos, qk.roll(dim // 2, dims=-1), sin)
        q = qk[:, :heads].reshape(rows, kv_heads, heads // kv_heads, dim)
        new_keys = qk[:, heads:, None]
        new_values = at.v_proj(n).view(rows, kv_heads, 1, dim)
        keys, values = cache.slot_layers[number].update(new_keys, new_values)
        mixed, _ = attention.over_rows(
            cache, number, q, keys, values, at.scaling, window=self.windows[number]
        )
        x = _added(x, mixed.reshape(rows, heads * dim), at.o_proj)
        n = _norm(block.post_attention_layernorm, x)
        return _added(x, F.silu(mlp.gate_proj(n)) * mlp.up_proj(n), mlp.down_proj)


def _norm(norm: Any, x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), norm.weight, norm.variance_epsilon)


def _added(x: Tensor, y: Tensor, linear: nn.Linear) -> Tensor:
    """x + linear(y)"""
    if linear.bias is not None:
        return x + linear(y)
    return torch.addmm(x, y, linear.weight.t())


def _window(attention_module: Any, config: Any) -> int | None:
    """The layer's sliding window, as its forward would pass it to the attention function."""
    if type(attention_module).__name__.startswith("Mistral"):
        return getattr(config, "sliding_window", None)
    return getattr(attention_module, "sliding_window", None)
