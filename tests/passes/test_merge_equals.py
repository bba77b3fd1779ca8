"""Equal neurons and relus of opposite numbers: what is merged, what is not, the same function."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcert.frontend.onnx import load_model
from onnxcert.graph import Graph, Neurons, Node
from onnxcert.ops import Linear, Relu, Sigmoid, SparseLinear, Sum
from onnxcert.passes import merge_equals, simplify
from tests.checker.makers import lattice
from tests.checker.test_equals import mixed
from tests.oracles import exact_values
from tests.strategies import seeds

OPPOSITE = np.array([[1.0, -1.0, 0.5, 1.0], [2.0, -2.0, 0.25, 2.0]])


def network(
    weight: np.ndarray = OPPOSITE, behind: tuple[Node, ...] = (), output: str = "y"
) -> Graph:
    """Numbers x (2,) -> four relus, of which 0 and 3 read equal numbers and 1 opposite ones."""
    nodes = (
        Node("z", Linear(weight, np.array([0.5, -0.5, 0.0, 0.5])), ("x",)),
        Node("h", Relu(4), ("z",), neurons=Neurons("h", np.array([3, 2, 1, 0]))),
        Node("y", Linear(np.array([[1.0, 2.0], [3.0, 1.0], [0.5, 1.0], [1.0, 4.0]])), ("h",)),
        *behind,
    )
    return Graph("x", 2, nodes, output)


def neurons(graph: Graph) -> list[int]:
    return [node.op.output_size for node in graph.nodes if isinstance(node.op, Relu)]


@given(seed=seeds, data=st.data())
def test_the_same_function(seed: int, data: st.DataObject) -> None:
    graph = load_model(lattice(seed, 2)).lowered
    merged = simplify(merge_equals(graph))
    assert sum(neurons(merged)) <= 7 < sum(neurons(graph))
    x = [data.draw(st.integers(-64, 64)) / 16 for _ in range(2)]
    assert exact_values(merged, x)[merged.output] == exact_values(graph, x)[graph.output]
    np.testing.assert_allclose(merged.forward(np.array([x])), graph.forward(np.array([x])))


@given(model=mixed(), data=st.data())
def test_factors_of_any_size(model: onnx.ModelProto, data: st.DataObject) -> None:
    graph = load_model(model).lowered
    merged = merge_equals(graph)
    x = [data.draw(st.integers(-64, 64)) / 16 for _ in range(2)]
    assert exact_values(merged, x)[merged.output] == exact_values(graph, x)[graph.output]


def test_the_first_neuron_of_the_file_stays() -> None:
    """Which is not the first of the vector."""
    merged = merge_equals(network())
    (relu,) = (node for node in merged.nodes if isinstance(node.op, Relu))
    assert relu.neurons is not None
    assert relu.neurons.at(np.arange(2)).tolist() == [1, 0]
    x = [0.25, -0.75]
    assert exact_values(merged, x)["y"] == exact_values(network(), x)["y"]


def test_sparse_matrices_stay_sparse() -> None:
    size = 400
    each = np.arange(size)
    rows, columns = np.concatenate([each, each]), np.concatenate([each, size + each])
    values = np.concatenate([np.ones(size), -np.ones(size)])
    back = SparseLinear(columns, rows, values, (2 * size, size))
    nodes = (
        Node("z", SparseLinear(rows, columns, values, (size, 2 * size)), ("x",)),
        Node("h", Relu(2 * size), ("z",)),
        Node("y", back, ("h",)),
    )
    merged = merge_equals(Graph("x", size, nodes, "y"))
    assert neurons(merged) == []  # relu(z) - relu(-z) = z
    x = np.linspace(-1, 1, size)[None]
    np.testing.assert_array_equal(merged.forward(x), x)


NEARLY = OPPOSITE * np.array([1.0, 1.0 + 2.0**-20, 1.0, 1.0 - 2.0**-20])
ROUNDED = np.array([[0.1, -0.1, 0.5, 0.2], [1e-9 / 3, -1e-9 / 3, 1.0, 1.0]])
SHIFTED = Node("z", Linear(OPPOSITE, np.array([0.5, 0.25, 0.0, -0.125])), ("x",))


@pytest.mark.parametrize(
    "graph",
    [
        network(NEARLY),
        network(ROUNDED),
        replace(network(), nodes=(SHIFTED, *network().nodes[1:])),
        network(behind=(Node("t", Sum(4, (1, 1)), ("h", "z")),), output="t"),
        network(
            behind=(Node("s", Sigmoid(4), ("z",)), Node("t", Sum(4, (1, 1)), ("h", "s"))),
            output="t",
        ),
    ],
    ids=["nearly", "rounded", "offsets", "read twice", "other curves"],
)
def test_what_is_left_alone(graph: Graph) -> None:
    assert merge_equals(graph) is graph
