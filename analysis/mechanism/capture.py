"""What passes through a model: hidden states before and after the noise, attention, logits.

One teacher-forced pass over prompts and continuations with the noise of each row's key, so that a
stored sample's states are those that generated it (up to rounding; its last token, which generation
doesn't feed back, has one too). Nothing is kept: each tensor goes to the caller's reducer while the
pass runs, layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from lm_eval_embednoise.engine.jobs import Job
from lm_eval_embednoise.engine.room import PER_GATE, PER_VECTOR, SHARE, free_bytes
from lm_eval_embednoise.noise.inject import Rows, hooked, noise_keys
from lm_eval_embednoise.noise.perturbation import EMBED
from lm_eval_embednoise.noise.sites import parse_depth, site_order

if TYPE_CHECKING:
    from lm_eval_embednoise.engine.runner import Runner

PRE, POST, ATTENTION = "pre_noise", "post_noise", "attention"
Place = tuple[str, str]  # a site, and PRE, POST or ATTENTION there
Reduce = Callable[[Tensor], None]  # takes [rows, pos, dim], or [rows, heads, pos, pos] of ATTENTION
MOST_BYTES = 512 << 20  # of one pass, where more is free


@dataclass(frozen=True)
class Given:
    """A row of a pass: one sample of a job, and the token ids that follow its prompt."""

    job: Job
    sample: int
    ids: tuple[int, ...]

    @property
    def prompt_length(self) -> int:
        """Input vectors before the first of `ids`, with all that the perturbation adds."""
        return len(self.job.prompt_ids)

    @property
    def length(self) -> int:
        """All input vectors."""
        return self.prompt_length + len(self.ids)


def sites_of(blocks: Sized) -> tuple[str, ...]:
    """All sites of a model with these decoder blocks, in order: `embed`, `block.0`, …."""
    return (EMBED, *(f"block.{k}" for k in range(len(blocks))))


def parse_layers(text: str, blocks: Sized) -> tuple[str, ...]:
    """Sites named as `embed,1,5` or `all`, in order.

    Raises:
        ValueError: a name that is none, or a block that the model doesn't have.
    """
    known = sites_of(blocks)
    if text == "all":
        return known
    sites = {site for part in text.split(",") for site in parse_depth(part)}
    for site in sorted(sites, key=site_order):
        if site not in known:
            raise ValueError(
                f"--layers {text}: layer {site_order(site)} doesn't exist; the model has "
                f"{len(blocks)} blocks, so a layer is embed or 0 to {len(blocks) - 1}"
            )
    return tuple(sorted(sites, key=site_order))


@torch.no_grad()
def capture(
    runner: Runner,
    given: Sequence[Given],
    reduce: Mapping[Place, Reduce],
    at: Sequence[int] | None = None,
) -> Tensor | None:
    """Run one pass and give each tensor asked for to its reducer.

    Args:
        runner: the model under a perturbation; outside `Runner.ready`.
        given: the rows. Shorter ones are padded at their end: positions from a row's `length` on
            mean nothing.
        reduce: (site, PRE or POST) takes hidden states [rows, pos, dim] before and after the noise
            (equal at a site without); (`block.<k>`, ATTENTION) takes block k's weights
            [rows, heads, query, key]. Tensors are the model's own: reducers don't change them.
        at: positions whose logits are wanted, counted from 0 at a row's first input vector.

    Returns:
        Logits [rows, len(at), vocab]; None without `at`.

    Raises:
        ValueError: for attention that the model doesn't give.
    """
    width = max(row.length for row in given)
    padded = [[*row.job.prompt_ids, *row.ids, *[0] * (width - row.length)] for row in given]
    ids = torch.tensor(padded, device=runner.device)
    places: dict[str, dict[str, Reduce]] = {PRE: {}, POST: {}, ATTENTION: {}}
    for (site, moment), function in reduce.items():
        places[moment][site] = function
    with ExitStack() as stack, runner.whole_model:
        rows, blocks = rows_of(runner, given, width), runner.list_name  # no reducer sees its passes
        stack.enter_context(hooked(runner.model, *_seeing(places[PRE]), blocks))
        stack.enter_context(runner.perturbed(rows))
        stack.enter_context(hooked(runner.model, *_seeing(places[POST]), blocks))
        missing = stack.enter_context(_attention(runner, places[ATTENTION], tuple(ids.shape)))
        wanted = (-1,) if at is None else at
        logits = runner.forward(ids, DynamicCache(), at=wanted)
    if missing:
        raise _no_attention(runner, min(missing, key=site_order))
    return None if at is None else logits


def check_attention(runner: Runner) -> None:
    """Refuse a model whose blocks don't give their attention weights, by a pass of two tokens.

    Raises:
        ValueError: naming the model and the block.
    """

    def ignore(weights: Tensor) -> None:
        return None

    places = {(site, ATTENTION): ignore for site in sites_of(runner.blocks)[1:]}
    soft = runner.perturbation.rsp
    job = Job((0,) * (1 + soft), "", (0,), soft_start=0 if soft else None)
    capture(runner, [Given(job, 0, (0, 0))], places)


def batches(
    runner: Runner, given: Sequence[Given], *, attention: bool = False, logits: int = 0
) -> Iterator[Sequence[Given]]:
    """Rows in passes of as many as fit, in the order given.

    Args:
        runner: the model.
        given: the rows.
        attention: whether any pass gives attention weights.
        logits: at how many positions logits are wanted.

    Raises:
        ValueError: not even one row fits into the free memory.
    """
    longest = max((row.length for row in given), default=1)
    one = bytes_needed(runner, longest, attention=attention, logits=logits)
    room = int(SHARE["cuda" if runner.device.type == "cuda" else "cpu"] * free_bytes(runner))
    if one > room:
        raise ValueError(
            f"capturing {longest} positions{' with attention' if attention else ''} takes "
            f"{one / 2**20:,.0f} MB and {room / 2**20:,.0f} MB may be used: ask for shorter "
            "answers (--gen_kwargs max_gen_toks=…) or fewer layers"
        )
    rows = max(1, min(room, MOST_BYTES) // one)
    for start in range(0, len(given), rows):
        yield given[start : start + rows]


def bytes_needed(runner: Runner, length: int, *, attention: bool = False, logits: int = 0) -> int:
    """Most bytes that one row of a pass takes beside the model.

    Args:
        runner: the model.
        length: its positions.
        attention: with one layer's weights at a time, and their softmax in float32.
        logits: positions whose logits are wanted.
    """
    config = runner.model.config.get_text_config()  # type: ignore[operator, union-attr]
    size, hidden = runner.dtype.itemsize, config.hidden_size
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    entries = 2 * len(runner.blocks) * hidden * size
    row = length * (entries + PER_VECTOR * hidden + PER_GATE * inner * size)
    if attention:
        row += length * length * config.num_attention_heads * (3 * size + 8)
    kept = max(logits, 1) if runner.keeps_logits else length
    return int(row + kept * len(runner.embedding) * (size + 4))


def rows_of(runner: Runner, given: Sequence[Given], width: int) -> Rows:
    """What the noise of a pass of `width` positions depends on; padding has position −1."""
    pairs = [(row.job.problem, row.sample) for row in given]
    device, sites = runner.device, runner.perturbation.sites
    lengths = torch.tensor([row.length for row in given], device=device)
    positions = torch.arange(width, device=device).expand(len(given), -1)
    stds = [runner.references.std(row.job.clean) for row in given]
    starts = [row.job.soft_start for row in given]
    return Rows(
        keys=noise_keys(runner.perturbation, pairs, device),
        std={
            site: torch.tensor([std[site] for std in stds], dtype=torch.float64, device=device)
            for site in sites
        },
        prompt_length=torch.tensor([row.prompt_length for row in given], device=device),
        positions=positions.masked_fill(positions >= lengths[:, None], -1),
        soft=runner.soft_prompts.vectors(pairs),
        soft_start=torch.tensor(starts, device=device) if None not in starts else None,
    )


def _seeing(reduce: Mapping[str, Reduce]) -> tuple[tuple[str, ...], Any]:
    """Sites, and what `hooked` calls there: hidden states are shown and stay what they are."""

    def act(site: str, hidden: Tensor) -> Tensor:
        reduce[site](hidden)
        return hidden

    return tuple(reduce), act


@contextmanager
def eager(runner: Runner) -> Iterator[None]:
    """Within the context the model's attention is transformers' eager one, which has weights."""
    before = [config._attn_implementation_internal for config in runner.attention_configs]
    try:
        for config in runner.attention_configs:
            config._attn_implementation_internal = "eager"
        yield
    finally:
        for config, implementation in zip(runner.attention_configs, before, strict=True):
            config._attn_implementation_internal = implementation


@contextmanager
def _attention(
    runner: Runner, reduce: Mapping[str, Reduce], shape: tuple[int, ...]
) -> Iterator[set[str]]:
    """Show attention weights to reducers; yields the blocks whose weights haven't come."""
    missing = set(reduce)
    if not reduce:
        yield missing
        return

    def hook(site: str) -> Any:
        def look(module: nn.Module, args: Any, output: Any) -> None:
            weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
            if site in missing and isinstance(weights, Tensor) and _square(weights, shape):
                missing.discard(site)
                reduce[site](weights)

        return look

    with ExitStack() as stack:
        stack.enter_context(eager(runner))
        for site in reduce:
            for module in runner.blocks[site_order(site)].modules():
                stack.callback(module.register_forward_hook(hook(site)).remove)
        yield missing


def _square(weights: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is [rows, heads, pos, pos] for these (rows, pos)."""
    rows, pos = shape
    return weights.ndim == 4 and (len(weights), *weights.shape[2:]) == (rows, pos, pos)


def _no_attention(runner: Runner, site: str) -> ValueError:
    return ValueError(
        f"{type(runner.model).__name__} gives no attention weights (looked for at {site}), so the "
        "probe attention can't be run on it; geometry and trajectories can"
    )
