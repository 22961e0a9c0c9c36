"""Generated ids, their text and stop strings, on tokenizers of every kind."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance
from tokenizers import decoders, normalizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from lm_eval_embednoise.commands.regenerate import regenerate
from lm_eval_embednoise.models.hf_embednoise import HFEmbedNoise
from lm_eval_embednoise.models.loaded import check_tokenizer, garbled
from lm_eval_embednoise.models.spelling import Spelling
from lm_eval_embednoise.models.text import StopStrings, after_thinking, emittable_ids
from lm_eval_embednoise.store.store import Store
from tests.support.tokenizers_made import CORPUS, KINDS, SHOWN, SPECIAL, byte_level

TEXT = "    return [x for x in xs]\n\n\ndef other(é):\n    pass\nprint('ünï')\n"
STOPS = ("\ndef ", "\nprint(", "é)", "]\n")
PROMPT = "def f(xs):\n"
PROMPTS = (PROMPT, "The answer:", "a", "<|im_end|>\n    for", "hello <|im_end|>", "日本 λ → 😀")
SENTENCE_PIECE = ("llama", "metaspace-first", "metaspace-always", "metaspace-own")


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def tokenizer(kind: str) -> PreTrainedTokenizerBase:
    return KINDS[kind]()


@pytest.fixture(scope="module")
def spelling(tokenizer) -> Spelling:
    return Spelling(tokenizer, len(tokenizer) + 3)


def stops(spelling: Spelling, until: Sequence[str]) -> StopStrings:
    return StopStrings(spelling.tokenizer, until, 0, spelling)


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def continued(tokenizer: PreTrainedTokenizerBase, prompt: str, text: str) -> list[int]:
    """The ids by which a text continues a prompt."""
    whole, start = encode(tokenizer, prompt + text), encode(tokenizer, prompt)
    return whole[len(start) :] if whole[: len(start)] == start else encode(tokenizer, text)


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    marked = {token for token, what in tokenizer.added_tokens_decoder.items() if what.special}
    return marked | set(tokenizer.all_special_ids)


class Slow:
    """The obvious way: prompt and ids decoded whole, less the prompt's own text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: list[int]) -> None:
        self.tokenizer, self.prompt = tokenizer, prompt
        self.special = special_ids(tokenizer)
        self.before = self.decode(prompt)

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def emitted(self, ids: list[int]) -> str:
        whole = self.decode(self.prompt + ids)
        same = (n for n in range(len(self.before), -1, -1) if whole.startswith(self.before[:n]))
        return whole[next(same) :]

    def shown(self, ids: list[int], end: int | None) -> str:
        """What was emitted before `end`, without the special tokens' texts."""
        whole, keep = self.emitted(ids), []
        keep = [True] * len(whole)
        for at, token in enumerate(ids):
            if token in self.special:
                first, last = len(self.emitted(ids[:at])), len(self.emitted(ids[: at + 1]))
                keep[first:last] = [False] * (last - first)
        return "".join(char for char, kept in zip(whole[:end], keep, strict=False) if kept)

    def stop(self, ids: list[int], until: Sequence[str]) -> tuple[int, str] | None:
        """How many ids stand wholly before the earliest stop string, and the text before it."""
        whole = self.emitted(ids)
        found = [whole.find(text) for text in until if text in whole]
        if not found:
            return None
        end = min(found)
        fitting = [n for n in range(len(ids) + 1) if len(self.emitted(ids[:n])) <= end]
        return max(fitting), self.shown(ids, end)


