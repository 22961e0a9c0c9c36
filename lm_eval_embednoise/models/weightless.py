"""`hf-embednoise` without its weights: everything that it refuses, and none of the reading.

Configuration, tokenizer and the tree of modules are the model's own, so what it refuses before its
first token it refuses in the same words, in a second and in no memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM

from lm_eval_embednoise.engine.sampling import Sampling
from lm_eval_embednoise.models import gguf_file
from lm_eval_embednoise.models.hf_embednoise import HFEmbedNoise
from lm_eval_embednoise.models.loaded import check_adapter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class Room:
    """How many prompts fit the model's context.

    Attributes:
        prompts: looked at.
        too_long: leave no room for a token; their samples are failures.
        tight: leave room for less than `max_gen_toks`.
        max_gen_toks: most tokens of an answer.
        max_length: the model's context.
    """

    prompts: int
    too_long: int
    tight: int
    max_gen_toks: int
    max_length: int


def check_device(device: torch.device) -> None:
    """Refuse a device that this PyTorch can't use.

    Raises:
        ValueError: with PyTorch's reason.
    """
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"device={device} can't be used here: {reason}") from None


class Weightless(HFEmbedNoise):
    """The model on PyTorch's meta device; it can be perturbed and asked, but not answer."""

    _copy_of = staticmethod(gguf_file.present_copy)  # none is made

    def _create_model(
        self, *, trust_remote_code: bool | None = False, peft: str | None = None, **_: Any
    ) -> None:
        check_device(self.device)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                self.config, trust_remote_code=bool(trust_remote_code)
            )
        model.to = lambda *_, **__: model  # a GPU's memory isn't asked for
        self._model = model
        if peft:
            from peft import PeftConfig

            check_adapter(PeftConfig.from_pretrained(peft))

    @property
    def adds(self) -> bool:
        """Whether the perturbation adds anything to a prompt."""
        return self._prompts.most > 0

    def sampling(self, gen_kwargs: Mapping[str, Any]) -> Sampling:
        """How samples are drawn.

        Raises:
            ValueError: as generating would, for what can't be, and where no prompt fits.
        """
        sampling = Sampling.from_gen_kwargs(gen_kwargs, self.max_gen_toks)
        self._check_room(sampling)
        return sampling

    def room(self, requests: Sequence[Any], sampling: Sampling) -> Room:
        """How the prompts of the harness's requests, one a problem, fit with what is added to them.

        Raises:
            ValueError: as generating would, for a prompt without the place of a soft prompt.
        """
        free = []
        for request in requests:
            [job] = self._jobs_of(request, sampling, (0,))
            free.append(0 if job.too_long else max(0, self.max_length - len(job.prompt_ids)))
        return Room(
            len(free),
            too_long=sum(room == 0 for room in free),
            tight=sum(0 < room < sampling.max_gen_toks for room in free),
            max_gen_toks=sampling.max_gen_toks,
            max_length=self.max_length,
        )
