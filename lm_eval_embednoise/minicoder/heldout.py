"""Chooses the held-out problems and writes tests that wrong near neighbours fail."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

from . import wordproblems
from .grammar import AGGREGATES, Piece
from .inputs import edge_inputs, random_threshold
from .pieces import FILTERS
from .problems import Composition, Problem, compile_function, draw_problem, header
from .render import Spec, render

SIZES = {"minicode": 164 + 64, "minimath": 200 + 64}
CALIBRATION = 64  # problems of each; the others are the test
SEED = 20250922
_POOL, _LEAST, _MOST = 120, 8, 14
_ALWAYS = Piece("always", "", "True", ())


def neighbours(spec: Spec) -> tuple[list[Spec], list[Spec]]:
    """Wrong programs that the tests must tell apart, and ones they should where they can."""
    must: list[Spec] = []
    should: list[Spec] = []
    filters, maps = spec.filters, spec.maps
    for i, (piece, k) in enumerate(filters):
        rest = filters[:i] + filters[i + 1 :]
        must.append(replace(spec, filters=rest or ((_ALWAYS, ""),)))
        if k.isdigit():
            for near in (int(k) - 1, int(k) + 1):
                should.append(replace(spec, filters=(*rest, (piece, str(max(near, 1))))))
        for other in FILTERS:
            alike = other.group == piece.group and bool(other.ks) == bool(piece.ks)
            if alike and other.type == piece.type and other is not piece:
                should.append(replace(spec, filters=(*rest, (other, k))))
    for i, (piece, k) in enumerate(maps):
        if len(maps) == 1 or piece.type == piece.to:
            must.append(replace(spec, maps=maps[:i] + maps[i + 1 :]))
        if k.isdigit():
            should.append(replace(spec, maps=(*maps[:i], (piece, str(int(k) + 1)), *maps[i + 1 :])))
    if len(maps) == 2:
        should.append(replace(spec, maps=maps[::-1]))
    kind = maps[-1][0].to if maps else spec.domain.type
    for other_aggregate in AGGREGATES:
        fits = kind in other_aggregate.types and (spec.k or not other_aggregate.ks)
        if fits and other_aggregate is not spec.aggregate:
            should.append(replace(spec, aggregate=other_aggregate))
    return must, should


def answers(problem: Problem, spec: Spec, inputs: list[list[Any]]) -> list[Any]:
    """What a program for `spec` answers; an exception counts as an answer."""
    function = compile_function(
        header(problem) + render(spec, "list_comprehension", random.Random(0)), problem.name
    )
    given: list[Any] = []
    for arguments in inputs:
        try:
            value = function(*arguments)
            given.append((type(value).__name__, value))
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            given.append(("raised", type(error).__name__))
    return given


def choose_inputs(problem: Problem, rng: random.Random) -> list[list[Any]] | None:
    """Test inputs (edges first) that tell the problem from its neighbours.

    None if leaving out a filter or a map would make no difference, or the answers are dull.
    """
    edges = []
    for value in edge_inputs(problem.spec.domain.name):
        edges.append(
            [value, *([random_threshold(problem.threshold, rng)] if problem.threshold else [])]
        )
    pool = edges + [problem.draw_inputs(rng) for _ in range(_POOL)]
    truth = answers(problem, problem.spec, pool)
    if any(kind == "raised" for kind, _ in truth):
        return None
    must, should = neighbours(problem.spec)
    killers = []
    for neighbour in must:
        hits = {i for i, a in enumerate(answers(problem, neighbour, pool)) if a != truth[i]}
        if len(hits) < 10:
            return None
        killers.append(hits)
    for neighbour in should:
        hits = {i for i, a in enumerate(answers(problem, neighbour, pool)) if a != truth[i]}
        if hits:
            killers.append(hits)
    chosen = list(range(len(edges)))
    open_sets = [hits for hits in killers if not hits & set(chosen)]
    while open_sets:
        best = max(range(len(pool)), key=lambda i: (sum(i in hits for hits in open_sets), -i))
        chosen.append(best)
        open_sets = [hits for hits in open_sets if best not in hits]
    for i in range(len(edges), len(pool)):
        if len(chosen) >= _LEAST + 2:
            break
        if i not in chosen and truth[i] not in [truth[j] for j in chosen]:
            chosen.append(i)
    different = {repr(truth[i]) for i in chosen}
    return (
        [pool[i] for i in chosen]
        if _LEAST <= len(chosen) <= _MOST and len(different) >= 4
        else None
    )


def _record(problem: Problem, inputs: list[list[Any]]) -> dict[str, Any]:
    truth = answers(problem, problem.spec, inputs)
    lines = ["def check(candidate):"]
    for arguments, (_, answer) in zip(inputs, truth, strict=True):
        lines.append(f"    assert candidate({', '.join(map(repr, arguments))}) == {answer!r}")
    domain, filters, maps, aggregate = problem.composition
    return {
        "task_id": "",
        "prompt": problem.prompt,
        "entry_point": problem.name,
        "canonical_solution": render(problem.spec, "list_comprehension", random.Random(0)),
        "test": "\n".join(lines) + "\n",
        "cluster": problem.cluster,
        "split": "",
        "composition": [domain, list(filters), list(maps), aggregate],
        "inputs": inputs,
    }


def minicode_records() -> list[dict[str, Any]]:
    """All held-out minicode problems, in the order in which they were drawn."""
    rng = random.Random(f"minicode-heldout-{SEED}")
    seen: set[Composition] = set()
    records: list[dict[str, Any]] = []
    while len(records) < SIZES["minicode"]:
        problem = draw_problem(rng)
        if problem.composition in seen:
            continue
        inputs = choose_inputs(problem, rng)
        if inputs is None:
            continue
        seen.add(problem.composition)
        records.append(_record(problem, inputs) | {"task_id": f"minicode/{len(records)}"})
    return _split(records, "minicode")


def minimath_records() -> list[dict[str, Any]]:
    """All held-out word problems, in the order in which they were drawn; no combination twice."""
    rng = random.Random(f"minimath-heldout-{SEED}")
    seen: set[wordproblems.Combination] = set()
    records: list[dict[str, Any]] = []
    while len(records) < SIZES["minimath"]:
        problem = wordproblems.draw_word_problem(rng)
        if problem.combination in seen:
            continue
        seen.add(problem.combination)
        records.append(
            {
                "task_id": f"minimath/{len(records)}",
                "question": problem.question,
                "answer": problem.answer,
                "cluster": problem.cluster,
                "split": "",
                "combination": list(problem.combination),
            }
        )
    return _split(records, "minimath")


def _split(records: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The records with their split: whole clusters in random order, until calibration is full.

    So no comparison sees a problem of a family that a dose was chosen on.
    """
    sizes = Counter(record["cluster"] for record in records)
    clusters = sorted(sizes)
    random.Random(f"{name}-split-{SEED}").shuffle(clusters)
    room, chosen = CALIBRATION, set()
    for cluster in clusters:
        if sizes[cluster] <= room:
            chosen.add(cluster)
            room -= sizes[cluster]
    return [r | {"split": "calibration" if r["cluster"] in chosen else "test"} for r in records]


def composition_of(record: dict[str, Any]) -> Composition:
    """A minicode record's composition, as `problems.composition` gives it."""
    domain, filters, maps, aggregate = record["composition"]
    return domain, tuple(filters), tuple(maps), aggregate
