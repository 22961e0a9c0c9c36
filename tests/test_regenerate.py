"""One sample from its key: every kind of draw, alone, and the hidden states that go with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.api.instance import Instance

from lm_eval_embednoise import cli
from lm_eval_embednoise.commands.regenerate import regenerate
from lm_eval_embednoise.minicoder import load_problems
from lm_eval_embednoise.models import hf_embednoise
from lm_eval_embednoise.models.hf_embednoise import HFEmbedNoise
from lm_eval_embednoise.noise.perturbation import Perturbation
from lm_eval_embednoise.store.store import Store

GREEDY: dict[str, Any] = {"until": ["\ndef "], "do_sample": False, "max_gen_toks": 8}
WARM = {**GREEDY, "do_sample": True, "temperature": 1.0, "top_p": 0.9}
METHODS = {
    "greedy": (Perturbation(seed=3), GREEDY),
    "noise": (Perturbation(sigma=0.4, seed=3), GREEDY),
    "sites": (Perturbation(depth={"embed": 0.3, "5": 0.2}, positions="all"), GREEDY),
    "temperature": (Perturbation(seed=2), WARM),
    "prefix": (Perturbation(prefix="random:6"), GREEDY),
    "soft": (Perturbation(rsp=3, seed=1), WARM),
    "dummies": (Perturbation(sigma=0.5, positions="dummy:2"), GREEDY),
}


@pytest.fixture(scope="module")
def lm() -> HFEmbedNoise:
    return HFEmbedNoise(device="cpu", batch_size=16)


@pytest.fixture(scope="module")
def store(lm: HFEmbedNoise, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Three samples of two problems by every method."""
    folder = tmp_path_factory.mktemp("regenerate") / "store"
    lm.store = Store(folder, write=True)
    for name, (perturbation, gen_kwargs) in METHODS.items():
        lm.set_perturbation(perturbation, name)
        requests = [
            Instance("generate_until", doc, (doc["prompt"], gen_kwargs), 0, ("minicode", i, 3))
            for i, doc in enumerate(load_problems("minicode")[:2])
        ]
        lm.generate_until([r for r in requests for _ in range(3)], disable_tqdm=True)
    lm.store = None
    return Store(folder)


@pytest.fixture
def loaded(lm: HFEmbedNoise, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The model in memory instead of loading it again; what it would have been loaded with."""
    seen: list[dict[str, Any]] = []

    def load(**arguments: Any) -> HFEmbedNoise:
        seen.append(arguments)
        lm._rows = 1
        return lm

    monkeypatch.setattr(hf_embednoise, "HFEmbedNoise", load)
    return seen


def of(store: Store, method: str) -> list[Any]:
    hashes = {r["settings"] for r in store.runs().values() if r["method"] == method}
    (settings,) = hashes
    return list(store.samples(settings).values())


@pytest.mark.parametrize("method", METHODS)
def test_a_sample_is_made_again_alone(
    store: Store, loaded: list[dict[str, Any]], method: str
) -> None:
    rows = of(store, method)
    assert len(rows) == 6
    for row in rows[::2]:
        made = regenerate(store, row)
        assert made.equals(row) and made.text == row.text
    assert loaded[0] == {"batch_size": 1}


def test_a_difference_is_found_and_placed(store: Store, loaded: list[Any]) -> None:
    import dataclasses

    row = of(store, "noise")[0]
    made = regenerate(store, row)
    other = dataclasses.replace(row, ids=(*row.ids[:3], row.ids[3] + 1, *row.ids[4:]))
    assert not made.equals(other) and "differs" in made.difference(other)
    assert "from token 3 on" in made.difference(other)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_the_command_saves_hidden_states(
    lm: HFEmbedNoise, store: Store, tmp_path: Path, loaded: Any, suffix: str, capsys: Any
) -> None:
    row, path = of(store, "sites")[0], tmp_path / f"states{suffix}"
    command = ["regenerate", row.key[:12], "--store", str(store.folder), "--activations", str(path)]
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    assert row.text in shown and f"--- {row.key}: equal to the stored sample" in shown
    if suffix == ".npz":
        found = dict(np.load(path))
    else:
        from safetensors.numpy import load_file

        found = load_file(path)
    length, prompt = len(found["token_ids"]), int(found["prompt_length"][0])
    assert list(found["token_ids"][prompt:]) == list(row.ids)
    assert {name for name in found if "noise" in name} == {
        f"{site}.{moment}_noise" for site in ("embed", "block.5") for moment in ("pre", "post")
    }
    assert {f"block.{k}" for k in range(24) if k != 5} <= set(found)
    for site in ("embed", "block.5"):
        added = found[f"{site}.post_noise"] - found[f"{site}.pre_noise"]
        assert added.shape == (length, 128)
        assert added.std() == pytest.approx(row.std[site], rel=0.1)
        ratio = np.linalg.norm(added, axis=1) / np.linalg.norm(found[f"{site}.pre_noise"], axis=1)
        # Generation doesn't feed its last token back, so its position isn't in the measured ρ.
        assert ratio[:-1].mean() == pytest.approx(row.rho[site], rel=1e-3)


def test_what_cannot_be_made_again_says_why(
    lm: HFEmbedNoise, store: Store, tmp_path: Path, loaded: Any, capsys: Any, monkeypatch: Any
) -> None:
    folder = ["--store", str(store.folder)]
    assert cli.main(["regenerate", "zz", *folder]) == 1
    assert "no samples in" in capsys.readouterr().err
    assert cli.main(["regenerate", "", *folder]) == 1
    assert f"{7 * 6} samples in" in capsys.readouterr().err
    row = of(store, "noise")[0]
    assert cli.main(["regenerate", row.key, *folder, "--activations", "x.txt"]) == 1
    assert "must end in .npz or .safetensors" in capsys.readouterr().err
    monkeypatch.setattr(lm, "identity", {**(lm.identity or {}), "dtype": "float16"})
    assert cli.main(["regenerate", row.key, *folder]) == 1
    assert "was made with another dtype than what is loaded now" in capsys.readouterr().err
    file = tmp_path / "he.jsonl"
    file.write_text('{"task_id": "a/0", "completion": "x"}\n')
    imported = ["--store", str(tmp_path / "imported")]
    assert cli.main(["generations", "import", str(file), *imported]) == 0
    capsys.readouterr()
    assert cli.main(["regenerate", "", *imported]) == 1
    assert "was imported from he.jsonl" in capsys.readouterr().err
