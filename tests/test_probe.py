"""`embednoise probe`: methods and a task to arrays, table and figures; killed and resumed."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lm_eval_embednoise import cli
from lm_eval_embednoise.analysis.mechanism import attention, geometry, probes, weights
from lm_eval_embednoise.analysis.mechanism.capture import POST, PRE, capture
from lm_eval_embednoise.commands.probe import load_methods
from lm_eval_embednoise.study import session
from lm_eval_embednoise.study.method import StudyError

SHORT = ["--gen_kwargs", "max_gen_toks=6", "--device", "cpu"]
METHODS = ["temp-0.8", "embednoise-0.5", "rsp-4"]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All probes over one store, and the model loaded once."""
    folder = tmp_path_factory.mktemp("probe")
    loaded: dict[bool, Any] = {}
    build = session.build

    def once(model: Any, store: Path | None = None, weights: bool = True) -> Any:
        if not weights:
            return build(model, store, weights)
        return loaded.setdefault(True, build(model, store))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "build", once)
        shared = [*SHORT, "--out", str(folder), "--method", *METHODS]
        few = ["--limit", "2", "-K", "2"]
        assert cli.main(["probe", "geometry", *shared, "-K", "20", "--layers", "embed,3"]) == 0
        assert cli.main(["probe", "attention", *shared, *few, "--layers", "1,5"]) == 0
        assert cli.main(["probe", "trajectories", *shared, *few, "--layers", "2,5"]) == 0
    return folder


