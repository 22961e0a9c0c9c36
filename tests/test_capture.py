"""The capture layer against slow passes: one row at a time, no padding, noise added by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lm_eval_embednoise.analysis.mechanism import capture as layer
from lm_eval_embednoise.analysis.mechanism.capture import ATTENTION, POST, PRE, Given, capture
from lm_eval_embednoise.engine.jobs import Job
from lm_eval_embednoise.engine.runner import Runner
from lm_eval_embednoise.noise import perturb, streams
from lm_eval_embednoise.noise.perturbation import Perturbation
from tests.support.families import BLOCKS, tiny

PLAIN = Job((5, 9, 2, 7), "p", (0, 1, 2))
SOFT = Job((5, 0, 0, 9, 2), "q", (0, 1), clean_ids=(5, 9, 2), soft_start=1)
CASES = {
    "clean": (Perturbation(), PLAIN),
    "prompt": (Perturbation(sigma=0.5), PLAIN),
    "sites": (Perturbation(depth={"embed": 0.3, "1": 0.4}, positions="all"), PLAIN),
    "soft": (Perturbation(rsp=2), SOFT),
}


def runner_of(family: str, perturbation: Perturbation) -> Runner:
    return Runner(tiny(family), perturbation, decoder="model")


def keep(seen: dict[Any, torch.Tensor], name: Any) -> Any:
    return lambda tensor: seen.__setitem__(name, tensor.clone())


def alone(runner: Runner, row: Given) -> tuple[torch.Tensor, ...]:
    """Embedding, hidden states (transformers' own) and logits, ε added by hand at the embedding."""
    p, model = runner.perturbation, runner.model
    ids = torch.tensor([[*row.job.prompt_ids, *row.ids]])
    embedded = model.get_input_embeddings()(ids)
    positions = torch.arange(ids.shape[1])[None]
    if p.rsp:
        soft = runner.soft_prompts.vectors([(row.job.problem, row.sample)])[0]
        start = row.job.soft_start
        embedded = torch.cat([embedded[:, :start], soft[None], embedded[:, start + p.rsp :]], 1)
    if "embed" in p.sites:
        key = streams.stream_key(p.seed, row.job.problem, row.sample, "noise", "embed")
        z = streams.normal(streams.key_words([key]), positions, embedded.shape[-1])
        inside = perturb.weights(p, positions, torch.tensor([row.prompt_length]))
        embedded = embedded + runner.references.std(row.job.clean)["embed"] * inside[..., None] * z
    return embedded.float()[0], model(inputs_embeds=embedded.float(), use_cache=False).logits[0]


@pytest.mark.parametrize("case", ["clean", "prompt", "soft"])
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "qwen3"])
def test_rows_of_unlike_length_are_as_alone(family: str, case: str) -> None:
    perturbation, job = CASES[case]
    runner = runner_of(family, perturbation)
    given = [Given(job, 0, (3, 4, 8, 8, 1)), Given(job, 1, (6,)), Given(job, 0, ())]
    seen: dict[Any, torch.Tensor] = {}
    places = {("embed", POST): keep(seen, "embed")}
    last = [row.length - 1 for row in given]
    logits = capture(runner, given, places, at=sorted(set(last)))
    assert logits is not None and logits.shape[:2] == (3, 3)
    with torch.no_grad():
        for number, row in enumerate(given):
            embedded, wanted = alone(runner, row)
            torch.testing.assert_close(seen["embed"][number, : row.length], embedded)
            at = sorted(set(last)).index(row.length - 1)
            torch.testing.assert_close(logits[number, at], wanted[-1], atol=2e-4, rtol=1e-4)


