"""Match the problems of a file to the documents of a task.

By the problem's id, the document's hash, its question or its prompt. A file that has none of these
is matched by what its programs say (the prompt they begin with, the function they define); by its
place in the file only where there is nothing else to go by and nothing contradicts it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval_embednoise.store.generation import MISSING
from lm_eval_embednoise.store.problem import PROGRAM, Problem

# Names that the same benchmark goes by in ids.
_BENCHMARKS = {
    "humaneval": "humaneval", "humanevalplus": "humaneval", "humaneval+": "humaneval",
    "mbpp": "mbpp", "mbppplus": "mbpp", "mbpp+": "mbpp",
    "lcb": "livecodebench", "livecodebench": "livecodebench",
    "apps": "apps", "gsm8k": "gsm8k", "math": "math", "math500": "math", "math-500": "math",
}  # fmt: skip
_NAMED = 3  # problems named in a message
Id = tuple[str | None, str]


@dataclass(frozen=True)
class Asked:
    """A document that samples are wanted for.

    Attributes:
        doc: its content.
        doc_id: its place in the task, from 0.
        doc_hash: the harness's hash of it.
        prompt: what the model would be given.
    """

    doc: Any
    doc_id: int
    doc_hash: str
    prompt: str

    def text(self, *names: str) -> str | None:
        """The first of these fields that it has."""
        if not isinstance(self.doc, Mapping):
            return None
        return next((str(self.doc[n]) for n in names if self.doc.get(n) is not None), None)

    @property
    def name(self) -> str:
        """How messages call it."""
        return self.text("task_id") or f"document {self.doc_id}"


@dataclass(frozen=True)
class Matches:
    """The problem of each document, None where there is none, and how each was matched."""

    problems: list[Problem | None]
    ways: Counter[str]

    def said(self) -> str:
        """The ways, for a log line."""
        return ", ".join(f"{number} by {way}" for way, number in self.ways.items())


def match(problems: Sequence[Problem], documents: Sequence[Asked]) -> Matches:
    """Find the problem of each document.

    Raises:
        ValueError: two problems of different samples have one id, question or prompt; or a file
            without names doesn't fit the documents.
    """
    if all(p.task_id is None and p.doc_hash is None and p.prompt is None for p in problems):
        return _nameless(problems, documents)
    ways = [
        ("id", _by_id(problems)),
        ("document hash", _by(problems, lambda p: p.doc_hash, lambda d: d.doc_hash)),
        ("prompt", _by(problems, lambda p: p.prompt, lambda d: d.prompt)),
        ("prompt", _by(problems, lambda p: p.prompt, lambda d: d.text("prompt"))),
        ("prompt", _by(problems, _own_prompt, lambda d: _squeezed(d.text("prompt")))),
        ("question", _by(problems, _question, lambda d: _squeezed(d.text("question")))),
        ("question", _by_contained_question(problems)),
    ]
    matched: list[Problem | None] = []
    counted: Counter[str] = Counter()
    for document in documents:
        named = ((way, find(document)) for way, find in ways)
        way, problem = next(((w, p) for w, p in named if p is not None), ("", None))
        matched.append(problem)
        if problem is not None:
            counted[way] += 1
    _check_functions(matched, documents)
    return Matches(matched, counted)


def id_of(text: str) -> Id:
    """A problem's id as (benchmark, rest): `Mbpp/2`, `MBPP/0002` and `mbpp/2` are the same."""
    benchmark, slash, rest = text.strip().casefold().partition("/")
    if not slash or benchmark not in _BENCHMARKS:
        benchmark, rest = "", text.strip().casefold()
    return _BENCHMARKS.get(benchmark), str(int(rest)) if rest.isdecimal() else rest


def _by_id(problems: Sequence[Problem]) -> Callable[[Asked], Problem | None]:
    """By equal ids; where one side names no benchmark, by what follows its name."""
    exact = _table(problems, lambda p: p.task_id)
    alike = _table(problems, lambda p: None if p.task_id is None else id_of(p.task_id))
    bare = {rest: problem for (benchmark, rest), problem in alike.items() if benchmark is None}
    rests = Counter(rest for _, rest in alike)
    unique = {rest: problem for (_, rest), problem in alike.items() if rests[rest] == 1}

    def find(document: Asked) -> Problem | None:
        named = document.text("task_id")
        if named is None:
            return None
        benchmark, rest = id_of(named)
        problem = exact.get(named) or alike.get((benchmark, rest))
        return problem or (bare if benchmark is not None else unique).get(rest)

    return find


def _by(
    problems: Sequence[Problem],
    key: Callable[[Problem], Any],
    ask: Callable[[Asked], Any],
) -> Callable[[Asked], Problem | None]:
    table = _table(problems, key)
    return lambda document: table.get(ask(document)) if table else None


def _table(problems: Sequence[Problem], key: Callable[[Problem], Any]) -> dict[Any, Problem]:
    """Problems by a key; a key that several have is left out if something else distinguishes them.

    Raises:
        ValueError: two problems of different samples have one key, and nothing else to go by.
    """
    by_key: dict[Any, Problem] = {}
    several = set()
    for problem in problems:
        named = key(problem)
        if named is None:
            continue
        other = by_key.setdefault(named, problem)
        if other.samples == problem.samples:
            continue
        if _names(other) == _names(problem):
            raise ValueError(
                f"{problem.place}: samples of {problem.name!r} stand in {other.place} too; "
                "give one file, or one task= or settings= of a store"
            )
        several.add(named)
    return {named: problem for named, problem in by_key.items() if named not in several}


