"""The neuron that halves a region, among networks where the best one is known or is searched."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from onnxcert.arrays import Device
from onnxcert.bounds.crown import crown_bounds
from onnxcert.bounds.optimised import FreeRelaxation, Optimised, Splits, Start, optimise
from onnxcert.graph import Graph, Node
from onnxcert.ops import Linear, Relu
from onnxcert.proof.trace import NeuronTrees
from onnxcert.search.cases import Cases
from onnxcert.search.halving import Cut, Halving
from onnxcert.sets import Box
from tests.strategies import make_problem, points_in, relu_network, seeds


def halving(
    graph: Graph, offset: float, *, expired: bool = False
) -> tuple[Halving, dict[str, Box], Optimised]:
    """``y_0 + offset <= 0`` over [-1, 1]^n, with the bounds of that one case."""
    count = graph.input_size
    row = [1.0] + [0.0] * (graph.output_size - 1)
    problem = make_problem([([-1.0] * count, [1.0] * count)], [(0, [(row, offset)])])
    cases = Cases.build(problem, Device())
    boxes = crown_bounds(graph, Box(problem.lower, problem.upper)).boxes
    forms = cases.forms(np.zeros((1, 1), dtype=int))
    start = Start.at_form(np.zeros(1, dtype=int), forms)
    found = optimise(
        FreeRelaxation.build(graph, boxes), forms, boxes[graph.output], start, steps=20
    )
    return Halving(graph, cases, lambda: expired, 0.0), boxes, found


def chosen(graph: Graph, offset: float, **options: Any) -> Cut | None:
    halves, boxes, found = halving(graph, offset, **options)
    return halves.choose(boxes, np.zeros(1, dtype=int), found, Splits())


def parallel(weights: list[float], half_widths: list[float]) -> Graph:
    """x -> sum_i w_i relu(r_i x_i)."""
    count = len(weights)
    nodes = (
        Node("z", Linear(np.diag(half_widths)), ("x",)),
        Node("h", Relu(count), ("z",)),
        Node("y", Linear(np.array(weights)[:, None]), ("h",)),
    )
    return Graph("x", count, nodes, "y")


@pytest.mark.parametrize(
    ("weights", "half_widths", "best"),
    [
        ([-1.0, -3.0, -2.0], [1.0, 1.0, 1.0], 1),
        ([-1.0, -3.0, -2.0], [1.0, 1.0, 4.0], 2),
        ([-1.0] * 20 + [-2.0], [1.0] * 21, 20),  # more neurons than are tried
    ],
)
def test_the_neuron_that_costs_most_is_cut(
    weights: list[float], half_widths: list[float], best: int
) -> None:
    assert chosen(parallel(weights, half_widths), 0.0) == Cut("z", best, 0.0)


def test_without_time_or_neurons_there_is_no_cut() -> None:
    graph = parallel([-1.0, -3.0], [1.0, 1.0])
    assert chosen(graph, 0.0, expired=True) is None
    nodes = (Node("z", Linear(np.eye(2), np.full(2, 5.0)), ("x",)), *graph.nodes[1:])
    assert chosen(Graph("x", 2, nodes, "y"), 0.0) is None


@given(seed=seeds, data=st.data())
def test_halves_hold_what_is_on_their_side(seed: int, data: st.DataObject) -> None:
    """Bounds and gains of every half, against points and against an ascent by itself."""
    graph = relu_network(np.random.default_rng(seed), [3, 5, 5, 1])
    halves, boxes, found = halving(graph, -50.0)
    assume(found.lower[0] < 0)
    cuts = halves._promising(boxes, found)
    assume(cuts)
    both = [(cut, sign) for cut in cuts for sign in (-1.0, 1.0)]
    tight, empty = halves._enclose(both, boxes)
    points = data.draw(points_in(boxes[graph.input], count=8))[:, 0]
    values = {graph.input: points}
    for node in graph.nodes:
        values[node.name] = node.op.forward([values[name] for name in node.inputs])
    for number, (cut, sign) in enumerate(both):
        there = sign * (values[cut.name][:, cut.neuron] - cut.point) >= 0
        assert not (empty[number] and there.any())
        for name, box in tight.items():
            row = number if len(box) > 1 else 0
            inside = values[name][there]
            assert (inside >= box.lower[row] - 1e-9).all(), name
            assert (inside <= box.upper[row] + 1e-9).all(), name
    gains = halves._gains(both, boxes, np.zeros(1, dtype=int), found, Splits())
    assert (gains <= -found.lower[0]).all()
    assert gains[empty] == pytest.approx(-found.lower[0])


def test_trees_say_how_much_of_them_is_closed() -> None:
    """Two trees; of the first one quarter, then one half and all of it; the other stays open."""
    graph = parallel([-1.0, -3.0], [1.0, 1.0])
    problem = make_problem([([-1.0] * 2, [1.0] * 2)], [(0, [([1.0], 0.0)]), (0, [([1.0], 1.0)])])
    trees = NeuronTrees(problem, graph, {}, (graph, []))
    nothing = Start({}, {}, np.ones((1, 1)), np.zeros(1, dtype=int))

    def close(node: int) -> None:
        trees.close(np.array([node]), nothing, np.zeros(1, dtype=int), np.zeros((1, 0)))

    def cut(node: int, neuron: int) -> tuple[int, int]:
        lower, upper = trees.split(np.array([node]), np.array([neuron]), np.zeros(1))
        return int(lower[0]), int(upper[0])

    first, second = trees.plant(np.array([0, 1])).tolist()
    below, above = cut(first, 0)
    left, right = cut(below, 1)
    for node, share in ((left, 0.125), (right, 0.25), (above, 0.5)):
        close(node)
        assert math.isclose(trees.share(), share)
    assert trees.closed(np.array([first, second, below])).tolist() == [True, False, True]
