"""Chat templates that print a date print the same one every day."""

from __future__ import annotations

import datetime
import logging
import random
from typing import Any

import pytest
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from lm_eval_embednoise.minicoder import MODEL_DIR
from lm_eval_embednoise.models.arguments import check_arguments
from lm_eval_embednoise.models.dates import _CODES, _FLAGS, DATE, parse_date, stopped
from lm_eval_embednoise.models.hf_embednoise import HFEmbedNoise
from lm_eval_embednoise.models.prompts import generation_prompt
from lm_eval_embednoise.noise.perturbation import Perturbation

CHAT = [{"role": "user", "content": "Hello"}]
TODAYS = (datetime.datetime(2026, 11, 27, 23, 59, 58), datetime.datetime(2027, 1, 2, 0, 1))
BODY = """\
{%- for message in messages %}{{ '[' + message['role'] + '] ' + message['content'] }}
{% endfor %}{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"""
CLOCK = "{{- 'Today is ' + strftime_now('%d %b %Y') + '.\n' }}" + BODY
LLAMA_3_1 = (
    "{%- if not date_string is defined %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
    "{{- 'Today Date: ' + date_string + '\n' }}" + BODY
)
LLAMA_3_2 = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}"
    "{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- endif %}"
    "{{- 'Today Date: ' + date_string + '\n' }}" + BODY
)
DATED_TURN = BODY.replace("'[assistant] '", "'[assistant, ' + strftime_now('%H:%M:%S') + '] '")
INNER = (
    "{%- macro day() %}{{ strftime_now('%Y-%m-%d') }}{% endmacro %}"
    "{%- set yesterday = strftime_now('%d')|int - 1 %}{{- day() + ' ' ~ yesterday + '\n' }}" + BODY
)


def set_clock(monkeypatch: pytest.MonkeyPatch, now: datetime.datetime) -> None:
    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime.datetime:
            return now

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)


@pytest.fixture
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL_DIR)


def render(tokenizer: Any, template: str, **args: Any) -> str:
    tokenizer.chat_template = template
    return tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True, **args)


@pytest.mark.parametrize(
    ("template", "default", "other"),
    [
        (CLOCK, "Today is 26 Jul 2024.\n", "Today is 03 Feb 2025.\n"),
        (LLAMA_3_1, "Today Date: 26 Jul 2024\n", "Today Date: 03 Feb 2025\n"),
        (LLAMA_3_2, "Today Date: 26 Jul 2024\n", "Today Date: 03 Feb 2025\n"),
        (INNER, "2024-07-26 25\n", "2025-02-03 2\n"),
    ],
)
def test_prompts_are_the_same_on_every_day(monkeypatch, caplog, template, default, other) -> None:
    rest = "[user] Hello\n[assistant] "
    free, texts = set(), set()
    for date, said in ((None, default), ("2025-02-03", other)):
        lm = HFEmbedNoise(device="cpu", template_date=date)
        lm.tokenizer.chat_template = template
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="lm_eval"):
            for today in TODAYS:
                set_clock(monkeypatch, today)
                assert lm.apply_chat_template(CHAT) == said + rest
                text = lm.apply_chat_template([*CHAT, {"role": "assistant", "content": "x"}], False)
                assert text == said + "[user] Hello\n[assistant] x"
                free.add(lm.tokenizer.apply_chat_template(CHAT, tokenize=False))
                texts.add(tuple(lm.tok_encode(lm.apply_chat_template(CHAT))))
        assert lm.tokenizer.chat_template == template and lm.chat_template_args == {}
        told = [r.getMessage() for r in caplog.records if "asks for the date" in r.getMessage()]
        asked = "strftime_now" in template or date is not None
        assert len(told) == asked and all(str(date or DATE) in line for line in told)
    assert len(texts) == 2 and len(free) == (1 if template is LLAMA_3_1 else 2)


