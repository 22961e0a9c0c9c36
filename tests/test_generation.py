"""Generation is a plain string that carries its measurements, through pickling too."""

from __future__ import annotations

import json
import pickle

import pytest

from lm_eval_embednoise import Generation


def test_it_is_a_string() -> None:
    text = Generation("a,b", tokens=3, nll=1.5)
    assert text == "a,b" and text.split(",") == ["a", "b"] and text.index(",") == 1
    assert json.dumps([text]) == '["a,b"]'
    assert hash(text) == hash("a,b")
    assert text.rho is None


def test_measurements_survive_pickling() -> None:
    text = Generation("x", sample_index=2, finish_reason="length", rho=0.1)
    again = pickle.loads(pickle.dumps(text))
    assert again == "x" and again.measurements() == text.measurements()


def test_unknown_measurements_are_refused() -> None:
    with pytest.raises(TypeError, match="temperature"):
        Generation("x", temperature=1)
