"""From a generated text to the program it stands for: continuation, fenced block, prose around.

Works on text alone: nothing is parsed here, because a parser can be crashed by hostile text.
"""

from __future__ import annotations

import re

_FENCE = re.compile(r"^[ \t]*(?:```|~~~)[ \t]*([\w+-]*)[^\n]*$", re.MULTILINE)
_PYTHON = {"", "python", "python3", "py", "python2"}
# A line at the margin that can begin or continue a program rather than a paragraph.
_CODE_LINE = re.compile(
    r"\s|$|#|@|\"\"\"|'''|[)\]}]|(?:async\s+)?def\s+\w+\s*\(|class\s+\w+\s*[:(]|import\s+[\w.]+"
    r"|from\s+[\w.]+\s+import\b|if\s.*:|for\s.*:|while\s.*:|with\s.*:|try\s*:|except\b.*:|else\s*:"
    r"|elif\s.*:|finally\s*:|return\b|raise\b|assert\b|pass$|[\w.\[\]'\", ]+\s*[-+*/%|&^]?=[^=]"
    r"|[\w.]+\(.*\)\s*(?:#.*)?$"
)
_START = re.compile(
    r"^(?:@\w|(?:async\s+)?def\s+\w+\s*\(|class\s+\w+\s*[:(]|import\s+[\w.]+|from\s+[\w.]+\s+import\b)",
    re.MULTILINE,
)


def preamble(prompt: str, entry_point: str | None) -> str:
    """The part of a completion prompt before the function to write: imports and helpers."""
    if entry_point is None:
        return ""
    headers = list(_definition(entry_point).finditer(prompt))
    return prompt[: headers[-1].start()] if headers else prompt


def extract_program(text: str, prompt: str = "", entry_point: str | None = None) -> str:
    """The whole program to judge: what the model wrote, after the part of the prompt it needs.

    Cases, in this order: a bare continuation, up to a fence that closes it; fenced blocks, of which
    the last one that defines `entry_point` (or class Solution) counts, else the last; a definition
    with prose around it. `prompt` is a completion prompt (code); leave it empty for a question.
    """
    return _assemble(_solution(text, entry_point), prompt, entry_point)


def _solution(text: str, entry_point: str | None) -> str:
    fences = list(_FENCE.finditer(text))
    if not fences:
        return _without_prose(text, entry_point)
    before = text[: fences[0].start()]
    opens_block = fences[0].group(1) != "" or not before.strip()
    if not opens_block and _looks_like_code(before):
        return before  # the fence only closes what the prompt had opened
    blocks = _blocks(text, fences)
    defining = [block for block in blocks if _defines(block, entry_point)]
    if defining:
        return defining[-1]
    return blocks[-1] if blocks else _without_prose(before, entry_point)


def _blocks(text: str, fences: list[re.Match[str]]) -> list[str]:
    """The contents of the Python blocks; one that is never closed runs to the end."""
    blocks = []
    for opening, closing in zip(fences[::2], [*fences[1::2], None], strict=False):
        if opening.group(1).lower() in _PYTHON:
            end = closing.start() if closing else len(text)
            blocks.append(text[opening.end() + 1 : end])
    return blocks


def _defines(code: str, entry_point: str | None) -> bool:
    if re.search(r"^class\s+Solution\b", code, re.MULTILINE):
        return True
    return entry_point is not None and bool(_definition(entry_point).search(code))


def _definition(name: str) -> re.Pattern[str]:
    return re.compile(rf"^(?:async\s+)?def\s+{re.escape(name)}\s*\(", re.MULTILINE)


def _looks_like_code(text: str) -> bool:
    """Whether the first written line is indented or begins a program."""
    lines = [line for line in text.split("\n") if line.strip()]
    return bool(lines) and (lines[0][0] in " \t" or bool(_CODE_LINE.match(lines[0])))


def _without_prose(text: str, entry_point: str | None) -> str:
    """Cut paragraphs before and after a full definition; a bare body is left as it is."""
    lines = [line for line in text.split("\n") if line.strip()]
    prose_first = bool(lines) and not _CODE_LINE.match(lines[0])
    if not _defines(text, entry_point) and not (entry_point is None and prose_first):
        return text
    start = _START.search(text)
    if start is None:
        return text
    kept = text[start.start() :] if prose_first else text
    result: list[str] = []
    for line in kept.split("\n"):
        if not _CODE_LINE.match(line) and result and not result[-1].strip():
            break  # a paragraph after an empty line
        result.append(line)
    return "\n".join(result)


def _assemble(solution: str, prompt: str, entry_point: str | None) -> str:
    if not prompt:
        return solution
    if entry_point is not None and _defines(solution, entry_point):
        return preamble(prompt, entry_point) + solution
    return prompt + solution
