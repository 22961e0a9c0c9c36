"""Between hf-embednoise and its generation store: keys, what is stored, what is new."""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
import os
import platform
import secrets
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from lm_eval.utils import handle_non_serializable, hash_string

from lm_eval_embednoise.engine.jobs import Job, Sample
from lm_eval_embednoise.engine.likelihood import unscorable
from lm_eval_embednoise.models.loading import Loading, keyed
from lm_eval_embednoise.models.text import end_tokens
from lm_eval_embednoise.noise import streams
from lm_eval_embednoise.noise.perturbation import Perturbation
from lm_eval_embednoise.store import fingerprint
from lm_eval_embednoise.store.store import Document, Prompt, Store, Stored, digest

if TYPE_CHECKING:
    from lm_eval_embednoise.engine.sampler import Sampler
    from lm_eval_embednoise.engine.sampling import Sampling
    from lm_eval_embednoise.noise.clean_states import CleanStates

log = logging.getLogger(f"lm_eval.{__name__}")

KEY_VERSION = 2  # 1 left out what is made of a prompt, most of the loading, and these
LEFT_OUT = ("subfolder", "gguf_file", "truncation")


class Loaded(Protocol):
    """What of the loaded model decides a sample, and what is noted beside it."""

    model: Any
    tokenizer: Any
    pretrained: Any
    peft: Any
    delta: Any
    loading: Loading
    given: dict[str, Any]
    identity: dict[str, Any] | None
    perturbation: Perturbation
    blocks: str | None
    exact: bool
    perplexity: bool
    method: str | None
    store: Store | None
    think_end_token: Any

    @property
    def states(self) -> CleanStates | None:
        """The clean model's hidden states, where the perturbation needs them."""

    @property
    def max_length(self) -> int:
        """Most positions of a sample."""

    @property
    def device(self) -> Any:
        """Where the model is."""

    @property
    def world_size(self) -> int:
        """How many processes share the work."""

    def signature(self) -> str:
        """The perturbation in one line."""

    def model_name(self) -> str:
        """The model's name."""

    def text_of(
        self, ids: Sequence[int], until: tuple[str, ...], prompt: Sequence[int] = ()
    ) -> str:
        """The text of generated ids."""


def deterministic(perturbation: Perturbation, sampling: Sampling) -> bool:
    """Whether all samples of a prompt are the same: then no draw is part of a key."""
    return sampling.greedy and not perturbation.varies and not sampling.strata


def model_identity(lm: Loaded) -> dict[str, Any]:
    """What the weights, the tokenizer and their number format are, wherever they are stored.

    And, under `loading`, every other argument that can change a sample (models/loading.py).
    """
    config = lm.model.config
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None and not isinstance(quantization, Mapping):
        quantization = quantization.to_dict()
    loading = json.loads(json.dumps(keyed(lm.given), default=str))
    return {
        "model": _model(lm, getattr(config, "_commit_hash", None)),
        "peft": _weights(lm, lm.peft) if lm.peft else None,
        "delta": _weights(lm, lm.delta) if lm.delta else None,
        "tokenizer": fingerprint.of_tokenizer(lm.tokenizer),
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "quantization": json.loads(json.dumps(quantization, default=str, sort_keys=True)),
        **({"loading": loading} if loading else {}),
    }


def _model(lm: Loaded, commit: str | None) -> dict[str, str]:
    """A GGUF file by its content, a folder by its files, a hub model by its commit and place there.

    A model that was given loaded goes by its parameters and configuration.
    """
    if lm.loading.gguf is not None:
        return {"fingerprint": fingerprint.of_file(lm.loading.gguf)}
    if not isinstance(lm.pretrained, (str, Path)):
        return {**_weights(lm, None), "config": fingerprint.of_config(lm.model.config)}
    within = {name: lm.given[name] for name in ("subfolder", "gguf_file") if lm.given.get(name)}
    folder = Path(lm.pretrained)
    if commit and not folder.is_dir():
        return {"name": str(lm.pretrained), "commit": commit, **within}
    return _weights(lm, folder / within.get("subfolder", ""))


