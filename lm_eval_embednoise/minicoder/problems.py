"""Draws minicode problems: compositions, their wording and solutions, all as functions of a seed.

A composition is (domain, filters, maps, aggregate) without constants, names and wording. The
held-out problems' compositions never occur in training.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .grammar import AGGREGATES, DOMAINS, Aggregate, Domain, Piece
from .inputs import random_input, random_threshold
from .phrasing import docstring, function_name
from .pieces import FILTERS, MAPS
from .render import Spec, render

if TYPE_CHECKING:
    from collections.abc import Iterator

Composition = tuple[str, tuple[str, ...], tuple[str, ...], str]

# How often each way of writing occurs in training; the five strategies come out about equal.
WEIGHTS = {
    "loop_if": 1.0, "loop_continue": 1.0, "while_index": 1.0, "while_pop": 1.0,
    "list_comprehension": 2.0, "two_comprehensions": 2.0,
    "generator_expression": 0.8, "filter_map": 0.8, "named_helpers": 0.8,
    "reduction": 0.8, "slot_list": 0.8,
    "recursion": 2.0, "recursion_last": 2.0,
    "generator_function": 3.0,
}  # fmt: skip

_THRESHOLDS = ("k", "limit", "bound", "size", "m")
_LETTER_PARAMETERS = ("letter", "mark", "key", "sign")


@dataclass(frozen=True)
class Problem:
    """One problem with its constants, wording and names."""

    spec: Spec
    name: str
    prompt: str
    arguments: tuple[str, ...]
    threshold: tuple[int | str, ...]

    @property
    def composition(self) -> Composition:
        return composition(self.spec)

    @property
    def cluster(self) -> str:
        """The family: problems of one domain and one aggregate are not independent."""
        return f"{self.spec.domain.name}/{self.spec.aggregate.name}"

    def draw_inputs(self, rng: random.Random) -> list[Any]:
        """One random list of arguments."""
        values = [random_input(self.spec.domain.name, rng)]
        if self.threshold:
            values.append(random_threshold(self.threshold, rng))
        return values


def composition(spec: Spec) -> Composition:
    """What must not occur both in training and in the held-out problems."""
    return (
        spec.domain.name,
        tuple(sorted(f.name for f, _ in spec.filters)),
        tuple(m.name for m, _ in spec.maps),
        spec.aggregate.name,
    )


def _draw_filters(domain: Domain, rng: random.Random) -> list[Piece]:
    options = [f for f in FILTERS if f.type == domain.type]
    if domain.positive:
        options = [f for f in options if f.name not in ("positive", "negative")]
    chosen = [rng.choice(options)]
    if rng.random() < 0.5:
        chosen.append(rng.choice([f for f in options if f.group != chosen[0].group]))
    return chosen


def _draw_maps(domain: Domain, rng: random.Random) -> tuple[list[Piece], str]:
    kind, chosen = domain.type, []
    for _ in range(rng.choices((0, 1, 2), (3, 5, 4))[0]):
        piece = rng.choice([m for m in MAPS if m.type == kind and m not in chosen])
        if domain.positive and piece.name == "absolute":
            continue
        chosen.append(piece)
        kind = piece.to
    return chosen, kind


def _draw_aggregate(kind: str, mapped: bool, rng: random.Random) -> Aggregate:
    return rng.choice([a for a in AGGREGATES if kind in a.types and not (mapped and a.plain)])


def draw_problem(rng: random.Random) -> Problem:
    """A random problem; at most one of its constants is the function's second parameter."""
    domain = rng.choice(DOMAINS)
    filters = _draw_filters(domain, rng)
    maps, kind = _draw_maps(domain, rng)
    aggregate = _draw_aggregate(kind, bool(maps), rng)
    return dress(domain, filters, maps, aggregate, rng)


def dress(
    domain: Domain,
    filters: list[Piece],
    maps: list[Piece],
    aggregate: Aggregate,
    rng: random.Random,
) -> Problem:
    """Choose constants, names and wording for a composition."""
    pieces: list[Piece | Aggregate] = [*filters, *maps, aggregate]
    with_k = [i for i, piece in enumerate(pieces) if piece.ks]
    outer = rng.choice(with_k) if with_k and rng.random() < 0.4 else -1
    parameter = rng.choice(domain.params)
    constants: list[str] = []
    extra: tuple[str, ...] = ()
    threshold: tuple[int | str, ...] = ()
    for i, piece in enumerate(pieces):
        if not piece.ks:
            constants.append("")
            continue
        value = rng.choice(piece.ks)
        if i == outer:
            names = _LETTER_PARAMETERS if isinstance(value, str) else _THRESHOLDS
            constants.append(rng.choice(names))
            extra, threshold = (constants[-1],), piece.ks
        else:
            constants.append(f'"{value}"' if isinstance(value, str) else str(value))
    spec = Spec(
        domain=domain,
        filters=tuple(zip(filters, constants, strict=False)),
        maps=tuple(zip(maps, constants[len(filters) :], strict=False)),
        aggregate=aggregate,
        k=constants[-1],
        parameter=parameter,
    )
    name = function_name(spec, rng)
    arguments = (parameter, *extra)
    prompt = f'def {name}({", ".join(arguments)}):\n    """{docstring(spec, rng)}"""\n'
    return Problem(spec, name, prompt, arguments, threshold)


def compile_function(source: str, name: str) -> Any:
    """The function that our own generated source defines."""
    scope: dict[str, Any] = {}
    exec(compile(source, "<minicode>", "exec"), scope)
    return scope[name]


def header(problem: Problem) -> str:
    """The `def` line of a problem's function."""
    return f"def {problem.name}({', '.join(problem.arguments)}):\n"


def reference(problem: Problem) -> Any:
    """The function by which the answers are defined."""
    body = render(problem.spec, "list_comprehension", random.Random(0))
    return compile_function(header(problem) + body, problem.name)


def agrees(problem: Problem, body: str, rng: random.Random, trials: int = 3) -> bool:
    """Whether a body gives the reference's answers on random inputs."""
    truth, other = reference(problem), compile_function(header(problem) + body, problem.name)
    for _ in range(trials):
        arguments = problem.draw_inputs(rng)
        if truth(*arguments) != other(*arguments):
            return False
    return True


def training_problems(
    seed: int, held_out: frozenset[Composition], rng: random.Random | None = None
) -> Iterator[Problem]:
    """Endless problems, none of a held-out composition, drawn from `rng` or the seed's own."""
    rng = rng or training_rng(seed)
    while True:
        problem = draw_problem(rng)
        if problem.composition not in held_out:
            yield problem


def training_rng(seed: int) -> random.Random:
    """The generator behind one stretch of training data."""
    return random.Random(f"minicode-train-{seed}")


def training_examples(seed: int, held_out: frozenset[Composition]) -> Iterator[tuple[str, str]]:
    """Endless (prompt, body) pairs; every body was run against the reference on random inputs."""
    rng = training_rng(seed)
    ways, weights = list(WEIGHTS), list(WEIGHTS.values())
    for problem in training_problems(seed, held_out, rng):
        body = render(problem.spec, rng.choices(ways, weights)[0], rng)
        if not agrees(problem, body, rng):
            raise AssertionError(f"a rendering is wrong:\n{problem.prompt}{body}")
        yield problem.prompt, body
