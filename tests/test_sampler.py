"""The sampler against transformers' generate, and samples that don't depend on their company."""

from __future__ import annotations

import dataclasses
import gc
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import PreTrainedModel

from lm_eval_embednoise.engine import batch, likelihood
from lm_eval_embednoise.engine.choose import choose
from lm_eval_embednoise.engine.jobs import Job, Sample, Stop
from lm_eval_embednoise.engine.likelihood import clean_nll
from lm_eval_embednoise.engine.prefill import Prepared, prefill_noisy
from lm_eval_embednoise.engine.runner import EXACT_ROWS, Runner
from lm_eval_embednoise.engine.sampler import Sampler
from lm_eval_embednoise.engine.sampling import Sampling
from lm_eval_embednoise.noise.perturbation import Perturbation
from tests.support.families import tiny

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROMPTS = [(5, 17, 3), (9, 9, 2, 8, 30, 31, 7), (4,), (60, 2, 2, 2, 11), (71, 72)]
NEW = 12
METHODS = {
    "greedy": (Perturbation(), Sampling(max_gen_toks=NEW)),
    "temperature": (Perturbation(), Sampling(temperature=0.8, max_gen_toks=NEW)),
    "prompt noise": (Perturbation(sigma=0.6), Sampling(max_gen_toks=NEW)),
    "noise everywhere": (
        Perturbation(sigma=0.6, positions="all", depth="embed+1"),
        Sampling(max_gen_toks=NEW),
    ),
    "noise and nucleus": (
        Perturbation(sigma=0.4, positions="generated", scope="sequence"),
        Sampling(temperature=1.0, top_p=0.9, max_gen_toks=NEW),
    ),
    "first tokens in turn": (
        Perturbation(sigma=0.6),
        Sampling(temperature=0.8, max_gen_toks=NEW, first_token="stratified:2"),
    ),
}


def jobs(samples: tuple[int, ...] = (0, 1, 2)) -> list[Job]:
    return [Job(prompt, f"problem {i}", samples) for i, prompt in enumerate(PROMPTS)]


def run(
    model: PreTrainedModel, method: str, batch_size: int, work: list[Job], end: int | None = 40
) -> dict[tuple[str, int], Sample]:
    perturbation, sampling = METHODS[method]
    stop = Stop(frozenset() if end is None else frozenset({end}))
    sampler = Sampler(model, perturbation, sampling, stop, batch_size=batch_size)
    return {(work[s.job].problem, s.index): s for s in sampler.run(work)}


