"""Methods against a reference on the same problems: correctness, diversity, paired tests.

The common part of the probes whose question is which of a few arms diversifies more.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_eval_embednoise.analysis.mechanism.means import mean
from lm_eval_embednoise.analysis.mechanism.pictures import number
from lm_eval_embednoise.analysis.pairs import add_holm, compare_pairs
from lm_eval_embednoise.analysis.records import align, samples
from lm_eval_embednoise.analysis.resample import Resampler, cluster_codes
from lm_eval_embednoise.scoring.diversity import vendi
from lm_eval_embednoise.scoring.lexer import code_tokens
from lm_eval_embednoise.scoring.ngrams import count_orders

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lm_eval_embednoise.analysis.runs import Run

MATCHED = "vendi_matched"
METRICS = ("pass@1", "accuracy", "unique_correct", "distinct_2_rarefied", "vendi", MATCHED)


def matched_vendi(texts: Mapping[str, Sequence[Sequence[str]]]) -> dict[str, float]:
    """The Vendi score of each method's samples of a problem, all cut to one length.

    The length is the smallest of the methods' median numbers of tokens, so that neither a method's
    longer texts nor its empty ones make its score.

    Args:
        texts: method → lexical tokens of each of its samples.
    """
    medians = [np.median([len(tokens) for tokens in of_one]) for of_one in texts.values()]
    length = max(1, int(min(medians)))
    scores = {}
    for method, of_one in texts.items():
        unigrams, bigrams = count_orders([tokens[:length] for tokens in of_one], 2)
        scores[method] = vendi(unigrams, bigrams)
    return scores


def with_matched_vendi(runs: Sequence[Run]) -> list[Run]:
    """Aligned runs with the metric `vendi_matched`."""
    runs = align(list(runs))
    columns = {run.method: np.full(run.n, np.nan) for run in runs}
    place = {problem: i for i, problem in enumerate(runs[0].problems)}
    readers = [{p: records for p, _, records in samples(run)} for run in runs]
    for problem, i in place.items():
        texts = {
            run.method: [code_tokens(str(record["text"])) for record in of[problem]]
            for run, of in zip(runs, readers, strict=True)
        }
        for method, score in matched_vendi(texts).items():
            columns[method][i] = score
    return [
        replace(
            run,
            metrics={**run.metrics, MATCHED: columns[run.method]},
            higher_is_better={**run.higher_is_better, MATCHED: True},
        )
        for run in runs
    ]


def contrast(runs: Sequence[Run], reference: str) -> list[dict[str, Any]]:
    """Each method's means, and what differs from the reference's with intervals and p-values.

    Args:
        runs: one of each method, of one model and task.
        reference: the method that the others are held to.

    Raises:
        ValueError: the reference is not among them.
    """
    known = {run.method: run for run in runs}
    if reference not in known:
        raise ValueError(f"no run of {reference}; there are {', '.join(sorted(known))}")
    aligned = with_matched_vendi(runs)
    base = next(run for run in aligned if run.method == reference)
    metrics = [name for name in METRICS if name in base.metrics]
    resampler = Resampler(cluster_codes(base.clusters, base.n))
    others = [run for run in aligned if run is not base]
    tests = compare_pairs([(run, base) for run in others], metrics, resampler)
    add_holm(tests)
    found = {run.method: entry for run, entry in zip(others, tests, strict=True)}
    return [
        {
            "method": run.method,
            "reference": reference,
            "model": run.model,
            "task": run.task,
            "n": run.n,
            "k": run.k,
            "means": {name: mean(run.metrics[name]) for name in metrics},
            "tests": found.get(run.method, {}),
        }
        for run in aligned
    ]


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Means, and below each the difference from the reference with its p-value."""
    metrics = list(rows[0]["means"]) if rows else []
    lines = ["| method | task | n | " + " | ".join(metrics) + " |"]
    lines.append("|" + "---|" * (3 + len(metrics)))
    for row in rows:
        cells = []
        for name in metrics:
            text = number(row["means"][name], ".3f")
            if test := row["tests"].get(name):
                d, p = test["difference"]["value"], test["p_permutation"]
                text += f" ({number(d, '+.3f')}, p {number(p, '.2g')})"
            cells.append(text)
        lines.append("| " + " | ".join([row["method"], row["task"], str(row["n"]), *cells]) + " |")
    return "\n".join(lines) + "\n"
