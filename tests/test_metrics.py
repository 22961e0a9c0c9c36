"""Every fast metric against its slow, obvious reference or the tool that defines it."""

from __future__ import annotations

import gzip
import io
import itertools
import math
import time
import tokenize
import zlib
from collections import Counter

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_eval_embednoise.sandbox.syntax import examine
from lm_eval_embednoise.scoring import aggregate, diversity
from lm_eval_embednoise.scoring.lexer import code_tokens, prose_tokens
from lm_eval_embednoise.scoring.ngrams import count_orders
from lm_eval_embednoise.scoring.passk import pass_at_k

words = st.lists(st.sampled_from(["a", "b", "c", "(", "ü", "名"]), max_size=12)
corpora = st.lists(words, min_size=2, max_size=6)


def lengths_of(samples: list[list[str]]) -> np.ndarray:
    return np.array([len(sample) for sample in samples])


# -- pass@k


@given(st.integers(1, 12), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(
    n: int, data: st.DataObject
) -> None:
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    subsets = list(itertools.combinations(range(n), k))
    share = sum(any(i < c for i in subset) for subset in subsets) / len(subsets)
    assert pass_at_k(n, c, k) == pytest.approx(share, abs=1e-12)


@given(st.integers(1, 200), st.data())
def test_pass_at_k_is_human_evals_estimator(n: int, data: st.DataObject) -> None:
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    expected = 1.0 if n - c < k else 1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1))
    assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_beyond_n_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"pass@100 needs at least 100 samples, got n=20"):
        pass_at_k(20, 3, 100)


# -- tokens


@pytest.mark.parametrize(
    "source",
    [
        "def f(x):\n    return x ** 2 // 3  # comment\n",
        "s = rb'a\\'b' + b\"c\"\nt = '''two\nlines'''\n",
        "x = 0x_ff + 1_000.5e-3j + .5 + 5. + 0b1 + 0o17 + 1e5\n",
        "a: list[int] = [*b, *(c := 1, 2)]\nd = lambda *e, **f: ...\n",
        "if a != b and c <= d or e >> 1 == f << 2 or g -= 1:\n    pass\n",
        "grüße = 'ü' if 名 else not None\nx @= y; z |= 1; w ^= ~v; q %= 2; u //= 3\n",
        "class A(B, metaclass=C):\n    @staticmethod\n    def g() -> int: ...\n",
        'x = "a" \\\n    "b"\n',
    ],
)
def test_code_tokens_are_those_of_pythons_tokenizer(source: str) -> None:
    layout = {tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT}
    layout |= {tokenize.ENDMARKER, tokenize.ENCODING}
    stream = tokenize.generate_tokens(io.StringIO(source).readline)
    assert code_tokens(source) == [t.string for t in stream if t.type not in layout]


@given(st.text(max_size=60))
def test_any_text_has_tokens_and_none_is_blank(text: str) -> None:
    assert all(token.strip() for token in code_tokens(text) + prose_tokens(text))


def test_prose_keeps_what_code_calls_a_comment() -> None:
    assert prose_tokens("That makes 40.\n#### 40") == [*["That", "makes", "40", "."], *"####", "40"]


# -- n-grams


@given(corpora)
def test_ngram_counts_are_those_of_plain_loops(samples: list[list[str]]) -> None:
    for n, order in enumerate(count_orders(samples), start=1):
        grams = [[tuple(s[i : i + n]) for i in range(len(s) - n + 1)] for s in samples]
        everything = [gram for own in grams for gram in own]
        assert order.total == len(everything)
        assert order.unique == len(set(everything))
        assert order.totals.tolist() == [len(own) for own in grams]
        assert order.uniques.tolist() == [len(set(own)) for own in grams]
        spread = sorted(sum(gram in own for own in grams) for gram in set(everything))
        assert sorted(order.spread.tolist()) == spread
        matches = order.matches()
        for i, j in itertools.product(range(len(samples)), repeat=2):
            clipped = sum(min(grams[i].count(g), grams[j].count(g)) for g in set(grams[i]))
            assert matches[i, j] == clipped


def test_distinct_of_identical_samples_falls_with_their_number() -> None:
    sample = ["a", "b", "c", "d"]
    values = [diversity.distinct(count_orders([sample] * k)[1]) for k in (1, 2, 10)]
    assert values == [1.0, 0.5, 0.1]


