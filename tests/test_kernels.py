"""The functions in C against their twins in PyTorch, wrong arguments, and doing without them."""

from __future__ import annotations

import itertools
import json
import logging
import math
import subprocess
import sys
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from lm_eval_embednoise.engine.jobs import Job
from lm_eval_embednoise.engine.runner import DECODERS
from lm_eval_embednoise.engine.sampler import Sampler
from lm_eval_embednoise.engine.sampling import Sampling
from lm_eval_embednoise.kernels import attention, build, choice, draws, step
from lm_eval_embednoise.kernels.attention import columns, in_slots
from lm_eval_embednoise.noise import streams
from lm_eval_embednoise.noise.perturbation import Perturbation
from tests.support.families import tiny

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LIBRARIES = [build.library(name) for name in ("step", "draws")]  # here: hypothesis times its tests
pytestmark = pytest.mark.skipif(None in LIBRARIES, reason="nothing compiled here")
DIMS = st.sampled_from([16, 32, 48, 64, 128])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def keys_of(rows: int) -> Tensor:
    return streams.key_words(streams.stream_key(3, "p", s, "noise", "embed") for s in range(rows))


def slots_of(rows: int, count: int, seed: int) -> Tensor:
    """Different slots of `count`, in any order."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:rows]


def prompt_of(rows: int, heads: int, group: int, dim: int, seed: int = 5) -> tuple[Tensor, Tensor]:
    """What attention over a prompt leaves: any vectors and log-sum-exps."""
    return random(rows, heads, group, dim, seed=seed), random(rows, heads, group, seed=seed)


@dataclass
class Pair:
    """A function in C, its twin in PyTorch, and arguments for them.

    Attributes:
        function: in C.
        twin: in PyTorch.
        make: arguments from rows, heads, group, length and dim, and a seed.
        changed: of the arguments, what the functions write to.
        exact: equal bit for bit, and not to rounding alone.
    """

    function: Callable[..., Any]
    twin: Callable[..., Any]
    make: Callable[..., dict[str, Any]]
    changed: tuple[str, ...] = ()
    exact: bool = False


def _norm(rows: int, dim: int, seed: int, **_: int) -> dict[str, Any]:
    return {"x": random(rows, dim, seed=seed) * 9, "weight": random(dim), "eps": 1e-6}


def _gate(rows: int, dim: int, seed: int, **_: int) -> dict[str, Any]:
    gate = random(rows, dim, seed=seed) * 9
    gate[0, 0], gate[-1, -1] = 100.0, -100.0  # e^x beyond what float32 holds
    return {"gate_up": torch.cat([gate, random(rows, dim, seed=seed + 1)], dim=1)}


def _entry(rows: int, heads: int, group: int, length: int, dim: int, seed: int) -> dict[str, Any]:
    angle = random(rows, dim // 2, seed=seed).repeat(1, 2)
    return {
        "qkv": random(rows, heads * (group + 2) * dim, seed=seed),
        "cos": angle.cos(),
        "sin": angle.sin(),
        "write": torch.randint(0, length, (rows,), generator=torch.Generator().manual_seed(seed)),
        "memory": tuple(random(rows + 2, heads, length, dim, seed=seed + n) for n in (0, 1)),
        "slots": None if seed % 2 else slots_of(rows, rows + 2, seed),
    }


def _own(rows: int, heads: int, group: int, length: int, dim: int, seed: int) -> dict[str, Any]:
    memory = [random(rows + 1, heads, length + 3, dim, seed=seed + n) for n in (0, 1)]
    generator = torch.Generator().manual_seed(seed)
    return {
        "q": random(rows, heads, group, dim, seed=seed) * 3,
        "key": memory[0][:rows, :, :length],
        "value": memory[1][:rows, :, :length],
        "lengths": torch.randint(1, length + 1, (rows,), generator=generator),
        "scale": dim**-0.5,
        "prompt": prompt_of(rows, heads, group, dim, seed) if seed % 2 else None,
    }


def _prompt(rows: int, heads: int, group: int, length: int, dim: int, seed: int) -> dict[str, Any]:
    return {
        "q": random(rows, heads, group, dim, seed=seed) * 3,
        "keys": columns(random(1, heads, length, dim, seed=seed)),
        "values": random(1, heads, length, dim, seed=seed + 1),
        "rows": None if seed % 2 else slots_of(max(1, rows - 1), rows, seed),
        "scale": dim**-0.5,
        "out": prompt_of(rows, heads, group, dim),
    }


def _causal(rows: int, heads: int, group: int, length: int, dim: int, seed: int) -> dict[str, Any]:
    memory = tuple(random(rows + 2, heads, length + 1, dim, seed=seed + n) for n in (0, 1))
    return {
        "q": random(rows, length, heads, group, dim, seed=seed),
        "memory": memory,
        "slots": slots_of(rows, rows + 2, seed),
        "scale": 0.3,
        "prompt": prompt_of(rows * length, heads, group, dim, seed) if seed % 2 else None,
    }


def _draw(rows: int, length: int, dim: int, seed: int, **_: int) -> dict[str, Any]:
    positions = torch.arange(length).expand(rows, -1) + torch.arange(rows)[:, None]
    law = draws.LAWS[seed % len(draws.LAWS)]
    return {"keys": keys_of(rows), "positions": positions, "dim": dim, "law": law}


def _noise(rows: int, length: int, dim: int, seed: int, **_: int) -> dict[str, Any]:
    doses = torch.tensor([0.0, 0.25, 0.3, 2.0])
    which = torch.randint(0, 4, (rows, length), generator=torch.Generator().manual_seed(seed))
    drawn = _draw(rows, length, dim, seed)
    del drawn["dim"]
    return {"hidden": random(rows, length, dim, seed=seed), **drawn, "std": doses[which]}


def _logits(rows: int, dim: int, seed: int, **_: int) -> dict[str, Any]:
    logits = random(rows, 7 * dim, seed=seed) * (1 + seed % 9)
    if seed % 4 == 3:
        logits[0, 0] = (math.nan, math.inf, -math.inf)[seed % 3]
        logits[-1] = -math.inf if seed % 5 else logits[-1]
    return {"logits": logits}


def _sampled(rows: int, seed: int, **sizes: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    uniforms = torch.rand(rows, dtype=torch.float64, generator=generator)
    temperature = (0.3, 0.8, 1.0, 1.7)[seed % 4]
    given = _logits(rows, seed=seed, **sizes)
    return {**given, "temperature": temperature, "uniforms": uniforms}


def _chosen(rows: int, seed: int, **sizes: int) -> dict[str, Any]:
    given = _logits(rows, seed=seed, **sizes)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(given["logits"].shape[1], (rows,), generator=generator)
    return {**given, "tokens": tokens}


PAIRS = {
    "sample": Pair(choice.sample, choice.sample_torch, _sampled, exact=True),
    "token_nll": Pair(choice.token_nll, choice.token_nll_torch, _chosen),
    "vectors": Pair(draws.vectors, draws.vectors_torch, _draw, exact=True),
    "add_noise": Pair(draws.add_noise, draws.add_noise_torch, _noise),
    "rms_norm": Pair(step.rms_norm, step.rms_norm_torch, _norm),
    "silu_product": Pair(step.silu_product, step.silu_product_torch, _gate),
    "enter": Pair(step.enter, step.enter_torch, _entry, ("memory",)),
    "attend": Pair(attention.attend, attention.attend_torch, _own),
    "attend_prompt": Pair(
        attention.attend_prompt, attention.attend_prompt_torch, _prompt, ("out",)
    ),
    "attend_causal": Pair(attention.attend_causal, attention.attend_causal_torch, _causal),
}


def leaves(value: Any) -> list[Tensor]:
    """The tensors of a result, in order."""
    if isinstance(value, Tensor):
        return [value]
    return [tensor for part in value or () for tensor in leaves(part)]


def own(value: Any) -> Any:
    """The same with memory of its own."""
    if isinstance(value, tuple):
        return tuple(part.clone() for part in value)
    return value.clone() if isinstance(value, Tensor) and value.is_contiguous() else value


def in_doubles(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(in_doubles, value))
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


@pytest.mark.parametrize("name", PAIRS)
@settings(deadline=None)  # shapes differ a thousandfold in work
@given(
    rows=st.integers(1, 11), heads=st.integers(1, 3), group=st.integers(1, 4),
    length=st.integers(1, 40), dim=DIMS, seed=st.integers(0, 99),
)  # fmt: skip
def test_a_function_in_c_is_its_twin(name: str, **sizes: int) -> None:
    """At any shape; the twin is run in float64, except where both are equal bit for bit."""
    pair = PAIRS[name]
    if name not in ("enter", "attend", "attend_prompt", "attend_causal"):
        sizes["dim"] += sizes["seed"] % 5  # any width, not multiples of 16 alone
    given_c = pair.make(**sizes)
    given_torch = {key: own(value) for key, value in given_c.items()}
    if not pair.exact and name != "add_noise":
        given_torch = {key: in_doubles(value) for key, value in given_torch.items()}
    results = []
    for function, arguments in ((pair.function, given_c), (pair.twin, given_torch)):
        result = function(**arguments)
        results.append(leaves((result, *(arguments[name] for name in pair.changed))))
    got, expected = results
    assert len(got) == len(expected) > 0
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape
        if pair.exact:
            assert torch.equal(a, b)
        else:
            assert torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-5, equal_nan=True)


@given(
    rows=st.integers(1, 4),
    length=st.integers(1, 5),
    dim=st.integers(1, 130),
    seed=st.integers(0, 9),
)
def test_noise_is_added_bit_for_bit(rows: int, length: int, dim: int, seed: int) -> None:
    arguments = _noise(rows, length, dim, seed)
    assert torch.equal(draws.add_noise(**arguments)[0], draws.add_noise_torch(**arguments)[0])


def drawn_slowly(logits: list[float], temperature: float, uniform: float) -> int:
    """The first token up to which the probabilities exceed `uniform`, in exact fractions of e^x."""
    weights = [Fraction(math.exp(value / temperature)) for value in logits]
    *up_to, total = itertools.accumulate(weights)
    target = Fraction(uniform) * total
    return next(j for j, reached in enumerate([*up_to, total]) if reached > target)


@settings(deadline=None)
@given(seed=st.integers(0, 999), vocab=st.integers(1, 300), temperature=st.floats(0.3, 2))
def test_a_token_is_drawn_by_the_definition(seed: int, vocab: int, temperature: float) -> None:
    logits = random(4, vocab, seed=seed)
    uniforms = torch.rand(4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    got = choice.sample(logits, temperature, uniforms).tolist()
    for row, token in enumerate(got):
        weights = (logits[row].double() / temperature).softmax(-1).cumsum(-1)
        if (weights - uniforms[row]).abs().min() > 1e-6:  # nearer ones are rounding's to choose
            assert token == drawn_slowly(logits[row].tolist(), temperature, float(uniforms[row]))


@pytest.mark.parametrize("vocab", [3, 64, 1000, 151_936])
def test_tokens_at_the_very_ends_of_intervals_are_pytorchs(vocab: int) -> None:
    """Uniforms a few units of rounding from a boundary, where another sum chooses another token."""
    logits = random(1, vocab) * 2
    cumulative = (logits / 0.8).softmax(-1).double().cumsum(-1)[0]
    at = torch.linspace(0, vocab - 1, 60).long()
    ends = cumulative[at] / cumulative[-1]
    near = [ends * (1 + shift) for shift in (0, 1e-16, -1e-16, 1e-9, -1e-9, 1e-7, -1e-7, 3e-6)]
    uniforms = torch.cat(near).clamp(0, 1 - 2**-53)
    rows = logits.expand(len(uniforms), -1).contiguous()
    for temperature in (0.8, 1.0):
        got = choice.sample(rows, temperature, uniforms)
        assert torch.equal(got, choice.sample_torch(rows, temperature, uniforms))


def test_few_rows_are_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    left = []
    slow = choice.sample_torch

    def counted(logits: Tensor, temperature: float, uniforms: Tensor) -> Tensor:
        left.append(len(logits))
        return slow(logits, temperature, uniforms)

    monkeypatch.setattr(choice, "sample_torch", counted)
    uniforms = torch.rand(400, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    choice.sample(random(400, 5000) * 4, 0.8, uniforms)
    assert sum(left) < 40


def test_attention_is_one_softmax_over_all_entries() -> None:
    """The twins themselves against the formula: a prompt, then own entries up to a length."""
    rows, heads, group, length, dim = 5, 2, 3, 9, 32
    arguments = _own(rows, heads, group, length, dim, seed=0)
    k, v = random(1, heads, 21, dim), random(1, heads, 21, dim, seed=2)
    q, scale = arguments["q"], arguments["scale"]
    prompt = (torch.empty_like(q), q.new_empty(q.shape[:3]))
    attention.attend_prompt_torch(q, columns(k), v, None, scale, prompt)
    out, lse = attention.attend_torch(**{**arguments, "prompt": prompt})
    for row in range(rows):
        seen = slice(0, int(arguments["lengths"][row]))
        keys = torch.cat([k[0], arguments["key"][row, :, seen]], dim=1).double()
        values = torch.cat([v[0], arguments["value"][row, :, seen]], dim=1).double()
        scores = q[row].double() @ keys.transpose(1, 2) * scale
        assert torch.allclose(out[row].double(), scores.softmax(-1) @ values, rtol=1e-4, atol=1e-5)
        assert torch.allclose(lse[row].double(), scores.logsumexp(-1), atol=1e-5)


def test_entries_are_rotated_as_transformers_does() -> None:
    arguments = _entry(rows=4, heads=2, group=3, length=6, dim=16, seed=2)
    q = arguments["qkv"][:, : 2 * 3 * 16].view(4, 6, 16)
    half = torch.cat((-q[..., 8:], q[..., :8]), dim=-1)
    expected = q * arguments["cos"][:, None] + half * arguments["sin"][:, None]
    got = step.enter_torch(**arguments)
    assert torch.allclose(got.view(4, 6, 16), expected, atol=1e-6)


SIZES = {"rows": 3, "heads": 2, "group": 2, "length": 5, "dim": 32}


def tensors(arguments: dict[str, Any]) -> list[tuple[str, int | None, Tensor]]:
    """Name, place in a pair, and value of every tensor among arguments."""
    found: list[tuple[str, int | None, Tensor]] = []
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            found.append((name, None, value))
        elif isinstance(value, tuple):
            found += [(name, place, part) for place, part in enumerate(value)]
    return found


# What is wrong with a tensor → it made wrong, and the error.
WRONG: dict[str, tuple[Callable[[Tensor], Tensor], type[Exception]]] = {
    "type": (lambda t: t.half() if t.is_floating_point() else t.int(), TypeError),
    "fewer numbers": (lambda t: t[..., :-1].contiguous(), ValueError),
    "another dimension": (lambda t: t[None].contiguous(), ValueError),
    "not contiguous": (lambda t: t.repeat_interleave(2, dim=-1)[..., ::2], ValueError),
    "another device": (lambda t: t.to("meta"), ValueError),
}
# Sizes that nothing else fixes: with fewer numbers these are other arguments, not wrong ones.
FREE = {
    *(("vectors", "positions"), ("add_noise", "hidden"), ("attend_prompt", "rows")),
    *(("sample", "logits"), ("token_nll", "logits")),
}
ARGUMENTS = [
    (name, seed, argument, place, wrong)
    for name, pair in PAIRS.items()
    for seed in (0, 1)
    for argument, place, _ in tensors(pair.make(**SIZES, seed=seed))
    for wrong in WRONG
    if wrong != "fewer numbers" or (name, argument) not in FREE
]


@pytest.mark.parametrize(("name", "seed", "argument", "place", "wrong"), ARGUMENTS)
def test_a_wrong_tensor_is_refused_by_its_name(
    name: str, seed: int, argument: str, place: int | None, wrong: str
) -> None:
    """Every argument of every function; what the functions write to stays as it was."""
    pair = PAIRS[name]
    arguments = pair.make(**SIZES, seed=seed)
    change, error = WRONG[wrong]
    if place is None:
        arguments[argument] = change(arguments[argument])
    else:
        parts = list(arguments[argument])
        parts[place] = change(parts[place])
        arguments[argument] = tuple(parts)
    before = [tensor.clone() for tensor in leaves([arguments[key] for key in pair.changed])]
    with pytest.raises(error) as refused:
        pair.function(**arguments)
    assert "must be" in str(refused.value)
    after = leaves([arguments[key] for key in pair.changed])
    for a, b in zip(before, after, strict=True):
        assert a.is_meta or torch.equal(a, b)


@pytest.mark.parametrize(
    ("name", "argument", "value", "words"),
    [
        ("enter", "write", 5, "write below 5"),
        ("enter", "write", -1, "write below 5"),
        ("enter", "slots", 5, "slots must be below 5"),
        ("token_nll", "tokens", 224, "tokens must be below 224"),
        ("token_nll", "tokens", -1, "tokens must be below 224"),
        ("attend", "lengths", 6, "lengths must be 1 to 5"),
        ("attend", "lengths", 0, "lengths must be 1 to 5"),
        ("attend_prompt", "rows", 3, "rows must be below 3"),
        ("attend_causal", "slots", 5, "slots must be below 5"),
        ("attend_causal", "slots", -1, "slots must be below 5"),
    ],
)
def test_an_index_out_of_range_is_refused(name: str, argument: str, value: int, words: str) -> None:
    arguments = PAIRS[name].make(**SIZES, seed=0)
    arguments[argument][-1] = value
    with pytest.raises(ValueError, match=words):
        PAIRS[name].function(**arguments)


def test_a_row_is_the_same_in_any_company_and_a_nan_stays_its_own() -> None:
    q, key, value = random(6, 2, 3, 32), random(6, 2, 8, 32), random(6, 2, 8, 32, seed=1)
    lengths = torch.tensor([1, 8, 3, 4, 5, 2])
    together, _ = attention.attend(q, key, value, lengths, 0.2)
    for row in range(6):
        one = slice(row, row + 1)
        alone, _ = attention.attend(q[one], key[one], value[one], lengths[one], 0.2)
        assert torch.equal(alone, together[one])
    key[2, 0, 1, 5] = torch.nan
    broken, _ = attention.attend(q, key, value, lengths, 0.2)
    assert broken[2, 0].isnan().all()
    intact = [row for row in range(6) if row != 2]
    assert torch.equal(broken[intact], together[intact])


def test_memory_of_another_form_is_not_served() -> None:
    key = random(2, 2, 4, 32)
    assert in_slots(key, key)
    assert in_slots(key[:, :, :3], key[:, :, :3])
    turned = key.transpose(1, 2).contiguous().transpose(1, 2)
    assert not in_slots(turned, turned)
    assert not in_slots(random(2, 2, 4, 20), random(2, 2, 4, 20))
    assert not build.serve("step", key.double())
    assert not build.serve("step", key.bfloat16())


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    """A Qwen2 with heads wide enough for the functions in C."""
    return tiny("qwen2", hidden_size=64, num_attention_heads=4, num_key_value_heads=2)


@pytest.mark.parametrize("decoder", DECODERS)
def test_greedy_is_the_models_generate(model: PreTrainedModel, decoder: str) -> None:
    """Samples that share prompts, in C, in the short step and in the model's own forward."""
    prompts = [(5, 9, 3), (7, 7, 2, 30, 31, 8, 4, 19), (60, 2)]
    perturbation = Perturbation(sigma=1e-9, positions="generated")  # work that isn't identical
    settings = Sampling(max_gen_toks=16)
    sampler = Sampler(model, perturbation, settings, batch_size=10, decoder=decoder)
    lean = sampler.runner.lean
    assert (lean is None) == (decoder == "model")
    assert lean is None or decoder == "auto" or not lean.suits_kernels
    jobs = [Job(ids, f"p{n}", tuple(range(5))) for n, ids in enumerate(prompts)]
    plain = GenerationConfig(max_new_tokens=16, do_sample=False, pad_token_id=0)
    for sample in sampler.run(jobs):
        ids = torch.tensor([prompts[sample.job]])
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=plain)
        assert sample.ids == expected[0, ids.shape[1] :].tolist()