def drawn_ids(draw: random.Random, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Pieces of text, special tokens, characters cut in the middle, and any token."""
    names = tokenizer.get_vocab()
    ids: list[int] = []
    odd = [token for name, token in names.items() if name.startswith("<0x") or len(name) == 1]
    while len(ids) < draw.randint(5, 30):
        what = draw.randrange(5)
        if what < 2:
            text = draw.choice([*CORPUS, TEXT])
            start = draw.randrange(len(text))
            more = encode(tokenizer, text[start : start + draw.randint(1, 12)])
            ids += more[draw.randrange(2) : len(more) - draw.randrange(2)]
        elif what == 2:
            ids.append(names[draw.choice([*SPECIAL, SHOWN])])
        elif what == 3:
            ids += draw.choices(odd, k=draw.randint(1, 4))
        else:
            ids.append(draw.choice(list(names.values())))
    return ids


def drawn_until(draw: random.Random, prompt: str, text: str) -> list[str]:
    """Stop strings that stand in the text, reach into the prompt, overlap, or don't stand there."""
    whole = prompt[-4:] + text
    found = [draw.choice([*SPECIAL, "\n", "im_end", "é", "�", "\n\n", "zq"])]
    for _ in range(draw.randint(0, 2)):
        start = draw.randrange(len(whole))
        found.append(whole[start : start + draw.choice((1, 2, 3, 6, 12))])
    first = found[-1]
    return [*found, first[1:] + "x", first[:-1]] if draw.random() < 0.2 else found


def test_every_step_is_what_decoding_it_whole_says(tokenizer, spelling, kind: str) -> None:
    """Random ids, token by token up to the stop: `kept`, the text, and who may skip the check."""
    draw = random.Random(0)
    stopped = skipped = 0
    for _ in range(150):
        prompt = encode(tokenizer, draw.choice(PROMPTS))
        ids = drawn_ids(draw, tokenizer)
        if draw.random() < 0.2:  # the prompt ends within a character or a run of bytes
            cut = draw.randrange(len(ids))
            prompt, ids = prompt + ids[:cut], ids[cut:]
        if kind == "word-ends":  # it decodes a word's end as a blank before a special token only
            prompt, ids = ([i for i in some if i not in spelling.special] for some in (prompt, ids))
        slow = Slow(tokenizer, prompt)
        until = [text for text in drawn_until(draw, slow.before, slow.emitted(ids)) if text]
        strings = stops(spelling, until)
        for count in range(1, len(ids) + 1):
            now = ids[:count]
            told = slow.stop(now, until)
            kept = strings.kept(now, prompt)
            assert kept == (None if told is None else told[0]), (until, prompt, now)
            text = slow.shown(now, None) if told is None else told[1]
            assert strings.text(now, prompt) == text, (until, prompt, now)
            skipped += not strings.may_end[now[-1]]
            if told is not None:
                assert strings.may_end[now[-1]]
                stopped += 1
                break
    assert stopped > 50 and (skipped > 200) == (kind != "word-ends")


def test_the_beginning_of_a_text(tokenizer, spelling: Spelling) -> None:
    """Behind a prompt of special tokens alone the text is the tokenizer's own of the ids."""
    draw = random.Random(1)
    start = [tokenizer.convert_tokens_to_ids(SPECIAL[0])]
    for _ in range(100):
        special = special_ids(tokenizer)
        ids = [token for token in drawn_ids(draw, tokenizer) if token not in special]
        text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if not text:
            continue
        assert stops(spelling, ()).text(ids, start) == text
        at = draw.randrange(len(text))
        until = text[at : at + draw.randint(1, 5)]
        assert stops(spelling, [until]).text(ids, start) == text[: text.index(until)]


def test_special_tokens_are_left_out_as_the_tokenizer_does(tokenizer, spelling: Spelling) -> None:
    draw = random.Random(2)
    prompt, special = encode(tokenizer, PROMPT), sorted(spelling.special)
    for _ in range(50):
        ids = []
        for word in draw.choices(["hello", " world", "x", "\n", " café", SHOWN], k=8):
            ids += [*encode(tokenizer, word), *draw.choices(special, k=draw.randrange(2))]
        whole = tokenizer.decode(prompt + ids, skip_special_tokens=True)
        before = tokenizer.decode(prompt, skip_special_tokens=True)
        assert before + stops(spelling, ()).text(ids, prompt) == whole


def test_text_continues_the_prompt(tokenizer, spelling: Spelling, kind: str) -> None:
    """Four blanks stay four, which a SentencePiece decoder alone makes three."""
    if kind == "word-ends":
        pytest.skip("this tokenizer keeps no blanks")
    ids = continued(tokenizer, PROMPT, TEXT)
    strings = stops(spelling, STOPS)
    assert strings.text(ids, encode(tokenizer, PROMPT)) == TEXT[: TEXT.index("]\n")]
    assert stops(spelling, ["\nclass "]).text(ids, encode(tokenizer, PROMPT)) == TEXT
    alone = tokenizer.decode(ids, skip_special_tokens=True)
    assert (alone == TEXT) == (kind not in SENTENCE_PIECE)


@pytest.mark.parametrize("stop", STOPS)
def test_found_at_the_first_token_that_completes_it(stop: str) -> None:
    """Nothing is found before the stop string is whole; its last token is a candidate."""
    tokenizer = KINDS["embedded"]()
    strings = StopStrings(tokenizer, [stop], len(tokenizer))
    ids = tokenizer.encode(TEXT)
    whole = next(n for n in range(len(ids) + 1) if stop in tokenizer.decode(ids[:n]))
    assert all(strings.kept(ids[:n]) is None for n in range(whole))
    kept = strings.kept(ids[:whole])
    assert strings.may_end[ids[whole - 1]]
    assert strings.text(ids[:whole]) == TEXT[: TEXT.index(stop)]
    lengths = [len(tokenizer.decode(ids[:n])) for n in (kept, kept + 1)]
    assert lengths[0] <= TEXT.index(stop) < lengths[1]


@pytest.mark.parametrize(
    "until", [*SPECIAL, "im_end|>", "x<|im_", "x<|im_end|><file", "<file_sep>y"]
)
def test_a_special_token_is_found_and_not_shown(tokenizer, spelling, kind, until: str) -> None:
    """Also as part of a stop string; the special tokens before it are no part of the text."""
    if kind == "word-ends":
        pytest.skip("blanks between words and special tokens are nobody's")
    names = tokenizer.get_vocab()
    think, end, sep = (names[name] for name in (SPECIAL[2], SPECIAL[0], SPECIAL[1]))
    x, y = encode(tokenizer, "x")[-1], encode(tokenizer, "y")[-1]
    ids, prompt = [x, think, x, end, sep, y, y], encode(tokenizer, PROMPT)
    slow = Slow(tokenizer, prompt)
    strings = stops(spelling, [until.replace("x", slow.emitted([x])[-1])])
    counts = [strings.kept(ids[:n], prompt) for n in range(1, len(ids) + 1)]
    last = {"</think>": 2, "im_end|>": 4, "x<|im_": 4, "<|im_end|>": 4}.get(until, 5)
    last = 6 if until.endswith("y") else last
    first = next((n for n, kept in enumerate(counts, 1) if kept is not None), None)
    told = slow.stop(ids, strings.until)
    if told is None:  # a blank stands between the two
        assert first is None
        return
    assert first == last and counts[first - 1] == slow.stop(ids[:first], strings.until)[0]
    text = strings.text(ids[:first], prompt)
    assert text == slow.stop(ids[:first], strings.until)[1]
    assert not any(name in text for name in SPECIAL) and "<" not in text
    assert strings.spelling.emitted(ids, prompt) == slow.emitted(ids)


def test_a_newline_behind_bytes_is_found_in_a_window() -> None:
    """The last tokens alone are bytes that make no characters; with the run they belong to, do."""
    tokenizer = KINDS["llama"]()
    run = encode(tokenizer, "日本" * 12 + "\n")[1:]
    assert "\n" not in tokenizer.decode(run[-20:]) and "\n" in tokenizer.decode(run)
    ids, prompt = [*encode(tokenizer, "hello world " * 10), *run], encode(tokenizer, PROMPT)
    strings = StopStrings(tokenizer, ["\n"], len(tokenizer))
    assert strings.kept(ids, prompt) == len(ids) - 1
    assert strings.kept(ids[:-1], prompt) is None


def test_a_stop_that_begins_in_the_prompt_does_not_count(tokenizer, spelling: Spelling) -> None:
    prompt, ids = encode(tokenizer, "hello world"), encode(tokenizer, "hello world")
    text = stops(spelling, ()).text(ids, prompt)
    across = "world" + text[:3]
    assert across in Slow(tokenizer, []).emitted(prompt + ids)
    strings = stops(spelling, [across])
    assert all(strings.kept(ids[:n], prompt) is None for n in range(1, len(ids) + 1))
    assert strings.text(ids, prompt) == text


def test_behind_thinking(tokenizer, spelling: Spelling, kind: str) -> None:
    """The mark as a token, or as text that is a special token's; text behind it in context."""
    if kind == "word-ends":
        pytest.skip("this tokenizer keeps no blanks")
    mark = tokenizer.convert_tokens_to_ids("</think>")
    prompt = encode(tokenizer, PROMPT)
    ids = [
        *continued(tokenizer, PROMPT, "hello\n"),
        mark,
        *continued(tokenizer, "a", "\n    x y\n"),
    ]
    for end in (mark, "</think>"):
        assert after_thinking(stops(spelling, ()), ids, end, prompt) == "x y\n"
        assert after_thinking(stops(spelling, [" y"]), ids, end, prompt) == "x"
        assert after_thinking(stops(spelling, ["lo\n"]), ids, end, prompt) == "hel"
        assert after_thinking(stops(spelling, ["</think>"]), ids, end, prompt) == ""
        assert after_thinking(stops(spelling, [">\n   "]), ids, end, prompt) == ""
    assert after_thinking(stops(spelling, ()), ids, None, prompt) == "hello\n\n    x y\n"
    assert after_thinking(stops(spelling, ()), ids, "llo", prompt) == "\n    x y\n".lstrip()


def test_most_tokens_are_known(tokenizer, spelling: Spelling, kind: str) -> None:
    """Only bytes of characters, and tokenizers whose tokens depend on each other, need decoding."""
    unknown = sum(piece is None for piece in spelling.pieces)
    assert (
        unknown == len(tokenizer) - len(spelling.special) if kind == "word-ends" else unknown < 145
    )
    assert len(spelling.special) >= len(SPECIAL)
    assert tokenizer.decode([spelling.anchor]).strip()
    assert spelling.pieces[tokenizer.convert_tokens_to_ids(SHOWN)] != ""


def test_clean_up_of_blanks_is_not_asked_for() -> None:
    """It would take the blank from `x , y`; transformers ignores it for some tokenizers only."""
    tokenizer = byte_level()
    tokenizer.clean_up_tokenization_spaces = True
    tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    ids = encode(tokenizer, "x , y")
    assert tokenizer.decode(ids) == "x, y"
    assert StopStrings(tokenizer, [], len(tokenizer)).text(ids) == "x , y"


def test_emittable_ids_fit_the_table() -> None:
    ids = emittable_ids(KINDS["embedded"](), 500)
    assert ids.max() < 500 and len(set(ids.tolist())) == len(ids)


def test_a_tokenizer_that_garbles_is_told_from_one_that_does_not(tokenizer, kind: str) -> None:
    lost = ("    return x\n", "x : return x")
    assert garbled(tokenizer) == (lost if kind == "word-ends" else None)


class Config:
    vocab_size = 1000

    def get_text_config(self) -> Config:
        return self


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("blanks", "T garbles text: '    return x\\n' comes back as 'return x\\n' after"),
        ("case", "T garbles text: 'print("),
        ("raises", "T garbles text: '    return x\\n' comes back as 'OSError: no file' after"),
        ("nothing", None),
    ],
)
def test_garbling_is_said_once_and_in_one_line(caplog, monkeypatch, damage, said) -> None:
    tokenizer = byte_level()
    inner = tokenizer.backend_tokenizer
    if damage == "blanks":
        inner.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("    ", "")])
    if damage == "case":
        inner.normalizer = normalizers.Lowercase()
    if damage == "raises":

        def broken(*args: object, **kwargs: object) -> str:
            raise OSError("no file")

        monkeypatch.setattr(type(tokenizer), "decode", broken)
    with caplog.at_level(logging.WARNING, logger="lm_eval"):
        check_tokenizer(tokenizer, Config(), "T")
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (said is not None)
    assert all(said in message and "\n" not in message for message in messages)


