"""Splitting neurons: the choice on networks whose best split is known, and complete trees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnxcert.arrays import Array, Device
from onnxcert.bounds.crown import crown_bounds
from onnxcert.bounds.optimised import FreeRelaxation, Start, optimise
from onnxcert.graph import Graph, Neurons, Node
from onnxcert.ops import Linear, PiecewiseLinear, Relu, Scale, Sum, Tanh
from onnxcert.proof.trace import NeuronTrees, free_neurons
from onnxcert.search.bab import BranchAndBound
from onnxcert.search.candidates import Candidates
from onnxcert.search.cases import Cases
from onnxcert.search.deadline import Deadline
from onnxcert.search.frontier import Batch, take
from onnxcert.search.neuron_split import NeuronSplit, _State
from onnxcert.sets import Box
from onnxcert.spec import Problem
from tests.strategies import make_problem, relu_network, seeds


def never() -> bool:
    return False


def brancher(graph: Graph, problem: Problem, steps: int = 4) -> NeuronSplit:
    """All cases open below the first box of the problem."""
    cases = Cases.build(problem, Device())
    boxes = crown_bounds(graph, Box(problem.lower[:1], problem.upper[:1])).boxes
    numbers = np.arange(len(problem))
    forms = cases.forms(numbers[:, None])
    free = FreeRelaxation.build(graph, boxes)
    start = Start.at_form(np.zeros(len(numbers), dtype=int), forms)
    root = optimise(free, forms, boxes[graph.output], start, steps=20)
    trees = NeuronTrees(problem, graph, free_neurons(free, boxes), (graph, []))
    return NeuronSplit(graph, cases, numbers, boxes, root.best, steps, trees)


def parallel(weights: list[float], half_widths: list[float], curve: type = Relu) -> Graph:
    """x -> sum_i w_i f(r_i x_i), a neuron for each input."""
    count = len(weights)
    nodes = (
        Node("z", Linear(np.diag(half_widths)), ("x",)),
        Node("h", curve(count), ("z",)),
        Node("y", Linear(np.array(weights)[:, None]), ("h",)),
    )
    return Graph("x", count, nodes, "y")


def one_case(inputs: int, offset: float) -> Problem:
    """``y + offset <= 0`` somewhere in [-1, 1]^inputs."""
    return make_problem([([-1.0] * inputs, [1.0] * inputs)], [(0, [([1.0], offset)])])


def choice(split: NeuronSplit, batch: Batch) -> int:
    state = split.bound(batch, never).state
    assert isinstance(state, _State)
    return int(state.neuron[0])


def worse_child(split: NeuronSplit, batch: Batch, neuron: int) -> float:
    """The lower of the two bounds after a split at zero."""
    lower = []
    for sign in (-1.0, 1.0):
        child = take(batch, slice(None))
        split._extend(child, np.array([neuron]), np.array([sign]), np.zeros(1))
        lower.append(float(split.bound(child, never).score[0]))
    return min(lower)


@pytest.mark.parametrize(
    ("weights", "half_widths", "best"),
    [
        ([-1.0, -3.0, -2.0], [1.0, 1.0, 1.0], 1),
        ([-1.0, -3.0, -2.0], [1.0, 1.0, 4.0], 2),
        ([-1.0, 50.0, -2.0], [1.0, 1.0, 1.0], 2),  # where A > 0 the line goes through the kink
        ([-1.0, 50.0, 70.0], [1.0, 9.0, 9.0], 0),
    ],
)
def test_the_neuron_is_split_that_gains_most(
    weights: list[float], half_widths: list[float], best: int
) -> None:
    graph = parallel(weights, half_widths)
    # The smallest value is -sum of w r over negative w; the bound without splits is lower.
    split = brancher(graph, one_case(len(weights), 0.0))
    batch = split.roots()
    gains = [worse_child(split, batch, neuron) for neuron in range(len(weights))]
    assert int(np.argmax(gains)) == best
    assert choice(split, batch) == best


def test_a_choice_is_made_where_no_gap_is_in_use() -> None:
    """All rows are positive, so every line goes through its kink; the widest gap decides."""
    graph = parallel([1.0, 3.0, 2.0], [1.0, 1.0, 1.0])
    split = brancher(graph, one_case(3, -1.0), steps=0)
    bounded = split.bound(split.roots(), never)
    assert not bounded.closed.any()
    state = bounded.state
    assert isinstance(state, _State)
    assert state.neuron.tolist() == [1]
    assert (state.score > 1e-6).all()


def test_neurons_of_smooth_curves_have_a_score() -> None:
    graph = parallel([-1.0, -3.0, -2.0], [2.0, 2.0, 2.0], Tanh)
    split = brancher(graph, one_case(3, 5.7))
    assert choice(split, split.roots()) == 1


def test_a_batch_that_runs_out_of_memory_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is bounded again in parts; a leaf that was noted already would then be there twice."""
    graph = parallel([-2.0, 1.0], [1.0, 1.0])
    # One side of the split is refuted at once, the other needs an ascent.
    split = brancher(graph, one_case(2, 1.0))
    batch = split.roots()
    parts = []
    for sign in (-1.0, 1.0):
        part = take(batch, slice(None))
        split._extend(part, np.array([0]), np.array([sign]), np.zeros(1))
        parts.append(part)
    both = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    right = NeuronSplit._optimise

    def scarce(self: NeuronSplit, batch: Batch, steps: int, *rest: Any) -> Any:
        if steps:
            raise MemoryError
        return right(self, batch, steps, *rest)

    monkeypatch.setattr(NeuronSplit, "_optimise", scarce)
    first, _ = split._optimise(both, 0, never)
    assert sorted(first.lower > 0) == [False, True]
    with pytest.raises(MemoryError):
        split.bound(both, never)
    assert not split.trees.leaves


