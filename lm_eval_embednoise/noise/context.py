"""Noise for code that drives a Hugging Face model itself: `with perturbed(model, …): generate(…)`.

A hook on the module that runs the blocks reads ids, mask and cache of every pass. They say which
rows are running, where their prompts end and which positions are new. Generation itself stays
transformers'. docs/library.md has worked examples.
"""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from lm_eval_embednoise.noise import streams
from lm_eval_embednoise.noise.clean_states import roots_of
from lm_eval_embednoise.noise.inject import (
    Rows,
    add_noise,
    find_site,
    hooked,
    mean_ratio,
    noise_keys,
)
from lm_eval_embednoise.noise.model_parts import find_blocks, find_owner
from lm_eval_embednoise.noise.reference import References
from lm_eval_embednoise.noise.temper import attention_scales, tempered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lm_eval_embednoise.noise.clean_states import CleanStates
    from lm_eval_embednoise.noise.perturbation import Perturbation

Key = tuple[str, int]  # a problem's name and a sample index


class Keys(Protocol):
    """Names the rows of a batch of prompts."""

    def __call__(self, prompts: list[tuple[int, ...]]) -> Sequence[Key]:
        """One (problem, sample) pair for each row's real prompt ids."""


class ByPrompt:
    """Keys made from the prompts: rows with one prompt are samples 0, 1, 2, … of one problem.

    Counting goes on over calls, so a loop that asks for the samples of a problem a few at a time
    gets new ones each time. The problem's name is the one that `hf-embednoise` uses for a task.
    """

    def __init__(self, task: str | None = None, first: int = 0, stride: int = 1) -> None:
        """Start counting.

        Args:
            task: name of the task, part of the problem's name.
            first: index of a prompt's first sample.
            stride: what the index grows by. Where several processes share the samples of a
                problem, `first` is a process's rank and `stride` their number.

        Raises:
            ValueError: for a negative `first` or a `stride` below 1.
        """
        if first < 0 or stride < 1:
            raise ValueError(f"first={first}, stride={stride}: allowed are first ≥ 0, stride ≥ 1")
        self.task, self.first, self.stride = task, first, stride
        self._seen: Counter[str] = Counter()

    def __call__(self, prompts: list[tuple[int, ...]]) -> list[Key]:
        """The next (problem, sample) pair for each prompt."""
        keys = []
        for prompt in prompts:
            problem = streams.problem_id(self.task, prompt)
            keys.append((problem, self.first + self.stride * self._seen[problem]))
            self._seen[problem] += 1
        return keys


@contextmanager
def perturbed(
    model: nn.Module,
    perturbation: Perturbation,
    keys: Sequence[Key] | Keys | None = None,
    *,
    token_ids: Tensor | None = None,
    blocks: str | None = None,
    states: CleanStates | None = None,
) -> Iterator[PerturbedModel]:
    """Within the context, every pass of the model is perturbed; afterwards nothing remains.

    `model.generate` works as ever: left padding, num_return_sequences, any sampling settings. Row i
    of the batch that the model sees (after num_return_sequences has multiplied it) takes keys[i],
    and equal keys get equal noise, in this sampler and in `hf-embednoise`'s.

    Args:
        model: a causal LM; wrappers around one (peft, data parallel) are fine.
        perturbation: the noise.
        keys: for each row a (problem, sample) pair, used anew by every prompt batch within the
            context; or what makes them from the prompts; `ByPrompt()` by default.
        token_ids: int64, tokens the `table` reference averages over; all by default.
        blocks: dotted name of the list of decoder blocks, for a model where it isn't found.
        states: the clean model's, for `sigma_reference=decode` and `noise_law=covariance`.

    Yields:
        What is known about the rows: their `keys`, and the measured `rho`.

    Raises:
        ValueError: for a model, a depth or a key that can't be served; while generating, for a
            batch of another size than keys, beam search and other ways of generating in which rows
            don't stay what they were, and masks that aren't [rows, positions].
    """
    state = PerturbedModel(model, perturbation, keys, token_ids, blocks, states)
    if not perturbation.active:
        yield state
        return
    with ExitStack() as stack:
        stack.enter_context(tempered(state.scales))
        stack.enter_context(hooked(model, tuple(perturbation.sites), state._add, blocks))
        owner = find_owner(model, find_blocks(model, blocks))
        read = functools.partial(state._enter, inspect.signature(owner.forward))
        stack.callback(owner.register_forward_pre_hook(read, with_kwargs=True).remove)
        for module in model.modules():
            if callable(getattr(type(module), "generate", None)):
                stack.enter_context(_wrapped_generate(module, state))
        yield state