def rows(folder: Path) -> list[dict[str, Any]]:
    content = json.loads((folder / "table.json").read_text())
    with (folder / "table.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(content["rows"])
    found: list[dict[str, Any]] = content["rows"]
    return found


def piece(folder: Path, start: str) -> Any:
    (first, *_) = sorted((folder / "arrays").glob(f"{start}*.npz"))
    return np.load(first)


def test_geometry_sees_what_the_methods_do_to_the_prompt(out: Path) -> None:
    arrays = piece(out / "geometry", "embednoise-0.5")
    assert arrays["embed"].shape == arrays["block.3"].shape == (20, 128)
    assert arrays["epsilon_gram"].shape == (20, 20) and arrays["strategy"].shape == (20,)
    assert arrays["embed"].std(0).max() > 0
    calm = piece(out / "geometry", "temp-0.8")
    assert np.ptp(calm["block.3"], axis=0).max() < 1e-4 and "epsilon_gram" not in calm
    found = rows(out / "geometry")
    assert {row["method"] for row in found} == {"embednoise-0.5", "rsp-4"}
    assert {row["place"] for row in found} == {"epsilon", "embed", "block.3"}
    assert (out / "geometry" / "probe-accuracy.svg").stat().st_size > 1000


def test_attention_of_the_clean_model_is_clean(out: Path) -> None:
    folder = out / "attention"
    calm, noisy = (piece(folder, name) for name in ("temp-0.8", "embednoise-0.5"))
    assert np.abs(calm["forced_kl"]).max() < 1e-5 and noisy["forced_kl"].mean() > 1e-3
    np.testing.assert_allclose(calm["free_repetition"], calm["free_repetition_clean"], atol=1e-5)
    known = [row for row in rows(folder) if (row["method"], row["way"]) == ("temp-0.8", "forced")]
    assert known and {row["repetition_change"] for row in known} == {0.0}  # not its rounding
    soft = piece(folder, "rsp-4")
    assert soft["added"] == 4 and soft["added_mass"].shape == (2, 7)
    assert (soft["added_mass"] > 0).all() and (soft["added_mass"] < 1).all()
    assert np.isfinite(soft["free_kl"]).all() and soft["forced_kl"].mean() > 1e-3
    scores = piece(folder, "heads")["scores"]
    assert scores.shape == (24, noisy["forced_kl"].shape[-1]) and (scores >= 0).all()
    assert (folder / "added-mass.png").exists() and (folder / "attention.png").exists()


def test_trajectories_of_greedy_and_noise(out: Path) -> None:
    fit = piece(out / "trajectories", "clean")
    assert fit["axes"].shape == (2, 128, 128)
    np.testing.assert_allclose(fit["axes"][0].T @ fit["axes"][0], np.eye(128), atol=1e-3)
    noisy, calm = (piece(out / "trajectories", name) for name in ("embednoise-0.5", "temp-0.8"))
    assert noisy["paths"].shape == (2, 2, 32, 2) and noisy["spread"].shape == (2, 32)
    assert noisy["spread"][:, 0].min() > 0 and calm["spread"][:, 0].max() < 1e-6
    found = {(row["method"], row["layer"]): row for row in rows(out / "trajectories")}
    row = found["embednoise-0.5", "block.5"]
    assert row["against"] == "temp-0.8" and row["n"] == 2 and 0 < row["outside"] <= 1
    assert found["temp-0.8", "block.5"]["against"] == ""


def test_pieces_are_kept_by_settings_and_made_whole(tmp_path: Path) -> None:
    made: list[str] = []

    def work(name: str) -> Any:
        def make() -> dict[str, np.ndarray]:
            made.append(name)
            if name == "b" and made.count("b") == 1:
                raise KeyboardInterrupt
            return {"x": np.arange(3)}

        return make

    pieces = {name: work(name) for name in "abc"}
    with pytest.raises(KeyboardInterrupt):
        probes.measured(pieces, "s", tmp_path, "probe")
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    found = probes.measured(pieces, "s", tmp_path, "probe")
    assert made == ["a", "b", "b", "c"] and found["a"]["x"].tolist() == [0, 1, 2]
    (tmp_path / "a.npz").write_bytes(b"torn")
    probes.measured(pieces, "s", tmp_path, "probe")
    assert made[4:] == ["a"]
    probes.measured(pieces, "other", tmp_path, "probe")
    assert made[5:] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["geometry", "--layers", "99"], "layer 99 doesn't exist; the model has 24 blocks"),
        (["geometry", "-K", "3"], "-K 3: clusters and probes of a problem need at least 20"),
        (["attention", "--layers", "embed,1"], "attention is in blocks; leave embed out"),
        (["attention", "--induction", "2"], "--induction 2 is not allowed"),
        (["trajectories", "-K", "1"], "-K 1: a spread between samples needs at least 2"),
        (["trajectories", "--steps", "0"], "--steps 0 is not allowed"),
        (["trajectories", "--method", "temp-9"], "no methods file 'temp-9'"),
        (["trajectories", "--method", "greedy", "greedy"], "greedy is given twice"),
        (["trajectories", "--problems", "1,x"], "--problems"),
        (["attention", "--limit", "0"], "--limit=0"),
        (["attention", "--model_args", "sigmaa=1"], "did you mean 'sigma'"),
    ],
)  # fmt: skip
def test_bad_input_is_named_before_weights_are_read(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(session.Session, "__init__", refuse)
    assert cli.main(["probe", *arguments, "--out", str(tmp_path / "out")]) == 1
    assert said in capsys.readouterr().err


def test_a_stored_sample_is_captured_as_it_was_generated(out: Path) -> None:
    """The state that a greedy sample's last logits come from chooses the token that was chosen."""
    from lm_eval_embednoise.study.gather import gather
    from lm_eval_embednoise.study.method import Method
    from lm_eval_embednoise.study.plan import Model, Task

    model = Model("minicoder", model_args={"perplexity": False}, gen_kwargs={"max_gen_toks": 6})
    methods = [Method.load("embednoise-0.5")]
    material = gather(model, [Task("minicode_diverse", 2, 2)], methods, out / "store")
    (arm,) = material.arms
    given = [arm.alone(arm.problems[0], index) for index in range(2)]
    moved: list[Any] = []
    places: Any = {("embed", PRE): moved.append, ("embed", POST): moved.append}
    capture(arm.runner, given, places)
    noise = (moved[1] - moved[0]).flatten(1).numpy()
    products = noise @ noise.T
    drawn = geometry.noise_products(arm.runner, given)
    np.testing.assert_allclose(drawn["epsilon_norm"] ** 2, np.diag(products), rtol=1e-4)
    wanted = products / np.diag(products).mean()
    np.testing.assert_allclose(drawn["epsilon_gram"], wanted, atol=1e-4)
    draws = [draw for problem in arm.problems for draw in problem.draws]
    assert len(draws) == 4 and [p.name for p in arm.problems] == [p.name for p in material.problems]
    for draw in draws:
        seen: list[Any] = []
        at = range(draw.given.prompt_length - 1, draw.given.length - 1)
        logits = capture(arm.runner, [draw.given], {("embed", POST): seen.append}, at=list(at))
        assert logits is not None and logits[0].argmax(-1).tolist() == list(draw.ids)
        assert seen[0].shape[1] == draw.given.length
        assert weights.kept_columns(draw.job) == list(range(draw.given.prompt_length))


def test_methods_are_named_as_in_a_study() -> None:
    names = ["temp-0.8=0.2:0.4", "embednoise-0.5"]
    assert [method.name for method in load_methods(names)] == ["temp-0.2", "temp-0.4", *names[1:]]
    with pytest.raises(StudyError, match=r"temp-0.8 is given twice"):
        load_methods(["temp-0.8", "temp-0.8=0.4:0.8"])
    with pytest.raises(StudyError, match="greedy has no dose"):
        load_methods(["greedy=1"])


def test_repetition_heads_in_other_blocks_are_named(caplog: pytest.LogCaptureFixture) -> None:
    scores = np.zeros((6, 4), dtype=np.float32)
    scores[3, 1] = scores[5, 0] = 0.9
    material: Any = SimpleNamespace(arms=[], clean=SimpleNamespace(blocks=range(6)))
    for layers, named in (("1,2", True), ("1,3", False)):
        caplog.clear()
        args: Any = SimpleNamespace(layers=layers, induction=0.4)
        assert attention.table(material, args, {"heads": {"scores": scores}}) == []
        assert ("blocks 3, 5 have such heads" in caplog.text) == named
