"""How a sample failed: one kind for each, by written rules, from its text and its record alone.

The rules stand in their order of precedence in `KINDS`; docs/mechanism.md says the same in words.
Verdicts, undefined names and extracted programs are the sandbox's and scoring's own; no model is
needed.
"""

from __future__ import annotations

import ast
import difflib
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lm_eval_embednoise.sandbox.blocks import blocks_of
from lm_eval_embednoise.sandbox.syntax import find
from lm_eval_embednoise.scoring.lexer import code_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from lm_eval_embednoise.scoring.records import Record

LOOPS, LOOP_TOKENS = 4, 20  # times that a block stands in a row at a text's end, tokens of them all
LONGEST_BLOCK = 60  # tokens
FOREIGN_LETTERS = 0.2  # share of a text's letters outside ASCII
ALIKE = 0.7  # difflib's ratio from which two names are one, misspelt
FEW_LITERALS = 4  # literals of a prompt up to which each is meant to be in the program
LARGEST_PROGRAM = 1 << 16  # characters; a larger one is not looked into
_WORKED = re.compile(r"^#### |\S#### -?\d", re.MULTILINE)  # a worked answer's last line
_CODE = re.compile(
    r"^\s*(?:def \w+\(|return\b|import \w+|from \w+ import|for \w+ in .+:|while .+:|if .+:$)"
    r"|\w\(\"\w*\"\):",
    re.MULTILINE,
)
_QUOTED = re.compile(r"(?<!\w)'([^'\s]{1,12})'(?!\w)|\"([^\"\s]{1,12})\"")
_EXAMPLES = re.compile(
    r">>>|=>|==|\bexamples?\b|e\.g\.", re.IGNORECASE
)  # begin what isn't the task
_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.]*\w)")
_OPEN_END = re.compile(r"(?:[-+*/%=<>(\[{,:.\\]|\b(?:and|or|not|in|is|if|else|for|return|lambda))$")


@dataclass(frozen=True)
class Looked:
    """A failed sample and what the rules look at.

    Attributes:
        record: its record (scoring/records.py).
        prompt: what the model was asked: a completion prompt or a question.
        entry_point: the function to write; None where there is none.
        tree: the program without docstrings, or None where it doesn't compile.
    """

    record: Record
    prompt: str
    entry_point: str | None
    tree: ast.Module | None

    @property
    def code(self) -> bool:
        """Whether a program was asked for."""
        return "code" in self.record

    @property
    def valid(self) -> bool:
        """As the record says; logs of other versions may not."""
        return bool(self.record.get("valid", self.record.get("compiled")))

    @property
    def asked(self) -> str:
        """The prompt before its examples."""
        return _EXAMPLES.split(self.prompt, maxsplit=1)[0]

    @property
    def text(self) -> str:
        """The text as it was generated."""
        return str(self.record["text"])


def kind_of(record: Record, doc: Mapping[str, Any]) -> str | None:
    """The kind of a failure: the first of `KINDS` whose rule applies; None for a passed sample.

    Args:
        record: of a sample that was judged.
        doc: its problem: `prompt` and `entry_point`, or `question`.
    """
    if record["passed"]:
        return None
    prompt = str(doc.get("prompt") or doc.get("question") or doc.get("problem") or "")
    program = record.get("code") or ""
    tree = parsed(program) if record.get("compiled") else None
    looked = Looked(record, prompt, doc.get("entry_point"), tree)
    return next(kind for kind, (applies, _) in KINDS.items() if applies(looked))


def parsed(program: str) -> ast.Module | None:
    """A program's tree without docstrings; None for one that is too large or deep to look into."""
    if len(program) > LARGEST_PROGRAM:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SyntaxWarning
            tree = ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_text(body[0]) and len(body) > 1:
            del body[0]
    return tree


def loops(text: str) -> bool:
    """Whether a text ends in one block of tokens over and over; numbers count as alike.

    The last token is left out: it may be cut.
    """
    tokens = [re.sub(r"^\d[\d.]*$", "0", token) for token in code_tokens(text)[:-1]]
    for size in range(1, LONGEST_BLOCK + 1):
        length = max(LOOPS * size, LOOP_TOKENS)
        tail = tokens[-length:]
        if len(tail) == length and tail[size:] == tail[:-size]:
            return True
    return False


# ── The rules ─────────────────────────────────────────────────────────────────────────────────────


def _loop(looked: Looked) -> bool:
    return looked.record.get("finish_reason") == "length" and loops(looked.text)


def _truncated(looked: Looked) -> bool:
    reason = looked.record.get("finish_reason")
    return reason == "prompt_too_long" or (reason == "length" and not looked.valid)


def _other_language(looked: Looked) -> bool:
    text = looked.text
    letters = [c for c in text if c.isalpha()]
    strange = sum(not c.isascii() for c in letters)
    if strange > FOREIGN_LETTERS * len(letters) and looked.prompt.isascii():
        return True
    if not looked.code:
        return bool(_CODE.search(text))
    blocks = blocks_of(text)
    only_foreign = bool(blocks) and all(block.foreign for block in blocks)
    return only_foreign or (looked.tree is None and bool(_WORKED.search(text)))


def _early(looked: Looked) -> bool:
    """Nothing, a body that does nothing, or an end in the middle of a statement or calculation."""
    text = looked.text.strip()
    if not text or looked.record.get("finish_reason") == "numeric":
        return True
    if not looked.code:
        return not looked.valid
    if looked.record.get("compiled"):
        undefined = looked.record.get("undefined")
        defined = _entry(looked) is not None
        return bool(defined and not looked.valid and undefined is None)
    tokens = code_tokens(text)
    return not tokens or bool(_OPEN_END.search(text.splitlines()[-1]))