def test_a_date_string_that_is_given_stays(tokenizer: Any) -> None:
    for template in (LLAMA_3_1, LLAMA_3_2):
        tokenizer.chat_template = template
        arguments = stopped(tokenizer, {"date_string": "1 May"}, datetime.date(2025, 2, 3))
        assert render(tokenizer, template, **arguments).startswith("Today Date: 1 May\n")


def test_where_no_date_is_asked_for_nothing_is_added(tokenizer: Any) -> None:
    given = {"enable_thinking": True}
    assert stopped(tokenizer, given, datetime.date(2025, 2, 3)) == given
    tokenizer.chat_template = BODY
    assert stopped(tokenizer, given, datetime.date(2025, 2, 3)) == given
    tokenizer.chat_template = {"default": CLOCK, "tool_use": BODY}
    assert stopped(tokenizer, {})["chat_template"].endswith(CLOCK)
    assert stopped(tokenizer, {"chat_template": BODY}) == {"chat_template": BODY}
    assert stopped(tokenizer, {"tools": []}) == {"tools": []}


@pytest.mark.parametrize(
    "start", ["", "\n", "\n\n", " ", "  {% if true %}\n x{% endif %}\n", "{# c #}\n"]
)
def test_the_rest_of_the_template_is_rendered_as_before(monkeypatch, tokenizer, start) -> None:
    """Blank lines and blanks at its beginning included."""
    set_clock(monkeypatch, datetime.datetime.combine(DATE, datetime.time()))
    template = start + CLOCK.replace("{{-", "{{", 1)
    free = render(tokenizer, template)
    assert render(tokenizer, template, **stopped(tokenizer, {})) == free


def test_formats_are_those_of_strftime(tokenizer: Any) -> None:
    draw = random.Random(0)
    codes = [f"%{flag}{letter}" for flag in ("", *_FLAGS) for letter in _CODES if letter != "s"]
    for _ in range(60):
        day = datetime.date.fromordinal(draw.randrange(730_000, 740_000))
        parts = draw.choices([*codes, "x", " ", "é", "\n", "'", '"', ", "], k=draw.randint(1, 12))
        format = "".join(parts)
        template = "{{ strftime_now(messages[0]['content']) }}"
        tokenizer.chat_template = template
        arguments = stopped(tokenizer, {}, day)
        chat = [{"role": "user", "content": format}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, **arguments)
        expected = datetime.datetime.combine(day, datetime.time()).strftime(format)
        assert text == expected, format


def test_the_start_of_the_assistants_turn(monkeypatch, tokenizer: Any) -> None:
    """It is looked for in prompts, so it must be the one that they have."""
    tokenizer.chat_template = DATED_TURN
    for today in TODAYS:
        set_clock(monkeypatch, today)
        assert generation_prompt(tokenizer, {}) == "[assistant, 00:00:00]"
    lm = HFEmbedNoise(device="cpu", template_date="2025-02-03")
    lm.tokenizer.chat_template = CLOCK.replace("'[assistant] '", "strftime_now('%d.%m.') + ' '")
    lm.set_perturbation(Perturbation(rsp=2, rsp_slot="before-assistant"))
    text = lm.apply_chat_template(CHAT)
    (job,) = lm._prompts.jobs(text, lm.tok_encode(text), "problem", [0])
    assert job.soft_start == len(lm.tok_encode(text.removesuffix("03.02. ")))


@pytest.mark.parametrize("value", ["today", "2024-7-26", "26.07.2024", "2024-02-30", 2024, ""])
def test_anything_but_a_date_is_refused_before_loading(value: Any) -> None:
    with pytest.raises(ValueError, match=r"template_date=.* must be YYYY-MM-DD, such as 2024-07-"):
        HFEmbedNoise("/nowhere", template_date=value)
    with pytest.raises(ValueError, match="template_date="):
        check_arguments({"template_date": value})


def test_dates_of_a_yaml_file_are_taken() -> None:
    assert parse_date(datetime.date(2025, 2, 3)) == parse_date("2025-02-03")
    assert parse_date(None) is None
