"""Passes keep the function, exactly or within what the bounds charge for stored numbers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcert.arrays import UNIT_ROUNDOFF, Window
from onnxcert.graph import Graph, Node
from onnxcert.ops import (
    Adjoint,
    Concat,
    Convolution,
    Linear,
    Operator,
    Relu,
    Scale,
    Select,
    SparseLinear,
    Sum,
)
from onnxcert.passes import (
    PASSES,
    drop_identities,
    drop_unused,
    fuse_linears,
    fuse_scales,
    fuse_selects,
    simplify,
)
from onnxcert.passes.base import matrix_product, shifted
from onnxcert.sets import Box
from tests.oracles import exact_values
from tests.strategies import graphs, seeds


def chain(*ops: Operator) -> Graph:
    nodes, value = [], "x"
    for number, op in enumerate(ops):
        nodes.append(Node(f"v{number}", op, (value,)))
        value = f"v{number}"
    return Graph("x", ops[0].input_sizes[0], tuple(nodes), value)


def kinds(graph: Graph) -> list[str]:
    return [type(node.op).__name__ for node in graph.nodes]


def exact_output(graph: Graph, x: np.ndarray) -> list[Fraction]:
    return list(exact_values(graph, x.tolist())[graph.output])


def enclosure(graph: Graph, x: np.ndarray) -> Box:
    boxes = {graph.input: Box(x[None], x[None])}
    for node in graph.nodes:
        boxes[node.name] = node.op.interval([boxes[name] for name in node.inputs], UNIT_ROUNDOFF)
    return boxes[graph.output]


@given(graph=graphs(), seed=seeds)
def test_same_function_within_what_bounds_charge(graph: Graph, seed: int) -> None:
    """The rational output of the original lies in the enclosure of the simplified graph, also
    where sums of huge terms cancel.
    """
    x = np.round(np.random.default_rng(seed).normal(size=graph.input_size), 2)
    box = enclosure(simplify(graph), x)
    for value, low, high in zip(exact_output(graph, x), box.lower[0], box.upper[0], strict=True):
        assert Fraction(float(low)) <= value <= Fraction(float(high))


@given(graph=graphs(), pass_number=st.integers(0, len(PASSES) - 1))
def test_no_pass_adds_nodes_and_all_end(graph: Graph, pass_number: int) -> None:
    after = PASSES[pass_number](graph)
    assert len(after.nodes) <= len(graph.nodes)
    assert after.output_size == graph.output_size
    done = simplify(graph)
    assert simplify(done) == done or kinds(simplify(done)) == kinds(done)


def test_unused_nodes_are_dropped() -> None:
    nodes = (Node("a", Relu(2), ("x",)), Node("b", Relu(2), ("x",)), Node("c", Relu(2), ("a",)))
    assert [n.name for n in drop_unused(Graph("x", 2, nodes, "c")).nodes] == ["a", "c"]


def test_identities_are_dropped() -> None:
    graph = chain(
        Scale(2, np.ones(2), np.zeros(2)),
        Select.of(np.arange(2), 2),
        Sum(2, (1,)),
        Concat((2,)),
        Scale(2),
    )
    after = drop_identities(graph)
    assert not after.nodes
    assert after.output == "x"


@pytest.mark.parametrize(
    "op",
    [
        Scale(2, None, np.array([0.0, 1.0])),
        Scale(2, np.array([1.0, 2.0])),
        Select.of(np.array([1, 0]), 2),
        Select.of(np.array([0, 1]), 3),
        Select.of(np.array([0, -1]), 2, fill=1.0),
        Sum(2, (-1,)),
    ],
)
def test_what_is_no_identity_stays(op: Operator) -> None:
    assert drop_identities(chain(op)).nodes


IMAGE = Window((2, 3, 4), (2, 2), padding=(1, 0, 0, 1))


def fusions() -> dict[str, tuple[Graph, str]]:
    """Name -> (graph of two nodes, operator that both become)."""
    rng = np.random.default_rng(3)

    def numbers(*shape: int) -> np.ndarray:
        return np.round(rng.normal(size=shape) * 8) / 8

    matrix = Linear(numbers(3, 4), numbers(4))
    kernel = Convolution(numbers(1, 3, 8), IMAGE, numbers(3))
    even = Scale(36, np.repeat(numbers(3), 12), np.repeat(numbers(3), 12))
    sparse = SparseLinear(np.array([0, 2]), np.array([1, 3]), numbers(2), (3, 4), numbers(4))
    scale = Scale(3, numbers(3), numbers(3))
    first, second = Linear(numbers(2, 3), numbers(3)), Linear(numbers(3, 2), numbers(2))
    adjoint = Adjoint(Convolution(numbers(1, 3, 8), IMAGE), numbers(24))
    per_channel = np.repeat(numbers(2), 12)
    picks = Select.of(np.array([2, -1, 0]), 3, 2.0), Select.of(np.array([1, 0, -1, 0]), 3, 3.0)
    return {
        "scales": (chain(scale, Scale(3, numbers(3), numbers(3))), "Scale"),
        "bias": (chain(Linear(numbers(3, 4)), Scale(4, None, numbers(4))), "Linear"),
        "rows": (
            chain(Linear(numbers(3, 2), None, 2), Scale(4, np.tile(numbers(2), 2))),
            "Linear",
        ),
        "sparse": (chain(sparse, Scale(4, numbers(4), numbers(4))), "SparseLinear"),
        "normalisation": (chain(kernel, even), "Convolution"),
        "adjoint": (chain(adjoint, Scale(24, per_channel, numbers(24))), "Adjoint"),
        "input scale": (chain(scale, matrix), "Linear"),
        "image scale": (chain(Scale(24, per_channel), kernel), "Convolution"),
        "selects": (chain(*picks), "Select"),
        "columns": (chain(matrix, Select.of(np.array([3, 3, -1]), 4, 1.5)), "Linear"),
        "permuted rows": (chain(Select.of(np.array([2, 0, 1]), 3), matrix), "Linear"),
        "matrices": (chain(first, second), "Linear"),
    }


@pytest.mark.parametrize("name", list(fusions()))
def test_fusion_is_exact_on_short_numbers(name: str) -> None:
    graph, kind = fusions()[name]
    after = simplify(graph)
    assert kinds(after) == [kind]
    assert after.output == graph.output
    x = np.round(np.random.default_rng(1).normal(size=graph.input_size) * 4)
    assert after.forward(x[None]).tolist() == graph.forward(x[None]).tolist()
    assert exact_output(after, x) == exact_output(graph, x)


def test_a_value_with_two_readers_is_not_contracted_away() -> None:
    nodes = (
        Node("a", Linear(np.ones((2, 2))), ("x",)),
        Node("b", Scale(2, None, np.ones(2)), ("a",)),
        Node("y", Sum(2, (1, 1)), ("a", "b")),
    )
    assert len(fuse_scales(Graph("x", 2, nodes, "y")).nodes) == 3
    assert len(fuse_scales(Graph("x", 2, nodes[:2], "b")).nodes) == 1
    seen = Graph("x", 2, (*nodes[:2], Node("y", Concat((2,)), ("b",))), "a")
    assert "a" in {node.name for node in fuse_scales(seen).nodes}


REFUSED = {
    "uneven channel": chain(
        Convolution(np.ones((1, 1, 8)), IMAGE), Scale(12, None, np.arange(12.0))
    ),
    "shift before padding": chain(
        Scale(24, None, np.ones(24)), Convolution(np.ones((1, 1, 8)), IMAGE)
    ),
    "rounded sum": chain(
        Scale(1, None, np.array([1.0 + 2.0**-50])),
        Linear(np.array([[1.0 / 3.0]]), np.array([-1.0])),
    ),
    "larger product": chain(Linear(np.ones((8, 1))), Linear(np.ones((1, 8)))),
    "repeated rows": chain(Select.of(np.array([0, 0]), 1), Linear(np.ones((2, 1)))),
}  # fmt: skip


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_would_lose_digits_or_grow_stays(name: str) -> None:
    graph = REFUSED[name]
    assert kinds(fuse_linears(fuse_scales(fuse_selects(graph)))) == kinds(graph)


def test_compensated_product_keeps_digits_through_cancellation() -> None:
    first, second = np.array([[2.0**31, 1.0 + 2.0**-23, -(2.0**31)]]), np.ones((3, 1))
    assert (first @ second).tolist() != [[1.0 + 2.0**-23]]
    product = matrix_product(first, second)
    assert product is not None
    assert product.tolist() == [[1.0 + 2.0**-23]]
    assert matrix_product(first * [[2.0**60, 1.0, 2.0**60]], second) is None
    assert matrix_product(np.array([[1.0 / 3.0]]), np.array([[1.0]])) is None


def test_compensated_shift() -> None:
    third = np.array([1.0 / 3.0])
    safe, _ = shifted(third, np.array([3.0]), np.array([-1.0]))
    assert not safe
    safe, total = shifted(third, np.array([3.0]), np.array([1.0]))
    assert safe
    assert total is not None
    assert total.tolist() == [2.0]
    assert shifted(None, None, None) == (True, None)
