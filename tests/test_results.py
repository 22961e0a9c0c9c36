"""Published results: what each study's folder holds, and how large it may be."""

from __future__ import annotations

import json
import lzma
import tarfile
from pathlib import Path

import pytest

from lm_eval_embednoise.analysis import schema
from lm_eval_embednoise.analysis.mechanism import section
from lm_eval_embednoise.store.store import Store

RESULTS = Path(__file__).parents[1] / "docs" / "results"
PROBES = RESULTS / "mechanism"
STUDIES = sorted(path for path in RESULTS.iterdir() if path.is_dir() and path != PROBES)


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_a_study_is_small_and_complete(study: Path) -> None:
    files = [path for path in study.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 1.5e6
    assert 1 <= sum(path.suffix in (".png", ".svg") for path in files) <= 6
    assert (study / "comparison.md").is_file()
    (comparison,) = study.glob("comparison.json*")
    opened = lzma.open if comparison.suffix == ".xz" else open
    with opened(comparison, "rt", encoding="utf-8") as file:
        content = json.load(file)
    schema.validate(content)
    assert len(content["leaderboard"]) > 1 and content["pairs"]
    assert f"## {study.name}" in (RESULTS / "README.md").read_text(encoding="utf-8")


def test_the_probes_results_are_small_and_can_be_shown() -> None:
    assert sum(path.stat().st_size for path in PROBES.rglob("*") if path.is_file()) <= 1.5e6
    for part in section.read(PROBES):
        assert part.table[1] and f"## {part.name}" in (PROBES / "README.md").read_text("utf-8")


def test_the_published_samples_are_a_store(tmp_path: Path) -> None:
    with tarfile.open(RESULTS / "real" / "samples.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    store = Store(tmp_path / "store")
    assert sorted(store.counts().values()) == [50] * 5
    store.close()
