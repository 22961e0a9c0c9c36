"""Programs found in answers: by rule, on real forms of answers, on hostile texts, in time."""

from __future__ import annotations

import random
import time

import pytest

from lm_eval_embednoise.sandbox import Job, reader, run_programs
from lm_eval_embednoise.sandbox.blocks import answer_of, blocks_of
from lm_eval_embednoise.sandbox.extraction import extract
from lm_eval_embednoise.sandbox.pieces import pieces_of
from lm_eval_embednoise.sandbox.reader import Answer, read_answers
from lm_eval_embednoise.scoring.extract import extract_program, programs_of
from tests.support.extraction_texts import Case, cases

CASES = list(cases())


def test_every_form_of_answer_gives_its_program() -> None:
    assert len({case.name for case in CASES}) == len(CASES) == 200
    taken = read_answers([Answer(c.text, c.prompt, c.entry_point) for c in CASES])
    jobs = [
        Job(one.program, case.entry_point, case.test)
        for one, case in zip(taken, CASES, strict=True)
    ]
    outcomes = run_programs(jobs, progress=False)
    lost = [
        (case.name, one.rule, outcome.verdict)
        for case, one, outcome in zip(CASES, taken, outcomes, strict=True)
        if outcome.verdict != "passed"
    ]
    assert lost == []


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("n = int(input())\nprint(n)\n", "n = int(input())\nprint(n)\n"),
        ("n, *a = map(int, input().split())\nprint(n)\n", None),
        ("def f():\n    return 1\nreturn f()\n", None),  # is wrapped, as the checkers do
        ("```\n5 3\n```\n```python\nprint(1)\n```\n```\n1\n```", "print(1)\n"),
        ("Input:\n```\n5\n```\nCode:\n```\nprint(int(input()))\n```", "print(int(input()))\n"),
        ("```python\nprint(1)\n```\n```python\nx = 1\nprint(x)\n```", "x = 1\nprint(x)\n"),
        ("We read.\n\nprint(input())\n\nIt prints", "print(input())\n\n"),
        ("print(1)\n\ndef unused(a):\n    return (", "print(1)\n\n"),
        ("print(1)<|im_end|>", "print(1)"),
    ],
)
def test_programs_that_read_and_print(text: str, program: str | None) -> None:
    assert extract(text).program == (text if program is None else program)


@pytest.mark.parametrize(
    "text", ["for i in range(3):\n    print(i)\nfor j in ran", "5\n3\n", "Sure"]
)
def test_what_is_no_program_stays_as_it_is(text: str) -> None:
    taken = extract(text)
    assert (taken.program, taken.rule) == (text, "as it is")


def test_a_body_that_breaks_off_is_not_made_to_compile() -> None:
    prompt = "def f(x):\n    '''Double.'''\n"
    for text in ("    y = x\n    return 2 *", "    if x:\n        return 1\n    els"):
        assert extract(text, prompt, "f").program == prompt + text


def test_thinking_is_no_answer() -> None:
    assert answer_of("<think>a</think>b</think>c") == "c"
    assert answer_of("<think>\n```python\ndef f(): return 1\n```") is None
    assert extract("<think>\ndef f():\n    return 1\n", "", "f").rule == "thinking without an end"


def test_rules_are_named() -> None:
    prompt = "def f(x):\n    '''Double.'''\n"
    texts = ("    return x\n", "```python\ndef f(x): return x\n```", "def f(x): return x", "")
    rules = [extract(text, prompt, "f").rule for text in texts]
    assert rules == ["continuation", "block", "text", "as it is"]
    assert extract("def f(x):\n    pass\n", prompt, "f").rule == "a function that does nothing"


class Finished(str):
    form = "program"


class Continued(str):
    form = "completion"


