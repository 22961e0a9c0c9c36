"""Arms at equal noise budget, what is compared of them, and how much the first tokens decide."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_eval_embednoise.analysis.mechanism import arms, contrast, early, steps
from lm_eval_embednoise.analysis.records import read_runs
from lm_eval_embednoise.cli import main
from lm_eval_embednoise.noise.perturbation import Perturbation
from tests.support.cacheless import dose
from tests.support.synthetic import write_run


def slow_budget(given: dict, tokens: int) -> float:
    """Position by position, from the reference's own formula of the dose."""
    p = Perturbation(**given)
    each = sum(dose(p, position, 1) ** 2 for position in range(1, tokens + 1))
    return each * sum(sigma**2 for sigma in p.sites.values())


@pytest.mark.parametrize("tokens", [2, 7, 24])
def test_schedules_and_layers_spend_one_budget(tokens: int) -> None:
    shapes = arms.schedules(0.3, "embed", tokens)
    places = arms.layers(0.3, [4, 8, 12], tokens)
    assert len(shapes.perturbations) == 9 and len(places.perturbations) == 4
    for made, budget in ((shapes, tokens * 0.09), (places, 3 * tokens * 0.09)):
        for name, given_ in made.perturbations.items():
            assert slow_budget(given_, tokens) == pytest.approx(budget, rel=1e-6), name
            assert arms.spent(given_, tokens) == pytest.approx(slow_budget(given_, tokens))


def test_falling_arms_spend_early_and_rising_ones_late() -> None:
    for name, given_ in arms.schedules(0.3, "embed", 20).perturbations.items():
        early_half = arms.spent(given_, 10) / arms.spent(given_, 20)
        if "falling" in name:
            assert early_half > 0.6, name
        elif "rising" in name:
            assert early_half < 0.4, name
        else:
            assert early_half == pytest.approx(0.5)


def test_bad_values_of_arms_are_named() -> None:
    for make, word in (
        (lambda: arms.schedules(-1, "embed", 9), "--sigma=-1"),
        (lambda: arms.schedules(0.1, "embed", 1), "--tokens=1"),
        (lambda: arms.layers(0.1, [-3], 9), "--blocks=-3"),
        (lambda: arms.offsets(0.1, []), "--blocks names no block"),
        (lambda: arms.freshness(0, 0.8), "--vectors=0"),
    ):
        with pytest.raises(ValueError, match=word):
            make()


def test_every_arm_is_a_method_file_that_can_be_read(tmp_path: Path) -> None:
    from lm_eval_embednoise.engine.sampling import Sampling
    from lm_eval_embednoise.study.method import Method

    sets = [
        *(arms.schedules(0.3, "5", 8), arms.layers(0.3, [1, 2, 3], 8)),
        *(arms.offsets(0.3, [1, 2]), arms.freshness(4, 0.8)),
    ]
    for one in sets:
        assert one.reference in one.perturbations
        for name, content in one.files().items():
            path = tmp_path / f"{name}.yaml"
            path.write_text(yaml.safe_dump(content))
            method = Method.load(str(path))
            assert Perturbation.from_args(method.perturbation).varies
            Sampling.from_gen_kwargs(method.gen_kwargs)


def test_matched_vendi_is_blind_to_length_and_sees_difference() -> None:
    same = [list("abc")] * 4
    longer = [[*"abc", *tail] for tail in ("d", "ee", "fgh", "ijk")]
    different = [list("abc"), list("def"), list("ghi"), list("jkl")]
    found = contrast.matched_vendi({"same": same, "longer": longer, "different": different})
    assert found["same"] == pytest.approx(1) and found["longer"] == pytest.approx(1)
    assert found["different"] == pytest.approx(4)


def test_a_planted_difference_is_found_and_none_where_there_is_none(tmp_path: Path) -> None:
    for name in ("temp-0.8", "temp-1.5"):
        write_run(tmp_path, name, n=30, k=6, families=None)
    first, second = read_runs([tmp_path])
    rows = contrast.contrast([first, second], "temp-0.8")
    tests = next(row["tests"] for row in rows if row["method"] == "temp-1.5")
    assert tests["pass@1"]["difference"]["value"] < 0 and tests["pass@1"]["p_permutation"] < 0.01
    assert tests["vendi_matched"]["difference"]["value"] == pytest.approx(0)  # one text for all
    assert "temp-1.5" in contrast.markdown(rows)
    with pytest.raises(ValueError, match=r"no run of greedy; there are temp-0\.8, temp-1\.5"):
        contrast.contrast([first, second], "greedy")


# ── Early tokens ──────────────────────────────────────────────────────────────────────────────────

problems = st.lists(
    st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=4).map(tuple), st.integers(0, 2)),
    min_size=2,
    max_size=9,
)


