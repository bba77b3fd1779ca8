"""What a graph says a neuron is, held against the tensors of the file in onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime

from onnxcert.arrays import Array
from onnxcert.graph import Graph
from onnxcert.ops import Elementwise
from onnxcert.sets import Box

PLAIN = {"Abs", "Floor", "LeakyRelu", "PRelu", "Relu", "Sigmoid", "Sign", "Tanh"}
"""Nodes that are one curve, applied to the tensor they read."""


def tensors(proto: onnx.ModelProto, feeds: dict[str, Array], names: set[str]) -> dict[str, Array]:
    """Values of inner tensors at one point, by onnxruntime."""
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    present = {info.name for info in changed.graph.output}
    wanted = sorted(names - set(feeds))
    changed.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in wanted if name not in present
    )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        changed.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found = session.run(wanted, feeds) if wanted else []
    return {**feeds, **dict(zip(wanted, found, strict=True))}


def enclosures(graph: Graph, x: Array) -> dict[str, Box]:
    """Every value of a graph at one point, and a few times what float32 makes of it."""
    boxes = {graph.input: Box(x[None], x[None])}
    for node in graph.nodes:
        boxes[node.name] = node.op.interval([boxes[name] for name in node.inputs], 4.0 * 2.0**-24)
    return boxes


def check_pre_activations(graph: Graph, proto: onnx.ModelProto, feeds: dict[str, Array]) -> int:
    """Compare what each curve reads with the tensor that its label and positions name.

    Returns:
        How many neurons were compared.
    """
    reads = {node.output[0]: node.input[0] for node in proto.graph.node if node.op_type in PLAIN}
    known = tensors(proto, feeds, set(reads.values()))
    x = np.concatenate(
        [feeds[info.name].ravel() for info in proto.graph.input if info.name in feeds]
    )
    with np.errstate(all="ignore"):
        boxes = enclosures(graph, x.astype(float))
    compared = 0
    for node in graph.nodes:
        if not isinstance(node.op, Elementwise):
            continue
        assert node.neurons is not None, node.name
        if node.neurons.label not in reads:
            continue
        box = boxes[node.inputs[0]]
        numbers = np.arange(node.op.output_size)
        read = known[reads[node.neurons.label]].ravel()[node.neurons.at(numbers)].astype(float)
        slack = 1e-6 * max(1.0, float(np.abs(read).max(initial=0.0)))
        assert (box.lower[0] - slack <= read).all(), node.name
        assert (read <= box.upper[0] + slack).all(), node.name
        compared += read.size
    return compared
