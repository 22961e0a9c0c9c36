"""The short decode step as CUDA graphs: one launch instead of several hundred.

A GPU is through with a step of a hundred rows before Python has asked for its operations. So the
step is recorded once for a number of rows and of columns, and replayed from then on: what it reads
is copied into the tensors that it was recorded with. Rows and columns are rounded up, so that few
recordings serve a run; the rows that fill up decode token 0 in slots that no row uses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from lm_eval_embednoise.noise.inject import Rows, acting

if TYPE_CHECKING:
    from lm_eval_embednoise.engine.lean import Lean
    from lm_eval_embednoise.engine.slots import SlotCache
    from lm_eval_embednoise.noise.perturbation import Perturbation

COLUMNS = 128  # recorded numbers of columns are multiples of it
FEWEST = 8  # rows of a recording


class _Recording(NamedTuple):
    graph: torch.cuda.CUDAGraph
    logits: Tensor
    measured: dict[str, Tensor]


class StepGraphs:
    """Recorded steps over one cache, whose rows keep all their entries themselves.

    Args:
        lean: the step, ready; on a GPU.
        cache: its memory has been made.
        perturbation: whose noise is added to generated positions; None for none.
    """

    def __init__(self, lean: Lean, cache: SlotCache, perturbation: Perturbation | None) -> None:
        self._lean, self._cache, self._perturbation = lean, cache, perturbation
        width, device = lean.embedding.shape[1], lean.embedding.device
        self._ids = torch.zeros(cache.slots, 1, dtype=torch.int64, device=device)
        self._positions, self._write = (
            torch.zeros_like(self._ids),
            torch.zeros_like(self._ids[:, 0]),
        )
        sites = perturbation.sites if perturbation is not None else ()
        self._noise = {site: torch.zeros(cache.slots, 1, width, device=device) for site in sites}
        self._recorded: dict[tuple[int, int], _Recording] = {}
        self._pool = torch.cuda.graph_pool_handle()  # one replay at a time: all share its memory

    def step(
        self,
        ids: Tensor,
        positions: Tensor,
        write: Tensor,
        width: int,
        noise: dict[str, Tensor],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run a decode step of the first rows of the cache.

        Args:
            ids: int64 [rows, 1].
            positions: int64 [rows, 1].
            write: int64 [rows], where each row's new entry goes.
            width: columns in use then.
            noise: site → float32 [rows, 1, dim].

        Returns:
            Logits [rows, 1, vocab], and site → what `inject.add_noise` measured. They are
            overwritten by the next step.
        """
        count = len(ids)
        rows, columns = rounded(count, self._cache.slots, width, self._cache.columns)
        given = [(self._ids, ids), (self._positions, positions), (self._write, write)]
        for recorded, new in [*given, *((self._noise[site], noise[site]) for site in self._noise)]:
            recorded[:count] = new
            recorded[count:rows] = 0
        if (rows, columns) not in self._recorded:
            self._recorded[rows, columns] = self._record(rows, columns)
        graph, logits, measured = self._recorded[rows, columns]
        graph.replay()
        return logits[:count], {site: sums[:count] for site, sums in measured.items()}

    def _record(self, rows: int, columns: int) -> _Recording:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._run(rows, columns)  # what is set up at the first use can't be recorded
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits, measured = self._run(rows, columns)
        return _Recording(graph, logits, measured)

    def _run(self, rows: int, columns: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The step itself; it may be run again: it writes the same entries to the same places."""
        self._cache.write_at(self._write[:rows], columns, even=False)
        ids, positions = self._ids[:rows], self._positions[:rows]
        if self._perturbation is None:
            return self._lean.step(ids, self._cache, positions), {}
        drawn = {site: noise[:rows] for site, noise in self._noise.items()}
        act, measured = acting(self._perturbation, Rows({}, {}, positions[:, 0], drawn=drawn))
        logits = self._lean.step(ids, self._cache, positions, act, self._noise.keys())
        return logits, measured


def rounded(rows: int, slots: int, width: int, columns: int) -> tuple[int, int]:
    """The recording that serves: rows as all slots halved, columns as a multiple of COLUMNS.

    Args:
        rows: at least as many, of `slots`.
        slots: rows of the cache.
        width: at least as many, of `columns`.
        columns: of the cache.
    """
    while rows <= slots // 2 and slots // 2 >= FEWEST:
        slots //= 2
    return slots, min(columns, -(-width // COLUMNS) * COLUMNS)
