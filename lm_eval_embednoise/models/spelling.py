"""What generated tokens spell: decoded in their place after the prompt, special tokens apart."""

from __future__ import annotations

import re
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_UNFINISHED = "\ufffd"  # what a tokenizer shows for bytes that are not a character
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a byte in a vocabulary of word pieces
_USUAL = "def f(xqzvkj):\n    return 'wprtlm' + x  # isn't it ?\n\tif not y:\n        pass ."


class Spelling:
    """Decodes generated ids so that the text continues the prompt's.

    Decoded alone, ids would lose the blank before their first word in a SentencePiece vocabulary.
    What a token spells can depend on its neighbours only in a run of bytes, and at the very
    beginning of a text: so ids are decoded after the prompt's unfinished bytes and one token of
    plain text (`anchor`) in the place of all the text before them.

    Attributes:
        special: id of each token that is left out of displayed texts → what it spells.
        pieces: what each token adds to a text before it; None where that depends on the text.
        anchor: id of a token of plain text.
    """

    def __init__(self, tokenizer: Any, vocabulary: int) -> None:
        """Look at every token once.

        Args:
            tokenizer: of the model.
            vocabulary: rows of the embedding table.
        """
        self.tokenizer = tokenizer
        names = {token: name for name, token in sorted(tokenizer.get_vocab().items())}
        self.anchor = self._plain(names)
        self._anchored = self._decode([self.anchor])
        self.special = self._special()
        self.pieces = self._pieces(names, max(vocabulary, *(token + 1 for token in names)))
        self._closed = [
            bool(piece) and (piece == names[token] or not _BYTE.fullmatch(names[token]))
            for token, piece in enumerate(self.pieces)
        ]

    def _decode(self, ids: list[int]) -> str:
        """The tokenizer's own decoding, but for the clean-up that takes blanks out of code."""
        text: str = self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _plain(self, names: dict[int, str]) -> int:
        """A token that is plain text by itself: of the letter a, or the first there is."""
        for token in (*self.tokenizer.encode("a", add_special_tokens=False)[-1:], *names):
            text = self._decode([token])
            if text.strip() and _UNFINISHED not in text and not _BYTE.fullmatch(names[token]):
                return token
        raise ValueError("the tokenizer has no token of plain text: are its files missing?")

    def _special(self) -> dict[int, str]:
        """The special tokens that decoding really leaves out."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        marked = {token for token, what in added.items() if what.special}
        return {
            token: str(self.tokenizer.convert_ids_to_tokens(token))
            for token in sorted(marked | set(self.tokenizer.all_special_ids))
            if self._decode([self.anchor, token]) == self._anchored
        }

    def _pieces(self, names: dict[int, str], count: int) -> list[str | None]:
        pieces: list[str | None] = [""] * count  # a row of the table without a token says nothing
        plain = [token for token in names if token not in self.special]
        texts = self.tokenizer.batch_decode(
            [[self.anchor, token] for token in plain],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        for token, text in zip(plain, texts, strict=True):
            known = text.startswith(self._anchored) and _UNFINISHED not in text
            pieces[token] = text[len(self._anchored) :] if known else None
        self._adds_up = self._add_up(pieces)
        if not self._adds_up:
            for token in plain:
                pieces[token] = None
        for token, text in self.special.items():
            pieces[token] = text
        return pieces

    def _add_up(self, pieces: Sequence[str | None]) -> bool:
        """Whether tokens add the same after any other: not where words end in a mark, say."""
        ids = self.tokenizer.encode(_USUAL, add_special_tokens=False)
        for one, other in pairwise(ids):
            first, second = pieces[one], pieces[other]
            if first is None or second is None or {one, other} & self.special.keys():
                continue
            if self._decode([self.anchor, one, other]) != self._anchored + first + second:
                return False
        return True

    def parts(
        self, ids: Sequence[int], prompt: Sequence[int] = (), start: int = 0
    ) -> list[tuple[str, bool]]:
        """The texts of `ids[start:]` in order, and of each whether it is displayed.

        Args:
            ids: generated ids.
            prompt: the ids that they continue.
            start: of the first id wanted; must not be inside a run of bytes.
        """
        parts: list[tuple[str, bool]] = []
        run: list[int] = []
        before = self._before(_backwards(ids, start, prompt))
        for token in ids[start:]:
            if token not in self.special:
                if self.pieces[token] != "":
                    run.append(token)
                continue
            if run:
                parts.append((self._text(run, before), True))
            if self._adds_up:  # a special token ends a run of bytes
                before = [self.anchor] if run or before else []
            else:
                before += run
            run = []
            parts.append((self.special[token], False))
        if run:
            parts.append((self._text(run, before), True))
        return parts

    def emitted(self, ids: Sequence[int], prompt: Sequence[int] = (), start: int = 0) -> str:
        """The text of `ids[start:]`, special tokens included; arguments as for `parts`."""
        return "".join(text for text, _ in self.parts(ids, prompt, start))

    def has_text(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt holds more than special tokens."""
        return bool(self._before(reversed(prompt)))

    def start_of_last(self, ids: Sequence[int], count: int) -> int:
        """Where to begin so as to decode the last `count` ids, or more to spare a run of bytes."""
        start = len(ids)
        while start and (count > 0 or not self._closed[ids[start - 1]]):
            start -= 1
            count -= self.pieces[ids[start]] != ""
        return start

    def _before(self, backwards: Iterable[int]) -> list[int]:
        """The tokens to decode before what follows ids, which are given from the last one on."""
        tail: list[int] = []
        joined = True
        for token in backwards:
            if token in self.special:
                joined = False
            elif self.pieces[token] == "":
                continue
            elif self._adds_up and (self._closed[token] or not joined):
                return [self.anchor, *reversed(tail)]
            else:
                tail.append(token)
        return tail[::-1]

    def _text(self, run: list[int], before: list[int]) -> str:
        """What ordinary tokens add to the text before them."""
        text = self._decode([*before, *run])
        if not before:
            return text
        earlier = self._anchored if before == [self.anchor] else self._decode(before)
        if not text.startswith(earlier):  # they finish its last character
            pairs = zip(earlier, text, strict=False)
            return text[len(list(takewhile(lambda pair: pair[0] == pair[1], pairs))) :]
        return text[len(earlier) :]


def shown(parts: Sequence[tuple[str, bool]], start: int, end: int | None) -> str:
    """What is displayed of a text between two places in what was emitted."""
    pieces, at = [], 0
    for text, visible in parts:
        if visible:
            pieces.append(text[max(0, start - at) : None if end is None else max(0, end - at)])
        at += len(text)
    return "".join(pieces)


def _backwards(ids: Sequence[int], start: int, prompt: Sequence[int]) -> Iterator[int]:
    for at in range(start - 1, -1, -1):
        yield ids[at]
    yield from reversed(prompt)
