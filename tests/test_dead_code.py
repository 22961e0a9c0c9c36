"""Dead code makes no other program: adding it changes no class, removing it no result."""

from __future__ import annotations

import ast
import copy
import itertools
import random
import time
import types
import warnings
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_eval_embednoise.minicoder import load_problems, problems
from lm_eval_embednoise.minicoder.render import RENDERERS, render
from lm_eval_embednoise.sandbox.dead_code import without_dead_code
from lm_eval_embednoise.sandbox.syntax import examine
from tests.support.random_programs import INPUTS, program, with_junk

MINICODE = load_problems("minicode")
seeds = st.integers(0, 2**32)


def cleaned(source: str, entry_point: str | None = "f") -> str:
    tree = ast.parse(source)
    without_dead_code(tree, entry_point)
    return ast.unparse(ast.fix_missing_locations(tree))


def rendered(seed: int) -> tuple[problems.Problem, str]:
    """A problem of the embedded model's grammar, solved in some way."""
    rng = random.Random(seed)
    problem = problems.draw_problem(rng)
    return problem, problems.header(problem) + render(
        problem.spec, rng.choice(list(RENDERERS)), rng
    )


# -- adding it changes no class


def junked(source: str, seed: int) -> str:
    changed = with_junk(random.Random(seed), source)
    assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source))
    return changed


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(MINICODE), seeds)
def test_junk_in_a_solution_makes_no_class(row: dict[str, Any], seed: int) -> None:
    source, name = row["prompt"] + row["canonical_solution"], row["entry_point"]
    changed = junked(source, seed)
    assert examine(changed, name)["ast"] == examine(source, name)["ast"] is not None, changed


@settings(deadline=None, max_examples=150)
@given(seeds)
def test_junk_in_a_program_of_the_grammar_makes_no_class(seed: int) -> None:
    problem, source = rendered(seed)
    changed = junked(source, seed)
    assert examine(changed, problem.name)["ast"] == examine(source, problem.name)["ast"], changed


@settings(deadline=None, max_examples=300)
@given(seeds)
def test_junk_in_any_program_makes_no_class(seed: int) -> None:
    source = drawn(seed)
    changed = junked(source, seed)
    assert examine(changed, "f")["ast"] == examine(source, "f")["ast"] is not None, changed


@pytest.mark.parametrize(
    "junk",
    [
        "x = 5",
        "x: int = len(xs)",
        "x = y = xs",
        "x, y = n, xs",
        "x = [v * 2 for v in xs if v in xs]",
        "x = {v: xs for v in range(n)}",
        "x = 0\nfor v in xs:\n    x += v",
        "x = n\nif x > 3:\n    x = 4\nelse:\n    y = 5",
        "from typing import List, Dict",
        "import os.path as p, sys",
        "def g(a):\n    return h(a)\ndef h(a):\n    return g(a)",
        "class A:\n    'text'\n    b = 1\n    def c(self):\n        return self.b",
        "if n > 1:\n    pass\nelif xs:\n    'text'",
        "x = f'{n} of {xs!r}'",
        "x = sorted(xs, reverse=True)[0] if xs else None",
        "x = xs[n].name",
        "lambda: print(n)",
        "x = sum(zip(xs, xs)), max(v for v in xs)",
        "if 0:\n    import os\n    print(os.name)",
        "try:\n    x = 1\nexcept ValueError:\n    return 7\nelse:\n    y = 3",
        "assert True, 'never'",
        "pass\n'text'\n...\n1 + 2",
    ],
)
@pytest.mark.parametrize("where", [1, 2])
def test_every_kind_of_junk_is_gone(junk: str, where: int) -> None:
    lines = ["def f(n, xs):", "    n = abs(n)", "    return [n, *xs]"]
    source = "\n".join(lines)
    lines[where:where] = ["    " + line for line in junk.split("\n")]
    assert cleaned("\n".join(lines)) == source


@pytest.mark.parametrize(
    ("source", "entry_point", "left"),
    [
        ("def f():\n    return 1\n    print(2)", "f", "def f():\n    return 1"),
        ("def f(a):\n    if a: return 1\n    else: raise a\n    f(2)", "f", None),
        ("class Solution:\n    def g(self): return 1\n    def f(self): return 2", "f", None),
        ("def f(): return 1\nif __name__ == '__main__':\n    print(f())", "f", None),
        ("def f() -> int: return 1\nx: int = 3", "f", "def f():\n    return 1"),
        ("def f(): return 1\ndef g(): return f()", "f", "def f():\n    return 1"),
        ("import os, sys\nprint(sys.argv)", None, "import sys\nprint(sys.argv)"),
        (
            "def f(): return 1\ndef g(): return 2",
            "h",
            "def f():\n    return 1\n\ndef g():\n    return 2",
        ),
    ],
)
def test_what_is_left(source: str, entry_point: str | None, left: str | None) -> None:
    found = cleaned(source, entry_point)
    assert "print(f" not in found and "f(2)" not in found and "def g(self)" not in found
    assert left is None or found == left


