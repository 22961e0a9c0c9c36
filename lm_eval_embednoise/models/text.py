"""Between text and tokens: stop strings found while tokens arrive, and where a text ends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from lm_eval_embednoise.sampler import Stop

_UNFINISHED = "\ufffd"  # what a tokenizer shows for bytes that are not yet a character


class StopStrings:
    """Stop strings against a tokenizer's tokens.

    Most tokens can't complete a stop string, and of the others most don't: what each token adds to
    a text tells both without decoding. Only where it says that a stop string may stand, or doesn't
    say (bytes that are part of a character), the text is decoded.
    """

    def __init__(self, tokenizer: Any, until: Sequence[str], vocabulary: int) -> None:
        self.tokenizer = tokenizer
        self.until = tuple(until)
        self._longest = max((len(text) for text in until), default=0)
        self._window = max((len(text.encode()) for text in until), default=0) + 8
        self._pieces = _pieces(tokenizer, vocabulary)
        self.may_end = torch.tensor([self._may_end(piece) for piece in self._pieces])

    def _may_end(self, piece: str | None) -> bool:
        """Whether a token can complete a stop string: holds one or starts with the end of one."""
        if piece is None:
            return True
        return any(
            stop in piece or any(piece.startswith(stop[at:]) for at in range(1, len(stop)))
            for stop in self.until
        )

    def _maybe(self, ids: list[int]) -> bool:
        """Whether the last token may have completed a stop string, by what the tokens add."""
        last = self._pieces[ids[-1]] if ids else ""
        if last is None:
            return True
        tail, enough = last, len(last) + self._longest - 1
        for token in reversed(ids[:-1]):
            if len(tail) >= enough:
                break
            piece = self._pieces[token]
            if piece is None:
                return True
            tail = piece + tail
        return any(stop in tail for stop in self.until)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated ids, special tokens left out."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def cut(self, text: str) -> int | None:
        """Where the earliest stop string starts, or None."""
        found = [at for at in (text.find(stop) for stop in self.until) if at >= 0]
        return min(found) if found else None

    def kept(self, ids: list[int]) -> int | None:
        """How many of the generated ids stand wholly before a stop string; None without one."""
        if not self._maybe(ids) or self.cut(self.decode(ids[-self._window :])) is None:
            return None
        end = self.cut(self.decode(ids))
        if end is None:
            return None
        count = len(ids)
        while count and len(self.decode(ids[:count])) > end:
            count -= 1
        return count

    def text(self, ids: Sequence[int]) -> str:
        """The generated text up to the earliest stop string."""
        text = self.decode(ids)
        return text[: self.cut(text)]

    def stop(self, end_tokens: Iterable[int], device: torch.device) -> Stop:
        """The sampler's stop rule."""
        if not self.until:
            return Stop(frozenset(end_tokens))
        return Stop(frozenset(end_tokens), self.may_end.to(device), self.kept)


def _pieces(tokenizer: Any, vocabulary: int) -> list[str | None]:
    """What each token adds to a text that stands before it; None where that depends on the text."""
    count = min(vocabulary, len(tokenizer))
    found: list[str | None] = [None] * vocabulary
    if getattr(tokenizer, "clean_up_tokenization_spaces", False):
        return found  # takes back spaces that stand before a token
    anchor = tokenizer.encode("a", add_special_tokens=False)[-1]
    before = tokenizer.decode([anchor])
    pairs = [[anchor, token] for token in range(count)]
    for token, text in enumerate(tokenizer.batch_decode(pairs, skip_special_tokens=True)):
        if text.startswith(before) and _UNFINISHED not in text:
            found[token] = text[len(before) :]
    return found


def after_thinking(strings: StopStrings, ids: Sequence[int], end: str | int | None) -> str:
    """The generated text behind the last end-of-thinking mark, as the harness's class cuts it.

    Args:
        strings: the stop strings in force.
        ids: generated ids.
        end: the mark as text or as a token id; None for a model that doesn't think aloud. Without
            the mark in it, a text counts whole.
    """
    if isinstance(end, int):
        last = max((at for at, token in enumerate(ids) if token == end), default=-1)
        return strings.text(ids[last + 1 :]).lstrip()
    text = strings.text(ids)
    return text.split(end)[-1].lstrip() if end else text


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end a text: the one thing taken over from the model's generation config."""
    config = getattr(model, "generation_config", None)
    listed = getattr(config, "eos_token_id", None)
    listed = [] if listed is None else [listed] if isinstance(listed, int) else list(listed)
    own = tokenizer.eos_token_id
    return frozenset(i for i in [*listed, own] if i is not None)


def emittable_ids(tokenizer: Any, vocabulary: int) -> torch.Tensor:
    """Ids of the tokens that the tokenizer can emit and the embedding table holds: int64 [n]."""
    ids = sorted({i for i in tokenizer.get_vocab().values() if 0 <= i < vocabulary})
    return torch.tensor(ids, dtype=torch.int64)
