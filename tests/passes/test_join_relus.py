"""Sums of relus of one number: what is joined, what is not, and that it is the same function."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcert.frontend.onnx import load_model
from onnxcert.graph import Graph, Neurons, Node
from onnxcert.ops import Linear, Operator, PiecewiseLinear, Relu, Scale, Select
from onnxcert.passes import join_relus, simplify
from tests.checker.makers import tables
from tests.oracles import exact_values
from tests.strategies import seeds

KNOTS = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
WEIGHT = np.array([1.0, -1.5, 2.0, -2.5, 1.5])
EACH = np.stack([WEIGHT, 2.0 * WEIGHT, -WEIGHT], axis=1)


def curves(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if isinstance(node.op, PiecewiseLinear)]


def network(
    weight: np.ndarray,
    factor: np.ndarray | None = None,
    *,
    read: np.ndarray | None = None,
    behind: tuple[Node, ...] = (),
    output: str = "y",
) -> Graph:
    """Numbers x (2,) -> eight relus, four of each -> sums."""
    index = np.repeat([0, 1], 4) if read is None else read
    shift = np.linspace(-1.0, 0.75, 8)
    nodes = (
        Node("picked", Select.of(index, 2), ("x",)),
        Node("moved", Scale(8, factor, shift), ("picked",)),
        Node("relu", Relu(8), ("moved",), neurons=Neurons("r")),
        Node("y", Linear(weight, np.array([0.5, -0.25])), ("relu",)),
        *behind,
    )
    return Graph("x", 2, nodes, output)


def separate() -> np.ndarray:
    """The matrix of the sums of the first and of the last four."""
    weight = np.zeros((8, 2))
    weight[:4, 0], weight[4:, 1] = [1.0, -2.0, 0.5, 1.5], [-1.0, 2.0, 0.25, 1.0]
    return weight


@given(
    seed=seeds,
    count=st.integers(4, 6),
    alike=st.booleans(),
    order=st.permutations([0, 1, 2]),
)
def test_the_same_function(seed: int, count: int, alike: bool, order: list[int]) -> None:
    rng = np.random.default_rng(seed)
    weight = np.round(8 * rng.normal(size=count if alike else (count, 3))) / 8
    weight[weight == 0] = 0.125
    knots = np.round(8 * rng.normal(size=count if alike else (count, 3))) / 8
    graph = load_model(tables(weight, knots, np.array(order))).lowered
    joined = simplify(join_relus(graph))
    (curve,) = curves(joined)
    assert isinstance(curve.op, PiecewiseLinear)
    assert (curve.op.size, curve.op.terms) == (3, count)
    assert not any(isinstance(node.op, Relu) for node in joined.nodes)
    x = np.round(64 * rng.normal(size=2)) / 64
    expected = exact_values(graph, x.tolist())[graph.output]
    np.testing.assert_allclose(joined.forward(x[None])[0], np.array(expected, float), atol=1e-12)
    assert exact_values(joined, x.tolist())[joined.output] == expected


def test_neurons_are_named_by_the_rank_of_their_relus() -> None:
    graph = load_model(tables(EACH, KNOTS, np.array([2, 0, 1]))).lowered
    (curve,) = curves(join_relus(graph))
    assert curve.neurons is not None
    assert curve.neurons.label == "parts"
    assert curve.neurons.at(np.arange(3)).tolist() == [2, 0, 1]


def test_relus_that_stand_apart_or_are_turned_over() -> None:
    factor = np.array([1.0, -1.0, 0.5, -2.0] * 2)
    graph = network(separate(), factor)
    joined = join_relus(graph)
    (curve,) = curves(joined)
    x = np.random.default_rng(0).normal(size=(50, 2))
    np.testing.assert_allclose(joined.forward(x), graph.forward(x), atol=1e-12)
    assert [type(node.op).__name__ for node in joined.nodes] == ["PiecewiseLinear"]
    assert curve.inputs == ("x",)


def test_relus_without_weight_do_not_count() -> None:
    weight = separate()
    weight[0] = 0.0  # three are left
    assert join_relus(network(weight)) is not None
    assert not curves(join_relus(network(weight)))


def _twice() -> np.ndarray:
    weight = separate()
    weight[4, 0] = 1.0
    return weight


NOT_JOINED: dict[str, Graph] = {
    "a relu in two sums": network(_twice()),
    "two numbers in one sum": network(separate(), read=np.array([0, 0, 0, 1, 1, 1, 1, 1])),
    "factors that are no numbers of the file": network(separate(), np.full(8, 0.1)),
    "weights that are no numbers of the file": network(0.1 * separate()),
    "relus that are read twice": network(
        separate(), behind=(Node("z", Linear(separate()), ("relu",)),), output="z"
    ),
    "relus that are the output": network(separate(), output="relu"),
    "three relus for each sum": load_model(tables(WEIGHT[:3], KNOTS[:3])).lowered,
}


@pytest.mark.parametrize("graph", NOT_JOINED.values(), ids=NOT_JOINED.keys())
def test_what_is_not_joined(graph: Graph) -> None:
    assert join_relus(graph) is graph


@pytest.mark.parametrize("op", [Scale(8, np.full(8, 2.0)), Relu(8)], ids=["Scale", "Relu"])
def test_relus_behind_something_else_are_not_joined(op: Operator) -> None:
    graph = network(separate())
    first, *rest = graph.nodes
    second = Node("between", op, ("picked",))
    nodes = (first, second, replace(rest[0], inputs=("between",)), *rest[1:])
    assert join_relus(replace(graph, nodes=nodes)) is not None
    assert not curves(join_relus(replace(graph, nodes=nodes)))
