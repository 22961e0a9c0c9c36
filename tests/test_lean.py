"""The short decode step against the model's own forward, and batches in several threads."""

from __future__ import annotations

import shutil
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from lm_eval_embednoise.engine import lean as engine_lean
from lm_eval_embednoise.engine.attention import Shared
from lm_eval_embednoise.engine.jobs import Job, Stop
from lm_eval_embednoise.engine.lanes import run_lanes
from lm_eval_embednoise.engine.lean import Lean
from lm_eval_embednoise.engine.sampler import Sampler
from lm_eval_embednoise.engine.sampling import Sampling
from lm_eval_embednoise.engine.slots import SlotCache, entries
from lm_eval_embednoise.kernels import build
from lm_eval_embednoise.noise.inject import hooked
from lm_eval_embednoise.noise.model_parts import find_embedding
from lm_eval_embednoise.noise.perturbation import Perturbation
from tests.support.families import tiny
from tests.test_sampler import METHODS, jobs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from transformers import PreTrainedModel


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
@torch.no_grad()
def test_the_lean_step_is_the_models_own(family: str) -> None:
    model = tiny(family)
    lean = Lean.of(model)
    assert lean is not None
    prompts = torch.tensor([[5, 17, 3, 60, 61, 62, 63, 64], [9, 9, 2, 8, 30, 31, 7, 4]])
    cache, prefilled = SlotCache(3, 2, 20), DynamicCache()
    model(input_ids=prompts, past_key_values=prefilled)
    cache.fill(torch.arange(2), entries(prefilled))
    ids = prompts
    for new in range(3):  # with the windows of tiny models, beyond them
        token = torch.tensor([[40 + new], [50 + new]])
        ids = torch.cat([ids, token], dim=1)
        column = torch.full((2,), 8 + new)
        cache.write_at(column, 9 + new, even=True)
        with lean.ready():
            got = lean.step(token, cache, column[:, None])
        expected = model(input_ids=ids).logits[:, -1:]
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(build.library("step") is None, reason="nothing compiled here")
@pytest.mark.parametrize("threads", [1, 3])
@torch.no_grad()
def test_a_prefill_in_c_is_the_models_own(wide_qwen2: PreTrainedModel, threads: int) -> None:
    """Prompts of two lengths in slots of any order; what is done at sites reaches all behind."""
    torch.manual_seed(0)
    ids, slots, at = torch.randint(0, 97, (3, 21)), torch.tensor([4, 0, 3]), [20, 6, 20]
    moved = {"embed": torch.randn(3, 21, 64), "block.1": torch.randn(3, 21, 64)}
    lean, cache, prefilled = Lean.of(wide_qwen2), SlotCache(3, 5, 30), DynamicCache()
    assert lean is not None
    torch.set_num_threads(threads)  # attention is dealt to as many
    with lean.ready():
        assert lean.in_c
        got = lean.prefill(
            ids, cache, slots, torch.tensor(at), None, lambda site, x: x + moved[site],
            moved.keys(), lambda x: 2 * x,
        )  # fmt: skip
    torch.set_num_threads(1)
    with ExitStack() as stack:
        double = find_embedding(wide_qwen2).register_forward_hook(lambda module, args, x: 2 * x)
        stack.callback(double.remove)
        stack.enter_context(hooked(wide_qwen2, tuple(moved), lambda site, x: x + moved[site]))
        expected = wide_qwen2(input_ids=ids, past_key_values=prefilled).logits
    assert torch.allclose(got, expected[torch.arange(3), at], rtol=1e-4, atol=1e-4)
    for mine, others in zip(entries(cache), entries(prefilled), strict=True):
        for held, new in zip(mine, others, strict=True):
            assert torch.allclose(held[slots, :, :21], new, rtol=1e-4, atol=1e-4)
            assert not held[:, :, 21:].any()
            assert not held[1:3].any()


