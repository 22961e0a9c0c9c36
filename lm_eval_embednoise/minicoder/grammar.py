"""What minicode problems are composed of: the piece types, the domains and the aggregates.

A problem is a composition: take the elements of a domain, keep those that pass one or two filters,
change them by up to two maps, and aggregate. Each piece has its code (templates in `{x}`, the
element, and `{k}`, a constant or a second parameter) and the English phrases that name it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Domain:
    """Where the elements come from.

    `source` is an expression over the parameter `{p}` that can be iterated, `items` one that can
    be indexed and sliced; `outer` is the expression of the inner loop for nested domains.
    """

    name: str
    type: str
    params: tuple[str, ...]
    source: str
    items: str
    nouns: tuple[str, ...]
    noun: str
    variables: tuple[str, ...]
    outer: tuple[str, str] | None = None
    positive: bool = False


@dataclass(frozen=True)
class Piece:
    """A filter or a map: its code, its phrases, and the constants `{k}` it may take."""

    name: str
    type: str
    code: str
    says: tuple[str, ...]
    denies: tuple[str, ...] = ()
    to: str = ""
    group: str = ""
    ks: tuple[int | str, ...] = ()
    of: tuple[str, ...] = ()


@dataclass(frozen=True)
class Aggregate:
    """The last step: `final` turns an iterable `{it}` into the answer.

    `start`/`update` accumulate in a loop over the variable `{a}`, `base`/`left`/`right` fold
    (`{r}` is the rest); empty where the aggregate has no such form.
    """

    name: str
    types: tuple[str, ...]
    final: str
    of: tuple[str, ...]
    says: tuple[str, ...]
    needs_list: bool = False
    more_arguments: bool = False
    start: str = ""
    update: str = ""
    result: str = "{a}"
    base: str = ""
    left: str = ""
    right: str = ""
    imports: str = ""
    if_none: tuple[str, ...] = ()
    ks: tuple[int | str, ...] = ()
    plain: bool = False  # makes no sense after a map


DOMAINS = (
    Domain("numbers", "int", ("numbers", "values", "nums", "xs", "data"), "{p}", "{p}",
        ("the numbers in {p}", "the integers in {p}", "the elements of {p}",
        "the values of the list {p}"), "numbers", ("x", "v", "num")),
    Domain("range", "int", ("n", "stop", "end", "last"), "range(1, {p} + 1)", "range(1, {p} + 1)",
        ("the integers from 1 to {p}", "the numbers 1, 2, ..., {p}", "the whole numbers up to {p}"),
        "numbers", ("i", "x", "j"), positive=True),
    Domain("digits", "int", ("n", "number", "value"), "map(int, str({p}))",
        "[int(d) for d in str({p})]", ("the digits of {p}", "the decimal digits of the number {p}"),
        "digits", ("d", "digit", "x"), positive=True),
    Domain("words", "word", ("words", "names", "strings", "items"), "{p}", "{p}",
        ("the words in {p}", "the strings in {p}", "the words of the list {p}"), "words", ("w",
        "word", "s")),
    Domain("text", "word", ("text", "sentence", "phrase"), "{p}.split()", "{p}.split()",
        ("the words of {p}", "the words in the string {p}", "the space-separated words of {p}"),
        "words", ("w", "word", "s")),
    Domain("chars", "char", ("text", "string", "s", "line"), "{p}", "{p}", ("the characters of {p}",
        "the characters in {p}", "the characters of the string {p}"), "characters", ("c", "ch",
        "char")),
    Domain("grid", "int", ("grid", "matrix", "table"), "sum({p}, [])", "sum({p}, [])",
        ("the numbers in all rows of {p}", "the entries of {p}",
        "all the numbers in the lists of {p}"), "numbers", ("x", "v", "cell"), outer=("row",
        "row")),
    Domain("lines", "word", ("lines", "sentences", "verses"), '" ".join({p}).split()',
        '" ".join({p}).split()', ("the words of all strings in {p}", "all the words in {p}",
        "the words of every line of {p}"), "words", ("w", "word", "s"), outer=("line",
        "line.split()")),
    Domain("rows", "row", ("rows", "lists", "groups"), "{p}", "{p}", ("the lists in {p}",
        "the rows of {p}", "the inner lists of {p}"), "lists", ("row", "r", "part")),
)  # fmt: skip

_ANY = ("int", "word", "char", "row")
_FLAT = ("int", "word", "char")
AGGREGATES = (
    Aggregate("sum", ("int",), "sum({it})", ("the sum of", "the total of"), ("their sum",
        "their total"), start="0", update="{a} += {e}", base="0", left="{a} + {e}",
        right="{e} + {r}"),
    Aggregate("product", ("int",), "prod({it})", ("the product of",), ("their product",),
        imports="from math import prod", start="1", update="{a} *= {e}", base="1", left="{a} * {E}",
        right="{E} * {r}"),
    Aggregate("count", _ANY, "len({it})", ("the number of", "how many there are of"),
        ("how many there are", "their number"), needs_list=True, start="0", update="{a} += 1",
        base="0", left="{a} + 1", right="1 + {r}", plain=True),
    Aggregate("largest", ("int",), "max({it}, default=0)", ("the largest of", "the maximum of"),
        ("the largest", "their maximum"), more_arguments=True, if_none=("0 if there are none",
        "0 if nothing is left")),
    Aggregate("smallest", ("int",), "min({it}, default=0)", ("the smallest of", "the minimum of"),
        ("the smallest", "their minimum"), more_arguments=True, if_none=("0 if there are none",
        "0 if nothing is left")),
    Aggregate("list", _ANY, "{it}", ("the list of", "a list of"), ("them as a list",
        "the resulting list", "them in order"), needs_list=True, start="[]",
        update="{a}.append({e})", base="[]", left="{a} + [{e}]", right="[{e}] + {r}"),
    Aggregate("backwards", _FLAT, "{it}[::-1]", ("in reverse order, the list of",),
        ("the list in reverse order", "them from last to first"), needs_list=True, start="[]",
        update="{a}.insert(0, {e})", base="[]", left="[{e}] + {a}", right="{r} + [{e}]"),
    Aggregate("sorted", _FLAT, "sorted({it})", ("the sorted list of",
        "in increasing order, the list of"), ("them sorted", "the sorted list")),
    Aggregate("descending", ("int", "word"), "sorted({it}, reverse=True)",
        ("in decreasing order, the list of",), ("them sorted in descending order",
        "the list sorted from high to low"), more_arguments=True),
    Aggregate("top", ("int",), "sorted({it}, reverse=True)[:{k}]", ("the {k} largest of",),
        ("the {k} largest, largest first",), more_arguments=True, ks=(2, 3, 4)),
    Aggregate("take", _FLAT, "{it}[:{k}]", ("the list of the first {k} of",),
        ("the first {k} as a list", "a list of the first {k}"), needs_list=True, ks=(2, 3, 4)),
    Aggregate("distinct", _FLAT, "len(set({it}))", ("the number of different values among",),
        ("how many different ones there are", "the number of distinct ones"), start="set()",
        update="{a}.add({e})", result="len({a})"),
    Aggregate("frequency", _FLAT, "dict(Counter({it}))", ("a dictionary with the counts of",),
        ("a dictionary of how often each occurs", "how often each occurs, as a dictionary"),
        start="{}", update="{a}[{e}] = {a}.get({e}, 0) + 1",
        imports="from collections import Counter"),
    Aggregate("join", ("char", "word"), '"".join({it})', ("one string made of",
        "the string formed by"), ("them joined into one string", "the concatenation"), start='""',
        update="{a} += {e}", base='""', left="{a} + {e}", right="{e} + {r}"),
    Aggregate("dashes", ("word", "char"), '"-".join({it})',
        ("with dashes between them, as one string,",), ("them joined with dashes",
        "one string with '-' between them")),
    Aggregate("spaces", ("word",), '" ".join({it})', ("separated by spaces, in one string,",),
        ("them joined with spaces", "one string with spaces between them")),
    Aggregate("longest", ("word",), 'max({it}, key=len, default="")', ("the longest of",),
        ("the longest",), more_arguments=True, if_none=("an empty string if there are none",
        "'' if nothing is left")),
)  # fmt: skip
