"""Says what a problem asks for in English, in many ways, and names its function."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .render import Spec, fill

if TYPE_CHECKING:
    import random

_VERBS = ("get", "find", "compute", "process", "select", "solve", "make", "handle", "work_on", "my")


def _quoted(k: str) -> str:
    return k.replace('"', "'")


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def function_name(spec: Spec, rng: random.Random) -> str:
    """A name that hints at the aggregate or the domain, or at nothing."""
    verb = rng.choice(_VERBS) if rng.random() < 0.5 else spec.aggregate.name
    return f"{verb}_{spec.domain.noun if rng.random() < 0.6 else spec.domain.name}"


def docstring(spec: Spec, rng: random.Random) -> str:
    """One to four sentences that define the answer without ambiguity."""
    elements = fill(rng.choice(spec.domain.nouns), p=spec.parameter)
    noun = spec.domain.noun
    negate = rng.random() < 0.2
    filters = list(spec.filters)
    rng.shuffle(filters)
    says = [fill(rng.choice(f.says), k=_quoted(k)) for f, k in filters]
    denies = [fill(rng.choice(f.denies), k=_quoted(k)) for f, k in filters]
    link = rng.choice((" and ", " and ", " and that ", " and also "))
    that = link.join(says)
    aggregate = spec.aggregate
    of = fill(rng.choice(aggregate.of), k=_quoted(spec.k))
    ask = fill(rng.choice(aggregate.says), k=_quoted(spec.k))
    none = f", or {rng.choice(aggregate.if_none)}" if aggregate.if_none else ""
    steps = [fill(rng.choice(m.says), k=_quoted(k)) for m, k in spec.maps]
    nouns = [fill(rng.choice(m.of), k=_quoted(k)) for m, k in spec.maps if m.of]
    verb = rng.choice(("Return", "Return", "Compute", "Find", "Give"))

    if negate:
        ignore = rng.choice(("Ignore", "Skip", "Leave out", "Drop"))
        ones = rng.choice(("those", "the ones", f"the {noun}"))
        drops = f" and {ones} that ".join(denies)
        text = rng.choice(
            (f"Look at {elements}. ", f"Go through {elements}. ", f"Consider {elements}. ")
        )
        text += f"{ignore} {ones} that {drops}. "
        if steps:
            text += rng.choice(("", "Then ")) + " and then ".join(steps) + ". "
            text = _capital(text)
        return _tidy(f"{text}{verb} {ask}{none}.")
    if len(nouns) == len(steps) and rng.random() < 0.45:
        chain = " ".join(reversed(nouns))
        return _tidy(f"{verb} {of} {chain} {elements} that {that}{none}.")
    if not steps:
        forms = [
            f"{verb} {of} {elements} that {that}{none}.",
            f"Keep {elements} that {that}. {verb} {ask}{none}.",
            f"Of {elements}, take those that {that} and return {ask}{none}.",
            f"Given {spec.parameter}, {verb.lower()} {of} {elements} that {that}{none}.",
        ]
        return _tidy(rng.choice(forms))
    then = " and then ".join(steps)
    forms = [
        f"Take {elements} that {that}, {then}, and return {ask}{none}.",
        f"Keep {elements} that {that}. Then {then}. {verb} {ask}{none}.",
        f"From {elements} choose those that {that}; {then}; {verb.lower()} {ask}{none}.",
        f"{verb} {of} the results when you take {elements} that {that}, and {then}{none}.",
        f"Of {elements}, only those count that {that}. {_capital(then)} and return {ask}{none}.",
    ]
    return _tidy(rng.choice(forms))


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _tidy(text: str) -> str:
    return ". ".join(map(_capital, text.replace("  ", " ").split(". ")))
