"""From a generated text to the pieces of it that may be a program: fenced and marked blocks.

Nothing is parsed here; every scan is linear in the text.
"""

from __future__ import annotations

import html
import itertools
import re
import textwrap
from dataclasses import dataclass
from functools import lru_cache

PYTHON = {"python", "python2", "python3", "py", "py2", "py3", "ipython", "ipython3", "sage"}
FOREIGN = {
    *("bash", "sh", "shell", "zsh", "console", "terminal", "powershell", "cmd", "json", "yaml"),
    *("toml", "xml", "html", "css", "sql", "c", "cpp", "c++", "csharp", "java", "javascript", "js"),
    *("typescript", "ts", "go", "rust", "ruby", "r", "kotlin", "swift", "scala", "perl", "php"),
    *("haskell", "lua", "latex", "tex", "math", "diff", "makefile", "dockerfile", "mermaid"),
    *("output", "input", "stdin", "stdout"),
}
_MARKS = r"^[ \t>]*(?:(?:[-*+]|\d+[.)])[ \t]+)*"  # quoted, in a list
_ALONE = re.compile(_MARKS + r"(`{3,}|~{3,})([^`\n]*)$")
_AT_END = re.compile(r"(?<![`~])(`{3,}|~{3,}) ?(\{?\.?[\w+#-]{0,20}\}?)$")
_INLINE = re.compile(r"```(\w*)[ \t]([^`\n]+)```")
_TAG = re.compile(r"\{?\.?([\w+#-]*)")
_MARKED = re.compile(
    r"\[(PYTHON|CODE|SOLUTION)\]|<(code|python|pre|solution|answer)(?: [^<>\n]{0,80})?>"
)
_QUOTED = re.compile(r"^[ \t]*>[ \t]?", re.MULTILINE)
_STRINGS = re.compile(
    r"#|\"\"\"|'''|\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'|\\.|[\[({]|[\])}]", re.DOTALL
)
# What chat templates and training formats put after an answer, written out as text.
_ENDS = re.compile(
    r"(?<![\"'`])(?:<\|(?:im_end|im_start|endoftext|end_of_text|eot_id|eot|EOT|end|endofmask)\|>"
    r"|</s>|<end_of_turn>|<eos>|<｜end▁of▁sentence｜>|\[/?INST\])(?![\"'`])"
)
_THOUGHT = re.compile(r"</think(?:ing)?>")
_THINKS = re.compile(r"\s*<think(?:ing)?>")
_MOST = 50  # blocks that are looked at, from the beginning and from the end
_RESCANS = 4  # how often a triple quote that never ends may make a scan start over


@dataclass(frozen=True)
class Block:
    """A part of a text that its author set off as code."""

    code: str
    tag: str = ""

    @property
    def tagged(self) -> bool:
        """Whether it is said to be Python."""
        return self.tag in PYTHON

    @property
    def foreign(self) -> bool:
        """Whether it is said to be something else."""
        return self.tag in FOREIGN


def answer_of(text: str) -> str | None:
    """What follows the thinking; None when the thinking never ends."""
    ends = [thought.end() for thought in _THOUGHT.finditer(text)]
    if ends:
        return text[ends[-1] :]
    return None if _THINKS.match(text) else text


def before_end_token(text: str) -> str:
    """The text up to an end token that was written out."""
    end = _ENDS.search(text)
    return text[: end.start()] if end else text


def before_fence(text: str) -> str:
    """The text up to a fence outside its strings: one that closes what the prompt has opened."""
    quote: str | None = None
    place = 0
    for line in text.split("\n"):
        if quote is None and _has_fence(line) and _ALONE.match(line):
            return text[:place]
        if quote is not None or '"""' in line or "'''" in line:
            quote = scan_line(line, quote)[0]
        place += len(line) + 1
    return text


def scan_line(line: str, quote: str | None) -> tuple[str | None, int]:
    """The triple quote open after a line, and by how much the line deepens its brackets."""
    place, depth = 0, 0
    while True:
        if quote is not None:
            end = line.find(quote, place)
            while end > 0 and line[end - 1] == "\\" and _escaped(line, end):
                end = line.find(quote, end + 1)
            if end < 0:
                return quote, depth
            place, quote = end + 3, None
        match = _STRINGS.search(line, place)
        if match is None:
            return None, depth
        token = match.group()
        place = match.end()
        if token == "#":
            return None, depth
        if token in ('"""', "'''"):
            quote = token
        elif token in "[({":
            depth += 1
        elif token in "])}":
            depth -= 1


def _escaped(line: str, place: int) -> bool:
    """Whether an odd number of backslashes comes before `place`."""
    start = place
    while start > 0 and line[start - 1] == "\\":
        start -= 1
    return (place - start) % 2 == 1


