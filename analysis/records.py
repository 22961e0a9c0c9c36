"""The only reader of the harness's result folders: runs, metrics of each problem, alignment.

A run is one method on one task: what `lm_eval --log_samples --output_path` or `embednoise study`
wrote as `results_<date>.json` and `samples_<task>_<date>.jsonl` (or a file of verdicts).
Problems are matched by their own id and the hash of their document, never by position. The
generated samples themselves are read one line at a time and dropped; `samples` reads them again for
those who show them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_eval_embednoise.analysis import verdict_files
from lm_eval_embednoise.analysis.environment import environment
from lm_eval_embednoise.analysis.naming import label_of
from lm_eval_embednoise.analysis.runs import ResultError, Run
from lm_eval_embednoise.identical import METRIC as IDENTICAL
from lm_eval_embednoise.scoring.metrics import RENAMED
from lm_eval_embednoise.scoring.records import logged

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping

    from lm_eval_embednoise.analysis.resample import Array

log = logging.getLogger(__name__)

# What a method is made of: allowed to differ between the two sides of a pair.
SAMPLING = (
    *("do_sample", "temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff"),
    *("eta_cutoff", "top_n_sigma", "p_less", "temperature_tokens", "first_token"),
)
_DATE = re.compile(r"\d{4}-\d\d-\d\dT[\d.+-]+$")
_RESULTS = re.compile(r"^results_.*\.json$|_\d{4}-\d\d-\d\dT[\d.+-]+\.json$")
# Settings that only this project's model class records: missing on one side is no difference.
_OWN = ("model ", "stream_version")
_OF_THE_MODEL = ("commit", "fingerprint", "identity", "dtype", "quantization")
_RECORDS = "records"  # the filter of this project's tasks; its metrics keep their plain names


def read_runs(sources: Iterable[str | Path], partial: bool = False) -> list[Run]:
    """Read every run under the given folders and files.

    Args:
        sources: result folders (searched recursively), `results_*.json` files, files of verdicts,
            or `LABEL=PATH` to name the method of the runs found at PATH.
        partial: take samples files that lack problems, too.

    Raises:
        ResultError: there are no runs, or a file is missing, damaged or incomplete.
    """
    runs: list[Run] = []
    for source in sources:
        label, path = _labelled(source)
        files = [path] if path.is_file() else _results_files(path)
        if not files:
            raise ResultError(
                f"no results_*.json under {path}: give the folder that `lm_eval --output_path` or "
                "`embednoise study` wrote"
            )
        for file in files:
            if path.is_file() and not _RESULTS.search(file.name):
                runs.append(verdict_files.read(file, label))
            else:
                runs.extend(read_results(file, label, partial))
    return runs


def read_results(path: Path, label: str | None = None, partial: bool = False) -> list[Run]:
    """Read the runs of one `results_*.json` and the samples files beside it.

    Args:
        path: the results file.
        label: name of the method, instead of what the file or its settings say.
        partial: take samples files that lack problems, too.

    Raises:
        ResultError: a file is missing, damaged or incomplete.
    """
    results = _load_json(path)
    configs = results.get("configs")
    if not isinstance(configs, dict) or "results" not in results:
        raise ResultError(f"{path} is not a results file of lm_eval: it has no 'configs'")
    return [
        _read_task(path, results, task, config, label, partial) for task, config in configs.items()
    ]


def samples(
    run: Run, wanted: Container[str] | None = None
) -> Iterator[tuple[str, dict[str, Any], list[dict[str, Any]]]]:
    """Problem id, document and K records of each problem of a run, one at a time.

    Args:
        run: the run.
        wanted: the problems to give; the others' records are not decoded. All by default.
    """
    shown = None
    for line in _lines(run.samples_path):
        shown = shown or line.get("filter")  # a task with several filters repeats its documents
        problem = _problem_id(line)
        if line.get("filter") == shown and (wanted is None or problem in wanted):
            records = line["filtered_resps"][0]
            listed = records if isinstance(records, list) else [records]
            parsed = [logged(item) or {"text": str(item)} for item in listed]
            yield problem, line["doc"], parsed


def differences(a: Run, b: Run) -> list[str]:
    """Reasons why two runs can't be compared problem by problem; empty if they can."""
    reasons = []
    if a.task != b.task:
        reasons.append(f"task {a.task} against {b.task}")
    if a.k != b.k:
        reasons.append(f"K {a.k} against {b.k} samples a problem")
    reasons += unequal(a.settings, b.settings)
    left, right = (dict(zip(run.problems, run.hashes, strict=True)) for run in (a, b))
    for only, side in ((left.keys() - right.keys(), a), (right.keys() - left.keys(), b)):
        if only:
            reasons.append(f"{len(only)} problems only in {side.method}, e.g. {min(only)!r}")
    changed = [p for p in left.keys() & right.keys() if left[p] != right[p]]
    if changed:
        reasons.append(f"{len(changed)} problems whose documents differ, e.g. {min(changed)!r}")
    return reasons