def _weights(lm: Loaded, folder: str | Path | None) -> dict[str, str]:
    """A local folder by its files, anything else by the parameters that are loaded."""
    if folder is not None and Path(folder).is_dir():
        return {"fingerprint": fingerprint.of_folder(folder)}
    return {"parameters": fingerprint.of_model(lm.model)}


def input_of(job: Job) -> str:
    """Hash of what a job gives to the model; empty where that is the plain prompt."""
    if job.soft_start is None and job.prompt_ids == job.clean:
        return ""
    return digest([list(job.prompt_ids), job.soft_start])


def settings_of(lm: Loaded, sampling: Sampling) -> dict[str, Any]:
    """All that determines samples, but for the prompt and the sample index, in one canonical form.

    What can't matter is left out, so that settings that mean the same have the same keys.
    """
    perturbation = dict(lm.perturbation.canonical())
    seed = perturbation.pop("seed", None)
    if lm.perturbation.sites and lm.blocks:
        perturbation["blocks"] = lm.blocks
    if lm.states is not None:
        perturbation["states"] = lm.states.hash
    fixed = deterministic(lm.perturbation, sampling)
    return {
        **identity(lm),
        "perturbation": perturbation,
        "sampling": sampling.canonical(),
        "until": sorted(set(sampling.until)),
        "max_gen_toks": sampling.max_gen_toks,
        "max_length": lm.max_length,
        "end_tokens": sorted(end_tokens(lm.model, lm.tokenizer)),
        "seed": None if fixed else seed,
        "stream_version": None if fixed else streams.STREAM_VERSION,
        **({"think_end_token": lm.think_end_token} if lm.think_end_token else {}),
        **({"exact": True} if lm.exact else {}),
    }


def identity(lm: Loaded) -> dict[str, Any]:
    """`model_identity`, worked out once."""
    if lm.identity is None:
        lm.identity = model_identity(lm)
    return lm.identity


