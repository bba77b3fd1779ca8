"""When the attack begins a round, and where."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from onnxcert.arrays import Array, Device
from onnxcert.graph import Graph, Node
from onnxcert.ops import Linear, Relu
from onnxcert.search.attack import Falsifier, GradientAttack
from onnxcert.search.candidates import Candidates
from onnxcert.search.cases import Cases
from onnxcert.search.deadline import Deadline
from onnxcert.verdict import Counterexample
from tests.oracles import confirm_exactly
from tests.strategies import Row, make_problem

RESTARTS = 8


@dataclass(frozen=True)
class Clock(Deadline):
    """Time that passes when it is told to."""

    seconds: list[float] = field(default_factory=lambda: [0.0])

    @property
    def elapsed(self) -> float:
        return self.seconds[0]

    def slice(self, seconds: float) -> Deadline:
        return Clock(min(self.limit, self.elapsed + seconds), seconds=self.seconds)


@dataclass(frozen=True)
class Recorded(GradientAttack):
    """Rounds that take two seconds and find nothing."""

    clock: Clock = field(default_factory=Clock)
    rounds: list[tuple[list[int], Array | None]] = field(default_factory=list)

    def round(
        self,
        graph: Graph,
        candidates: Candidates,
        cases: Array,
        rng: np.random.Generator,
        deadline: Deadline,
        points: Array | None = None,
    ) -> Counterexample | None:
        self.rounds.append((cases.tolist(), points))
        self.clock.seconds[0] += 2.0
        return None


def needle(cases: int = 1) -> tuple[Graph, Candidates]:
    """``relu(x - 0.9) >= 0.05`` on [-1, 1]: flat but for a corner that is one part in forty."""
    shift = Linear(np.array([[1.0]]), np.array([-0.9]))
    graph = Graph("x", 1, (Node("z", shift, ("x",)), Node("y", Relu(1), ("z",))), "y")
    row: Row = ([-1.0], 0.05)
    problem = make_problem([([-1.0], [1.0])], [(0, [row])] * cases)
    table = Cases.build(problem, Device())
    return graph, Candidates(graph.forward, table, confirm_exactly(graph, problem), np.float64)


def falsifier(share: float, clock: Clock) -> tuple[Falsifier, Recorded]:
    graph, _ = needle()
    attack = Recorded(RESTARTS, clock=clock)
    return Falsifier(attack, graph, np.random.default_rng(0), clock, share), attack


def test_sweep_pursues_every_case_but_begins_no_round_after_a_second() -> None:
    _, candidates = needle(20)
    clock = Clock()
    runner, attack = falsifier(0.2, clock)
    runner.sweep(candidates, np.arange(RESTARTS), 30.0)
    assert sorted(attack.rounds[0][0]) == list(range(RESTARTS))
    runner.sweep(candidates, np.arange(20), 30.0)
    assert [len(cases) for cases, _ in attack.rounds] == [RESTARTS] * 2
    assert runner.spent == 4.0


def test_a_glance_pursues_every_case_from_few_points() -> None:
    _, candidates = needle(3)
    clock = Clock()
    runner, attack = falsifier(0.5, clock)
    runner.attack = replace(attack, restarts=64)
    for _ in range(2):  # two problems of one query
        runner.glance(candidates, np.arange(3), 30.0)
    assert [len(cases) for cases, _ in attack.rounds] == [8, 8]
    assert all(set(cases) == {0, 1, 2} for cases, _ in attack.rounds)
    runner.glance(candidates, np.arange(0), 30.0)
    runner.catch_up(candidates, np.arange(3))
    assert len(attack.rounds) == 2
    # A whole round takes eight times as long, sixteen seconds.
    clock.seconds[0] = 80.0
    runner.catch_up(candidates, np.arange(3))
    assert len(attack.rounds) == 2
    clock.seconds[0] = 140.0
    runner.catch_up(candidates, np.arange(3))
    assert [len(cases) for cases, _ in attack.rounds] == [8, 8, 64]


def test_a_glance_is_no_more_than_a_round() -> None:
    _, candidates = needle(20)
    runner, attack = falsifier(0.5, Clock())
    runner.glance(candidates, np.arange(20), 30.0)
    assert [len(cases) for cases, _ in attack.rounds] == [RESTARTS]


def test_rounds_keep_to_their_share_of_the_time() -> None:
    _, candidates = needle()
    clock = Clock()
    runner, attack = falsifier(0.5, clock)
    open_cases = np.array([0])
    spent = {}
    for now in range(200):
        clock.seconds[0] = float(now)
        runner.catch_up(candidates, open_cases)
        runner.follow(candidates, np.zeros((1, 1)), np.array([[0]]))
        spent[now] = runner.spent
    assert runner.spent == 2.0 * len(attack.rounds)
    assert spent[10] == 4.0  # a round takes two seconds: the third would be over too late
    assert 0.5 * 10 + 0.125 * 189 - 3.0 <= spent[199] <= 0.5 * 10 + 0.125 * 189


@pytest.mark.parametrize("restarts", [0, RESTARTS])
def test_nothing_is_attacked_without_cases_points_or_restarts(restarts: int) -> None:
    _, candidates = needle()
    clock = Clock(seconds=[50.0])
    attack = Recorded(restarts, clock=clock)
    graph, _ = needle()
    runner = Falsifier(attack, graph, np.random.default_rng(0), clock, 1.0)
    nothing = np.zeros(0, int)
    runner.catch_up(candidates, nothing)
    runner.sweep(candidates, nothing, 1.0)
    runner.follow(candidates, np.zeros((0, 1)), np.zeros((0, 1), int))
    if restarts == 0:
        runner.catch_up(candidates, np.array([0]))
        runner.follow(candidates, np.zeros((1, 1)), np.array([[0]]))
    assert attack.rounds == []


def test_half_of_the_restarts_begin_at_the_points_given_with_their_cases() -> None:
    _, candidates = needle(3)
    clock = Clock(seconds=[100.0])
    runner, attack = falsifier(0.5, clock)
    points = np.linspace(-1.0, 1.0, 6)[:, None]
    runner.follow(candidates, points, np.array([[2, -1], [1, -1], [-1, 0], [2, 1], [0, 1], [1, 1]]))
    cases, begun = attack.rounds[0]
    assert begun is not None
    assert np.array_equal(begun, points[: RESTARTS // 2])
    assert cases[:4] == [2, 1, 0, 2]
    assert len(cases) == RESTARTS


def test_a_point_in_reach_of_a_witness_leads_to_it() -> None:
    """Where the function is flat the attack stands still; from the slope it walks."""
    graph, candidates = needle()
    attack = GradientAttack(restarts=1, steps=30)
    arguments = np.array([0]), np.random.default_rng(0), Deadline()
    lowered = graph.to(Device(), np.float32)
    assert attack.round(lowered, candidates, *arguments) is None
    found = attack.round(lowered, candidates, *arguments, np.array([[0.91]]))
    assert isinstance(found, Counterexample)
