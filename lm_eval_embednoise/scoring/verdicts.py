"""Verdicts that outlive the process: an interrupted scoring goes on where it stopped.

A verdict is a function of the program, the problem's tests, and the judge: limits, rules, sandbox,
isolation level, Python. All of that is in its key, so nothing has to be cleared by hand: after a
change the old verdicts are not found. Each problem has its own folder, so its verdicts are found
whichever other problems are scored (`--limit`, a subset). Files are only
appended to, one for each process, a line for each verdict as it is made; a line cut short by a
crash is skipped.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import socket
import threading
from dataclasses import fields
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_embednoise import sandbox
from lm_eval_embednoise.problems import hidden_tests, plus_tests
from lm_eval_embednoise.sandbox import Outcome
from lm_eval_embednoise.written import cache_folder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

log = logging.getLogger(f"lm_eval.{__name__}")
VARIABLE = "EMBEDNOISE_VERDICTS"
OFF = "off"
_JUDGED_BY = ("prompt", "entry_point", "test", "tests", "grader", "task_id")
_KEPT = {field.name for field in fields(Outcome)} - {"output", "value"}


def default_folder() -> Path | None:
    """The folder that EMBEDNOISE_VERDICTS names, else one in the user's cache; None when `off`."""
    named = os.environ.get(VARIABLE, "")
    if named == OFF:
        return None
    return Path(named) if named else cache_folder("verdicts")


@lru_cache
def judge_digest(level: str) -> str:
    """Digest of what judges: the code of sandbox and graders, isolation level, Python, numpy."""
    digest = hashlib.blake2b(digest_size=16)
    here = Path(__file__).parent
    sources = [*Path(sandbox.__file__).parent.glob("*.py"), here / "judge.py", here / "compare.py"]
    sources += [Path(str(module.__file__)) for module in (hidden_tests, plus_tests)]
    for path in sorted(sources):
        digest.update(path.read_bytes())
    for text in (level, platform.python_version(), metadata.version("numpy")):
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()


class Verdicts:
    """The verdicts on the programs of one set of problems; safe to use from several threads."""

    def __init__(self, docs: Sequence[Mapping[str, Any]], folder: Path | None) -> None:
        level = sandbox.strongest() if folder else ""
        self._problems = [_digest(judge_digest(level), doc) for doc in docs] if folder else []
        self._known: dict[str, Outcome] = {}
        self._lock = threading.Lock()
        self._folder = folder
        self._begun: set[Path] = set()  # files that this process has written to
        for place in {self._place(problem) for problem in self._problems}:
            if place.is_dir():
                for path in sorted(place.glob("*.jsonl")):
                    self._read(path)

    def __len__(self) -> int:
        return len(self._known)

    def get(self, problem: int, program: str) -> Outcome | None:
        """The outcome of this program, where it was judged before."""
        return self._known.get(self._key(problem, program)) if self._folder else None

    def put(self, problem: int, program: str, outcome: Outcome) -> None:
        """Write a verdict down; it is safe from the end of this process once this returns."""
        if self._folder is None:
            return
        kept = {name: getattr(outcome, name) for name in sorted(_KEPT)}
        line = json.dumps([self._key(problem, program), kept]) + "\n"
        with self._lock:
            if self._folder is not None:
                self._append(self._place(self._problems[problem]), line)

    def _append(self, place: Path, line: str) -> None:
        path = place / f"{socket.gethostname()}-{os.getpid()}.jsonl"
        try:
            place.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                if path not in self._begun and file.tell():
                    file.write("\n")  # another process of that number may have died inside a line
                file.write(line)
            self._begun.add(path)
        except OSError as error:
            log.warning("verdicts are not kept, scoring can't resume: %s", error)
            self._folder = None

    def _place(self, problem: str) -> Path:
        assert self._folder is not None
        return self._folder / problem[:2] / problem

    def _read(self, path: Path) -> None:
        with path.open("rb") as file:
            for line in file:
                try:
                    key, kept = json.loads(line)
                    self._known[key] = Outcome(**kept)
                except (ValueError, TypeError):
                    continue  # cut short

    def _key(self, problem: int, program: str) -> str:
        return _digest(self._problems[problem], program)


def _digest(*parts: str | Mapping[str, Any]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if not isinstance(part, str):
            part = json.dumps({key: part.get(key) for key in _JUDGED_BY}, sort_keys=True)
        digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()
