"""What makes a run in several processes equal to one: measurements, responses, their order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch


class AtMost(list[Any]):
    """The responses of an Instance, of which the first `most` are kept.

    The harness gives a process with fewer problems its last one again, and appends the responses a
    second time; in the results of a single process they appear once.
    """

    def __init__(self, most: int, items: Iterable[Any] = ()) -> None:
        super().__init__(items)
        self.most = most

    def append(self, item: Any) -> None:
        if len(self) < self.most:
            super().append(item)

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)  # other processes get a plain list


def in_order(gathered: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the processes have of each task, in the order in which one process would have it.

    The harness deals problems out in turn and chains what comes back; sums and bootstrap draws
    depend on the order.

    Args:
        gathered: of every process, task → samples, or task → metric → values.
    """
    merged: dict[str, Any] = {}
    for task, first in gathered[0].items():
        parts = [rank[task] for rank in gathered]
        if isinstance(first, Mapping):
            merged[task] = {key: _in_turn([part[key] for part in parts]) for key in first}
        else:  # samples: all problems under one filter, then all under the next
            filters = dict.fromkeys(sample["filter"] for sample in first)
            merged[task] = [
                sample
                for name in filters
                for sample in _in_turn([[s for s in p if s["filter"] == name] for p in parts])
            ]
    return merged


def _in_turn(parts: Sequence[Sequence[Any]]) -> list[Any]:
    longest = max(map(len, parts))
    return [part[at] for at in range(longest) for part in parts if at < len(part)]


class Measured:
    """ρ and std of every sample and problem at each site, summed exactly: in any order the same.

    And how many samples ended for which reason.
    """

    WHAT = ("rho", "std", "ended")

    def __init__(self, sites: Iterable[str]) -> None:
        self._all: dict[str, dict[str, list[float]]] = {what: {} for what in self.WHAT}
        self._new: dict[str, dict[str, list[float]]] = {what: {} for what in self.WHAT}
        self._sites = tuple(sites)

    def add(self, what: str, values: Mapping[str, Iterable[float]]) -> None:
        """Note values of this process: `what` is rho or std, by site, or ended, by reason."""
        for site, several in values.items():
            self._new[what].setdefault(site, []).extend(several)

    def gather(self, processes: int) -> None:
        """Make what was added since the last call count in every process (all of them call it)."""
        gathered: list[Any] = [self._new]
        if processes > 1:
            gathered = [None] * processes
            torch.distributed.all_gather_object(gathered, self._new)
        for new in gathered:
            for what, by_site in new.items():
                for site, values in by_site.items():
                    self._all[what].setdefault(site, []).extend(values)
        self._new = {what: {} for what in self.WHAT}

    def ended(self, reason: str) -> tuple[int, int]:
        """How many samples ended for a reason, and of how many, as of the last `gather`."""
        counts = {name: len(values) for name, values in self._all["ended"].items()}
        return counts.get(reason, 0), sum(counts.values())

    def mean(self, what: str) -> dict[str, float]:
        """Site → mean over all processes, as of the last `gather`."""
        seen = {site: self._all[what].get(site, []) for site in self._sites}
        return {site: math.fsum(values) / len(values) for site, values in seen.items() if values}
