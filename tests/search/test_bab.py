"""The branch-and-bound loop with a brancher whose subproblems are easy to count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from onnxcert.arrays import Device
from onnxcert.search.bab import BranchAndBound
from onnxcert.search.branching import Bounded, Brancher, Children
from onnxcert.search.candidates import Candidates
from onnxcert.search.cases import Cases
from onnxcert.search.deadline import Deadline
from onnxcert.search.frontier import Batch, batch_length
from onnxcert.verdict import Counterexample, Reason
from tests.strategies import make_problem, relu_network

WITNESS = Counterexample({}, {})


@dataclass
class Intervals(Brancher):
    """Intervals of whole numbers: open until they hold one number, cut in the middle.

    Attributes:
        count: numbers to cover.
        most: batches longer than this do not fit into memory.
        stuck: numbers that can neither be closed nor split.
        goal: the point handed out once an interval holds only this number.
        leaves: numbers closed so far.
    """

    count: int = 100
    most: int = 10**9
    stuck: frozenset[int] = frozenset()
    goal: int | None = None
    leaves: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    bytes_per_subproblem: int = 16

    def roots(self) -> Batch:
        return {"begin": np.array([0]), "end": np.array([self.count])}

    def bound(self, batch: Batch, expired: Callable[[], bool]) -> Bounded:
        self.lengths.append(batch_length(batch))
        if batch_length(batch) > self.most:
            raise MemoryError
        begin, end = batch["begin"], batch["end"]
        single = end - begin == 1
        closed = single & ~np.isin(begin, list(self.stuck))
        self.leaves += begin[closed].tolist()
        found = (begin == self.goal) & single
        points, cases = np.zeros((int(found.sum()), 2)), np.zeros((int(found.sum()), 1), dtype=int)
        score = -(end - begin).astype(float)
        open_cases = np.where(closed, -1, 0)[:, None]
        return Bounded(closed, score, points, cases, open_cases, score[:, None], None)

    def split(self, batch: Batch, bounded: Bounded) -> Children:
        keep = ~bounded.closed & (batch["end"] - batch["begin"] > 1)
        begin, end = batch["begin"][keep], batch["end"][keep]
        middle = (begin + end) // 2
        children = {"begin": np.r_[begin, middle], "end": np.r_[middle, end]}
        score = np.tile(bounded.score[keep], 2)
        stuck = int((~bounded.closed & ~keep).sum())
        return Children(children if len(begin) else None, score, stuck)


@pytest.fixture
def candidates(rng: np.random.Generator) -> Candidates:
    """Takes every point it is handed for a witness."""
    problem = make_problem([([0.0, 0.0], [1.0, 1.0])], [(0, [([0.0], -1.0)])])
    cases = Cases.build(problem, Device())
    return Candidates(relu_network(rng, [2, 1]).forward, cases, lambda point, decimals: WITNESS)


@dataclass(frozen=True)
class Patience(Deadline):
    """A deadline that expires after it was asked a number of times; no clock is involved."""

    questions: int = 0
    asked: list[int] = field(default_factory=list)

    def expired(self) -> bool:
        self.asked.append(1)
        return len(self.asked) > self.questions


@pytest.mark.parametrize("limit", [1, 3, 4096])
def test_every_subproblem_is_closed_once(candidates: Candidates, limit: int) -> None:
    brancher = Intervals(count=200)
    loop = BranchAndBound(batch_limit=limit)
    assert loop.run(brancher, candidates, Deadline()) is None
    assert sorted(brancher.leaves) == list(range(200))
    assert max(brancher.lengths) <= limit
    assert loop.statistics.closed == 200
    assert loop.statistics.split == 199
    assert loop.statistics.open == 0


@pytest.mark.parametrize("most", [1, 2, 7, 50])
def test_batches_shrink_until_they_fit(candidates: Candidates, most: int) -> None:
    brancher = Intervals(count=300, most=most)
    assert BranchAndBound().run(brancher, candidates, Deadline()) is None
    assert sorted(brancher.leaves) == list(range(300))


def test_a_subproblem_that_never_fits_is_a_reason(candidates: Candidates) -> None:
    assert BranchAndBound().run(Intervals(most=0), candidates, Deadline()) is Reason.MEMORY


def test_a_frontier_that_does_not_fit_is_a_reason(candidates: Candidates) -> None:
    loop = BranchAndBound(batch_limit=1, memory_bytes=64)
    assert loop.run(Intervals(count=10**6), candidates, Deadline()) is Reason.MEMORY


def test_memory_limit_bounds_the_batch(candidates: Candidates) -> None:
    brancher = Intervals(count=64, bytes_per_subproblem=2**20)
    assert BranchAndBound(memory_bytes=5 * 2**20).run(brancher, candidates, Deadline()) is None
    assert max(brancher.lengths) <= 5


def test_what_cannot_be_split_leaves_the_answer_open(candidates: Candidates) -> None:
    brancher = Intervals(count=50, stuck=frozenset({7, 30}))
    assert BranchAndBound().run(brancher, candidates, Deadline()) is Reason.INCOMPLETE
    assert sorted(brancher.leaves) == [i for i in range(50) if i not in (7, 30)]


def test_a_witness_ends_the_search(candidates: Candidates) -> None:
    brancher = Intervals(count=50, goal=20, stuck=frozenset({20}))
    assert BranchAndBound().run(brancher, candidates, Deadline()) is WITNESS


@pytest.mark.parametrize("questions", [0, 1, 4])
def test_no_batch_begins_after_the_deadline(candidates: Candidates, questions: int) -> None:
    brancher = Intervals(count=10**6)
    loop = BranchAndBound(batch_limit=1)
    assert loop.run(brancher, candidates, Patience(questions=questions)) is Reason.TIMEOUT
    assert len(brancher.lengths) == questions


def test_progress_is_reported_after_every_batch(candidates: Candidates) -> None:
    seen: list[tuple[int, int]] = []
    loop = BranchAndBound(report=lambda s: seen.append((s.open, s.closed)))
    brancher = Intervals(count=20)
    loop.run(brancher, candidates, Deadline())
    assert len(seen) == len(brancher.lengths)
    assert seen[-1] == (0, 20)
    assert [closed for _, closed in seen] == sorted(closed for _, closed in seen)
