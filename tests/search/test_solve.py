"""The whole search on tiny networks, against enumeration of all activation patterns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcert.arrays import Device
from onnxcert.graph import Graph, Node
from onnxcert.ops import Linear, Relu, Scale, Select, Sum
from onnxcert.search.deadline import Deadline
from onnxcert.search.solve import Solver, promises
from onnxcert.settings import Settings
from onnxcert.spec import Problem
from onnxcert.verdict import Counterexample, Progress, Reason
from tests import hasty
from tests.oracles import confirm_exactly, exact_values, satisfied_case, smallest_violation
from tests.proof.networks import hard
from tests.strategies import Row, make_problem, relu_network, seeds

SPLITTING = ["input", "neuron", "auto"]
_CLEAR = 1e-3
"""A margin that neither the linear programs nor the search may miss."""

_SECONDS = 60.0
"""So long that only a search that does not end reaches it."""

_GLANCE = 0.2
"""Seconds for a problem that is decided by a hair: only wrong answers count there."""


def solver(graph: Graph, problem: Problem, **options: object) -> Solver:
    return Solver(
        graph,
        confirm_exactly(graph, problem),
        Settings(**options),  # type: ignore[arg-type]
        Device(),
        Deadline(_SECONDS),
        np.random.default_rng(0),
        np.float64,
    )


def solve(graph: Graph, problem: Problem, **options: object) -> Counterexample | Reason | None:
    return solver(graph, problem, **options).solve(problem)


def _glance(graph: Graph, problem: Problem, **options: object) -> Counterexample | Reason | None:
    run = solver(graph, problem, **options)
    run.deadline = Deadline(_GLANCE)
    return run.solve(problem)


@dataclass(frozen=True)
class Instance:
    graph: Graph
    problem: Problem


@st.composite
def instances(draw: st.DrawFn) -> Instance:
    """Two or three inputs, up to six relus, one to three cases of one to three rows.

    Offsets put the smallest value over some random points near zero, so that both answers occur.
    """
    rng = np.random.default_rng(draw(seeds))
    inputs = draw(st.integers(2, 3))
    hidden = draw(st.sampled_from([[2], [4], [2, 2], [3, 3]]))
    graph = relu_network(rng, [inputs, *hidden, 2])
    boxes = [([-1.0] * inputs, [1.0] * inputs), ([0.0] * inputs, [0.5] * inputs)]
    cases: list[tuple[int, list[Row]]] = []
    for _ in range(draw(st.integers(1, 3))):
        box = draw(st.integers(0, 1))
        low, high = np.array(boxes[box])
        outputs = graph.forward(rng.uniform(low, high, size=(200, inputs)))
        rows: list[Row] = []
        for _ in range(draw(st.integers(1, 3))):
            row = np.round(4.0 * rng.normal(size=2)) / 4.0
            shift = draw(st.sampled_from([-0.3, -0.05, 0.02, 0.1, 0.3]))
            rows.append((row.tolist(), float(shift - (outputs @ row).min())))
        cases.append((box, rows))
    return Instance(graph, make_problem(boxes, cases))


@pytest.mark.parametrize("splitting", SPLITTING)
@pytest.mark.parametrize("attack", [0, 16])
@settings(max_examples=15)
@given(instance=instances())
def test_agrees_with_enumeration(splitting: str, attack: int, instance: Instance) -> None:
    graph, problem = instance.graph, instance.problem
    margin = min(smallest_violation(graph, problem, case) for case in range(len(problem)))
    run = solver(graph, problem, splitting=splitting, attack_restarts=attack)
    run.deadline = Deadline(_SECONDS if abs(margin) > _CLEAR else _GLANCE)
    answer = run.solve(problem)
    if isinstance(answer, Counterexample):
        assert satisfied_case(graph, problem, answer.inputs["X"]) is not None
    if margin > _CLEAR:
        assert answer is None
    if margin < -_CLEAR:
        assert isinstance(answer, Counterexample)
    if -_CLEAR <= margin <= 0:
        assert answer is not None or margin > -1e-7  # the accuracy of the linear programs


@settings(max_examples=15)
@given(instance=instances())
def test_regions_agree_with_enumeration(instance: Instance) -> None:
    graph, problem = instance.graph, instance.problem
    margin = min(smallest_violation(graph, problem, case) for case in range(len(problem)))
    with pytest.MonkeyPatch.context() as patch:
        hasty.install(patch)
        run = solver(graph, problem, splitting="neuron", attack_restarts=0)
        run.deadline = Deadline(_SECONDS if abs(margin) > _CLEAR else _GLANCE)
        answer = run.solve(problem)
    if margin > _CLEAR:
        assert answer is None
    if margin < -_CLEAR:
        assert isinstance(answer, Counterexample)
    if -_CLEAR <= margin <= 0:
        assert answer is not None or margin > -1e-7


def _two_relus(weight: list[list[float]], second: list[list[float]], offset: list[float]) -> Graph:
    nodes = (
        Node("z", Linear(np.array(weight)), ("x",)),
        Node("h", Relu(2), ("z",)),
        Node("y", Linear(np.array(second), np.array(offset)), ("h",)),
    )
    return Graph("x", 3, nodes, "y")


def test_neuron_splits_decide_what_input_splits_do() -> None:
    """With both relus decided a leaf is a linear program, which halving inputs decides."""
    nodes = (
        Node("z", Linear(np.array([[0.75, -0.75], [0.5, 0.25], [-0.25, 0.5]])), ("x",)),
        Node("h", Relu(2), ("z",)),
        Node("y", Linear(np.array([[-0.25, 2.5], [-0.5, -0.5]]), np.array([-1.25, 1.75])), ("h",)),
    )
    rows: list[Row] = [([-0.25, -2.75], 12.56918179), ([-0.75, 0.0], -0.9875)]
    problem = make_problem([([-1.0] * 3, [1.0] * 3)], [(0, rows)])
    graph = Graph("x", 3, nodes, "y")
    assert smallest_violation(graph, problem, 0) > _CLEAR
    assert solve(graph, problem, splitting="neuron", attack_restarts=0) is None


def test_flat_lines_do_not_hide_the_input_that_matters() -> None:
    """Lines that are flat along one input made the search halve the other one without end."""
    nodes = (
        Node(
            "z",
            Linear(np.array([[-1.5, 0.25, -0.5], [-1.25, 0.0, 2.25]]), np.array([0.0, 0.0, -0.5])),
            ("x",),
        ),
        Node("h", Relu(3), ("z",)),
        Node(
            "u",
            Linear(
                np.array([[1.25, 1.0, 1.5], [0.5, -1.0, -0.25], [-1.25, 0.5, 0.25]]),
                np.array([0.0, 1.0, -0.5]),
            ),
            ("h",),
        ),
        Node("v", Relu(3), ("u",)),
        Node("y", Linear(np.array([[0.0, -1.0], [0.75, 0.25], [0.25, -1.25]])), ("v",)),
    )
    graph = Graph("x", 2, nodes, "y")
    problem = make_problem([([-1.0] * 2, [1.0] * 2)], [(0, [([1.5, -0.25], -0.80898568)])])
    assert smallest_violation(graph, problem, 0) > _CLEAR
    assert solve(graph, problem, splitting="input", attack_restarts=0) is None


@settings(max_examples=10)
@given(instance=instances())
def test_a_batch_of_one_gives_the_same_answers(instance: Instance) -> None:
    graph, problem = instance.graph, instance.problem
    for splitting in ("input", "neuron"):
        answers = [
            _glance(graph, problem, splitting=splitting, attack_restarts=0, batch_limit=limit)
            for limit in (1, 64)
        ]
        decided = {isinstance(a, Counterexample) for a in answers if not isinstance(a, Reason)}
        assert len(decided) <= 1


IDENTITY = Graph("x", 1, (Node("y", Scale(1), ("x",)),), "y")
ABSOLUTE = Graph(
    "x",
    1,
    (
        Node("z", Linear(np.array([[1.0, -1.0]])), ("x",)),
        Node("h", Relu(2), ("z",)),
        Node("y", Linear(np.ones((2, 1))), ("h",)),
    ),
    "y",
)
"""|x| as relu(x) + relu(-x)."""


@pytest.mark.parametrize("splitting", SPLITTING)
@pytest.mark.parametrize("graph", [IDENTITY, ABSOLUTE], ids=["identity", "absolute"])
def test_equality_at_the_boundary_satisfies_only_the_closed_row(
    graph: Graph, splitting: str
) -> None:
    """The smallest output over [0, 1] is zero: y <= 0 has a solution, y < 0 has none."""
    closed = make_problem([([0.0], [1.0])], [(0, [([1.0], 0.0, False)])])
    answer = solve(graph, closed, splitting=splitting)
    assert isinstance(answer, Counterexample)
    assert answer.inputs["X"].tolist() == [0.0]
    strict = make_problem([([0.0], [1.0])], [(0, [([1.0], 0.0, True)])])
    assert not isinstance(_glance(graph, strict, splitting=splitting), Counterexample)


@pytest.mark.parametrize("splitting", SPLITTING)
def test_conjunction_that_no_single_row_refutes(splitting: str) -> None:
    """y >= 0.3 and y <= 0.2: each row alone has solutions everywhere near, together none."""
    rows: list[Row] = [([-1.0], 0.3), ([1.0], -0.2)]
    problem = make_problem([([-1.0], [1.0])], [(0, rows)])
    assert solve(ABSOLUTE, problem, splitting=splitting) is None


@pytest.mark.parametrize("splitting", SPLITTING)
def test_disjunction_is_satisfied_by_its_only_satisfiable_case(splitting: str) -> None:
    impossible: list[Row] = [([1.0], 0.5)]
    possible: list[Row] = [([1.0], -0.9), ([-1.0], 0.8)]
    problem = make_problem(
        [([-1.0], [1.0]), ([0.85], [0.9])], [(0, impossible), (1, impossible), (1, possible)]
    )
    answer = solve(ABSOLUTE, problem, splitting=splitting)
    assert isinstance(answer, Counterexample)
    assert satisfied_case(ABSOLUTE, problem, answer.inputs["X"]) == 2
    without = make_problem([([-1.0], [1.0]), ([0.85], [0.9])], [(0, impossible), (1, impossible)])
    assert solve(ABSOLUTE, without, splitting=splitting) is None


@pytest.mark.parametrize("splitting", SPLITTING)
@pytest.mark.parametrize("attack", [0, 8])
@pytest.mark.parametrize("other", [[], [(0, [([1.0], 5.0)])]], ids=["alone", "beside another"])
def test_a_case_without_rows_is_never_refuted(
    splitting: str, attack: int, other: list[tuple[int, list[Row]]]
) -> None:
    """A tautology as output condition: every point of the box is a witness."""
    problem = make_problem([([-1.0], [1.0])], [*other, (0, [])], outputs=1)
    answer = solve(ABSOLUTE, problem, splitting=splitting, attack_restarts=attack)
    assert isinstance(answer, Counterexample)


@pytest.mark.parametrize("splitting", SPLITTING)
def test_refused_witnesses_never_become_an_answer(splitting: str) -> None:
    """Where no candidate survives its replay, a satisfiable problem must stay open."""
    problem = make_problem([([-1.0], [1.0])], [(0, [([1.0], -0.5)])])
    run = solver(ABSOLUTE, problem, splitting=splitting, input_split_limit=1)
    run.confirm = lambda point, decimals: None
    run.deadline = Deadline(1.0)
    answer = run.solve(problem)
    assert isinstance(answer, Reason)
    assert run.unconfirmed > 0


def test_no_time_is_no_answer() -> None:
    problem = make_problem([([-1.0], [1.0])], [(0, [([1.0], 0.1)])])
    for splitting in SPLITTING:
        run = solver(ABSOLUTE, problem, splitting=splitting)
        run.deadline = Deadline(0.0)
        assert run.solve(problem) in (None, Reason.TIMEOUT)


def test_splitting_none_leaves_open_what_bounds_do_not_decide() -> None:
    rows: list[Row] = [([-1.0], 0.3), ([1.0], -0.2)]
    problem = make_problem([([-1.0], [1.0])], [(0, rows)])
    assert solve(ABSOLUTE, problem, splitting="none", slope_steps=0) is Reason.INCOMPLETE


def test_progress_names_the_phases() -> None:
    seen: list[Progress] = []
    problem = make_problem([([-1.0], [1.0])], [(0, [([-1.0], 0.3), ([1.0], -0.2)])])
    run = solver(ABSOLUTE, problem, splitting="neuron")
    run.report = seen.append
    run.solve(problem)
    phases = list(dict.fromkeys(moment.phase for moment in seen))
    assert phases[:2] == ["attack", "bounds"]
    assert all(moment.disjuncts == 1 for moment in seen)


def test_recorded_bounds_hold(rng: np.random.Generator) -> None:
    graph = relu_network(rng, [2, 4, 1])
    problem = make_problem([([-1.0, -1.0], [1.0, 1.0])], [(0, [([1.0], 100.0)])])
    run = solver(graph, problem, splitting="neuron")
    assert run.solve(problem) is None
    smallest = smallest_violation(graph, problem, 0)
    assert 0 < run.bounds[0] <= smallest + 1e-6


@pytest.mark.parametrize("splitting", SPLITTING)
def test_relu_that_reads_the_input(splitting: str) -> None:
    """max(x, 0) - max(-x, 0) + ... with curves directly at the input, and a value nobody reads."""
    nodes = (
        Node("p", Relu(1), ("x",)),
        Node("m", Scale(1, np.array([-1.0])), ("x",)),
        Node("n", Relu(1), ("m",)),
        Node("unread", Select.of(np.array([0, 0]), 1), ("x",)),
        Node("y", Sum(1, (1, 1)), ("p", "n")),
    )
    graph = Graph("x", 1, nodes, "y")
    assert exact_values(graph, [-2.0])["y"] == [2]
    problem = make_problem([([-1.0], [1.5])], [(0, [([1.0], 0.25)])])
    assert solve(graph, problem, splitting=splitting) is None


def test_a_bound_promises_to_be_positive_in_time() -> None:
    assert promises(-4.0, -2.0, 1.0, 2.0)
    assert not promises(-4.0, -2.5, 1.0, 2.0)
    assert promises(-4.0, np.inf, 1.8, 2.0)
    assert promises(-np.inf, -1.0, 1.8, 2.0)


@pytest.mark.parametrize("promise", [True, False])
def test_splits_over_the_first_bounds_end_without_promise(
    promise: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What they were to refute is refuted afterwards."""
    asked: list[float] = []
    answers, brief = [], Solver._split_briefly

    def promised(first: float, lowest: float, spent: float, whole: float) -> bool:
        asked.append(lowest)
        return promise

    def noted(run: Solver, *arguments: Any) -> Counterexample | Reason | None:
        answers.append(brief(run, *arguments))
        return answers[-1]

    monkeypatch.setattr("onnxcert.search.solve.promises", promised)
    monkeypatch.setattr("onnxcert.search.solve._BRIEF_TRIAL", -1.0)
    monkeypatch.setattr(Solver, "_split_briefly", noted)
    assert hard(tmp_path).verify(splitting="neuron", watch="off").word == "unsat"
    assert asked
    if not promise:
        assert answers == [Reason.TIMEOUT]
