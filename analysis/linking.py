"""Links from the words of a page to its glossary: each term where it first stands in a section."""

from __future__ import annotations

import functools
import re
from html.parser import HTMLParser

from lm_eval_embednoise.analysis.glossary import entry_of, finder

_SECTIONS = ("section", "details")  # what has its own first places; inner ones apart from outer
_SILENT = ("a", "pre", "script", "style", "title", "summary", "button", "code", "h1", "dl", "nav")
_SVG = re.compile(r"(<svg\b.*?</svg>)", re.DOTALL)


def linked(page: str) -> str:
    """The page with links to its glossary; figures, samples and folded headings stay as they are.

    Args:
        page: well-formed HTML whose text is escaped.
    """
    linker = _Linker()
    for i, part in enumerate(_SVG.split(page)):
        if i % 2:
            linker.out.append(part)
        else:
            linker.feed(part)
    linker.close()
    return "".join(linker.out)


class _Linker(HTMLParser):
    """Copies what it reads, and wraps the first occurrence of each term in a link."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.out: list[str] = []
        self._silent = 0
        self._seen: list[set[str]] = [set()]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.out.append(self.get_starttag_text() or "")
        self._silent += tag in _SILENT
        if tag in _SECTIONS:
            self._seen.append(set())

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.out.append(self.get_starttag_text() or "")

    def handle_endtag(self, tag: str) -> None:
        self.out.append(f"</{tag}>")
        self._silent -= tag in _SILENT
        if tag in _SECTIONS:
            self._seen.pop()

    def handle_data(self, data: str) -> None:
        self.out.append(data if self._silent else _finder().sub(self._link, data))

    def handle_entityref(self, name: str) -> None:
        self.out.append(f"&{name};")

    def handle_charref(self, name: str) -> None:
        self.out.append(f"&#{name};")

    def handle_decl(self, decl: str) -> None:
        self.out.append(f"<!{decl}>")

    def handle_comment(self, data: str) -> None:
        self.out.append(f"<!--{data}-->")

    def _link(self, found: re.Match[str]) -> str:
        entry = entry_of(found)
        if entry.key in self._seen[-1]:
            return found.group()
        self._seen[-1].add(entry.key)
        return f'<a class="term" href="#{entry.key}">{found.group()}</a>'


_finder = functools.cache(finder)
