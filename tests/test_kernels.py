"""The functions in C against PyTorch's operations, and what happens where they can't be had."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationConfig, PreTrainedModel

from lm_eval_embednoise import kernels
from lm_eval_embednoise.engine.jobs import Job
from lm_eval_embednoise.engine.runner import DECODERS
from lm_eval_embednoise.engine.sampler import Sampler
from lm_eval_embednoise.kernels import build
from lm_eval_embednoise.noise import streams
from lm_eval_embednoise.noise.perturbation import Perturbation, Sampling
from tests.support.families import tiny

LIBRARIES = [build.library(name) for name in ("step", "draws")]  # here: hypothesis times its tests
pytestmark = pytest.mark.skipif(None in LIBRARIES, reason="nothing compiled here")
DIMS = st.sampled_from([16, 32, 48, 64, 128])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def test_normals_are_the_streams_bit_for_bit() -> None:
    keys = streams.key_words(streams.stream_key(3, "p", s, "noise", "embed") for s in range(300))
    for dim, count in ((1, 3), (64, 1), (65, 7), (896, 2)):
        positions = torch.arange(5, 5 + count).expand(300, -1)
        got = kernels.normals(keys, positions, dim)
        assert got is not None and torch.equal(got, streams._normal(keys, positions, dim))


@given(st.sampled_from([1, 64, 100, 128]), st.integers(1, 4), st.integers(1, 5), st.data())
def test_noise_is_added_as_pytorch_does(
    dim: int, rows: int, count: int, data: st.DataObject
) -> None:
    """The sum bit for bit, how strong it is to rounding; some positions get none."""
    keys = streams.key_words(streams.stream_key(3, "p", s, "noise", "embed") for s in range(rows))
    positions = torch.arange(count).expand(rows, -1) + torch.arange(rows)[:, None]
    number = st.sampled_from([0.0, 0.25, 0.3, 2.0])
    std = torch.tensor([[data.draw(number) for _ in range(count)] for _ in range(rows)])
    hidden = random(rows, count, dim)
    got = kernels.add_noise(hidden, keys, positions, std)
    assert got is not None
    noise = std[:, :, None] * streams._normal(keys, positions, dim)
    assert torch.equal(got[0], hidden + noise)
    ratio = noise.norm(dim=-1) / hidden.norm(dim=-1)
    expected = torch.stack([ratio.sum(1), (std > 0).sum(1)], dim=1).double()
    assert torch.allclose(got[1], expected, rtol=1e-5)


@given(rows=st.integers(1, 9), dim=st.integers(1, 70), seed=st.integers(0, 99))
def test_norm_and_gate(rows: int, dim: int, seed: int) -> None:
    x, weight, up = random(rows, dim, seed=seed) * 9, random(dim), random(rows, dim, seed=seed + 1)
    expected = F.rms_norm(x, (dim,), weight, 1e-6)
    assert torch.allclose(kernels.rms_norm(x, weight, 1e-6), expected, rtol=1e-5, atol=1e-6)
    x[0, 0] = 100.0  # e^x beyond what float32 holds
    x[-1, -1] = -100.0
    got = kernels.silu_product(torch.cat([x, up], dim=1))
    assert torch.allclose(got, F.silu(x) * up, rtol=1e-5, atol=1e-6)


@given(DIMS, st.integers(1, 5), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_entering(dim: int, rows: int, heads: int, group: int, seed: int) -> None:
    """Rotated as transformers does; stored at each row's column and nowhere else."""
    q, k = random(rows, heads * group * dim, seed=seed), random(rows, heads * dim, seed=seed)
    v = random(rows, heads * dim, seed=seed + 1)
    angle = random(rows, dim // 2, seed=seed).repeat(1, 2)
    cos, sin = angle.cos(), angle.sin()
    write = torch.randint(0, 6, (rows,), generator=torch.Generator().manual_seed(seed))
    slots = None if seed % 2 else torch.randperm(rows) + 2
    held = (random(rows + 2, heads, 6, dim), random(rows + 2, heads, 6, dim, seed=1))
    before = [part.clone() for part in held]
    got = kernels.enter(torch.cat([q, k, v], dim=1), cos, sin, write, held, slots)

    def rotated(x: Tensor) -> Tensor:
        x = x.view(rows, -1, dim)
        half = torch.cat((-x[..., dim // 2 :], x[..., : dim // 2]), dim=-1)
        return x * cos[:, None] + half * sin[:, None]

    assert torch.allclose(got.view(rows, -1, dim), rotated(q), atol=1e-6)
    line = torch.arange(rows) if slots is None else slots
    before[0][line, :, write] = rotated(k)
    before[1][line, :, write] = v.view(rows, heads, dim)
    assert torch.allclose(held[0], before[0], atol=1e-6) and torch.equal(held[1], before[1])


@given(DIMS, st.integers(1, 11), st.integers(1, 3), st.integers(1, 4), st.data())
def test_attention_is_one_softmax_over_prompt_and_own_entries(
    dim: int, rows: int, heads: int, group: int, data: st.DataObject
) -> None:
    """Rows see one of two prompts, and as many entries of their own as they have."""
    columns, width = 9, data.draw(st.integers(1, 9))
    lengths = torch.tensor(data.draw(st.lists(st.integers(1, width), min_size=rows, max_size=rows)))
    of = torch.tensor(data.draw(st.lists(st.integers(0, 1), min_size=rows, max_size=rows)))
    q = random(rows, heads, group, dim) * 3
    held = (random(rows, heads, columns, dim), random(rows, heads, columns, dim, seed=1))
    key, value = held[0][:, :, :width], held[1][:, :, :width]
    sizes = data.draw(st.lists(st.integers(1, 40), min_size=2, max_size=2))
    prompts = [(random(1, heads, n, dim), random(1, heads, n, dim, seed=2)) for n in sizes]
    prompt = (torch.empty_like(q), q.new_empty(q.shape[:3]))
    for number, (k, v) in enumerate(prompts):
        chosen = torch.nonzero(of == number)[:, 0]
        kernels.attend_prompt(q, kernels.columns(k), v, chosen, dim**-0.5, prompt)
    assert kernels.in_slots(key, value)
    got, lse = kernels.attend(q, key, value, lengths, dim**-0.5, prompt)
    alone, _ = kernels.attend(q, key, value, lengths, dim**-0.5)
    for row in range(rows):
        own = slice(0, int(lengths[row]))
        k, v = prompts[int(of[row])]
        for keys, values, found in (
            (torch.cat([k[0], key[row, :, own]], 1), torch.cat([v[0], value[row, :, own]], 1), got),
            (key[row, :, own], value[row, :, own], alone),
        ):
            scores = q[row].double() @ keys.double().transpose(1, 2) * dim**-0.5
            expected = scores.softmax(-1) @ values.double()
            assert torch.allclose(found[row].double(), expected, rtol=1e-4, atol=1e-5)
            if found is got:
                assert torch.allclose(lse[row].double(), scores.logsumexp(-1), atol=1e-5)


@given(
    DIMS, st.integers(1, 3), st.integers(1, 2), st.integers(1, 3), st.integers(1, 40),
    st.sampled_from([0, 1, 19]),
)  # fmt: skip
def test_causal_attention(
    dim: int, rows: int, heads: int, group: int, length: int, before: int
) -> None:
    """Of prompts in slots, which stand in any order, behind what all see or nothing."""
    q = random(rows, length, heads, group, dim)
    held = (random(5, heads, 41, dim), random(5, heads, 41, dim, seed=1))
    slots = torch.tensor([4, 0, 2])[:rows]
    first = (random(1, heads, before, dim, seed=2), random(1, heads, before, dim, seed=3))
    prompt = None
    if before:
        flat = q.view(rows * length, heads, group, dim)
        prompt = (torch.empty_like(flat), q.new_empty(flat.shape[:3]))
        kernels.attend_prompt(flat, kernels.columns(first[0]), first[1], None, 0.3, prompt)
    got = kernels.attend_causal(q, held, slots, 0.3, prompt)
    k, v = (
        torch.cat([part.expand(rows, -1, -1, -1), own[slots, :, :length]], dim=2).double()
        for part, own in zip(first, held, strict=True)
    )
    scores = torch.einsum("rqhgd,rhkd->rhgqk", q.double(), k) * 0.3
    unseen = torch.ones(length, before + length).triu(before + 1).bool()
    scores = scores.masked_fill(unseen, -torch.inf)
    expected = torch.einsum("rhgqk,rhkd->rqhgd", scores.softmax(-1), v)
    assert torch.allclose(got.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_row_is_the_same_in_any_company_and_a_nan_stays_its_own() -> None:
    q, key, value = random(6, 2, 3, 32), random(6, 2, 8, 32), random(6, 2, 8, 32, seed=1)
    lengths = torch.tensor([1, 8, 3, 4, 5, 2])
    together, _ = kernels.attend(q, key, value, lengths, 0.2)
    for row in range(6):
        one = slice(row, row + 1)
        alone, _ = kernels.attend(q[one], key[one], value[one], lengths[one], 0.2)
        assert torch.equal(alone, together[one])
    key[2, 0, 1, 5] = torch.nan
    broken, _ = kernels.attend(q, key, value, lengths, 0.2)
    assert broken[2, 0].isnan().all()
    intact = [row for row in range(6) if row != 2]
    assert torch.equal(broken[intact], together[intact])


def test_memory_of_another_form_is_not_served() -> None:
    key = random(2, 2, 4, 32)
    assert kernels.in_slots(key, key) and kernels.in_slots(key[:, :, :3], key[:, :, :3])
    turned = key.transpose(1, 2).contiguous().transpose(1, 2)
    assert not kernels.in_slots(turned, turned)
    assert not kernels.in_slots(random(2, 2, 4, 20), random(2, 2, 4, 20))
    assert not kernels.serve(key.double()) and not kernels.serve(key.bfloat16())


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
from lm_eval_embednoise import kernels
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
        found = kernels.normals(keys, torch.zeros(1, 1, dtype=torch.int64), 4)
        served = streams.normal(keys, keys[:, :1], 4).shape == (1, 1, 4)
        said = [kernels.serve(torch.ones(1)), found is not None, served]
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
