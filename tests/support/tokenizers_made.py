"""Small tokenizers of every kind, built on the spot: bytes as in GPT-2, word pieces as in Llama."""

from __future__ import annotations

import json
from collections.abc import Callable

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lm_eval_embednoise.minicoder import MODEL_DIR

CORPUS = [
    "def other(x):\n    return [x for x in xs]\n\n\nclass Other:\n    pass\nprint('done')\n",
    "    if not x:\n        return None\n    for i in range(10):\n        total += i * 2\n",
    "Question: how many? Answer: the answer is 42.\n\nThe hello world of naïve café λ → 日本 😀\n",
]
SPECIAL = ("<|im_end|>", "<file_sep>", "</think>")
SHOWN = "<tool>"  # added, and part of the text
_STRIP = [
    decoders.Replace("▁", " "),
    decoders.ByteFallback(),
    decoders.Fuse(),
    decoders.Strip(" ", 1, 0),
]
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def embedded() -> PreTrainedTokenizerBase:
    """The embedded model's."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    _add(tokenizer)
    return tokenizer


def byte_level() -> PreTrainedTokenizerBase:
    """Byte-level BPE, as in GPT-2 and Qwen."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=380, initial_alphabet=alphabet, show_progress=False)
    )
    return _wrapped(made)


def llama() -> PreTrainedTokenizerBase:
    """Word pieces with byte fallback; the decoder strips a text's first blank, as in Llama 2."""
    made = _word_pieces()
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(_STRIP)
    return _wrapped(made)


def metaspace(scheme: str, strip: bool) -> PreTrainedTokenizerBase:
    """The same pieces split by Metaspace, whose own decoder takes all blanks of the first token."""
    made = _word_pieces()
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=True)
    own = [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme)]
    made.decoder = decoders.Sequence(_STRIP if strip else own)
    return _wrapped(made)


def word_ends() -> PreTrainedTokenizerBase:
    """BPE that marks where words end: what a token adds depends on the one before."""
    made = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.BPEDecoder("</w>")
    made.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=200,
            special_tokens=["<unk>", "<s>", "</s>"],
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    return _wrapped(made)


KINDS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "embedded": embedded,
    "byte-level": byte_level,
    "llama": llama,
    "metaspace-first": lambda: metaspace("first", strip=True),
    "metaspace-always": lambda: metaspace("always", strip=True),
    "metaspace-own": lambda: metaspace("first", strip=False),
    "word-ends": word_ends,
}


def _word_pieces() -> Tokenizer:
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    corpus = [line.split("→")[0].replace("\n", " ") for line in CORPUS]
    made.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=160, show_progress=False))
    rules = json.loads(made.to_str())["model"]
    blanks = [("▁", "▁"), ("▁▁", "▁▁")]
    names = ["<unk>", "<s>", "</s>", *_BYTES, *rules["vocab"], "▁▁", "▁▁▁▁"]
    merges = blanks + [tuple(pair) for pair in rules["merges"]]
    vocabulary = {name: at for at, name in enumerate(dict.fromkeys(names))}
    return Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))


def _wrapped(made: Tokenizer) -> PreTrainedTokenizerBase:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    _add(tokenizer)
    return tokenizer


def _add(tokenizer: PreTrainedTokenizerBase) -> None:
    special = [AddedToken(name, special=True, normalized=False) for name in SPECIAL]
    tokenizer.add_tokens([*special, AddedToken(SHOWN, special=False, normalized=False)])