# -- what only looks dead


@pytest.mark.parametrize(
    "line",
    [
        "xs.append(n)",
        "x = xs.pop()",
        "x = next(it)",
        "x = list(it)",
        "x = 3 in it",
        "x = [v for v in it]",
        "x, *y = it",
        "for v in it: pass",
        "x = sum(z)",
        "x = xs; x += [1]",
        "x = [xs]; x[0] += [1]",
        "x = n; x.v = 1",
        "x = table[n]",
        "x = box + 1",
        "x = box.looked",
        "x = sorted(xs, key=it.send)",
        "import this",
        "while n: pass",
        "if next(it): pass",
        "del n",
        "print(n)",
        "assert n",
        "x = (n := 3)",
        "x = f'{box}'",
        "z = 5",
    ],
)
def test_what_has_an_effect_stays(line: str) -> None:
    source = (
        "from collections import defaultdict\ntable = defaultdict(list)\n"
        "class Box:\n    def __add__(self, other): print(other)\n    def __str__(self): print()\n"
        "    @property\n    def looked(self): print(1)\nbox = Box()\n"
        f"def f(n, xs):\n    it = iter(xs)\n    z = zip(xs, xs)\n    {line}\n"
        "    return (n, list(it), z, table, box)"
    )
    base = source.replace(f"    {line}\n", "")
    assert examine(source, "f")["ast"] != examine(base, "f")["ast"]


@pytest.mark.parametrize(
    "line",
    [
        "x = list(it)",
        "x = 3 in it",
        "x = [v for v in it]",
        "x = {v: w for v in xs for w in it}",
        "x = max(v for v in it)",
        "x, *y = it",
        "x = [*it]",
        "for v in it: pass",
        "x = sum(z)",
        "x = list(e)",
        "x = [v for v in g]",
        "x = sorted(given)",
        "x = xs; x += [1]",
        "x = n; x += xs",
    ],
)
def test_what_uses_up_or_changes_stays_without_any_operators(line: str) -> None:
    lines = [
        "it = iter(xs)",
        "z = zip([1], [2])",
        "e = enumerate([1])",
        "g = (v for v in [1])",
        line,
    ]
    indented = "".join(f"    {one}\n" for one in lines)
    source = (
        f"def h(given, xs, n):\n{indented}    return it, z, e, g, given, xs\n"
        "def f(xs, n):\n    return h(iter(xs), xs, n)\n"
    )
    base = source.replace(f"    {line}\n", "")
    assert examine(source, "f")["ast"] != examine(base, "f")["ast"]


DIFFERENT = [
    # an exception that something catches
    (
        "try:\n        x = n + 1\n        return 1\n    except TypeError: return 2",
        "x = n + 1",
        "pass",
    ),
    ("try:\n        g(n)\n        return 1\n    except TypeError: return 2", None, None),
    # a name that code out of reach makes local, a generator without a reachable yield
    ("return 1\n    yield 2", "yield 2", "pass"),
    ("return lambda: k\n    k = 2", "k = 2", "pass"),
    ("global k\n    k = 3\n    return h()", "global k", "pass"),
    # read in a way that is not plain to see
    ("x = 5\n    return eval('x')", "x = 5", "pass"),
    ("x = 5\n    return locals()['x']", "x = 5", "pass"),
    (
        "x = 5\n    def g():\n        nonlocal x\n        x += 1\n        return x\n    return g()",
        "x = 5",
        "x = 6",
    ),
    ("class A:\n        b = 1\n    return getattr(A, 'b')", "b = 1", "b = 2"),
    (
        "from collections import defaultdict as d\n    t = d(list)\n    x = t[n]\n    return t",
        "x = t[n]",
        "pass",
    ),
    ("class A(int):\n        def m(self): return 1\n    return A(n)", "def m", "def other"),
]


@pytest.mark.parametrize(("body", "old", "new"), DIFFERENT)
def test_what_matters_unseen_stays(body: str, old: str | None, new: str | None) -> None:
    head = "k = 1\ndef h(): return k\ndef g(n):\n    x = n + 1\n"
    source = f"{head}def f(n, xs):\n    {body}\n"
    other = source.replace(old, new or "") if old else source.replace("x = n + 1", "pass")
    assert other != source
    assert examine(source, "f")["ast"] != examine(other, "f")["ast"]