@torch.no_grad()
def generate(model: PreTrainedModel, prompt: tuple[int, ...], end: int) -> list[int]:
    """Greedy decoding by transformers, up to the end token."""
    ids = torch.tensor([prompt])
    mask = torch.ones_like(ids)
    out = model.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW, eos_token_id=end,
        pad_token_id=end,
    )  # fmt: skip
    new = out[0, len(prompt) :].tolist()
    return new[: new.index(end)] if end in new else new


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_greedy_is_generates_token_for_token(family: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(family)
    end = generate(model, PROMPTS[0], 96)[3]  # a token that this prompt does generate
    got = run(model, "greedy", 3, jobs(), end)
    for i, prompt in enumerate(PROMPTS):
        expected = generate(model, prompt, end)
        for index in (0, 1, 2):
            assert got[f"problem {i}", index].ids == expected
    assert {s.finish_reason for s in got.values()} == {"end_token", "length"}


@pytest.mark.parametrize("method", METHODS)
def test_samples_do_not_depend_on_batch_size_order_or_companions(
    qwen2: PreTrainedModel, method: str
) -> None:
    alone = run(qwen2, method, 1, jobs())
    together = run(qwen2, method, 64, jobs())
    refilled = run(qwen2, method, 4, list(reversed(jobs())))
    some = run(qwen2, method, 4, [Job(PROMPTS[3], "problem 3", (2,))])
    for key, sample in alone.items():
        for other in (together[key], refilled[key]):
            assert (other.ids, other.finish_reason) == (sample.ids, sample.finish_reason)
            assert other.nll == pytest.approx(sample.nll, rel=1e-4)
            assert other.rho == pytest.approx(sample.rho)
    assert some["problem 3", 2].ids == alone["problem 3", 2].ids
    different = {tuple(alone[f"problem {i}", s].ids) for i in range(5) for s in range(3)}
    assert len(different) == 5 if method == "greedy" else len(different) > 8


@pytest.mark.parametrize("method", ["greedy", "temperature", "prompt noise"])
def test_tokens_are_told_as_they_come(qwen2: PreTrainedModel, method: str) -> None:
    perturbation, sampling = METHODS[method]
    told: list[tuple[int, int]] = []
    stop = Stop(frozenset({40}))
    sampler = Sampler(
        qwen2, perturbation, sampling, stop, batch_size=64, on_tokens=lambda *new: told.append(new)
    )
    samples = list(sampler.run(jobs(tuple(range(10)))))
    came, read = zip(*told, strict=True)
    assert sum(came) == sum(len(sample.ids) for sample in samples)
    assert len(came) >= NEW and max(came) <= len(samples)
    assert sum(read) == sum(map(len, PROMPTS)) * (10 if perturbation.perturbs_prompt else 1)
    assert read[0] and not came[0]


def test_sigma_zero_is_the_plain_model(qwen2: PreTrainedModel) -> None:
    plain = run(qwen2, "greedy", 8, jobs())
    silent = Perturbation(sigma=0.0, depth="1", positions="all")
    sampler = Sampler(qwen2, silent, Sampling(max_gen_toks=NEW), Stop(frozenset({40})))
    for sample in sampler.run(jobs()):
        assert sample.ids == plain[f"problem {sample.job}", sample.index].ids
        assert sample.rho == {}


def test_identical_work_is_done_once(
    qwen2: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []
    original = Runner.forward

    def counting(self, ids, *args, **kwargs):
        rows.append(ids.numel())
        return original(self, ids, *args, **kwargs)

    monkeypatch.setattr(Runner, "forward", counting)
    samples = run(qwen2, "greedy", 64, jobs(tuple(range(100))))
    assert len(samples) == 500
    assert sum(rows) <= sum(map(len, PROMPTS)) + len(PROMPTS) * NEW


@pytest.mark.parametrize("method", METHODS)
def test_nll_is_the_clean_models(qwen2: PreTrainedModel, method: str) -> None:
    for (_, _), sample in run(qwen2, method, 8, jobs((0, 1))).items():
        prompt = PROMPTS[sample.job]
        with torch.no_grad():
            logits = qwen2(torch.tensor([[*prompt, *sample.ids]])).logits[0, len(prompt) - 1 : -1]
        if sample.ids:
            chosen = logits.log_softmax(-1).gather(1, torch.tensor(sample.ids)[:, None])
            assert sample.nll == pytest.approx(-float(chosen.sum()), rel=1e-4)
        else:
            assert sample.nll == 0


def test_stop_rule_cuts_ids_and_nll(qwen2: PreTrainedModel) -> None:
    free = run(qwen2, "greedy", 8, jobs((0,)), end=None)["problem 0", 0]
    ends = free.ids[5]
    first = free.ids.index(ends)
    may_end = torch.zeros(97, dtype=torch.bool)
    may_end[ends] = True
    stop = Stop(frozenset(), may_end, lambda ids, _: len(ids) - 2 if ids[-1] == ends else None)
    sampler = Sampler(qwen2, *METHODS["greedy"], stop)
    (sample,) = sampler.run([Job(PROMPTS[0], "problem 0", (0,))])
    assert sample.finish_reason == "stop_string"
    assert sample.ids == free.ids[: first + 1]
    assert sample.kept == max(0, first - 1)
    texts = [tuple(free.ids[: sample.kept])]
    assert sample.nll == pytest.approx(sampler.clean_nll(PROMPTS[0], texts)[0], rel=1e-4)


def test_a_prompt_without_room_fails_alone(qwen2: PreTrainedModel) -> None:
    sampler = Sampler(qwen2, *METHODS["temperature"], max_length=6)
    samples = list(sampler.run(jobs((0, 1))))
    assert len(samples) == 10
    by_job = {s.job: s for s in samples}
    assert by_job[1].finish_reason == "prompt_too_long"
    assert by_job[1].ids == []
    assert len(by_job[2].ids) == 5  # the limit is the room that is left


@pytest.mark.parametrize("warm", [0.0, 1.5])
def test_first_tokens_are_the_likeliest_in_turn(qwen2, warm: float) -> None:
    """Against the prompt's own logits; what follows greedily is what follows the longer prompt."""
    sampling = Sampling(temperature=warm, max_gen_toks=4, first_token="stratified:3")
    plain = dataclasses.replace(sampling, first_token=None, max_gen_toks=3)
    job = jobs((0, 2, 3, 7, 8))[1]
    samples = list(Sampler(qwen2, Perturbation(), sampling).run([job]))
    with torch.no_grad():
        ranked = qwen2(torch.tensor([job.prompt_ids])).logits[0, -1].argsort(descending=True)
    for sample in samples:
        first = int(ranked[sample.index % 3])
        assert sample.ids[0] == first
        longer = Job((*job.prompt_ids, first), job.problem, (sample.index,))
        if not warm:
            (rest,) = Sampler(qwen2, Perturbation(), plain).run([longer])
            assert sample.ids[1:] == rest.ids
    if not warm:  # samples 0 and 3, and 2 and 8, are one decode each
        assert sorted(s.index for s in samples if s.seconds == 0) == [3, 8]


def test_more_first_tokens_than_the_vocabulary_are_refused(qwen2) -> None:
    with pytest.raises(ValueError, match=r"first_token=stratified:98: the model has 97 tokens"):
        Sampler(qwen2, Perturbation(), Sampling(first_token="stratified:98"))


def test_choice_follows_the_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -torch.inf]])
    u = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    tokens = choose(logits.expand(20000, -1), Sampling(temperature=2.0), u)
    shares = torch.bincount(tokens, minlength=4) / 20000
    assert torch.allclose(shares, (logits[0] / 2).softmax(-1), atol=1e-3)


