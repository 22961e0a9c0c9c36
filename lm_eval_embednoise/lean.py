"""Llama-like models in few operations: their decode step, and on a CPU their prefill.

Decoding one token a row is bound by the number of operations more than by their size: transformers'
blocks take some 55 each. For the plainest and commonest architecture (Llama, DeepSeek-Coder, Qwen2,
Mistral; ordinary linear layers, one device) the same arithmetic on the same weights takes 19, or 10
with functions in C; these also shorten the prefill of prompts, each with noise of its own. Every
other model, and any with hooks, adapters or quantized layers, is run by its own forward.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Set
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lm_eval_embednoise import attention, kernels
from lm_eval_embednoise.attention import Shared
from lm_eval_embednoise.config import EMBED
from lm_eval_embednoise.inject import Act
from lm_eval_embednoise.slots import SlotCache

CLASSES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
Sites = Set[str]


class _Linear(NamedTuple):
    weight: Tensor
    bias: Tensor | None
    transposed: Tensor  # a view of the weight

    @classmethod
    def of(cls, *layers: nn.Linear, by_input: bool = False) -> _Linear:
        """Layers of one input as one layer, whose outputs stand side by side.

        Their weights become views of its memory: values and modules stay what they are, and
        nothing is held twice.

        Args:
            layers: at least one.
            by_input: lay the memory out input by input: products of few rows take a tenth less.
        """
        weights = [layer.weight.detach() for layer in layers]
        weight = _side_by_side(weights)
        if weight is None or (by_input and weight.is_contiguous()):
            weight = torch.cat(weights)
            if by_input:
                weight = weight.t().contiguous().t()
            for layer, part in zip(layers, weight.split([len(w) for w in weights]), strict=True):
                layer.weight.data = part
        biases = [layer.bias for layer in layers]
        bias = None
        if any(b is not None for b in biases):
            parts = zip(biases, weights, strict=True)
            bias = torch.cat([w.new_zeros(len(w)) if b is None else b for b, w in parts]).detach()
        return cls(weight, bias, weight.t())


def _side_by_side(weights: list[Tensor]) -> Tensor | None:
    """The memory that holds all of them one after the other, [outputs, inputs]; None without."""
    first, at = weights[0], weights[0].data_ptr()
    for weight in weights:
        if weight.data_ptr() != at or weight.stride() != first.stride():
            return None
        if weight.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
            return None
        at += len(weight) * weight.stride(0) * weight.element_size()
    return first.as_strided((sum(map(len, weights)), first.shape[1]), first.stride())


class _Norm(NamedTuple):
    weight: Tensor
    eps: float

    @classmethod
    def of(cls, norm: Any) -> _Norm:
        return cls(norm.weight, norm.variance_epsilon)


class _Block(NamedTuple):
    """A decoder block's weights: looking them up in modules takes longer than some operations."""

    before_attention: _Norm
    qkv: _Linear
    o: _Linear
    before_mlp: _Norm
    gate_up: _Linear
    down: _Linear
    scaling: float
    window: int | None

    @classmethod
    def of(cls, block: Any, config: Any) -> _Block:
        at, mlp = block.self_attn, block.mlp
        cpu = at.q_proj.weight.device.type == "cpu"
        return cls(
            _Norm.of(block.input_layernorm),
            _Linear.of(at.q_proj, at.k_proj, at.v_proj, by_input=cpu),
            _Linear.of(at.o_proj, by_input=cpu),
            _Norm.of(block.post_attention_layernorm),
            _Linear.of(mlp.gate_proj, mlp.up_proj, by_input=cpu),
            _Linear.of(mlp.down_proj, by_input=cpu),
            at.scaling,
            _window(at, config),
        )