def _names(problem: Problem) -> tuple[Any, ...]:
    """What distinguishes a problem: its id, else its document's hash, else its prompt."""
    if problem.task_id is not None:
        return (id_of(problem.task_id),)
    return (None, problem.doc_hash or problem.prompt)


def _squeezed(text: str | None) -> str | None:
    """A text without its white space, which files and templates change; None if nothing is left."""
    return "".join(text.split()) or None if text else None


def _own_prompt(problem: Problem) -> str | None:
    return _squeezed(problem.fields.get("prompt") or problem.prompt)


def _question(problem: Problem) -> str | None:
    return _squeezed(problem.fields.get("question"))


def _by_contained_question(problems: Sequence[Problem]) -> Callable[[Asked], Problem | None]:
    """By the question (or code prompt) that is part of one problem's prompt and of no other's."""
    prompts = [(problem, _squeezed(problem.prompt)) for problem in problems]
    texts = [(problem, text) for problem, text in prompts if text]

    def find(document: Asked) -> Problem | None:
        asked = _squeezed(document.text("question", "prompt"))
        if asked is None or len(asked) < 20:  # too short to tell problems apart
            return None
        holding = [problem for problem, text in texts if asked in text]
        return holding[0] if len(holding) == 1 else None

    return find


def _programs(problem: Problem) -> list[str]:
    return [str(text) for text in problem.samples if text.finish_reason != MISSING and text.strip()]


def _defines(program: str, name: str) -> bool:
    return bool(re.search(rf"\b(?:def|class)\s+{re.escape(name)}\b|^{re.escape(name)}\s*=",
                          program, re.MULTILINE))  # fmt: skip


def _mostly(programs: list[str], name: str) -> bool:
    return 2 * sum(_defines(program, name) for program in programs) > len(programs)


def _nameless(problems: Sequence[Problem], documents: Sequence[Asked]) -> Matches:
    """Match by what the programs say, and by place what says nothing.

    Raises:
        ValueError: there are fewer problems than places that are asked for; or what some programs
            say contradicts the place of the others.
    """
    said = _by_content(problems, documents)
    matched: list[Problem | None] = [
        said[i][1] if i in said else None for i in range(len(documents))
    ]
    ways = Counter(way for way, _ in said.values())
    own_places = all(problem.position == documents[i].doc_id for i, (_, problem) in said.items())
    silent = [document for i, document in enumerate(documents) if i not in said]
    if silent and own_places:
        file = str(problems[0].place).split(": entry")[0] if problems else "the file"
        last = max(document.doc_id for document in documents)
        if last >= len(problems):
            raise ValueError(
                f"{file} has {len(problems)} problems without ids, and the task asks for number "
                f"{last + 1}: by their place they can't be told, give a file with task_id"
            )
        by_place = {problem.position: problem for problem in problems}
        taken = {id(problem) for _, problem in said.values()}
        for i, document in enumerate(documents):
            problem = by_place.get(document.doc_id)
            if matched[i] is None and problem is not None and id(problem) not in taken:
                matched[i] = problem
                ways["place alone"] += 1
    _check_functions(matched, documents)
    return Matches(matched, ways)


def _by_content(
    problems: Sequence[Problem], documents: Sequence[Asked]
) -> dict[int, tuple[str, Problem]]:
    """Document's number → how and which problem: the only one whose programs are of it."""
    prompts = [_squeezed(document.text("prompt")) for document in documents]
    points = [document.text("entry_point") or None for document in documents]
    once = {name for name, number in Counter(points).items() if number == 1}
    claims: dict[int, list[tuple[str, Problem]]] = {}
    for problem in problems:
        programs = _programs(problem) if problem.form == PROGRAM else []
        if not programs:
            continue
        texts = [_squeezed(program) or "" for program in programs]
        begun = [
            (len(prompt), i)
            for i, prompt in enumerate(prompts)
            if prompt and all(text.startswith(prompt) for text in texts)
        ]
        if begun:
            claims.setdefault(max(begun)[1], []).append(("the prompt they begin with", problem))
            continue
        defined = [
            i
            for i, name in enumerate(points)
            if name in once
            and name
            and 2 * sum(_defines(p, name) for p in programs) > len(programs)
        ]
        if len(defined) == 1:
            claims.setdefault(defined[0], []).append(("the function they define", problem))
    return {i: made[0] for i, made in claims.items() if len(made) == 1}


def _check_functions(matched: Sequence[Problem | None], documents: Sequence[Asked]) -> None:
    """Refuse matches under which most programs define another document's function, not their own.

    Raises:
        ValueError: naming one of them.
    """
    points = [document.text("entry_point") or "" for document in documents]
    every = set(filter(None, points))
    wrong: list[str] = []
    looked = 0
    for problem, document, name in zip(matched, documents, points, strict=True):
        if problem is None or not name or problem.form != PROGRAM:
            continue
        programs = _programs(problem)
        looked += bool(programs)
        if programs and not any(_defines(program, name) for program in programs):
            called = set(re.findall(r"\bdef\s+(\w+)", "\n".join(programs)))
            if called & (every - {name}):
                other = min(called & (every - {name}))
                wrong.append(f"{problem.place} defines {other}, {document.name} asks for {name}")
    if len(wrong) * 2 > looked:
        more = len(wrong) - _NAMED
        raise ValueError(
            f"{len(wrong)} of {looked} problems hold programs for another problem: "
            f"{'; '.join(wrong[:_NAMED])}{f'; and {more} more' if more > 0 else ''}: their ids or "
            "their order are not this task's"
        )