@pytest.mark.skipif(build.library("step") is None, reason="nothing compiled here")
@pytest.mark.parametrize("sites", [[], ["embed"], ["block.0"], ["block.1", "block.2"], ["block.2"]])
@pytest.mark.parametrize("behind", [0, 5])
@torch.no_grad()
def test_rows_of_one_prompt_run_apart_from_where_they_differ(
    sites: list[str], behind: int, wide_qwen2: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a part that was shared, too; each block is run for one row or for all."""
    torch.manual_seed(0)
    ids, slots = torch.randint(0, 97, (1, behind + 9)), torch.tensor([4, 0, 3, 0])
    moved = {site: torch.randn(4, 9, 64) for site in sites}
    for of in moved.values():
        of[3] = of[1]  # in one slot
    lean, cache = Lean.of(wide_qwen2), SlotCache(3, 5, 30)
    first, prefilled = DynamicCache(), DynamicCache()
    assert lean is not None
    shared = None
    if behind:
        wide_qwen2(input_ids=ids[:, :behind], past_key_values=first)
        shared = [Shared(*layer) for layer in entries(first)]
    widths: list[int] = []
    own = engine_lean._behind_in_c

    def counted(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        widths.append(len(x) // 9)
        return own(x, *rest)

    with lean.ready():
        monkeypatch.setattr(engine_lean, "_behind_in_c", counted)
        got = lean.prefill(
            ids[:, behind:], cache, slots, torch.full((4,), 8), shared,
            lambda site, x: x + moved[site], moved.keys(),
        )  # fmt: skip
    parts = {"embed": 0, "block.0": 1, "block.1": 2}.get(sites[0], 3) if sites else 3
    assert widths == [1] * parts + [4] * (3 - parts)
    spread = {site: torch.cat([torch.zeros(4, behind, 64), of], 1) for site, of in moved.items()}
    with hooked(wide_qwen2, tuple(moved), lambda site, x: x + spread[site]):
        expected = wide_qwen2(input_ids=ids.expand(4, -1), past_key_values=prefilled).logits[:, -1]
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4)
    for mine, others in zip(entries(cache), entries(prefilled), strict=True):
        for held, new in zip(mine, others, strict=True):
            assert torch.allclose(held[slots, :, :9], new[:, :, behind:], rtol=1e-4, atol=1e-4)
            assert not held[:, :, 9:].any()
            assert not held[1:3].any()


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning:torch")
def test_the_compiled_step_gives_the_same_samples(qwen2: PreTrainedModel) -> None:
    """Rows of two prompts that leave at different steps, with noise on what is generated."""
    noise = Perturbation(sigma=0.2, depth="embed+1", positions="generated")
    found = []
    for compiled in (False, True):
        sampler = Sampler(
            qwen2, noise, Sampling(temperature=1.0, max_gen_toks=12), Stop(frozenset({40})),
            batch_size=7, compiled=compiled,
        )  # fmt: skip
        assert sampler.runner.lean is not None
        assert sampler.runner.lean.compiled == compiled
        found.append({(s.job, s.index): s.ids for s in sampler.run(jobs(tuple(range(5))))})
    assert found[0] == found[1]
    with pytest.raises(ValueError, match="compile=true is not available for GPT2LMHeadModel"):
        Sampler(tiny("gpt2"), noise, Sampling(max_gen_toks=2), compiled=True)


def test_a_decoder_that_is_none_or_leaves_nothing_to_compile(qwen2: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="decoder='torhc' must be one of auto, torch, model"):
        Sampler(qwen2, Perturbation(), Sampling(), decoder="torhc")
    with pytest.raises(ValueError, match=r"compile=true .* decoder=model"):
        Sampler(qwen2, Perturbation(), Sampling(), decoder="model", compiled=True)


def test_only_the_plain_architecture_is_served(qwen2: PreTrainedModel) -> None:
    assert Lean.of(tiny("gemma")) is None
    assert Lean.of(tiny("gpt2")) is None
    assert Lean.of(qwen2) is not None
    handle = qwen2.model.layers[1].mlp.register_forward_hook(lambda *args: None)
    assert Lean.of(qwen2) is None  # somebody watches the modules: they must be called
    handle.remove()
    assert Lean.of(qwen2) is not None


@pytest.mark.parametrize("method", METHODS)
def test_lanes_change_no_sample(
    either: PreTrainedModel, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> dict[tuple[int, int], list[int]]:
        sampler = Sampler(either, *METHODS[method], Stop(frozenset({40})), batch_size=6)
        return {(s.job, s.index): s.ids for s in sampler.run(jobs())}

    before = torch.get_num_threads()
    alone = run()
    seen = set()
    original = Sampler._decode

    def noting(self: Sampler, *args: object) -> Iterator[object]:
        seen.add(threading.get_ident())
        return original(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr("lm_eval_embednoise.engine.sampler.LANE_ROWS", 2)
    monkeypatch.setattr(Sampler, "_decode", noting)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert run() == alone
    assert len(seen) == (2 if method == "greedy" else 3)  # greedy: five rows, work done once
    monkeypatch.undo()
    torch.set_num_threads(before)


def test_a_lane_that_fails_ends_the_others() -> None:
    ended = threading.Event()

    def good(stopped: Callable[[], bool]) -> Iterator[int]:
        yield 1
        while not stopped():  # at work, with nothing to show yet
            pass
        ended.set()

    def bad(stopped: Callable[[], bool]) -> Iterator[int]:
        yield 2
        raise ValueError("lane failed")

    with pytest.raises(ValueError, match="lane failed"):
        for _ in run_lanes([good, bad]):
            pass
    assert ended.wait(5)
    ended.clear()
    items = run_lanes([good, good])
    assert next(items) == 1
    items.close()
    assert ended.wait(5)


def test_noise_at_a_block_reaches_the_lean_step(qwen2: PreTrainedModel) -> None:
    """Measured ρ is the same with the model's own forward."""
    p = Perturbation(sigma=0.5, depth="embed+1", positions="generated")
    found = []
    for decoder in ("torch", "model"):
        sampler = Sampler(qwen2, p, Sampling(max_gen_toks=6), batch_size=4, decoder=decoder)
        found.append([(s.ids, s.rho) for s in sampler.run([Job((5, 17, 3), "p", (0, 1))])])
    for (ids, rho), (other_ids, other_rho) in zip(*found, strict=True):
        assert ids == other_ids
        assert rho == pytest.approx(other_rho, rel=1e-4)
