"""Samples worth looking at, from one pass over a run: curves against K, failures, texts to show."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_eval_embednoise.analysis.records import samples
from lm_eval_embednoise.scoring.lexer import code_tokens, prose_tokens
from lm_eval_embednoise.scoring.ngrams import count_orders
from lm_eval_embednoise.scoring.passk import pass_at_every_k
from lm_eval_embednoise.scoring.records import solution
from lm_eval_embednoise.scoring.reduce import own_part

if TYPE_CHECKING:
    from lm_eval_embednoise.analysis.resample import Array
    from lm_eval_embednoise.analysis.runs import Run

SHOWN = 3  # distinct samples a side
PROBLEMS = 8
READ = (
    100  # problems whose samples are read, evenly spaced: the report of a large study stays quick
)
_LOOP = 0.5  # share of repeated 4-grams from which a text counts as a loop
KINDS = (
    *("passed", "wrong answer", "runtime error", "does not parse", "no answer"),
    *("drift", "loop", "early end", "other"),
)


@dataclass(frozen=True)
class Comparison:
    """One problem, both sides' values and some distinct samples of each."""

    problem: str
    prompt: str
    values: tuple[float, float]
    texts: tuple[list[tuple[str, bool]], list[tuple[str, bool]]]


@dataclass(frozen=True)
class Failure:
    """One failing sample, how it fails and how strong its noise was."""

    kind: str
    method: str
    problem: str
    rho: float | None
    text: str
    count: int  # samples of this method that fail this way


@dataclass
class Digest:
    """What one pass over a run's samples gives.

    Attributes:
        method: the run's method.
        problems: problems whose samples were counted.
        solutions: expected distinct correct solutions among m samples, [K]; see `rarefied`.
        distinct: expected distinct_2 of m samples, [K].
        kinds: how many samples end in each way, one of `KINDS`.
        examples: way of failing → problem and record of the sample with the strongest noise.
        texts: problem → prompt and some distinct texts, each with whether it passed.
    """

    method: str
    problems: int = 0
    solutions: Array = field(default_factory=lambda: np.zeros(0))
    distinct: Array = field(default_factory=lambda: np.zeros(0))
    kinds: Counter[str] = field(default_factory=Counter)
    examples: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    texts: dict[str, tuple[str, list[tuple[str, bool]]]] = field(default_factory=dict)

    @property
    def failures(self) -> list[Failure]:
        """One example, with the count, of each way in which samples fail; the most common first."""
        return [
            Failure(kind, self.method, problem, record.get("rho"), record["text"], self.kinds[kind])
            for kind, (problem, record) in sorted(
                self.examples.items(), key=lambda item: -self.kinds[item[0]]
            )
        ]

    @property
    def shares(self) -> dict[str, float]:
        """Kind → share of all samples read."""
        total = sum(self.kinds.values())
        return {kind: self.kinds[kind] / total for kind in KINDS} if total else {}


def digest(
    run: Run, shown: set[str], *, unlikely: float | None = None, curves: bool = True
) -> Digest:
    """Read a run's samples once; counts and curves come from the problems of `counted`.

    Args:
        run: the run.
        shown: problems whose texts are kept, counted or not.
        unlikely: nats a token from which a failing sample counts as drift; see `unlikely_from`.
        curves: whether to work out the curves against the number of samples.
    """
    result = Digest(run.method)
    wanted = counted(run)
    solutions, distinct = [], []
    for problem, doc, records in samples(run, wanted | shown):
        if problem in shown:
            result.texts[problem] = _prompt_and_texts(doc, records)
        if problem not in wanted:
            continue
        result.problems += 1
        if curves:
            solutions.append(_solutions(records))
            distinct.append(_distinct(run, doc, records))
        for record in records:
            kind = "passed" if record.get("passed") else failure_kind(record, unlikely)
            result.kinds[kind] += 1
            if kind != "passed" and _stronger(record, result.examples.get(kind)):
                result.examples[kind] = (problem, {"text": "", **record})
    result.solutions, result.distinct = _mean(solutions, run.k), _mean(distinct, run.k)
    return result


