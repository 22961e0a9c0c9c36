"""Models that only look like Llama run their own forward, and every model keeps its weights."""

from __future__ import annotations

import copy
import logging
import types
import warnings
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.qwen2 import modeling_qwen2

from lm_eval_embednoise.engine.jobs import Job
from lm_eval_embednoise.engine.lean import Lean
from lm_eval_embednoise.engine.lean_checks import obstacle
from lm_eval_embednoise.engine.sampler import Sampler
from lm_eval_embednoise.engine.sampling import Sampling
from lm_eval_embednoise.engine.weights import SideBySide
from lm_eval_embednoise.noise.perturbation import Perturbation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROMPT = (5, 17, 3, 60)
NEW = 8


@pytest.fixture
def model(wide_qwen2: PreTrainedModel) -> PreTrainedModel:
    return copy.deepcopy(wide_qwen2)


@torch.no_grad()
def greedy(model: Any) -> list[int]:
    """By whole passes of the model's own forward, without a cache."""
    ids = list(PROMPT)
    for _ in range(NEW):
        ids.append(
            int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        )
    return ids[len(PROMPT) :]


def sampled(sampler: Sampler) -> list[int]:
    (sample,) = sampler.run([Job(PROMPT, "p", (0,))])
    return sample.ids


def plain(model: Any) -> Sampler:
    return Sampler(model, Perturbation(), Sampling(max_gen_toks=NEW))


def wake(model: nn.Module) -> None:
    """Adapters begin as nothing: give them something to do."""
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_" in name or "trainable_tokens" in name:
            nn.init.normal_(weight, std=0.5)


