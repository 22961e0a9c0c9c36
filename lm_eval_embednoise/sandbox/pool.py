"""Hand out programs to worker processes, collect outcomes in order."""

from __future__ import annotations

import logging
import os
import queue
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from . import levels
from .jobs import Job, Outcome, SandboxError
from .process import Worker
from .scratch import sweep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

log = logging.getLogger(__name__)
Item = TypeVar("Item")
Result = TypeVar("Result")


def default_workers() -> int:
    """One for each processor this process may use."""
    return len(os.sched_getaffinity(0))


def map_items(
    function: Callable[[Callable[[Job], Outcome], Item], Result],
    items: Sequence[Item],
    *,
    workers: int | None = None,
    progress: bool = True,
    level: str | None = None,
    description: str = "judging",
) -> list[Result]:
    """Apply `function(run, item)` to every item, in parallel, results in the order of items.

    `run` judges one job in the sandbox; a function may call it several times and stop early. When
    the sandbox itself fails for an item, that item is tried once more in a fresh worker; the other
    items are finished in any case.

    Raises:
        SandboxError: after all items are done, naming how many failed and the first reason.
    """
    if not items:
        return []
    level = level or levels.strongest()
    sweep()
    results: list[Any] = [None] * len(items)
    failures: dict[int, Exception] = {}
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(items)):
        waiting.put(index)
    stop = threading.Event()
    bar = _progress_bar(len(items), description, progress)

    def work() -> None:
        desk = _Desk(level)
        try:
            while not stop.is_set():
                try:
                    index = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    results[index] = desk.judge(function, items[index])
                except Exception as error:
                    failures[index] = error
                bar.update(1)
        finally:
            desk.close()

    count = min(workers or default_workers(), len(items))
    threads = [threading.Thread(target=work, name=f"judge-{i}") for i in range(count)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        stop.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
        bar.close()
    if failures:
        index = min(failures)
        raise SandboxError(
            f"{len(failures)} of {len(items)} programs could not be judged; number {index}: "
            f"{failures[index]}"
        ) from failures[index]
    return results


def run_programs(jobs: Iterable[Job], **options: Any) -> list[Outcome]:
    """Judge every job, in parallel; outcomes in the order of the jobs. Options: see `map_items`."""
    return map_items(lambda run, job: run(job), list(jobs), **options)


class _Desk:
    """One thread's worker, replaced when it fails."""

    def __init__(self, level: str) -> None:
        self._level = level
        self._worker: Worker | None = None

    def judge(self, function: Callable[[Callable[[Job], Outcome], Any], Any], item: Any) -> Any:
        try:
            return function(self._run, item)
        except SandboxError as error:
            log.warning("the sandbox failed, once more in a fresh worker: %s", error)
            self.close()
            return function(self._run, item)

    def _run(self, job: Job) -> Outcome:
        if self._worker is None:
            self._worker = Worker(self._level)
        try:
            return self._worker.run(job)
        finally:
            if self._worker.ended:
                self.close()

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None


class _NoBar:
    def update(self, count: int) -> None: ...

    def close(self) -> None: ...


def _progress_bar(total: int, description: str, shown: bool) -> Any:
    if not shown:
        return _NoBar()
    from tqdm import tqdm

    return tqdm(total=total, desc=description, unit="program", smoothing=0.05)