def test_ead_is_distinct_over_the_expected_number() -> None:
    order = count_orders([list("abcab"), list("bca")])[1]
    possible, total = 9, 6
    expected = possible * (1 - (1 - 1 / possible) ** total)
    assert diversity.expectation_adjusted_distinct(order, 3) == pytest.approx(3 / expected)


# -- Self-BLEU


def bleu_by_sacrebleu(hypothesis: list[str], references: list[list[str]]) -> float:
    texts = [" ".join(reference) for reference in references]
    return sacrebleu.sentence_bleu(" ".join(hypothesis), texts, tokenize="none").score / 100


@settings(deadline=None, max_examples=60)
@given(corpora)
def test_self_bleu_is_sacrebleus(samples: list[list[str]]) -> None:
    matrix = diversity.sentence_bleu_matrix(count_orders(samples), lengths_of(samples))
    best = []
    for i, hypothesis in enumerate(samples):
        row = []
        for j, reference in enumerate(samples):
            expected = bleu_by_sacrebleu(hypothesis, [reference])
            if not hypothesis and not reference:
                expected = 1.0  # sacrebleu says 0: two empty texts would look different
            assert matrix[i, j] == pytest.approx(expected, abs=1e-9)
            row += [expected] if i != j else []
        best.append(max(row))
    result = diversity.self_bleu(count_orders(samples), lengths_of(samples))
    assert result == pytest.approx(np.mean(best), abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(corpora)
def test_joint_self_bleu_is_sacrebleus_with_all_others_as_references(
    samples: list[list[str]],
) -> None:
    expected = []
    for i, hypothesis in enumerate(samples):
        others = samples[:i] + samples[i + 1 :]
        nothing = not hypothesis and [] in others
        expected.append(1.0 if nothing else bleu_by_sacrebleu(hypothesis, others))
    assert diversity.self_bleu_joint(samples) == pytest.approx(np.mean(expected), abs=1e-9)


@pytest.mark.parametrize("sample", [[], ["a"], ["a", "b", "a"], ["名", "ü"] * 9])
def test_identical_samples_have_self_bleu_exactly_one(sample: list[str]) -> None:
    samples = [sample] * 3
    assert diversity.self_bleu(count_orders(samples), lengths_of(samples)) == 1.0
    assert diversity.self_bleu_joint(samples) == 1.0


def test_the_signature_names_sacrebleus_settings() -> None:
    metric = sacrebleu.BLEU(tokenize="none", effective_order=True)
    metric.sentence_score("a", ["a"])
    fields = str(metric.get_signature()).split("|")
    for field in ("case:mixed", "eff:yes", "tok:none", "smooth:exp"):
        assert field in fields
        assert field in diversity.SELF_BLEU_SIGNATURE


# -- edit distance


def levenshtein(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        corner, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (x != y))
    return row[-1]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text("abü", max_size=8), min_size=2, max_size=6))
def test_edit_distance_is_the_dynamic_programmes(texts: list[str]) -> None:
    pairs = list(itertools.combinations(texts, 2))
    slow = [levenshtein(a, b) / max(len(a), len(b), 1) for a, b in pairs]
    assert diversity.edit_distance(texts) == pytest.approx(np.mean(slow), abs=1e-12)


def test_edit_distance_looks_at_the_beginning_of_a_text_without_end() -> None:
    longest = diversity.LONGEST
    almost = "a" * (longest - 1) + "b"
    whole = diversity.edit_distance([almost, "a" * longest])
    assert whole == pytest.approx(1 / longest, abs=1e-12)  # the last that counts
    assert diversity.edit_distance([almost + "c" * 1_000_000, "a" * 1_000_000]) == whole
    start = time.process_time()
    texts = [*(f"{i}" * 200 for i in range(30)), "".join(map(str, range(200_000)))]
    assert 0 < diversity.edit_distance(texts) < 1
    assert time.process_time() - start < 10  # minutes, were all of it compared


# -- Vendi score, compression


def vendi_by_its_authors(samples: list[list[str]]) -> float:
    """Their score of the samples' features: unigram and bigram counts, each half of the kernel."""
    from vendi_score import vendi

    halves = []
    for n in (1, 2):
        grams = [Counter(zip(*(s[i:] for i in range(n)), strict=False)) for s in samples]
        known = sorted(set().union(*grams))
        # one more feature, which only samples without any n-gram have: they are alike
        rows = [[own[gram] for gram in known] + [0 if own else 1] for own in grams]
        halves.append(np.array(rows) / np.linalg.norm(rows, axis=1, keepdims=True) / math.sqrt(2))
    return float(vendi.score_dual(np.hstack(halves), normalize=False))


