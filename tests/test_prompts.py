"""Prompts of samples: what is added, where it stands, and what the refusals say."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any

import pytest
from scipy import stats
from transformers import AutoTokenizer

from lm_eval_embednoise.minicoder import MODEL_DIR
from lm_eval_embednoise.models.prompts import Prompts, dummy_token_id
from lm_eval_embednoise.noise import perturb
from lm_eval_embednoise.noise.perturbation import Perturbation

if TYPE_CHECKING:
    from lm_eval_embednoise.engine.jobs import Job

TEXT = "def double(xs):\n    return [2 * x for x in xs]\n"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL_DIR)


@pytest.fixture(scope="module")
def chatty() -> Any:
    """A tokenizer with a chat template, and a BOS token that the template writes."""
    found = AutoTokenizer.from_pretrained(MODEL_DIR)
    found.add_special_tokens({"bos_token": "<s>"})
    found.chat_template = TEMPLATE
    return found


def job(tokenizer: Any, text: str | None, limit: int | None = None, **options: Any) -> Job:
    """The job of sample 0 of a text."""
    prompts = Prompts(tokenizer, Perturbation(**options), tokenizer.encode)
    ids = tokenizer.encode(TEXT if text is None else text)
    ids = ids if limit is None else ids[-limit:]
    return prompts.jobs(text, ids, "problem", [0], limit)[0]


def test_nothing_added_is_the_prompt(tokenizer: Any) -> None:
    got = job(tokenizer, TEXT)
    assert got.prompt_ids == got.clean == tuple(tokenizer.encode(TEXT))
    assert got.soft_start is None


def test_dummies_follow_the_prompt_and_the_clean_prompt_has_none(tokenizer: Any) -> None:
    got = job(tokenizer, TEXT, positions="dummy:3", dummy_token="eos")
    ids = tuple(tokenizer.encode(TEXT))
    assert got.prompt_ids == (*ids, *[tokenizer.eos_token_id] * 3)
    assert got.clean == ids


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
    with pytest.raises(ValueError, match=re.escape(f"dummy_token={name!r}")) as error:
        dummy_token_id(tokenizer, name)
    assert "newline" in str(error.value)


def test_soft_prompts_take_their_slot(chatty: Any) -> None:
    """Without the placeholders the ids are the clean prompt's, in every slot."""
    chat = [{"role": "user", "content": TEXT}, {"role": "assistant", "content": "yes"}] * 2
    text = chatty.apply_chat_template(chat[:3], tokenize=False, add_generation_prompt=True)
    ids = chatty.encode(text)
    assert ids[0] == chatty.bos_token_id
    answer = len(chatty.encode("<assistant>\n"))
    slots = {"after-prompt": len(ids), "before-assistant": len(ids) - answer, "after-bos": 1}
    slots["auto"] = slots["before-assistant"]
    for slot, start in slots.items():
        for dummies in ({}, {"positions": "dummy:2"}):
            got = job(chatty, text, rsp=4, rsp_slot=slot, **dummies)
            assert (got.soft_start, got.clean) == (start, tuple(ids))
            assert len(got.prompt_ids) == len(ids) + 4 + (2 if dummies else 0)
            rest = got.prompt_ids[:start] + got.prompt_ids[start + 4 :]
            assert rest[: len(ids)] == tuple(ids)
    begun = text + "Sure:\n"  # the answer's first words, as a task can give them
    behind = len(chatty.encode(begun)) - slots["before-assistant"]
    got = job(chatty, begun, rsp=4, rsp_slot="before-assistant")
    assert got.soft_start == len(got.clean) - behind
    got = job(chatty, text, limit=30, rsp=4, rsp_slot="before-assistant")
    assert len(got.prompt_ids) == 30
    assert got.soft_start == 26 - answer