# What a process says that has looked for no functions yet, once under every environment given: a
# fork of one that has imported what all need. One line each, an error as its last line.
SCRIPT = """
import json, os, sys, torch
from lm_eval_embednoise.kernels import build
from lm_eval_embednoise.noise import streams
torch.set_num_threads(1)
for environment in json.loads(sys.argv[1]):
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        continue
    os.environ.update(environment)
    keys = streams.key_words([5])
    try:
        drawn = streams.normal(keys, keys[:, :1], 4).shape == (1, 1, 4)
        said = [build.serve("step", torch.ones(1)), build.serve("draws", keys), drawn]
    except ValueError as error:
        said = str(error)
    print(json.dumps(said), flush=True)
    os._exit(0)
"""


def test_switched_off_and_without_a_compiler_pytorch_serves(tmp_path: Path) -> None:
    """What a fresh process with an empty cache says."""
    environments = [
        {"XDG_CACHE_HOME": str(tmp_path / str(number)), **environment}
        for number, environment in enumerate(
            (
                {},
                {"EMBEDNOISE_KERNELS": "off"},
                {"CC": "false"},
                {"PATH": "/nowhere", "CC": ""},
                {"EMBEDNOISE_KERNELS": "maybe"},
            )
        )
    ]
    line = [sys.executable, "-W", "ignore", "-c", SCRIPT, json.dumps(environments)]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    here, off, broken, nowhere, maybe = map(json.loads, done.stdout.splitlines())
    assert here == [True, True, True]
    assert {path.parents[2].name for path in tmp_path.rglob("*.so")} == {"0"}
    assert len(list(tmp_path.rglob("*.so"))) == 2
    assert off == broken == nowhere == [False, False, True]
    assert "false can't compile it" in done.stderr
    assert "EMBEDNOISE_KERNELS='maybe': allowed are on and off" in maybe


def test_a_cache_that_cannot_be_written_to_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert build.library.__wrapped__("draws") is not None
    assert not caplog.records
