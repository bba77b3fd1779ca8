"""A network without what nobody reads is the same network to those who read the rest."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onnxcert.frontend.vnnlib import parse_query
from onnxcert.graph import Graph, Neurons, Node
from onnxcert.instance import Instance
from onnxcert.ops import Concat, Linear, Relu, Select
from onnxcert.passes import drop_unread, simplify
from tests.checker.makers import tables
from tests.oracles import exact_values
from tests.strategies import LAYERS, STEEP, graphs

BOX = [f"(assert (and (<= X[0,{i}] 1.0) (>= X[0,{i}] -1.0)))" for i in range(2)]
KINDS = (*LAYERS, "convolution", *STEEP)


@given(data=st.data(), graph=graphs(layers=KINDS))
def test_the_same_function_where_it_is_read(data: st.DataObject, graph: Graph) -> None:
    chosen = data.draw(st.sets(st.integers(0, graph.output_size - 1)))
    read = np.zeros(graph.output_size, bool)
    read[list(chosen)] = True
    smaller = drop_unread(graph, read)
    assert smaller.output_size == graph.output_size
    assert all(size <= graph.sizes.get(name, size) for name, size in smaller.sizes.items())
    x = data.draw(st.lists(st.integers(-16, 16), min_size=3, max_size=3))
    point = [value / 8 for value in x[: graph.input_size]]
    before, after = (exact_values(g, point)[g.output] for g in (graph, smaller))
    for k in chosen:
        assert after[k] == before[k]
    if smaller is not graph:
        assert all(after[k] in (0, before[k]) for k in range(graph.output_size))


def towers() -> Graph:
    """Two layers of their own for each half of the output."""
    rng = np.random.default_rng(0)
    nodes, last = [], []
    for name, order in (("a", None), ("b", np.array([3, 1, 0, 2]))):
        first, second = rng.normal(size=(2, 4)), rng.normal(size=(4, 2))
        nodes += [
            Node(f"{name}z", Linear(first), ("x",)),
            Node(f"{name}h", Relu(4), (f"{name}z",), neurons=Neurons(name, order)),
            Node(f"{name}y", Linear(second), (f"{name}h",)),
        ]
        last.append(f"{name}y")
    nodes.append(Node("y", Concat((2, 2)), tuple(last)))
    return Graph("x", 2, tuple(nodes), "y")


def test_a_tower_that_nobody_reads_goes() -> None:
    graph = towers()
    smaller = simplify(drop_unread(graph, np.array([False, False, True, False])))
    assert [node.neurons.label for node in smaller.nodes if node.neurons] == ["b"]
    assert smaller.sizes["by"] == 1
    x = np.random.default_rng(1).normal(size=(5, 2))
    expected = graph.forward(x) * [0, 0, 1, 0]
    np.testing.assert_allclose(smaller.forward(x), expected, rtol=1e-12)


def test_neurons_keep_their_positions() -> None:
    graph = towers()
    picked = Node("some", Select.of(np.array([1, 3]), 4), ("bh",))
    graph = Graph("x", 2, (*graph.nodes[:5], picked), "some")
    smaller = drop_unread(graph, np.array([False, True]))
    (relu,) = (node for node in smaller.nodes if node.neurons)
    assert relu.neurons is not None
    assert relu.op.output_size == 1
    assert relu.neurons.at(np.arange(1)).tolist() == [2]


def test_nothing_to_drop() -> None:
    graph = towers()
    assert drop_unread(graph, np.ones(4, bool)) is graph
    assert drop_unread(graph, np.zeros(4, bool)) is graph


def test_joined_curves_keep_their_positions() -> None:
    """A curve is the number of its sum among all of the layer, also of those that are dropped."""
    rng = np.random.default_rng(0)
    proto = tables(
        rng.choice([-1.5, 0.5, 2.0], size=(5, 3)), rng.normal(size=5), np.array([2, 0, 1])
    )
    lines = ["(vnnlib-version <2.0>) (declare-network f (declare-input X real [1,2])"]
    lines += ['(declare-hidden H real [1,3] "h") (declare-output Y real [1,2]))', *BOX]
    instance = Instance.read(proto, parse_query("\n".join([*lines, "(assert (>= H[0,0] 1e3))"])))
    whole, searched = instance.joined, instance.searched(executed=False)
    (before,), (after,) = (
        [node.neurons for node in graph.nodes if node.neurons] for graph in (whole, searched)
    )
    assert before.at(np.arange(3)).tolist() == [2, 0, 1]
    assert after.at(np.arange(1)).tolist() == [2]
    x = rng.normal(size=(4, 2))
    expected = whole.forward(x) * [0, 0, 1, 0, 0]
    np.testing.assert_allclose(searched.forward(x), expected, atol=1e-12)


def test_executions_round_as_before() -> None:
    graph = towers()
    smaller = drop_unread(graph, np.array([True, False, False, False]))
    for node in smaller.nodes:
        if node.name in graph.sizes and isinstance(node.op, Linear):
            assert smaller.roundings[node.name] == graph.roundings[node.name]