@settings(max_examples=150, deadline=None)
@given(samples=problems, length=st.integers(1, 4))
def test_pairs_are_counted_as_the_definition_says(samples: list, length: int) -> None:
    ids, classes = [ids for ids, _ in samples], [c for _, c in samples]
    pairs = list(itertools.combinations(range(len(samples)), 2))
    alike = [(i, j) for i, j in pairs if ids[i][:length] == ids[j][:length]]
    total, left = early.differing(early.Begun(ids, classes), length)
    assert total == pytest.approx(np.mean([classes[i] != classes[j] for i, j in pairs]))
    if alike:
        assert left == pytest.approx(np.mean([classes[i] != classes[j] for i, j in alike]))
    else:
        assert math.isnan(left)
    for (i, j), parted in zip(pairs, early.parting(ids), strict=True):
        if ids[i] == ids[j]:
            assert math.isnan(parted)
        else:
            place = int(parted)
            assert ids[i][:place] == ids[j][:place] and ids[i][: place + 1] != ids[j][: place + 1]


def test_beginnings_of_a_uniform_first_token() -> None:
    ids = [(first, 9) for first in range(8)]
    assert early.beginnings(ids, 1) == (8, pytest.approx(math.log(8)))
    assert early.beginnings([(1, 2), (1, 3)], 1) == (1, 0.0)


@pytest.mark.parametrize("planted", [True, False])
def test_mediation_finds_what_the_first_token_decides(planted: bool) -> None:
    """Classes that are the first token's leave nothing; shuffled ones leave everything."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(40):
        firsts = rng.integers(0, 3, 20)
        classes = firsts if planted else rng.permutation(firsts)
        ids = [(int(first), int(rng.integers(9))) for first in firsts]
        made.append(early.Begun(ids, [int(c) for c in classes]))
    found = early.mediation(made, np.arange(40))
    share = found["share"][1]
    assert found["total"]["value"] == pytest.approx(2 / 3, abs=0.05)
    if planted:
        assert share["value"] == 0
    else:
        assert share["low"] < 1 < share["high"] and share["value"] == pytest.approx(1, abs=0.06)


# ── The commands ──────────────────────────────────────────────────────────────────────────────────


def test_a_uniform_head_and_a_distribution_beside_itself() -> None:
    uniform = torch.zeros(3, 8).log_softmax(-1)
    found = steps.measures(uniform, uniform)
    assert found["entropy"].tolist() == pytest.approx([math.log(8)] * 3)
    assert found["top"].tolist() == pytest.approx([1 / 8] * 3)
    assert found["kl"].tolist() == pytest.approx([0] * 3, abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=2, max_size=6))
def test_entropy_and_divergence_are_scipys(pairs: list[tuple[float, float]]) -> None:
    q, p = (
        torch.tensor(side, dtype=torch.float64).softmax(-1) for side in zip(*pairs, strict=True)
    )
    found = steps.measures(q.log()[None], p.log()[None])
    assert found["entropy"].item() == pytest.approx(scipy.stats.entropy(q), abs=1e-9)
    assert found["kl"].item() == pytest.approx(scipy.stats.entropy(q, p), abs=1e-9)


def rows_of(folder: Path) -> list[dict]:
    return json.loads((folder / "table.json").read_text())["rows"]


def test_freshness_runs_a_study_of_its_arms(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--limit", "2", "-K", "3", "--gen_kwargs", "max_gen_toks=6", "--out", str(tmp_path)]
    assert main(["probe", "freshness", "--vectors", "2", *flags]) == 0
    rows = rows_of(tmp_path / "freshness")
    assert [row["method"] for row in rows] == ["rsp-fixed", "rsp-five", "rsp-fresh"]
    assert {row["n"] for row in rows} == {2}
    assert main(["probe", "freshness", "--vectors", "0", *flags]) == 1
    assert "--vectors=0" in capsys.readouterr().err
    assert main(["probe", "schedule"]) == 1
    assert "--out DIR is needed" in capsys.readouterr().err


def test_early_and_theory_on_the_embedded_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--limit", "2", "--gen_kwargs", "max_gen_toks=5", "--out", str(tmp_path)]
    methods = ["--method", "temp-0.8", "stratified-20"]
    assert main(["probe", "early", *methods, "-K", "4", "--steps", "4", *out]) == 0
    warm, stratified = rows_of(tmp_path / "early")
    assert stratified["beginnings_1"] == 4 and stratified["left_1"] is None  # all begin apart
    assert warm["comparator_0"] == "stratified-20"
    assert stratified["kl_1"] == pytest.approx(0, abs=1e-4)
    assert warm["kl_1"] > 0  # sharper than the clean model's distribution at temperature 1
    arrays = np.load(next((tmp_path / "early" / "arrays").glob("stratified-20@*")))
    assert arrays["rank"][:, 0].tolist() == [0, 1, 2, 3]
    more = ["--layers", "embed,5", "--draws", "2", "--path", "2", "--sigmas", "1e-3,0.5"]
    assert main(["probe", "theory", *more, *out]) == 0
    rows = rows_of(tmp_path / "theory")
    assert [(row["layer"], row["sigma"]) for row in rows][:2] == [("embed", 1e-3), ("embed", 0.5)]
    assert rows[0]["explained"] > 0.95
    for bad, word in ((["--sigmas", "0"], "a dose of 0"), (["--layers", "99"], "layer 99")):
        assert main(["probe", "theory", *more, *out, *bad]) == 1
        assert word in capsys.readouterr().err