def test_before_and_after_the_noise_differ_by_it() -> None:
    perturbation, job = CASES["sites"]
    runner = runner_of("llama", perturbation)
    seen: dict[Any, torch.Tensor] = {}
    places = {
        (site, moment): keep(seen, (site, moment))
        for site in layer.sites_of(runner.blocks)
        for moment in (PRE, POST)
    }
    capture(runner, [Given(job, 2, (1, 2))], places)
    for site in layer.sites_of(runner.blocks):
        moved = (seen[site, POST] - seen[site, PRE]).std(-1)
        if site not in perturbation.sites:
            assert (moved == 0).all()
            continue
        key = streams.stream_key(0, "p", 2, "noise", site)
        z = streams.normal(streams.key_words([key]), torch.arange(6)[None], 32)
        wanted = runner.references.std(job.clean)[site] * z
        torch.testing.assert_close(seen[site, POST] - seen[site, PRE], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "gpt_neox"])
def test_eager_weights_are_attention_and_change_nothing(family: str) -> None:
    runner = runner_of(family, CASES["prompt"][0])
    given = [Given(PLAIN, 0, (3, 4, 8)), Given(PLAIN, 1, (6,))]
    plain: Any = {}
    eager: Any = {}
    weights: Any = {}
    sites = layer.sites_of(runner.blocks)
    capture(
        runner, given, {(s, POST): lambda t, s=s: plain.__setitem__(s, t.clone()) for s in sites}
    )
    both = {(s, POST): keep(eager, s) for s in sites}
    both |= {(s, ATTENTION): keep(weights, s) for s in sites[1:]}
    before = [c._attn_implementation_internal for c in runner.attention_configs]
    capture(runner, given, both)
    assert before == [c._attn_implementation_internal for c in runner.attention_configs]
    assert len(weights) == BLOCKS
    for site in sites:
        for row, length in enumerate((7, 5)):
            torch.testing.assert_close(
                eager[site][row, :length], plain[site][row, :length], atol=1e-4, rtol=1e-4
            )
    for found in weights.values():
        torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:3]))
        assert (found.triu(1) == 0).all()


def test_hooks_leave_with_an_error() -> None:
    runner = runner_of("llama", CASES["prompt"][0])

    def fail(_: torch.Tensor) -> None:
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        capture(runner, [Given(PLAIN, 0, (1,))], {("block.1", POST): fail})
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in runner.model.modules())


def test_what_cannot_be_captured_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = runner_of("llama", Perturbation())
    with pytest.raises(ValueError, match=r"layer 7 doesn't exist; the model has 3 blocks.* 0 to 2"):
        layer.parse_layers("embed,7", runner.blocks)
    assert layer.parse_layers("2,embed", runner.blocks) == ("embed", "block.2")
    assert layer.parse_layers("all", runner.blocks) == layer.sites_of(runner.blocks)
    layer.check_attention(runner)
    monkeypatch.setattr(layer, "_square", lambda *_: False)
    with pytest.raises(ValueError, match=r"LlamaForCausalLM gives no attention weights .*block.0"):
        layer.check_attention(runner)
    monkeypatch.setattr(layer, "free_bytes", lambda _: 1000)
    with pytest.raises(ValueError, match=r"capturing 6 positions with attention takes .* MB"):
        next(layer.batches(runner, [Given(PLAIN, 0, (1, 2))], attention=True))


def test_batches_are_bounded_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = runner_of("llama", Perturbation())
    given = [Given(PLAIN, index, (1, 2)) for index in range(7)]
    monkeypatch.setattr(layer, "MOST_BYTES", 3 * layer.bytes_needed(runner, 6) + 1)
    found = list(layer.batches(runner, given))
    assert [len(part) for part in found] == [3, 3, 1]
    assert [row for part in found for row in part] == given


def test_reducers_see_the_pass_alone() -> None:
    """Not those that measure the norm which scales the noise."""
    for perturbation in (Perturbation(sigma=0.5), Perturbation(sigma=0.5, depth=1)):
        seen: list[torch.Tensor] = []
        runner = runner_of("llama", perturbation)
        places = {(site, PRE): seen.append for site in layer.sites_of(runner.blocks)}
        capture(runner, [Given(PLAIN, 0, (1, 2))], places)
        assert [tuple(tensor.shape) for tensor in seen] == [(1, 6, 32)] * (BLOCKS + 1)
