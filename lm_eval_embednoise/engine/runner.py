"""The model: what it can do, one pass of it, and what its noise depends on."""

from __future__ import annotations

import copy
import inspect
import threading
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lm_eval_embednoise.engine import attention
from lm_eval_embednoise.engine.families import (
    Decoding,
    attends_to_entries,
    check_exact,
    decoding,
    steady_positions,
)
from lm_eval_embednoise.engine.lanes import threads
from lm_eval_embednoise.engine.lean import Lean
from lm_eval_embednoise.engine.lean_checks import obstacle
from lm_eval_embednoise.engine.weight_noise import WeightNoise
from lm_eval_embednoise.noise import perturb
from lm_eval_embednoise.noise.clean_states import roots_of
from lm_eval_embednoise.noise.inject import Rows, find_site, running
from lm_eval_embednoise.noise.model_parts import find_blocks
from lm_eval_embednoise.noise.perturbation import Perturbation, suggest
from lm_eval_embednoise.noise.reference import References
from lm_eval_embednoise.noise.sites import in_mlp
from lm_eval_embednoise.noise.soft_prompt import SoftPrompts
from lm_eval_embednoise.noise.temper import attention_scales, tempered

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers.cache_utils import Cache

    from lm_eval_embednoise.engine.jobs import Job
    from lm_eval_embednoise.noise.clean_states import CleanStates

DECODERS = ("auto", "torch", "model")
EXACT_ROWS = 16  # rows of every pass of an exact run
LAST = (-1,)  # the position that decoding needs
LEAST_SHARED = 8  # positions from which a part of a prompt is shared


def check_decoder(decoder: str, compiled: bool) -> None:
    """Refuse what decodes nothing.

    Raises:
        ValueError: for an unknown decoder, or one that leaves nothing to compile.
    """
    if decoder not in DECODERS:
        near = suggest(decoder, DECODERS)
        raise ValueError(f"decoder={decoder!r} must be one of {', '.join(DECODERS)}{near}")
    if compiled and decoder == "model":
        raise ValueError(
            "compile=true compiles the short decode step, which decoder=model leaves out; "
            "leave one of them out"
        )


