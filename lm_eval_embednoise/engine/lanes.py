"""Several batches at once on a CPU, a thread each.

The operations of a decode step are too small for PyTorch's own threads (on two cores they gain
nothing, and attention loses), but they release Python's lock: two batches of half the rows keep two
cores busy. Samples don't depend on their company, so nothing else changes.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
_DONE = object()


Stopped = Callable[[], bool]


_mine = threading.local()  # of a lane: PyTorch's threads outside of lanes, and how many lanes


@contextmanager
def threads(alone: bool) -> Iterator[None]:
    """In a lane, PyTorch's own threads for work that is large enough for them: a prefill.

    Args:
        alone: all of them, for work that other lanes wait for; otherwise the lane's share.
    """
    before = torch.get_num_threads()
    everywhere, lanes = getattr(_mine, "threads", (before, 1))
    torch.set_num_threads(everywhere if alone else max(1, everywhere // lanes))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_lanes(lanes: Sequence[Callable[[Stopped], Iterator[Item]]]) -> Iterator[Item]:
    """The items of all iterators as they come, each iterator run by its own thread.

    PyTorch's own threads are switched off meanwhile. Each lane is given a function that says
    whether it should end: after an error elsewhere, or an interrupt.

    Raises:
        Whatever a lane raises.
    """
    results: queue.SimpleQueue[object] = queue.SimpleQueue()
    stop = threading.Event()
    before = torch.get_num_threads()

    def work(lane: Callable[[Stopped], Iterator[Item]]) -> None:
        _mine.threads = (before, len(lanes))
        torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                for item in lane(stop.is_set):
                    results.put(item)
                    if stop.is_set():
                        break
            results.put(_DONE)
        except BaseException as error:
            results.put(_Failure(error))

    workers = [threading.Thread(target=work, args=(lane,), daemon=True) for lane in lanes]
    try:
        for worker in workers:
            worker.start()
        running = len(workers)
        while running:
            item = results.get()
            if item is _DONE:
                running -= 1
            elif isinstance(item, _Failure):
                raise item.error
            else:
                yield item  # type: ignore[misc]
    finally:
        stop.set()
        for worker in workers:
            worker.join()
        torch.set_num_threads(before)


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error
