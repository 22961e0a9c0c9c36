"""What a sample's prompt is: the problem's tokens, and what the perturbation adds to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval_embednoise.config import Perturbation
from lm_eval_embednoise.sampler import Job

# Names for tokens that are awkward to write on a command line, and how a tokenizer knows them.
NAMED_TOKENS = ("newline", "pad", "eos", "bos", "unk")
_NEWLINES = ("\n", "<0x0A>")  # the second where a vocabulary of word pieces falls back to bytes


def dummy_token_id(tokenizer: Any, name: str | None = None) -> int:
    """The one token that `dummy_token` names.

    Args:
        tokenizer: of the model.
        name: one of `NAMED_TOKENS`, a token as the vocabulary spells it, or a text that is one
            token; None takes the newline, else the padding, else the end token.

    Raises:
        ValueError: for a name that is not exactly one token.
    """
    if name is None:
        for choice in ("newline", "pad", "eos"):
            token = _named(tokenizer, choice)
            if token is not None:
                return token
        raise ValueError(
            "positions=dummy:N: this tokenizer has no newline, pad or eos token; "
            "name one of its tokens with dummy_token"
        )
    token = _named(tokenizer, name)
    if token is None and name not in NAMED_TOKENS:
        token = tokenizer.get_vocab().get(name)
    if token is not None:
        return token
    ids = tokenizer.encode(name, add_special_tokens=False)
    if len(ids) == 1 and name not in NAMED_TOKENS and ids[0] != tokenizer.unk_token_id:
        return int(ids[0])
    what = "unknown to" if name in NAMED_TOKENS or len(ids) == 1 else f"{len(ids)} tokens for"
    raise ValueError(
        f"dummy_token={name!r} is {what} this tokenizer; it must be exactly one token: "
        f"{', '.join(NAMED_TOKENS)}, a token of its vocabulary, or a text that is one token"
    )


def _named(tokenizer: Any, name: str) -> int | None:
    if name == "newline":
        for text in _NEWLINES:
            ids = tokenizer.encode(text, add_special_tokens=False)
            if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
                return int(ids[0])
            found = tokenizer.get_vocab().get(text)
            if found is not None:
                return int(found)
        return None
    if name not in NAMED_TOKENS:
        return None
    found = getattr(tokenizer, f"{name}_token_id")
    return None if found is None else int(found)


class Prompts:
    """Makes jobs of problems: adds to the prompt what the perturbation says."""

    def __init__(self, tokenizer: Any, perturbation: Perturbation) -> None:
        """Find the tokens to add.

        Raises:
            ValueError: for a dummy token that the tokenizer doesn't have.
        """
        self.perturbation = perturbation
        self.dummy: int | None = None
        if perturbation.where.dummies:
            self.dummy = dummy_token_id(tokenizer, perturbation.dummy_token)

    @property
    def added(self) -> int:
        """How many vectors stand in a prompt beside the problem's own."""
        return self.perturbation.where.dummies

    def jobs(self, ids: Sequence[int], problem: str, samples: Sequence[int]) -> list[Job]:
        """The samples of a problem.

        Args:
            ids: the problem's prompt, with nothing added.
            problem: its name in the random streams.
            samples: the sample indices wanted.
        """
        whole = list(ids)
        if self.dummy is not None:
            whole += [self.dummy] * self.perturbation.where.dummies
        return [Job(tuple(whole), problem, tuple(samples), clean_ids=tuple(ids))]