def assert_complete(trees: NeuronTrees) -> None:
    """Every node is closed once or split once, never both."""
    leaves = Counter(node for part in trees.leaves for node in part.nodes.tolist())
    parents = Counter(node for part in trees.splits for node in part[0].tolist())
    assert set(leaves.values()) <= {1}
    assert set(parents.values()) <= {1}
    assert not leaves.keys() & parents.keys()
    assert leaves.keys() | parents.keys() == set(range(trees.nodes.count))
    children = trees.nodes.children
    assert {node for node in parents if (children[node] >= 0).all()} == set(parents)


@settings(max_examples=15)
@given(seed=seeds, steps=st.sampled_from([0, 1, 4]), margin=st.sampled_from([0.02, 0.2]))
def test_trees_are_complete_and_their_leaves_refuted(seed: int, steps: int, margin: float) -> None:
    """Some leaves close with what their parents found, others only after an ascent."""
    rng = np.random.default_rng(seed)
    graph = relu_network(rng, [2, 6, 4, 2])
    outputs = graph.forward(rng.uniform(-1.0, 1.0, size=(2000, 2)))
    rows = rng.normal(size=(3, 2))
    cases = [(0, [(row.tolist(), float(margin - (outputs @ row).min()))]) for row in rows]
    problem = make_problem([([-1.0, -1.0], [1.0, 1.0])], cases)
    split = brancher(graph, problem, steps)
    candidates = Candidates(graph.forward, split.cases, lambda point, decimals: None)
    answer = BranchAndBound(batch_limit=16).run(split, candidates, Deadline(5.0))
    assume(answer is None)  # leaves without unstable neurons may be left to halving inputs
    assert_complete(split.trees)
    for node, lower in replayed(split):
        assert lower > 0, node


