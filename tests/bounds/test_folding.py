"""Folded networks: their values are those of the network on the box, and their bounds hold."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from unittest import mock

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from onnxcert.arrays import Array
from onnxcert.bounds.crown import Bounds, crown_bounds
from onnxcert.bounds.folding import Folded, can_fold, fold, unstable_relus
from onnxcert.graph import Graph, Neurons, Node
from onnxcert.ops import BandedLinear, Concat, LeakyRelu, Linear, Relu, bands
from onnxcert.sets import Ball, Box
from tests import strategies
from tests.oracles import dot, exact_values


@pytest.fixture(autouse=True, scope="module")
def narrow_bands() -> Iterator[None]:
    """Small networks have bands, too."""
    with mock.patch.multiple(bands, _BAND=3, _GAP=1):
        yield


def halves(box: Box) -> Box:
    """The upper half of every input."""
    return Box(0.5 * (box.lower + box.upper), box.upper)


def check(graph: Graph, bounds: Bounds, made: Folded, points: Array, largest: float) -> None:
    """Every folded node, from the exact values of what it reads, up to its deviation."""
    half = crown_bounds(made.graph, halves(bounds.boxes[graph.input]))
    for x in points:
        exactly = exact_values(graph, x)
        values = {graph.input: exactly[graph.input]}
        for node in made.graph.nodes:
            if isinstance(node.op, Concat):
                values[node.name] = [v for name in node.inputs for v in values[name]]
                continue
            source = node.inputs[0] if isinstance(node.op, Relu) else node.name
            kept = made.kept.get(source, np.arange(graph.sizes[source]))
            right = values[node.name] = [exactly[node.name][i] for i in kept]
            if isinstance(node.op, Relu):
                continue
            assert isinstance(node.op, Linear | BandedLinear)
            weight = node.op.weight.T if isinstance(node.op, Linear) else node.op.weight
            assert node.deviation is not None
            assert node.op.offset is not None
            rows = zip(weight, node.op.offset, node.deviation, right, strict=True)
            for row, offset, deviation, value in rows:
                found = dot(row, values[node.inputs[0]]) + Fraction(float(offset))
                assert abs(found - value) <= Fraction(float(deviation))
                assert deviation <= largest
        inner = halves(bounds.boxes[graph.input])
        if ((inner.lower[0] <= x) & (x <= inner.upper[0])).all():
            for name, value in values.items():
                box = half.boxes[name]
                for v, a, b in zip(value, box.lower[0], box.upper[0], strict=True):
                    assert Fraction(float(a)) <= v <= Fraction(float(b))


@given(data=st.data(), graph=strategies.graphs(curves=("relu",)))
def test_values_are_those_of_the_network(data: st.DataObject, graph: Graph) -> None:
    event(f"can be folded: {can_fold(graph)}")
    if not can_fold(graph):
        return
    box = data.draw(strategies.boxes(graph.input_size, batch=1, largest=3.0))
    points = data.draw(strategies.points_in(box))[:, 0]
    bounds = crown_bounds(graph, box)
    made = fold(bounds)
    assert made is not None
    neurons = sum(len(index) for index in made.kept.values())
    assert neurons == made.neurons == unstable_relus(bounds)[0]
    check(graph, bounds, made, points, np.inf)


@pytest.mark.parametrize("seed", range(5))
def test_folding_again(seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = strategies.relu_network(rng, [3, 12, 10, 8, 2])
    box = Box(-np.ones((1, 3)), np.ones((1, 3)))
    first = fold(crown_bounds(graph, box))
    assert first is not None
    assert can_fold(first.graph)
    half = halves(box)
    bounds = crown_bounds(first.graph, half)
    second = fold(bounds)
    assert second is not None
    assert second.neurons < first.neurons
    points = rng.uniform(half.lower[0], half.upper[0], (5, 3))
    check(
        graph,
        crown_bounds(graph, half),
        Folded(
            second.graph,
            {name: first.kept[name][index] for name, index in second.kept.items()},
            second.layers,
        ),
        points,
        1e-9,
    )


@pytest.mark.parametrize("seed", range(5))
def test_rows_that_are_zero_outside_of_bands(seed: int) -> None:
    """Neurons that see only what is near them, as those of images."""
    rng = np.random.default_rng(seed)
    nodes, read = list[Node](), "x"
    for number in range(3):
        weight = rng.normal(size=(12, 12)) * (abs(np.subtract.outer(range(12), range(12))) < 2)
        nodes.append(Node(f"a{number}", Linear(weight, 0.1 * rng.normal(size=12)), (read,)))
        nodes.append(Node(read := f"b{number}", Relu(12), (f"a{number}",)))
    nodes.append(Node("y", Linear(rng.normal(size=(12, 2))), (read,)))
    graph, box = Graph("x", 12, tuple(nodes), "y"), Box(-np.ones((1, 12)), np.ones((1, 12)))
    made = fold(crown_bounds(graph, box))
    assert made is not None
    assert sum(isinstance(node.op, BandedLinear) for node in made.graph.nodes) >= 2
    points = rng.uniform(-1.0, 1.0, (5, 12))
    check(graph, crown_bounds(graph, box), made, np.vstack([points, abs(points)]), 1e-9)


def test_bounds_are_those_of_the_network() -> None:
    """Rows meet the same lines; only what rounding may cost differs."""
    graph = strategies.relu_network(np.random.default_rng(1), [3, 12, 10, 8, 2])
    box = Box(-np.ones((1, 3)), np.ones((1, 3)))
    bounds = crown_bounds(graph, box)
    made = fold(bounds)
    assert made is not None
    again = crown_bounds(made.graph, box)
    for name, index in made.kept.items():
        for side in ("lower", "upper"):
            whole, folded = getattr(bounds.boxes[name], side), getattr(again.boxes[name], side)
            np.testing.assert_allclose(folded, whole[:, index], atol=1e-9)


def test_what_is_not_folded() -> None:
    linear = Node("a", Linear(np.ones((2, 2))), ("x",))
    relu = Node("b", Relu(2), ("a",))
    last = Node("y", Linear(np.ones((2, 1))), ("b",))
    graph = Graph("x", 2, (linear, relu, last), "y")
    assert can_fold(graph)
    assert not can_fold(Graph("x", 2, (linear, relu), "b"))
    assert not can_fold(Graph("x", 2, (Node("b", Relu(2), ("x",)), last), "y"))
    leaky = Node("b", LeakyRelu(2, np.full(2, 0.5)), ("a",))
    assert not can_fold(Graph("x", 2, (linear, leaky, last), "y"))
    twice = (linear, relu, Node("c", Relu(2), ("a",)), last)
    assert not can_fold(Graph("x", 2, twice, "y"))
    ends = -np.ones((1, 2)), np.ones((1, 2))
    ball = Ball(*ends, np.zeros((1, 2)), np.ones((1, 2)))
    assert fold(crown_bounds(graph, ball)) is None
    assert fold(crown_bounds(graph, Box(*ends)), lambda: True) is None


def test_neurons_keep_their_names() -> None:
    """Curves of folded networks are known to readers of the file by label and position."""
    weight = np.array([[1.0, 1.0, -1.0, 1.0]])
    offset = np.array([0.0, 2.0, 0.5, -2.0])
    curve = Node("b", Relu(4), ("a",), neurons=Neurons("b", np.array([3, 1, 0, 2])))
    nodes = (
        Node("a", Linear(weight, offset), ("x",)),
        curve,
        Node("y", Linear(np.ones((4, 1))), ("b",)),
    )
    made = fold(crown_bounds(Graph("x", 1, nodes, "y"), Box(-np.ones((1, 1)), np.ones((1, 1)))))
    assert made is not None
    assert made.neurons == 2
    neurons = made.graph.pre_activations["a"][0].neurons
    assert neurons is not None
    assert (neurons.label, neurons.at(np.arange(2)).tolist()) == ("b", [3, 0])
