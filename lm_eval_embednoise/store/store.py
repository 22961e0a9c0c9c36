"""The generation store: a folder of segments with one row a sample, looked up by its key.

A key is a hash of all that determines a sample: the settings (model, perturbation, sampling, …),
the prompt's token ids and what is made of them (cuts, soft prompts, prefixes, dummies), the
problem's name in the random streams and the sample index. What has no influence is left out: a
deterministic method has no seed, no stream and no problem in its keys. Batch size, device and
kernels are recorded with the run that made a sample, beside its key.

The store imports neither models nor the harness. Several processes and hosts may share a folder:
each writes its own segments (lm_eval_embednoise.store.segments), and reading merges them, the
oldest row of a key first.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_embednoise.store.segments import Records, StoreError, Writer, rows, segment_paths
from lm_eval_embednoise.written import write_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

FORMAT, VERSION = "embednoise-generations", 1
MARKER = "store.json"
_PROBE_BYTES = 1 << 16


def digest(value: Any) -> str:
    """128 bits over a JSON value in one canonical form, as 32 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Prompt:
    """A prompt: its token ids, and the text they came from."""

    ids: tuple[int, ...]
    text: str = ""

    @property
    def hash(self) -> str:
        """The prompt's hash in keys: of its token ids, or of its text if a file gave no ids."""
        return digest([list(self.ids), "" if self.ids else self.text])


@dataclass(frozen=True)
class Document:
    """Where a prompt comes from. Recorded beside the samples, and in no key.

    Attributes:
        task: the task's name.
        doc_hash: the harness's hash of the document; empty where a file didn't give it.
        doc_id: its place in the task.
        task_id: the problem's own id, where the document has one.
        prompt: hash of the prompt.
        problem: the prompt's name in the random streams; None for deterministic methods.
        form: `completion` continues the prompt, `program` (some imports) contains it.
        fields: the document's own `prompt` and `entry_point`, for exporting whole programs.
    """

    task: str
    doc_hash: str
    doc_id: int
    task_id: str | None
    prompt: str
    problem: str | None
    form: str = "completion"
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stored:
    """One sample.

    Attributes:
        settings: hash of the settings it was made under.
        prompt: hash of its prompt.
        problem: its prompt's name in the random streams; None for deterministic methods.
        sample: the sample index.
        text: what was generated, up to a stop string.
        ids: generated ids; the first `kept` come before the stop string.
        finish_reason: as in `Generation`.
        nll: clean negative log-likelihood of `nll_tokens` tokens in nats; None if not computed.
        rho: site → measured ‖ε‖/‖h‖.
        std: site → standard deviation per coordinate.
        seconds: share of the generation time.
        run: which run made it (batch, device, versions).
        input: hash of what the model was given, where that isn't the prompt alone: token ids with
            all that is added or cut off, and the place of a soft prompt. Stored after the prompt's
            hash in the same column.
    """

    settings: str
    prompt: str
    problem: str | None
    sample: int
    text: str
    ids: tuple[int, ...] | None
    kept: int | None
    finish_reason: str | None
    nll: float | None = None
    nll_tokens: int | None = None
    rho: Mapping[str, float] = field(default_factory=dict)
    std: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    run: str = ""
    input: str = ""

    @property
    def place(self) -> str:
        """The prompt's hash and, behind a colon, the input's where there is one."""
        return f"{self.prompt}:{self.input}" if self.input else self.prompt

    @property
    def key(self) -> str:
        """The sample's key, 32 hexadecimal digits."""
        return digest([self.settings, self.place, self.problem, self.sample])


