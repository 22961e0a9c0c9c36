"""The training-time forward pass: Qwen2's mathematics, hand-written for speed on a CPU.

Parameters carry the names that transformers gives them, so a checkpoint is saved as it is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Qwen2Config

EPS = 1e-6
THETA = 10_000.0


def make_config(vocabulary: int, end: int) -> Qwen2Config:
    """24 blocks of width 128: deep enough for depth-20 noise, small enough to ship."""
    return Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=24,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        rms_norm_eps=EPS,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=end,
    )


def init_parameters(config: Qwen2Config, seed: int) -> dict[str, Tensor]:
    """Float32 parameters; the output projections of every block start at zero."""
    generator = torch.Generator().manual_seed(seed)
    d, f = config.hidden_size, config.intermediate_size
    kv = (
        d // config.num_attention_heads * (config.num_key_value_heads or config.num_attention_heads)
    )

    def normal(rows: int, columns: int, std: float) -> Tensor:
        return torch.randn(rows, columns, generator=generator) * std

    made = {"model.embed_tokens.weight": normal(config.vocab_size, d, 0.05)}
    for i in range(config.num_hidden_layers):
        p = f"model.layers.{i}."
        made[p + "input_layernorm.weight"] = torch.ones(d)
        for name, rows in (("q", d), ("k", kv), ("v", kv)):
            made[p + f"self_attn.{name}_proj.weight"] = normal(rows, d, d**-0.5)
            made[p + f"self_attn.{name}_proj.bias"] = torch.zeros(rows)
        made[p + "self_attn.o_proj.weight"] = torch.zeros(d, d)
        made[p + "post_attention_layernorm.weight"] = torch.ones(d)
        made[p + "mlp.gate_proj.weight"] = normal(f, d, d**-0.5)
        made[p + "mlp.up_proj.weight"] = normal(f, d, d**-0.5)
        made[p + "mlp.down_proj.weight"] = torch.zeros(d, f)
    made["model.norm.weight"] = torch.ones(d)
    return {name: tensor.requires_grad_() for name, tensor in made.items()}


LAYER = (
    "input_layernorm.weight",
    "self_attn.q_proj.weight",
    "self_attn.k_proj.weight",
    "self_attn.v_proj.weight",
    "self_attn.q_proj.bias",
    "self_attn.k_proj.bias",
    "self_attn.v_proj.bias",
    "self_attn.o_proj.weight",
    "post_attention_layernorm.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
)


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * weight


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin


def layer(
    x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, heads: int, *parameters: Tensor
) -> Tensor:
    """One decoder block on `[batch, pos, hidden]`, its parameters in LAYER's order.

    `mask [pos, pos]` is added to the scores; `cos` and `sin` are `[pos, head size]`.
    """
    n1, wq, wk, wv, bq, bk, bv, wo, n2, gate, up, down = parameters
    b, t, d = x.shape
    size = d // heads
    kv = wk.shape[0] // size
    h = _norm(x, n1)
    qkv = F.linear(h, torch.cat((wq, wk, wv)), torch.cat((bq, bk, bv)))
    q, k, v = qkv.split((d, kv * size, kv * size), dim=-1)
    q = _rotate(q.view(b, t, heads, size).transpose(1, 2), cos, sin)
    k = _rotate(k.view(b, t, kv, size).transpose(1, 2), cos, sin)
    v = v.view(b, t, kv, size).transpose(1, 2)
    q = q.reshape(b * kv, heads // kv * t, size)  # query heads of a group share their key head
    scores = torch.bmm(q, k.reshape(b * kv, t, size).transpose(1, 2)) * (1 / math.sqrt(size))
    scores = scores.view(b * kv, heads // kv, t, t) + mask
    weights = torch.softmax(scores, dim=-1).view(b * kv, heads // kv * t, t)
    mixed = torch.bmm(weights, v.reshape(b * kv, t, size))
    mixed = mixed.view(b, heads, t, size).transpose(1, 2).reshape(b, t, d)
    x = x + F.linear(mixed, wo)
    h = _norm(x, n2)
    g, u = F.linear(h, torch.cat((gate, up))).chunk(2, dim=-1)
    return x + F.linear(F.silu(g) * u, down)


class Network:
    """Parameters and the forward pass to the loss."""

    def __init__(
        self, config: Qwen2Config, parameters: dict[str, Tensor], compiled: bool = True
    ) -> None:
        self.config, self.parameters = config, parameters
        torch._dynamo.config.recompile_limit = 64  # one compilation for each bucket's shape
        self.layer = torch.compile(layer, dynamic=False) if compiled else layer
        self._tables: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def _positions(self, t: int) -> tuple[Tensor, Tensor, Tensor]:
        if t not in self._tables:
            size = self.config.hidden_size // self.config.num_attention_heads
            inverse = THETA ** (-torch.arange(0, size, 2).float() / size)
            angles = torch.outer(torch.arange(t).float(), inverse).repeat(1, 2)
            mask = torch.full((t, t), float("-inf")).triu(1)
            self._tables[t] = angles.cos(), angles.sin(), mask
        return self._tables[t]

    def hidden(self, ids: Tensor) -> Tensor:
        """Final normed hidden states of `ids [batch, pos]` (padded on the right)."""
        p = self.parameters
        x = F.embedding(ids, p["model.embed_tokens.weight"])
        cos, sin, mask = self._positions(ids.shape[1])
        heads = self.config.num_attention_heads
        for i in range(self.config.num_hidden_layers):
            x = self.layer(
                x, cos, sin, mask, heads, *(p[f"model.layers.{i}.{name}"] for name in LAYER)
            )
        return _norm(x, p["model.norm.weight"])

    def loss(self, ids: Tensor, scored: Tensor) -> Tensor:
        """Mean cross-entropy over the tokens where `scored [batch, pos]` is true."""
        targets = scored[:, 1:]
        states = self.hidden(ids[:, :-1])[targets]
        logits = F.linear(states, self.parameters["model.embed_tokens.weight"])
        return F.cross_entropy(logits, ids[:, 1:][targets])
