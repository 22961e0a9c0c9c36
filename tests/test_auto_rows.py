"""batch_size=auto: what a run takes, against what it is counted to take."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config
from transformers.cache_utils import DynamicCache

from lm_eval_embednoise.engine import likelihood, room
from lm_eval_embednoise.engine.jobs import Job
from lm_eval_embednoise.engine.lean import Lean
from lm_eval_embednoise.engine.likelihood import clean_nll
from lm_eval_embednoise.engine.runner import Runner
from lm_eval_embednoise.engine.sampler import Sampler
from lm_eval_embednoise.engine.sampling import Sampling
from lm_eval_embednoise.engine.slots import entries
from lm_eval_embednoise.noise.perturbation import Perturbation
from tests.support.families import tiny

GB = 10**9


def work(prompts: int, length: int, samples: int) -> list[Job]:
    made = torch.randint(0, 100, (prompts, length), generator=torch.Generator().manual_seed(1))
    return [Job(tuple(ids), f"{i}", tuple(range(samples))) for i, ids in enumerate(made.tolist())]


@pytest.fixture
def available(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that sets how much memory the system says is available."""

    def set_to(size: int) -> None:
        given = psutil.virtual_memory()._replace(available=size, free=0)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: given)

    return set_to


@pytest.mark.parametrize(("tokens", "least"), [(256, 200), (1024, 100)])
def test_a_common_machine_takes_the_rows_of_a_common_model(
    tokens: int, least: int, available: Any
) -> None:
    """Qwen2.5-Coder-0.5B's shape in float32, with 18 of 24 GB available, most of them as cache."""
    config = Qwen2Config(
        vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
        num_attention_heads=14, num_key_value_heads=2,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    available(18 * GB)
    rows = room.rows_that_fit(
        Runner(model, Perturbation(), decoder="model"), work(5, 150, 1), tokens
    )
    assert least <= rows < room.MOST_ROWS


@pytest.mark.parametrize("processes", [1, 3])
def test_rows_are_as_many_as_fit(
    processes: int, available: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    runner, jobs = Runner(tiny("qwen2"), Perturbation()), work(3, 40, 2)
    once, row = room.needed(runner, 40, 50)
    for rows in (1, 7, 200):
        available(2 * processes * (once + rows * row))
        assert room.rows_that_fit(runner, jobs, 10) == rows
        available(2 * processes * (once + rows * row) - 2)
        assert room.rows_that_fit(runner, jobs, 10) == max(1, rows - 1)
    available(10**15)
    assert room.rows_that_fit(runner, jobs, 10) == room.MOST_ROWS
    assert room.rows_that_fit(runner, jobs, 10, most=9) == 9


@torch.no_grad()
@pytest.mark.parametrize("family", ["qwen2", "gpt2", "gemma2", "deepseek_v2", "bloom"])
def test_a_row_holds_the_models_own_keys_and_values(family: str) -> None:
    model, cache = tiny(family), DynamicCache()
    model(input_ids=torch.ones(1, 30, dtype=torch.int64), past_key_values=cache)
    held = sum(part.nbytes for layer in entries(cache) for part in layer) // 30
    runner = Runner(model, Perturbation())
    (_, short), (_, long) = room.needed(runner, 20, 30), room.needed(runner, 20, 130)
    assert held * 100 <= long - short <= 4 * held * 100


def test_a_run_chooses_its_rows_when_its_weights_are_laid_out(
    wide_qwen2: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid_out: list[bool] = []

    def counted(runner: Runner, *args: Any) -> int:
        laid_out.append(runner.in_c)
        return 5

    monkeypatch.setattr("lm_eval_embednoise.engine.sampler.rows_that_fit", counted)
    sampler = Sampler(wide_qwen2, Perturbation(), Sampling(max_gen_toks=4), batch_size=None)
    assert len(list(sampler.run(work(2, 9, 3)))) == 6
    assert laid_out == [True] and sampler.batch_size == 5


@pytest.mark.parametrize("decoder", ["auto", "model"])
@pytest.mark.parametrize("columns", [1, 3, 1000])
def test_scores_do_not_need_all_logits_at_once(
    wide_qwen2: Any, decoder: str, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts of unequal length, their logits looked at in pieces of some columns."""
    runner, texts = Runner(wide_qwen2, Perturbation(), decoder=decoder), [
        (3, 14, 15, 9, 2, 6), (5, 3, 5), (8,), (9, 7, 9, 3, 2, 3, 8), (4, 6),
    ]  # fmt: skip
    prompt, vocab = (5, 17, 3, 11), len(runner.embedding)
    most, own = len(texts) * columns * vocab, Lean.logits
    sizes = [0]

    def noted(self: Lean, x: torch.Tensor) -> torch.Tensor:
        logits = own(self, x)
        sizes.append(logits.numel())
        return logits

    monkeypatch.setattr(Lean, "logits", noted)
    monkeypatch.setattr(likelihood, "PIECE", {"cpu": most})
    got = clean_nll(runner, prompt, texts, 64)
    assert max(sizes) <= most
    assert (len(sizes) > 1) == (decoder == "auto")
    for text, nll in zip(texts, got, strict=True):
        with torch.no_grad():
            logits = wide_qwen2(torch.tensor([[*prompt, *text]])).logits[0, len(prompt) - 1 : -1]
        expected = -logits.double().log_softmax(-1).gather(1, torch.tensor(text)[:, None]).sum()
        assert nll == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_a_run_stays_within_what_is_counted() -> None:
    """Large vocabulary, noise, sampling with truncation and scores: peak of resident memory."""
    config = Qwen2Config(
        vocab_size=100_000, hidden_size=64, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    how = Sampling(temperature=0.8, top_p=0.9, max_gen_toks=24)
    sampler = Sampler(model, Perturbation(sigma=0.1), how, batch_size=24, max_length=256)
    jobs = work(3, 60, 8)
    gc.collect()
    with sampler.ready():
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        assert len(list(sampler.run(jobs))) == 24
        once, row = room.needed(sampler.runner, 60, 84)
        peak = _resident("VmHWM") - before
    assert 24 * row / 8 < peak < once + 24 * row


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
