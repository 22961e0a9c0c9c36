"""The harness's filters: the K strings of every problem become K records.

A filter runs once over all documents of a task, so this is the one place where judging can be
parallel; process_results afterwards only reduces. Equal programs of a problem are judged once, and
verdicts are kept, so a scoring that was interrupted goes on when the same command is run again.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.filter import Filter

from ..sandbox import Outcome, map_items
from .judge import Candidate, Run, judge, program_of
from .maths import form_of, target_of
from .records import Record, code_record, math_record, pad
from .verdicts import OFF, Verdicts, default_folder

log = logging.getLogger(__name__)


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
        programs = [
            ["" if text is None else program_of(text, doc) for text in texts]
            for texts, doc in zip(samples, docs, strict=True)
        ]
        candidates = {
            Candidate(problem, program): None
            for problem, (texts, row) in enumerate(zip(samples, programs, strict=True))
            for text, program in zip(texts, row, strict=True)
            if text is not None
        }
        judged = self._judge(list(candidates), docs)
        return [
            [
                code_record(text, index, program, judged.get(Candidate(problem, program)))
                if text is not None
                else code_record(None, index, "", None)
                for index, (text, program) in enumerate(zip(texts, row, strict=True))
            ]
            for problem, (texts, row) in enumerate(zip(samples, programs, strict=True))
        ]

    def _judge(
        self, candidates: Sequence[Candidate], docs: Sequence[Any]
    ) -> dict[Candidate, Outcome]:
        if self.verdicts is None:
            folder = default_folder()
        else:
            folder = None if self.verdicts == OFF else Path(self.verdicts)
        kept = Verdicts(docs, folder)

        def look(run: Run, candidate: Candidate) -> Outcome:
            outcome = judge(run, candidate.program, docs[candidate.problem])
            kept.put(candidate.problem, candidate.program, outcome)
            return outcome

        found = {c: kept.get(c.problem, c.program) for c in candidates}
        missing = [candidate for candidate, outcome in found.items() if outcome is None]
        if len(missing) < len(candidates):
            log.info("%d programs were judged before", len(candidates) - len(missing))
        shown = sys.stderr.isatty()
        try:
            outcomes = map_items(look, missing, workers=self.workers, progress=shown)
        finally:
            kept.close()
        new = dict(zip(missing, outcomes, strict=True))
        return {c: outcome or new[c] for c, outcome in found.items()}


class MathRecords(Filter):
    """Extract and compare the answers of all problems."""

    def __init__(self, k: int) -> None:
        self.k = _checked(k)

    def apply(self, resps: Iterable[Sequence[str]], docs: Sequence[Any]) -> list[list[Record]]:
        """[problems][k] records, from [problems][any] strings."""
        records = []
        for texts, doc in zip(resps, docs, strict=True):
            target, form = target_of(doc), form_of(doc)
            samples = enumerate(pad(texts, self.k))
            records.append([math_record(text, index, target, form) for index, text in samples])
        return records
