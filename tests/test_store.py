"""The store's folder and keys: what is refused, full and read-only disks, equal keys, merging."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file

from lm_eval_embednoise.store import fingerprint, segments
from lm_eval_embednoise.store.store import Document, Prompt, Store, Stored, digest

SETTINGS = {"model": "m"}
ROW = Stored(digest(SETTINGS), Prompt((1, 2)).hash, "p", 0, "text", (5, 6), 2, "length")


def rows(count: int, **changes: Any) -> list[Stored]:
    return [dataclasses.replace(ROW, sample=i, **changes) for i in range(count)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"notes.txt": "x"}, ["holds other files and is no generation store", "empty or a new"]),
        ({"store.json": "{}"}, ["store.json is not this program's"]),
        ({"store.json": "nonsense"}, ["store.json is not this program's"]),
        (
            {"store.json": '{"format": "embednoise-generations", "version": 7}'},
            ["version 7; this program reads", "version 1", "or name another folder"],
        ),
        ({"store.json": '{"format": "other", "version": 1}'}, ["says format 'other'"]),
    ],
)
@pytest.mark.parametrize("write", [True, False])
def test_what_is_no_store_is_refused(
    tmp_path: Path, content: dict[str, str], words: list[str], write: bool
) -> None:
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))) as error:
        Store(tmp_path, write=write)
    for word in words:
        assert word in str(error.value)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == content


def test_a_file_or_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="this is a file"):
        Store(tmp_path / "file", write=True)
    with pytest.raises(ValueError, match="does not exist and is no generation store"):
        Store(tmp_path / "nothing")
    with pytest.raises(segments.StoreError, match="name a folder that can be written to"):
        Store(tmp_path / "file" / "below", write=True)


def test_the_model_is_not_loaded_for_a_bad_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval_embednoise.models.hf_embednoise import HFEmbedNoise

    monkeypatch.setattr(
        "lm_eval.models.huggingface.HFLM.__init__", lambda *a, **k: pytest.fail("loaded")
    )
    (tmp_path / "x").write_text("")
    with pytest.raises(ValueError, match=f"store={tmp_path} holds other files"):
        HFEmbedNoise(store=tmp_path)
    with pytest.raises(ValueError, match="did you mean 'store'"):
        HFEmbedNoise(stor=tmp_path)
    with pytest.raises(ValueError, match="sigma=-1"):
        HFEmbedNoise(sigma=-1, store=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_folder_without_permission_is_refused() -> None:
    """As an ordinary user for a moment, where the tests run as root: root may write everywhere."""
    was = os.geteuid()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "store"
        Store(folder, write=True)
        folder.chmod(0o555)
        Path(temporary).chmod(0o755)
        try:
            if was == 0:
                os.seteuid(65534)
            with pytest.raises(segments.StoreError, match=r"Permission denied; name a folder that"):
                Store(folder, write=True)
            assert Store(folder).counts() == {}
        finally:
            os.seteuid(was)
            folder.chmod(0o755)


def test_a_full_disk_is_seen_at_once_and_in_the_middle(tmp_path: Path) -> None:
    """A real file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a tmpfs can't be mounted here; test_store_resume has the RLIMIT_FSIZE test")
    try:
        store = Store(disk / "store", write=True)
        kept = 0

        def fill() -> None:
            nonlocal kept
            for row in rows(1000, text="x" * 2000):
                store.append([row], settings=SETTINGS)
                kept += 1

        with pytest.raises(segments.StoreError, match=f"store {disk / 'store'}: .*full; make room"):
            fill()
        with pytest.raises(segments.StoreError, match=r"No space left.*on a disk with room"):
            Store(disk / "store", write=True)
        assert kept > 5
        assert Store(disk / "store").counts() == {ROW.settings: kept}
        store.close()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    odd = Stored(
        ROW.settings, Prompt((3,)).hash, None, 4, 'é "\x00\n\ud800 \U0001f600', (), 0, "end_token",
        1.25, 0, {"embed": 0.1}, {"embed": 0.02}, 0.5, "r",
    )  # fmt: skip
    document = Document("task", "hash", 3, "a/3", odd.prompt, None, fields={"entry_point": "f"})
    store = Store(tmp_path, write=True)
    store.append(
        [odd], settings=SETTINGS, run=("r", {"a": 1}), prompts=[Prompt((3,), "t")],
        documents=[document],
    )  # fmt: skip
    for _ in range(2):
        assert Store(tmp_path).samples(ROW.settings) == {odd.key: odd}
        assert Store(tmp_path).documents(ROW.settings) == [document]
        assert Store(tmp_path).prompts() == {odd.prompt: Prompt((3,), "t")}
        assert Store(tmp_path).runs() == {"r": {"a": 1}}
        assert Store(tmp_path).find(odd.key[:6]) == odd
        store.close()


