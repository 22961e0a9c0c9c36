"""How different a problem's samples are: n-grams, Self-BLEU, Vendi, edit distance, compression."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from .ngrams import MAX_ORDER, Order

if TYPE_CHECKING:
    from collections.abc import Sequence

SELF_BLEU_SIGNATURE = "case:mixed|eff:yes|tok:none|smooth:exp|order:4|max over references|0-1"
PREFIX_TOKENS = 5
RAREFY_TO = 5
LONGEST = 1 << 16  # characters of a text that edit_distance looks at: its cost is their product
NAN = float("nan")


def distinct(order: Order) -> float:
    """Different over all n-grams of a problem's samples (Li et al. 2016); NaN without any."""
    return order.unique / order.total if order.total else NAN


def expectation_adjusted_distinct(order: Order, vocabulary: int) -> float:
    """Distinct n-grams over their expected number under a uniform draw (Liu et al. 2022).

    N / (V (1 − (1 − 1/V)^C)) with N different among C n-grams and V = vocabulary^n possible ones,
    for n = 2 and the vocabulary of this problem's samples.
    """
    if not order.total:
        return NAN
    possible = float(vocabulary) ** 2
    expected = (
        -possible * math.expm1(order.total * math.log1p(-1 / possible)) if possible > 1 else 1
    )
    return order.unique / expected


def sentence_bleu_matrix(orders: Sequence[Order], lengths: np.ndarray) -> np.ndarray:
    """[samples, samples] sentence BLEU of sample i against the single reference j, in 0–1.

    sacrebleu's definition with smooth_method=exp, use_effective_order and tokenize=none, but for
    two empty texts, which are equal: 1 (sacrebleu: 0).
    """
    samples = len(lengths)
    log_sum = np.zeros((samples, samples))
    effective = np.zeros((samples, 1))
    penalty = np.ones((samples, samples))  # exp smoothing: 2, 4, 8 … for each order without match
    stopped = np.zeros((samples, 1), dtype=bool)
    any_match = np.zeros((samples, samples), dtype=bool)
    for order in orders:
        matches, totals = order.matches(), order.totals[:, None].astype(float)
        stopped |= totals == 0
        running = ~stopped
        none = running & (matches == 0)
        penalty = np.where(none, penalty * 2, penalty)
        with np.errstate(divide="ignore", invalid="ignore"):
            precision = np.where(none, 1 / (penalty * totals), matches / totals)
            log_sum += np.where(running, np.log(precision), 0.0)
        effective += running
        any_match |= matches > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = lengths[None, :] / lengths[:, None]
        brevity = np.where(lengths[:, None] < lengths[None, :], np.exp(1 - ratio), 1.0)
        bleu = brevity * np.exp(log_sum / effective)
    bleu = np.where(any_match, bleu, 0.0)
    both_empty = (lengths[:, None] == 0) & (lengths[None, :] == 0)
    return np.where(both_empty, 1.0, bleu)


def self_bleu(orders: Sequence[Order], lengths: np.ndarray) -> float:
    """Mean over samples of the best sentence BLEU against another sample; NaN below two samples.

    High means alike. Identical pairs give exactly 1.
    """
    if len(lengths) < 2:
        return NAN
    bleu = sentence_bleu_matrix(orders, lengths)
    np.fill_diagonal(bleu, -1.0)
    return float(bleu.max(axis=1).mean())


def self_bleu_joint(samples: Sequence[Sequence[str]]) -> float:
    """Mean sentence BLEU of each sample against all others as joint references (Zhu et al. 2018).

    Same settings as `self_bleu`; matches are clipped at the highest count in any other sample, and
    the reference length is the closest (the shorter on a tie). NaN below two samples.
    """
    if len(samples) < 2:
        return NAN
    counts = [_counts(sample) for sample in samples]
    best, second, holder = _two_highest(counts)
    lengths = Counter(len(sample) for sample in samples)
    total = 0.0
    for index, own in enumerate(counts):
        matches, totals = [0] * MAX_ORDER, [0] * MAX_ORDER
        for gram, count in own.items():
            limit = second.get(gram, 0) if holder[gram] == index else best[gram]
            matches[len(gram) - 1] += min(count, limit)
            totals[len(gram) - 1] += count
        length = len(samples[index])
        others = [n for n, times in lengths.items() if n != length or times > 1]
        closest = min(others, key=lambda n: (abs(n - length), n))
        total += _bleu(matches, totals, length, closest)
    return total / len(samples)


def _counts(sample: Sequence[str]) -> Counter[tuple[str, ...]]:
    return Counter(
        tuple(sample[i : i + n])
        for n in range(1, MAX_ORDER + 1)
        for i in range(len(sample) - n + 1)
    )


