"""Resuming: processes killed with SIGKILL at many moments, and the store's bytes afterwards."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import time
import warnings
from typing import TYPE_CHECKING, Any

import pytest
from lm_eval.api.instance import Instance

from lm_eval_embednoise import cli
from lm_eval_embednoise.engine import likelihood
from lm_eval_embednoise.engine.likelihood import clean_nll
from lm_eval_embednoise.minicoder import load_problems
from lm_eval_embednoise.models.hf_embednoise import HFEmbedNoise
from lm_eval_embednoise.noise.perturbation import Perturbation
from lm_eval_embednoise.store import segments
from lm_eval_embednoise.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

K, PROBLEMS = 4, 3
NOISE = Perturbation(sigma=0.4)
GREEDY: dict[str, Any] = {"until": ["\ndef "], "do_sample": False, "max_gen_toks": 10}
WARM = {**GREEDY, "do_sample": True, "temperature": 0.8}


@pytest.fixture(scope="module")
def lm() -> HFEmbedNoise:
    return HFEmbedNoise(device="cpu", batch_size=16)


@pytest.fixture(autouse=True)
def as_before(lm: HFEmbedNoise) -> Iterator[None]:
    yield
    lm.store, lm._rows, lm.perplexity = None, 16, True
    lm.set_perturbation(NOISE)


def requests(
    gen_kwargs: dict[str, Any] = GREEDY, k: int = K, which: range = range(PROBLEMS)
) -> list[Instance]:
    made = []
    for number in which:
        problem = load_problems("minicode")[number]
        prompt = (problem["prompt"], gen_kwargs)
        metadata = ("minicode_diverse", number, k)
        made += [Instance("generate_until", problem, prompt, 0, metadata=metadata)] * k
    return made


def generate(lm: HFEmbedNoise, folder: Path, rows: int = 16, **options: Any) -> list[str]:
    lm.store, lm._rows = Store(folder, write=True), rows
    return lm.generate_until(requests(**options), disable_tqdm=True)


def exported(folder: Path, out: Path) -> bytes:
    command = ["generations", "export", str(folder), "--to", "rows", "--out", str(out)]
    assert cli.main(command) == 0
    return out.read_bytes()


def written(folder: Path) -> int:
    """Rows in all segments together: more than the store has keys if anything was made twice."""
    query = "SELECT key FROM samples"
    return sum(len(list(segments.rows(path, query))) for path in segments.segment_paths(folder))


def in_child(work: Callable[[], Any]) -> int:
    """Start a process that does the work; its process id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside idle threads
        child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed(child: int) -> bool:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.fixture(scope="module", params=["noise", "temperature"])
def method(request: pytest.FixtureRequest) -> tuple[Perturbation, dict[str, Any]]:
    return (NOISE, GREEDY) if request.param == "noise" else (Perturbation(), WARM)


