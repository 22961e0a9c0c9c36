"""Names that nothing binds: found where Python would raise, and nowhere else."""

from __future__ import annotations

import ast
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lm_eval_embednoise.minicoder import load_problems
from lm_eval_embednoise.problems import datafiles, documents
from lm_eval_embednoise.sandbox import Job, run_programs
from lm_eval_embednoise.sandbox.syntax import examine
from lm_eval_embednoise.scoring.filters import CodeRecords
from lm_eval_embednoise.scoring.judge import header_of
from tests.test_dead_code import cleaned, drawn

REAL = Path(os.environ.get(datafiles.VARIABLE) or Path(__file__).parents[2] / "shared" / "data")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("def f(x):\n    return y", "y"),
        ("def f(x):\n    return zz + math.pi", "math"),  # the first in the alphabet
        ("def f(x):\n    return [v for v in x] + v", "v"),
        ("class A:\n    k = 1\n    def m(self): return k\ndef f(x): return A().m()", "k"),
        ("class A:\n    k = 1\n    m = [k for _ in 'ab']\ndef f(x): return A.m", "k"),
        ("def f(x):\n    def g():\n        z = 1\n    g()\n    return z", "z"),
        ("def f(x: List[int]):\n    return x", None),  # annotations are not looked at
        ("@cache\ndef f(x):\n    return x", "cache"),
        ("def f(x=default):\n    return x", "default"),
        ("def f(x):\n    match x:\n        case Point(a): return a", "Point"),
        ("def f(x):\n    try:\n        return y\n    except ValueError:\n        return 1", "y"),
        ("def f(x):\n    return f'{x} {y}'", "y"),
        ("def f(x):\n    global q\n    return q", "q"),
    ],
)
def test_a_name_that_nothing_binds_is_found(source: str, name: str | None) -> None:
    assert examine(source, "f")["undefined"] == name


@pytest.mark.parametrize(
    "source",
    [
        "from math import *\ndef f(x): return sqrt(x)",
        "def f(x):\n    global q\n    q = x\ndef g(): return q",
        "def f(x):\n    if x: y = 1\n    return y",  # may be unbound, is not undefined
        "def f(x):\n    y = 1\n    del y\n    return y",
        "def f(x): return __name__, __file__, __doc__, exit, __debug__",
        "class f:\n    n = __qualname__, __module__\n    def m(self): return __class__",
        "def f(x): return (y := x) + y",
        "def f(x): return [z := v for v in x] and z",
        "def f(x):\n    match x:\n        case {'a': a, **rest}: return a, rest",
        "def f(x):\n    match x:\n        case [b, *c] as d: return b, c, d",
        "try:\n    unicode\nexcept NameError:\n    unicode = str\ndef f(x): return unicode(x)",
        "try:\n    input = raw_input\nexcept NameError:\n    pass\ndef f(x): return input",
        "def f(x):\n    try:\n        return y\n    except Exception:\n        return 1",
        "exec('y = 1')\ndef f(x): return y",
        "globals()['y'] = 1\ndef f(x): return y",
        "import sys\nsys.modules[__name__].__dict__['y'] = 1\ndef f(x): return y",
        "import builtins\nbuiltins.y = 1\ndef f(x): return y",
        "def f(x): return x\n    \ndef unused(): return y",
        "def f(x):\n    return x\n    print(y)",
        "from __future__ import annotations\ndef f(x: List[int]) -> Dict: return x",
        "import os.path as p, sys\ndef f(x): return p, sys",
        "def f(x):\n    for i, (a, *b) in x: pass\n    with open(x) as c: return i, a, b, c",
        "def f(x):\n    try: pass\n    except OSError as e: return e",
        "def f(a):\n    def g():\n        nonlocal a\n        a = 2\n    return g",
        "async def f(x): return [v async for v in x]",
        "class f:\n    def __init__(self): self.__x = 1\n    def g(self): return self.__x",
        "def f(*args, **kwargs): return lambda a, *b, c=1, **d: (args, kwargs, a, b, c, d)",
    ],
)
def test_a_name_that_something_may_bind_is_not_refused(source: str) -> None:
    facts = examine(source, "f")
    assert facts["compiled"]
    assert facts["undefined"] is None


def test_the_benchmarks_imports_count() -> None:
    source = "print(Counter(input()), sqrt(2), List, heappush)"
    assert examine(source, None)["undefined"] == "Counter"
    assert examine(source, None, header_of("apps", source))["undefined"] is None
    assert examine(source, None, header_of("livecodebench", source))["undefined"] is None
    assert (
        examine("print(np.zeros(3))", None, header_of("livecodebench", "np"))["undefined"] == "np"
    )
    assert examine("print(np.zeros(3))", None, header_of("apps", "np"))["undefined"] is None
    (outcome,) = run_programs([Job(source, stdin=b"ab", header=header_of("apps", source))])
    assert (outcome.verdict, outcome.undefined) == ("passed", None)


def test_an_undefined_name_makes_a_sample_invalid() -> None:
    doc = {
        "task_id": "t/0",
        "prompt": "def f(x):\n    'Twice.'\n",
        "entry_point": "f",
        "test": "def check(c):\n    assert c(2) == 4\n",
    }
    (made,) = CodeRecords(k=2, workers=1).apply(
        [["    return x + y\n", "    return x * 2\n"]], [doc]
    )
    assert [(r["valid"], r["undefined"]) for r in made] == [(False, "y"), (True, None)]


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 2**32))
def test_a_name_that_is_misspelt_anywhere_is_found(seed: int) -> None:
    tree = ast.parse(cleaned(drawn(seed)))
    assume(examine(ast.unparse(tree), "f")["undefined"] is None)
    loads = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)]
    misspelt = random.Random(seed).choice(loads)
    misspelt.id = "nowhere"
    caught = any(
        misspelt in ast.walk(top)
        for node in ast.walk(tree)
        if isinstance(node, ast.Try)
        and ast.unparse(node.handlers[0]).startswith("except Exception")
        for top in node.body
    )
    assert examine(ast.unparse(tree), "f")["undefined"] == (None if caught else "nowhere")


def test_no_embedded_solution_is_refused() -> None:
    for row in load_problems("minicode"):
        source = row["prompt"] + row["canonical_solution"]
        assert examine(source, row["entry_point"])["undefined"] is None


def gold() -> Iterator[tuple[str, str, str | None, str]]:
    """Task id, program, entry point and header of every gold solution of the real benchmarks."""
    for load in (documents.humaneval, documents.mbpp, documents.humanevalplus, documents.mbppplus):
        for row in load()["test"]:
            yield row["task_id"], row["prompt"] + row["canonical_solution"], row["entry_point"], ""
    for line in (REAL / "apps" / "apps_train_75.jsonl").read_text().splitlines():
        row = json.loads(line)
        name = json.loads(row["input_output"]).get("fn_name")
        for program in json.loads(row["solutions"]):
            yield str(row["problem_id"]), program, name, header_of("apps", program)


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the benchmarks' own files")
def test_no_gold_solution_of_a_benchmark_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(datafiles.VARIABLE, str(REAL))
    seen = 0
    for task, program, name, header in gold():
        facts = examine(program, name, header)
        assert (facts["compiled"], facts["undefined"]) == (True, None), task
        seen += 1
    assert seen == 164 + 427 + 164 + 399 + 1024