def test_segments_turn_over_and_are_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest row of a key counts; a score may stand in another segment."""
    monkeypatch.setattr(segments, "ROWS_A_SEGMENT", 4)
    first, second = Store(tmp_path, write=True), Store(tmp_path, write=True)
    for row in rows(10):
        first.append([row], settings=SETTINGS)
    second.append(rows(12, text="later"), settings=SETTINGS)
    second.add_nlls(rows(2, nll=1.5, nll_tokens=2))
    assert len(segments.segment_paths(tmp_path)) == 3 + 2
    merged = sorted(Store(tmp_path).samples(ROW.settings).values(), key=lambda row: row.sample)
    assert [row.text for row in merged] == ["text"] * 10 + ["later"] * 2
    assert [row.nll for row in merged] == [1.5] * 2 + [None] * 10
    first.close()
    second.close()
    assert not list(tmp_path.glob("*-wal"))
    assert list(Store(tmp_path).samples(ROW.settings)) == sorted(row.key for row in rows(12))


def test_a_transaction_is_whole_or_not_there(tmp_path: Path) -> None:
    store = Store(tmp_path, write=True)

    def breaking() -> Any:
        yield from rows(3)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.append(breaking(), settings=SETTINGS)
    assert Store(tmp_path).counts() == {}
    store.append(rows(3), settings=SETTINGS)
    assert Store(tmp_path).counts() == {ROW.settings: 3}
    store.close()


def test_every_part_of_a_key_counts() -> None:
    other = {
        "settings": digest({"model": "n"}), "prompt": Prompt((1, 3)).hash, "problem": "q",
        "sample": 1,
    }  # fmt: skip
    keys = {dataclasses.replace(ROW, **{name: value}).key for name, value in other.items()}
    assert len(keys | {ROW.key}) == 5
    beside = dataclasses.replace(ROW, text="other", seconds=3.0, run="r", nll=2.0)
    assert beside.key == ROW.key == digest([ROW.settings, ROW.prompt, "p", 0])
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


def test_a_fingerprint_sees_weights_and_not_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    for limit in (fingerprint.WHOLE, 1000):  # read whole, and by blocks of every tensor
        monkeypatch.setattr(fingerprint, "WHOLE", limit)
        folder = tmp_path / f"model-{limit}"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        tensors = {name: np.zeros((64, 1024), dtype=np.float32) for name in "abc"}
        save_file(tensors, folder / "model.safetensors")
        first = fingerprint.of_folder(folder)
        shutil.copytree(folder, tmp_path / f"copy-{limit}")
        (tmp_path / f"copy-{limit}" / "README.md").write_text("hello")
        assert fingerprint.of_folder(tmp_path / f"copy-{limit}") == first
        seen = {first}
        for name in "abc":
            changed = {**tensors, name: tensors[name] + 1}
            save_file(changed, folder / "model.safetensors")
            seen.add(fingerprint.of_folder(folder))
        save_file(tensors, folder / "model.safetensors")
        assert fingerprint.of_folder(folder) == first
        (folder / "config.json").write_text(json.dumps({"rope": 1}))
        seen.add(fingerprint.of_folder(folder))
        assert len(seen) == 5
    with pytest.raises(ValueError, match="holds no weights"):
        fingerprint.of_folder(tmp_path)


def test_a_tokenizer_has_one_fingerprint_whatever_was_asked_of_it() -> None:
    from transformers import AutoTokenizer

    from lm_eval_embednoise.minicoder import MODEL_DIR

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    first = fingerprint.of_tokenizer(tokenizer)
    tokenizer(["a", "b c d"], padding=True, truncation=True, max_length=2)
    assert fingerprint.of_tokenizer(tokenizer) == first
    tokenizer.add_tokens(["<new>"])
    assert fingerprint.of_tokenizer(tokenizer) != first
