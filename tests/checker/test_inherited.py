"""What is inherited from a box must reach the scalars it was known of (rule R11)."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from onnxcert.checker.bounds import Bounder
from onnxcert.checker.model import read_network


def _crossed(rng: np.random.Generator) -> bytes:
    """Two sums behind one relu; the curve of the second comes before that of the first."""
    shapes = {"w0": (4, 2), "b0": (4,), "w1": (3, 4), "b1": (3,), "w2": (3, 4), "b2": (3,)}
    constants = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    constants["b1"] += 40.0  # far from what the other sum gives
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["z0"], transB=1),
        helper.make_node("Relu", ["z0"], ["h0"]),
        helper.make_node("Gemm", ["h0", "w1", "b1"], ["z1"], transB=1),
        helper.make_node("Gemm", ["h0", "w2", "b2"], ["z2"], transB=1),
        helper.make_node("Relu", ["z2"], ["h2"]),
        helper.make_node("Relu", ["z1"], ["h1"]),
        helper.make_node("Add", ["h1", "h2"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "crossed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


def test_known_bounds_reach_their_scalars() -> None:
    rng = np.random.default_rng(3)
    network = read_network(_crossed(rng))
    bounder = Bounder(network, executed=False)
    low, high = np.full((1, 2), -1.0), np.full((1, 2), 1.0)
    for _ in range(3):
        parent = bounder.bound(low, high)
        known = parent.lower[:, bounder.known_ids], parent.upper[:, bounder.known_ids]
        assert (np.diff(bounder.known_ids) > 0).all()  # both sums, in the order of the network
        assert len(bounder.known_ids) == 6
        high = 0.5 * (low + high)
        child = bounder.bound(low, high, known)
        assert not child.empty.any()
        assert (child.lower >= parent.lower - 1e-9).all()
        for x in rng.uniform(low, high, size=(50, 2)):
            y = network.forward(x[None])[0]
            ids = network.output
            assert (child.lower[0, ids] <= y + 1e-9).all()
            assert (child.upper[0, ids] >= y - 1e-9).all()
