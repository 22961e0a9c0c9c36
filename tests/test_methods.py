"""Packaged method files: each can be run, and says what its paper claims of our metrics."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lm_eval_embednoise.engine.sampling import Sampling
from lm_eval_embednoise.noise.perturbation import Perturbation
from lm_eval_embednoise.scoring.metrics import METRICS

FILES = sorted((Path(__file__).parents[1] / "model_configs" / "methods").glob("*.yaml"))
NAMES = {path.stem for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_method_can_be_built(path: Path) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    Perturbation.from_args(content["model_args"])
    Sampling.from_gen_kwargs(content["gen_kwargs"])
    about = content.get("metadata", {})
    assert set(about) <= {"source", "claim"}
    claim = about.get("claim")
    if claim:
        assert about["source"]
        assert set(claim) == {"metric", "sign", "against"}
        assert claim["metric"] in METRICS and claim["sign"] in ("+", "-", "0")
        assert claim["against"] in NAMES - {path.stem}