class PerturbedModel:
    """The rows that a perturbed model is running.

    Attributes:
        scales: the attention modules whose logits have another scale within the context.
        keys: the (problem, sample) pairs of the latest batch of prompts, in the order of its rows.
        rho: site → measured ‖ε‖/‖h‖, mean over all perturbed positions within the context.
    """

    def __init__(
        self,
        model: nn.Module,
        perturbation: Perturbation,
        keys: Sequence[Key] | Keys | None,
        token_ids: Tensor | None,
        blocks: str | None,
        states: CleanStates | None = None,
    ) -> None:
        added = {
            "positions": f"dummy:{perturbation.where.dummies}" if perturbation.where.dummies else 0,
            "rsp": perturbation.rsp,
            "prefix": perturbation.prefix,
        }
        for name, value in added.items():
            if value:
                raise ValueError(
                    f"perturbed(): {name}={value!r} adds vectors to the prompt, which only "
                    "hf-embednoise does; perturbed() takes prompts as they are"
                )
        if perturbation.weight_sigma:
            raise ValueError(
                f"perturbed(): weight_sigma={perturbation.weight_sigma:g} needs a pass for each "
                "sample index, and rows of a batch share their weights; use hf-embednoise"
            )
        for site in perturbation.sites:
            find_site(model, site, blocks)
        self.perturbation = perturbation
        self.keys: list[Key] = []
        self._name: Keys | list[Key]
        self._name = ByPrompt() if keys is None else keys if callable(keys) else _checked(keys)
        self.scales = attention_scales(model, perturbation, blocks)
        self._references = References(model, perturbation, token_ids, blocks, states)
        self._roots = roots_of(perturbation, states)
        self._std: dict[tuple[int, ...], dict[str, float]] = {}
        self._rows: Rows | None = None  # of the passes to come
        self._sums = {site: torch.zeros(2, dtype=torch.float64) for site in perturbation.sites}
        self._generating = 0  # depth of calls of generate
        self._expects_prompt = False
        self._measuring = False

    @property
    def rho(self) -> dict[str, float]:
        """Site → measured ‖ε‖/‖h‖, mean over all perturbed positions so far."""
        return mean_ratio({site: sums[None] for site, sums in self._sums.items()}, 0)

    def _enter(
        self, signature: inspect.Signature, module: nn.Module, args: Any, kwargs: Any
    ) -> None:
        """Read a pass's arguments before it runs."""
        if self._measuring:
            return
        given = signature.bind(*args, **kwargs).arguments
        given.update(given.pop("kwargs", {}))
        ids, mask, cache = (
            given.get(n) for n in ("input_ids", "attention_mask", "past_key_values")
        )
        if ids is None:
            raise ValueError("perturbed() names rows by their token ids; inputs_embeds has none")
        past = cache.get_seq_length() if cache is not None else 0
        if mask is None:
            mask = torch.ones(len(ids), past + ids.shape[1], dtype=torch.bool, device=ids.device)
        if not isinstance(mask, Tensor) or mask.ndim != 2:
            raise ValueError(
                "perturbed() counts positions by a mask of [rows, positions]; this pass has "
                "another, as compiled and static caches make them: use the default cache"
            )
        real = mask.bool()
        if self._expects_prompt or (not self._generating and not past):
            if past:
                raise ValueError("perturbed() can't continue a cache filled outside of it")
            self._begin(ids, real)
            self._expects_prompt = False
        assert self._rows is not None
        if len(ids) != len(self.keys):
            raise ValueError(
                f"this pass has {len(ids)} rows and its prompt had {len(self.keys)}; perturbed() "
                "needs rows that stay what they are"
            )
        positions = (real.long().cumsum(dim=1) - 1).masked_fill(~real, -1)
        self._rows.positions = positions[:, -ids.shape[1] :]

    def _begin(self, ids: Tensor, real: Tensor) -> None:
        """Name the rows of a new batch of prompts, and measure what scales their noise."""
        prompts = [tuple(row[seen].tolist()) for row, seen in zip(ids, real, strict=True)]
        keys = _checked(self._name(prompts)) if callable(self._name) else self._name
        if len(keys) != len(prompts):
            raise ValueError(
                f"{len(keys)} keys for a batch of {len(prompts)} rows; perturbed() takes one "
                "(problem, sample) pair for each row that the model sees, so "
                "num_return_sequences=n needs n for each prompt, in order"
            )
        self._measuring = True
        try:
            with tempered(self.scales, on=False):
                for prompt in set(prompts) - self._std.keys():
                    self._std[prompt] = self._references.std(prompt)
        finally:
            self._measuring = False
        self.keys = list(keys)
        std = {
            site: torch.tensor(
                [self._std[prompt][site] for prompt in prompts], dtype=torch.float64
            ).to(ids.device)
            for site in self.perturbation.sites
        }
        names = noise_keys(self.perturbation, self.keys, ids.device)
        self._rows = Rows(names, std, real.sum(dim=1), roots=self._roots)

    def _add(self, site: str, hidden: Tensor) -> Tensor:
        """The noise of the present rows at a site; `hooked` calls it."""
        if self._measuring:
            return hidden
        assert self._rows is not None
        noisy, measured = add_noise(self.perturbation, self._rows, site, hidden)
        self._sums[site] = self._sums[site].to(measured.device) + measured.sum(dim=0)
        return noisy