def test_after_bos_without_bos_is_the_beginning(tokenizer: Any, chatty: Any) -> None:
    assert job(tokenizer, TEXT, rsp=2, rsp_slot="after-bos").soft_start == 0
    assert job(chatty, TEXT, rsp=2, rsp_slot="after-bos").soft_start == 0
    assert job(chatty, "<s>" + TEXT, rsp=2, rsp_slot="after-bos").soft_start == 1


def test_auto_is_after_the_prompt_where_there_is_no_chat(tokenizer: Any, chatty: Any) -> None:
    assert job(tokenizer, TEXT, rsp=2).soft_start == len(tokenizer.encode(TEXT))
    assert job(chatty, TEXT, rsp=2).soft_start == len(chatty.encode(TEXT))
    assert job(chatty, None, rsp=2).soft_start == len(chatty.encode(TEXT))


def test_before_assistant_needs_a_chat_prompt(tokenizer: Any, chatty: Any) -> None:
    options = {"rsp": 2, "rsp_slot": "before-assistant"}
    with pytest.raises(ValueError, match=r"no chat template; use rsp_slot=after-prompt or after-"):
        job(tokenizer, TEXT, **options)
    for text in (TEXT, None):
        with pytest.raises(ValueError, match=r"--apply_chat_template, or use rsp_slot=after-pro"):
            job(chatty, text, **options)
    silent = AutoTokenizer.from_pretrained(MODEL_DIR)
    silent.chat_template = "{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"
    with pytest.raises(ValueError, match=r"marks no start of the assistant's turn; use rsp_slot="):
        job(silent, TEXT, **options)


def test_random_prefixes_differ_and_the_clean_prompt_has_none(tokenizer: Any) -> None:
    prompts = Prompts(tokenizer, Perturbation(prefix="random:10"), tokenizer.encode)
    ids = tokenizer.encode(TEXT)
    jobs = prompts.jobs(TEXT, ids, "problem", range(50))
    assert [j.samples for j in jobs] == [(sample,) for sample in range(50)]
    assert {j.problem for j in jobs} == {"problem"}
    assert {j.clean for j in jobs} == {tuple(ids)}
    texts = [tokenizer.decode(j.prompt_ids) for j in jobs]
    assert all(text[10:] == "\n" + TEXT for text in texts)
    prefixes = [text[:10] for text in texts]
    assert len(set(prefixes)) == 50
    letters = "".join(prefixes)
    assert set(letters) == set(perturb.PREFIX_ALPHABET)
    assert jobs[7] == prompts.jobs(TEXT, ids, "problem", [7])[0]
    longer = Perturbation(prefix="random:12", sigma=0.3, rsp=2)
    assert perturb.random_prefix(longer, "problem", 7)[:10] == prefixes[7]
    other = perturb.random_prefix(Perturbation(prefix="random:10", seed=1), "problem", 7)
    assert other[:10] not in prefixes


def test_lorem_prefixes_are_words_and_leave_the_room_they_may_take(tokenizer: Any) -> None:
    prompts = Prompts(tokenizer, Perturbation(prefix="lorem:12"), tokenizer.encode)
    ids = tokenizer.encode(TEXT)
    jobs = prompts.jobs(TEXT, ids, "problem", range(40))
    texts = [tokenizer.decode(j.prompt_ids) for j in jobs]
    words = [text.partition("\n")[0].split(" ") for text in texts]
    assert {len(drawn) for drawn in words} == {12}
    assert all(text.endswith("\n" + TEXT) for text in texts)
    assert set(itertools.chain(*words)) == set(perturb.LOREM)
    longest = max(len(j.prompt_ids) for j in jobs)
    assert len(ids) < longest <= len(ids) + prompts.most
    longer = perturb.random_prefix(Perturbation(prefix="lorem:20"), "problem", 3)
    assert longer.split()[:12] == words[3]


