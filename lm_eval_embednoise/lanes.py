"""Several batches at once on a CPU, a thread each.

The operations of a decode step are too small for PyTorch's own threads (on two cores they gain
nothing, and attention loses), but they release Python's lock: two batches of half the rows keep two
cores busy. Samples don't depend on their company, so nothing else changes.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
_DONE = object()


Stopped = Callable[[], bool]


_all = threading.local()


@contextmanager
def all_threads() -> Iterator[None]:
    """In a lane, PyTorch's own threads for work that is large enough for them: a prefill."""
    before = torch.get_num_threads()
    torch.set_num_threads(getattr(_all, "count", before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_lanes(lanes: list[Callable[[Stopped], Iterator[Item]]]) -> Iterator[Item]:
    """The items of all iterators as they come, each iterator run by a thread of its own.

    PyTorch's own threads are switched off meanwhile. Each lane is given a function that says
    whether it should end: after an error elsewhere, or an interrupt.

    Raises:
        Whatever a lane raises.
    """
    found: queue.SimpleQueue[object] = queue.SimpleQueue()
    stop = threading.Event()
    before = torch.get_num_threads()

    def work(lane: Callable[[Stopped], Iterator[Item]]) -> None:
        _all.count = before
        torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                for item in lane(stop.is_set):
                    found.put(item)
                    if stop.is_set():
                        break
            found.put(_DONE)
        except BaseException as error:
            found.put(_Failure(error))

    threads = [threading.Thread(target=work, args=(lane,), daemon=True) for lane in lanes]
    try:
        for thread in threads:
            thread.start()
        running = len(threads)
        while running:
            item = found.get()
            if item is _DONE:
                running -= 1
            elif isinstance(item, _Failure):
                raise item.error
            else:
                yield item  # type: ignore[misc]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        torch.set_num_threads(before)


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error