def _signature(looked: Looked) -> bool:
    """The function isn't there, or takes another number of arguments than the prompt says."""
    if looked.tree is None or looked.entry_point is None:
        return False
    entry = _entry(looked)
    if not isinstance(entry, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return True
    header = rf"def\s+{re.escape(looked.entry_point)}\s*\((.*?)\)\s*(?:->[^:]*)?:"
    wanted = re.search(header, looked.prompt, re.DOTALL)
    if wanted is None:
        return False
    asked = parsed(f"def f({wanted.group(1)}): pass")
    if asked is None or not isinstance(asked.body[0], ast.FunctionDef):
        return False
    return not _takes(entry.args, len(asked.body[0].args.args))


def _syntax(looked: Looked) -> bool:
    return looked.code and not looked.record.get("compiled")


def _resources(looked: Looked) -> bool:
    return looked.record.get("verdict") in ("timeout", "memory", "output_limit")


def _copied(looked: Looked) -> bool:
    """A name, number or quoted text of the prompt is missing, and another stands in its place."""
    if not looked.code:
        return _number_of_the_question(looked)
    if looked.tree is None:
        return False
    unbound = looked.record.get("undefined")
    if unbound:
        names = set(re.findall(r"[A-Za-z_]\w*", looked.prompt)) - {unbound}
        return bool(
            _unread(looked) or difflib.get_close_matches(unbound, sorted(names), 1, cutoff=ALIKE)
        )
    ours = set(_literals(looked.tree))
    return _replaced(_asked(looked), {x for x in ours if isinstance(x, (int, float))}) or _replaced(
        [a or b for a, b in _QUOTED.findall(looked.asked)], {x for x in ours if isinstance(x, str)}
    )


def _undefined(looked: Looked) -> bool:
    return bool(looked.record.get("undefined")) or looked.record.get("detail") == "NameError"


def _raised(looked: Looked) -> bool:
    return looked.record.get("verdict") == "runtime_error"


# Kind → (rule, what it says in a table), in order of precedence.
KINDS: dict[str, tuple[Callable[[Looked], bool], str]] = {
    "repetition loop": (_loop, "one block of tokens over and over, up to the limit of tokens"),
    "truncation": (_truncated, "cut at the limit of tokens before there was an answer"),
    "change of language": (_other_language, "another language than the one asked for"),
    "early end": (_early, "nothing, a body that does nothing, or an end within a statement"),
    "syntax": (_syntax, "does not compile"),
    "wrong signature": (_signature, "the function is missing or takes other arguments"),
    "timeout": (_resources, "ran beyond time, memory or output"),
    "copied wrongly": (_copied, "a name, number or quoted text of the prompt became another"),
    "undefined name": (_undefined, "reads a name that nothing binds"),
    "runtime error": (_raised, "raises anything else"),
    "wrong answer": (lambda looked: True, "runs, or calculates, to another result"),
}


def _entry(looked: Looked) -> ast.AST | None:
    if looked.tree is None or looked.entry_point is None:
        return looked.tree
    return find(looked.tree.body, looked.entry_point)


def _takes(arguments: ast.arguments, count: int) -> bool:
    """Whether a function can be called with so many positional arguments."""
    given = [*arguments.posonlyargs, *arguments.args]
    needed = len(given) - len(arguments.defaults)
    return needed <= count and (count <= len(given) or arguments.vararg is not None)


def _unread(looked: Looked) -> bool:
    """Whether the function has a parameter that it never reads."""
    entry = _entry(looked)
    if not isinstance(entry, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return False
    read = {
        n.id for n in ast.walk(entry) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)
    }
    return any(argument.arg not in read for argument in entry.args.args)


def _literals(tree: ast.Module) -> Iterator[int | float | str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and not isinstance(node.value, bool):
            value = node.value
            if isinstance(value, (int, float, str)):
                yield value


def _asked(looked: Looked) -> list[float]:
    return [float(number) for number in _NUMBER.findall(looked.asked)]


def _replaced(wanted: list[Any], ours: set[Any]) -> bool:
    """Whether one of the few literals of a prompt is missing, and there is one it doesn't have.

    A number next to a wanted one says the same by another comparison (`> 5` for "at least 6"), and
    0, 1 and 2 have uses of their own.
    """
    known = set(wanted)
    if not known or len(known) > FEW_LITERALS:
        return False
    if isinstance(wanted[0], str):
        return not known <= ours and any(x not in known and x.strip() for x in ours)
    near = {x + d for x in known for d in (-1, 0, 1)}
    missing = [x for x in known if not {x - 1, x, x + 1} & ours]
    return bool(missing) and any(x not in near and x not in (0, 1, 2) for x in ours)


def _number_of_the_question(looked: Looked) -> bool:
    """A worked answer calculates with a number that is neither given nor a result.

    And one that is given is missing from it.
    """
    given = set(_asked(looked))
    results: set[float] = set()
    used: set[float] = set()
    strange = False
    for line in looked.text.splitlines():
        if line.startswith("####"):
            break
        left, _, right = line.partition("=")
        operands = {float(number) for number in _NUMBER.findall(left)}
        strange |= not operands <= given | results | {2.0}
        used |= operands
        results |= {float(number) for number in _NUMBER.findall(right)}
    return strange and not given <= used


def _is_text(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
