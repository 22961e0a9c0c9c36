"""A fixed stretch of the differential test: engine against the pass without a cache.

`python -m tests.differential --minutes N` runs on, over cases of any seed.
"""

from __future__ import annotations

import pytest

from tests.differential import Result, draw, run_case

CASES, PARTS = 48, 8
SEED = 0


@pytest.mark.parametrize("part", range(PARTS))
def test_every_sample_is_the_references(part: int) -> None:
    result = Result()
    for number in range(part, CASES, PARTS):
        assert run_case(SEED, number, result) == [], f"case {number}: {draw(SEED, number)}"
    counts = result.counts
    assert counts["tokens"] > 100 and counts["log-likelihoods"] > 10  # something was compared
    assert counts["near ties"] <= 0.02 * counts["tokens"]


@pytest.mark.parametrize(("seed", "number"), [(11, 310), (11, 377), (11, 410)])
def test_cases_that_found_a_fault(seed: int, number: int) -> None:
    """Exact scoring padded texts beyond the model's positions (310, 410); noise made NaN (377)."""
    assert run_case(seed, number, Result()) == []