class Store:
    """A generation store in a folder.

    Args:
        folder: the store's folder.
        write: make the folder, and check at once that it can be written to.

    Raises:
        ValueError: the folder holds something else, or a store of another version.
        StoreError: it can't be read, or not written to, or its disk is full.
    """

    def __init__(self, folder: str | Path, write: bool = False) -> None:
        self.folder = Path(folder)
        self._writer = Writer(self.folder)
        self._made: dict[int, tuple[Any, str, str]] = {}  # id → object, its hash, its JSON
        marker = self.folder / MARKER
        try:
            if self.folder.exists() and not self.folder.is_dir():
                raise ValueError(
                    f"store={folder}: this is a file; a generation store is a folder, name an "
                    "empty or a new one"
                )
            if write and not marker.exists() and not self._occupied():
                self.folder.mkdir(parents=True, exist_ok=True)
                self._make_marker(marker)
            self._check(marker)
            if write:
                self._probe()
        except OSError as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(
                f"store={folder}: {error.strerror or error}; name a folder that can be "
                f"{'written to, on a disk with room' if write else 'read'}"
            ) from None

    def _occupied(self) -> bool:
        return self.folder.exists() and any(
            not path.name.startswith(".") for path in self.folder.iterdir()
        )

    def _make_marker(self, marker: Path) -> None:
        write_text(marker, json.dumps({"format": FORMAT, "version": VERSION}) + "\n")

    def _check(self, marker: Path) -> None:
        if not marker.is_file():
            there = "holds other files" if self.folder.exists() else "does not exist"
            raise ValueError(
                f"store={self.folder} {there} and is no generation store (it has no {MARKER}); "
                "name the store= folder of a run, or for a new store an empty or a new folder"
            )
        try:
            said = json.loads(marker.read_text(encoding="utf-8"))
            made, version = said["format"], said["version"]
        except (ValueError, TypeError, KeyError):
            raise ValueError(
                f"{marker} is not this program's (no format and version in it); name another folder"
            ) from None
        if made != FORMAT or version != VERSION:
            raise ValueError(
                f"{marker} says format {made!r}, version {version!r}; this program reads {FORMAT!r}"
                f", version {VERSION}: use the version that wrote it, or name another folder"
            )

    def _probe(self) -> None:
        probe = self.folder / f".probe-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            with probe.open("wb") as file:
                file.write(bytes(_PROBE_BYTES))
                file.flush()
                os.fsync(file.fileno())
        finally:
            probe.unlink(missing_ok=True)

    def append(
        self,
        samples: Iterable[Stored] = (),
        *,
        settings: Mapping[str, Any] | None = None,
        run: tuple[str, Mapping[str, Any]] | None = None,
        prompts: Iterable[Prompt] = (),
        documents: Iterable[Document] = (),
    ) -> None:
        """Commit samples, and what they refer to, in one transaction.

        Raises:
            StoreError: the disk is full or the folder can't be written to.
        """
        self._writer.append(self._records(samples, settings, run, prompts, documents))

    def _records(
        self,
        samples: Iterable[Stored],
        settings: Mapping[str, Any] | None,
        run: tuple[str, Mapping[str, Any]] | None,
        prompts: Iterable[Prompt],
        documents: Iterable[Document],
    ) -> Records:
        if settings is not None:
            hash, text = self._once(settings)
            yield "settings", (hash, text)
        if run is not None:
            yield "runs", (run[0], self._once(run[1])[1])
        for prompt in prompts:
            yield "prompts", (prompt.hash, _json(prompt.ids), _bytes(prompt.text))
        for doc in documents:
            assert settings is not None
            yield (
                "documents",
                (
                    *(hash, doc.task, doc.doc_hash, doc.doc_id, doc.task_id),
                    *(doc.prompt, doc.problem, doc.form, _json(doc.fields)),
                ),
            )
        for row in samples:
            yield (
                "samples",
                (
                    *(row.key, row.settings, row.place, row.problem, row.sample, _bytes(row.text)),
                    *(None if row.ids is None else _json(row.ids), row.kept, row.finish_reason),
                    *(_json(row.rho), _json(row.std), row.seconds, row.run),
                ),
            )
            if row.nll is not None:
                yield "nlls", (row.key, row.settings, row.nll, row.nll_tokens)

    def _once(self, value: Any) -> tuple[str, str]:
        """Hash and JSON of settings or a run, worked out once: they come with every sample."""
        if id(value) not in self._made:
            self._made[id(value)] = (value, digest(value), _json(value))
        return self._made[id(value)][1:]

    def add_nlls(self, rows: Iterable[Stored]) -> None:
        """Commit the log-likelihoods of samples that were stored without."""
        self._writer.append(
            ("nlls", (row.key, row.settings, row.nll, row.nll_tokens)) for row in rows
        )

    def close(self) -> None:
        """Close the segment under way."""
        self._writer.close()

    def samples(self, settings: str) -> dict[str, Stored]:
        """Key → sample, of all that was made under the given settings, sorted by key."""
        samples: dict[str, tuple[Any, ...]] = {}
        nlls: dict[str, tuple[float, int]] = {}
        for values in self._select("samples", settings):
            samples.setdefault(values[0], values)
        for key, _, nll, tokens in self._select("nlls", settings):
            nlls.setdefault(key, (nll, tokens))
        return {key: _stored(samples[key], nlls.get(key)) for key in sorted(samples)}

    def find(self, start: str) -> Stored:
        """The one sample whose key begins like this.

        Raises:
            ValueError: there is none, or more than one.
        """
        query = "SELECT key, settings FROM samples WHERE substr(key, 1, ?) = ?"
        matches = set(self._rows(query, (len(start), start)))
        if len(matches) != 1:
            raise ValueError(
                f"{len(matches) or 'no'} samples in {self.folder} have a key that begins with "
                f"{start!r}; `embednoise generations export --to rows` lists the keys"
            )
        ((key, settings),) = matches
        return self.samples(settings)[key]

    def settings(self) -> dict[str, dict[str, Any]]:
        """Hash → settings, of all that samples or documents were stored under."""
        return {hash: json.loads(text) for hash, text in sorted(set(self._select("settings")))}

    def runs(self) -> dict[str, dict[str, Any]]:
        """Name → record of each run (batch, device, versions), in the order in which they began."""
        return {name: json.loads(text) for name, text in sorted(set(self._select("runs")))}

    def prompts(self) -> dict[str, Prompt]:
        """Hash → prompt."""
        return {
            hash: Prompt(tuple(json.loads(ids)), _text(text))
            for hash, ids, text in self._select("prompts")
        }

    def documents(self, settings: str) -> list[Document]:
        """The documents that were asked for under the given settings, in the tasks' order."""
        documents: dict[tuple[Any, ...], Document] = {}
        for values in self._select("documents", settings):
            _, task, doc_hash, doc_id, task_id, prompt, problem, form, fields = values
            document = Document(
                task, doc_hash, doc_id, task_id, prompt, problem, form, json.loads(fields)
            )
            place = (document.task, document.doc_id, document.doc_hash, document.prompt)
            documents.setdefault(place, document)
        return sorted(documents.values(), key=lambda doc: (doc.task, doc.doc_id, doc.doc_hash))

    def counts(self) -> dict[str, int]:
        """Settings hash → number of different samples."""
        keys: dict[str, set[str]] = {}
        for key, settings in self._rows("SELECT key, settings FROM samples"):
            keys.setdefault(settings, set()).add(key)
        return {settings: len(made) for settings, made in sorted(keys.items())}

    def _rows(self, query: str, values: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        for path in segment_paths(self.folder):
            yield from rows(path, query, values)

    def _select(self, table: str, settings: str | None = None) -> Iterator[tuple[Any, ...]]:
        if settings is None:
            return self._rows(f"SELECT * FROM {table}")
        return self._rows(f"SELECT * FROM {table} WHERE settings = ?", (settings,))


def _stored(values: Sequence[Any], nll: tuple[float, int] | None) -> Stored:
    _, settings, place, problem, sample, text, ids, kept, reason, rho, std, seconds, run = values
    prompt, _, input = place.partition(":")
    return Stored(
        settings,
        prompt,
        problem,
        sample,
        _text(text),
        None if ids is None else tuple(json.loads(ids)),
        kept,
        reason,
        nll[0] if nll else None,
        nll[1] if nll else None,
        json.loads(rho),
        json.loads(std),
        seconds,
        run,
        input,
    )


def _json(value: Any) -> str:
    if isinstance(value, tuple):
        value = list(value)
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")
