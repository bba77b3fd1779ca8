"""Branch and bound: one loop for every way to split.

Take the most promising subproblems, bound them as one batch, test the points where their bounds
are attained, drop the refuted ones and split the rest. The batch grows while batches are quick and
shrinks when memory runs out, so the deadline is kept to within one batch and a large subproblem
ends in a smaller batch, not in a crash.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from onnxcert.arrays import Array, array_module
from onnxcert.search.branching import Bounded, Brancher
from onnxcert.search.candidates import Candidates
from onnxcert.search.deadline import Deadline
from onnxcert.search.frontier import Batch, Frontier, batch_length
from onnxcert.verdict import Counterexample, Reason

_log = logging.getLogger(__name__)

_BATCH_SECONDS = 0.4
"""A batch that takes longer is halved, one that takes less than a quarter of it is doubled."""

_FIRST_BATCH = 64


@dataclass
class Statistics:
    """Counts of a search, shared by all branchers of a run."""

    closed: int = 0
    open: int = 0
    split: int = 0
    batches: int = 0
    regions: int = 0
    lowest: float = float("nan")


@dataclass(frozen=True)
class BranchAndBound:
    """The loop and its limits.

    Attributes:
        batch_limit: most subproblems in a batch.
        memory_bytes: most memory that a batch may take, and that the frontier may hold.
        report: called after every batch.
        record: called with every bounded batch.
        statistics: updated in place.
    """

    batch_limit: int = 4096
    memory_bytes: float = 4e9
    report: Callable[[Statistics], None] = lambda statistics: None
    record: Callable[[Bounded], None] = lambda bounded: None
    statistics: Statistics = field(default_factory=Statistics)

    def run(
        self,
        brancher: Brancher,
        candidates: Candidates,
        deadline: Deadline,
        roots: Batch | None = None,
        enough: Callable[[float], bool] = lambda lowest: False,
    ) -> Counterexample | Reason | None:
        """Refute everything, find a witness, or say why neither was possible.

        Args:
            brancher: what to bound and how to split it.
            candidates: tests points.
            deadline: when to stop.
            roots: where to begin; None for the brancher's own roots.
            enough: asked before each batch with the lowest open score; once True, the search is
                given up as if its time were over.

        Returns:
            None when all subproblems are refuted, a confirmed witness, or a reason.
        """
        frontier = Frontier()
        roots = brancher.roots() if roots is None else roots
        frontier.push(roots, _unscored(roots))
        most = int(self.memory_bytes / max(1, brancher.bytes_per_subproblem))
        size = max(1, min(_FIRST_BATCH, self.batch_limit, most))
        stuck = 0
        while len(frontier):
            if deadline.expired() or enough(frontier.lowest):
                return Reason.TIMEOUT
            if frontier.bytes > self.memory_bytes:
                return Reason.MEMORY
            batch = frontier.pop(size)
            started = time.monotonic()
            try:
                found, open_count = self._process(brancher, batch, frontier, candidates, deadline)
            except MemoryError:
                if size == 1:
                    return Reason.MEMORY
                size = max(1, batch_length(batch) // 2)
                most = size
                _log.info("out of memory: batches shrink to %d", size)
                frontier.push(batch, _unscored(batch))
                continue
            if isinstance(found, Counterexample):
                return found
            stuck += open_count
            size = self._next_size(size, most, time.monotonic() - started)
            self.statistics.open = len(frontier) + stuck
            self.statistics.lowest = frontier.lowest
            self.report(self.statistics)
        return Reason.INCOMPLETE if stuck else None

    def _process(
        self,
        brancher: Brancher,
        batch: Batch,
        frontier: Frontier,
        candidates: Candidates,
        deadline: Deadline,
    ) -> tuple[Counterexample | None, int]:
        bounded = brancher.bound(batch, deadline.expired)
        self.record(bounded)
        found = candidates.pursue(bounded.points, bounded.point_cases)
        if found:
            return found, 0
        children = brancher.split(batch, bounded)
        if children.batch is not None:
            frontier.push(children.batch, children.score)
        self.statistics.batches += 1
        self.statistics.closed += int(bounded.closed.sum())
        self.statistics.split += len(children.score) // 2
        return None, children.stuck

    def _next_size(self, size: int, most: int, seconds: float) -> int:
        if seconds > _BATCH_SECONDS:
            size //= 2
        elif seconds < 0.25 * _BATCH_SECONDS:
            size *= 2
        return max(1, min(size, self.batch_limit, most))


def _unscored(batch: Batch) -> Array:
    """Scores for subproblems that nothing is known about."""
    first = next(iter(batch.values()))
    return array_module(first).zeros(len(first))  # type: ignore[no-any-return]