class Lean:
    """The model's passes over a `SlotCache`.

    Their small operations are `kernels`' where those serve. Elsewhere there is the decode step
    alone, in PyTorch's operations; compiled, PyTorch's own compiler fuses what stands before
    attention, attention, and what stands behind it.
    """

    def __init__(self, model: Any, compiled: bool = False) -> None:
        config, body = model.config, model.model
        self.embedding, self.rotary = body.embed_tokens.weight, body.rotary_emb
        self.norm = _Norm.of(body.norm)
        self.head = _Linear.of(model.lm_head)
        self.kv_heads = config.num_key_value_heads
        self.dim = body.layers[0].self_attn.head_dim
        self.blocks = [_Block.of(block, config) for block in body.layers]
        self.compiled = compiled
        self.before, self.behind = _halves(compiled)
        self.like = (self.embedding.new_empty(0, self.kv_heads, 1, self.dim),) * 2
        windows = any(block.window is not None for block in self.blocks)
        self.suits_kernels = not compiled and not windows and kernels.serve_heads(self.dim)

    @classmethod
    def of(cls, model: Any, compiled: bool = False) -> Lean | None:
        """The short passes of a model that has this architecture to the letter, None for any other.

        Args:
            model: a causal LM.
            compiled: by torch.compile, in its first steps; meant for GPUs.
        """
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
        return cls(model, compiled)

    @property
    def in_c(self) -> bool:
        """Whether `kernels` serve, so that prompts can be prefilled here as well."""
        return self.suits_kernels and kernels.serve(self.embedding)

    def step(
        self,
        ids: Tensor,
        cache: SlotCache,
        positions: Tensor,
        act: Act | None = None,
        sites: Sites = frozenset(),
    ) -> Tensor:
        """Run a decode step.

        Args:
            ids: int64 [rows, 1].
            cache: told where to write; its prompts are seen.
            positions: int64 [rows, 1].
            act: replaces the vectors [rows, 1, dim] at the sites.
            sites: "embed", "block.<k>".

        Returns:
            [rows, 1, vocab].
        """
        x = F.embedding(ids, self.embedding)
        if act is not None and EMBED in sites:
            x = act(EMBED, x)
        cos, sin = self.rotary(x, positions)  # [rows, 1, head_dim]
        x, in_c, lengths = x[:, 0], self.in_c, cache.write + 1
        if not in_c:
            half = self.dim // 2
            sin = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
        for number, block in enumerate(self.blocks):
            if in_c:
                held = cache.slot_layers[number].memory(*self.like)
                q = self._entered(x, block, cos, sin, held, cache.write)
                prompts = cache.prompts(number)
                mixed, _ = attention.by_kernels(prompts, q, *held, lengths, block.scaling)
                x = _behind_in_c(x, mixed.view(len(x), -1), block)
            else:
                x = self._in_pytorch(number, block, x, cos, sin, cache)
            if act is not None and (site := f"block.{number}") in sites:
                x = act(site, x[:, None])[:, 0]
        return self._logits(x)[:, None]

    def prefill(
        self,
        ids: Tensor,
        cache: SlotCache,
        slots: Tensor,
        at: Tensor | None,
        head: list[Shared] | None = None,
        act: Act | None = None,
        sites: Sites = frozenset(),
        replaced: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Run prompts, whose entries go to the head of slots. Where `in_c`.

        Args:
            ids: int64 [rows, length].
            cache: gets the entries.
            slots: int64 [rows]; rows of one slot must be equal.
            at: int64 [rows], which of the ids' logits are wanted; None for all.
            head: of each block, what stands before the ids and is seen by all rows.
            act, sites: see `step`; vectors are [rows, length, dim].
            replaced: what becomes of the tokens' vectors, [rows, length, dim], before all else.

        Returns:
            [rows, vocab], or [rows, length, vocab].
        """
        rows, length = ids.shape
        columns = torch.arange(length)
        positions = columns + (head[0].keys.shape[2] if head else 0)
        x = F.embedding(ids, self.embedding)
        if replaced is not None:
            x = replaced(x)
        if act is not None and EMBED in sites:
            x = act(EMBED, x)
        cos, sin = (part[0].repeat(rows, 1) for part in self.rotary(x, positions[None]))
        write, where = columns.repeat(rows), slots.repeat_interleave(length)
        x = x.view(rows * length, -1)
        for number, block in enumerate(self.blocks):
            held = cache.slot_layers[number].memory(*self.like)
            q = self._entered(x, block, cos, sin, held, write, where)
            prompt = None
            if head:
                prompt = (torch.empty_like(q), q.new_empty(q.shape[:3]))
                shared = head[number]
                kernels.attend_prompt(q, shared.columns, shared.values, None, block.scaling, prompt)
            q = q.view(rows, length, *q.shape[1:])
            mixed = kernels.attend_causal(q, held, slots, block.scaling, prompt)
            x = _behind_in_c(x, mixed.view(rows * length, -1), block)
            if act is not None and (site := f"block.{number}") in sites:
                x = act(site, x.view(rows, length, -1)).view(rows * length, -1)
        x = x.view(rows, length, -1)
        if at is not None:
            x = x[torch.arange(rows), at]
        return self._logits(x)

    def _logits(self, x: Tensor) -> Tensor:
        return F.linear(_norm(x, self.norm), self.head.weight, self.head.bias)

    def _entered(
        self,
        x: Tensor,
        block: _Block,
        cos: Tensor,
        sin: Tensor,
        held: tuple[Tensor, Tensor],
        write: Tensor,
        slots: Tensor | None = None,
    ) -> Tensor:
        """Queries of [rows, hidden]; keys and values go to memory: see `kernels.enter`."""
        n = kernels.rms_norm(x, *block.before_attention)
        return kernels.enter(_linear(n, block.qkv), cos, sin, write, held, slots)

    def _in_pytorch(
        self, number: int, block: _Block, x: Tensor, cos: Tensor, sin: Tensor, cache: SlotCache
    ) -> Tensor:
        """One decoder block over [rows, hidden] in PyTorch's operations."""
        q, k, v = self.before(x, block, cos, sin, self.kv_heads, self.dim)
        keys, values = cache.slot_layers[number].update(k, v)
        mixed, _ = attention.over_rows(
            cache, number, q, keys, values, block.scaling, block.window, compiled=self.compiled
        )
        return self.behind(x, mixed.reshape(len(x), -1), block)


def _behind_in_c(x: Tensor, mixed: Tensor, block: _Block) -> Tensor:
    """`_behind_attention`, its small operations in C."""
    x = _added(x, mixed, block.o)
    n = kernels.rms_norm(x, *block.before_mlp)
    return _added(x, kernels.silu_product(_linear(n, block.gate_up)), block.down)


def _before_attention(
    x: Tensor, block: _Block, cos: Tensor, sin: Tensor, kv_heads: int, dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [rows, kv_heads, group, head_dim], keys and values [rows, kv_heads, 1, head_dim].

    The first half of `sin` comes negated.
    """
    qkv = _linear(_norm(x, block.before_attention), block.qkv).unflatten(-1, (-1, dim))
    qk, v = qkv[:, :-kv_heads], qkv[:, -kv_heads:, None]
    # rotate_half(v) · sin is v rolled by half, times sin with its first half negated
    qk = torch.addcmul(qk * cos, qk.roll(dim // 2, dims=-1), sin)
    q, k = qk[:, :-kv_heads], qk[:, -kv_heads:, None]
    return q.unflatten(1, (kv_heads, -1)), k, v


def _behind_attention(x: Tensor, mixed: Tensor, block: _Block) -> Tensor:
    """The block's end, from attention's result [rows, heads · head_dim]."""
    x = _added(x, mixed, block.o)
    n = _norm(x, block.before_mlp)
    gate, up = _linear(n, block.gate_up).chunk(2, dim=-1)
    return _added(x, F.silu(gate) * up, block.down)


@functools.cache
def _halves(compiled: bool) -> tuple[Any, Any]:
    """The two functions above, as they are or compiled: once for all blocks and all runs."""
    if not compiled:
        return _before_attention, _behind_attention
    return torch.compile(_before_attention), torch.compile(_behind_attention)


def _norm(x: Tensor, norm: _Norm) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), norm.weight, norm.eps)


def _linear(x: Tensor, linear: _Linear) -> Tensor:
    """The layer's output for [rows, inputs]."""
    if linear.bias is None:
        return torch.mm(x, linear.transposed)
    return torch.addmm(linear.bias, x, linear.transposed)


def _added(x: Tensor, y: Tensor, linear: _Linear) -> Tensor:
    """x + linear(y)"""
    if linear.bias is not None:
        return x + _linear(y, linear)
    return torch.addmm(x, y, linear.transposed)


def _window(attention_module: Any, config: Any) -> int | None:
    """The layer's sliding window, as its forward would pass it to the attention function."""
    if type(attention_module).__name__.startswith("Mistral"):
        return getattr(config, "sliding_window", None)
    return getattr(attention_module, "sliding_window", None)
