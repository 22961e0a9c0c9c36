"""Every family of decoder-only models: what docs/conformance.md promises, held for each by name."""

from __future__ import annotations

import pytest

from lm_eval_embednoise.engine.families import FLAT_MASK, ROWS, Decoding, decoding
from lm_eval_embednoise.noise.model_parts import find_blocks
from tests import conformance
from tests.conformance import NOISE, PROPERTIES, alone_as_in_company, sampled, sigma_zero
from tests.support.families import FAMILIES, tiny


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family: str) -> None:
    row = conformance.row(family)
    assert {name: row[name] for name in PROPERTIES} == dict.fromkeys(PROPERTIES, "yes")


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "mpt"])
def test_padded_decoding_serves_the_others_too(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is the fallback for unknown families is right where both ways are possible."""
    model = tiny(family)
    expected = sampled(model, NOISE, 1)
    monkeypatch.setattr("lm_eval_embednoise.engine.runner.decoding", lambda *args: Decoding.PADDED)
    assert sigma_zero(model) and sampled(model, NOISE, 4) == expected


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gpt_oss"])
def test_rows_refill_as_long_as_none_outgrows_the_window(family: str) -> None:
    model = tiny(family, sliding_window=64)
    assert decoding(model, find_blocks(model), 64) is Decoding.ROWS
    assert sigma_zero(model) and alone_as_in_company(model)


def test_every_family_that_refills_is_examined() -> None:
    named = {family.partition(":")[0] for family in FAMILIES}
    assert named >= ROWS | FLAT_MASK and len(named) >= 30


def test_the_page_is_up_to_date() -> None:
    written = conformance.PAGE.read_text(encoding="utf-8")
    assert written == conformance.page(), "write it anew: python -m tests.conformance"
