"""The embedded model: its problems and solutions, held-out data, tokenizer and weights."""

from __future__ import annotations

import argparse
import ast
import json
import random
import re
from itertools import islice

import pytest

from lm_eval_embednoise import minicoder
from lm_eval_embednoise.minicoder import heldout, problems, wordproblems
from lm_eval_embednoise.minicoder.grammar import AGGREGATES, DOMAINS
from lm_eval_embednoise.minicoder.make_data import to_jsonl
from lm_eval_embednoise.minicoder.pieces import FILTERS, MAPS
from lm_eval_embednoise.minicoder.render import RENDERERS, render
from lm_eval_embednoise.minicoder.strategies import STRATEGIES, strategy

STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")


@pytest.fixture(scope="module")
def code_records():
    return heldout.minicode_records()


@pytest.fixture(scope="module")
def math_records():
    return heldout.minimath_records()


def run_check(record, body: str) -> None:
    scope: dict = {}
    exec(record["prompt"] + body + "\n" + record["test"], scope)
    scope["check"](scope[record["entry_point"]])


# The files


def test_minicode_file_is_what_the_generator_writes(code_records):
    written = (minicoder.DATA_DIR / "minicode.jsonl").read_bytes()
    assert written == to_jsonl(code_records).encode()


def test_minimath_file_is_what_the_generator_writes(math_records):
    written = (minicoder.DATA_DIR / "minimath.jsonl").read_bytes()
    assert written == to_jsonl(math_records).encode()


@pytest.mark.parametrize(
    ("name", "split", "size"),
    [
        ("minicode", "test", 164),
        ("minicode", "calibration", 64),
        ("minimath", "test", 200),
        ("minimath", "calibration", 64),
    ],
)
def test_sizes_and_ids(name, split, size):
    loaded = minicoder.load_problems(name, split)
    assert len(loaded) == size
    assert len({p["task_id"] for p in loaded}) == size
    assert all(p["task_id"].startswith(f"{name}/") and p["cluster"] for p in loaded)


@pytest.mark.parametrize("arguments", [("minicod",), ("minicode", "train")])
def test_unknown_names_are_refused(arguments):
    with pytest.raises(ValueError, match="there are"):
        minicoder.load_problems(*arguments)


def test_canonical_solutions_pass_and_the_form_is_humanevals():
    for split in minicoder.SPLITS:
        for record in minicoder.load_problems("minicode", split):
            run_check(record, record["canonical_solution"])
            assert record["prompt"].startswith(f"def {record['entry_point']}(")
            assert record["prompt"].endswith('"""\n')
            assert record["test"].startswith("def check(candidate):\n    assert candidate(")
            assert record["test"].count("assert ") == len(record["inputs"]) >= 8


def test_tests_include_the_empty_input():
    empty = {"text": "", "chars": "", "range": 0, "digits": 0}
    for record in minicoder.load_problems("minicode"):
        domain = record["composition"][0]
        firsts = [arguments[0] for arguments in record["inputs"]]
        assert empty.get(domain, []) in firsts


# Held out


def test_no_held_out_composition_occurs_in_training(code_records, math_records):
    code = frozenset(map(heldout.composition_of, code_records))
    math = frozenset(tuple(r["combination"]) for r in math_records)
    assert len(code) == len(code_records)  # calibration and test are disjoint too
    assert len(math) == len(math_records)
    prompts = {r["prompt"] for r in code_records}
    questions = {wordproblems.prompt_of(r["question"]) for r in math_records}
    for shard in (0, 1):
        drawn = list(islice(problems.training_problems(shard, code), 800))
        assert not {p.composition for p in drawn} & code
        assert not {p.prompt for p in drawn} & prompts
        pairs = list(islice(wordproblems.training_examples(shard, math), 800))
        assert not {prompt for prompt, _ in pairs} & questions


def test_the_exclusion_is_what_keeps_them_apart():
    everything = list(islice(problems.training_problems(0, frozenset()), 300))
    banned = frozenset(p.composition for p in everything[::3])
    rest = list(islice(problems.training_problems(0, banned), 300))
    assert not {p.composition for p in rest} & banned


# The tests tell right from wrong


def test_wrong_near_neighbours_fail(code_records):
    """Dropping a filter or a map, or taking another aggregate, fails the written tests."""
    rng = random.Random(5)
    survivors = tried = 0
    for record in rng.sample(code_records, 60):
        body = record["canonical_solution"]
        wrong = [
            body.replace(a, b)
            for a, b in ((" and ", " or "), (">=", ">"), ("<=", "<"), (" % 2 == 0", " % 2 == 1"),
                         ("sum(", "max("), ("sorted(", "list("), ("not in", "in"), (" ** 2", ""))
            if a in body
        ]  # fmt: skip
        for other in wrong:
            tried += 1
            try:
                run_check(record, other)
            except (AssertionError, TypeError, ValueError, IndexError):
                continue
            survivors += 1
    assert tried >= 40
    assert survivors <= tried * 0.1  # some changes are no change: a sum over numbers without ties


