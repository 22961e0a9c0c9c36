"""The report's page from what it shows: templates, style, one script of its own; nothing to load.

Every text is escaped by the templates; only a figure's SVG enters the page as it is. The page's
security policy lets the browser run this one script, known by its hash, and load nothing.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from lm_eval_embednoise.analysis.constraint import constraint_sentence
from lm_eval_embednoise.analysis.linking import linked
from lm_eval_embednoise.analysis.verdict import curve_sentence, sentence


@dataclass(frozen=True)
class Figure:
    """An inline figure and its caption."""

    svg: str
    caption: str

    @classmethod
    def from_svg(cls, text: str, caption: str) -> Figure:
        """From an SVG file's text, without its prologue, which names a remote document type."""
        return cls(text[text.index("<svg") :], caption)


def render(content: dict[str, Any]) -> str:
    """The whole page, one self-contained HTML document.

    Args:
        content: what templates/page.html.jinja names; a name that is missing is an error.
    """
    environment = _environment()
    script = environment.get_template("page.js").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template("page.html.jinja")
    return linked(page.render({**content, "script": script, "script_hash": digest}))


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("lm_eval_embednoise.analysis"),
        autoescape=True,
        undefined=StrictUndefined,
    )
    environment.filters["sentence"] = sentence
    environment.filters["curve_sentence"] = curve_sentence
    environment.filters["constraint_sentence"] = constraint_sentence
    return environment
