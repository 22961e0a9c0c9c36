"""Llama-like models in few operations: their decode step, and on a CPU their prefill.

Decoding one token a row is bound by the number of operations more than by their size: transformers'
blocks take some 55 each. For the plainest and commonest architecture (Llama, DeepSeek-Coder, Qwen2,
Mistral; ordinary linear layers, one device) the same arithmetic on the same weights takes 19, or 10
with functions in C; these also shorten the prefill of prompts, each with its own noise. Every
other model, and any with hooks, adapters, quantized or other layers, is run by its own forward:
lean_checks.py looks. For a run the weights are laid out for speed; afterwards they are as before.
"""

from __future__ import annotations

import copy
import functools
import logging
import weakref
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lm_eval_embednoise.engine import attention
from lm_eval_embednoise.engine.lean_checks import CLASSES, ROUNDING, deviation, obstacle
from lm_eval_embednoise.engine.packed import Packed, pack, pays
from lm_eval_embednoise.engine.weights import Linear, SideBySide
from lm_eval_embednoise.kernels import build, step
from lm_eval_embednoise.kernels.attention import attend_causal, attend_prompt, serve_heads
from lm_eval_embednoise.noise.perturbation import EMBED

if TYPE_CHECKING:
    from lm_eval_embednoise.engine.attention import Shared
    from lm_eval_embednoise.engine.slots import SlotCache
    from lm_eval_embednoise.noise.inject import Act
    from lm_eval_embednoise.noise.temper import Scale

Sites = Set[str]

log = logging.getLogger(f"lm_eval.{__name__}")
# Of each model, what was logged about it, and the ways to run it whose trial it has passed.
_logged: weakref.WeakKeyDictionary[nn.Module, set[str]] = weakref.WeakKeyDictionary()
_passed: weakref.WeakKeyDictionary[nn.Module, set[Any]] = weakref.WeakKeyDictionary()


class _Norm(NamedTuple):
    weight: Tensor
    eps: float

    @classmethod
    def of(cls, norm: Any) -> _Norm:
        return cls(norm.weight, norm.variance_epsilon)


class _Block(NamedTuple):
    """A decoder block's weights: looking them up in modules takes longer than some operations."""

    before_attention: _Norm
    qkv: Linear
    o: Linear
    before_mlp: _Norm
    gate_up: Linear | Packed
    down: Linear
    scaling: float
    window: int | None

    @classmethod
    def of(cls, block: Any, config: Any, weights: SideBySide, packed: bool) -> _Block:
        at, mlp = block.self_attn, block.mlp
        cpu = at.q_proj.weight.device.type == "cpu"
        return cls(
            _Norm.of(block.input_layernorm),
            weights.join(at.q_proj, at.k_proj, at.v_proj, by_input=cpu),
            weights.join(at.o_proj, by_input=cpu),
            _Norm.of(block.post_attention_layernorm),
            pack(mlp.gate_proj, mlp.up_proj)
            if packed
            else weights.join(mlp.gate_proj, mlp.up_proj, by_input=cpu),
            weights.join(mlp.down_proj, by_input=cpu),
            at.scaling,
            _window(at, config),
        )


