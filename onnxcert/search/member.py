"""A child of `onnxcert.search.crew`: answers tasks until its input ends.

What it finds, it tells: bounds and trees as they are, points that look like witnesses for the
parent to replay on the file, which is not read here.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from onnxcert.arrays import Array, FloatArray, IntArray, keep_freed_memory
from onnxcert.processes import end_with_parent, read, write
from onnxcert.search.bab import BranchAndBound, Statistics
from onnxcert.search.candidates import Candidates
from onnxcert.search.crew import Brief, Grown, Point, Subtrees, shared
from onnxcert.search.frontier import Batch, Frontier
from onnxcert.search.neuron_split import NeuronSplit
from onnxcert.search.regions import Region, RegionSearch, Settled
from onnxcert.verdict import Counterexample, Reason

_POINTS = 16
"""Points of one task that are worth telling."""


@dataclass
class _Noted(Candidates):
    """Keeps what else would be replayed."""

    points: list[Point] = field(default_factory=list)

    def replay(self, point: FloatArray, box: int, thin: IntArray) -> Counterexample | None:
        if len(self.points) < _POINTS:
            self.points.append((point, box, thin))
        return None


class Member:
    """Does tasks, one after the other."""

    def __init__(self, brief: Brief) -> None:
        self.brief = brief
        cases, graph = brief.brancher.cases, brief.brancher.graph
        self.candidates = _Noted(graph.forward, cases, lambda point, decimals: None, brief.dtype)
        self.regions = RegionSearch(
            graph,
            cases,
            brief.layer_steps,
            brief.slope_steps,
            brief.brancher.steps,
            brief.deadline,
            self._search_region,
            brief.brancher.execution_unit,
            brief.narrowing,
        )

    def do(self, task: Subtrees | Region) -> tuple[Grown | Settled, list[Point]]:
        """What becomes of a task, and points worth a replay."""
        self.candidates.points = []
        done = self._grow(task) if isinstance(task, Subtrees) else self._settle(task)
        return done, self.candidates.points

    def _settle(self, region: Region) -> Settled:
        started = time.monotonic()
        outcome = self.regions.process(region)
        return Settled(outcome, time.monotonic() - started)

    def _search_region(
        self, brancher: NeuronSplit, roots: Batch, enough: Callable[[], bool]
    ) -> Counterexample | Reason | None:
        loop = self._loop(Statistics(), lambda cases, lower: None)
        deadline = self.brief.deadline
        return loop.run(
            brancher, self.candidates, deadline, Frontier(roots), lambda lowest: enough()
        )

    def _grow(self, task: Subtrees) -> Grown:
        trees = self.brief.brancher.trees.replanted()
        trees.nodes.add(len(task.score))
        frontier, statistics = Frontier(), Statistics()
        frontier.push(task.batch, task.score)
        refuted: dict[int, float] = {}

        def record(cases: Array, lower: Array) -> None:
            for case, value in zip(cases.ravel().tolist(), lower.ravel().tolist(), strict=True):
                if value > 0:
                    refuted[case] = min(value, refuted.get(case, math.inf))

        # Not a deadline: that would cut the last batch short, and its splits would be bad ones.
        limit = time.monotonic() + task.seconds
        self._loop(statistics, record).run(
            replace(self.brief.brancher, trees=trees),
            self.candidates,
            self.brief.deadline,
            frontier,
            lambda lowest: time.monotonic() > limit,
        )
        batch, score = frontier.pop_scored(len(frontier)) if len(frontier) else (None, np.zeros(0))
        return Grown(trees, batch, score, statistics, refuted)

    def _loop(
        self, statistics: Statistics, record: Callable[[Array, Array], None]
    ) -> BranchAndBound:
        return BranchAndBound(
            self.brief.batch_limit,
            self.brief.memory_bytes,
            record=record,
            statistics=statistics,
        )


def main() -> None:
    """Read the brief, then tasks."""
    end_with_parent()
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    keep_freed_memory()
    brief: Brief = read(source)
    common = shared(brief.brancher)
    member = Member(brief)
    while True:
        try:
            task = read(source, common)
        except EOFError:
            return
        write(sink, member.do(task), common)


if __name__ == "__main__":
    main()
