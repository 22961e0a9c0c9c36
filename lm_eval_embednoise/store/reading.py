"""What a generation store holds, as settings and problems."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lm_eval_embednoise.store.generation import Generation
from lm_eval_embednoise.store.problem import Problem

if TYPE_CHECKING:
    from lm_eval_embednoise.store.store import Store, Stored


def describe(settings: dict[str, Any]) -> str:
    """Settings in a few words: the model, the noise, the sampling."""
    if "imported" in settings:
        return f"imported from {settings['imported']['file']}"
    model = settings["model"]
    name = model.get("name") or next(iter(model.values()))[:8]
    sites = settings["perturbation"].get("sites") or {}
    noise = ", ".join(f"σ = {sigma:g} at {site}" for site, sigma in sites.items()) or "no noise"
    sampling = settings["sampling"]
    told = {key: value for key, value in sampling.items() if value is True or value not in (0, 1)}
    drawn = ", ".join(key if value is True else f"{key} {value}" for key, value in told.items())
    where = settings["perturbation"].get("positions") if sites else None
    parts = (f"model {name}", noise, where, drawn or "greedy", f"seed {settings['seed'] or 0}")
    return "; ".join(part for part in parts if part)


def choose(store: Store, start: str | None, task: str | None = None) -> str:
    """The hash of the one settings that `start` names, or that the store (for a task) has.

    Raises:
        ValueError: there is none, or more than one; lists them.
    """
    every = store.settings()
    methods = {run["settings"] for run in store.runs().values() if run.get("method") == start}
    matches = [h for h in every if h.startswith(start or "")] or [h for h in every if h in methods]
    if task is not None and len(matches) > 1:
        matches = [
            h for h in matches if any(doc.task == task for doc in store.documents(h))
        ] or matches
    if len(matches) == 1:
        return matches[0]
    listed = "; ".join(f"{hash[:8]} ({describe(every[hash])})" for hash in matches or every)
    raise ValueError(
        f"{store.folder} has {len(matches) or 'no'} settings"
        + (f" that begin with {start!r}" if start else "")
        + f"; name one with settings=HASH or --settings HASH: {listed or 'it is empty'}"
    )


def problems_of(store: Store, settings: str, task: str | None = None) -> list[Problem]:
    """The samples of one settings by problem, in the tasks' order.

    Raises:
        ValueError: the store has no document of that task; names the tasks it has.
    """
    documents = store.documents(settings)
    if task is not None:
        tasks = sorted({document.task for document in documents})
        documents = [document for document in documents if document.task == task]
        if not documents:
            raise ValueError(
                f"{store.folder} has no samples of task {task!r} under settings {settings[:8]}; "
                f"it has {', '.join(tasks) or 'no documents'}"
            )
    prompts = store.prompts()
    by_prompt: dict[tuple[str, str | None], list[Stored]] = {}
    for row in store.samples(settings).values():
        by_prompt.setdefault((row.prompt, row.problem), []).append(row)
    problems = []
    for doc in documents:
        rows = sorted(by_prompt.get((doc.prompt, doc.problem), []), key=lambda row: row.sample)
        problems.append(
            Problem(
                tuple(map(generation_of, rows)),
                str(store.folder),
                doc.form,
                doc.task or None,
                doc.task_id,
                doc.doc_hash or None,
                doc.doc_id,
                prompts[doc.prompt].text or None,
                doc.fields,
            )
        )
    return problems


def generation_of(row: Stored) -> Generation:
    """A stored sample as a model returns it."""
    sites = {site: {"rho": row.rho[site], "std": std} for site, std in row.std.items()}
    return Generation(
        row.text,
        sample_index=row.sample,
        tokens=row.kept,
        finish_reason=row.finish_reason,
        nll=row.nll,
        nll_tokens=row.nll_tokens,
        rho=max(row.rho.values()) if row.rho else None,
        sites=sites or None,
        seconds=row.seconds,
    )
