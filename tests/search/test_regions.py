"""Which of two searches gets the time, and what their answers mean together."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from onnxcert.proof.trace import NeuronTrees
from onnxcert.search.halving import _growth
from onnxcert.search.regions import Outcome, Region, RegionSearch, Settled, Turns
from onnxcert.verdict import Counterexample, Reason

Answer = Counterexample | Reason | None
WITNESS = Counterexample({}, {}, {})
NOBODY: Any = None


@dataclass
class Clock:
    elapsed: float = 0.0
    limit: float = 1000.0

    @property
    def remaining(self) -> float:
        return self.limit - self.elapsed

    def expired(self) -> bool:
        return self.remaining <= 0.0


@dataclass
class Trees:
    """Two cases; the first is closed."""

    roots: list[Any] = field(default_factory=lambda: [(np.array([0, 1]), np.array([5, 6]))])
    halves: Any = None
    nodes: Any = field(default_factory=lambda: type("Nodes", (), {"count": 1000}))

    def closed(self, nodes: np.ndarray) -> np.ndarray:
        return np.array([True, False])[nodes]


@dataclass
class Whole:
    def only(self, chosen: np.ndarray) -> np.ndarray:
        return chosen


@dataclass
class Regions:
    """Regions that take a second each and answer as they are told."""

    deadline: Clock
    answers: Callable[[int], Answer]
    share: float = 0.0
    seconds: float = 0.0
    done: float = 0.0
    count: int = 0
    begun: list[np.ndarray] = field(default_factory=list)
    ready: bool = True
    over: bool = False
    others: Any = None
    reserved: bool = False

    @property
    def work(self) -> float:
        return self.seconds

    def hand_out(self, *, more: bool) -> None:
        """Nobody takes one."""
        self.reserved = more

    def begin(self, region: np.ndarray, trees: Trees) -> bool:
        self.begun.append(region)
        trees.halves = type("Halves", (), {"cases": np.array([6])})
        return True

    def advance(self) -> Answer:
        self.count += 1
        self.seconds += 1.0
        self.deadline.elapsed += 1.0
        self.done += self.share
        return self.answers(self.count)


def setting(
    answers: Callable[[int], Answer] = lambda count: Reason.TIMEOUT,
    share: float = 0.0,
    cost: float = 1.0,
) -> tuple[Turns, Regions, Clock, Trees]:
    clock, trees = Clock(), Trees()
    regions = Regions(clock, answers, share)
    turns = Turns(regions, Whole(), trees, 1.0, 2.0, cost)  # type: ignore[arg-type]
    return turns, regions, clock, trees


def go_on(turns: Turns, clock: Clock, lowest: float, seconds: float = 100.0) -> bool:
    """The search of the whole box, in batches of half a second."""
    for _ in range(int(2 * seconds)):
        clock.elapsed += 0.5
        if turns.enough(lowest):
            return True
    return False


def test_regions_wait_and_get_the_cases_that_are_open() -> None:
    turns, regions, clock, _ = setting()
    assert not go_on(turns, clock, -1.0, 1.5)
    assert regions.begun == []
    go_on(turns, clock, -1.0, 1.0)
    assert [mask.tolist() for mask in regions.begun] == [[False, True]]


def test_without_a_sign_of_progress_the_time_is_halved() -> None:
    turns, regions, clock, _ = setting()
    go_on(turns, clock, -1.0)
    assert regions.seconds == pytest.approx(100.0, abs=2.0)


def test_the_search_that_will_be_done_sooner_gets_four_fifths() -> None:
    for share, lowest, expected in ((1e-2, -0.9, 400.0), (1e-9, -0.1, 25.0)):
        turns, regions, clock, _ = setting(share=share)
        go_on(turns, clock, lowest)
        assert regions.seconds == pytest.approx(expected, rel=0.05)


def test_regions_that_take_too_long_are_not_begun() -> None:
    turns, regions, clock, trees = setting(cost=150.0)
    go_on(turns, clock, -1.0)
    assert (regions.begun, trees.halves) == ([], None)
    assert turns.finish(None) is None
    assert turns.finish(Reason.INCOMPLETE) is Reason.INCOMPLETE


@pytest.mark.parametrize("answer", [None, WITNESS])
def test_an_answer_of_the_regions_is_the_answer(answer: Answer) -> None:
    turns, _, clock, trees = setting(lambda count: answer if count == 3 else Reason.TIMEOUT)
    assert go_on(turns, clock, -1.0)
    assert turns.finish(Reason.TIMEOUT) is answer
    if answer is None:  # what the regions refuted has no root any more
        assert [cases.tolist() for _, cases in trees.roots] == [[5]]
        assert trees.halves is not None


def test_the_last_region_may_come_back_from_other_hands() -> None:
    turns, regions, clock, _ = setting(lambda count: None)
    regions.ready = False
    assert not go_on(turns, clock, -1.0, 4.0)
    assert regions.count == 0
    regions.over = True
    assert turns.enough(-1.0)
    assert turns.finish(Reason.TIMEOUT) is None


def test_who_was_kept_for_regions_is_free_when_these_are_given_up() -> None:
    turns, regions, clock, _ = setting(lambda c: Reason.INCOMPLETE if c == 5 else Reason.TIMEOUT)
    go_on(turns, clock, -1.0, 4.0)
    assert regions.reserved
    go_on(turns, clock, -1.0, 20.0)
    assert (turns.answer, regions.reserved) == (Reason.INCOMPLETE, False)


@dataclass
class Helper:
    """Another process that is done with a region as soon as it is asked."""

    tasks: list[Any] = field(default_factory=list)
    found: Any = None
    reserved: bool = False
    size: int = 1

    @property
    def vacancies(self) -> int:
        return 1 - len(self.tasks)

    def submit(self, task: Any, done: Callable[[Settled | None], None]) -> None:
        self.tasks.append(done)

    def poll(self, *, wait: bool = False) -> None:
        while self.tasks:
            self.tasks.pop()(Settled(Outcome(None, NeuronTrees(*4 * (NOBODY,))), 1.0))


def test_a_search_in_regions_is_over_when_all_came_back() -> None:
    clock, helper = Clock(), Helper()
    search = RegionSearch(NOBODY, NOBODY, 0, 0, 0, clock, NOBODY, others=helper)
    kept: list[NeuronTrees] = []
    two = [(Region({}, np.array([0]), NOBODY), kept.append) for _ in range(2)]
    search._waiting += two
    search.hand_out(more=True)
    assert not search.over
    search._waiting.pop()
    assert not search.ready
    assert not search.over
    helper.poll()
    assert search.over
    assert search.advance() is None
    assert len(kept) == 1


def test_an_answer_of_the_other_search_makes_regions_needless() -> None:
    for answer in (None, WITNESS, Reason.TIMEOUT, Reason.MEMORY):
        turns, _, clock, trees = setting()
        go_on(turns, clock, -1.0, 4.0)
        assert trees.halves is not None
        assert turns.finish(answer) is answer
        assert trees.halves is None
        assert len(trees.roots[-1][0]) == 2


def test_where_the_other_search_is_stuck_regions_go_on() -> None:
    turns, _, clock, trees = setting(lambda count: None if count == 50 else Reason.TIMEOUT)
    go_on(turns, clock, -1.0, 4.0)
    assert turns.finish(Reason.INCOMPLETE) is None
    assert trees.halves is not None
    turns, _, clock, trees = setting(lambda c: Reason.INCOMPLETE if c == 50 else Reason.TIMEOUT)
    go_on(turns, clock, -1.0, 4.0)
    assert turns.finish(Reason.INCOMPLETE) is Reason.INCOMPLETE
    assert trees.halves is None


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (0.1, 3.0), (1e-6, 1e-3), (20.0, 30.0)])
def test_growth_is_the_root(a: float, b: float) -> None:
    y = _growth(a, b)
    assert math.exp(-a * y) + math.exp(-b * y) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("a", "b"), [(0.0, 1.0), (-1.0, 2.0), (0.0, 0.0)])
def test_a_half_that_gains_nothing_never_ends(a: float, b: float) -> None:
    assert _growth(a, b) == math.inf
