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
from typing import Protocol

from onnxcert.arrays import Array
from onnxcert.search.branching import Brancher
from onnxcert.search.candidates import Candidates
from onnxcert.search.deadline import Deadline
from onnxcert.search.frontier import Batch, Frontier, batch_length, unscored
from onnxcert.verdict import Counterexample, Reason

_log = logging.getLogger(__name__)

_BATCH_SECONDS = 0.4
"""A batch that takes longer is halved, one that takes less than a quarter of it is doubled."""

_FIRST_BATCH = 64


@dataclass
class Statistics:
    """Counts of a search, shared by all branchers of a run.

    Attributes:
        closed, open, split: subproblems that were refuted, that wait, that were halved.
        batches: that were bounded.
        regions: that were begun.
        stuck: subproblems that could not be split any further.
        lowest: score of those that wait.
    """

    closed: int = 0
    open: int = 0
    split: int = 0
    batches: int = 0
    regions: int = 0
    stuck: int = 0
    lowest: float = float("nan")

    def add(self, other: Statistics) -> None:
        """Add what another search has counted; what is open is counted where it is."""
        self.closed += other.closed
        self.split += other.split
        self.batches += other.batches


class Lending(Protocol):
    """Subproblems of a search in other hands: `onnxcert.search.crew.Lending`."""

    @property
    def out(self) -> int:
        """How many there are."""

    @property
    def lowest(self) -> float:
        """The lowest score of them."""

    @property
    def stuck(self) -> int:
        """How many could not be split any further there."""

    @property
    def found(self) -> Counterexample | None:
        """A witness found there."""

    def exchange(self, size: int) -> None:
        """Take back what is done and lend more, ``size`` being that of a batch; wait if needed."""

    def end(self) -> None:
        """Nothing is taken back any more."""


@dataclass(frozen=True)
class BranchAndBound:
    """The loop and its limits.

    Attributes:
        batch_limit: most subproblems in a batch.
        memory_bytes: most memory that a batch may take, and that the frontier may hold.
        report: called after every batch.
        record: called for every batch with numbers of cases (B, C), -1 for none, and the lower
            bounds found for them (B, C).
        statistics: updated in place.
    """

    batch_limit: int = 4096
    memory_bytes: float = 4e9
    report: Callable[[Statistics], None] = lambda statistics: None
    record: Callable[[Array, Array], None] = lambda cases, lower: None
    statistics: Statistics = field(default_factory=Statistics)

    def run(
        self,
        brancher: Brancher,
        candidates: Candidates,
        deadline: Deadline,
        frontier: Frontier | None = None,
        enough: Callable[[float], bool] = lambda lowest: False,
        lending: Lending | None = None,
    ) -> Counterexample | Reason | None:
        """Refute everything, find a witness, or say why neither was possible.

        Args:
            brancher: what to bound and how to split it.
            candidates: tests points.
            deadline: when to stop.
            frontier: where to begin, None for the brancher's roots; what is left when the search
                is given up.
            enough: asked before each batch with the lowest open score; once True, the search is
                given up as if its time were over. It may take from the frontier what it refutes.
            lending: takes part of the frontier.

        Returns:
            None when all subproblems are refuted, a confirmed witness, or a reason.
        """
        frontier = Frontier(brancher.roots()) if frontier is None else frontier
        try:
            return self._run(brancher, candidates, deadline, frontier, enough, lending)
        finally:
            if lending is not None:
                lending.end()

    def _run(
        self,
        brancher: Brancher,
        candidates: Candidates,
        deadline: Deadline,
        frontier: Frontier,
        enough: Callable[[float], bool],
        lending: Lending | None,
    ) -> Counterexample | Reason | None:
        most = int(self.memory_bytes / max(1, brancher.bytes_per_subproblem))
        size = max(1, min(_FIRST_BATCH, self.batch_limit, most))
        stuck = 0
        while len(frontier) or (lending is not None and lending.out):
            lowest = frontier.lowest
            if lending is not None:
                lowest = min(lowest, lending.lowest)
            if deadline.expired() or enough(lowest):
                return Reason.TIMEOUT
            if frontier.bytes > self.memory_bytes:
                return Reason.MEMORY
            if lending is not None:
                lending.exchange(size)
                if lending.found:
                    return lending.found
            if not len(frontier):
                continue
            batch = frontier.pop(size)
            started = time.monotonic()
            try:
                found, open_count = self._process(brancher, batch, frontier, candidates, deadline)
            except MemoryError:
                frontier.push(batch, unscored(batch))
                if size == 1:
                    return Reason.MEMORY
                size = max(1, batch_length(batch) // 2)
                most = size
                _log.info("out of memory: batches shrink to %d", size)
                continue
            if found:
                return found
            stuck += open_count
            self.statistics.stuck += open_count
            size = self._next_size(size, most, time.monotonic() - started)
            self.statistics.open = len(frontier) + stuck + (lending.out if lending else 0)
            self.statistics.lowest = frontier.lowest
            self.report(self.statistics)
        if lending is not None:
            stuck += lending.stuck
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
        self.record(bounded.cases, bounded.case_lower)
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
