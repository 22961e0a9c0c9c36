"""comparison.json as files of Every Eval Ever, the shared format for results of evaluations.

One file for each model, task and method, in the folders of its datastore and by its schema, version
0.3.0 (github.com/evaleval/every_eval_ever, the package every-eval-ever on PyPI).
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_eval_embednoise.analysis import vectors
from lm_eval_embednoise.analysis.measures import measure
from lm_eval_embednoise.analysis.records import combine
from lm_eval_embednoise.analysis.resample import cluster_codes
from lm_eval_embednoise.analysis.runs import ResultError, Run
from lm_eval_embednoise.analysis.stats import standard_error
from lm_eval_embednoise.scoring.metrics import METRICS
from lm_eval_embednoise.written import write_text

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION = "0.3.0"
# The harness's model class → what runs the model there; others need not run it on this machine.
_ENGINES = {
    "hf": "transformers",
    "hf-embednoise": "transformers",
    "vllm": "vllm",
    "vllm-embednoise": "vllm",
    "llamacpp-embednoise": "llama.cpp",
}
_UNITS = {"mean_tokens": "tokens", "mean_seconds": "seconds", "nats_per_token": "nats per token"}
_ARGUMENTS = ("temperature", "top_p", "top_k")  # that the schema names
_UNSAFE = re.compile(r'[<>:"/\\|?*\x00-\x1f]')


def export(comparison: Mapping[str, Any], folder: Path, organization: str) -> list[Path]:
    """Write the files below `folder`/data; the same comparison gives the same files.

    Args:
        comparison: content of comparison.json; of version 1 without standard errors.
        folder: where `data` is, or will be.
        organization: who provides the results.

    Raises:
        ResultError: the organization has no name.
    """
    check(organization)
    runs = vectors.by_entry(comparison, folder)
    paths = []
    for row in comparison["leaderboard"]:
        same = runs.get((row["model"], row["task"], row["method"]))
        record = _record(comparison, row, combine(same) if same else None, organization)
        text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        developer, _, model = record["model_info"]["id"].rpartition("/")
        place = [row["task"], developer or organization, model]
        name = uuid.UUID(bytes=hashlib.sha256(text.encode()).digest()[:16], version=4)
        path = folder.joinpath("data", *map(_component, place), f"{name}.json")
        write_text(path, text)
        paths.append(path)
    return paths


def check(organization: str | None) -> None:
    """Refuse to export without a name for the source.

    Raises:
        ResultError: there is none.
    """
    if not organization or not _component(organization):
        raise ResultError(
            "--every_eval_ever needs --organization NAME: its files say who provides the results"
        )


def _record(
    comparison: Mapping[str, Any], row: Mapping[str, Any], run: Run | None, organization: str
) -> dict[str, Any]:
    created = str(datetime.datetime.fromisoformat(comparison["created"]).timestamp())
    model = _model(row, run, organization)
    identifier = f"{row['task']}+{row['method']}/{model['id']}/{created}"
    environment = row.get("environment", {})
    record = {
        "schema_version": VERSION,
        "evaluation_id": identifier,
        "retrieved_timestamp": created,
        "source_metadata": {
            "source_name": "lm-eval-embednoise",
            "source_type": "evaluation_run",
            "source_organization_name": organization,
            "evaluator_relationship": "other",
            "additional_details": _strings(
                {"protocol": comparison["protocol"]["hash"], "stored_protocol": row["protocol"]}
            ),
        },
        "eval_library": {
            "name": "lm-eval-embednoise",
            "version": comparison["software"]["lm-eval-embednoise"],
            "additional_details": {**environment},
        },
        "model_info": model,
        "evaluation_results": [
            _result(comparison, row, run, metric, estimate, identifier)
            for metric, estimate in row["metrics"].items()
            if estimate["value"] is not None
        ],
    }
    if run is not None and run.date:
        when = datetime.datetime.fromtimestamp(run.date, datetime.timezone.utc)
        record["evaluation_timestamp"] = when.isoformat(timespec="seconds")
    return record


def _model(row: Mapping[str, Any], run: Run | None, organization: str) -> dict[str, Any]:
    """Where the model comes from; a model without a developer in its name is the organization's."""
    source = str(run.model_source if run else row["model"])
    if Path(source).is_absolute():
        source = Path(source).name
    settings = {k: v for k, v in row["settings"].items() if k.startswith("model ")}
    engine = _ENGINES.get(run.engine) if run else None
    hub = engine is not None and "/" in source
    told = {
        "name": source.split("/")[-1],
        "id": source,
        "developer": source.split("/")[0] if "/" in source else organization,
        "additional_details": {
            "deployment_type": "self_deployed" if engine else "unknown",
            "model_availability": "open_weights" if hub else "unknown",
            **_strings({key.removeprefix("model "): v for key, v in settings.items()}),
        },
    }
    if engine:
        version = row.get("environment", {}).get(engine)
        told["inference_engine"] = {"name": engine, **({"version": version} if version else {})}
    return told


