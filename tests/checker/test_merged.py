"""Sums that only one other sum reads are moved into it, without a rounding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcert.checker.bounds import Bounder
from onnxcert.checker.model import read_network
from onnxcert.checker.network import Affine, Network


def _chain(*layers: np.ndarray | str) -> Network:
    """x (1, n) through matrices (as MatMul), vectors (as Add) and "Relu"."""
    nodes, constants, last = [], [], "x"
    for number, layer in enumerate(layers):
        made = f"v{number}"
        if isinstance(layer, str):
            nodes.append(helper.make_node(layer, [last], [made]))
        else:
            operator = "MatMul" if layer.ndim == 2 else "Add"
            nodes.append(helper.make_node(operator, [last, f"c{number}"], [made]))
            constants.append(numpy_helper.from_array(layer.astype(np.float32), f"c{number}"))
        last = made
    first = next(layer for layer in layers if isinstance(layer, np.ndarray))
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, len(first)])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, None)],
        constants,
    )
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return read_network(model.SerializeToString())


def _sums(bounder: Bounder) -> int:
    """Blocks of sums that still do something."""
    return sum(isinstance(block, Affine) and bool(block.terms) for block in bounder.blocks)


def _picks(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """A matrix that picks and negates entries; (rows, columns) as MatMul takes it."""
    matrix = np.zeros((rows, columns))
    matrix[rng.integers(rows, size=columns), np.arange(columns)] = rng.choice([-1.0, 1.0], columns)
    return matrix


def _chains() -> Sequence[tuple[str, int, list[np.ndarray | str]]]:
    rng = np.random.default_rng(0)
    weights, more = rng.normal(size=(3, 4)), rng.normal(size=(4, 5))
    offset = rng.normal(size=4)
    last = rng.normal(size=(6, 2))
    whole = np.round(3 * rng.normal(size=(4, 3)))
    large, many = _picks(rng, 4, 100), rng.normal(size=(99, 2))
    wide = rng.normal(size=(3, 100))
    return [
        ("offset", 2, [weights, offset, "Relu", rng.normal(size=(4, 2))]),
        ("picks behind an offset", 2, [weights, offset, _picks(rng, 4, 6), "Relu", last]),
        ("whole numbers", 2, [np.round(3 * weights), whole, "Relu", rng.normal(size=(3, 2))]),
        ("not smaller", 4, [weights, large, _picks(rng, 100, 99), "Relu", many]),
        ("sparse", 3, [wide, "Relu", _picks(rng, 100, 100), _picks(rng, 100, 99), "Relu", many]),
        ("nothing but zeros", 2, [np.zeros((100, 100)), "Relu", rng.normal(size=(100, 2))]),
        ("not exact", 3, [weights, more, "Relu", rng.normal(size=(5, 2))]),
        ("two offsets", 3, [weights, offset, _picks(rng, 4, 6), rng.normal(size=6), "Relu", last]),
    ]


@pytest.mark.parametrize(("name", "count", "layers"), _chains(), ids=[c[0] for c in _chains()])
def test_merged_sums_bound_what_the_network_computes(
    name: str, count: int, layers: list[np.ndarray | str]
) -> None:
    network = _chain(*layers)
    # Picks make some sums equal, which rule R23 would read from before them.
    bounder = Bounder(network, executed=False, joined=False)
    assert _sums(bounder) == count, name
    rng = np.random.default_rng(1)
    point = rng.normal(size=(1, network.n_inputs))
    for radius in (0.0, 0.5):
        low, high = point - radius, point + radius
        r = bounder.bound(low, high)
        for x in rng.uniform(low, high, size=(40, network.n_inputs)):
            y = network.forward(x[None])[0]
            assert (r.lower[0, network.output] <= y + 1e-9).all()
            assert (r.upper[0, network.output] >= y - 1e-9).all()
        if radius == 0.0:  # the bounds are as tight as the arithmetic
            width = r.upper[0, network.output] - r.lower[0, network.output]
            assert (width < 1e-9).all()


def test_a_sum_that_a_curve_reads_too_stays() -> None:
    """One half of a sum goes through picks, the other through a relu."""
    rng = np.random.default_rng(2)
    weights, picks = rng.normal(size=(3, 8)).astype(np.float32), _picks(rng, 4, 4)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["z"]),
        helper.make_node("Split", ["z", "sizes"], ["a", "b"], axis=1),
        helper.make_node("MatMul", ["a", "p"], ["c"]),
        helper.make_node("Relu", ["b"], ["r"]),
        helper.make_node("Add", ["c", "r"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "halves",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [
            numpy_helper.from_array(weights, "w"),
            numpy_helper.from_array(picks.astype(np.float32), "p"),
            numpy_helper.from_array(np.array([4, 4]), "sizes"),
        ],
    )
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    network = read_network(model.SerializeToString())
    bounder = Bounder(network, executed=False)
    point = rng.normal(size=(1, 3))
    r, y = bounder.bound(point, point), network.forward(point)[0]
    assert (r.lower[0, network.output] <= y + 1e-9).all()
    assert (r.upper[0, network.output] >= y - 1e-9).all()


def test_an_execution_rounds_between_matrices() -> None:
    rng = np.random.default_rng(0)
    layers = [rng.normal(size=(3, 4)), _picks(rng, 4, 6), "Relu", rng.normal(size=(6, 2))]
    assert _sums(Bounder(_chain(*layers), executed=True)) == 3
    assert _sums(Bounder(_chain(*layers), executed=False)) == 2