def unequal(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """What differs between the settings of two runs, each as `name value against value`.

    What only this project's model class records is no difference where one side lacks it.
    """
    reasons = []
    for key in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get(key), theirs.get(key)
        if a != b and (None not in (a, b) or not key.startswith(_OWN)):
            reasons.append(f"{key} {a!r} against {b!r}")
    return reasons


def align(runs: list[Run]) -> list[Run]:
    """The same runs with their problems in one common order.

    Raises:
        ResultError: two of them are not comparable; the message lists what differs.
    """
    first = min(runs, key=lambda run: (run.date, run.method))
    for run in runs:
        reasons = differences(first, run)
        if reasons:
            raise ResultError(
                f"{first.method} and {run.method} on {run.task} are not comparable: "
                f"{'; '.join(reasons)} ({first.path.parent} and {run.path.parent}). Give "
                "folders of one setting only, or run both with the same tasks, limit, K and model; "
                "--intersect leaves out problems that some runs lack"
            )
    return [_reordered(run, first.problems) for run in runs]


def intersect(runs: list[Run]) -> list[Run]:
    """The runs on the problems that all of them have with the same document.

    Raises:
        ResultError: there is no such problem.
    """
    every = [set(zip(run.problems, run.hashes, strict=True)) for run in runs]
    common = set.intersection(*every)
    if not common:
        raise ResultError(
            f"no problem of {runs[0].task} is in all runs: " + ", ".join(r.method for r in runs)
        )
    for run, own in zip(runs, every, strict=True):
        if len(own) > len(common):
            log.warning(
                "%s on %s: %d of %d problems are left out, which other runs lack",
                *(run.method, run.task, len(own) - len(common), len(own)),
            )
    first = [p for p, h in zip(runs[0].problems, runs[0].hashes, strict=True) if (p, h) in common]
    return [_reordered(run, tuple(first)) for run in runs]


def combine(runs: list[Run]) -> Run:
    """One run whose per-problem values are the means over replicates (seeds) of one method."""
    runs = align(runs)
    if len(runs) == 1:
        return runs[0]
    names = [name for name in runs[0].metrics if all(name in run.metrics for run in runs)]
    stacked = {name: np.stack([run.metrics[name] for run in runs]) for name in names}
    return replace(runs[0], metrics={name: v.mean(0) for name, v in stacked.items()})


def _read_task(
    path: Path,
    results: dict[str, Any],
    task: str,
    config: dict[str, Any],
    label: str | None,
    partial: bool,
) -> Run:
    dated = _DATE.search(path.stem)  # `--output_path name.json` gives name_<date>.json
    date_id = dated[0] if dated else path.stem.removeprefix("results_")
    samples_path = path.with_name(f"samples_{task}_{date_id}.jsonl")
    if not samples_path.is_file():
        raise ResultError(
            f"{samples_path} is missing: run lm_eval with --log_samples (a comparison needs the "
            "values of each problem)"
        )
    rows: dict[str, dict[str, Any]] = {}
    names: dict[str, None] = {}
    aggregated = {name.partition(",")[0] for name in results["results"].get(task, ())}
    for line in _lines(samples_path):
        key, hash = _problem_id(line), _doc_hash(line)
        row = rows.setdefault(key, {"hash": hash, "cluster": _cluster(line), "values": {}})
        if row["hash"] != hash:
            raise ResultError(f"{samples_path}: two problems have the id {key!r}")
        # Older files don't list a problem's metrics: they are what the results are means of.
        for name in line.get("metrics", aggregated & line.keys() - {"alias"}):
            metric = _metric_key(name, line.get("filter", ""))
            if metric in row["values"]:
                raise ResultError(f"{samples_path}: problem {key!r} appears twice")
            row["values"][metric] = line[name]
            names[metric] = None
    expected = (results.get("n-samples") or {}).get(task, {}).get("effective")
    if not rows or (expected is not None and len(rows) < expected and not partial):
        raise ResultError(
            f"{samples_path} holds {len(rows)} of {expected} problems: the file is truncated; run "
            "this method again, or compare the problems that are there with --intersect"
        )
    if not names:
        raise ResultError(f"{samples_path} holds no value of any metric of {task}")
    clusters = tuple(row["cluster"] for row in rows.values())
    header = results.get("config") or {}
    info = header.get("embednoise") or {}
    generation = config.get("generation_kwargs") or {}
    sampling = {key: generation[key] for key in SAMPLING if key in generation}
    perturbation = info.get("perturbation") or {}
    source = _model_source(results, header, info)
    seeds = (perturbation.get("seed"), generation.get("seed"), header.get("torch_seed"))
    given = label or info.get("method")
    return Run(
        path=path,
        samples_path=samples_path,
        model=source.split("/")[-1],
        model_source=source,
        method=given or label_of(perturbation, sampling),
        labelled=given is not None,
        engine=str(header.get("model") or ""),
        task=task,
        seed=next((seed for seed in seeds if isinstance(seed, int)), None),
        k=int(config.get("repeats") or 1),
        settings=_settings(results, header, info, config, task),
        perturbation=perturbation,
        sampling=sampling,
        info=info,
        date=float(results.get("date") or 0.0),
        problems=tuple(rows),
        hashes=tuple(row["hash"] for row in rows.values()),
        clusters=clusters if any(cluster is not None for cluster in clusters) else None,
        metrics={name: _column(rows, name) for name in names},
        higher_is_better=dict((results.get("higher_is_better") or {}).get(task) or {}),
        identical=results["results"].get(task, {}).get(f"{IDENTICAL},{_RECORDS}"),
        environment=environment(results, info),
    )


def _settings(
    results: dict[str, Any],
    header: dict[str, Any],
    info: dict[str, Any],
    config: dict[str, Any],
    task: str,
) -> dict[str, Any]:
    generation = config.get("generation_kwargs") or {}
    model = info.get("model") or {}
    settings = {
        "data version": (results.get("versions") or {}).get(task),
        "num_fewshot": config.get("num_fewshot"),
        "description": config.get("description"),
        "chat template": results.get("chat_template_sha"),
        "system instruction": results.get("system_instruction_sha"),
        "stream_version": info.get("stream_version"),
        "model commit": header.get("model_sha") or None,
        "model dtype": header.get("model_dtype"),
        **{
            f"generation {k}": sorted(v) if isinstance(v, list) else v
            for k, v in generation.items()
            if k not in (*SAMPLING, "seed")
        },
        **{f"model {k}": model.get(k) for k in _OF_THE_MODEL},
    }
    return {key: value for key, value in settings.items() if value is not None}


def _model_source(results: dict[str, Any], header: dict[str, Any], info: dict[str, Any]) -> str:
    arguments = header.get("model_args")
    if isinstance(arguments, str):  # as older harnesses wrote them: key=value,key=value
        arguments = dict(item.partition("=")[::2] for item in arguments.split(","))
    given = arguments.get("pretrained") or arguments.get("model") if arguments else None
    named = (info.get("model") or {}).get("name") or given or results.get("model_name")
    return str(named or header.get("model") or "model").rstrip("/")


def _metric_key(name: str, filter_name: str) -> str:
    """What the analysis calls a metric: this project's by their present names."""
    if filter_name == _RECORDS:
        return RENAMED.get(name, name)
    return name if filter_name in ("none", "") else f"{name},{filter_name}"


def _column(rows: dict[str, dict[str, Any]], name: str) -> Array:
    values = [row["values"].get(name) for row in rows.values()]
    return np.array(
        [float(v) if isinstance(v, (int, float)) else np.nan for v in values], dtype=np.float64
    )


def _problem_id(line: dict[str, Any]) -> str:
    doc = line.get("doc")
    named = doc.get("task_id") if isinstance(doc, dict) else None
    return str(named if named is not None else _doc_hash(line))


def _doc_hash(line: dict[str, Any]) -> str:
    """The harness's hash of the document, computed as it does where an older one wrote none."""
    if line.get("doc_hash"):
        return str(line["doc_hash"])
    text = json.dumps(line.get("doc"), indent=2, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _cluster(line: dict[str, Any]) -> Any:
    doc = line.get("doc")
    return doc.get("cluster") if isinstance(doc, dict) else None


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            try:
                line = json.loads(text)
            except ValueError as error:
                raise ResultError(
                    f"{path}, line {number} is damaged or cut off ({error}): run this method again"
                ) from None
            yield line


def _load_json(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise ResultError(f"{path} is damaged or cut off ({error}): run it again") from None
    if not isinstance(loaded, dict):
        raise ResultError(f"{path} holds no JSON object")
    return loaded


def _results_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.json") if _RESULTS.search(path.name))


def _labelled(source: str | Path) -> tuple[str | None, Path]:
    if isinstance(source, Path) or Path(source).exists() or "=" not in source:
        return None, Path(source)
    label, _, path = source.partition("=")
    return label, Path(path)


def _reordered(run: Run, problems: tuple[str, ...]) -> Run:
    """A run on these of its problems, in this order."""
    if run.problems == problems:
        return run
    where = {problem: i for i, problem in enumerate(run.problems)}
    order = [where[problem] for problem in problems]
    return replace(
        run,
        problems=problems,
        hashes=tuple(run.hashes[i] for i in order),
        clusters=run.clusters and tuple(run.clusters[i] for i in order),
        metrics={name: values[order] for name, values in run.metrics.items()},
    )
