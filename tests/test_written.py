"""Files and folders appear whole or not at all; one cache folder for every kind of file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lm_eval_embednoise.kernels import build
from lm_eval_embednoise.scoring import verdicts
from lm_eval_embednoise.written import cache_folder, whole, write_text

if TYPE_CHECKING:
    from pathlib import Path


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    with whole(target) as partial:
        partial.write_text("half")
        assert not target.exists()
        partial.write_text("whole")
    assert target.read_text() == "whole"
    write_text(target, "ε")
    assert target.read_bytes() == "ε".encode()
    assert [path.name for path in target.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: type[BaseException]
) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def interrupted() -> None:
        with whole(target) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(error):
        interrupted()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_replaces_a_filled_one_or_leaves_it(tmp_path: Path) -> None:
    target = tmp_path / "cell"
    target.mkdir()
    (target / "old").write_text("")

    def write(fails: bool) -> None:
        with whole(target) as partial:
            (partial / "inner").mkdir(parents=True)
            (partial / "inner" / "new").write_text("")
            if fails:
                raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write(fails=True)
    assert [path.name for path in target.iterdir()] == ["old"]
    write(fails=False)
    assert [path.name for path in target.rglob("*")] == ["inner", "new"]
    assert list(tmp_path.iterdir()) == [target]


def test_kernels_and_verdicts_share_a_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(verdicts.VARIABLE, raising=False)
    assert verdicts.default_folder() == cache_folder("verdicts")
    compiler = build.find_compiler()
    if compiler is not None:
        made = build._compiled("draws", compiler)
        assert made.parent == cache_folder("kernels")
    assert cache_folder("kernels").parent == tmp_path / "lm-eval-embednoise"
