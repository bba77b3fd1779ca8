"""A network without the neurons that are dead on a box is the same network on that box."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onnxcert.bounds.crown import crown_bounds
from onnxcert.graph import Graph
from onnxcert.ops import Relu
from onnxcert.passes import drop_dead_neurons
from onnxcert.sets import Box
from tests import strategies
from tests.oracles import exact_values


def neurons(graph: Graph) -> int:
    return sum(node.op.output_size for node in graph.nodes if isinstance(node.op, Relu))


@given(data=st.data())
def test_function_and_bounds_are_kept_on_the_box(data: st.DataObject) -> None:
    seed = data.draw(strategies.seeds)
    graph = data.draw(
        strategies.graphs(smooth=False)
        | st.just(strategies.relu_network(np.random.default_rng(seed), [3, 6, 6, 2]))
    )
    box = data.draw(strategies.boxes(graph.input_size, batch=1, largest=2.0))
    with np.errstate(all="ignore"):
        known = crown_bounds(graph, box).boxes
    smaller, boxes = drop_dead_neurons(graph, known)
    assert neurons(smaller) <= neurons(graph)
    for x in data.draw(strategies.points_in(box, count=3)):
        after = exact_values(smaller, x[0])
        assert after[smaller.output] == exact_values(graph, x[0])[graph.output]
    assert {name: box.lower.shape[1] for name, box in boxes.items()} == dict(smaller.sizes)


def test_dead_neurons_go(rng: np.random.Generator) -> None:
    graph = strategies.relu_network(rng, [3, 20, 20, 2])
    x = rng.normal(size=(1, 3))
    known = crown_bounds(graph, Box(x - 1e-3, x + 1e-3)).boxes
    smaller, _ = drop_dead_neurons(graph, known)
    alive = sum(
        int((known[node.inputs[0]].upper > 0).sum())
        for node in graph.nodes
        if isinstance(node.op, Relu)
    )
    assert neurons(smaller) == alive < neurons(graph)