def test_must_fail_neighbours_fail_on_every_problem():
    rng = random.Random(11)
    made = 0
    while made < 25:
        problem = problems.draw_problem(rng)
        inputs = heldout.choose_inputs(problem, rng)
        if inputs is None:
            continue
        made += 1
        truth = heldout.answers(problem, problem.spec, inputs)
        must, _ = heldout.neighbours(problem.spec)
        assert must
        assert all(heldout.answers(problem, wrong, inputs) != truth for wrong in must)


def test_a_useless_filter_is_not_held_out():
    numbers = next(d for d in DOMAINS if d.name == "numbers")
    by_name = {f.name: f for f in FILTERS}
    total = next(a for a in AGGREGATES if a.name == "sum")
    filters = [by_name["even"], by_name["odd"]]  # nothing is both
    problem = problems.dress(numbers, filters, [], total, random.Random(0))
    assert heldout.choose_inputs(problem, random.Random(0)) is None


# Solutions


@pytest.mark.parametrize("how", RENDERERS)
def test_every_way_of_writing_agrees_with_the_reference(how):
    rng = random.Random(how)
    for _ in range(80):
        problem = problems.draw_problem(rng)
        body = render(problem.spec, how, rng)
        assert problems.agrees(problem, body, rng, trials=4), problem.prompt + body
        assert body.startswith("    ")
        assert not any(stop in "\n" + body for stop in STOPS)
        assert len(ast.parse(problem.prompt + body).body) == 1


def test_every_piece_is_drawn():
    rng = random.Random(2)
    drawn = [problems.draw_problem(rng).composition for _ in range(4000)]
    assert {d for d, _, _, _ in drawn} == {d.name for d in DOMAINS}
    assert {f for _, filters, _, _ in drawn for f in filters} == {f.name for f in FILTERS}
    assert {m for _, _, maps, _ in drawn for m in maps} == {m.name for m in MAPS}
    assert {a for _, _, _, a in drawn} == {a.name for a in AGGREGATES}
    assert len(set(drawn)) > 3000