# -- removing it changes no result


def outcome(code: types.CodeType, name: str, arguments: Any) -> Any:
    """What a call returns and does to its arguments; None when it raises."""
    scope: dict[str, Any] = {"__name__": "candidate"}
    given = copy.deepcopy(list(arguments))
    try:
        exec(code, scope)
        return plain(scope[name](*given)), plain(given)
    except Exception:
        return None


def plain(value: Any, depth: int = 0) -> Any:
    """A value in a form that can be compared: iterators by what they give, functions not at all."""
    if depth > 4 or callable(value):
        return "…"
    if isinstance(value, dict):
        return {repr(plain(key, depth + 1)): plain(its, depth + 1) for key, its in value.items()}
    if isinstance(value, (list, tuple, set)):
        return type(value).__name__, [plain(item, depth + 1) for item in value]
    if hasattr(value, "__next__"):
        try:
            return [plain(item, depth + 1) for item in itertools.islice(value, 20)]
        except Exception as error:
            return type(error).__name__
    return value if isinstance(value, (int, float, str, type(None))) else type(value).__name__


def drawn(seed: int) -> str:
    """A random program that compiles."""
    for attempt in itertools.count():
        source = program(random.Random(f"{seed} {attempt}"), catching=seed % 3 > 0)
        if examine(source, "f")["compiled"]:
            return source
    raise AssertionError


def same_results(source: str, name: str, inputs: Any) -> int:
    """Fail where the program returns something else without its dead code; how often it returns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        programs = [compile(text, "p", "exec") for text in (source, cleaned(source, name))]
    pairs = [[outcome(code, name, given) for code in programs] for given in inputs]
    for before, after in pairs:
        assert before is None or before == after, cleaned(source, name)
    return sum(before is not None for before, _ in pairs)


@settings(deadline=None, max_examples=500)
@given(seeds)
def test_a_random_program_does_the_same_without_its_dead_code(seed: int) -> None:
    same_results(drawn(seed), "f", INPUTS)


def test_random_programs_return_something_and_have_dead_code() -> None:
    sources = [drawn(seed) for seed in range(100)]
    assert sum(same_results(source, "f", INPUTS) for source in sources) > 80
    kept = sum(len(cleaned(source)) for source in sources) / sum(map(len, sources))
    assert 0.2 < kept < 0.7


def test_the_embedded_solutions_do_the_same_without_dead_code() -> None:
    for number, row in enumerate(MINICODE):
        source = row["prompt"] + row["canonical_solution"]
        for text in (source, junked(source, number)):
            assert same_results(text, row["entry_point"], row["inputs"]) == len(row["inputs"])


@settings(deadline=None, max_examples=100)
@given(seeds)
def test_programs_of_the_grammar_do_the_same_without_dead_code(seed: int) -> None:
    problem, source = rendered(seed)
    rng = random.Random(seed)
    inputs = [problem.draw_inputs(rng) for _ in range(3)]
    assert same_results(source, problem.name, inputs)
    assert same_results(junked(source, seed), problem.name, inputs)


# -- hostile programs


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n" + "".join(f"    a{i} = a{i - 1}\n" for i in range(1, 5000)) + "    return 1",
        "def f():\n" + "    return 1\n" * 6000,
        "x = " + "+".join(["1"] * 15_000),
        "x = " + "[" * 90 + "]" * 90,
        "x = " + "list(" * 90 + ")" * 90,
        "x = " + "1 in [" * 60 + "]" * 60,
        "x = " + "[v for v in " * 60 + "[]" + "]" * 60,
        "".join(f"{' ' * d}if {d}:\n" for d in range(95)) + " " * 95 + "x = 1",
        "if 0: pass\n" + "elif 0: pass\n" * 900,
        "".join(f"{' ' * d}def f{d}():\n" for d in range(95)) + " " * 95 + "global x; x = 1",
        "".join(f"def f{i}(a):\n    return f{i + 1}([v for v in a])\n" for i in range(1500)),
        "".join(f"def f{i}(a):\n    b = [v for v in a]\n    c = f{i + 1}\n" for i in range(1200)),
        "import " + ", ".join(f"a{i}" for i in range(9000)),
        "class A:\n" + "    def f(self): self.f()\n" * 2000,
    ],
    ids=range(14),
)
def test_hostile_programs_take_no_more_time_than_they_are_long(source: str) -> None:
    start = time.process_time()
    facts = examine(source, "f")
    assert time.process_time() - start < 4
    assert set(facts) == {"compiled", "defined", "trivial", "undefined", "ast"}
