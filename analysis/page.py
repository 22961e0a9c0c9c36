"""The report's page from what it shows: templates and style; no scripts, nothing to load.

Every text is escaped by the templates; only a figure's SVG enters the page as it is.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

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
    return _environment().get_template("page.html.jinja").render(content)


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("lm_eval_embednoise.analysis"),
        autoescape=True,
        undefined=StrictUndefined,
    )
    environment.filters["sentence"] = sentence
    environment.filters["curve_sentence"] = curve_sentence
    return environment
