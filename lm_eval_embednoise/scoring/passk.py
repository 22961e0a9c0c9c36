"""The pass@k estimator: the chance that at least one of k samples is correct, without bias.

Chen et al., "Evaluating Large Language Models Trained on Code" (2021), equation 1.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 − C(n−c, k)/C(n, k) for n samples of which c are correct.

    Raises:
        ValueError: when k is not between 1 and n, or c not between 0 and n.
    """
    if not 0 <= c <= n:
        raise ValueError(f"pass@k needs 0 <= c <= n, got c={c}, n={n}")
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs at least {k} samples, got n={n}")
    missed = 1.0
    for i in range(n - c + 1, n + 1):
        missed *= 1.0 - k / i if i > k else 0.0
    return 1.0 - missed


def pass_at_every_k(correct: NDArray[np.int64], n: int) -> NDArray[np.float64]:
    """pass@k for every k from 1 to n, of problems with these numbers of correct samples.

    Args:
        correct: correct samples, [problems].
        n: samples of each problem.

    Returns:
        pass@k, [problems, n].
    """
    return np.array([_row(n, int(c)) for c in correct]).reshape(-1, n)


@lru_cache(maxsize=4096)
def _row(n: int, c: int) -> tuple[float, ...]:
    return tuple(pass_at_k(n, c, k) for k in range(1, n + 1))
