"""Stops the clock of chat templates: a prompt must not change at midnight.

transformers gives a template `strftime_now`, which says what time it is, and lets nobody pass
another function. So a macro of that name, with one date in it, is put before the template's text.
"""

from __future__ import annotations

import datetime
import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

DATE = datetime.date(2024, 7, 26)  # what Llama 3's templates print where they have no clock

_FLAGS = "-_0^#"  # of the C library: no padding, padding with blanks or zeros, upper case, …
_CODES = "aAbBcCdDeFfgGhHIjklmMnpPrRsStTuUVwWxXyYzZ%"
# The newline at its end is taken away with the block, so the template begins on a new line.
_MACRO = """\
{%%- macro strftime_now(format) -%%}
{%%- set table = %s -%%}
{%%- set code = namespace(begun='') -%%}
{%%- for letter in format -%%}
{%%- if not code.begun and letter != '%%' -%%}
{{- letter -}}
{%%- else -%%}
{%%- set code.begun = code.begun + letter -%%}
{%%- if code.begun != '%%' and letter not in '%s' -%%}
{{- table.get(code.begun, code.begun) -}}
{%%- set code.begun = '' -%%}
{%%- endif -%%}
{%%- endif -%%}
{%%- endfor -%%}
{{- code.begun -}}
{%%- endmacro %%}
"""


def parse_date(value: Any) -> datetime.date | None:
    """The date that `template_date` names; None for none.

    Raises:
        ValueError: for anything but YYYY-MM-DD.
    """
    if value is None:
        return None
    try:
        if not re.fullmatch(r"[1-9]\d{3}-\d\d-\d\d", str(value)):
            raise ValueError
        return datetime.date.fromisoformat(str(value))
    except ValueError:
        raise ValueError(
            f"template_date={value!r} is not a date; it must be YYYY-MM-DD, such as {DATE}"
        ) from None


def stopped(
    tokenizer: Any, arguments: Mapping[str, Any], date: datetime.date | None = None
) -> dict[str, Any]:
    """The arguments of a chat template, with its clock at midnight of one date.

    Args:
        tokenizer: whose template it is.
        arguments: of the template; a `date_string` among them stays.
        date: the date; None for `DATE`, and then a `date_string` that isn't given stays the
            template's own.

    Returns:
        The same arguments where the template asks for no date.
    """
    given = dict(arguments)
    template = given.get("chat_template")
    if not template and not getattr(tokenizer, "chat_template", None):
        return given
    template = tokenizer.get_chat_template(template, given.get("tools"))
    if "strftime_now" in template:
        given["chat_template"] = _macro(date or DATE) + template
    if date is not None and "date_string" in template:
        given.setdefault("date_string", date.strftime("%d %b %Y"))
    return given


def _macro(date: datetime.date) -> str:
    """Jinja for a `strftime_now` with a fixed date; the template must follow at once."""
    moment = datetime.datetime.combine(date, datetime.time())
    codes = [f"%{flag}{letter}" for flag in ("", *_FLAGS) for letter in _CODES]
    table = {code: moment.strftime(code) for code in codes}
    seconds = moment.replace(tzinfo=datetime.timezone.utc).timestamp()
    table["%s"] = str(int(seconds))  # strftime takes it from the machine's time zone
    return _MACRO % (json.dumps(table), _FLAGS)
