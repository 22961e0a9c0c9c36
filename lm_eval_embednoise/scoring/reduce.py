"""From the K records of a problem to its metrics: the task files' `process_results`."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from . import diversity
from .extract import preamble
from .lexer import code_tokens, prose_tokens
from .maths import majority, target_of
from .ngrams import count_orders
from .passk import pass_at_k
from .records import solution

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .records import Record

PASS_AT = (1, 10, 100)
# What distinct_2_rarefied draws from all samples of a problem; less than ten short answers have.
BIGRAMS_OF_CODE, BIGRAMS_OF_MATHS = 200, 100
PASS_AT_VARIABLE = "EMBEDNOISE_PASS_AT"  # more of them: 5,25
NAN = float("nan")
Metrics = dict[str, float]


def plus_metrics(doc: Mapping[str, Any], results: Sequence[Sequence[Record]]) -> Metrics:
    """Metrics of a problem with two sets of tests.

    Those of `code_metrics` are decided by all tests; metrics that end in `_base` by the base tests
    alone.
    """
    (records,) = results
    correct = sum(record["passed_base"] is True for record in records)
    solutions = {solution(record) for record in records if record["passed_base"]}
    metrics = code_metrics(doc, results)
    metrics |= {f"{name}_base": value for name, value in _pass_at(len(records), correct).items()}
    return metrics | {"unique_correct_base": float(len(solutions))}


def code_metrics(doc: Mapping[str, Any], results: Sequence[Sequence[Record]]) -> Metrics:
    """Metrics of a programming problem; the one result is the list that CodeRecords made."""
    (records,) = results
    present = [record for record in records if not record["missing"]]
    solutions = [own_part(record["code"], doc) for record in present]
    compiled = [record for record in present if record["compiled"]]
    return {
        **_correctness(records),
        **_diversity(present, solutions, code_tokens, BIGRAMS_OF_CODE),
        **_language(present),
        "compile_rate": len(compiled) / len(records),
        "unique_ast": float(len({record["ast"] for record in compiled})),
        "behaviours": float(len({(r["verdict"], r["detail"], r["behaviour"]) for r in compiled})),
        "unique_correct": float(len({solution(r) for r in present if r["passed"]})),
    }


def math_metrics(doc: Mapping[str, Any], results: Sequence[Sequence[Record]]) -> Metrics:
    """Metrics of a word problem; the one result is the list that MathRecords made."""
    (records,) = results
    present = [record for record in records if not record["missing"]]
    texts = [record["text"].strip() for record in present]
    correct = {solution(record) for record in present if record["passed"]}
    return {
        **_correctness(records),
        "accuracy": float(np.mean([record["passed"] for record in records])),
        "maj@K": majority([record["answer"] for record in records], target_of(doc)),
        **_flexible(records, target_of(doc)),
        **_diversity(present, texts, prose_tokens, BIGRAMS_OF_MATHS),
        **_language(present),
        "unique_correct": float(len(correct)),
    }


def own_part(program: str, doc: Mapping[str, Any]) -> str:
    """The part of a program that the model wrote, as far as the prompt shows."""
    prompt = doc.get("prompt", "")
    for given in (prompt, preamble(prompt, doc.get("entry_point"))):
        if given and program.startswith(given):
            return program[len(given) :]
    return program


def _pass_at(n: int, c: int) -> Metrics:
    """pass@k for the usual k up to n, and for those of EMBEDNOISE_PASS_AT.

    Raises:
        ValueError: a requested k is larger than n.
    """
    requested = [int(k) for k in os.environ.get(PASS_AT_VARIABLE, "").split(",") if k]
    ks = sorted({*(k for k in PASS_AT if k <= n), *requested})
    return {f"pass@{k}": pass_at_k(n, c, k) for k in ks}


def _flexible(records: Sequence[Record], target: str) -> Metrics:
    """Correctness by the answers however they are stated, where the strict form may miss some."""
    known = [record for record in records if record.get("passed_flexible") is not None]
    if not known:
        return {"accuracy_flexible": NAN, "maj@K_flexible": NAN}
    return {
        "accuracy_flexible": sum(record["passed_flexible"] for record in known) / len(records),
        "maj@K_flexible": majority([record["answer_flexible"] for record in records], target),
    }


def _correctness(records: Sequence[Record]) -> Metrics:
    """pass@k and shares over all K samples, missing ones counted as failures."""
    n, c = len(records), sum(record["passed"] for record in records)
    metrics = _pass_at(n, c)
    metrics["success@K"] = float(c > 0)
    metrics["valid_rate"] = sum(record["valid"] for record in records) / n
    metrics["missing"] = float(sum(record["missing"] for record in records))
    return metrics


def _diversity(
    records: Sequence[Record],
    texts: Sequence[str],
    tokenise: Callable[[str], list[str]],
    bigrams: int,
) -> Metrics:
    """Differences among the samples that are there; `bigrams` to rarefy to."""
    tokens = [tokenise(text) for text in texts]
    orders = count_orders(tokens)
    lengths = np.array([len(sample) for sample in tokens])
    entropy, openings = diversity.prefixes(tokens)
    return {
        "distinct_1": diversity.distinct(orders[0]),
        "distinct_2": diversity.distinct(orders[1]),
        "distinct_3": diversity.distinct(orders[2]),
        "distinct_2_rarefied": diversity.distinct_among(orders[1], bigrams),
        "ead_2": diversity.expectation_adjusted_distinct(orders[1], orders[0].unique),
        "self_bleu": diversity.self_bleu(orders, lengths),
        "self_bleu_joint": diversity.self_bleu_joint(tokens),
        "edit_distance": diversity.edit_distance(texts),
        "vendi": diversity.vendi(orders[0], orders[1]),
        "compression_ratio": diversity.compression_ratio(texts),
        "rep_4": diversity.repetition(orders[3]),
        "distinct_2_valid": _rarefied(records, tokens, "valid"),
        "distinct_2_correct": _rarefied(records, tokens, "passed"),
        "prefix_entropy": entropy,
        "distinct_prefixes": openings,
        "mean_chars": float(np.mean([len(text) for text in texts])) if texts else NAN,
    }


def _rarefied(records: Sequence[Record], tokens: Sequence[list[str]], field: str) -> float:
    chosen = [sample for record, sample in zip(records, tokens, strict=True) if record[field]]
    return diversity.rarefied_distinct(count_orders(chosen, 2)[1])


def _language(records: Sequence[Record]) -> Metrics:
    """Likelihood under the clean model, lengths and ends, as the model class reported them."""
    scored = [r for r in records if r["nll"] is not None and r["nll_tokens"]]
    nll = math.fsum(record["nll"] for record in scored)
    tokens = sum(record["nll_tokens"] for record in scored)
    size = sum(len(record["text"].encode("utf-8", "surrogatepass")) for record in scored)
    per_token = nll / tokens if tokens else NAN
    ended = [r["finish_reason"] for r in records if r["finish_reason"] is not None]
    return {
        "clean_perplexity": math.exp(per_token) if per_token < 700 else per_token * math.inf,
        "nats_per_token": per_token,
        "clean_bits_per_byte": nll / math.log(2) / size if size else NAN,
        "mean_tokens": _mean(record["tokens"] for record in records),
        "mean_seconds": _mean(record.get("seconds") for record in records),
        "truncated": _mean(reason == "length" for reason in ended),
        "numeric": _mean(reason == "numeric" for reason in ended),
        "rho": _mean(record["rho"] for record in records),
    }


def _mean(values: Any) -> float:
    known = [float(value) for value in values if value is not None]
    return math.fsum(known) / len(known) if known else NAN