def _two_highest(
    counts: Sequence[Counter[tuple[str, ...]]],
) -> tuple[dict[tuple[str, ...], int], dict[tuple[str, ...], int], dict[tuple[str, ...], int]]:
    """For each n-gram: its highest count, its highest elsewhere, and the sample of the first."""
    best: dict[tuple[str, ...], int] = {}
    second: dict[tuple[str, ...], int] = {}
    holder: dict[tuple[str, ...], int] = {}
    for index, own in enumerate(counts):
        for gram, count in own.items():
            top = best.get(gram, 0)
            if count > top:
                best[gram], second[gram], holder[gram] = count, top, index
            elif count > second.get(gram, 0):
                second[gram] = count
    return best, second, holder


def _bleu(matches: list[int], totals: list[int], length: int, reference: int) -> float:
    if length == 0 and reference == 0:
        return 1.0
    if not any(matches):
        return 0.0
    penalty, log_sum, effective = 1.0, 0.0, 0
    for match, total in zip(matches, totals, strict=True):
        if total == 0:
            break
        effective += 1
        if match == 0:
            penalty *= 2
        log_sum += math.log(match / total if match else 1 / (penalty * total))
    brevity = math.exp(1 - reference / length) if length < reference else 1.0
    return brevity * math.exp(log_sum / effective)


def edit_distance(texts: Sequence[str]) -> float:
    """Mean pairwise Levenshtein distance over characters, over the longer; NaN below two texts.

    Of a text longer than `LONGEST` only the beginning counts.
    """
    texts = [text[:LONGEST] for text in texts]
    if len(texts) < 2:
        return NAN
    from rapidfuzz.distance import Levenshtein
    from rapidfuzz.process import cdist

    groups = Counter(texts)
    different = list(groups)
    weights = np.array([groups[text] for text in different], dtype=float)
    table = cdist(different, different, scorer=Levenshtein.normalized_distance, dtype=np.float64)
    pairs = len(texts) * (len(texts) - 1)
    return float(weights @ table @ weights) / pairs


def vendi(unigrams: Order, bigrams: Order) -> float:
    """Vendi score: the effective number of different samples, from 1 to their number.

    exp of the Shannon entropy of the eigenvalues of K/n (Friedman and Dieng 2023), K the mean of
    the cosines of unigram and of bigram counts. NaN without samples.
    """
    samples = unigrams.samples
    if not samples:
        return NAN
    kernel = (unigrams.cosines() + bigrams.cosines()) / 2
    shares = np.linalg.eigvalsh(kernel / samples)
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def compression_ratio(texts: Sequence[str]) -> float:
    """Bytes of all samples, one a line, over their bytes compressed (Shaib et al. 2024).

    By zlib at level 9. High means alike. NaN without any text.
    """
    joined = "\n".join(texts).encode("utf-8", "surrogatepass")
    return len(joined) / len(zlib.compress(joined, 9)) if joined else NAN


def rarefied_distinct(order: Order, draws: int = RAREFY_TO) -> float:
    """distinct_n expected of `draws` samples drawn without replacement; NaN with fewer samples.

    Expected different over expected total n-grams: an n-gram in d of n samples is missed with the
    chance C(n−d, m)/C(n, m). Makes subsets of unequal size comparable: distinct_n falls with the
    number of samples.
    """
    if order.samples < draws or not order.total:
        return NAN
    by_spread = np.bincount(order.spread, minlength=order.samples + 1)
    everything = math.comb(order.samples, draws)
    expected = sum(
        int(count) * (1 - math.comb(order.samples - d, draws) / everything)
        for d, count in enumerate(by_spread)
        if count
    )
    return expected / (order.total * draws / order.samples)


def distinct_among(order: Order, grams: int) -> float:
    """distinct_n expected of `grams` n-grams drawn without replacement from all of a problem's.

    An n-gram that occurs c times among T is missed with the chance C(T−c, N)/C(T, N)
    (rarefaction, Hurlbert 1971). Neither more samples nor longer ones change what is compared.
    NaN with fewer n-grams than are drawn.
    """
    total = order.total
    if total < grams:
        return NAN
    by_count = np.bincount(np.bincount(order.ids))
    everything = math.comb(total, grams)
    expected = sum(
        int(number) * (1 - math.comb(total - count, grams) / everything)
        for count, number in enumerate(by_count)
        if number and count
    )
    return expected / grams


def repetition(order: Order) -> float:
    """1 − different/total n-grams within a sample, mean over the samples that have any."""
    totals = order.totals
    long_enough = totals > 0
    if not long_enough.any():
        return NAN
    return float(np.mean(1 - order.uniques[long_enough] / totals[long_enough]))


def prefixes(samples: Sequence[Sequence[str]]) -> tuple[float, float]:
    """Entropy (nats) and number of the different openings of PREFIX_TOKENS tokens."""
    if not samples:
        return NAN, NAN
    groups = Counter(tuple(sample[:PREFIX_TOKENS]) for sample in samples)
    shares = np.array(list(groups.values())) / len(samples)
    return float(-(shares * np.log(shares)).sum()) + 0.0, float(len(groups))
