"""The harness's filters: the K strings of every problem become K records.

A filter runs once over all documents of a task, so this is the one place where judging can be
parallel; process_results afterwards only reduces. Equal programs of a problem are judged once, and
verdicts are kept, so a scoring that was interrupted goes on when the same command is run again.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.api.filter import Filter

from lm_eval_embednoise.sandbox import Outcome, map_items, strongest

from .extract import Taken, programs_of
from .judge import Candidate, Run, judge
from .maths import form_of, target_of
from .records import Record, code_record, math_records, pad
from .verdicts import OFF, Verdicts, default_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

log = logging.getLogger(f"lm_eval.{__name__}")
_SECONDS_BETWEEN_LINES = 30.0  # of progress, where no bar is shown


def _checked(k: int) -> int:
    if not isinstance(k, int) or k < 1:
        raise ValueError(f"k, the number of samples of a problem, must be at least 1, not {k!r}")
    return k


class CodeRecords(Filter):
    """Judge the programs of all problems in the sandbox."""

    def __init__(self, k: int, workers: int | None = None, verdicts: str | None = None) -> None:
        """`verdicts`: the folder to keep verdicts in, or "off"; else see `default_folder`."""
        self.k = _checked(k)
        self.workers = workers
        self.verdicts = verdicts

    def apply(self, resps: Iterable[Sequence[str]], docs: Sequence[Any]) -> list[list[Record]]:
        """[problems][k] records, from [problems][any] strings."""
        samples = [pad(texts, self.k) for texts in resps]
        there = [
            (problem, index)
            for problem, texts in enumerate(samples)
            for index, text in enumerate(texts)
            if text is not None
        ]
        pairs = [(_there(samples[problem][index]), docs[problem]) for problem, index in there]
        taken = dict(zip(there, programs_of(pairs, self.workers), strict=True))
        _say_rules(taken.values())
        candidates = {Candidate(p, one.program): None for (p, _), one in taken.items()}
        judged = self._judge(list(candidates), docs)
        records = []
        for problem, texts in enumerate(samples):
            row = []
            for index, text in enumerate(texts):
                one = taken.get((problem, index), Taken("", ""))
                outcome = judged.get(Candidate(problem, one.program)) if text is not None else None
                row.append(code_record(text, index, one.program, outcome, one.rule))
            records.append(row)
        return records

    def _judge(
        self, candidates: Sequence[Candidate], docs: Sequence[Any]
    ) -> dict[Candidate, Outcome]:
        if self.verdicts is None:
            folder = default_folder()
        else:
            folder = None if self.verdicts == OFF else Path(self.verdicts)
        kept = Verdicts(docs, folder)

        known = {c: kept.get(c.problem, c.program) for c in candidates}
        missing = [candidate for candidate, outcome in known.items() if outcome is None]
        log.info(
            "judging %d programs of %d problems in the sandbox (isolation level %s); %d were "
            "judged before",
            *(len(missing), len(docs), strongest(), len(candidates) - len(missing)),
        )
        shown = sys.stderr.isatty()
        progress = _Progress(len(missing), shown)

        def look(run: Run, candidate: Candidate) -> Outcome:
            outcome = judge(run, candidate.program, docs[candidate.problem])
            kept.put(candidate.problem, candidate.program, outcome)
            progress.one_more()
            return outcome

        outcomes = map_items(look, missing, workers=self.workers, progress=shown)
        new = dict(zip(missing, outcomes, strict=True))
        return {c: outcome or new[c] for c, outcome in known.items()}


def _there(sample: str | None) -> str:
    """A sample that is there."""
    assert sample is not None
    return sample


def _say_rules(taken: Iterable[Taken]) -> None:
    """Log how programs were extracted: by which rule, or that they are judged to the letter."""
    rules = Counter(one.rule for one in taken)
    if rules:
        said = ", ".join(f"{rule}: {count}" for rule, count in rules.most_common())
        log.info("programs by the rule that found them: %s", said)


class _Progress:
    """A line in the log now and then, for runs whose progress bar nobody sees."""

    def __init__(self, total: int, bar: bool) -> None:
        self._total, self._bar, self._done = total, bar, 0
        self._began = self._said = time.monotonic()
        self._lock = threading.Lock()

    def one_more(self) -> None:
        with self._lock:
            self._done += 1
            now = time.monotonic()
            if self._bar or now - self._said < _SECONDS_BETWEEN_LINES:
                return
            self._said = now
            left = (now - self._began) / self._done * (self._total - self._done)
            log.info("judged %d of %d programs, %.0f s to go", self._done, self._total, left)


class MathRecords(Filter):
    """Extract and compare the answers of all problems."""

    def __init__(self, k: int) -> None:
        self.k = _checked(k)

    def apply(self, resps: Iterable[Sequence[str]], docs: Sequence[Any]) -> list[list[Record]]:
        """[problems][k] records, from [problems][any] strings."""
        records = []
        for texts, doc in zip(resps, docs, strict=True):
            target, form = target_of(doc), form_of(doc)
            records.append(math_records(pad(texts, self.k), target, form))
        return records
