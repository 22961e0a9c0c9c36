"""The probes' quantities: closed forms, oracles, planted effects, and nothing under shuffling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.metrics import mutual_info_score

from lm_eval_embednoise.analysis.mechanism import clusters, geometry, linear, spread
from lm_eval_embednoise.analysis.mechanism import weights as of
from lm_eval_embednoise.engine.jobs import Job


def causal(seed: int, pos: int = 9, heads: int = 3) -> torch.Tensor:
    scores = torch.randn(heads, pos, pos, generator=torch.Generator().manual_seed(seed))
    return scores.masked_fill(torch.ones(pos, pos).triu(1).bool(), -torch.inf).softmax(-1)


def test_entropy_and_divergence_by_their_definitions() -> None:
    uniform = torch.full((2, 7), 1 / 7)
    torch.testing.assert_close(of.entropy(uniform), torch.full((2,), math.log(7)))
    one, other = causal(0), causal(1)
    assert float(of.divergence(one, one).max()) < 1e-6
    for head in range(3):
        for query in range(9):
            p, q = one[head, query, : query + 1].double(), other[head, query, : query + 1].double()
            wanted = sum(float(a) * math.log(a / b) for a, b in zip(p, q, strict=True))
            assert float(of.divergence(one, other)[head, query]) == pytest.approx(wanted, abs=1e-5)


@given(st.integers(1, 20), st.integers(1, 30))
@settings(max_examples=30, deadline=None)
def test_a_head_of_constant_score_dilutes_as_l_over_l_plus_t(length: int, t: int) -> None:
    constant = torch.zeros(length + t).softmax(-1)
    assert float(of.mass(constant, 0, length)) == pytest.approx(length / (length + t), rel=1e-5)


def test_induction_finds_a_planted_head_and_no_other() -> None:
    length, offset = 8, 1
    weights = causal(3, offset + 2 * length, heads=4)
    for query in range(offset + length, offset + 2 * length):
        weights[2, query] = 0.1 / (query + 1)
        weights[2, query, query - length + 1] += 0.9
    scores = of.induction_scores(weights, length, offset)
    assert scores.argmax() == 2 and scores[2] > 0.89
    assert max(float(scores[head]) for head in (0, 1, 3)) < 0.3


@given(st.lists(st.integers(0, 3), min_size=2, max_size=12), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_mass_on_what_followed_an_earlier_same_token(ids: list[int], start: int) -> None:
    weights, found = causal(7, len(ids)), []
    for position in range(start, len(ids)):
        keys = [k + 1 for k in range(position) if ids[k] == ids[position]]
        if keys:
            found.append(sum(float(weights[1, position, key]) for key in keys))
    got = float(of.repetition_mass(weights, of.repetition_targets(ids, start))[1])
    assert got == pytest.approx(np.mean(found), abs=1e-5) if found else math.isnan(got)


def test_columns_of_the_clean_prompt() -> None:
    assert of.kept_columns(Job((4, 5, 6), "p", (0,))) == [0, 1, 2]
    soft = Job((4, 0, 0, 5, 6), "p", (0,), clean_ids=(4, 5, 6), soft_start=1)
    assert of.kept_columns(soft) == [0, 3, 4]
    zero = Job((4, 0, 0, 0, 6), "p", (0,), clean_ids=(4, 0, 6), soft_start=1)
    assert of.kept_columns(zero) == [0, 3, 4]
    assert of.kept_columns(Job((4, 5, 9, 9), "p", (0,), clean_ids=(4, 5))) == [0, 1]
    assert of.kept_columns(Job((1, 8, 8, 5), "p", (0,), clean_ids=(1, 5))) == [0, 3]
    assert of.kept_columns(Job((1, 8, 7, 6), "p", (0,), clean_ids=(1, 5))) is None
    weights = causal(2, 5)[:, -1]
    kept = of.on_columns(weights, torch.tensor([0, 3, 4]))
    torch.testing.assert_close(kept.sum(-1), torch.ones(3))
    torch.testing.assert_close(kept[:, 0] / kept[:, 1], weights[:, 0] / weights[:, 3])


def test_principal_axes_of_a_known_plane() -> None:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(6, 2)))[0]
    points = rng.normal(size=(500, 2)) * [3.0, 1.0] @ basis.T + 5.0
    fitted = spread.Covariance(6)
    for part in np.array_split(points, 7):
        fitted.add(part)
    axes, variances = fitted.axes()
    np.testing.assert_allclose(fitted.matrix, np.cov(points.T, bias=True), atol=1e-9)
    assert variances[2:].max() < 1e-9 and spread.needed(variances, 1.0) == 2
    np.testing.assert_allclose(axes[:, :2] @ axes[:, :2].T, basis @ basis.T, atol=1e-6)
    away = points[:3] + np.linalg.qr(np.c_[basis, rng.normal(size=6)])[0][:, 2] * 2.0
    shares = spread.outside(away, fitted.mean, axes[:, :2])
    wanted = 4 / np.square(away - fitted.mean).sum(-1)
    np.testing.assert_allclose(shares, wanted, atol=1e-9)
    assert spread.outside(points[:3], fitted.mean, axes[:, :2]).max() < 1e-9


def test_spread_by_brute_force_with_ended_samples() -> None:
    states = np.random.default_rng(1).normal(size=(4, 3, 5))
    states[0, 2] = states[1, 2] = states[2, 2] = np.nan
    found = spread.spread(states)
    for step in range(2):
        mean = states[:, step].mean(0)
        wanted = np.mean([np.sum((row - mean) ** 2) for row in states[:, step]])
        assert found[step] == pytest.approx(wanted)
    assert np.isnan(found[2])


def planted(seed: int, n: int = 150, dim: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Vectors in three clusters, and the clusters."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    return rng.normal(size=(n, dim)) + 8 * np.eye(dim)[labels], labels


def test_planted_clusters_are_found_and_agree() -> None:
    vectors, labels = planted(0)
    found, silhouette = clusters.k_means(clusters.reduced(vectors.astype(np.float32)))
    assert len(set(found)) == 3 and silhouette > 0.5
    ami, p = clusters.agreement(found, labels, permutations=99)
    assert ami == pytest.approx(1.0) and p == 0.01
    dense = clusters.densest(clusters.reduced(vectors.astype(np.float32)))
    assert clusters.agreement(dense, labels, permutations=19)[0] > 0.8
    assert np.isnan(clusters.agreement(found, np.zeros_like(labels))).all()
    with pytest.raises(ValueError, match="2 samples can't be put into 2 clusters"):
        clusters.k_means(vectors[:2].astype(np.float32))


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_information_is_sklearns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = rng.integers(-1, 3, 40), rng.integers(0, 5, 40)
    wanted = mutual_info_score(one, other)
    assert clusters.information(one, other) == pytest.approx(wanted, abs=1e-9)


def test_shuffled_labels_give_even_p_values() -> None:
    vectors, labels = planted(1)
    rng = np.random.default_rng(5)
    products = linear.gram(vectors)
    probes, partitions = [], []
    for seed in range(40):
        shuffled = rng.permutation(labels)
        probes.append(linear.predict(products, shuffled, seed=seed, permutations=39).p)
        partitions.append(clusters.agreement(labels, shuffled, seed, permutations=39)[1])
    for found in (probes, partitions):
        assert 0.3 < np.mean(found) < 0.7
        assert np.mean(np.array(found) <= 0.1) <= 0.25


def test_the_probe_is_ridge_regression_fold_by_fold() -> None:
    """Against sklearn's primal ridge on the same folds."""
    vectors, labels = planted(2, n=60)
    vectors += np.random.default_rng(3).normal(size=vectors.shape) * 6
    products = linear.gram(vectors)
    scaled = (vectors - vectors.mean(0)) / vectors.std(0) / np.sqrt(vectors.shape[1])
    target = np.eye(3)[labels] / np.bincount(labels) * len(labels) - 1
    right = np.zeros(60)
    for held in np.array_split(np.random.default_rng(0).permutation(60), linear.FOLDS):
        others = np.setdiff1d(np.arange(60), held)
        alpha = np.trace(products[np.ix_(others, others)]) / len(others)
        fit = Ridge(alpha, fit_intercept=False).fit(scaled[others], target[others])
        right[held] = fit.predict(scaled[held]).argmax(1) == labels[held]
    wanted = np.mean([right[labels == c].mean() for c in range(3)])
    assert linear.predict(products, labels, permutations=1).accuracy == pytest.approx(wanted)


