"""perturbed(): transformers' generate under noise equals the sampler, and leaves nothing behind."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from lm_eval_embednoise import ByPrompt, Perturbation, perturbed
from lm_eval_embednoise.engine.jobs import Job, Stop
from lm_eval_embednoise.engine.sampler import Sampler
from lm_eval_embednoise.engine.sampling import Sampling
from lm_eval_embednoise.noise import streams
from tests.test_inject import hook_count

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PAD = 0
PROMPTS = [(5, 17, 3), (1, 9, 2, 8, 30, 31, 7), (4,)]
NEW = 8
CASES = {
    "prompt": Perturbation(sigma=0.6),
    "everywhere": Perturbation(sigma=0.6, positions="all", depth="embed+1"),
    "last": Perturbation(sigma=0.9, positions="last:2", depth="0", sigma_unit="absolute"),
    "generated": Perturbation(sigma=0.6, positions="generated", scope="sequence"),
    "annealed": Perturbation(
        sigma=0.8, positions="all", schedule="linear", sigma_end=0.1, anneal_tokens=4, depth="0"
    ),
    "of the prompt": Perturbation(sigma=0.6, sigma_reference="prompt", depth="embed+2"),
}


def padded(prompts: list[tuple[int, ...]]) -> dict[str, torch.Tensor]:
    width = max(map(len, prompts))
    return {
        "input_ids": torch.tensor([[PAD] * (width - len(p)) + list(p) for p in prompts]),
        "attention_mask": torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]),
    }


def generate(model: PreTrainedModel, prompts: list[tuple[int, ...]], **more: Any) -> list:
    batch = padded(prompts)
    settings: dict[str, Any] = {"do_sample": False, "max_new_tokens": NEW, "pad_token_id": PAD}
    out = model.generate(**batch, **{**settings, **more})
    return out[:, batch["input_ids"].shape[1] :].tolist()


def sampled(model: PreTrainedModel, p: Perturbation, samples: tuple[int, ...]) -> dict:
    """The same samples by the sampler: (problem number, sample) → ids."""
    sampler = Sampler(model, p, Sampling(max_gen_toks=NEW), Stop(), perplexity=False)
    jobs = [Job(prompt, f"problem {i}", samples) for i, prompt in enumerate(PROMPTS)]
    return {(s.job, s.index): s.ids for s in sampler.run(jobs)}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_greedy_generate_equals_the_sampler(
    family: str, case: str, request: pytest.FixtureRequest
) -> None:
    """The same keys, the same samples: alone, in a left-padded batch, with several a prompt."""
    model, p = request.getfixturevalue(family), CASES[case]
    expected = sampled(model, p, (0, 1, 2))
    keys = [(f"problem {i}", s) for i in range(len(PROMPTS)) for s in (0, 1, 2)]
    with perturbed(model, p, keys) as noise:
        rows = generate(model, PROMPTS, num_return_sequences=3, do_sample=True, top_k=1)
    got = dict(zip([(i, s) for i in range(3) for s in range(3)], rows, strict=True))
    assert got == expected
    assert noise.keys == keys
    assert set(noise.rho) == set(p.sites)
    with perturbed(model, p, [("problem 1", 2)]):
        assert generate(model, [PROMPTS[1]]) == [expected[1, 2]]
        assert generate(model, [PROMPTS[1]], use_cache=False) == [expected[1, 2]]
    clean = generate(model, PROMPTS)
    assert any(expected[i, s] != clean[i] for i, s in expected)


def test_rho_is_the_samplers(qwen2: PreTrainedModel) -> None:
    p = CASES["prompt"]
    sampler = Sampler(qwen2, p, Sampling(max_gen_toks=1), perplexity=False)
    jobs = [Job(prompt, f"problem {i}", (0,)) for i, prompt in enumerate(PROMPTS)]
    total = sum(s.rho["embed"] * len(PROMPTS[s.job]) for s in sampler.run(jobs))
    with perturbed(qwen2, p, [(f"problem {i}", 0) for i in range(3)]) as noise:
        generate(qwen2, PROMPTS)
        generate(qwen2, PROMPTS)
    assert noise.rho["embed"] == pytest.approx(total / sum(map(len, PROMPTS)), rel=1e-5)


def test_by_prompt_counts_over_calls_and_processes(qwen2: PreTrainedModel) -> None:
    p, task = Perturbation(sigma=0.6), "some task"
    names = [streams.problem_id(task, prompt) for prompt in PROMPTS]
    with perturbed(qwen2, p, ByPrompt(task)) as noise:
        generate(qwen2, PROMPTS[:2], num_return_sequences=2, do_sample=True, top_k=1)
        assert noise.keys == [(names[0], 0), (names[0], 1), (names[1], 0), (names[1], 1)]
        generate(qwen2, PROMPTS[1:])
        assert noise.keys == [(names[1], 2), (names[2], 0)]
    second = ByPrompt(task, first=1, stride=2)
    assert [second([PROMPTS[0]])[0][1] for _ in range(3)] == [1, 3, 5]
    with pytest.raises(ValueError, match="stride=0"):
        ByPrompt(stride=0)
    with perturbed(qwen2, p) as noise:
        qwen2(torch.tensor([PROMPTS[0]]))
        qwen2(torch.tensor([PROMPTS[0]]))
    assert noise.keys == [(streams.problem_id(None, PROMPTS[0]), 1)]


def attributes(model: nn.Module) -> list[set[str]]:
    return [set(module.__dict__) for module in model.modules()]


def test_nothing_remains(qwen2: PreTrainedModel) -> None:
    before, hooks = attributes(qwen2), hook_count(qwen2)
    p = Perturbation(sigma=0.6, depth="embed+1")
    with perturbed(qwen2, p):
        assert hook_count(qwen2) == hooks + 3
        generate(qwen2, PROMPTS)
    assert attributes(qwen2) == before
    assert hook_count(qwen2) == hooks
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), perturbed(qwen2, p):
            raise error
        assert attributes(qwen2) == before
        assert hook_count(qwen2) == hooks
    with perturbed(qwen2, Perturbation(sigma=0)):
        assert attributes(qwen2) == before
        assert hook_count(qwen2) == hooks


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 2}, "num_beams=2 is not supported"),
        ({"prompt_lookup_num_tokens": 2}, "prompt_lookup_num_tokens=2"),
        ({"guidance_scale": 1.5}, "guidance_scale=1.5"),
        ({"cache_implementation": "static"}, "use the default cache"),
        ({"num_return_sequences": 2, "do_sample": True}, "3 keys for a batch of 6 rows"),
    ],
)
def test_what_cannot_be_served_is_refused(
    qwen2: PreTrainedModel, settings: dict[str, Any], message: str
) -> None:
    before = hook_count(qwen2)
    keys = [(f"problem {i}", 0) for i in range(3)]
    with pytest.raises(ValueError, match=message), perturbed(qwen2, CASES["prompt"], keys):
        generate(qwen2, PROMPTS, **settings)
    assert hook_count(qwen2) == before
    with perturbed(qwen2, CASES["prompt"], keys):  # nothing of the failure sticks
        generate(qwen2, PROMPTS)


@pytest.mark.parametrize(
    "key", ["problem", ("problem",), (3, 0), ("problem", -1), ("problem", "0")]
)
def test_bad_keys_are_named(qwen2: PreTrainedModel, key: Any) -> None:
    with (
        pytest.raises(ValueError, match=re.escape(repr(key)) + ".*a key is a"),
        perturbed(qwen2, CASES["prompt"], [key]),
    ):
        pass


@pytest.mark.parametrize(
    "added", [{"rsp": 2}, {"prefix": "random:3"}, {"positions": "dummy:2", "sigma": 0.1}]
)
def test_prompts_stay_as_they_are(qwen2: PreTrainedModel, added: dict[str, Any]) -> None:
    with (
        pytest.raises(ValueError, match=f"{next(iter(added))}=.*adds vectors"),
        perturbed(qwen2, Perturbation(**added)),
    ):
        pass


def test_ids_are_needed(qwen2: PreTrainedModel) -> None:
    vectors = qwen2.get_input_embeddings()(torch.tensor([PROMPTS[0]])).detach()
    with pytest.raises(ValueError, match="inputs_embeds"), perturbed(qwen2, CASES["prompt"]):
        qwen2(inputs_embeds=vectors)
    with (
        pytest.raises(ValueError, match="generate: inputs_embeds is not supported"),
        perturbed(qwen2, CASES["prompt"]),
    ):
        qwen2.generate(inputs_embeds=vectors, max_new_tokens=1)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # within peft
def test_adapters_are_served(llama: PreTrainedModel) -> None:
    """A peft model: generate is its own, the blocks lie deeper, the noise is the same."""
    peft = pytest.importorskip("peft")
    model = copy.deepcopy(llama)
    p, keys = CASES["everywhere"], [(f"problem {i}", 0) for i in range(3)]
    expected = sampled(model, p, (0,))
    adapter = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(model, adapter).eval()  # a fresh adapter changes nothing
    generate(wrapped, PROMPTS)  # peft leaves an attribute of its own
    before = attributes(wrapped)
    with perturbed(wrapped, p, keys):
        assert generate(wrapped, PROMPTS) == [expected[i, 0] for i in range(3)]
    assert attributes(wrapped) == before
    assert sampled(wrapped, p, (0,)) == expected


def examples() -> list[str]:
    text = (Path(__file__).parents[1] / "docs" / "library.md").read_text()
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def test_the_documented_script_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(examples()[0], names)
    assert len(names["output"]) == 4
    assert names["noise"].keys == names["keys"]
    assert 0.05 < names["noise"].rho["embed"] < 1
    assert "total" in capsys.readouterr().out


def test_the_documented_bigcode_example_runs(qwen2: PreTrainedModel) -> None:
    """Its loop as it stands: one prompt a call, num_return_sequences, several calls a prompt."""
    calls, batch_size = 3, 2

    def generate_text(task: str) -> tuple[list[list[list[int]]], None]:
        found: list[list[list[int]]] = [[] for _ in PROMPTS]
        for i, prompt in enumerate(PROMPTS):
            for _ in range(calls):
                with torch.no_grad():
                    tokens = qwen2.generate(
                        input_ids=torch.tensor([prompt]), num_return_sequences=batch_size,
                        do_sample=True, top_k=1, top_p=1.0, temperature=1.0, pad_token_id=PAD,
                        max_length=len(prompt) + NEW,
                    )  # fmt: skip
                found[i] += [row[len(prompt) :] for row in tokens.tolist()]
        return found, None

    names: dict[str, Any] = {
        "model": qwen2,
        "task": "humaneval",
        "accelerator": SimpleNamespace(process_index=0, num_processes=1),
        "evaluator": SimpleNamespace(generate_text=generate_text),
    }
    exec(examples()[1], names)
    sampler = Sampler(
        qwen2, Perturbation(sigma=0.1), Sampling(max_gen_toks=NEW), Stop(), perplexity=False
    )
    jobs = [
        Job(prompt, streams.problem_id("humaneval", prompt), tuple(range(calls * batch_size)))
        for prompt in PROMPTS
    ]
    expected = {(s.job, s.index): s.ids for s in sampler.run(jobs)}
    for i in range(len(PROMPTS)):
        assert names["generations"][i] == [expected[i, s] for s in range(calls * batch_size)]