@settings(deadline=None, max_examples=60)
@given(corpora)
def test_the_vendi_score_is_its_authors(samples: list[list[str]]) -> None:
    unigrams, bigrams = count_orders(samples)[:2]
    assert diversity.vendi(unigrams, bigrams) == pytest.approx(vendi_by_its_authors(samples))


@settings(deadline=None, max_examples=60)
@given(corpora)
def test_the_vendi_score_is_the_entropy_of_the_kernels_eigenvalues(
    samples: list[list[str]],
) -> None:
    kernel = np.zeros((len(samples), len(samples)))
    for (i, a), (j, b) in itertools.product(enumerate(samples), repeat=2):
        for n in (1, 2):
            one, other = (
                Counter(tuple(s[at : at + n]) for at in range(len(s) - n + 1)) for s in (a, b)
            )
            norms = [math.sqrt(sum(c * c for c in own.values())) for own in (one, other)]
            shared = sum(one[gram] * other[gram] for gram in one)
            kernel[i, j] += (
                float(not one and not other) if 0 in norms else shared / math.prod(norms)
            ) / 2
    shares = [share for share in np.linalg.eigvals(kernel / len(samples)).real if share > 1e-12]
    expected = math.exp(-sum(share * math.log(share) for share in shares))
    value = diversity.vendi(*count_orders(samples)[:2])
    assert value == pytest.approx(expected)
    assert 1 - 1e-9 <= value <= len(samples) + 1e-9


def test_the_vendi_score_counts_samples_that_share_nothing() -> None:
    distinct = [["a", "b"], ["c", "d"], ["e", "f"]]
    assert diversity.vendi(*count_orders(distinct)[:2]) == pytest.approx(3)
    assert diversity.vendi(*count_orders(distinct * 5)[:2]) == pytest.approx(3)
    assert diversity.vendi(*count_orders([distinct[0]] * 9)[:2]) == pytest.approx(1)
    assert diversity.vendi(*count_orders([[], [], ["a"]])[:2]) == pytest.approx(
        vendi_by_its_authors([[], [], ["a"]])
    )
    assert math.isnan(diversity.vendi(*count_orders([])[:2]))


def test_the_compression_ratio_is_gzips_but_for_its_header() -> None:
    texts = [f"def f(x):\n    return x + {i}\n" for i in range(50)]
    joined = "\n".join(texts).encode()
    header = len(gzip.compress(b"")) - len(zlib.compress(b""))
    expected = len(joined) / (len(gzip.compress(joined, 9)) - header)
    assert diversity.compression_ratio(texts) == pytest.approx(expected)
    rng = np.random.default_rng(0)
    noise = ["".join(map(chr, rng.integers(32, 127, 30))) for _ in range(50)]
    same = diversity.compression_ratio(["a + b"] * 50)
    assert diversity.compression_ratio(noise) < 1.5 < diversity.compression_ratio(texts) < same
    assert math.isnan(diversity.compression_ratio([]))
    assert math.isnan(diversity.compression_ratio([""]))
    assert diversity.compression_ratio(["\ud800"]) > 0


# -- rarefaction, repetition, prefixes


@settings(deadline=None, max_examples=60)
@given(st.lists(words, min_size=1, max_size=7), st.integers(1, 4))
def test_rarefaction_is_the_mean_over_all_subsets(samples: list[list[str]], draws: int) -> None:
    value = diversity.rarefied_distinct(count_orders(samples, 2)[1], draws)
    if len(samples) < draws or not any(len(s) > 1 for s in samples):
        assert math.isnan(value)
        return
    subsets = list(itertools.combinations(samples, draws))
    grams = [[g for s in subset for g in itertools.pairwise(s)] for subset in subsets]
    unique = np.mean([len(set(g)) for g in grams])
    total = np.mean([len(g) for g in grams])
    assert value == pytest.approx(unique / total)


