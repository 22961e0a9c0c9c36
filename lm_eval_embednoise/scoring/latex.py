"""Answers of MATH problems: find the boxed expression, decide whether two mean the same."""

from __future__ import annotations

import re
from functools import lru_cache

_LONGEST = 1000
_SAID = re.compile(r"(?:final )?answer is:?\s*\$?(.+?)\$?\s*(?:\.\s|\.?$|\. I hope)", re.IGNORECASE)


def extract_boxed(text: str) -> str | None:
    """The content of the last `\\boxed{…}` or `\\fbox{…}`; else what follows "the answer is"."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        said = _SAID.findall(text)
        return said[-1].strip() or None if said else None
    rest = text[start:].split("boxed" if text.startswith("\\boxed", start) else "fbox", 1)[1]
    if not rest.startswith("{"):
        return rest.split("$")[0].strip() or None  # `\boxed 5`
    depth = 0
    for index, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:index].strip() or None
    return None  # cut off inside the braces


@lru_cache(maxsize=100_000)
def same_answer(answer: str, target: str) -> bool:
    """Whether two LaTeX answers are equivalent, by math-verify (after equality as text).

    An answer of more than 1,000 characters is only compared as text: no target is a fifth as long,
    and math-verify gives up on such texts after five seconds each.

    Call it from the main thread: math-verify bounds its time with a signal.

    Raises:
        ModuleNotFoundError: with the install line, when math-verify is not there.
    """
    if _plain(answer) == _plain(target):
        return True
    if len(answer) > _LONGEST:
        return False
    try:
        from math_verify import parse, verify  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "MATH answers are compared by math-verify: pip install 'lm-eval-embednoise[math]'"
        ) from None
    try:
        return bool(verify(parse(f"${target}$"), parse(f"${answer}$")))
    except Exception:  # whatever a hostile expression does to the parser, it is not an answer
        return False


def _plain(text: str) -> str:
    """The text without what never changes its value: blanks, sizes, dollar signs, a final dot."""
    text = re.sub(r"\\(?:left|right|!|,|;|:|quad|displaystyle)(?![a-zA-Z])|[\s$]", "", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    return text.rstrip(".")