@pytest.fixture(scope="module")
def whole(lm: HFEmbedNoise, method: Any, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What an uninterrupted run exports."""
    folder = tmp_path_factory.mktemp("whole")
    lm.set_perturbation(method[0])
    generate(lm, folder / "store", gen_kwargs=method[1])
    assert written(folder / "store") == K * PROBLEMS
    return exported(folder / "store", folder / "rows.jsonl")


def at_commit(number: int, moment: str) -> None:
    """Let this process die at its n-th commit: before, inside or after it."""
    append, seen = segments.Writer.append, [0]

    def counting(self: segments.Writer, records: Any) -> None:
        seen[0] += 1
        if seen[0] < number:
            return append(self, records)
        if moment == "before":
            die()
        if moment == "inside" and self._connection is not None:
            self._connection.set_trace_callback(lambda sql: die() if sql == "COMMIT" else None)
        append(self, records)
        die()

    segments.Writer.append = counting  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("number", "moment"), [(1, "after"), (2, "inside"), (5, "before"), (9, "inside"), (11, "after")]
)
def test_killed_at_a_commit_and_resumed_at_another_batch_size(
    lm: HFEmbedNoise, method: Any, whole: bytes, tmp_path: Path, number: int, moment: str
) -> None:
    lm.set_perturbation(method[0])
    folder = tmp_path / "store"

    def work() -> None:
        at_commit(number, moment)
        generate(lm, folder, gen_kwargs=method[1])

    assert killed(in_child(work))
    before = written(folder)
    assert before < K * PROBLEMS
    generate(lm, folder, rows=3, gen_kwargs=method[1])
    assert written(folder) == K * PROBLEMS
    assert exported(folder, tmp_path / "rows.jsonl") == whole


@pytest.mark.parametrize("share", [0.4])
def test_killed_from_outside_whatever_it_does(
    lm: HFEmbedNoise, method: Any, whole: bytes, tmp_path: Path, share: float
) -> None:
    lm.set_perturbation(method[0])
    folder = tmp_path / "store"
    child = in_child(lambda: generate(lm, folder, rows=2, gen_kwargs=method[1]))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if folder.exists() and written(folder) >= share * K * PROBLEMS:
            break
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    before = written(folder)
    assert before >= share * K * PROBLEMS
    generate(lm, folder, rows=5, gen_kwargs=method[1])
    assert written(folder) == K * PROBLEMS
    assert exported(folder, tmp_path / "rows.jsonl") == whole


def test_killed_while_a_segment_is_closed(
    lm: HFEmbedNoise, method: Any, whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log is folded into the file by half, as far as a reader can see: both are there."""
    lm.set_perturbation(method[0])
    folder = tmp_path / "store"

    def close(self: segments.Writer) -> None:
        if self._connection is not None:
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
            die()

    def work() -> None:
        segments.ROWS_A_SEGMENT = 5
        segments.Writer.close = close  # type: ignore[method-assign]
        generate(lm, folder, gen_kwargs=method[1])

    assert killed(in_child(work))
    assert written(folder) == 5
    generate(lm, folder, rows=3, gen_kwargs=method[1])
    assert written(folder) == K * PROBLEMS
    assert exported(folder, tmp_path / "rows.jsonl") == whole


def test_killed_between_texts_and_scores(lm: HFEmbedNoise, tmp_path: Path) -> None:
    """Under noise the texts of a problem are stored before they are scored, and scored later."""
    lm.set_perturbation(NOISE)

    def work() -> None:
        Store.add_nlls = lambda self, rows: die()  # type: ignore[method-assign, assignment]
        generate(lm, tmp_path / "store", which=range(1))

    assert killed(in_child(work))
    assert written(tmp_path / "store") == K
    resumed = generate(lm, tmp_path / "store", rows=2, which=range(1))
    assert written(tmp_path / "store") == K
    plain = generate(lm, tmp_path / "other", which=range(1))
    for a, b in zip(resumed, plain, strict=True):
        assert a == b
        assert a.nll == pytest.approx(b.nll, rel=1e-5)
        assert a.nll_tokens == b.nll_tokens


@pytest.mark.parametrize(
    "perturbation", [NOISE, Perturbation(prefix="random:5")], ids=["noise", "prefix"]
)
def test_scores_with_a_store_are_those_without(
    lm: HFEmbedNoise, tmp_path: Path, perturbation: Perturbation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit: one scheduler serves both, and runs each clean prompt once."""
    calls: list[int] = []

    def counted(runner: Any, ids: Any, texts: list[Any], rows: int) -> Any:
        calls.append(len(texts))
        return clean_nll(runner, ids, texts, rows)

    monkeypatch.setattr(likelihood, "clean_nll", counted)
    lm.set_perturbation(perturbation)
    stored = generate(lm, tmp_path)
    assert len(calls) == PROBLEMS
    lm.store = None
    alone = lm.generate_until(requests(), disable_tqdm=True)
    assert stored == alone
    assert [a.nll for a in stored] == [b.nll for b in alone]
    assert len(calls) == 2 * PROBLEMS
    assert calls[PROBLEMS:] == calls[:PROBLEMS]


def test_two_processes_write_one_store(
    lm: HFEmbedNoise, method: Any, whole: bytes, tmp_path: Path
) -> None:
    lm.set_perturbation(method[0])
    folder = tmp_path / "store"
    children = [
        in_child(lambda which=which: generate(lm, folder, gen_kwargs=method[1], which=which))
        for which in (range(0, 2), range(2, PROBLEMS))
    ]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    assert len(segments.segment_paths(folder)) == 2
    assert exported(folder, tmp_path / "rows.jsonl") == whole
    generate(lm, folder, gen_kwargs=method[1])
    assert written(folder) == K * PROBLEMS


def test_two_processes_killed_and_resumed_by_one(
    lm: HFEmbedNoise, method: Any, whole: bytes, tmp_path: Path
) -> None:
    lm.set_perturbation(method[0])
    folder = tmp_path / "store"

    def work(which: range, number: int) -> None:
        at_commit(number, "inside")
        generate(lm, folder, gen_kwargs=method[1], which=which)

    children = [
        in_child(lambda which=which, number=number: work(which, number))
        for which, number in ((range(0, 2), 4), (range(2, PROBLEMS), 3))
    ]
    assert [killed(child) for child in children] == [True, True]
    assert written(folder) >= 1
    generate(lm, folder, rows=7, gen_kwargs=method[1])
    assert written(folder) == K * PROBLEMS
    assert exported(folder, tmp_path / "rows.jsonl") == whole


@pytest.mark.parametrize(
    "perturbation",
    [Perturbation(prefix="random:5"), Perturbation(rsp=2), Perturbation(positions="dummy:2")],
    ids=["prefix", "soft prompt", "dummies"],
)
def test_added_prompts_resume_too(
    lm: HFEmbedNoise, tmp_path: Path, perturbation: Perturbation
) -> None:
    lm.set_perturbation(perturbation)

    def work() -> None:
        at_commit(4, "inside")
        generate(lm, tmp_path / "a", which=range(1))

    assert killed(in_child(work))
    resumed = generate(lm, tmp_path / "a", rows=2, which=range(1))
    assert written(tmp_path / "a") == K
    assert resumed == generate(lm, tmp_path / "b", which=range(1))
    assert exported(tmp_path / "a", tmp_path / "x") == exported(tmp_path / "b", tmp_path / "y")
    for a, b in zip(resumed, lm.generate_until(requests(which=range(1)), True), strict=True):
        assert a.nll == pytest.approx(b.nll, rel=1e-5)


def test_a_log_torn_anywhere_loses_its_end_and_nothing_else(
    lm: HFEmbedNoise, tmp_path: Path
) -> None:
    lm.set_perturbation(NOISE)
    folder = tmp_path / "store"

    def work() -> None:
        at_commit(9, "after")
        generate(lm, folder)

    assert killed(in_child(work))
    (path,) = segments.segment_paths(folder)
    log = path.with_name(path.name + "-wal")
    content, query = log.read_bytes(), "SELECT key FROM samples ORDER BY rowid"
    every = [key for (key,) in segments.rows(path, query)]
    assert len(every) >= 6
    seen = set()
    for length in range(0, len(content), 3001):
        log.write_bytes(content[:length])
        kept = [key for (key,) in segments.rows(path, query)]
        assert kept == every[: len(kept)]
        seen.add(len(kept))
    log.write_bytes(content[:-100] + bytes(100))  # and with its last frame overwritten
    assert [key for (key,) in segments.rows(path, query)] == every[:-1]
    assert len(seen) > 4


def test_what_the_store_has_is_taken_and_not_generated(
    lm: HFEmbedNoise, method: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm.set_perturbation(method[0])
    first = generate(lm, tmp_path, gen_kwargs=method[1])
    measured, std = lm.rho(), lm._measured.mean("std")
    lm.set_perturbation(method[0])
    monkeypatch.setattr(
        "lm_eval_embednoise.engine.runner.Runner.forward", lambda *a, **k: pytest.fail("ran")
    )
    again = generate(lm, tmp_path, gen_kwargs=method[1])
    assert again == first
    assert [a.measurements() for a in again] == [b.measurements() for b in first]
    assert lm.rho() == measured
    assert lm._measured.mean("std") == std
    one = generate(lm, tmp_path, gen_kwargs=method[1], which=range(1, 2))
    assert one == first[K : 2 * K]


def test_more_samples_are_added_to_those_there(lm: HFEmbedNoise, tmp_path: Path) -> None:
    lm.set_perturbation(NOISE)
    few = generate(lm, tmp_path / "a", k=2)
    more = generate(lm, tmp_path / "a", k=5)
    assert written(tmp_path / "a") == 5 * PROBLEMS
    assert [more[5 * i + j] for i in range(PROBLEMS) for j in range(2)] == few
    assert more == generate(lm, tmp_path / "b", k=5)


def test_greedy_copies_are_rows_made_once(
    lm: HFEmbedNoise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K identical samples are K rows; more of them cost nothing, under any seed."""
    lm.set_perturbation(Perturbation())
    generate(lm, tmp_path, k=2)
    assert written(tmp_path) == 2 * PROBLEMS
    monkeypatch.setattr(
        "lm_eval_embednoise.engine.runner.Runner.forward", lambda *a, **k: pytest.fail("ran")
    )
    lm.set_perturbation(Perturbation(seed=7, depth=5, sigma=0))
    texts = generate(lm, tmp_path, k=4)
    assert written(tmp_path) == 4 * PROBLEMS
    assert len(set(texts)) <= PROBLEMS
    assert len(Store(tmp_path).settings()) == 1


def test_another_dose_seed_or_limit_is_another_key(lm: HFEmbedNoise, tmp_path: Path) -> None:
    lm.set_perturbation(NOISE)
    generate(lm, tmp_path, which=range(1))
    for perturbation, gen_kwargs in (
        (Perturbation(sigma=0.2), GREEDY),
        (Perturbation(sigma=0.4, seed=1), GREEDY),
        (NOISE, {**GREEDY, "max_gen_toks": 9}),
        (NOISE, {**GREEDY, "until": ["\nclass "]}),
        (NOISE, WARM),
    ):
        lm.set_perturbation(perturbation)
        before = written(tmp_path)
        generate(lm, tmp_path, gen_kwargs=gen_kwargs, which=range(1))
        assert written(tmp_path) == before + K
    assert len(Store(tmp_path).settings()) == 6


def test_a_prompt_too_long_is_stored_as_the_failure_it_is(lm: HFEmbedNoise, tmp_path: Path) -> None:
    lm.set_perturbation(NOISE)
    long = Instance("generate_until", {}, ("x " * 5000, GREEDY), 0, metadata=("t", 0, 2))
    lm.store = Store(tmp_path, write=True)
    for _ in range(2):
        texts = lm.generate_until([long] * 2, disable_tqdm=True)
        assert [(t.finish_reason, t.nll) for t in texts] == [("prompt_too_long", None)] * 2
    assert written(tmp_path) == 2


def test_a_store_without_scores_gets_them_when_asked(lm: HFEmbedNoise, tmp_path: Path) -> None:
    lm.set_perturbation(NOISE)
    lm.perplexity = False
    assert all(text.nll is None for text in generate(lm, tmp_path / "a", which=range(1)))
    lm.perplexity = True
    scored = generate(lm, tmp_path / "a", which=range(1))
    assert written(tmp_path / "a") == K
    for a, b in zip(scored, generate(lm, tmp_path / "b", which=range(1)), strict=True):
        assert a.nll == pytest.approx(b.nll, rel=1e-5)


def test_a_disk_that_fills_up_stops_the_run_and_keeps_what_was_stored(
    lm: HFEmbedNoise, tmp_path: Path
) -> None:
    """RLIMIT_FSIZE stands for the full disk: SQLite's write fails in the middle of the run."""
    lm.set_perturbation(NOISE)
    folder, said = tmp_path / "store", tmp_path / "said"

    def work() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (220_000, 220_000))
        try:
            generate(lm, folder, k=8)
        except OSError as error:
            said.write_text(str(error))

    os.waitpid(in_child(work), 0)
    assert f"cannot write to the generation store {folder}" in said.read_text()
    assert "make room" in said.read_text()
    assert "\n" not in said.read_text()
    kept = written(folder)
    assert kept > 3
    again = generate(lm, folder, k=8)
    assert written(folder) == 8 * PROBLEMS
    assert again == generate(lm, tmp_path / "other", k=8)


def evaluate(model: Any, **options: Any) -> None:
    """A run through the harness, in this process or in one of its own."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from lm_eval_embednoise import plugin
    from lm_eval_embednoise.problems.task_files import task_dir

    plugin.register()
    simple_evaluate(
        model=model,
        tasks=["minicode_diverse_k10"],
        task_manager=TaskManager(include_defaults=False, include_path=task_dir()),
        limit=4,
        gen_kwargs={"max_gen_toks": 16},
        bootstrap_iters=0,
        **options,
    )


def test_a_harness_run_resumes_and_says_so(
    lm: HFEmbedNoise, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A process of its own, killed with SIGKILL while it generates, then run again."""
    store = tmp_path / "store"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    code = "from typing import Any\n" + inspect.getsource(evaluate)
    code += "import sys\nevaluate('hf-embednoise', model_args=sys.argv[1], batch_size='2')\n"
    arguments = f"sigma=0.4,device=cpu,store={store}"
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", code, arguments], env=environment, stdout=log, stderr=log
        )
        while process.poll() is None and not (store.exists() and written(store) >= 5):
            time.sleep(0.05)
        process.kill()
        assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    there = written(store)
    assert 5 <= there < 40
    lm.set_perturbation(NOISE)
    lm.store, lm._rows = Store(store, write=True), 16
    with caplog.at_level("INFO"):
        evaluate(lm)
    assert f"{there} of 40 samples are in the store {store}; generating {40 - there}" in caplog.text
    assert written(store) == 40


def test_a_damaged_segment_is_named(lm: HFEmbedNoise, tmp_path: Path) -> None:
    lm.set_perturbation(NOISE)
    generate(lm, tmp_path, which=range(1))
    (path,) = segments.segment_paths(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(segments.StoreError, match=f"{path.name} is damaged.*move it"):
        generate(lm, tmp_path, which=range(1))
    path.unlink()
    generate(lm, tmp_path, which=range(1))
    assert written(tmp_path) == K