@pytest.mark.parametrize("name", ["llama", "metaspace-own", "byte-level"])
def test_ids_text_count_and_likelihood_agree(tmp_path: Path, name: str) -> None:
    """From a model's folder through the sampler to the store, and made again from it."""
    tokenizer = KINDS[name]()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=128, initializer_range=0.4,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    until = ["<file_sep>", "<|im_end|>", "e<", "al"]
    settings = {"until": until, "do_sample": True, "temperature": 1.5, "max_gen_toks": 30}
    store = tmp_path / "store"
    lm = HFEmbedNoise(str(tmp_path), device="cpu", store=store, prefix="random:3")
    request = Instance("generate_until", {}, (PROMPT, settings), 0, metadata=("t", 0, 60))
    texts = lm.generate_until([request] * 60, disable_tqdm=True)
    prompt = lm.tok_encode(PROMPT)
    slow = Slow(lm.tokenizer, prompt)
    (made_with,) = Store(store).settings()
    rows = sorted(Store(store).samples(made_with).values(), key=lambda row: row.sample)
    ends = set()
    for text, row in zip(texts, rows, strict=True):
        ids = list(row.ids)
        told = slow.stop(ids, until)
        assert all(slow.stop(ids[:n], until) is None for n in range(len(ids)))
        assert (row.finish_reason == "stop_string") == (told is not None)
        kept, shown = (len(ids), slow.shown(ids, None)) if told is None else told
        assert (row.kept, row.text, str(text), text.tokens) == (kept, shown, shown, kept)
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        chosen = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:kept, 0]
        assert row.nll == pytest.approx(-float(chosen.sum()), rel=1e-4, abs=1e-4)
        ends.add(lm.tokenizer.decode(ids[kept:]) if told else "")
    assert "" in ends and any("<" in end for end in ends)
    made = regenerate(Store(store), rows[7])
    assert made.equals(rows[7]) and made.text == rows[7].text