# Arguments of generate under which rows don't stay what they were, and their harmless values.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "assistant_model": (None,),
    "prompt_lookup_num_tokens": (None,),
    "penalty_alpha": (None, 0, 0.0),
    "guidance_scale": (None, 1, 1.0),
    "prefill_chunk_size": (None,),
    "inputs_embeds": (None,),
}


@contextmanager
def _wrapped_generate(module: nn.Module, state: PerturbedModel) -> Iterator[None]:
    """Notify `state` when a call of `module.generate` begins, and refuse what it can't serve."""
    original: Callable[..., Any] = module.generate  # type: ignore[assignment]
    own = module.__dict__.get("generate")

    @functools.wraps(original)
    def generate(*args: Any, **kwargs: Any) -> Any:
        config = kwargs.get("generation_config") or getattr(module, "generation_config", None)
        for name, allowed in _REFUSED.items():
            value = kwargs.get(name, getattr(config, name, None))
            if value not in allowed:
                shown = f"={value!r}" if isinstance(value, int | float | str) else ""
                raise ValueError(
                    f"generate: {name}{shown} is not supported within perturbed(); each row "
                    "must be one sample from beginning to end: greedy decoding or sampling"
                )
        state._generating += 1
        state._expects_prompt = True
        try:
            return original(*args, **kwargs)
        finally:
            state._generating -= 1
            state._expects_prompt = False

    module.__dict__["generate"] = generate
    try:
        yield
    finally:
        if own is None:
            del module.__dict__["generate"]
        else:
            module.__dict__["generate"] = own


def _checked(keys: Sequence[Key]) -> list[Key]:
    """The keys as (str, int) pairs.

    Raises:
        ValueError: naming the first that isn't one.
    """
    for key in keys:
        pair = isinstance(key, tuple | list) and len(key) == 2
        if not pair or not isinstance(key[0], str) or not isinstance(key[1], int) or key[1] < 0:
            raise ValueError(
                f"keys: {key!r} is not allowed; a key is a (problem, sample) pair of a name and a "
                "whole number ≥ 0, such as ('HumanEval/0', 3)"
            )
    return [(str(problem), int(sample)) for problem, sample in keys]