class Lean:
    """The model's passes over a `SlotCache`, within `ready`.

    Their small operations are those of kernels/ where these serve. Elsewhere there is the decode
    step alone, in PyTorch's operations; compiled, PyTorch's own compiler fuses what comes before
    attention, attention, and what comes after it.
    """

    embedding: Tensor
    norm: _Norm
    lm_head: Linear | Packed
    like: tuple[Tensor, Tensor]

    def __init__(
        self,
        model: Any,
        compiled: bool = False,
        in_c: bool = True,
        packs: bool = False,
        scales: Sequence[Scale] = (),
    ) -> None:
        self.model, self.rotary, self.packs = model, model.model.rotary_emb, packs
        self.kv_heads = model.config.num_key_value_heads
        self.dim = model.model.layers[0].self_attn.head_dim
        self.blocks: list[_Block] = []
        self.plain_blocks: list[_Block] = []  # the same with attention as the model has it
        self.scales = {scale.block: scale.tempered for scale in scales}
        self.compiled = compiled
        self.before, self.behind = _halves(compiled)
        windows = any(
            _window(block.self_attn, model.config) is not None for block in model.model.layers
        )
        self.suits_kernels = in_c and not compiled and not windows and serve_heads(self.dim)

    @classmethod
    def of(
        cls,
        model: Any,
        compiled: bool = False,
        in_c: bool = True,
        packs: bool = False,
        scales: Sequence[Scale] = (),
    ) -> Lean | None:
        """The short passes of a model that has this architecture to the letter, None for any other.

        What keeps a model of a class that is served from them is logged, once.

        Args:
            model: a causal LM.
            compiled: by torch.compile, in its first steps; meant for GPUs.
            in_c: False for PyTorch's operations even where those in C serve.
            packs: wide layers may be packed where functions in C serve (see packed.py), which
                depends on the memory that is free.
            scales: of the logits of attention, where it is another than the model's.
        """
        if (why := obstacle(model)) is not None:
            _say(model, why)
            return None
        return cls(model, compiled, in_c, packs, scales)

    @contextmanager
    def ready(self) -> Iterator[str | None]:
        """Within the context the passes can be run; afterwards the model's weights are as before.

        Gives None, or why the passes can't be run after all: the model has changed since it was
        looked at, or its own logits are others. That is logged as well.
        """
        if self.blocks:  # within another such context
            yield None
            return
        weights = SideBySide(self.model)
        try:
            why = obstacle(self.model)
            if why is None:
                self._lay_out(weights)
                why = self._trial()
            if why is not None:
                _say(self.model, why)
                self._let_go(weights)
            yield why
        finally:
            self._let_go(weights)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _lay_out(self, weights: SideBySide) -> None:
        config, body = self.model.config, self.model.model
        self.embedding, self.rotary = body.embed_tokens.weight, body.rotary_emb
        self.norm = _Norm.of(body.norm)
        head = self.model.lm_head
        gates = [part for of in body.layers for part in (of.mlp.gate_proj, of.mlp.up_proj)]
        packed = self.packs and self.in_c and pays([head, *gates])
        self.lm_head = pack(head) if packed else weights.join(head)
        self.like = (self.embedding.new_empty(0, self.kv_heads, 1, self.dim),) * 2
        for block in body.layers:
            self.plain_blocks.append(_Block.of(block, config, weights, packed))
        self.blocks += [
            block._replace(scaling=self.scales.get(number, block.scaling))
            for number, block in enumerate(self.plain_blocks)
        ]

    @torch.inference_mode(False)
    @torch.no_grad()
    def _let_go(self, weights: SideBySide) -> None:
        self.blocks.clear()
        self.plain_blocks.clear()
        weights.restore()
        vars(self).pop("lm_head", None)  # a packed one is a copy

    def _trial(self) -> str | None:
        """In what way a small pass differs from the model's own, None if it doesn't.

        Tried once a model and way to run it: its modules are looked at before every run, and other
        weights change nothing.
        """
        packed = isinstance(self.lm_head, Packed)
        way = (self.embedding.dtype, self.embedding.device, self.in_c, packed)
        if way in _passed.setdefault(self.model, set()):
            return None
        plain = self.clean  # what is compiled is the same, and compiling takes long
        plain.compiled, (plain.before, plain.behind) = False, _halves(False)
        difference, most = deviation(self.model, plain), ROUNDING[self.embedding.dtype]
        if difference <= most:
            _passed[self.model].add(way)
            return None
        return (
            f"its own logits differ from the short step's by {difference:.2g} of their standard "
            f"deviation (rounding explains {most:g}), so something in its code was replaced"
        )

    @property
    def clean(self) -> Lean:
        """A copy, within `ready`, whose attention is as the model has it."""
        plain = copy.copy(self)
        plain.blocks = self.plain_blocks
        return plain

    @property
    def in_c(self) -> bool:
        """Whether functions in C serve, so that prompts can be prefilled here as well."""
        return self.suits_kernels and build.serve("step", self.embedding)

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
            cache: `write_at` has been called; its prompts are seen.
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
        if in_c:
            cos, sin = cos[:, 0], sin[:, 0]
        else:
            sin = step.signed(sin)
        room: tuple[Tensor, Tensor] | None = None  # one for all blocks
        for number, block in enumerate(self.blocks):
            if in_c:
                memory = cache.slot_layers[number].memory(*self.like)
                q = _entered(x, block, cos, sin, memory, cache.write)
                prompts = cache.prompts(number)
                if prompts and room is None:
                    room = attention.room_for(q)
                mixed, _ = attention.by_kernels(prompts, q, *memory, lengths, block.scaling, room)
                x = _behind_in_c(x, mixed.view(len(x), -1), block)
            else:
                x = self._in_pytorch(number, block, x, cos, sin, cache)
            if act is not None and (site := f"block.{number}") in sites:
                x = act(site, x[:, None])[:, 0]
        return self.logits(x)[:, None]

    def prefill(
        self,
        ids: Tensor,
        cache: SlotCache,
        slots: Tensor,
        at: Tensor | None,
        shared: list[Shared] | None = None,
        act: Act | None = None,
        sites: Sites = frozenset(),
        replaced: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Run prompts, whose entries go to the first columns of slots. Only where `in_c`.

        Args:
            ids: int64 [rows, length], or [1, length] where all rows have these: then blocks run for
                one of them until `replaced` or a site makes them differ.
            cache: gets the entries.
            slots: int64 [rows]; rows of one slot must be equal.
            at: int64 [rows], which of the ids' logits are wanted; None for the vectors of all that
                `logits` takes: a large vocabulary's logits are too many to have at once.
            shared: of each block, what comes before the ids and is seen by all rows.
            act: see `step`; vectors are [rows, length, dim].
            sites: see `step`.
            replaced: what becomes of the tokens' vectors, [rows, length, dim], before all else.

        Returns:
            Logits [rows, vocab], or vectors [rows, length, dim].
        """
        rows, length = len(slots), ids.shape[1]
        columns = torch.arange(length)
        positions = columns + (shared[0].keys.shape[2] if shared else 0)
        rotary = [part[0] for part in self.rotary(self.embedding, positions[None])]
        x = F.embedding(ids, self.embedding)
        if replaced is not None:
            x = replaced(_for_each(x, rows))
        if act is not None and EMBED in sites:
            x = act(EMBED, _for_each(x, rows))
        for number, block in enumerate(self.blocks):
            now = len(x)
            cos, sin = (part.repeat(now, 1) for part in rotary)
            layer = cache.slot_layers[number]
            memory = layer.memory(*self.like)
            where = slots[:now].repeat_interleave(length)
            x = x.view(now * length, -1)
            q = _entered(x, block, cos, sin, memory, columns.repeat(now), where)
            prompt = None
            if shared:
                prompt = attention.room_for(q)
                prefix = shared[number]
                attend_prompt(q, prefix.columns, prefix.values, None, block.scaling, prompt)
            q = q.view(now, length, *q.shape[1:])
            mixed = attend_causal(q, memory, slots[:now], block.scaling, prompt)
            x = _behind_in_c(x, mixed.view(now * length, -1), block).view(now, length, -1)
            if now < rows:
                layer.move(slots[:1], slots[1:], length)
            if act is not None and (site := f"block.{number}") in sites:
                x = act(site, _for_each(x, rows))
        x = _for_each(x, rows)
        return x if at is None else self.logits(x[torch.arange(rows), at])

    def logits(self, x: Tensor) -> Tensor:
        """Logits [..., vocab] of vectors [..., dim] after the last block."""
        n = _norm(x, self.norm)
        if isinstance(self.lm_head, Packed):
            return self.lm_head.product(n)
        return F.linear(n, self.lm_head.weight, self.lm_head.bias)

    def _in_pytorch(
        self, number: int, block: _Block, x: Tensor, cos: Tensor, sin: Tensor, cache: SlotCache
    ) -> Tensor:
        """One decoder block over [rows, hidden] in PyTorch's operations."""
        q, k, v = self.before(x, block, cos, sin, self.kv_heads, self.dim)
        keys, values = cache.slot_layers[number].update(k, v)
        mixed, _ = attention.over_rows(
            cache, number, q, keys, values, block.scaling, block.window,
            compiled=self.compiled, with_lse=False,
        )  # fmt: skip
        return self.behind(x, mixed.reshape(len(x), -1), block)


def _for_each(x: Tensor, rows: int) -> Tensor:
    """Vectors [rows, pos, dim] of [rows or 1, pos, dim]."""
    return x if len(x) == rows else x.repeat(rows, 1, 1)


def _entered(
    x: Tensor,
    block: _Block,
    cos: Tensor,
    sin: Tensor,
    memory: tuple[Tensor, Tensor],
    write: Tensor,
    slots: Tensor | None = None,
) -> Tensor:
    """Queries of [rows, hidden]; keys and values go to memory: see kernels/step.py."""
    n = step.rms_norm(x, *block.before_attention)
    return step.enter(_linear(n, block.qkv), cos, sin, write, memory, slots)


def _behind_in_c(x: Tensor, mixed: Tensor, block: _Block) -> Tensor:
    """`_behind_attention`, its small operations in C."""
    x = _added(x, mixed, block.o)
    n = step.rms_norm(x, *block.before_mlp)
    return _added(x, step.silu_product(_linear(n, block.gate_up)), block.down)


def _before_attention(
    x: Tensor, block: _Block, cos: Tensor, sin: Tensor, kv_heads: int, dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [rows, kv_heads, group, head_dim], keys and values [rows, kv_heads, 1, head_dim].

    `sin` is what `step.signed` makes of the sines.
    """
    qkv = _linear(_norm(x, block.before_attention), block.qkv)
    return step.split(qkv, cos, sin, kv_heads, dim)


def _behind_attention(x: Tensor, mixed: Tensor, block: _Block) -> Tensor:
    """The block's end, from attention's result [rows, heads · head_dim]."""
    x = _added(x, mixed, block.o)
    n = _norm(x, block.before_mlp)
    return _added(x, step.silu_product_torch(_linear(n, block.gate_up)), block.down)


def _say(model: nn.Module, why: str) -> None:
    """Log why a model of a class that is served runs its own forward: once for each reason."""
    name = type(model).__name__
    if name in CLASSES and why not in _logged.setdefault(model, set()):
        _logged[model].add(why)
        log.info("%s is decoded by its own forward, not by the short step: %s", name, why)


@functools.cache
def _halves(compiled: bool) -> tuple[Any, Any]:
    """The two functions above, as they are or compiled: once for all blocks and all runs."""
    if not compiled:
        return _before_attention, _behind_attention
    return torch.compile(_before_attention), torch.compile(_behind_attention)


def _norm(x: Tensor, norm: _Norm) -> Tensor:
    return step.rms_norm_torch(x, *norm)


def _linear(x: Tensor, linear: Linear | Packed) -> Tensor:
    """The layer's output for [rows, inputs]."""
    if isinstance(linear, Packed):
        return linear.product(x)
    if linear.bias is None:
        return torch.mm(x, linear.transposed)
    return torch.addmm(linear.bias, x, linear.transposed)


def _added(x: Tensor, y: Tensor, linear: Linear) -> Tensor:
    """The residual sum x + linear(y)."""
    if linear.bias is not None:
        return x + _linear(y, linear)
    return torch.addmm(x, y, linear.transposed)


def _window(attention_module: Any, config: Any) -> int | None:
    """The layer's sliding window, as its forward would pass it to the attention function."""
    if type(attention_module).__name__.startswith("Mistral"):
        return getattr(config, "sliding_window", None)
    return getattr(attention_module, "sliding_window", None)
