"""Where a sum tells numbers from what is none.

A NaN or an infinity among the numbers of a sum makes it NaN or infinite, in any order of summation.
So it does the values of a dense layer that weigh it with something other than zero, and the sum of
those. Behind rectifiers, where runtimes may turn NaN into zero, it still holds if no weight is zero
and the sum has to be above zero: all values of the layer are NaN or infinite then, each rectifier's
is NaN, infinite or zero, and so is their sum. Reading what a rectifier made costs a runtime nothing
more than the sum, as it may go on to compute the layer and the rectifier in one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxcert.arrays import UNIT_ROUNDOFF_FLOAT32, Array
from onnxcert.frontend.onnx import Model, TensorInfo
from onnxcert.ops.base import gamma

_FEWEST_RECTIFIERS = 32
"""Among fewer, all may well be zero where nothing is wrong."""


@dataclass(frozen=True)
class Watched:
    """A tensor whose sum is in a range only where all entries of the input are finite numbers.

    Attributes:
        name: of the tensor; rank: of it; the first axis is the batch, if there is one.
        low, high: strictly between them lie all sums of one row that the domain allows, but for
            rectifiers that are all zero.
    """

    name: str
    rank: int
    low: float
    high: float


def watched(
    proto: onnx.ModelProto,
    model: Model,
    info: TensorInfo,
    domain: tuple[float, float],
    *,
    batched: bool,
) -> Watched:
    """The smallest tensor that is known to do: the input itself, or what a first layer makes of it.

    Args:
        proto: the model's file with all of its data.
        model: as read.
        info: one of its inputs.
        domain: (low, high) of the entries.
        batched: whether the first axis of the input is a batch of any size.
    """
    size = int(np.prod(info.shape[int(batched) :]))
    found = _first_layer(proto, info, size, batched=batched) if len(model.inputs) == 1 else None
    if found is None:
        low, high = _range(np.ones((size, 1)), np.zeros(1), domain)
        return Watched(info.name, len(info.shape), _single(low), _single(high))
    name, weight, bias, is_rectified = found
    if is_rectified:
        high = np.maximum(_range(weight, bias, domain)[1], 0.0)
        share = 1.0 + 4.0 * gamma(len(high), UNIT_ROUNDOFF_FLOAT32)
        return Watched(name, 2, 0.0, _single(share * high.sum(keepdims=True)))
    low, high = _range(weight.sum(axis=1, keepdims=True), bias.sum(keepdims=True), domain)
    room = _room(np.abs(weight).sum(axis=1, keepdims=True), np.abs(bias).sum(keepdims=True), domain)
    return Watched(name, 2, _single(low - room), _single(high + room))


def _single(value: Array) -> float:
    """The only entry, no larger than numbers of float32."""
    largest = float(np.finfo(np.float32).max)
    return float(np.clip(value.item(), -largest, largest))


def _range(weight: Array, bias: Array, domain: tuple[float, float]) -> tuple[Array, Array]:
    """Of x W + b over the domain, with room for roundings, (m,) each."""
    low, high = domain
    rise, fall = np.maximum(weight, 0.0).sum(axis=0), np.minimum(weight, 0.0).sum(axis=0)
    room = _room(np.abs(weight), np.abs(bias), domain)
    return low * rise + high * fall + bias - room, high * rise + low * fall + bias + room


def _room(weight: Array, bias: Array, domain: tuple[float, float]) -> Array:
    """More than what executions round in sums of so many absolute products, (m,)."""
    most = max(abs(side) for side in domain) * weight.sum(axis=0) + bias
    room: Array = 4.0 * gamma(2 * len(weight) + 8, UNIT_ROUNDOFF_FLOAT32) * most + 1e-30
    return room


def _first_layer(
    proto: onnx.ModelProto, info: TensorInfo, size: int, *, batched: bool
) -> tuple[str, Array, Array, bool] | None:
    """(tensor, weight (n, m), bias (m,), whether rectified) of a dense layer that comes first."""
    graph = proto.graph
    given = {value.name for value in graph.input}
    stored = {entry.name: entry for entry in graph.initializer if entry.name not in given}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    name, rank = info.name, len(info.shape)
    found = readers.get(name, [])
    if len(found) == 1 and found[0].op_type == "Flatten" and _attribute(found[0], "axis", 1) == 1:
        name, rank = found[0].output[0], 2
    if rank != 2:
        return None
    for node in readers.get(name, []):
        layer = _dense(node, name, stored, readers)
        if layer is None:
            continue
        made, weight, bias = layer
        if weight.shape[0] != size or weight.shape[1] >= size:
            return None
        after = readers.get(made, [])
        many = weight.shape[1] >= _FEWEST_RECTIFIERS
        if many and weight.all() and len(after) == 1 and after[0].op_type == "Relu":
            return after[0].output[0], weight, bias, True
        return (made, weight, bias, False) if weight.any(axis=1).all() else None
    return None


def _dense(
    node: onnx.NodeProto,
    name: str,
    stored: Mapping[str, onnx.TensorProto],
    readers: Mapping[str, list[onnx.NodeProto]],
) -> tuple[str, Array, Array] | None:
    """(output, weight (n, m), bias (m,)) of a dense layer that reads a tensor of rank 2."""
    if node.op_type not in ("Gemm", "MatMul") or node.domain not in ("", "ai.onnx"):
        return None
    if node.input[0] != name or any(entry not in stored for entry in node.input[1:] if entry):
        return None
    weight, *rest = (_values(stored[entry]) for entry in node.input[1:] if entry)
    if weight.ndim != 2:
        return None
    output, bias = node.output[0], np.zeros(())
    if node.op_type == "Gemm":
        if _attribute(node, "transA", 0) or _attribute(node, "alpha", 1.0) != 1.0:
            return None
        weight = weight.T if _attribute(node, "transB", 0) else weight
        bias = _attribute(node, "beta", 1.0) * rest[0] if rest else bias
    else:
        after = readers.get(output, [])
        if len(after) == 1 and after[0].op_type == "Add":
            other = next((entry for entry in after[0].input if entry != output), "")
            if other in stored:
                output, bias = after[0].output[0], _values(stored[other])
    if bias.size not in (1, weight.shape[1]) or bias.ndim > 2:
        return None
    return output, weight, np.broadcast_to(bias.reshape(-1), weight.shape[1])


def _values(tensor: onnx.TensorProto) -> Array:
    return numpy_helper.to_array(tensor).astype(np.float64)


def _attribute(node: onnx.NodeProto, name: str, otherwise: float) -> float:
    found = next((entry for entry in node.attribute if entry.name == name), None)
    return otherwise if found is None else float(helper.get_attribute_value(found))
