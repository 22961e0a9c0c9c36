"""Texts to lexical tokens: one rule for code, one for prose.

Code: the tokens of Python's own tokenizer without comments, line ends and indentation. The rule is
a regular expression, the same for programs that parse and for those that don't and on every Python
version (from 3.12 on the tokenizer takes f-strings apart); the tests compare it with `tokenize`.
Prose: words, numbers, single other characters.
"""

from __future__ import annotations

import re

_PREFIX = r"(?:[bB][rR]?|[rR][bB]?|[uU]|[fF][rR]?|[rR][fF])?"
_CODE = re.compile(
    "|".join(
        (
            r"(?P<skip>\#[^\n]*|\\\r?\n)",
            _PREFIX + r"'''(?:[^\\]|\\.)*?'''",
            _PREFIX + r'"""(?:[^\\]|\\.)*?"""',
            _PREFIX + r"'(?:[^\\'\n]|\\.)*'",
            _PREFIX + r'"(?:[^\\"\n]|\\.)*"',
            r"0[xX](?:_?[0-9a-fA-F])+|0[bB](?:_?[01])+|0[oO](?:_?[0-7])+",
            r"(?:[0-9](?:_?[0-9])*\.(?:[0-9](?:_?[0-9])*)?|\.[0-9](?:_?[0-9])*)"
            r"(?:[eE][-+]?[0-9](?:_?[0-9])*)?[jJ]?",
            r"[0-9](?:_?[0-9])*(?:[eE][-+]?[0-9](?:_?[0-9])*)?[jJ]?",
            r"\w+",
            r"\*\*=?|//=?|>>=?|<<=?|\.\.\.|->|:=|[-+*/%@&|^=!<>]=",
            r"\S",
        )
    ),
    re.DOTALL,
)
_PROSE = re.compile(r"[^\W\d_]+|\d+|[^\w\s]|_")


def code_tokens(text: str) -> list[str]:
    """Lexical tokens of a (possibly broken) piece of Python."""
    return [m.group() for m in _CODE.finditer(text) if m.lastgroup is None]


def prose_tokens(text: str) -> list[str]:
    """Words, digit runs and single other characters of a text."""
    return _PROSE.findall(text)
