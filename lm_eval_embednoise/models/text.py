"""Between text and tokens: stop strings found while tokens arrive, and where a text ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lm_eval_embednoise.engine.jobs import Stop
from lm_eval_embednoise.models.spelling import Spelling, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_UNFINISHED = "\ufffd"


class StopStrings:
    """Stop strings against a tokenizer's tokens.

    They are looked for in all that was generated, special tokens included, and never reach into the
    prompt; the displayed text leaves special tokens out.

    Most tokens can't complete a stop string, and of the others most don't: what each token adds to
    a text shows both without decoding. Only where that says that a stop string is possible, or
    leaves it open (bytes that are part of a character), the text is decoded.
    """

    def __init__(
        self,
        tokenizer: Any,
        until: Sequence[str],
        vocabulary: int,
        spelling: Spelling | None = None,
    ) -> None:
        """Look at every token once.

        Args:
            tokenizer: of the model.
            until: stop strings.
            vocabulary: rows of the embedding table.
            spelling: of that tokenizer and table, where there is one already.
        """
        self.spelling = spelling or Spelling(tokenizer, vocabulary)
        self.until = tuple(until)
        self._longest = max((len(text) for text in until), default=0)
        self._window = max((len(text.encode()) for text in until), default=0) + 8
        # Later bytes can turn finished characters into it: what tokens add says nothing about it.
        self._unsure = any(_UNFINISHED in text for text in until)
        self.may_end = torch.tensor([self._may_end(piece) for piece in self.spelling.pieces])

    def _may_end(self, piece: str | None) -> bool:
        """Whether a token can complete a stop string: holds one or starts with the end of one."""
        if piece is None or self._unsure:
            return True
        return any(
            stop in piece or any(piece.startswith(stop[at:]) for at in range(1, len(stop)))
            for stop in self.until
        )

    def _maybe(self, ids: Sequence[int], prompt: Sequence[int]) -> bool:
        """Whether the last token may have completed a stop string, by what the tokens add."""
        if self._unsure or not ids:
            return bool(ids)
        pieces = self.spelling.pieces
        last = pieces[ids[-1]]
        if last is None:
            return True
        tail, enough = last, len(last) + self._longest - 1
        for token in reversed(ids[:-1]):
            if len(tail) >= enough:
                break
            piece = pieces[token]
            if piece is None:
                return True
            tail = piece + tail
        else:  # at the very beginning of a text the first token can add something else
            if not self.spelling.has_text(prompt):
                return True
        return any(stop in tail for stop in self.until)

    def cut(self, text: str) -> int | None:
        """Where the earliest stop string starts, or None."""
        starts = [at for at in (text.find(stop) for stop in self.until) if at >= 0]
        return min(starts) if starts else None

    def kept(self, ids: Sequence[int], prompt: Sequence[int] = ()) -> int | None:
        """How many of the generated ids are wholly before a stop string; None without one.

        Args:
            ids: generated ids.
            prompt: the ids that they continue.
        """
        if not self._maybe(ids, prompt):
            return None
        emitted = self.spelling.emitted
        start = self.spelling.start_of_last(ids, self._window)
        if start and self.cut(emitted(ids, prompt, start)) is None:
            return None
        end = self.cut(emitted(ids, prompt))
        if end is None:
            return None
        count = len(ids)
        while count and len(emitted(ids[:count], prompt)) > end:
            count -= 1
        return count

    def text(self, ids: Sequence[int], prompt: Sequence[int] = ()) -> str:
        """The displayed text up to the earliest stop string; arguments as for `kept`."""
        parts = self.spelling.parts(ids, prompt)
        return shown(parts, 0, self.cut("".join(text for text, _ in parts)))

    def stop(self, end_tokens: Iterable[int], device: torch.device) -> Stop:
        """The sampler's stop rule."""
        if not self.until:
            return Stop(frozenset(end_tokens))
        return Stop(frozenset(end_tokens), self.may_end.to(device), self.kept)


def after_thinking(
    strings: StopStrings, ids: Sequence[int], end: str | int | None, prompt: Sequence[int] = ()
) -> str:
    """The displayed text after the last end-of-thinking mark, as the harness's class cuts it.

    Args:
        strings: the stop strings in force.
        ids: generated ids.
        end: the mark as text (which may be that of a special token) or as a token id; None for a
            model that doesn't think aloud. A text counts whole without the mark in it; where a stop
            string begins in the mark, nothing is left.
        prompt: the ids that they continue.
    """
    if not end and end != 0:
        return strings.text(ids, prompt)
    parts = strings.spelling.parts(ids, prompt)
    text = "".join(part for part, _ in parts)
    cut = strings.cut(text)
    stop = len(text) if cut is None else cut
    if isinstance(end, int):
        starts = [
            len(strings.spelling.emitted(ids[: at + 1], prompt))
            for at, token in enumerate(ids)
            if token == end and len(strings.spelling.emitted(ids[:at], prompt)) <= stop
        ]
        start = starts[-1] if starts else 0
    else:
        at = text.rfind(end, 0, stop + len(end))
        start = at + len(end) if at >= 0 else 0
    return shown(parts, start, max(start, stop)).lstrip()


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
