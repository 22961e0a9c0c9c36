"""One process's part of a generation store: an SQLite file in WAL mode that only it appends to.

The writer holds its file exclusively, so no shared memory is used and the folder may lie on a
network file system. While a segment is being written everything is in its write-ahead log,
which SQLite checks frame by frame; the log is folded into the file only when the segment is closed,
after some thousand rows or at the end. So a reader copies first the file, then the log, and sees
all that was committed, whatever the writer does meanwhile, and whenever it was killed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

PREFIX, SUFFIX = "segment-", ".sqlite"
ROWS_A_SEGMENT = 2048
SCHEMA = """
CREATE TABLE settings (settings TEXT PRIMARY KEY, json TEXT NOT NULL);
CREATE TABLE runs (run TEXT PRIMARY KEY, json TEXT NOT NULL);
CREATE TABLE prompts (prompt TEXT PRIMARY KEY, ids TEXT NOT NULL, text BLOB NOT NULL);
CREATE TABLE documents (
    settings TEXT, task TEXT, doc_hash TEXT, doc_id INTEGER, task_id TEXT, prompt TEXT,
    problem TEXT, form TEXT, fields TEXT,
    PRIMARY KEY (settings, task, doc_id, doc_hash, prompt));
CREATE TABLE samples (
    key TEXT PRIMARY KEY, settings TEXT, prompt TEXT, problem TEXT, sample INTEGER, text BLOB,
    ids TEXT, kept INTEGER, finish_reason TEXT, rho TEXT, std TEXT, seconds REAL, run TEXT);
CREATE TABLE nlls (key TEXT PRIMARY KEY, settings TEXT, nll REAL, nll_tokens INTEGER);
"""
TABLES = ("settings", "runs", "prompts", "documents", "samples", "nlls")
Records = Iterable[tuple[str, tuple[Any, ...]]]


class StoreError(OSError):
    """A generation store that can't be read or written; the message says where and what to do."""


class Writer:
    """Appends to its own segments in a folder, a new one after every ROWS_A_SEGMENT samples."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._connection: sqlite3.Connection | None = None
        self._written: set[tuple[str, Any]] = set()  # what this segment says already
        self._samples = 0

    def append(self, records: Records) -> None:
        """Commit rows, given as (table, values), together: after a crash all are there or none.

        Raises:
            StoreError: the disk is full or the folder can't be written to.
        """
        try:
            if self._connection is None:
                self._connection = self._open()
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                for table, values in records:
                    self._insert(self._connection, table, values)
            if self._samples >= ROWS_A_SEGMENT:
                self.close()
        except (sqlite3.Error, OSError) as error:
            raise StoreError(
                f"cannot write to the generation store {self.folder}: {error}; make room or mend "
                "the folder's permissions and run the same command again: what is stored is kept"
            ) from None

    def close(self) -> None:
        """Fold the log into the file; the next `append` begins a new segment."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            self._written.clear()
            self._samples = 0
            connection.close()

    def _open(self) -> sqlite3.Connection:
        host = "".join(c for c in socket.gethostname() if c.isalnum() or c in "-_")[:40]
        name = f"{time.time_ns():020d}-{host}-{os.getpid()}-{secrets.token_hex(4)}"
        path = self.folder / f"{PREFIX}{name}{SUFFIX}"
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")  # and so no -shm file
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA wal_autocheckpoint=0")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.executescript(f"BEGIN IMMEDIATE;{SCHEMA}COMMIT;")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _insert(self, connection: sqlite3.Connection, table: str, values: tuple[Any, ...]) -> None:
        repeated = table in ("settings", "runs", "prompts")
        if repeated and (table, values[0]) in self._written:
            return
        marks = ",".join("?" * len(values))
        connection.execute(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", values)
        if repeated:
            self._written.add((table, values[0]))
        self._samples += table == "samples"


def segment_paths(folder: Path) -> list[Path]:
    """The segments of a folder, oldest first."""
    return sorted(folder.glob(f"{PREFIX}*{SUFFIX}"))


def rows(path: Path, query: str, values: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """What a query finds among the rows that are committed in a segment.

    Raises:
        StoreError: the file is damaged or can't be read.
    """
    try:
        with _readable(path) as (readable, mode):
            connection = sqlite3.connect(f"{readable.resolve().as_uri()}?{mode}", uri=True)
            with contextlib.closing(connection):
                tables = "SELECT name FROM sqlite_master WHERE type = 'table'"
                names = {name for (name,) in connection.execute(tables)}
                if not names:
                    return  # killed before its first commit
                if not set(TABLES) <= names:
                    raise sqlite3.DatabaseError(f"no table {min(set(TABLES) - names)!r}")
                yield from connection.execute(query, values)
    except sqlite3.Error as error:
        raise StoreError(
            f"{path} is damaged ({error}); move it (and {path.name}-wal) out of the store and run "
            "again: only its samples will be generated anew"
        ) from None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror or error}") from None


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[tuple[Path, str]]:
    """A closed segment itself, or a private copy of one that has a log; and how to open it."""
    log = path.with_name(path.name + "-wal")
    if not log.exists():
        yield path, "immutable=1"
        return
    with tempfile.TemporaryDirectory(prefix="embednoise-store-") as temporary:
        copy = Path(temporary) / path.name
        shutil.copyfile(path, copy)
        with contextlib.suppress(FileNotFoundError):  # closed just now: its file is whole
            shutil.copyfile(log, copy.with_name(log.name))
            path = copy
        yield path, "mode=rw" if path == copy else "immutable=1"
