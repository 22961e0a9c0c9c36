"""What a sample's prompt is: the problem's tokens, and what the perturbation adds to them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from lm_eval_embednoise.engine.jobs import Job
from lm_eval_embednoise.models.dates import stopped
from lm_eval_embednoise.noise import perturb

if TYPE_CHECKING:
    import datetime
    from collections.abc import Callable, Mapping, Sequence

    from lm_eval_embednoise.noise.perturbation import Perturbation

# Names for tokens that are awkward to write on a command line, and which of a tokenizer's they are.
NAMED_TOKENS = ("newline", "pad", "eos", "bos", "unk")
_PLACEHOLDER = 0  # any token: a soft prompt takes its place
_ELSE = "use rsp_slot=after-prompt or after-bos"
_IN_CHAT = ("before-assistant", "before-text")  # slots that only a chat's prompt has
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
            token = tokenizer.get_vocab().get(text)
            if token is not None:
                return int(token)
        return None
    if name not in NAMED_TOKENS:
        return None
    token = getattr(tokenizer, f"{name}_token_id")
    return None if token is None else int(token)


def generation_prompt(
    tokenizer: Any, template_args: Mapping[str, Any], date: datetime.date | None = None
) -> str:
    """What the chat template writes where the model's answer begins.

    Args:
        tokenizer: whose template it is.
        template_args: of the template.
        date: which it sees; see `dates.stopped`.

    Raises:
        ValueError: without a chat template, or with one that writes nothing there.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"rsp_slot='before-assistant': this tokenizer has no chat template; {_ELSE}"
        )
    chat = [{"role": "user", "content": "x"}]
    arguments = stopped(tokenizer, template_args, date)
    without, whole = (
        tokenizer.apply_chat_template(
            chat, tokenize=False, **{**arguments, "add_generation_prompt": wanted}
        )
        for wanted in (False, True)
    )
    start = whole[len(without) :].rstrip() if whole.startswith(without) else ""
    if not start:
        raise ValueError(
            "rsp_slot='before-assistant': this model's chat template marks no start of the "
            f"assistant's turn; {_ELSE}"
        )
    return str(start)


