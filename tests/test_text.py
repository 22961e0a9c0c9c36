"""Stop strings on the embedded model's real tokenizer."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from lm_eval_embednoise.minicoder import MODEL_DIR
from lm_eval_embednoise.models.text import StopStrings, emittable_ids

TEXT = "    return [x for x in xs]\n\n\ndef other(é):\n    pass\nprint('ünï')\n"
STOPS = ("\ndef ", "\nprint(", "é)", "]\n")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL_DIR)


@pytest.mark.parametrize("stop", STOPS)
def test_found_at_the_first_token_that_completes_it(tokenizer, stop: str) -> None:
    """Nothing is found before the stop string is whole; its last token is a candidate."""
    strings = StopStrings(tokenizer, [stop], len(tokenizer))
    ids = tokenizer.encode(TEXT)
    whole = next(n for n in range(len(ids) + 1) if stop in strings.decode(ids[:n]))
    assert all(strings.kept(ids[:n]) is None for n in range(whole))
    kept = strings.kept(ids[:whole])
    assert strings.may_end[ids[whole - 1]]
    assert strings.text(ids[:whole]) == TEXT[: TEXT.index(stop)]
    assert (
        len(strings.decode(ids[:kept])) <= TEXT.index(stop) < len(strings.decode(ids[: kept + 1]))
    )


def test_the_earliest_of_several_wins(tokenizer) -> None:
    strings = StopStrings(tokenizer, STOPS, len(tokenizer))
    assert strings.text(tokenizer.encode(TEXT)) == TEXT[: TEXT.index("]\n")]


@pytest.mark.parametrize("clean_up", [False, True])
@given(
    text=st.text(st.sampled_from(" \n:defpté(]"), max_size=30),
    until=st.text(st.sampled_from(" \n:def(]é"), min_size=1, max_size=5),
)
def test_tokens_that_skip_the_check_complete_nothing(tokenizer, clean_up, text, until) -> None:
    """Token by token, the stop string is found exactly where it first stands in the text."""
    tokenizer = copy.copy(tokenizer)
    tokenizer.clean_up_tokenization_spaces = clean_up
    strings = StopStrings(tokenizer, [until], len(tokenizer))
    ids: list[int] = []
    for token in tokenizer.encode(text):
        ids.append(token)
        stands = until in tokenizer.decode(ids)
        assert (strings.kept(ids) is not None) == stands
        if stands:
            assert strings.may_end[token]
            break


def test_text_without_a_stop_is_whole(tokenizer) -> None:
    strings = StopStrings(tokenizer, ["\nclass "], len(tokenizer))
    ids = tokenizer.encode(TEXT)
    assert strings.kept(ids) is None
    assert strings.text(ids) == TEXT


def test_emittable_ids_fit_the_table(tokenizer) -> None:
    ids = emittable_ids(tokenizer, 500)
    assert ids.max() < 500 and len(set(ids.tolist())) == len(ids)