def test_before_text_stands_before_the_users_last_text(chatty: Any) -> None:
    chat = [{"role": "user", "content": TEXT}, {"role": "assistant", "content": "yes"}] * 2
    asked = chatty.apply_chat_template(chat[:3], tokenize=False, add_generation_prompt=True)
    head = asked[: asked.rindex(TEXT)]
    got = job(chatty, asked, rsp=3, rsp_slot="before-text")
    assert got.soft_start == len(chatty.encode(head))
    assert chatty.decode(got.prompt_ids[got.soft_start + 3 :]) == asked[len(head) :]
    with pytest.raises(ValueError, match=r"rsp_slot='before-text': the prompt holds no beginning"):
        job(chatty, TEXT, rsp=3, rsp_slot="before-text")
    silent = AutoTokenizer.from_pretrained(MODEL_DIR)
    with pytest.raises(ValueError, match=r"rsp_slot='before-text': this tokenizer has no chat"):
        job(silent, TEXT, rsp=3, rsp_slot="before-text")
    silent.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(ValueError, match=r"marks no beginning of the user's text"):
        job(silent, TEXT, rsp=3, rsp_slot="before-text")


def test_letters_are_uniform_and_independent() -> None:
    p = Perturbation(prefix="random:30")
    drawn = [perturb.random_prefix(p, "problem", sample)[:-1] for sample in range(200)]
    counts = [sum(text.count(letter) for text in drawn) for letter in perturb.PREFIX_ALPHABET]
    assert stats.chisquare(counts).pvalue > 1e-3
    places = [[ord(letter) for letter in text] for text in drawn]
    flat = [(a, b) for text in places for a, b in itertools.pairwise(text)]
    assert abs(stats.spearmanr(flat).statistic) < 4 / len(flat) ** 0.5


def test_prefix_stands_behind_bos_and_before_a_soft_prompt_at_the_end(chatty: Any) -> None:
    got = job(chatty, "<s>" + TEXT, prefix="random:5", rsp=3, positions="dummy:1")
    text = perturb.random_prefix(Perturbation(prefix="random:5"), "problem", 0)
    ids = chatty.encode("<s>" + text + TEXT)
    assert got.prompt_ids[: len(ids)] == tuple(ids)
    assert got.soft_start == len(ids)
    assert got.prompt_ids[len(ids) + 3 :] == (dummy_token_id(chatty),)
    first = job(chatty, "<s>" + TEXT, prefix="random:5", rsp=3, rsp_slot="after-bos")
    assert first.soft_start == 1
    assert first.prompt_ids[4:] == tuple(ids[1:])


def test_a_prefix_without_text_is_put_before_the_ids(chatty: Any) -> None:
    """As for the windows of loglikelihood_rolling, which are ids alone."""
    prompts = Prompts(chatty, Perturbation(prefix="random:5"), chatty.encode)
    text = perturb.random_prefix(Perturbation(prefix="random:5"), "problem", 3)
    prefix = chatty.encode(text)
    for ids in ([chatty.bos_token_id, 40, 41], [40, 41]):
        (got,) = prompts.jobs(None, ids, "problem", [3])
        bos = len(ids) - 2
        assert got.prompt_ids == (*ids[:bos], *prefix, *ids[bos:])


def test_a_limit_cuts_the_problem_and_spares_what_is_added(tokenizer: Any) -> None:
    ids = tokenizer.encode(TEXT)
    options = {"prefix": "random:4", "rsp": 3, "positions": "dummy:2"}
    whole, cut = job(tokenizer, TEXT, **options), job(tokenizer, TEXT, limit=20, **options)
    head = len(whole.prompt_ids) - len(ids) - 5
    assert len(cut.prompt_ids) == 20
    assert cut.clean == tuple(ids[-15:])
    assert cut.prompt_ids[:head] == whole.prompt_ids[:head]
    assert cut.prompt_ids[head:] == whole.prompt_ids[head - 20 :]
    plain = job(tokenizer, TEXT, limit=20, positions="dummy:2")
    assert plain.prompt_ids[:18] == tuple(ids[-18:]) == plain.clean