@lru_cache(maxsize=2)
def blocks_of(text: str) -> list[Block]:
    """The fenced and marked blocks of a text, in its order (fenced ones first)."""
    listed = _fenced(text.split("\n"))
    listed += [Block(code.strip(), tag.lower()) for tag, code in _INLINE.findall(text)]
    for mark in itertools.islice(_MARKED.finditer(text), _MOST):
        name = mark.group(1) or mark.group(2)
        closing = f"[/{name}]" if mark.group(1) else f"</{name}>"
        end = text.find(closing, mark.end())
        inside = text[mark.end() : end if end >= 0 else len(text)]
        if mark.group(2) and re.search(r"&(?:lt|gt|amp|quot|#39);", inside):
            inside = html.unescape(inside)
        if "```" not in inside and "~~~" not in inside:
            listed.append(Block(inside.strip("\n") + "\n", "python"))
    return listed if len(listed) <= 2 * _MOST else listed[:_MOST] + listed[-_MOST:]


def _fenced(lines: list[str]) -> list[Block]:
    fenced: list[Block] = []
    at, rescans = 0, 0
    while at < len(lines):
        opening = _opening(lines[at]) if _has_fence(lines[at]) else None
        if opening is None:
            at += 1
            continue
        ticks, tag, rest = opening
        end, after, last = _closing(lines, at + 1, ticks, strings=rescans < _RESCANS)
        if end is None:  # a triple quote was never closed: fences count wherever they are
            rescans += 1
            end, after, last = _closing(lines, at + 1, ticks, strings=False)
            assert end is not None
        inside = lines[at + 1 : end] + ([last] if last else [])
        if rest:
            inside = [rest, *inside]
        code = _unmarked(lines[at], "\n".join(inside) + "\n")
        if code.strip():
            fenced.append(Block(code, tag))
        at = after
    return fenced


def _has_fence(line: str) -> bool:
    return "```" in line or "~~~" in line


def _opening(line: str) -> tuple[str, str, str] | None:
    """The fence that a line opens: its marks, its tag, and code that follows on the same line."""
    alone = _ALONE.match(line)
    if alone:
        info = alone.group(2).strip()
        tag = _tag_of(info)
        rest = info[len(tag) :].strip() if info.startswith(tag) else ""
        if rest and tag not in PYTHON:
            return alone.group(1), tag, info if _like_code(info) else ""
        return alone.group(1), tag, rest if _like_code(rest) else ""
    after_prose = _AT_END.search(line.rstrip())
    if after_prose and (line.count("```") % 2 == 1 or "~~~" in line):
        tag = _tag_of(after_prose.group(2))
        if tag in PYTHON or not tag:
            return after_prose.group(1), tag, ""
    return None


def _like_code(rest: str) -> bool:
    """Whether what follows a tag is code, not a file name or an attribute."""
    return bool(
        re.match(r"(?:def|class|import|from|print|return|for|while|if)\b|\w+\s*[=(]", rest)
    ) and not re.match(r"\w+=[\"'\w]", rest)


def _tag_of(info: str) -> str:
    match = _TAG.match(info)
    return match.group(1).lower() if match else ""


def _closing(lines: list[str], at: int, ticks: str, strings: bool) -> tuple[int | None, int, str]:
    """Where a block that begins at line `at` ends: its end, where to go on, code before the fence.

    With `strings`, a fence within a triple-quoted string is part of it; the end is None when such
    a string is never closed although a fence follows.
    """
    quote: str | None = None
    swallowed = False
    for number in range(at, len(lines)):
        line = lines[number]
        fence = _ALONE.match(line) if _has_fence(line) else None
        if fence and fence.group(1)[0] == ticks[0]:
            if quote is not None:
                swallowed = True
            elif fence.group(2).strip():
                return number, number, ""  # another block begins: this one was never closed
            elif len(fence.group(1)) >= len(ticks):
                return number, number + 1, ""
        elif quote is None and line.rstrip().endswith(ticks) and "`" not in line.rstrip()[:-3]:
            return number, number + 1, line.rstrip()[: -len(ticks)]
        if strings and (quote is not None or '"""' in line or "'''" in line):
            quote = scan_line(line, quote)[0]
    if quote is not None and swallowed:
        return None, at, ""
    return len(lines), len(lines), ""


def _unmarked(opening: str, code: str) -> str:
    """A block's code without the marks of the quotation or list around it."""
    if opening.lstrip().startswith(">"):
        code = _QUOTED.sub("", code)
        opening = _QUOTED.sub("", opening)
    indent = len(opening) - len(opening.lstrip())
    if re.match(r"(?:[-*+]|\d+[.)])[ \t]", opening.lstrip()):
        return textwrap.dedent(code)
    filled = [len(line) - len(line.lstrip()) for line in code.split("\n") if line.strip()]
    if indent and filled and min(filled) >= indent:
        # What is indented deeper than the fence is the body of a function.
        return "\n".join(line[indent:] for line in code.split("\n"))
    return code
