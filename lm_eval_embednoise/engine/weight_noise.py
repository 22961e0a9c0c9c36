"""Noise on the weights of the blocks' linear layers: one draw a sample index, for all problems.

W + σ · rms(W) · z with z ~ N(0, 1) for every entry of a layer's stored matrix, drawn from the
stream of the sample index and the layer's name. Weights are changed in place and come back bit for
bit from a copy: one copy of the blocks at a time, whatever ends the work.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lm_eval_embednoise.noise import streams
from lm_eval_embednoise.noise.model_parts import find_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lm_eval_embednoise.noise.perturbation import Perturbation

PROBLEMS = 256  # that share a draw: their samples of one index are in no store until all are there
_PIECE = 1 << 22  # numbers drawn at a time
_TYPES = (torch.float32, torch.float16, torch.bfloat16)


class WeightNoise:
    """The noisy weights of one model under one perturbation.

    Attributes:
        present: the sample index whose draw is in place; None for the model's own weights.
    """

    def __init__(
        self, model: nn.Module, perturbation: Perturbation, blocks: str | None = None
    ) -> None:
        """Look at the model; nothing is drawn.

        Args:
            model: a causal LM.
            perturbation: its `weight_sigma`.
            blocks: dotted name of the decoder blocks' list, if it can't be found.

        Raises:
            ValueError: for quantized layers, weights that aren't in memory, experts in one tensor.
        """
        self.sigma, self.seed = perturbation.weight_sigma, perturbation.seed
        self.present: int | None = None
        self._weights: dict[str, Tensor] = {}
        known: set[int] = set()
        for number, block in enumerate(find_blocks(model, blocks)):
            for name, module in block.named_modules():
                site = f"block.{number}.{name}"
                _check(site, module)
                ours = isinstance(module, (nn.Linear, Conv1D)) and "lora_" not in name
                if ours and id(module.weight) not in known:
                    known.add(id(module.weight))
                    self._weights[site] = module.weight
        if not self._weights:
            raise ValueError(
                f"weight_sigma: the blocks of {type(model).__name__} have no linear layers"
            )

    @contextmanager
    def drawn(self, sample: int) -> Iterator[None]:
        """Within the context the weights are those of a sample index.

        What was laid out of them before (`Runner.ready`) is not.
        """
        if self.present == sample:
            yield
            return
        assert self.present is None, "a draw of another sample is in place"
        kept: list[tuple[Tensor, Tensor]] = []
        self.present = sample
        try:
            for name, weight in self._weights.items():
                with torch.inference_mode():
                    kept.append((weight, weight.clone()))
                    self._add(name, weight, sample)
            yield
        finally:
            _put_back(kept)
            self.present = None

    def _add(self, name: str, weight: Tensor, sample: int) -> None:
        """Add a layer's noise, some rows of the matrix at a time."""
        key = streams.stream_key(self.seed, "", sample, "weights", name)
        keys = streams.key_words([key], weight.device)
        std = self.sigma * float(weight.double().square().mean().sqrt())
        rows, width = weight.shape
        for numbers in torch.arange(rows, device=weight.device).split(max(1, _PIECE // width)):
            noise = std * streams.normal(keys, numbers[None], width)[0]
            part = weight[numbers[0] : numbers[-1] + 1]
            part.copy_((part.float() + noise).to(weight.dtype))


def _check(site: str, module: nn.Module) -> None:
    """Refuse what can't get noise and come back.

    Raises:
        ValueError: naming the layer.
    """
    weight = getattr(module, "weight", None)
    linear = isinstance(module, (nn.Linear, Conv1D)) or hasattr(module, "qweight")
    if linear and (not isinstance(weight, Tensor) or weight.dtype not in _TYPES):
        kind = weight.dtype if isinstance(weight, Tensor) else "packed"
        raise ValueError(
            f"weight_sigma: {site} ({type(module).__name__}) is quantized ({kind} weights), and "
            "noise on it would not come back; load the model without quantization"
        )
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.is_meta:
            raise ValueError(f"weight_sigma: {site}.{name} is not in memory (offloaded)")
        if parameter.ndim > 2:
            raise ValueError(
                f"weight_sigma: {site}.{name} holds several matrices, as experts do; only linear "
                "layers are served"
            )


def _put_back(kept: list[tuple[Tensor, Tensor]]) -> None:
    """Give weights their values back; an interrupt is raised at the end."""
    interrupt: KeyboardInterrupt | None = None
    while kept:
        try:
            weight, value = kept[-1]
            with torch.inference_mode():
                weight.copy_(value)
            kept.pop()
        except KeyboardInterrupt as raised:
            interrupt = raised
    if interrupt is not None:
        raise interrupt