def test_labels_made_from_epsilon_are_predicted_and_shuffled_ones_are_not() -> None:
    rng = np.random.default_rng(8)
    epsilon = rng.normal(size=(300, 40))
    labels = (epsilon @ rng.normal(size=40) > 0.4).astype(np.int64)
    told = linear.predict(linear.gram(epsilon), labels, permutations=99)
    assert told.accuracy > 0.8 and told.p == 0.01 and told.chance == 0.5
    drawn_again = rng.normal(size=(300, 40))  # the noise of other seeds
    blind = linear.predict(linear.gram(drawn_again), labels, permutations=99)
    assert abs(blind.accuracy - 0.5) < 0.12 and blind.p > 0.02


def test_rare_and_unknown_classes_are_left_out() -> None:
    labels = np.array([0] * 10 + [1] * 10 + [2] * 4 + [-1] * 6)
    vectors = np.random.default_rng(0).normal(size=(30, 5))
    told = linear.predict(linear.gram(vectors), labels, permutations=9)
    assert (told.n, told.classes) == (20, 2)
    alone = linear.predict(linear.gram(vectors), np.zeros(30, dtype=np.int64), permutations=9)
    assert math.isnan(alone.accuracy) and alone.classes == 1


def test_a_place_is_examined_as_planted_and_shuffled_there_is_nothing() -> None:
    """A layer whose state is the class, a layer of noise, and ε in the place of both."""
    rng = np.random.default_rng(4)
    vectors, labels = planted(4, n=120)
    noise = rng.normal(size=(120, 12)).astype(np.float32)
    arrays: dict[str, Any] = {"block.0": noise, "block.1": vectors.astype(np.float32)}
    arrays["block.2"] = np.ones((120, 12), dtype=np.float32)
    arrays |= {"strategy": labels, "tree": rng.permutation(labels), "behaviour": labels * 0}
    arrays["epsilon_gram"] = noise @ noise.T / 12
    (found, shuffled, single) = geometry.examined(arrays, "block.1")
    assert found["accuracy"] > 0.95 and found["probe_p"] < 0.01
    assert found["k_means"] == 3 and found["k_means_ami"] > 0.9 and found["k_means_p"] < 0.01
    assert shuffled["probe_p"] > 0.02 and abs(shuffled["k_means_ami"]) < 0.1
    assert math.isnan(single["accuracy"])
    for place in ("block.0", geometry.EPSILON):
        (blind, *_) = geometry.examined(arrays, place)
        assert blind["probe_p"] > 0.02 and blind["k_means_p"] > 0.02
    assert geometry.examined(arrays, "block.2") == []


def test_classes_of_records() -> None:
    code = "def f(x):\n    return [y for y in x]\n"
    good = {"code": code, "compiled": True, "ast": "a", "verdict": "passed", "detail": ""}
    records: list[Any] = [
        {**good, "behaviour": "b"},
        {**good, "behaviour": "c"},
        {**good, "compiled": False, "behaviour": None},
    ]
    assert geometry.labelled("strategy", records).tolist() == [0, 0, -1]
    assert geometry.labelled("tree", records).tolist() == [0, 0, -1]
    assert geometry.labelled("behaviour", records).tolist() == [0, 1, -1]
    maths: list[Any] = [{"way": ["2+2"], "answer": "4"}, {"way": [], "answer": None}]
    assert geometry.labelled("tree", maths).tolist() == [0, 1]
    assert geometry.labelled("behaviour", maths).tolist() == [0, -1]
