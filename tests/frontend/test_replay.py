"""Replay in onnxruntime, and what the comparison with it catches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxcert.errors import ModelError
from onnxcert.frontend.onnx import Model, load_model
from onnxcert.frontend.replay import Replayer, check_lowering
from onnxcert.graph import Graph
from onnxcert.ops import Linear
from tests.frontend.onnx_models import model_of, single, weights


def network(element: int = TensorProto.FLOAT) -> onnx.ModelProto:
    dtype = helper.tensor_dtype_to_np_dtype(element)
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("Gemm", ["t", "w2", "b2"], ["y"]),
    ]
    constants = {"w1": weights(3, 5), "b1": weights(5), "w2": weights(5, 2), "b2": weights(2)}
    typed = {name: value.astype(dtype) for name, value in constants.items()}
    return model_of(nodes, {"x": (1, 3)}, ["y"], typed, element=element)


def compare(model: Model, points: int = 4) -> None:
    size = model.graph.input_size
    check_lowering(model, -np.ones(size), np.ones(size), np.random.default_rng(0), points)


def test_outputs_have_the_files_shapes_and_types() -> None:
    replayer = Replayer(load_model(network(TensorProto.DOUBLE)))
    (y,) = replayer.run(np.zeros(3))
    assert y.shape == (1, 2)
    assert y.dtype == np.float64
    assert replayer.run_flat([np.zeros((1, 3))]).tolist() == y.ravel().tolist()


def test_inputs_are_split_in_order() -> None:
    node = helper.make_node("Sub", ["a", "b"], ["y"])
    replayer = Replayer(load_model(model_of([node], {"a": (2,), "b": (2, 1)}, ["y"])))
    assert replayer.run_flat(np.array([1.0, 2.0, 10.0, 20.0])).tolist() == [-9, -8, -19, -18]


def test_hidden_tensors_are_returned() -> None:
    proto = network()
    model = load_model(proto, hidden=["t"])
    y, t = Replayer(model).run(np.ones(3))
    assert t.shape == (1, 5)
    expected = model.graph.forward(np.ones((1, 3)))
    assert np.allclose(np.concatenate([y, t], axis=1), expected, atol=1e-5)
    assert len(proto.graph.output) == 1  # the caller's object is left alone


def test_file_that_changes_after_reading(tmp_path: Path) -> None:
    file = tmp_path / "network.onnx"
    file.write_bytes(network().SerializeToString())
    model = load_model(file)
    file.write_bytes(network().SerializeToString())
    with pytest.raises(ModelError, match="has changed"):
        Replayer(model).run(np.zeros(3))
    file.unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        Replayer(model).run(np.zeros(3))


def test_what_onnxruntime_cannot_run_is_named() -> None:
    """onnxruntime has no convolution in double precision on the CPU."""
    kernel = weights(1, 1, 2, 2).astype(np.float64)
    model = load_model(single("Conv", (1, 1, 3, 3), kernel, element=TensorProto.DOUBLE))
    with pytest.raises(ModelError, match=r"Conv.*the_node"):
        Replayer(model).run(np.zeros(9))


@pytest.mark.parametrize("element", [TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16])
def test_agreement(element: int) -> None:
    compare(load_model(network(element)))


def _tampered(graph: Graph, change: float) -> Graph:
    """The graph with one weight of its first matrix changed."""
    nodes = list(graph.nodes)
    number = next(i for i, node in enumerate(nodes) if isinstance(node.op, Linear))
    op = nodes[number].op
    assert isinstance(op, Linear)
    weight = op.weight.copy()
    weight[0, 0] += change
    nodes[number] = replace(nodes[number], op=replace(op, weight=weight))
    return replace(graph, nodes=tuple(nodes))


def test_a_wrong_weight_is_noticed() -> None:
    model = load_model(network())
    wrong = replace(
        model, graph=_tampered(model.graph, 1e-3), lowered=_tampered(model.lowered, 1e-3)
    )
    with pytest.raises(ModelError, match="differs from onnxruntime"):
        compare(wrong)


def test_a_wrong_pass_is_noticed() -> None:
    model = load_model(network())
    with pytest.raises(ModelError, match="simplification changed"):
        compare(replace(model, graph=_tampered(model.graph, 1e-7)))


def test_overflow_is_no_agreement() -> None:
    matrix = np.full((3, 2), 3e38, dtype=np.float32)
    with pytest.raises(ModelError, match="not finite"):
        compare(load_model(single("MatMul", (1, 3), matrix)))


def test_a_jump_at_a_rounded_number_is_no_difference() -> None:
    """The sign of a sum near zero depends on the order of its terms; both answers are right."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["z"]),
        helper.make_node("Sign", ["z"], ["s"]),
        helper.make_node("MatMul", ["s", "v"], ["y"]),
    ]
    rows = weights(1, 50)
    matrix = np.concatenate([rows, -rows]).T @ np.ones((2, 4), dtype=np.float32)
    matrix = matrix + np.float32(1e-9) * weights(50, 4)
    constants = {"w": matrix.astype(np.float32), "v": weights(4, 2)}
    compare(load_model(model_of(nodes, {"x": (1, 50)}, ["y"], constants)), points=20)


def test_unbounded_boxes_are_sampled_near_zero() -> None:
    model = load_model(network())
    infinite = np.full(3, np.inf)
    check_lowering(model, -infinite, infinite, np.random.default_rng(0), 2)
