"""A trained network as an ONNX model, node by node.

The nodes are chosen so that what reads the file sees what was trained: MinMax is a Split, Max, Min
and Concat, which `onnxcert.continuity` knows to be a sort; residual layers are single convolutions;
weights are those of training, in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxcert import __version__
from onnxcert.arrays import Array
from onnxcert.training.architecture import Architecture, Conv, Dense, Layer

_OPSET, _IR = 17, 8

INPUT, OUTPUT = "input", "logits"


def to_onnx(
    architecture: Architecture, weights: Sequence[tuple[Array, Array]], facts: dict[str, str]
) -> onnx.ModelProto:
    """Write a network.

    Args:
        architecture: of the network.
        weights: (weight, bias) of each layer, identities of residual layers added.
        facts: for the metadata.

    Returns:
        A model of inputs (batch, *input_shape), any batch, to ``logits`` (batch, classes).
    """
    writer = _Writer()
    first = architecture.layers[0]
    value = INPUT
    if isinstance(first, Conv) and len(architecture.input_shape) == 2:
        value = writer.node("Unsqueeze", [value, writer.constant("axes", np.array([1]))])
    flat = False
    for number, (layer, (weight, bias)) in enumerate(
        zip(architecture.layers, weights, strict=True)
    ):
        is_last = number == len(architecture.layers) - 1
        if isinstance(layer, Dense) and not flat:
            value, flat = writer.node("Flatten", [value], axis=1), True
        value = writer.affine(layer, value, weight, bias, OUTPUT if is_last else "")
        if not is_last:
            value = writer.activation(architecture.activation, value)
    return writer.model(architecture, facts)


class _Writer:
    """Collects nodes and constants."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def node(self, operator: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        made = output or f"{operator.lower()}_{len(self.nodes)}"
        name = f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [made], name, **attributes))
        return made

    def constant(self, name: str, values: Array) -> str:
        found = f"{name}_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), found))
        return found

    def affine(self, layer: Layer, value: str, weight: Array, bias: Array, output: str) -> str:
        stored = [self.constant("weight", weight), self.constant("bias", bias)]
        if isinstance(layer, Dense):
            return self.node("Gemm", [value, *stored], output, transB=1)
        return self.node(
            "Conv",
            [value, *stored],
            output,
            kernel_shape=[layer.kernel] * 2,
            strides=[layer.stride] * 2,
            pads=list(layer.padding),
        )

    def activation(self, kind: str, value: str) -> str:
        if kind == "relu":
            return self.node("Relu", [value])
        number = len(self.nodes)
        halves = [f"first_{number}", f"second_{number}"]
        self.nodes.append(helper.make_node("Split", [value], halves, f"Split_{number}", axis=1))
        sides = [self.node("Min", halves), self.node("Max", halves)]
        return self.node("Concat", sides, axis=1)

    def model(self, architecture: Architecture, facts: dict[str, str]) -> onnx.ModelProto:
        given = helper.make_tensor_value_info(
            INPUT, TensorProto.FLOAT, ["batch", *architecture.input_shape]
        )
        made = helper.make_tensor_value_info(
            OUTPUT, TensorProto.FLOAT, ["batch", architecture.classes]
        )
        graph = helper.make_graph(self.nodes, "classifier", [given], [made], self.constants)
        proto = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", _OPSET)],
            ir_version=_IR,
            producer_name="onnxcert",
            producer_version=__version__,
        )
        helper.set_model_props(proto, facts)
        onnx.checker.check_model(proto, full_check=True)
        return proto
