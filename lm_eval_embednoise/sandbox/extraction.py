"""From a generated text to the program in it: the longest that compiles and answers the question.

Runs where hostile text may be parsed (`reader`), never in the harness's own process. Candidates, in
order: a bare continuation of the prompt; blocks that say they are Python; other blocks; the text;
what continues the prompt. Of the first kind that has one, the longest candidate is taken that
compiles and defines the entry point (without one: that does more than state data). Statements that
do not compile, prose and uses of the function at the top level are left out.
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from . import blocks
from .pieces import Piece, calls_something, defines, pieces_of
from .uses import cut_uses

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAX_CHARACTERS = 1 << 16  # a longer part of a text is not parsed
_FUTURE = re.compile(r"^from __future__ import .*\n?", re.MULTILINE)
CONTINUATION, FENCE, TEXT, AS_IT_IS = "continuation", "block", "text", "as it is"


@dataclass(frozen=True)
class Taken:
    """A program, and the rule that found it."""

    program: str
    rule: str


@dataclass
class _Best:
    """The best candidate so far; a later one of equal length wins."""

    taken: Taken | None = None
    length: int = -1
    trivial: Taken | None = None

    def offer(self, taken: Taken, length: int) -> None:
        if length >= self.length:
            self.taken, self.length = taken, length


def preamble(prompt: str, entry_point: str | None) -> str:
    """The part of a completion prompt before the function to write: imports and helpers."""
    if entry_point is None:
        return ""
    headers = list(_definition(entry_point).finditer(prompt))
    return prompt[: headers[-1].start()] if headers else prompt


def _definition(name: str) -> re.Pattern[str]:
    return re.compile(rf"^(?:async\s+)?def\s+{re.escape(name)}\s*\(", re.MULTILINE)


def extract(text: str, prompt: str = "", entry_point: str | None = None) -> Taken:
    """The program in a model's answer.

    `prompt` is a completion prompt (code); leave it empty for a question.
    """
    text = text.replace("\r\n", "\n").lstrip("\ufeff").replace("\n\ufeff", "\n")
    answer = blocks.answer_of(text)
    if answer is None:
        return Taken(text, "thinking without an end")
    if len(answer) > 2 * MAX_CHARACTERS:
        answer = f"{answer[:MAX_CHARACTERS]}\n{answer[-MAX_CHARACTERS:]}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SyntaxWarning: `x is 1` still compiles
        for whole in dict.fromkeys([blocks.before_end_token(answer), answer]):
            taken = _Search(whole, prompt, entry_point).run()
            if taken is not None:
                return taken
    return _as_it_is(blocks.before_end_token(answer), prompt, entry_point)


@dataclass
class _Search:
    text: str
    prompt: str
    entry_point: str | None
    best: _Best = field(default_factory=_Best)

    def run(self) -> Taken | None:
        if self._continues():
            taken = self._try([(blocks.before_fence(self.text), True)], CONTINUATION)
            if taken:
                return taken
        fenced = [block for block in blocks.blocks_of(self.text) if not block.foreign]
        tagged = [block.code for block in fenced if block.tagged]
        others = [block.code for block in fenced if not block.tagged]
        tiers = [(tagged, FENCE), (others, FENCE), ([self.text], TEXT)]
        for codes, rule in tiers:
            taken = self._try(((code, False) for code in codes), rule)
            if taken:
                return taken
        if self.prompt:
            for codes, rule in tiers[:2]:
                taken = self._try(((code, True) for code in codes), f"{rule} after the prompt")
                if taken:
                    return taken
            if not fenced and not self._continues():
                taken = self._try([(self.text, True)], CONTINUATION)
        return taken or self.best.trivial

    def _continues(self) -> bool:
        """Whether the text goes on in the function that the prompt has begun."""
        if not self.prompt or self.entry_point is None:
            return False
        for line in self.text.split("\n", 200):
            if line.strip():
                fence = line.lstrip().startswith(("```", "~~~", ">"))
                return line[0] in " \t" and not fence
        return False

    def _try(self, codes: Iterable[tuple[str, bool]], rule: str) -> Taken | None:
        best = _Best()
        for code, after_prompt in codes:
            for program, length in self._programs(code, after_prompt):
                best.offer(Taken(program, rule), length)
        return best.taken

    def _programs(self, code: str, after_prompt: bool) -> Iterator[tuple[str, int]]:
        """The program of a candidate, if it makes one, and how much of the text is in it."""
        given = self.prompt if after_prompt else ""
        if len(given) + len(code) > MAX_CHARACTERS or not self._named_in(given + code):
            return
        pieces = pieces_of(given + code, self.entry_point)
        if self.entry_point is None:
            if calls_something(pieces):  # else it prints nothing: data, or prose that parses
                yield "".join(piece.text for piece in pieces), _length(pieces)
            return
        owner = defines(pieces, self.entry_point)
        if owner is None:
            return
        kept = cut_uses(pieces, self.entry_point)
        program = "".join(piece.text for piece in kept)
        if not after_prompt:
            program = _behind(preamble(self.prompt, self.entry_point), program)
        if not compiles(program):
            return
        taken = Taken(program, "a function that does nothing")
        if owner.trivial:
            self.best.trivial = self.best.trivial or (None if after_prompt else taken)
            return
        if after_prompt and _repeated_inside(owner.node, self.entry_point):
            yield from self._programs(textwrap.dedent(code), False)
            return
        yield program, _length(kept) - len(given)

    def _named_in(self, code: str) -> bool:
        """Whether the entry point may be defined here; other spellings of a name aren't ASCII."""
        return self.entry_point is None or self.entry_point in code or not code.isascii()


def _length(pieces: list[Piece]) -> int:
    return sum(len(piece.text) for piece in pieces)


def _repeated_inside(node: ast.AST, name: str) -> bool:
    """Whether the function's body defines the function once more: an answer that was indented."""
    return any(
        isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef)) and inner.name == name
        for inner in getattr(node, "body", [])
    )


def _behind(given: str, program: str) -> str:
    """A whole program after the prompt's imports; `from __future__` stays in front."""
    future = "".join(_FUTURE.findall(program)) if given else ""
    return future + given + (_FUTURE.sub("", program) if future else program)


def compiles(program: str) -> bool:
    """Whether `compile` accepts a program."""
    try:
        compile(program, "<text>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return False
    return True


def _as_it_is(text: str, prompt: str, entry_point: str | None) -> Taken:
    """What is judged when nothing in a text is a program: what the text shows most clearly."""
    fenced = blocks.blocks_of(text)
    tagged = [block.code for block in fenced if block.tagged]
    code = text
    if not prompt or not text[:1].isspace():
        code = max(tagged, key=len) if tagged else text
    if prompt and entry_point is not None and _definition(entry_point).search(code):
        return Taken(preamble(prompt, entry_point) + code, AS_IT_IS)
    return Taken(prompt + code, AS_IT_IS)