def test_finished_programs_are_judged_to_the_letter() -> None:
    doc = {"prompt": "def f(x):\n", "entry_point": "f"}
    text = "    return x\n\nassert f(1) == 2\n```"
    found = programs_of([(Finished(text), doc), (Continued(text), doc), (text, doc)])
    assert [one.program for one in found[:2]] == [text, doc["prompt"] + text]
    assert found[2].program == doc["prompt"] + "    return x\n"
    assert [one.rule for one in found] == [
        "program, verbatim",
        "completion, verbatim",
        "continuation",
    ]
    broken = Finished(text)
    broken.form = "draft"
    with pytest.raises(ValueError, match="draft"):
        programs_of([(broken, doc)])


def longest_prefix(lines: list[str]) -> int:
    """How many of the lines compile, found by trying all: the slow reference."""
    for end in range(len(lines), 0, -1):
        try:
            compile("\n".join(lines[:end]), "<text>", "exec")
        except SyntaxError:
            continue
        return end
    return 0


def test_pieces_before_a_broken_definition_are_the_longest_prefix_that_compiles() -> None:
    rng = random.Random(0)
    parts = ["import math", "def f(x):\n    return x", "x = [1,\n2]", "s = '''a\ndef g(:\n'''"]
    for _ in range(200):
        good = [rng.choice(parts) for _ in range(rng.randrange(1, 6))]
        text = "\n".join([*good, "def broken(a:\n    retu rn"])
        lines = text.split("\n")
        found = "".join(piece.text for piece in pieces_of(text, "f")).rstrip("\n").split("\n")
        assert found == lines[: longest_prefix(lines)]


HOSTILE = {
    "fences": "```\n" * 250_000,
    "open blocks": "```python\nx\n" * 80_000,
    "triple quotes": "'''\n```\n" * 120_000,
    "blanks": "``` " + " " * 1_000_000 + "x y`",
    "marks": "<code>" * 160_000,
    "names": "a\n" * 500_000,
    "brackets": "(\n" * 500_000,
    "broken functions": "def f(x):\n    retu rn\n" * 2_700,
    "asserts": "def f(x):\n    return 1\n" + "assert f(1)\n" * 5_000,
    "a chain of names": "def f(x):\n    return a0\n"
    + "".join(f"a{i} = a{i + 1}\n" for i in range(3_000)),
    "prose": "a b\n" * 15_000,
    "surrogates": "\ud800" * 1_000_000,
    "zeros": "\0" * 1_000_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_text_takes_no_more_than_seconds(name: str) -> None:
    """Under a second on a quiet processor; the bound leaves room for slow ones, not for squares."""
    start = time.process_time()
    extract(HOSTILE[name], "def f(x):\n    '''D.'''\n", "f")
    assert time.process_time() - start < 4.0


def test_a_text_that_ends_the_process_that_reads_it_costs_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A reader that is given less memory than its text needs dies, or says so: others are read."""
    one = reader.Reader()
    try:
        good = Answer("def f(x):\n    return 1\n", "", "f")
        assert [taken.rule for taken in one.read([good])] == ["text"]
        assert one._process is not None
        one._process.kill()
        assert [taken.rule for taken in one.read([good, good])] == ["text", "text"]
        monkeypatch.setattr(
            one, "_ask", lambda answers: None if len(answers) > 1 or answers[0].text else []
        )
        assert [t.rule for t in one.read([good])] == ["a text that cannot be read"]
    finally:
        one.close()


def test_extraction_is_the_same_in_many_processes_and_in_none() -> None:
    answers = [Answer(c.text, c.prompt, c.entry_point) for c in CASES]
    here = [extract(a.text, a.prompt, a.entry_point) for a in answers]
    assert read_answers(answers, workers=3) == read_answers(answers, workers=1) == here
    assert extract_program(CASES[0].text, "", "double") == here[0].program


def test_blocks_keep_what_stands_in_strings() -> None:
    (block,) = blocks_of("```python\ns = '''\n```\n'''\n```\nend")
    assert block.code == "s = '''\n```\n'''\n"


def test_a_case_is_told_apart_by_its_test() -> None:
    """The test of a case fails for a function that does nothing."""
    case: Case = CASES[0]
    job = Job(f"def {case.entry_point}(x):\n    return None\n", case.entry_point, case.test)
    assert run_programs([job], progress=False)[0].verdict == "wrong_answer"
