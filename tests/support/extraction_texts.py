"""Answers as language models write them, each with the function to find in it and a test of it.

Forms (how an answer is wrapped) times programs, and answers that stand alone. `Case.test` holds for
the right program and for none of the wrong ones in the text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """A text; the code it was to complete (or ""); the function asked for; what it must do."""

    name: str
    text: str
    prompt: str
    entry_point: str
    test: str


@dataclass(frozen=True)
class Asked:
    """A problem: the prompt, a body that completes it, and a test."""

    entry_point: str
    before: str  # imports and helpers of the prompt
    header: str
    docstring: str
    body: str
    test: str

    @property
    def prompt(self) -> str:
        return f"{self.before}{self.header}\n{self.docstring}"

    @property
    def whole(self) -> str:
        return f"{self.before}{self.header}\n{self.body}"


DOUBLE = Asked(
    "double",
    "",
    "def double(x):",
    '    """Double x."""\n',
    "    return 2 * x\n",
    "assert double(4) == 8",
)
ROOTS = Asked(
    "roots",
    "import math\nfrom typing import List\n\n\n",
    "def roots(values: List[int]) -> List[int]:",
    '    """Integer square roots.\n\n    >>> roots([4, 9])\n    [2, 3]\n    """\n',
    "    found = []\n    for value in values:\n        if value >= 0:\n"
    "            found.append(math.isqrt(value))\n\n    return found\n",
    "assert roots([4, 10, -1]) == [2, 3]",
)
WORDS = Asked(
    "count_words",
    "",
    "def count_words(text):",
    "    '''How often each word occurs.'''\n",
    "    counts = {}\n    for word in text.split():\n        # don't count case\n"
    "        key = word.lower()\n        counts[key] = counts.get(key, 0) + 1\n    return counts\n",
    "assert count_words('a b A') == {'a': 2, 'b': 1}",
)
ASKED = (DOUBLE, ROOTS, WORDS)

WHOLE_FORMS: dict[str, Callable[[str, str], str]] = {
    "plain": lambda code, name: code,
    "fence python": lambda code, name: f"```python\n{code}```\n",
    "fence py": lambda code, name: f"```py\n{code}```",
    "fence python3": lambda code, name: f"Sure!\n\n```python3\n{code}```\nDone.",
    "fence py3": lambda code, name: f"Sure!\n\n```py3\n{code}```\nDone.",
    "fence ipython3": lambda code, name: f"```ipython3\n{code}```\n",
    "fence capital": lambda code, name: f"Solution:\n```Python\n{code}```\n",
    "fence braces": lambda code, name: f"```{{python}}\n{code}```\n",
    "fence untagged": lambda code, name: f"Here it is:\n```\n{code}```\nIt works.",
    "fence tildes": lambda code, name: f"~~~python\n{code}~~~\nThat is all.",
    "fence of four": lambda code, name: f"````python\n{code}````\nThat is all.",
    "fence unclosed": lambda code, name: f"Certainly. \n\n```python\n{code}",
    "fence in a list": lambda code, name: (
        "1. Write it:\n\n   ```python\n" + indented(code, 3) + "   ```\n\n2. Run it.\n"
    ),
    "fence on a list item": lambda code, name: (
        "- ```python\n" + indented(code, 2) + "  ```\n- Run it.\n"
    ),
    "fence quoted": lambda code, name: "> ```python\n" + quoted(code) + "> ```\n\nAs asked.",
    "fence after a heading": lambda code, name: f"### Solution ```python\n{code}```\n",
    "fence after prose": lambda code, name: f"Here is the code: ```python\n{code}```\nEnjoy!",
    "fence closed on the line": lambda code, name: f"```python\n{code.rstrip()}```\nEnjoy!",
    "fence with a file name": lambda code, name: f"```python title=solution.py\n{code}```\n",
    "shell block first": lambda code, name: f"```bash\npip install x\n```\n```python\n{code}```\n",
    "output block after": lambda code, name: f"```python\n{code}```\nOutput:\n```\n8\n```\n",
    "usage block after": lambda code, name: (
        f"```python\n{code}```\nUse it so:\n```python\nprint({name}(None))\n```\n"
    ),
    "stub block first": lambda code, name: (
        f"We complete this:\n```python\ndef {name}(*args):\n    pass\n```\n```python\n{code}```\n"
    ),
    "wrong sketch first": lambda code, name: (
        f"First try:\n```python\ndef {name}(a):\n    return None\n```\nBetter:\n"
        f"```python\n{code}```\n"
    ),
    "broken sketch first": lambda code, name: (
        f"```python\ndef {name}(a):\n    ...here...\n```\nSo:\n```python\n{code}```\n"
    ),
    "asserts in the block": lambda code, name: (
        f"```python\n{code}\n\nassert {name}(None) == 5\nprint('ok')\n```\n"
    ),
    "example calls in the block": lambda code, name: (
        f"```python\n{code}\n# Example\nresult = {name}(None)\nprint(result)\n```\n"
    ),
    "reading input in the block": lambda code, name: (
        f"```python\n{code}\nx = int(input())\nprint({name}(x))\n```\n"
    ),
    "main guard in the block": lambda code, name: (
        f'```python\n{code}\nif __name__ == "__main__":\n    print({name}(None))\n```\n'
    ),
    "main function called": lambda code, name: (
        f"```python\n{code}\ndef main():\n    print({name}(input()))\n\nmain()\n```\n"
    ),
    "unit tests in the block": lambda code, name: (
        f"```python\nimport unittest\n\n{code}\nclass Test(unittest.TestCase):\n"
        f"    def test_it(self):\n        self.assertEqual({name}(None), 5)\n\nunittest.main()\n```"
    ),
    "doctest call in the block": lambda code, name: (
        f"```python\nimport doctest\n\n{code}\ndoctest.testmod(raise_on_error=True)\n```"
    ),
    "PYTHON marks": lambda code, name: f"[PYTHON]\n{code}[/PYTHON]\n[TESTS]\nassert 0\n[/TESTS]",
    "PYTHON mark unclosed": lambda code, name: f"[PYTHON]\n{code}",
    "code marks": lambda code, name: f"The function:\n<code>\n{code}</code>\nThat is it.",
    "code marks escaped": lambda code, name: f"<code>\n{escaped(code)}</code>",
    "thinking first": lambda code, name: (
        f"<think>\nMaybe\n```python\ndef {name}(a):\n    return 'a long wrong answer, really'\n"
        f"    # {'x' * 400}\n```\nNo.\n</think>\n```python\n{code}```\n"
    ),
    "thinking opened by the prompt": lambda code, name: (
        f"```python\ndef {name}(a):\n    return 0\n    # {'x' * 400}\n```\n</think>\n\n{code}"
    ),
    "prose around, no fence": lambda code, name: f"Here is the code:\n\n{code}\nIt does it.\n",
    "prose before only": lambda code, name: f"We loop over the values.\n\n{code}",
    "prose with a bracket": lambda code, name: f"Well (as I said\n\n{code}\n:) done",
    "prose that parses": lambda code, name: f"Solution\n\n{code}\nExplanation\n\nNote: simple\n",
    "prose with quotes": lambda code, name: f'The docstring """ isn\'t here.\n\n{code}\n',
    "indented, after prose": lambda code, name: f"Here:\n\n{indented(code, 4)}\nThat is all.\n",
    "byte order mark": lambda code, name: f"\ufeff{code}",
    "byte order mark in a block": lambda code, name: f"```python\n\ufeff{code}```",
    "windows line ends": lambda code, name: f"```python\n{code}```\n".replace("\n", "\r\n"),
    "end token": lambda code, name: f"```python\n{code}```<|im_end|>",
    "end token, no fence": lambda code, name: f"{code.rstrip()}<|im_end|>\n<|im_start|>user\nMore",
    "end of text token": lambda code, name: f"{code.rstrip()}<|endoftext|>import os",
    "end of sequence": lambda code, name: f"{code.rstrip()}</s>",
    "next function cut off": lambda code, name: (
        f"{code}\n\ndef other(a, b):\n    if a:\n        retu"
    ),
    "next function cut in a bracket": lambda code, name: (
        f"{code}\n\ndef other(a, b):\n    x = [1, (2"
    ),
    "next function cut in a string": lambda code, name: f'{code}\n\ndef other():\n    """Does wh',
    "block cut in the next function": lambda code, name: f"```python\n{code}\n\ndef other(a,",
    "failing asserts after": lambda code, name: f"{code}\nassert {name}(None) == 1\nassert 0\n",
    "doctest after": lambda code, name: f"{code}\n>>> {name}(3)\n5\n",
    "prints before": lambda code, name: f"n, *a = map(int, '3 1 2 3'.split())\n\n{code}",
    "string at the margin": lambda code, name: f'"""\nA module about it.\nIt says:\n"""\n{code}',
    "numbered heading": lambda code, name: (
        f"## 1. Idea\nLoop.\n\n## 2. Code\n```python\n{code}```\n"
    ),
}
BODY_FORMS: dict[str, Callable[[str, str], str]] = {
    "body": lambda body, name: body,
    "body, closing fence": lambda body, name: f"{body}```\nThis does it.\n",
    "body, prose": lambda body, name: f"{body}\nThis function does what was asked.\n",
    "body, next problem": lambda body, name: f"{body}\n\ndef next_problem(a):\n    '''Do",
    "body, asserts": lambda body, name: f"{body}\n\nassert {name}(None) == 3\n",
    "body, end token": lambda body, name: f"{body.rstrip()}<|endoftext|>\n",
    "body, fences in its docstring": lambda body, name: (
        f"    '''\n    ```\n    {name}(None)\n    ```\n    '''\n{body}"
    ),
    "body, main": lambda body, name: f'{body}\n\nif __name__ == "__main__":\n    {name}()\n',
    "body, example block": lambda body, name: (
        f"{body}```\n\nExample:\n```python\ndef {name}(a):\n    return 'no'\n```\n"
    ),
    "fenced body": lambda body, name: f"```python\n{body}```\n",
    "body, trailing prose in the body": lambda body, name: f"{body}    And that is all of it.\n",
    "empty lines first": lambda body, name: f"\n\n{body}",
}


def indented(code: str, by: int) -> str:
    """The code, every line moved in."""
    return "".join(" " * by + line if line.strip() else line for line in code.splitlines(True))


def quoted(code: str) -> str:
    """The code as a quotation in Markdown."""
    return "".join("> " + line for line in code.splitlines(True))


def escaped(code: str) -> str:
    """The code as HTML."""
    return code.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


ALONE = Path(__file__).parents[1] / "data" / "answers.jsonl"


def cases() -> Iterator[Case]:
    """All texts: each form with every program, then the ones that stand alone."""
    for place, (form, make) in enumerate(WHOLE_FORMS.items()):
        for asked in (ASKED[place % 3], ASKED[(place + 1) % 3]):
            prompt = asked.prompt if place % 2 else ""
            text = make(asked.whole, asked.entry_point)
            yield Case(f"{form}: {asked.entry_point}", text, prompt, asked.entry_point, asked.test)
    for form, make in BODY_FORMS.items():
        for asked in ASKED:
            text = make(asked.body, asked.entry_point)
            name = f"{form}: {asked.entry_point}"
            yield Case(name, text, asked.prompt, asked.entry_point, asked.test)
    for line in ALONE.read_text(encoding="utf-8").splitlines():
        yield Case(**json.loads(line))