@settings(deadline=None, max_examples=60)
@given(st.lists(words, min_size=1, max_size=3), st.integers(1, 4))
def test_rarefaction_to_bigrams_is_the_mean_over_all_draws(
    samples: list[list[str]], grams: int
) -> None:
    value = diversity.distinct_among(count_orders(samples, 2)[1], grams)
    pooled = [gram for sample in samples for gram in itertools.pairwise(sample)]
    if len(pooled) < grams:
        assert math.isnan(value)
        return
    draws = itertools.combinations(pooled, grams)
    assert value == pytest.approx(np.mean([len(set(draw)) for draw in draws]) / grams)


def test_rarefied_to_bigrams_longer_or_more_samples_gain_nothing() -> None:
    def value(samples: list[list[str]]) -> float:
        return diversity.distinct_among(count_orders(samples, 2)[1], 10)

    loop = ["a", "b", "c", "d"] * 25
    assert value([loop] * 3) == pytest.approx(value([loop] * 30), rel=0.05)
    assert value([loop]) == pytest.approx(value([loop * 10]), rel=0.1)


def test_repetition_is_within_a_sample_only() -> None:
    loop, fresh = ["x", "=", "x", "+"] * 3, ["def", "f", "(", "x", ")", ":"]
    assert diversity.repetition(count_orders([fresh, fresh])[3]) == 0.0
    assert diversity.repetition(count_orders([loop])[3]) == pytest.approx(1 - 4 / 9)
    assert math.isnan(diversity.repetition(count_orders([["a"]])[3]))


def test_prefix_entropy_of_even_openings_is_log_of_their_number() -> None:
    entropy, openings = diversity.prefixes([list("abcdeX"), list("abcdeY"), list("zzzzz"), ["q"]])
    assert openings == 3.0
    assert entropy == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(4))
    assert diversity.prefixes([["a"]] * 5) == (0.0, 1.0)


@pytest.mark.parametrize("samples", [[], [[]], [["a"]], [[], []]])
def test_too_little_text_is_nan_or_defined_but_never_a_crash(samples: list[list[str]]) -> None:
    orders = count_orders(samples)
    assert math.isnan(diversity.distinct(orders[1]))
    joint = diversity.self_bleu_joint(samples)
    assert diversity.self_bleu(orders, lengths_of(samples)) == pytest.approx(joint, nan_ok=True)
    assert math.isnan(joint) == (len(samples) < 2)


# -- trees


SAME = [
    ("def f(x):\n    return x + 1", "def f(value): return value + 1  # up"),
    ("def f(x):\n    '''doc'''\n    return x", "def f(x: int) -> int:\n\n    return x"),
    (
        "def f(a):\n    return [x for x in a] + [y for y in a]",
        "def f(a):\n    return [i for i in a] + [i for i in a]",
    ),
    ("import math as m\ndef f(x): return m.sqrt(x)", "import math\ndef f(y): return math.sqrt(y)"),
]
DIFFERENT = [
    ("def f(x): return sum(x)", "def f(x): return max(x)"),
    ("def f(x, y): return x - y", "def f(x, y): return y - x"),
    ("def f(x): return x + 1", "def f(x): return 1 + x"),
    ("def f(x): return x.a", "def f(x): return x.b"),
    ("def f(x): return 1", "def f(x): return 2"),
    ("import math\ndef f(x): return math.sqrt(x)", "import cmath\ndef f(x): return cmath.sqrt(x)"),
    (
        "def f(a):\n    r = []\n    for x in a: r.append(x)\n    return r",
        "def f(a): return [x for x in a]",
    ),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_names_comments_docstrings_annotations_layout_make_no_class(one: str, other: str) -> None:
    assert examine(one, "f")["ast"] == examine(other, "f")["ast"] is not None


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_structure_constants_builtins_and_attributes_do(one: str, other: str) -> None:
    assert examine(one, "f")["ast"] != examine(other, "f")["ast"]


# -- aggregation


def test_aggregation_leaves_undefined_problems_out() -> None:
    values = [1.0, float("nan"), 3.0]
    assert aggregate.mean(values) == 2.0
    assert aggregate.mean.stderr(values) == pytest.approx(np.std([1, 3], ddof=1) / math.sqrt(2))
    assert aggregate.total(values) == 4.0
    assert math.isnan(aggregate.mean([float("nan")]))
    assert math.isnan(aggregate.mean.stderr([1.0]))
    assert math.isnan(aggregate.total.stderr(values))
