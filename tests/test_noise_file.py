"""The file of `noise=PATH`: what it can hold, and what the refusals say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lm_eval_embednoise.noise.perturbation import Perturbation

EVERYTHING = """
depth: {embed: 0.1, 5: 0.3, block.7: 0}
sigma_unit: norm
sigma_reference: table
scope: sequence
positions: all
schedule: cosine
anneal_tokens: 12
rsp: 4
rsp_slot: after-bos
rsp_fit: per-dimension
rsp_scale: 0.5
prefix: random:6
"""


def write(folder: Path, text: str) -> str:
    path = folder / "noise.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_file_is_the_arguments(tmp_path: Path) -> None:
    path = write(tmp_path, EVERYTHING)
    expected = Perturbation(
        depth={"embed": 0.1, "5": 0.3}, sigma_unit="norm", sigma_reference="table",
        scope="sequence", positions="all", schedule="cosine", anneal_tokens=12, rsp=4,
        rsp_slot="after-bos", rsp_fit="per-dimension", rsp_scale=0.5, prefix="random:6", seed=3,
    )  # fmt: skip
    got = Perturbation.from_args({"noise": path, "seed": 3})
    assert got.sites == {"embed": 0.1, "block.5": 0.3}
    assert got.canonical() == expected.canonical()


def test_direct_arguments_complete_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "positions: dummy:3\ndummy_token: pad\n")
    got = Perturbation.from_args({"noise": path, "sigma": 0.1, "positions": "dummy:3"})
    assert got == Perturbation(sigma=0.1, positions="dummy:3", dummy_token="pad")


@pytest.mark.parametrize(
    ("text", "direct", "words"),
    [
        ("sigm: 1", {}, ["unknown argument 'sigm'", "did you mean 'sigma'"]),
        ("noise: other.yaml", {}, ["unknown argument 'noise'"]),
        ("sigma: [1, 2]", {}, ["sigma=[1, 2]", "not a number"]),
        ("sigma: yes", {}, ["sigma=True", "not a number"]),
        ("sigma:", {}, ["sigma=None", "not a number"]),
        ("positions: {first: 3}", {}, ["positions=", "first:N"]),
        ("depth: {five: 1}", {}, ["'five'", "is not a site"]),
        ("sigma: 0.1", {"sigma": 0.2}, ["sigma=0.1", "contradicts", "sigma=0.2"]),
        ("depth: {5: 0.1}", {"depth": 5}, ["depth=", "contradicts", "depth=5"]),
        ("depth: {5: 0.1}", {"sigma": 0.2}, ["sigma=0.2", "contradicts", "leave sigma out"]),
        ("sigma: 0.1\nsigma: 0.2", {}, ["'sigma' stands twice", "line 2"]),
        ("sigma: [", {}, ["is not YAML", "line"]),
        ("- sigma", {}, ["must hold a mapping", "list"]),
        ("", {}, ["must hold a mapping", "NoneType"]),
    ],
)
def test_refusals_name_the_file_and_the_value(
    tmp_path: Path, text: str, direct: dict, words: list[str]
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=re.escape(path)) as error:
        Perturbation.from_args({**direct, "noise": path})
    message = str(error.value)
    for word in words:
        assert word in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("path", "words"),
    [("nowhere.yaml", "No such file"), (".", "directory"), (5, "not the path")],
)
def test_a_file_that_cannot_be_read(path: object, words: str) -> None:
    with pytest.raises(ValueError, match=rf"noise={path}.*{words}"):
        Perturbation.from_args({"noise": path})


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ValueError, match="is not YAML"):
        Perturbation.from_args({"noise": str(tmp_path / "weights.bin")})
