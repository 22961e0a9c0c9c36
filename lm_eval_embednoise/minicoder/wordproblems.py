"""Draws minimath: arithmetic word problems with worked answers that end in `#### N`.

A combination is (family, things, sequence of operations); held-out combinations never occur in
training, whatever the numbers.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

Combination = tuple[str, ...]

_NAMES = (
    "Ann",
    "Ben",
    "Cleo",
    "Dan",
    "Eva",
    "Finn",
    "Gus",
    "Ida",
    "Leo",
    "Mia",
    "Nora",
    "Omar",
    "Pia",
    "Sam",
)
_THINGS = (
    "apples",
    "books",
    "coins",
    "stamps",
    "shells",
    "cards",
    "eggs",
    "pens",
    "nuts",
    "stones",
)
_FRAMES = ("{q}", "So {q}.", "That makes {q}.", "{q}", "Now {q}.")


@dataclass(frozen=True)
class WordProblem:
    """A question, its worked answer and what identifies its combination."""

    question: str
    answer: str
    family: str
    combination: Combination

    @property
    def cluster(self) -> str:
        """The combination without its things: problems that share it are not independent."""
        return "/".join(part for part in self.combination if part not in _THINGS)


class _Work:
    """The running value and the worked lines, written in one style."""

    def __init__(self, rng: random.Random) -> None:
        self.lines: list[str] = []
        self.frame = rng.choice(_FRAMES)

    def step(self, a: int, operator: str, b: int) -> int:
        value = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[operator]
        self.lines.append(self.frame.format(q=f"{a} {operator} {b} = {value}"))
        return value

    def answer(self, value: int) -> str:
        return "\n".join([*self.lines, f"#### {value}"])


def _event(op: str, now: int, things: str, rng: random.Random) -> tuple[str, str, int] | None:
    """The sentence, operator and operand of one event; None if it can't happen to `now` things."""
    if op == "gain":
        k = rng.randint(2, 15)
        text = rng.choice(
            (
                "finds {k} more {t}",
                "buys {k} more",
                "gets {k} {t} from a friend",
                "picks up {k} {t}",
            )
        )
    elif op == "lose":
        if now < 4:
            return None
        k = rng.randint(2, min(now - 1, 15))
        text = rng.choice(
            ("gives away {k} of them", "loses {k} {t}", "sells {k} {t}", "drops {k} of the {t}")
        )
    elif op == "multiply":
        if now > 25:
            return None
        k = rng.choice((2, 2, 3, 4))
        text = {
            2: "doubles the number of {t}",
            3: "triples the number of {t}",
            4: "ends up with 4 times as many",
        }[k]
    else:
        divisors = [k for k in (2, 3, 4, 5) if now % k == 0 and now // k > 1]
        if not divisors:
            return None
        k = rng.choice(divisors)
        text = (
            "keeps only half of the {t}"
            if k == 2
            else "splits them into {k} equal piles and keeps one"
        )
    sign = {"gain": "+", "lose": "-", "multiply": "*", "divide": "/"}[op]
    return text.format(k=k, t=things), sign, k


def _story(rng: random.Random) -> WordProblem | None:
    name, things = rng.choice(_NAMES), rng.choice(_THINGS)
    value = rng.randint(3, 20)
    ops = [
        rng.choice(("gain", "lose", "multiply", "divide")) for _ in range(rng.choice((2, 3, 3, 4)))
    ]
    work = _Work(rng)
    sentences = [f"{name} has {value} {things}."]
    for i, op in enumerate(ops):
        event = _event(op, value, things, rng)
        if event is None:
            return None
        text, sign, k = event
        subject = (
            name
            if rng.random() < 0.3
            else rng.choice(("Then ", "After that, ", "Next, ", "")) + name
        )
        sentences.append(
            f"{subject} {text}." if i or rng.random() < 0.5 else f"First {name} {text}."
        )
        value = work.step(value, sign, k)
    ask = rng.choice(
        (f"How many {things} does {name} have now?", f"How many {things} are left in the end?")
    )
    return WordProblem(
        " ".join([*sentences, ask]), work.answer(value), "story", ("story", things, *ops)
    )


def _compare(rng: random.Random) -> WordProblem | None:
    first, second = rng.sample(_NAMES, 2)
    things = rng.choice(_THINGS)
    a = rng.randint(4, 20)
    how, ask = rng.choice(("more", "fewer", "times")), rng.choice(("total", "other", "difference"))
    work = _Work(rng)
    if how == "more":
        k = rng.randint(2, 15)
        relation, b = f"{k} more {things} than", work.step(a, "+", k)
    elif how == "fewer":
        k = rng.randint(1, a - 2)
        relation, b = f"{k} fewer {things} than", work.step(a, "-", k)
    else:
        k = rng.choice((2, 3, 4))
        relation, b = f"{k} times as many {things} as", work.step(a, "*", k)
    facts = [f"{first} has {a} {things}.", f"{second} has {relation} {first}."]
    if rng.random() < 0.3:
        facts.reverse()
    extra = rng.choice(("none", "third", "give"))
    if ask == "total":
        value = work.step(a, "+", b)
        question = f"How many {things} do they have together?"
    elif ask == "other" or how != "times":
        ask, value = "other", b
        question = f"How many {things} does {second} have?"
    else:
        value = work.step(b, "-", a)
        question = f"How many {things} more does {second} have than {first}?"
    if extra == "third":
        if ask != "total":
            return None
        c = rng.randint(2, 12)
        facts.append(f"Their friend brings {c} more.")
        value = work.step(value, "+", c)
    elif extra == "give":
        if ask != "other" or value < 6:
            return None
        c = rng.randint(2, value - 2)
        facts.append(f"{second} gives {c} of them away.")
        value = work.step(value, "-", c)
        question = f"How many {things} does {second} have left?"
    return WordProblem(
        " ".join([*facts, question]),
        work.answer(value),
        "compare",
        ("compare", things, how, ask, extra),
    )


def _shopping(rng: random.Random) -> WordProblem | None:
    name = rng.choice(_NAMES)
    one, two = rng.sample(_THINGS, 2)
    n, p, m, q = (rng.randint(2, 9) for _ in range(4))
    form = rng.choice(("two", "change", "both", "coupon"))
    work = _Work(rng)
    value = work.step(n, "*", p)
    text = f"{name} buys {n} {one} for {p} dollars each"
    if form in ("two", "both"):
        second = work.step(m, "*", q)
        value = work.step(value, "+", second)
        text += f" and {m} {two} for {q} dollars each"
    text += "."
    ask = f"How much does {name} pay?"
    if form in ("change", "both"):
        paid = (value // 10 + rng.randint(1, 3)) * 10
        text += f" {name} pays with {paid} dollars."
        value = work.step(paid, "-", value)
        ask = "How much change is given back?"
    elif form == "coupon":
        if value < 8:
            return None
        off = rng.randint(2, 6)
        text += f" A coupon takes {off} dollars off."
        value = work.step(value, "-", off)
    return WordProblem(
        f"{text} {ask}", work.answer(value), "shopping", ("shopping", one, two, form)
    )


def _boxes(rng: random.Random) -> WordProblem | None:
    name, things = rng.choice(_NAMES), rng.choice(_THINGS)
    n, k = rng.randint(2, 9), rng.randint(2, 9)
    box = rng.choice(("boxes", "bags", "baskets"))
    work = _Work(rng)
    value = work.step(n, "*", k)
    text = f"{name} has {n} {box} with {k} {things} in each."
    ops = [rng.choice(("gain", "lose", "divide")) for _ in range(rng.choice((1, 2)))]
    for op in ops:
        event = _event(op, value, things, rng)
        if event is None:
            return None
        sentence, sign, c = event
        text += f" Then {name} {sentence}."
        value = work.step(value, sign, c)
    return WordProblem(
        f"{text} How many {things} does {name} have now?",
        work.answer(value),
        "boxes",
        ("boxes", things, box, *ops),
    )


def draw_word_problem(rng: random.Random) -> WordProblem:
    """One random word problem of 1 to 4 steps."""
    while True:
        made = rng.choices((_story, _compare, _shopping, _boxes), (4, 2, 2, 2))[0](rng)
        if made is not None:
            return made


def prompt_of(question: str) -> str:
    """The prompt under which the model was trained and is evaluated."""
    return f"Question: {question}\nAnswer:"


def training_examples(seed: int, held_out: frozenset[Combination]) -> Iterator[tuple[str, str]]:
    """Endless (prompt, answer) pairs without the held-out combinations."""
    rng = random.Random(f"minimath-train-{seed}")
    while True:
        problem = draw_word_problem(rng)
        if problem.combination not in held_out:
            yield prompt_of(problem.question), " " + problem.answer