def user_header(
    tokenizer: Any, template_args: Mapping[str, Any], date: datetime.date | None = None
) -> str:
    """What the chat template writes before a user's text, whatever stands before that.

    Arguments as of `generation_prompt`: the common end of what it writes before the first and
    before the second text of a user.

    Raises:
        ValueError: without a chat template, or with one that writes nothing there.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(f"rsp_slot='before-text': this tokenizer has no chat template; {_ELSE}")
    first, answer, second = "\ue000", "\ue001", "\ue002"  # no template writes these
    turns = [("user", first), ("assistant", answer), ("user", second)]
    chat = [{"role": role, "content": text} for role, text in turns]
    arguments = stopped(tokenizer, template_args, date)
    text = str(tokenizer.apply_chat_template(chat, tokenize=False, **arguments))
    before = text.partition(first)[0][::-1]
    later = text.rpartition(answer)[2].partition(second)[0][::-1]
    header = before[: _common(before, later)][::-1]
    if not header or not all(mark in text for mark in (first, answer, second)):
        raise ValueError(
            "rsp_slot='before-text': this model's chat template marks no beginning of the user's "
            f"text; {_ELSE}"
        )
    return header


class Prompts:
    """Makes jobs of problems: adds to their prompts what the perturbation says.

    In order: the BOS token, a random prefix, the problem's prompt, the random soft prompt (unless
    its slot is another one), the dummies (of the token `dummy`).
    """

    def __init__(
        self,
        tokenizer: Any,
        perturbation: Perturbation,
        encode: Callable[[str], list[int]],
        template_args: Mapping[str, Any] | None = None,
        template_date: datetime.date | None = None,
    ) -> None:
        """Find the tokens to add.

        Args:
            tokenizer: of the model.
            perturbation: what to add.
            encode: makes token ids of a prompt's text, BOS included where the model wants it.
            template_args: of the chat template.
            template_date: which it sees; see `dates.stopped`.

        Raises:
            ValueError: for a dummy token that the tokenizer doesn't have; for a soft prompt before
                the assistant's turn or the user's text where the model has no chat template.
        """
        self.tokenizer, self.perturbation, self.encode = tokenizer, perturbation, encode
        self.dummy: int | None = None
        self._dummies: list[int] = []
        if perturbation.where.dummies:
            self.dummy = dummy_token_id(tokenizer, perturbation.dummy_token)
            self._dummies = [self.dummy] * perturbation.where.dummies
        self._answer = ""  # start of the assistant's turn, where a soft prompt goes before it
        self._header = ""  # what stands before the user's text, where a soft prompt goes behind it
        if perturbation.rsp and perturbation.rsp_slot == "before-text":
            self._header = user_header(tokenizer, template_args or {}, template_date)
        if perturbation.rsp and perturbation.rsp_slot in ("auto", "before-assistant"):
            try:
                self._answer = generation_prompt(tokenizer, template_args or {}, template_date)
            except ValueError:
                if perturbation.rsp_slot != "auto":
                    raise

    @property
    def vectors(self) -> int:
        """How many vectors are added to every prompt, of a soft prompt and of dummies."""
        return self.perturbation.rsp + len(self._dummies)

    @property
    def most(self) -> int:
        """The same with a random prefix: its units, a line break, and one token to spare.

        Tokenizers of word pieces put a blank before the first. A character is one token, a word as
        many as the longest takes.
        """
        length = self.perturbation.prefix_length
        return self.vectors + (length * self._unit + 2 if length else 0)

    @functools.cached_property
    def _unit(self) -> int:
        """Most tokens of a character or word of a prefix."""
        if self.perturbation.prefix_kind != "lorem":
            return 1
        encode = functools.partial(self.tokenizer.encode, add_special_tokens=False)
        return max(len(encode(form)) for word in perturb.LOREM for form in (word, f" {word}"))

    def jobs(
        self,
        text: str | None,
        ids: Sequence[int],
        problem: str,
        samples: Sequence[int],
        limit: int | None = None,
    ) -> list[Job]:
        """The samples of a problem: one job, or one for each sample where their ids differ.

        Args:
            text: the problem's prompt; None where there are only ids.
            ids: its token ids, with nothing added.
            problem: its name in the random streams.
            samples: the sample indices wanted.
            limit: most vectors of a prompt; what is too much goes from the problem's beginning. The
                clean prompt is what then remains of it, but for what a random prefix takes, so that
                all samples of a problem have one. A job of which nothing remains is `too_long`.

        Raises:
            ValueError: for a soft prompt before the assistant's turn or the user's text in a prompt
                without one.
        """
        if not self.perturbation.prefix_length:
            return [self._job(text, list(ids), 0, ids, problem, samples, limit)]
        jobs = []
        for sample in samples:
            prefix = perturb.random_prefix(self.perturbation, problem, sample)
            prefixed = self._prefixed(text, list(ids), prefix)
            jobs.append(self._job(*prefixed, ids, problem, (sample,), limit))
        return jobs

    def _prefixed(
        self, text: str | None, ids: list[int], prefix: str
    ) -> tuple[str | None, list[int], int]:
        """Text and ids after a prefix, and how many ids BOS and prefix take."""
        if not text:
            tokens = self.tokenizer.encode(prefix, add_special_tokens=False)
            bos = self._bos(ids)
            return text, [*ids[:bos], *tokens, *ids[bos:]], bos + len(tokens)
        bos_text = self.tokenizer.bos_token or ""
        start = len(bos_text) if text.startswith(bos_text) else 0  # a chat template may write it
        text = text[:start] + prefix + text[start:]
        ids = self.encode(text)
        return text, ids, _common(ids, self.encode(text[: start + len(prefix)]))

    def _job(
        self,
        text: str | None,
        ids: list[int],
        kept: int,
        clean: Sequence[int],
        problem: str,
        samples: Sequence[int],
        limit: int | None,
    ) -> Job:
        """A job of the ids with soft prompt and dummies; a cut for `limit` spares the first."""
        soft = [_PLACEHOLDER] * self.perturbation.rsp
        room = len(ids) if limit is None else limit - self.vectors
        own = len(ids) - kept
        too_long = room < kept + min(own, 1)
        if limit is not None and not too_long:
            ids = ids[:kept] + ids[kept + max(0, len(ids) - room) :]
            clean = clean[-room:]
        at = self._slot(text, ids) if soft else 0
        whole = [*ids[:at], *soft, *ids[at:], *self._dummies]
        start = at if soft else None
        return Job(tuple(whole), problem, tuple(samples), tuple(clean), start, too_long)

    def _slot(self, text: str | None, ids: list[int]) -> int:
        """Where in the ids the soft prompt starts."""
        if self.perturbation.rsp_slot == "after-bos":
            return self._bos(ids)
        mark = self._answer or self._header
        cut = (text or "").rfind(mark) if mark else -1
        if text is None or cut < 0:
            slot = self.perturbation.rsp_slot
            if slot not in _IN_CHAT:
                return len(ids)
            what = "beginning of a user's text" if self._header else "start of the assistant's turn"
            raise ValueError(
                f"rsp_slot={slot!r}: the prompt holds no {what} ({mark!r}); add "
                f"--apply_chat_template, or {_ELSE}"
            )
        cut += len(self._header)
        whole = self.encode(text)
        after = len(whole) - _common(whole, self.encode(text[:cut]))
        return max(0, len(ids) - after)

    def _bos(self, ids: Sequence[int]) -> int:
        """1 if the ids start with BOS, else 0."""
        return int(len(ids) > 0 and ids[0] == self.tokenizer.bos_token_id)


def _common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many elements two sequences have in common from their beginning on."""
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