def replayed(split: NeuronSplit) -> list[tuple[int, float]]:
    """Every leaf bounded again from what was noted of it: its path, slopes and multipliers."""
    trees = split.trees
    roots = split.roots()
    paths: dict[int, tuple[int, Array]] = {}
    for nodes, cases in trees.roots[:-1]:
        paths |= {n: (c, np.zeros((0, 3))) for n, c in zip(nodes.tolist(), cases, strict=True)}
    children = trees.nodes.children
    for nodes, neurons, points in trees.splits:
        for node, neuron, point in zip(nodes.tolist(), neurons, points, strict=True):
            case, path = paths[node]
            for sign, child in zip((-1.0, 1.0), children[node].tolist(), strict=True):
                paths[child] = (case, np.vstack([path, [neuron, sign, point]]))
    result = []
    for leaves in trees.leaves:
        for k, node in enumerate(leaves.nodes.tolist()):
            case, path = paths[node]
            batch = take(roots, slice(case, case + 1))
            batch["neuron"], batch["sign"] = path[:, 0].astype(int)[None], path[:, 1][None]
            batch["point"] = path[:, 2][None]
            multipliers = leaves.multipliers[k]
            batch["multiplier"] = batch["sign"] * multipliers[~np.isnan(multipliers)]
            batch["weight"] = leaves.weights[k : k + 1]
            _use_slopes(batch, split.trees.columns, leaves.slopes[k])
            result.append((node, float(split._optimise(batch, 0, never)[0].lower[0])))
    return result


def _use_slopes(batch: Batch, columns: Mapping[str, Array], slopes: Array) -> None:
    begin = 0
    for name, numbers in columns.items():
        codes = np.zeros_like(batch[f"slope:{name}"])
        codes[0, numbers] = slopes[begin : begin + len(numbers)]
        batch[f"slope:{name}"] = codes
        begin += len(numbers)


def tabulated(half_width: float = 1.0) -> Graph:
    """A zigzag of one number, which is read linearly, too: x + 4 f(x), f with five knots."""
    knots = np.array([[-0.75, -0.25, 0.0, 0.25, 0.75]])
    weight = np.array([[1.0, -2.0, 2.0, -2.0, 2.0]])
    curve = PiecewiseLinear(1, weight, np.ones((1, 5)), -knots, np.zeros(1))
    nodes = (
        Node("z", Linear(np.array([[half_width]])), ("x",)),
        Node("f", curve, ("z",), neurons=Neurons("f")),
        Node("s", Scale(1, np.array([4.0])), ("f",)),
        Node("y", Sum(1, (1, 1)), ("s", "z")),
    )
    return Graph("x", 1, nodes, "y")


@pytest.mark.parametrize(("low", "high"), [(-0.75, -0.25), (-0.25, 0.0), (0.0, 0.25), (0.25, 0.75)])
def test_a_neuron_between_two_splits_is_pressed_to_either(low: float, high: float) -> None:
    """Between two knots the curve is exact, and the splits alone say where that is."""
    graph = tabulated()
    smallest = float(graph.forward(np.linspace(low, high, 65)[:, None]).min())
    split = brancher(graph, one_case(1, -smallest - 0.125))  # never positive, which ends an ascent
    batch = split.roots()
    for sign, point in ((1.0, low), (-1.0, high)):
        split._extend(batch, np.array([0]), np.array([sign]), np.array([point]))
    found, _ = split._optimise(batch, 200, never)
    assert -0.145 <= found.lower[0] <= -0.125
    path = batch["neuron"], batch["sign"]
    stored = split._unsigned(*path, found.best.multipliers, np.arange(1))
    assert np.count_nonzero(stored) == 1


def test_trees_over_a_curve_with_knots() -> None:
    graph = tabulated()
    smallest = float(graph.forward(np.linspace(-1.0, 1.0, 4097)[:, None]).min())
    split = brancher(graph, one_case(1, 0.01 - smallest))
    candidates = Candidates(graph, split.cases, lambda point, decimals: None)
    assert BranchAndBound(batch_limit=16).run(split, candidates, Deadline(20.0)) is None
    assert_complete(split.trees)
    for node, lower in replayed(split):
        assert lower > 0, node
