"""Prompts of samples: dummies, and the tokens that can be named."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoTokenizer

from lm_eval_embednoise.config import Perturbation
from lm_eval_embednoise.minicoder import MODEL_DIR
from lm_eval_embednoise.models.prompts import Prompts, dummy_token_id


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL_DIR)


def test_dummies_follow_the_prompt_and_the_clean_prompt_has_none(tokenizer: Any) -> None:
    prompts = Prompts(tokenizer, Perturbation(positions="dummy:3", dummy_token="eos"))
    (job,) = prompts.jobs([7, 8], "problem", range(4))
    assert job.prompt_ids == (7, 8, *[tokenizer.eos_token_id] * 3)
    assert (job.clean, job.problem, job.samples) == ((7, 8), "problem", (0, 1, 2, 3))
    assert Prompts(tokenizer, Perturbation()).jobs([7], "p", [0])[0].prompt_ids == (7,)


def test_dummy_tokens_by_name_spelling_and_text(tokenizer: Any) -> None:
    newline = tokenizer.encode("\n", add_special_tokens=False)
    assert [dummy_token_id(tokenizer)] == newline
    assert [dummy_token_id(tokenizer, name) for name in ("newline", "\n")] == newline * 2
    assert dummy_token_id(tokenizer, "eos") == tokenizer.eos_token_id
    assert dummy_token_id(tokenizer, tokenizer.eos_token) == tokenizer.eos_token_id
    for token in list(tokenizer.get_vocab())[:50]:
        assert dummy_token_id(tokenizer, token) == tokenizer.get_vocab()[token]


@pytest.mark.parametrize("name", ["two words and more", "bos", ""])
def test_a_name_that_is_not_one_token_is_refused(tokenizer: Any, name: str) -> None:
    assert tokenizer.bos_token is None
    with pytest.raises(ValueError) as error:
        dummy_token_id(tokenizer, name)
    assert f"dummy_token={name!r}" in str(error.value) and "newline" in str(error.value)
