"""Splits of inputs over folded networks: the same answers, and nothing is kept for too long."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcert.arrays import Device
from onnxcert.graph import Graph
from onnxcert.ops import LeakyRelu
from onnxcert.proof.trace import Cut, InputTrees
from onnxcert.search import folded_split
from onnxcert.search.bab import BranchAndBound
from onnxcert.search.candidates import Candidates
from onnxcert.search.cases import Cases
from onnxcert.search.deadline import Deadline
from onnxcert.search.folded_split import FoldedSplit
from onnxcert.search.input_split import InputSplit
from onnxcert.spec import Problem
from onnxcert.verdict import Counterexample, Reason
from tests.oracles import confirm_exactly
from tests.strategies import make_problem, relu_network

Patch = pytest.MonkeyPatch


@pytest.fixture
def always(monkeypatch: Patch) -> None:
    """Small networks are folded, and again with every neuron that is stable."""
    monkeypatch.setattr(folded_split, "LEAST_WORK", 0)
    monkeypatch.setattr(folded_split, "AGAIN", 1.0)
    monkeypatch.setattr(folded_split, "LEAST_LEFT", 0.0)


def question(margin: float) -> tuple[Graph, Problem]:
    """Two boxes and three cases; whether one output may be less than it was seen to be by that."""
    rng = np.random.default_rng(3)
    graph = relu_network(rng, [3, 12, 8, 2])
    boxes = [([-1.0] * 3, [0.0, 1.0, 1.0]), ([0.0, -1.0, -1.0], [1.0] * 3)]
    cases = []
    for number, (low, high) in enumerate(boxes):
        seen = graph.forward(rng.uniform(low, high, (2000, 3)))
        for output in range(2 - number):
            row = [1.0 * (output == i) for i in range(2)]
            cases.append((number, [(row, margin - float(seen[:, output].min()))]))
    return graph, make_problem(boxes, cases)


def searched(
    graph: Graph, problem: Problem, limit: int = 4096
) -> tuple[Counterexample | Reason | None, FoldedSplit, InputTrees]:
    cases, trees = Cases.build(problem, Device()), InputTrees(problem)
    brancher = FoldedSplit.over(InputSplit(graph, cases, np.arange(len(problem)), trees))
    assert isinstance(brancher, FoldedSplit)
    candidates = Candidates(graph.forward, cases, confirm_exactly(graph, problem), np.float64)
    answer = BranchAndBound(batch_limit=limit).run(brancher, candidates, Deadline(60.0))
    return answer, brancher, trees


def folds(trees: InputTrees) -> int:
    return sum(int((step.how == Cut.FOLDED).sum()) for step in trees.steps)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("limit", [1, 7, 4096])
def test_all_is_refuted_and_all_folds_are_dropped(limit: int) -> None:
    answer, brancher, trees = searched(*question(2.0), limit)
    assert answer is None
    assert folds(trees) >= 5
    assert not brancher._folds
    closed = np.concatenate([step.closed for step in trees.steps])
    cut = np.concatenate([step.cut for step in trees.steps])
    assert sorted([*closed, *cut]) == list(range(trees.nodes.count))


@pytest.mark.usefixtures("always")
def test_a_witness_is_found() -> None:
    answer, _, trees = searched(*question(-0.05), 3)
    assert isinstance(answer, Counterexample)
    assert folds(trees) > 0


def test_small_networks_are_not_folded() -> None:
    answer, _, trees = searched(*question(2.0))
    assert (answer, folds(trees)) == (None, 0)


@pytest.mark.usefixtures("always")
def test_boxes_keep_their_network_where_there_is_no_room(monkeypatch: Patch) -> None:
    _, _, trees = searched(*question(2.0))
    monkeypatch.setattr(folded_split, "MOST_BYTES", 8 * 18**2)
    answer, _, fewer = searched(*question(2.0))
    assert answer is None
    assert 0 < folds(fewer) < folds(trees)


def test_what_cannot_be_folded_is_split_over_the_network() -> None:
    graph, problem = question(2.0)
    cases = Cases.build(problem, Device())
    executed = InputSplit(graph, cases, np.arange(3), InputTrees(problem), 2.0**-24)
    assert FoldedSplit.over(executed) is executed
    nodes = list(graph.nodes)
    leaky = LeakyRelu(12, np.full(12, 0.1))
    nodes[1] = type(nodes[1])(nodes[1].name, leaky, nodes[1].inputs)
    other = Graph(graph.input, graph.input_size, tuple(nodes), graph.output)
    brancher = InputSplit(other, cases, np.arange(3), InputTrees(problem))
    assert FoldedSplit.over(brancher) is brancher
