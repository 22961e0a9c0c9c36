"""Every metric and symbol has one entry, every link of a page meets it, once in a section."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_embednoise.analysis import report
from lm_eval_embednoise.analysis.comparison import compare
from lm_eval_embednoise.analysis.glossary import GLOSSARY, entry_of, finder
from lm_eval_embednoise.analysis.linking import linked
from lm_eval_embednoise.analysis.records import read_runs
from lm_eval_embednoise.scoring.metrics import METRICS
from tests.support.synthetic import METHODS, write_study

ASKED = (
    *("pass@k", "rarefied", "ρ", "σ", "σ*", "T*", "cover@τ", "placebo", "simultaneous band"),
    *("Holm", "Bonferroni", "sign-flip test", "non-inferiority", "baseline", "candidate"),
    *("cluster", "K", "n", "floor", "exploratory"),
)
_FOUND = re.compile(r'<a class="term" href="#([^"]*)">([^<]*)</a>')


def described(text):
    """The entry of a text that is one term and nothing else; None if there is none."""
    found = finder().fullmatch(text)
    return entry_of(found) if found else None


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_has_an_entry(metric):
    entry = described(metric)
    assert entry is not None and 20 < len(entry.text) < 220


def test_every_term_asked_for_has_an_entry_that_its_own_name_finds():
    assert set(ASKED) <= GLOSSARY.keys()
    assert len({entry.key for entry in GLOSSARY.values()}) == len(GLOSSARY)
    assert all(not re.search(r"\s", entry.key) for entry in GLOSSARY.values())


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("σ* = 0.1, σ = 0.5", ["σ*", "σ"]),
        ("pass@10 and pass@1_base", ["pass@k", "pass@k"]),
        ("distinct_2_valid, distinct_2", ["distinct_2_valid", "distinct_n"]),
        ("temp-0.8.", ["temp-T"]),
        ("temp-tuned", ["T*"]),
        ("K = 20, n = 100", ["K", "n"]),
        ("Kim took an apple, on p. 3", []),
        ("embednoise-0.1-block-5", ["embednoise-σ"]),
        ("my_pass@10x", []),
    ],
)
def test_terms_are_found_as_whole_words(text, terms):
    assert [entry_of(found).term for found in finder().finditer(text)] == terms


class Page(HTMLParser):
    """Anchors, links, and the text of a page without its tags."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.words = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given["id"]} if "id" in given else set()
        self.links += [given["href"]] if tag == "a" else []

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("glossary")
    write_study(folder / "in", {n: METHODS[n] for n in list(METHODS)[:6]}, n=16, k=12)
    runs = read_runs([folder / "in"])
    found = compare(runs, candidate="embednoise-0.05", draws=50)
    return report.Report(found, runs, folder / "figures").render()


def test_every_link_of_the_page_resolves(page):
    found = Page(page)
    assert len(found.links) > 100
    assert {link.removeprefix("#") for link in found.links} <= found.ids


def test_every_metric_in_a_table_is_linked_where_it_first_stands(page):
    tables = re.findall(r"<thead>.*?</thead>", page, re.DOTALL)
    linked_heads = " ".join(_FOUND.sub(r"\2", table) for table in tables)
    for metric in ("pass@1", "pass@10", "distinct_2", "unique_correct", "compile_rate", "maj@K"):
        assert metric in linked_heads
        assert re.search(rf'href="#{re.escape(described(metric).key)}"', " ".join(tables)), metric


TEXTS = st.lists(
    st.sampled_from(["σ ", "pass@1 ", "a &lt; b ", "placebo ", "<b>n = 3</b> ", "<pre>σ</pre>"]),
    max_size=12,
)


@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_links_change_no_text_and_stand_once_in_a_section(sections):
    source = "".join(f"<section><p>{''.join(texts)}</p></section>" for texts in sections)
    result = linked(source)
    assert _FOUND.sub(r"\2", result) == source
    for texts, section in zip(sections, result.split("</section>"), strict=False):
        keys = [key for key, _ in _FOUND.findall(section)]
        said = [text for text in texts if not text.startswith("<pre>")]
        terms = {"σ ": "g-σ", "pass@1 ": "g-pass@k", "placebo ": "g-placebo"}
        terms["<b>n = 3</b> "] = "g-n"
        assert sorted(keys) == sorted({terms[text] for text in said if text in terms})


def test_figures_samples_and_folded_headings_have_no_links():
    silent = "<details><summary>σ</summary><pre>σ</pre><svg><text>σ</text></svg></details>"
    assert linked(silent) == silent