class Runner:
    """One model under one perturbation.

    Attributes:
        model: a causal LM in eval mode.
        perturbation: the noise; inactive means the plain model.
        blocks: its decoder blocks.
        list_name: the dotted name of their list, where it was given.
        embedding: float [vocab, dim], the table of token vectors.
        device, dtype: of that table.
        max_length: most input vectors a sample may have.
        exact: every pass has one shape.
        lean: the short decode step; None where the model's own forward decodes.
        own_attention: rows attend through `attention.rows_attention`.
        shares_prompts: a prompt's entries can be kept once for all rows that see it.
        attention_configs: where the model looks up its attention.
        keeps_logits: its forward computes the logits of chosen positions only.
        references: norms m.
        soft_prompts: random soft prompts.
        roots: site → what shapes noise of the law `covariance`.
        weights: noise on the model's weights, or None.
        scales: the attention modules whose logits have another scale; none for most perturbations.
        whole_model: a lock for the model's own forward, whose hooks all lanes share.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        perturbation: Perturbation,
        *,
        max_length: int = 2048,
        token_ids: Tensor | None = None,
        exact: bool = False,
        compiled: bool = False,
        blocks: str | None = None,
        decoder: str = "auto",
        states: CleanStates | None = None,
    ) -> None:
        """Look at the model; see `Sampler` for the arguments and errors."""
        check_decoder(decoder, compiled)
        self.model, self.perturbation, self.exact = model, perturbation, exact
        self.max_length = min(max_length, steady_positions(model) or max_length)
        if exact:
            check_exact(model)
        self.blocks = find_blocks(model, blocks)
        how = decoding(model, self.blocks)
        self.own_attention = how is Decoding.ROWS and attention.supported(model)
        self.lean = None
        self.weights = None
        if perturbation.weight_sigma:
            self.weights = WeightNoise(model, perturbation, blocks)
        self.scales = attention_scales(model, perturbation, blocks)
        inside = any(in_mlp(site) for site in perturbation.sites)  # which the short step can't do
        if self.own_attention and decoder != "model" and not inside:
            self.lean = Lean.of(
                model, compiled, in_c=decoder == "auto", packs=not exact, scales=self.scales
            )
        if compiled and self.lean is None:
            why = "the noise is within its blocks" if inside else obstacle(model)
            raise self._cannot_compile(why or "its attention is not served")
        self.shares_prompts = self.own_attention and attends_to_entries(model)
        self.attention_configs = attention.configs(model)
        for site in perturbation.sites:
            find_site(model, site, blocks)
        self.list_name = blocks
        self.embedding: Tensor = model.get_input_embeddings().weight  # type: ignore[operator]
        self.device, self.dtype = self.embedding.device, self.embedding.dtype
        self.references = References(model, perturbation, token_ids, blocks, states)
        shapes = roots_of(perturbation, states)
        self.roots = {site: root.to(self.device) for site, root in shapes.items()}
        self.soft_prompts = SoftPrompts(model, perturbation, token_ids)
        self._std: dict[int, dict[str, float]] = {}
        self.whole_model = threading.RLock()
        self.keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    def _cannot_compile(self, why: str) -> ValueError:
        name = type(self.model).__name__
        return ValueError(f"compile=true is not available for {name}: {why}; leave compile out")

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Within the context the short passes are laid out, if the model still allows them.

        `Sampler.run` enters it by itself; around several calls it spares the work of doing so each
        time.

        Raises:
            ValueError: they should be compiled and can't be run.
        """
        lean = self.lean
        if lean is None:
            yield
            return
        with lean.ready() as why:
            if why is not None and lean.compiled:
                raise self._cannot_compile(why)
            try:
                self.lean = lean if why is None else None
                yield
            finally:
                self.lean = lean

    @property
    def clean(self) -> Runner:
        """Within `ready`: the model with attention as it has it, for scores and norms."""
        if not self.scales:
            return self
        plain = copy.copy(self)
        plain.scales, plain.lean = [], None if self.lean is None else self.lean.clean
        return plain

    @property
    def in_c(self) -> bool:
        """Within `ready`: whether prompts are prefilled, and texts scored, by functions in C."""
        return self.lean is not None and self.lean.in_c

    def decoding(self, longest: int) -> Decoding:
        """How rows of up to `longest` positions are decoded: see `families.decoding`."""
        return decoding(self.model, self.blocks, None if self.own_attention else longest)

    def forward(
        self,
        ids: Tensor,
        cache: Cache,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        at: Sequence[int] | None = LAST,
    ) -> Tensor:
        """Logits of one pass of the model over new tokens.

        Args:
            ids: int64 [rows, pos].
            cache: gets the new entries.
            positions: int64 [rows, pos]; None means after what is in the cache.
            mask: additive 4-D mask; None means causal.
            at: the positions whose logits are wanted; None for all.

        Returns:
            [rows, as many positions, vocab].
        """
        if positions is None:
            start = cache.get_seq_length()
            positions = torch.arange(start, start + ids.shape[1], device=ids.device)
            positions = positions.expand(len(ids), -1)
        kept: dict[str, Any] = {}
        if at is not None and self.keeps_logits:
            wanted = 1 if at == LAST else torch.tensor(at, device=ids.device)
            kept["logits_to_keep"] = wanted
        with ExitStack() as stack:
            if self.scales:
                stack.enter_context(self.whole_model)
                stack.enter_context(tempered(self.scales))
            output = self.model(
                input_ids=ids,
                position_ids=positions,
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
                **kept,
            )
        logits: Tensor = output.logits
        return logits if at is None or kept else logits[:, list(at)]

    def perturbed(self, rows: Rows) -> AbstractContextManager[dict[str, Tensor]]:
        """See `inject.running`; all lanes share the model's hooks, so lock `whole_model`."""
        return running(self.model, self.perturbation, rows, self.list_name)

    def room(self, job: Job) -> int:
        """How many tokens the model's length leaves after a job's prompt; none if below 1."""
        return 0 if job.too_long else self.max_length - len(job.prompt_ids)

    def shared_len(self, job: Job) -> int:
        """How many vectors of a job's prompt its samples share; 0 for too few to make use of it."""
        length = len(job.prompt_ids)
        shared = perturb.shared_len(self.perturbation, length, job.soft_start)
        return shared if shared == length or shared >= LEAST_SHARED else 0

    def reference(self, job: Job, site: str) -> float | None:
        """The norm m that scales a site's noise on a job's prompt; None for absolute noise."""
        return self.references.norm(job.clean, site)

    def site_std(self, number: int, job: Job) -> dict[str, float]:
        """Site → per-coordinate standard deviation for a job, computed once a run."""
        if number not in self._std:
            with self.whole_model, threads(alone=True):
                self._std[number] = self.references.std(job.clean)
        return self._std[number]

    def begin(self) -> None:
        """Forget the jobs of the last run."""
        self._std = {}
        if self.perturbation.rsp:  # now: it runs the embedding, which lanes put hooks on
            _ = self.soft_prompts.fit

    def stds(self) -> dict[str, list[float]]:
        """Site → per-coordinate standard deviation of every job of the last run."""
        return {site: [std[site] for std in self._std.values()] for site in self.perturbation.sites}