@pytest.mark.parametrize("rows", [1, 6])  # with entries of their own, and sharing the prompt's
def test_prompts_prefilled_in_one_pass_are_what_they_are_alone(
    qwen2: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """Prompts of nearly one length share a pass; one that is much longer has its own."""
    lengths = (10, 9, 11, 40, 10)
    texts = [tuple((7 * n + 3 * at) % 90 + 1 for at in range(n)) for n in lengths]
    work = [Job(ids, f"p{n}", tuple(range(rows))) for n, ids in enumerate(texts)]
    passes: list[tuple[int, int]] = []
    forward = Runner.forward

    def counted(self: Runner, ids: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if ids.shape[1] > 1:
            passes.append(tuple(ids.shape))
        return forward(self, ids, *args, **kwargs)

    monkeypatch.setattr(Runner, "forward", counted)

    def samples(jobs: list[Job]) -> dict[tuple[str, int], list[int]]:
        sampling = Sampling(temperature=1.0, max_gen_toks=8)
        sampler = Sampler(qwen2, Perturbation(), sampling, batch_size=64)
        return {(jobs[s.job].problem, s.index): s.ids for s in sampler.run(jobs)}

    together = samples(work)
    assert (4, 11) in passes
    assert (1, 40) in passes
    alone = {key: ids for job in work for key, ids in samples([job]).items()}
    assert together == alone


HEADS = {  # perturbations that reach a prompt's end → what of 20 positions comes before
    "last": (Perturbation(sigma=0.4, positions="last:6", depth="embed+1"), {}, 14),
    "dummies": (Perturbation(sigma=0.4, positions="dummy:2"), {}, 18),
    "soft prompt": (Perturbation(rsp=3), {"soft_start": 17}, 17),
    "both": (Perturbation(rsp=3, sigma=0.4, positions="last:6"), {"soft_start": 17}, 14),
}


@pytest.mark.parametrize("family", ["qwen2", "wide qwen2", "gemma2", "gpt_oss", "gpt2", "bloom"])
@pytest.mark.parametrize("kind", HEADS)
def test_a_prompts_shared_part_is_run_once(
    kind: str, family: str, wide_qwen2: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples are those that keep all entries themselves; also beyond windows and after refills."""
    perturbation, more, head = HEADS[kind]
    model = wide_qwen2 if family == "wide qwen2" else tiny(family)
    texts = [tuple((7 * n + 3 * at) % 90 + 1 for at in range(20)) for n in range(2)]
    work = [Job(ids, f"p{n}", tuple(range(6)), **more) for n, ids in enumerate(texts)]
    lengths: list[int] = []

    def seen(runner: Runner, cache: Any, ready: Prepared, *rest: Any) -> Any:
        lengths.append(ready.shared_len)
        return prefill_noisy(runner, cache, ready, *rest)

    monkeypatch.setattr(batch, "prefill_noisy", seen)

    def samples(share: bool) -> list[Sample]:
        sampling = Sampling(temperature=1.0, max_gen_toks=8)
        sampler = Sampler(model, perturbation, sampling, Stop(frozenset({40})), batch_size=8)
        sampler.runner.shares_prompts &= share
        return sorted(sampler.run(work), key=lambda s: (s.job, s.index))

    shared = samples(True)
    assert set(lengths) == ({0} if family == "bloom" else {head})
    lengths.clear()
    for sample, alone in zip(shared, samples(False), strict=True):
        assert sample.ids == alone.ids
        assert sample.nll == pytest.approx(alone.nll, rel=1e-4)
        assert sample.rho == pytest.approx(alone.rho, rel=1e-4)
    assert set(lengths) == {0}


def test_texts_behind_one_clean_prompt_are_scored_together(
    qwen2: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random prefixes make a job of every sample; the clean prompt is run once for all of them."""
    clean = {0: (5, 9, 3), 1: (60, 2, 8)}
    work = [
        Job((*range(70, 71 + (n + s) % 3), *ids), f"p{n}", (s,), clean_ids=ids)
        for s in range(4)
        for n, ids in clean.items()
    ]
    calls: list[tuple[int, ...]] = []

    def counted(runner: Runner, ids: tuple[int, ...], *more: Any) -> list[float | None]:
        calls.append(ids)
        return clean_nll(runner, ids, *more)

    monkeypatch.setattr(likelihood, "clean_nll", counted)
    settings = Sampling(temperature=1.0, max_gen_toks=6)
    sampler = Sampler(qwen2, Perturbation(prefix="random:2"), settings, batch_size=3)
    found = list(sampler.run(work))
    assert sorted(calls) == sorted(clean.values())
    for sample in found:
        (nll,) = sampler.clean_nll(work[sample.job].clean, [tuple(sample.ids)])
        assert sample.nll == pytest.approx(nll, rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_exact_samples_are_equal_bit_for_bit_in_any_company(
    either: PreTrainedModel, method: str
) -> None:
    def exact(batch_size: int, work: list[Job]) -> dict[tuple[str, int], tuple]:
        sampler = Sampler(
            either, *METHODS[method], Stop(frozenset({40})), batch_size=batch_size, exact=True
        )
        return {
            (work[s.job].problem, s.index): (s.ids, s.nll, s.rho, s.finish_reason)
            for s in sampler.run(work)
        }

    many = tuple(range(EXACT_ROWS + 3))  # a second tile, not full
    whole = exact(64, jobs(many))
    assert len(whole) == len(PROMPTS) * len(many)
    for samples in ((0,), (1, EXACT_ROWS + 2)):
        for key, sample in exact(1, jobs(samples)[::-1]).items():
            assert sample == whole[key], key
    plain = run(either, method, 64, jobs(many))
    differing = [key for key, sample in plain.items() if whole[key][0] != sample.ids]
    assert len(differing) <= 0.03 * len(plain)  # another shape may round a near tie the other way


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])  # lean, sliding window, its own
@pytest.mark.parametrize("method", METHODS)
def test_memory_goes_with_its_last_user(family: str, method: str) -> None:
    """Keys and values in a reference circle would wait for the collector, gigabytes of them."""
    model = tiny(family)
    first = run(model, method, 4, jobs())  # what a model keeps, it keeps from here on
    gc.collect()
    gc.disable()
    gc.freeze()  # only what comes from here on is listed
    try:
        assert run(model, method, 4, jobs()).keys() == first.keys()
        assert not [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]
    finally:
        gc.unfreeze()
        gc.enable()


@pytest.mark.parametrize(("rsp", "start"), [(2, None), (0, 1)])
def test_a_job_without_its_soft_prompt_is_refused(
    rsp: int, start: int | None, qwen2: PreTrainedModel
) -> None:
    work = [Job(PROMPTS[0], "p", (0,), soft_start=start)]
    with pytest.raises(ValueError, match=rf"soft_start={start} and the perturbation rsp={rsp}"):
        list(Sampler(qwen2, Perturbation(rsp=rsp), Sampling(max_gen_toks=2)).run(work))