def lora(*targets: str) -> Callable[[Any], str]:
    def adapt(model: Any) -> str:
        config = peft.LoraConfig(
            target_modules=list(targets), task_type="CAUSAL_LM", init_lora_weights=False
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft reads what transformers renames
            peft.get_peft_model(model, config)
        wake(model)
        return targets[0]

    return adapt


def trained_tokens(model: Any) -> str:
    config = peft.LoraConfig(
        target_modules=["o_proj"], trainable_token_indices=[3, 5, 60], task_type="CAUSAL_LM"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.get_peft_model(model, config)
    wake(model)
    return "embed_tokens"


class Capped(nn.Linear):
    """A head with soft-capped logits of alternating sign."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return torch.tanh(logits / 5) * torch.arange(logits.shape[-1]).remainder(2).mul(2).sub(1)


class Scaled(nn.Embedding):
    def forward(self, ids: Tensor) -> Tensor:
        return 3 * super().forward(ids).flip(-1)


class Shifted(modeling_qwen2.Qwen2RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flip(-1)


def head(model: Any) -> str:
    model.lm_head.__class__ = Capped
    return "lm_head"


def embedding(model: Any) -> str:
    model.model.embed_tokens.__class__ = Scaled
    return "model.embed_tokens"


def norm(model: Any) -> str:
    model.model.layers[1].input_layernorm.__class__ = Shifted
    return "model.layers.1.input_layernorm"


def layer_norm(model: Any) -> str:
    model.model.norm = nn.LayerNorm(model.config.hidden_size)
    nn.init.normal_(model.model.norm.bias)
    return "model.norm"


def own_forward(model: Any) -> str:
    original = model.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        output.logits = -output.logits
        return output

    model.forward = types.MethodType(forward, model)
    return "the model"


def own_mlp(model: Any) -> str:
    mlp = model.model.layers[2].mlp
    original = mlp.forward
    mlp.forward = lambda x: -3 * original(x)
    return "model.layers.2.mlp"


def parametrized(model: Any) -> str:
    class Doubled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return -2 * weight

    down = model.model.layers[0].mlp.down_proj
    nn.utils.parametrize.register_parametrization(down, "weight", Doubled())
    return "model.layers.0.mlp.down_proj"


def hook(model: Any) -> str:
    model.model.layers[1].self_attn.register_forward_hook(lambda m, a, out: (-out[0], *out[1:]))
    return "model.layers.1.self_attn"


def renormalised(model: Any) -> str:
    model.model.embed_tokens.max_norm = 0.5
    return "model.embed_tokens"


def extra_module(model: Any) -> str:
    model.model.layers[0].adapter = nn.Linear(4, 4)
    model.model.layers[0].mlp.forward = lambda x: torch.zeros_like(x)
    return "model.layers.0"


CHANGES = {
    "LoRA on the head": lora("lm_head"),
    "LoRA on the embedding": lora("embed_tokens"),
    "LoRA on a projection": lora("o_proj"),
    "trained tokens": trained_tokens,
    "head": head,
    "embedding": embedding,
    "norm": norm,
    "another norm": layer_norm,
    "the model's forward": own_forward,
    "a module's forward": own_mlp,
    "parametrization": parametrized,
    "hook": hook,
    "max_norm": renormalised,
    "extra module": extra_module,
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_differs_is_decoded_by_its_own_forward(
    change: str, when: str, model: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    """Changed before a sampler is made, or after: between construction and run."""
    before = greedy(model)
    sampler = plain(model)
    assert sampled(sampler) == before
    assert sampler.runner.lean is not None
    with caplog.at_level(logging.INFO):
        module = CHANGES[change](model)
        if when == "before":
            sampler = plain(model)
        expected = greedy(model)
        assert expected != before
        assert sampled(sampler) == expected
        assert sampled(sampler) == expected
        lines = [r.getMessage() for r in caplog.records if "own forward" in r.getMessage()]
        assert len(lines) == 1
        assert module in lines[0]


def test_a_hook_on_all_modules_is_seen(model: PreTrainedModel) -> None:
    sampler, before = plain(model), greedy(model)

    def turn(module: nn.Module, args: Any, output: Any) -> Any:
        return -output if isinstance(module, nn.Linear) else None

    handle = nn.modules.module.register_module_forward_hook(turn)
    try:
        expected = greedy(model)
        assert expected != before
        assert sampled(sampler) == expected
    finally:
        handle.remove()
    assert sampled(sampler) == before
    assert sampler.runner.lean is not None


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning:torch")
def test_replaced_functions_show_in_the_trial(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What no module shows: a function of transformers' file is another one."""
    monkeypatch.setattr(modeling_qwen2, "apply_rotary_pos_emb", lambda q, k, *rest: (-q, k))
    with caplog.at_level(logging.INFO):
        assert sampled(plain(model)) == greedy(model)
    assert "its own logits differ from the short step's by" in caplog.text
    with pytest.raises(ValueError, match=r"compile=true is not available .* its own logits differ"):
        list(
            Sampler(model, Perturbation(), Sampling(max_gen_toks=2), compiled=True).run(
                [Job(PROMPT, "p", (0,))]
            )
        )


def test_a_replaced_class_method_is_named(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modeling_qwen2.Qwen2MLP, "forward", lambda self, x: -x)
    assert sampled(plain(model)) == greedy(model)
    assert f"model.layers.0.mlp (Qwen2MLP) has the forward of {__name__}" in str(obstacle(model))


def test_dropout_counts_in_training_alone(model: PreTrainedModel) -> None:
    model.train()
    assert obstacle(model) is None  # without dropout it is the same
    model.model.layers[1].self_attn.attention_dropout = 0.1
    assert "model.layers.1.self_attn (Qwen2Attention) is in training mode" in str(obstacle(model))
    model.eval()
    assert obstacle(model) is None


def test_autocast_is_the_models_own_business(model: PreTrainedModel) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert obstacle(model) == "autocast is on"


# -- the model afterwards


def layouts(model: nn.Module) -> dict[str, Any]:
    return {name: (w.stride(), w.is_contiguous()) for name, w in model.state_dict().items()}


@pytest.fixture(params=["in C", "in PyTorch"])
def used(
    request: pytest.FixtureRequest, wide_qwen2: PreTrainedModel, qwen2: PreTrainedModel
) -> PreTrainedModel:
    return copy.deepcopy(wide_qwen2 if request.param == "in C" else qwen2)


def test_after_sampling_a_model_is_saved_and_loaded(used: PreTrainedModel, tmp_path: Any) -> None:
    before = copy.deepcopy(used.state_dict())
    shape = layouts(used)
    expected = greedy(used)
    assert sampled(plain(used)) == expected
    assert layouts(used) == shape
    for name, weight in used.state_dict().items():
        assert torch.equal(weight, before[name])
        assert weight.is_contiguous()
        assert weight.untyped_storage().nbytes() == weight.numel() * weight.element_size()
    used.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, before[name])
    assert sampled(plain(again)) == expected


@pytest.mark.parametrize("kept", [False, True])
def test_an_optimizer_step_between_runs_counts(used: PreTrainedModel, kept: bool) -> None:
    """Weights and biases, for a new sampler and for one that is kept."""
    sampler = plain(used)
    first = sampled(sampler)
    optimizer = torch.optim.SGD(used.parameters(), lr=3.0)
    torch.manual_seed(0)
    ids = torch.randint(0, 97, (2, 9))
    used(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    with torch.no_grad():
        for name, weight in used.named_parameters():
            if name.endswith("bias"):  # they start as zero
                weight += torch.randn_like(weight)
    expected = greedy(used)
    assert expected != first
    assert sampled(sampler if kept else plain(used)) == expected
    for name, weight in used.named_parameters():
        if name.endswith("bias"):
            weight.data.neg_()
    assert greedy(used) != expected
    assert sampled(sampler if kept else plain(used)) == greedy(used)


def test_weights_come_back_after_errors_and_closed_iterators(used: PreTrainedModel) -> None:
    before, shape = copy.deepcopy(used.state_dict()), layouts(used)
    moved = used.model.layers[0].self_attn.k_proj.weight
    samples = plain(used).run([Job(PROMPT, "p", (0,)), Job(PROMPT[:2], "q", (0,))])
    next(samples)
    assert not moved.is_contiguous()  # under way
    inner = plain(used).run([Job(PROMPT, "p", (0,))])  # another run meanwhile
    assert next(inner).ids == greedy(used)
    samples.close()
    assert list(inner) == []
    assert layouts(used) == shape
    sampler = plain(used)

    def interrupted() -> None:
        with sampler.ready():
            assert not moved.is_contiguous()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert layouts(used) == shape
    assert all(torch.equal(w, before[name]) for name, w in used.state_dict().items())


def test_runs_side_by_side_end_in_any_order(used: PreTrainedModel) -> None:
    before, shape = copy.deepcopy(used.state_dict()), layouts(used)
    work = [Job(PROMPT, "p", (0,)), Job(PROMPT[:2], "q", (0,)), Job(PROMPT[:3], "r", (0,))]
    expected = [s.ids for s in plain(used).run(work)]
    one, two = (
        Sampler(used, Perturbation(), Sampling(max_gen_toks=NEW), batch_size=1) for _ in "ab"
    )
    first, second = one.run(work), two.run(work)
    got: tuple[list[Any], list[Any]] = ([next(first)], [next(second)])
    got[0].extend(first)
    assert used.model.layers[0].mlp.up_proj.weight.is_contiguous()  # the first has ended
    got[1].extend(second)
    for samples in got:
        assert [s.ids for s in samples] == expected
    assert layouts(used) == shape
    assert all(torch.equal(w, before[name]) for name, w in used.state_dict().items())


def test_an_interrupt_while_weights_come_back_is_raised_at_the_end(
    used: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, weights = layouts(used), SideBySide(used)
    for block in used.model.layers:
        weights.join(block.mlp.gate_proj, block.mlp.up_proj, by_input=True)
    assert layouts(used) != shape
    calls: Iterator[int] = iter(range(100))
    original = torch.empty_strided

    def interrupted(*args: Any, **kwargs: Any) -> Tensor:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(torch, "empty_strided", interrupted)
    with pytest.raises(KeyboardInterrupt):
        weights.restore()
    assert layouts(used) == shape


def test_weights_in_a_flat_buffer_stay_in_it(used: PreTrainedModel) -> None:
    """As some optimizers keep them: what they write to the buffer must reach the model."""
    parameters = [p for block in used.model.layers for p in block.parameters()]
    flat = torch.cat([p.detach().flatten() for p in parameters])
    at = 0
    for p in parameters:
        p.data = flat[at : at + p.numel()].view_as(p)
        at += p.numel()
    first = sampled(plain(used))
    assert first == greedy(used)
    flat.mul_(-1.5)
    assert greedy(used) != first
    assert sampled(plain(used)) == greedy(used)
    assert all(
        p.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr() for p in parameters
    )


def test_weights_can_be_trained_after_sampling_in_inference_mode(used: PreTrainedModel) -> None:
    with torch.inference_mode():
        sampled(plain(used))
    ids = torch.tensor([[5, 17, 3]])
    used(input_ids=ids, labels=ids).loss.backward()
    assert not any(p.is_inference() for p in used.parameters())


def test_scoring_alone_lays_out_and_gives_back(used: PreTrainedModel) -> None:
    shape, sampler = layouts(used), plain(used)
    texts = [(9, 8, 7), (1, 2)]
    with torch.no_grad():
        for text, nll in zip(texts, sampler.clean_nll(PROMPT, texts), strict=True):
            logits = used(input_ids=torch.tensor([[*PROMPT, *text]])).logits[
                0, len(PROMPT) - 1 : -1
            ]
            chosen = logits.log_softmax(-1).gather(1, torch.tensor(text)[:, None])
            assert nll == pytest.approx(-float(chosen.sum()), rel=1e-4)
    assert layouts(used) == shape


def test_nothing_is_held_twice_during_a_run(used: PreTrainedModel) -> None:
    lean = Lean.of(used)
    assert lean is not None
    with lean.ready() as why:
        assert why is None
        seen = {
            linear.weight.untyped_storage().data_ptr(): linear.weight.untyped_storage().nbytes()
            for block in lean.blocks
            for linear in (block.qkv, block.o, block.gate_up, block.down)
        }
        layers = [m for m in used.model.layers.modules() if isinstance(m, nn.Linear)]
        assert {m.weight.untyped_storage().data_ptr() for m in layers} == set(seen)
        assert sum(seen.values()) == sum(m.weight.numel() * 4 for m in layers)
    assert not lean.blocks
