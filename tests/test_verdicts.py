"""An interrupted scoring resumes; a verdict is good as long as what judged it is the same."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from lm_eval_embednoise import sandbox
from lm_eval_embednoise.scoring import filters, verdicts
from lm_eval_embednoise.scoring.filters import CodeRecords
from lm_eval_embednoise.scoring.reduce import code_metrics
from lm_eval_embednoise.scoring.verdicts import Verdicts

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

DOC = {
    "task_id": "t/0",
    "prompt": "def f(x):\n    '''x + 1'''\n",
    "entry_point": "f",
    "test": "def check(c):\n    assert c(1) == 2\n    assert c(2) == 3\n",
}
TEXTS = [f"    return x + {n}\n" for n in range(5)]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The programs that are judged from now on."""
    seen: list[str] = []
    judge = filters.judge

    def watched(run: Any, program: str, doc: Any) -> Any:
        seen.append(program)
        return judge(run, program, doc)

    monkeypatch.setattr(filters, "judge", watched)
    return seen


def test_a_second_scoring_judges_nothing_and_finds_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = counted(monkeypatch)
    score = CodeRecords(k=5, workers=1, verdicts=str(tmp_path))
    first = score.apply([TEXTS], [DOC])
    assert len(seen) == 5
    assert score.apply([TEXTS], [DOC]) == first
    assert len(seen) == 5
    (path,) = tmp_path.rglob("*.jsonl")
    # A crash inside the third line: two verdicts are whole, three programs are judged again.
    path.write_text("\n".join(path.read_text().split("\n")[:3])[:-9])
    assert score.apply([TEXTS], [DOC]) == first
    assert len(seen) == 8
    assert score.apply([TEXTS], [DOC]) == first
    assert len(seen) == 8


def test_other_tests_or_another_judge_find_no_old_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = sandbox.Outcome("passed", compiled=True)
    kept = Verdicts([DOC], tmp_path)
    kept.put(0, "p", outcome)
    assert Verdicts([DOC], tmp_path).get(0, "p") == outcome
    assert Verdicts([DOC], tmp_path).get(0, "q") is None
    assert Verdicts([{**DOC, "test": "def check(c): pass"}], tmp_path).get(0, "p") is None
    monkeypatch.setattr(verdicts, "judge_digest", lambda level: "another")
    assert Verdicts([DOC], tmp_path).get(0, "p") is None


def test_fewer_or_other_problems_find_the_verdicts_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `--limit` and a subset score was judged with all problems, and the other way round."""
    other = {**DOC, "task_id": "t/1", "test": "def check(c):\n    assert c(0) == 0\n"}
    seen = counted(monkeypatch)
    score = CodeRecords(k=2, workers=1, verdicts=str(tmp_path))
    both = score.apply([TEXTS[:2], TEXTS[:2]], [DOC, other])
    assert len(seen) == 4
    assert score.apply([TEXTS[:2]], [other]) == both[1:]
    assert len(seen) == 4


def test_the_isolation_level_is_part_of_the_judge() -> None:
    assert verdicts.judge_digest("namespaces") != verdicts.judge_digest("landlock")


def test_where_verdicts_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert verdicts.default_folder() is None  # the tests' own setting: off
    monkeypatch.setenv(verdicts.VARIABLE, str(tmp_path))
    assert verdicts.default_folder() == tmp_path
    monkeypatch.delenv(verdicts.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert verdicts.default_folder() == tmp_path / "lm-eval-embednoise" / "verdicts"


def test_a_folder_that_cannot_be_written_is_no_reason_to_stop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    made = CodeRecords(k=5, workers=1, verdicts=str(blocked)).apply([TEXTS], [DOC])
    assert [record["passed"] for record in made[0]] == [False, True, False, False, False]
    assert "scoring can't resume" in caplog.text


def test_a_killed_scoring_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Killed without warning while it judges, it keeps every verdict that it had made."""
    script = (
        "import os, sys\n"
        "from lm_eval_embednoise.scoring import filters\n"
        "judge, seen = filters.judge, []\n"
        "def dying(run, program, doc):\n"
        "    seen.append(1)\n"
        "    if len(seen) == 4: os.kill(os.getpid(), 9)\n"
        "    return judge(run, program, doc)\n"
        "filters.judge = dying\n"
        f"filters.CodeRecords(k=5, workers=1, verdicts={str(tmp_path)!r})"
        f".apply([{TEXTS!r}], [{DOC!r}])\n"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9
    lines = [line for p in tmp_path.rglob("*.jsonl") for line in p.read_text().splitlines()]
    assert len([json.loads(line) for line in lines]) == 3
    kept = Verdicts([DOC], tmp_path)
    assert len(kept) == 3
    assert kept.get(0, DOC["prompt"] + TEXTS[1]).verdict == "passed"  # type: ignore[union-attr]


def test_behaviours_are_classes_of_answers_not_of_texts() -> None:
    texts = [
        "    return x + 1\n",
        "    return 1 + x\n",  # the same answers: the same behaviour
        "    return x\n",
        "    return x * 1\n",  # wrong in the same way
        "    return x + 3\n",  # wrong in another way
        "    return 0 / 0\n",
        "    return 1 // 0\n",  # raises the same error
        "    return x +\n",  # does not compile: no behaviour
    ]
    records = CodeRecords(k=8, workers=1).apply([texts], [DOC])
    metrics = code_metrics(DOC, records)
    assert metrics["behaviours"] == 4.0
    assert metrics["unique_ast"] == 7.0