def _result(
    comparison: Mapping[str, Any],
    row: Mapping[str, Any],
    run: Run | None,
    metric: str,
    estimate: Mapping[str, Any],
    identifier: str,
) -> dict[str, Any]:
    problems = {"problems": row["n"], "clusters": row["clusters"], "hash": row["problems"]}
    return {
        "evaluation_result_id": f"{identifier}#{metric}",
        "evaluation_name": row["task"],
        "source_data": {
            "dataset_name": row["task"],
            "source_type": "other",
            "additional_details": _strings(problems),
        },
        "metric_config": _metric_config(metric),
        "score_details": {
            "score": estimate["value"],
            "uncertainty": _uncertainty(comparison["analysis"], metric, estimate, run),
        },
        "generation_config": _generation_config(row, run),
    }


def _metric_config(metric: str) -> dict[str, Any]:
    known, at = measure(metric), re.fullmatch(r"pass@(\d+)", metric)
    config: dict[str, Any] = {
        "metric_id": "pass_at_k" if at else f"lm_eval_embednoise.{metric}",
        "metric_name": metric,
        "lower_is_better": known.better < 0,
    }
    if metric in METRICS:
        config |= {"score_type": "continuous", "min_score": 0}
        config["max_score"] = 1 if known.unit else "Infinity"
    if at:
        config["metric_parameters"] = {"k": int(at[1])}
    unit = "proportion" if known.rate else _UNITS.get(metric)
    if unit:
        config["metric_unit"] = unit
    if not known.better:
        config["additional_details"] = {"direction": "neither is better"}
    return config


def _uncertainty(
    analysis: Mapping[str, Any], metric: str, estimate: Mapping[str, Any], run: Run | None
) -> dict[str, Any]:
    """Standard error between problems (clusters), interval, and the problems behind them."""
    told: dict[str, Any] = {"num_samples": estimate["n"]}
    if estimate["low"] is not None:
        told["confidence_interval"] = {
            "lower": estimate["low"],
            "upper": estimate["high"],
            "confidence_level": analysis["level"],
            "method": "weighted bootstrap over problems or clusters of them",
        }
        told["num_bootstrap_samples"] = analysis["draws"]
    if run is not None and metric in run.metrics:
        known = np.isfinite(run.metrics[metric])
        values, codes = run.metrics[metric][known], cluster_codes(run.clusters, run.n)[known]
        error = standard_error(values, codes)
        if np.isfinite(error):
            between = "clusters of problems" if run.clusters else "problems"
            told["standard_error"] = {"value": error, "method": f"analytic, between {between}"}
            told["standard_deviation"] = float(values.std(ddof=1))
    return told


def _generation_config(row: Mapping[str, Any], run: Run | None) -> dict[str, Any]:
    """The sampling by the schema's names; perturbation and settings in the additional details."""
    sampling = row["sampling"]
    drawn = sampling.get("do_sample", bool(sampling.get("temperature")))
    arguments: dict[str, Any] = {}
    if sampling and (run is None or run.engine != "replay"):  # else nobody says what drew the texts
        arguments = {key: sampling[key] for key in _ARGUMENTS if drawn and key in sampling}
        arguments["temperature"] = float(sampling.get("temperature", 1.0)) if drawn else 0.0
    longest = row["settings"].get("generation max_gen_toks")
    if isinstance(longest, int) and longest > 0:
        arguments["max_tokens"] = longest
    details = {
        "method": row["method"],
        "signature": row["signature"],
        "samples_per_problem": row["k"],
        "seeds": row["seeds"],
        "rho": row["rho"],
        **{f"perturbation.{key}": value for key, value in row["perturbation"].items()},
        **{f"sampling.{k}": v for k, v in sampling.items() if k not in _ARGUMENTS},
        **{k: v for k, v in row["settings"].items() if not k.startswith("model ")},
    }
    return {"generation_args": arguments, "additional_details": _strings(details)}


def _strings(details: Mapping[str, Any]) -> dict[str, str]:
    """Values as the schema wants them: text as it is, others as JSON, none left out."""
    return {
        key: value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        for key, value in details.items()
        if value is not None and value != {}
    }


def _component(name: str) -> str:
    """A name as a folder of the datastore, portable."""
    return _UNSAFE.sub("_", name).strip().rstrip(".")
