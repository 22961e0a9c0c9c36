"""n-gram counts of a problem's samples as arrays: the sufficient statistics of the text metrics."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_ORDER = 4


@dataclass(frozen=True)
class Order:
    """All n-grams of one order, sample after sample.

    Attributes:
        ids: [grams] a number for each n-gram, equal for equal n-grams.
        rows: [grams] the sample each one is in.
        samples: number of samples.
        unique: number of different n-grams.
    """

    ids: np.ndarray
    rows: np.ndarray
    samples: int
    unique: int

    @property
    def total(self) -> int:
        """Number of n-grams of all samples."""
        return len(self.ids)

    @cached_property
    def totals(self) -> np.ndarray:
        """[samples] number of n-grams of each."""
        return np.bincount(self.rows, minlength=self.samples)

    @cached_property
    def _pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """The different (sample, n-gram) pairs as one number each, and how often each occurs."""
        return np.unique(self.rows * np.int64(self.unique) + self.ids, return_counts=True)

    @cached_property
    def uniques(self) -> np.ndarray:
        """[samples] number of different n-grams of each."""
        if not self.total:
            return np.zeros(self.samples, dtype=np.int64)
        return np.bincount(self._pairs[0] // self.unique, minlength=self.samples)

    @cached_property
    def spread(self) -> np.ndarray:
        """[unique] number of samples that contain each n-gram."""
        if not self.total:
            return np.zeros(0, dtype=np.int64)
        return np.bincount(self._pairs[0] % self.unique, minlength=self.unique)

    def cosines(self) -> np.ndarray:
        """[samples, samples] cosine of the n-gram counts; samples without n-grams are alike."""
        if not self.total:
            return np.ones((self.samples, self.samples))
        keys, counts = self._pairs
        table = np.zeros((self.samples, self.unique))
        table[keys // self.unique, keys % self.unique] = counts
        lengths = np.linalg.norm(table, axis=1, keepdims=True)
        empty = lengths[:, 0] == 0
        table /= np.where(lengths == 0, 1.0, lengths)
        return table @ table.T + np.outer(empty, empty)

    def matches(self) -> np.ndarray:
        """[samples, samples] clipped n-gram matches: the sum of min(count in i, count in j).

        min(a, b) counts the thresholds t ≤ a and t ≤ b, so with one 0/1 column for every n-gram
        and threshold the sum is a matrix product.
        """
        if not self.total:
            return np.zeros((self.samples, self.samples))
        keys, counts = self._pairs
        rows, ids = keys // self.unique, keys % self.unique
        # The k-th occurrence of an n-gram in a sample is a column of its own.
        occurrence = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        wide = np.repeat(ids, counts) * np.int64(counts.max()) + occurrence
        _, columns, holders = np.unique(wide, return_inverse=True, return_counts=True)
        rows = np.repeat(rows, counts)
        shared = holders[columns] > 1  # a column of one sample matches only that sample itself
        _, columns = np.unique(columns[shared], return_inverse=True)
        # float32 counts exactly up to 2**24
        incidence = np.zeros((self.samples, columns.max(initial=-1) + 1), dtype=np.float32)
        incidence[rows[shared], columns] = 1.0
        product = (incidence @ incidence.T).astype(np.float64)
        np.fill_diagonal(product, self.totals)
        return product


def count_orders(samples: Sequence[Sequence[str]], orders: int = MAX_ORDER) -> list[Order]:
    """The orders 1 … `orders` of the tokenised samples."""
    vocabulary: dict[str, int] = {}
    ids = np.array(
        [vocabulary.setdefault(token, len(vocabulary)) for sample in samples for token in sample],
        dtype=np.int64,
    )
    lengths = np.array([len(sample) for sample in samples], dtype=np.int64)
    rows = np.repeat(np.arange(len(samples)), lengths)
    result = [Order(ids, rows, len(samples), len(vocabulary))]
    grams = ids
    for n in range(2, orders + 1):
        # An n-gram is the (n−1)-gram at its start and the token at its end, in the same sample.
        inside = rows[n - 1 :] == rows[: len(rows) - n + 1] if len(rows) >= n else np.zeros(0, bool)
        starts = grams[: len(inside)]
        keys = starts * np.int64(max(len(vocabulary), 1)) + ids[n - 1 :][: len(inside)]
        _, grams = np.unique(keys, return_inverse=True)
        kept, renumbered = np.unique(grams[inside], return_inverse=True)
        result.append(Order(renumbered, rows[: len(inside)][inside], len(samples), len(kept)))
    return result