def test_names_shadow_no_builtin():
    import builtins

    rng = random.Random(3)
    for _ in range(500):
        problem = problems.draw_problem(rng)
        body = render(problem.spec, rng.choice(list(RENDERERS)), rng)
        tree = ast.parse(problem.prompt + body)
        bound = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
        bound |= {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
        bound |= {
            n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
        }
        assert not bound & set(dir(builtins))


@pytest.mark.parametrize(
    ("expected", "how"),
    [
        ("loop", "loop_if"), ("loop", "while_pop"), ("comprehension", "list_comprehension"),
        ("comprehension", "two_comprehensions"), ("functional", "generator_expression"),
        ("functional", "reduction"), ("recursion", "recursion"), ("other", "generator_function"),
    ],
)  # fmt: skip
def test_strategy_of_each_way(expected, how):
    rng = random.Random(7)
    for _ in range(30):
        problem = problems.draw_problem(rng)
        assert strategy(problem.prompt + render(problem.spec, how, rng)) == expected
    assert expected in STRATEGIES


def test_strategy_of_code_that_does_not_parse_is_none():
    assert strategy("def f(:\n") is None
    assert strategy("x = '\0'") is None


def test_training_covers_all_strategies_about_equally():
    pairs = list(islice(problems.training_examples(0, frozenset()), 600))
    counts = {s: sum(strategy(p + b) == s for p, b in pairs) for s in STRATEGIES}
    assert min(counts.values()) > 60, counts


# Word problems


def test_worked_answers_are_right():
    rng = random.Random(4)
    families = set()
    for _ in range(400):
        problem = wordproblems.draw_word_problem(rng)
        families.add(problem.family)
        *steps, last = problem.answer.split("\n")
        for step in steps:
            found = re.search(r"(\d+) ([-+*/]) (\d+) = (\d+)", step)
            assert found
            operator, right = found[2], found[4]
            a, b = int(found[1]), int(found[3])
            value = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[operator]
            assert value == int(right)
            assert operator != "/" or a % b == 0
        assert last == f"#### {value}"
        assert value >= 0
    assert families == {"story", "compare", "shopping", "boxes"}


def test_streams_are_functions_of_their_seed():
    def first(stream):
        return list(islice(stream, 20))

    none = frozenset()
    for examples in (problems.training_examples, wordproblems.training_examples):
        assert first(examples(1, none)) == first(examples(1, none))
        assert first(examples(1, none)) != first(examples(2, none))


# The model


@pytest.fixture(scope="module")
def tokenizer():
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(minicoder.MODEL_DIR)


@pytest.fixture(scope="module")
def model():
    transformers = pytest.importorskip("transformers")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(minicoder.MODEL_DIR, dtype="auto")
    return loaded.eval()


def test_auto_tokenizer_gives_the_training_ids(tokenizer):
    """AutoTokenizer builds Qwen2Tokenizer whatever the files say; the raw file must agree."""
    from tokenizers import Tokenizer
    from transformers import Qwen2Tokenizer

    assert type(tokenizer) is Qwen2Tokenizer
    raw = Tokenizer.from_file(str(minicoder.MODEL_DIR / "tokenizer.json"))
    for record in minicoder.load_problems("minicode")[:60]:
        prompt, body = record["prompt"], record["canonical_solution"]
        apart = [raw.encode(text, add_special_tokens=False).ids for text in (prompt, body)]
        assert tokenizer(prompt)["input_ids"] == apart[0]
        assert tokenizer(body)["input_ids"] == apart[1]
        assert tokenizer(prompt + body)["input_ids"] == apart[0] + apart[1]
        assert tokenizer.decode(apart[0] + apart[1]) == prompt + body
    assert tokenizer.decode(tokenizer("naïve λ → 😀")["input_ids"]) == "naïve λ → 😀"


def test_a_freshly_trained_tokenizer_survives_saving(tmp_path):
    from transformers import AutoTokenizer

    from lm_eval_embednoise.minicoder.network import make_config
    from lm_eval_embednoise.minicoder.tokens import train_tokenizer

    pairs = list(islice(problems.training_examples(0, frozenset()), 30))
    made = train_tokenizer((text for pair in pairs for text in pair), size=400)
    made.save_pretrained(tmp_path)
    make_config(len(made), made.eos_token_id).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert len(loaded) == len(made) == 400
    assert loaded.pad_token_id == loaded.eos_token_id == made.eos_token_id
    for prompt, body in pairs:
        assert loaded(prompt)["input_ids"] == made(prompt)["input_ids"]
        assert loaded(body)["input_ids"] == made(body)["input_ids"]


def test_model_files_are_small_and_load_as_float32(model, tokenizer):
    import torch

    assert sum(f.stat().st_size for f in minicoder.MODEL_DIR.iterdir()) < 12 * 2**20
    assert type(model).__name__ == "Qwen2ForCausalLM"
    assert model.dtype == torch.float32
    assert model.config.num_hidden_layers == 24
    assert model.config.max_position_embeddings >= 2048
    assert model.config.vocab_size == len(tokenizer)
    embedding = model.get_input_embeddings().weight
    assert embedding is model.get_output_embeddings().weight
    assert torch.equal(embedding, embedding.bfloat16().float())  # stored in bfloat16
    settings = json.loads((minicoder.MODEL_DIR / "generation_config.json").read_text())
    end = tokenizer.eos_token_id
    assert settings.pop("transformers_version")
    assert settings == {"eos_token_id": end, "pad_token_id": end}


def test_training_forward_pass_is_transformers(model, tokenizer):
    import torch

    from lm_eval_embednoise.minicoder.network import Network

    parameters = dict(model.named_parameters())
    network = Network(model.config, parameters, compiled=False)
    ids = torch.tensor([tokenizer(minicoder.load_problems("minicode")[0]["prompt"])["input_ids"]])
    with torch.inference_mode():
        ours, theirs = network.hidden(ids), model.model(ids).last_hidden_state
    assert torch.allclose(ours, theirs, atol=1e-3, rtol=1e-3)


def test_schedule_is_the_published_one():
    from lm_eval_embednoise.minicoder.train import SCHEDULE, parse_schedule, rate

    schedule = parse_schedule(SCHEDULE)
    for step in range(1400):
        expected = min(1.0, (step + 1) / 40, (1800 - step) / 800)
        assert rate(step, schedule) == pytest.approx(expected, rel=1e-6)
    for step in range(1400, 1601):
        assert rate(step, schedule) == pytest.approx((1600 - step) / 450, rel=1e-5, abs=1e-9)
    for bad in ("0:1", "5:1 9:0", "0:1 9:0 4:1", "0:1 x:0"):
        with pytest.raises(argparse.ArgumentTypeError, match=re.escape(bad)):
            parse_schedule(bad)


def test_muon_orthogonalizes():
    import torch

    from lm_eval_embednoise.minicoder.muon import orthogonalize

    g = torch.randn(3, 48, 16, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(orthogonalize(g))
    assert singular.min() > 0.5
    assert singular.max() < 1.3


def test_greedy_solves_calibration_problems(model, tokenizer):
    """The published weights do what the card says, on a few problems."""
    from lm_eval_embednoise.minicoder.evaluate import accuracy

    scores = accuracy(model, tokenizer, limit=16)
    assert scores["minicode"] >= 0.2
    assert scores["minimath"] >= 0.2