def counted(run: Run) -> set[str]:
    """The problems whose samples are counted: evenly spaced, at most about `READ` samples."""
    most = max(20, READ // run.k)
    step = max(1.0, run.n / most)
    return {run.problems[int(i * step)] for i in range(min(most, run.n))}


def unlikely_from(run: Run) -> float | None:
    """Nats a token under the clean model that 99 % of the baseline's samples stay below.

    None where the model did not report likelihoods.
    """
    values = [
        record["nll"] / record["nll_tokens"]
        for _, _, records in samples(run, counted(run))
        for record in records
        if record.get("nll") is not None and record.get("nll_tokens")
    ]
    return float(np.quantile(values, 0.99)) if values else None


def failure_kind(record: dict[str, Any], unlikely: float | None = None) -> str:
    """How a sample fails: one of `KINDS` without `passed`.

    Args:
        record: the sample's record.
        unlikely: nats a token from which it counts as drift; see `unlikely_from`.
    """
    words = str(record.get("text", "")).split()
    if len(words) < 3:
        return "early end"
    grams = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    if len(grams) >= 8 and 1 - len(set(grams)) / len(grams) >= _LOOP:
        return "loop"
    if record.get("compiled") is False:
        return "does not parse"
    if record.get("answer", "") is None:
        return "no answer"
    tokens = record.get("nll_tokens")
    if unlikely is not None and tokens and record["nll"] / tokens > unlikely:
        return "drift"
    named = str(record.get("verdict") or "wrong_answer").replace("_", " ")
    return named if named in KINDS else "other"


def differing(method: Run, baseline: Run, metric: str = "unique_correct") -> tuple[list[str], int]:
    """The problems whose metric differs most, both ways; equal values are never among them.

    Each direction has half of `PROBLEMS`, and what the other one leaves free. Problems that differ
    equally stand in the order of the task.

    Returns:
        The problems, the largest gains first, then the largest losses; and how many more differ as
        much as the last that is listed of their direction. None where a side lacks the metric.
    """
    if metric not in method.metrics or metric not in baseline.metrics:
        return [], 0
    theirs = dict(zip(baseline.problems, baseline.metrics[metric], strict=True))
    apart = {
        problem: float(value - theirs[problem])
        for problem, value in zip(method.problems, method.metrics[metric], strict=True)
        if problem in theirs
    }
    sides = [
        sorted((p for p in apart if sign * apart[p] > 0), key=lambda p: -abs(apart[p]))
        for sign in (1, -1)
    ]
    half = PROBLEMS // 2
    shown: list[str] = []
    more = 0
    for side, other in (sides, reversed(sides)):
        cut = min(len(side), max(half, PROBLEMS - len(other)))
        shown += side[:cut]
        more += sum(apart[p] == apart[side[cut - 1]] for p in side[cut:]) if cut else 0
    return shown, more


def side_by_side(
    problems: list[str],
    method: Run,
    baseline: Run,
    ours: Digest,
    theirs: Digest,
    metric: str = "unique_correct",
) -> list[Comparison]:
    """These problems with samples of both methods, from digests that kept their texts."""
    values, others = (
        dict(zip(run.problems, run.metrics.get(metric, ()), strict=False))
        for run in (method, baseline)
    )
    return [
        Comparison(
            problem,
            ours.texts[problem][0],
            (float(values[problem]), float(others[problem])),
            (ours.texts[problem][1], theirs.texts[problem][1]),
        )
        for problem in problems
    ]


def rarefied(counts: np.ndarray, n: int) -> Array:
    """Expected number of classes among m of n samples, for m = 1 … n, [n] (Hurlbert 1971).

    Args:
        counts: samples of each class, [classes].
        n: number of samples.
    """
    values, times = np.unique(np.asarray(counts, dtype=int), return_counts=True)
    return np.asarray(times @ pass_at_every_k(values, n)) if len(values) else np.zeros(n)


def _solutions(records: list[dict[str, Any]]) -> Array:
    """Expected distinct correct solutions among m samples, [K]."""
    classes = Counter(solution(record) for record in records if record.get("passed"))
    return rarefied(np.array(list(classes.values())), len(records))


def _distinct(run: Run, doc: dict[str, Any], records: list[dict[str, Any]]) -> Array:
    """Distinct-2 of m samples: expected different bigrams over expected bigrams, [samples]."""
    present = [record for record in records if not record.get("missing")]
    if run.domain == "code":
        texts = [own_part(str(r.get("code") or r.get("text", "")), doc) for r in present]
        tokenise = code_tokens
    else:
        texts = [str(record.get("text", "")).strip() for record in present]
        tokenise = prose_tokens
    known = {text: tokenise(text) for text in set(texts)}  # most methods repeat themselves
    bigrams = count_orders([known[text] for text in texts], 2)[1]
    n = len(present)
    if not bigrams.total:
        return np.full(n, np.nan)
    return rarefied(bigrams.spread, n) / (np.arange(1, n + 1) / n * bigrams.total)


def _mean(curves: list[Array], k: int) -> Array:
    """Mean over problems at each number of samples, of those that have so many."""
    table = np.full((max(len(curves), 1), k), np.nan)
    for row, curve in zip(table, curves, strict=False):
        row[: len(curve)] = curve[:k]
    defined = np.isfinite(table)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(defined, table, 0.0).sum(0) / defined.sum(0))


def _stronger(record: dict[str, Any], known: tuple[str, dict[str, Any]] | None) -> bool:
    return known is None or (record.get("rho") or 0.0) > (known[1].get("rho") or 0.0)


def _prompt_and_texts(
    doc: dict[str, Any], records: list[dict[str, Any]]
) -> tuple[str, list[tuple[str, bool]]]:
    """A prompt and the first distinct texts, each with whether it passed."""
    texts: dict[str, bool] = {}
    for record in records:
        texts.setdefault(str(record.get("text", "")), bool(record.get("passed")))
    return str(doc.get("prompt") or doc.get("question") or ""), list(texts.items())[:SHOWN]
