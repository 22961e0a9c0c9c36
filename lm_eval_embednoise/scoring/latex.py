"""Answers of MATH problems: find the expression, decide whether two mean the same."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_BOX = re.compile(r"\\f?box(?:ed)?(?![a-zA-Z])")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_SAID = re.compile(r"answer\b(?:\*\*)?(?: is|:)", re.IGNORECASE)
_THINKING = re.compile(r"</think(?:ing)?>")
_WRAPPED = re.compile(r"\$\$(.+)\$\$|\$(.+)\$|\\\[(.+)\\\]|\\\((.+)\\\)|\*\*(.+)\*\*", re.DOTALL)
_MOST = 2_000  # characters of an answer that is said in a sentence
_LONGEST = 1_000  # characters of an answer that can mean the same as a target


def extract_boxed(text: str) -> str | None:
    r"""The answer that a solution states; None when it states none.

    In this order, each at its last place: a whole `\boxed{…}` or `\fbox{…}`; what follows "answer
    is" or "Answer:"; a last line that ends in a formula, or is bold.
    """
    text = _THINKING.split(text)[-1]
    return last_box(text) or said(text) or _last_formula(text)


def last_box(text: str) -> str | None:
    """The content of the last box that is not cut off."""
    closing: dict[int, int] = {}  # place of `{` → place of its `}`
    opened: list[int] = []
    boxes = [match.end() for match in _BOX.finditer(text)]
    if not boxes:
        return None
    for match in _BRACE.finditer(text, boxes[0]):
        if match.group() == "{":
            opened.append(match.start())
        elif match.group() == "}" and opened:
            closing[opened.pop()] = match.start()
    for start in reversed(boxes):
        begin = start
        while begin < len(text) and text[begin] == " ":
            begin += 1
        if text[begin : begin + 1] == "{":
            if begin in closing:
                return text[begin + 1 : closing[begin]].strip() or None
        elif begin > start:  # `\\boxed 5`
            return re.split(r"[$\n]", text[start : start + _MOST], maxsplit=1)[0].strip() or None
    return None


def said(text: str) -> str | None:
    """What follows the last "answer is" or "Answer:", up to the end of the sentence."""
    start = None
    for match in _SAID.finditer(text):
        start = match.end()
    if start is None:
        return None
    rest = re.sub(r"^[:\s]*(?:\*\*(?=\s))?\s*", "", text[start : start + _MOST])
    for opening, closing in (
        ("$$", "$$"),
        ("$", "$"),
        ("\\[", "\\]"),
        ("\\(", "\\)"),
        ("**", "**"),
    ):
        if rest.startswith(opening) and closing in rest[len(opening) :]:
            return rest[len(opening) :].split(closing)[0].strip() or None
    sentence = re.split(r"\.(?=\s|$)|\n", rest, maxsplit=1)[0]
    return _bare(sentence)


def _last_formula(text: str) -> str | None:
    lines = text.strip()[-_MOST:].split("\n")
    display = re.search(r"\\\[([^\[\]]*)\\\][ .]*$", text.strip()[-_MOST:])
    if display:
        return display.group(1).strip() or None
    line = lines[-1].strip().rstrip(".").strip()
    ends = re.search(r"(?<!\$)\$([^$]+)\$$", line)
    if ends:
        return ends.group(1).strip() or None
    return _bare(line) if line and _WRAPPED.fullmatch(line) else None


def _bare(answer: str) -> str | None:
    """An answer without the marks of a formula or of bold around it."""
    answer = answer.strip().rstrip(".").strip()
    match = _WRAPPED.fullmatch(answer)
    while match:
        answer = next(part for part in match.groups() if part is not None).strip()
        match = _WRAPPED.fullmatch(answer)
    return answer or None


@lru_cache(maxsize=100_000)
def same_answer(answer: str, target: str) -> bool:
    """Whether two LaTeX answers are equivalent, by math-verify (after equality as text).

    An answer of more than 1,000 characters is only compared as text: no target is a fifth as long,
    and math-verify gives up on such texts after five seconds each.

    Call it from the main thread: math-verify bounds its time with a signal.

    Raises:
        ModuleNotFoundError: see `verifier`.
    """
    if _plain(answer) == _plain(target):
        return True
    if len(answer) > _LONGEST:
        return False
    parse, verify = verifier()
    try:
        return bool(verify(parse(f"${target}$"), parse(f"${answer}$")))
    except Exception:  # whatever a hostile expression does to the parser, it is not an answer
        return False


def verifier() -> tuple[Callable[[str], Any], Callable[[Any, Any], bool]]:
    """math-verify's `parse` and `verify`.

    Raises:
        ModuleNotFoundError: with the install line, when it is not there.
    """
    try:
        from math_verify import parse, verify  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "MATH answers are compared by math-verify: pip install 'lm-eval-embednoise[math]'"
        ) from None
    return parse, verify


def _plain(text: str) -> str:
    """The text without what never changes its value: blanks, sizes, dollar signs, a final dot."""
    text = re.sub(r"\\(?:left|right|!|,|;|:|quad|displaystyle)(?![a-zA-Z])|[\s$]", "", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    return text.rstrip(".")