def settings_in(store: Store, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings under which a store keeps samples: others where an older version left some out.

    Keys of version 1 had no `LEFT_OUT` argument in them: where samples made with one are under
    these settings, they look like those made without, and none of them is taken.
    """
    hash = digest(settings)
    for facts in store.runs().values():
        args = facts.get("model_args") or {}
        old = facts.get("settings") == hash and "key_version" not in facts
        if old and (keyed(args) or any(args.get(name) for name in LEFT_OUT)):
            return {**settings, "key_version": KEY_VERSION}
    return settings


def run_of(lm: Loaded, sampling: Sampling, rows: int, settings: str) -> tuple[str, dict[str, Any]]:
    """A name for what this process does now, and all that is worth knowing and in no key.

    `settings` is the hash of those that its samples are stored under.
    """
    now = datetime.datetime.now(datetime.timezone.utc)
    name = f"{now:%Y%m%dT%H%M%S.%f}-{secrets.token_hex(4)}"
    arguments = {key: getattr(lm.perturbation, key) for key in Perturbation.names()}
    facts = {
        "settings": settings,
        "key_version": KEY_VERSION,
        "started": now.isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "processes": lm.world_size,
        "method": lm.method,
        "signature": lm.signature(),
        "model": lm.model_name(),
        "model_args": lm.given,
        "perturbation": arguments,
        "sampling": dataclasses.asdict(sampling),
        "batch_size": rows,
        "device": str(lm.device),
        "attention": getattr(lm.model.config, "_attn_implementation", None),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": torch.__version__,
    }
    return name, json.loads(json.dumps(facts, default=str))


def doc_hash(doc: Any) -> str:
    """The harness's hash of a document, as in samples_*.jsonl."""
    text = json.dumps(doc, indent=2, default=handle_non_serializable, ensure_ascii=False)
    return hash_string(text)


def document_of(request: Any, prompt: Prompt, problem: str | None) -> Document:
    """What is recorded of a request's document."""
    doc = request.doc if isinstance(request.doc, Mapping) else {}
    fields = {key: doc[key] for key in ("prompt", "entry_point") if isinstance(doc.get(key), str)}
    task_id = doc.get("task_id")
    return Document(
        str(request.task_name),
        doc_hash(request.doc),
        request.doc_id,
        None if task_id is None else str(task_id),
        prompt.hash,
        problem,
        fields=fields,
    )


def _place(doc: Document) -> tuple[Any, ...]:
    return doc.task, doc.doc_id, doc.doc_hash, doc.prompt


class Ledger:
    """The samples of some jobs: those in the store, and the rest as it is generated.

    Attributes:
        there: what the store has, as the sampler would have given it.
        left: the same jobs with the samples that are still to be generated.
    """

    def __init__(
        self,
        lm: Loaded,
        sampling: Sampling,
        jobs: Sequence[Job],
        requests: Sequence[Any],
    ) -> None:
        assert lm.store is not None
        self.lm, self.sampling, self.jobs = lm, sampling, jobs
        self.store: Store = lm.store
        self.settings = settings_in(self.store, settings_of(lm, sampling))
        self.hash = digest(self.settings)
        self.fixed = deterministic(lm.perturbation, sampling)
        self.inputs = [input_of(job) for job in jobs]
        self.prompts = [
            Prompt(job.clean, request.args[0]) for job, request in zip(jobs, requests, strict=True)
        ]
        known = self.store.samples(self.hash)
        self._stored = [self._known(number, known) for number in range(len(jobs))]
        self.left = [
            dataclasses.replace(job, samples=tuple(i for i in job.samples if i not in rows))
            for job, rows in zip(jobs, self._stored, strict=True)
        ]
        # Their log-likelihood is still missing: killed between a problem's texts and their scores.
        self._unscored = [
            [row for row in rows.values() if self._unscored_yet(row)] for rows in self._stored
        ]
        self.there = [
            self._sample(number, row)
            for number, rows in enumerate(self._stored)
            for row in rows.values()
            if not self._unscored_yet(row)
        ]
        self._documents(requests)

    def _documents(self, requests: Sequence[Any]) -> None:
        """Record which documents the prompts come from, where the store doesn't say it yet."""
        recorded = set(map(_place, self.store.documents(self.hash)))
        documents = [
            document_of(request, prompt, self._problem(number))
            for number, (request, prompt) in enumerate(zip(requests, self.prompts, strict=True))
        ]
        new = list({_place(doc): doc for doc in documents if _place(doc) not in recorded}.values())
        if new:
            wanted = {doc.prompt for doc in new}
            prompts = [prompt for prompt in self.prompts if prompt.hash in wanted]
            self.store.append(settings=self.settings, prompts=prompts, documents=new)

    def _unscored_yet(self, row: Stored) -> bool:
        if unscorable(row.finish_reason, row.kept):
            return False
        return self.lm.perplexity and row.nll is None and row.nll_tokens is None

    def _problem(self, number: int) -> str | None:
        return None if self.fixed else self.jobs[number].problem

    def _known(self, number: int, known: Mapping[str, Stored]) -> dict[int, Stored]:
        """Sample index → what the store has of a job; of identical samples one serves for all."""
        rows = {}
        for index in self.jobs[number].samples:
            wanted = self._blank(number, index)
            # A key of version 1 has no input; then the settings and the prompt determine it.
            row = known.get(wanted.key) or known.get(dataclasses.replace(wanted, input="").key)
            if row is not None:
                rows[index] = row
        if self.fixed and rows and len(rows) < len(self.jobs[number].samples):
            one = next(iter(rows.values()))
            copies = [
                dataclasses.replace(one, sample=index, seconds=0.0)
                for index in self.jobs[number].samples
                if index not in rows
            ]
            self.store.append(copies, settings=self.settings, prompts=[self.prompts[number]])
            rows |= {row.sample: row for row in copies}
        return rows

    def announce(self, bar: Any) -> None:
        """Say what is there, and let the bar's rate count from here."""
        there = sum(map(len, self._stored))
        if there:
            wanted = sum(len(job.samples) for job in self.jobs)
            state = f"{there} of {wanted} samples are in the store {self.store.folder}"
            log.info("%s; generating %d", state, wanted - there)
            bar.initial = bar.n
            bar.set_description(f"generating ({there} from the store)")

    def run(self, sampler: Sampler) -> Iterator[Sample]:
        """Generate what is left, each sample stored before it is given out.

        Texts that need a pass to be scored are stored without their scores as they finish, so a
        crash costs scores, not texts. Those of an earlier crash are scored with the new ones.
        """
        unscored = {
            (number, row.sample): row for number, rows in enumerate(self._unscored) for row in rows
        }
        jobs = [
            dataclasses.replace(job, samples=job.samples + tuple(row.sample for row in rows))
            for job, rows in zip(self.left, self._unscored, strict=True)
        ]
        try:
            with sampler.ready():
                for together in sampler.scored(jobs, self._texts(sampler, unscored)):
                    self._keep_scores(together, unscored)
                    yield from together
        finally:
            self.store.close()

    def _texts(self, sampler: Sampler, unscored: dict[tuple[int, int], Stored]) -> Iterator[Sample]:
        """Samples without a score: those that the store has, then new ones, stored at once.

        Args:
            sampler: generates them.
            unscored: (job, sample index) → row without a score; gets those of new samples.
        """
        yield from [self._sample(number, row) for (number, _), row in unscored.items()]
        run = run_of(self.lm, self.sampling, sampler.rows(self.left), self.hash)
        for sample in sampler.generate(self.left):
            row = self._row(sample, run[0])
            prompts = [self.prompts[sample.job]]
            self.store.append([row], settings=self.settings, run=run, prompts=prompts)
            if self._unscored_yet(row):
                unscored[sample.job, sample.index] = row
            yield sample

    def _keep_scores(self, samples: list[Sample], unscored: dict[tuple[int, int], Stored]) -> None:
        """Add the scores of samples that were stored without."""
        rows = [
            dataclasses.replace(row, nll=sample.nll, nll_tokens=sample.kept)
            for sample in samples
            if (row := unscored.pop((sample.job, sample.index), None)) is not None
        ]
        if rows:
            self.store.add_nlls(rows)

    def _blank(self, number: int, index: int) -> Stored:
        """A job's sample before it is made: what its key needs."""
        prompt, problem = self.prompts[number].hash, self._problem(number)
        return Stored(
            *(self.hash, prompt, problem, index, "", None, None, None), input=self.inputs[number]
        )

    def _row(self, sample: Sample, run: str) -> Stored:
        return dataclasses.replace(
            self._blank(sample.job, sample.index),
            text=self.lm.text_of(sample.ids, self.sampling.until, self.jobs[sample.job].clean),
            ids=tuple(sample.ids),
            kept=sample.kept,
            finish_reason=sample.finish_reason,
            nll=sample.nll,
            nll_tokens=None if sample.nll is None else sample.kept,
            rho=dict(sample.rho),
            std=dict(sample.std),
            seconds=sample.seconds,
            run=run,
        )

    def _sample(self, number: int, row: Stored) -> Sample:
        return Sample(
            number,
            row.sample,
            list(row.ids or ()),
            row.kept or 0,
            row.finish_reason or "",
            row.nll if self.lm.perplexity else None,
            dict(row.rho),
            dict(row.std),
            row.seconds or 0.0,
        )

    def stds(self, sampler: Sampler) -> dict[str, list[float]]:
        """Site → per-coordinate standard deviation of every job, stored ones included."""
        known = [next(iter(rows.values())).std for rows in self._stored if rows]
        known += [
            sampler.runner.site_std(number, job)
            for number, job in enumerate(self.left)
            if job.samples and not self._stored[number] and sampler.runner.room(job) > 0
        ]
        return {site: [std[site] for std in known if std] for site in self.lm.perturbation.sites}
