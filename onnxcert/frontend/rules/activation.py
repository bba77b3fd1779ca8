"""Curves that act on each entry alone."""

from __future__ import annotations

import math

import numpy as np

from onnxcert.frontend.rules.registry import Call, reads
from onnxcert.frontend.tensors import Operand, Tensor
from onnxcert.ops import Absolute, Cos, Exp, Floor, LeakyRelu, Relu, Sigmoid, Sign, Sin, Tanh

_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)

_CURVES = {
    "Abs": Absolute,
    "Cos": Cos,
    "Exp": Exp,
    "Floor": Floor,
    "Relu": Relu,
    "Sigmoid": Sigmoid,
    "Sign": Sign,
    "Sin": Sin,
    "Tanh": Tanh,
}


@reads(*_CURVES)
def curve(call: Call) -> Operand:
    """Curves without parameters."""
    return call.build.elementwise(call.tensor(0), _CURVES[call.operator])


@reads("LeakyRelu")
def leaky_relu(call: Call) -> Operand:
    """x for x >= 0, alpha x for x < 0."""
    slope = np.array(float(call.attributes.get("alpha", np.float32(0.01))))
    return call.build.elementwise(call.tensor(0), lambda size: LeakyRelu(size, slope))


@reads("PRelu", since=7, note="constant slope")
def parametric_relu(call: Call) -> Operand:
    """As LeakyRelu, with a slope per entry."""
    tensor, build = call.tensor(0), call.build
    slope = call.numbers(1, "the slope")
    name, index, (slope,) = build.in_order(tensor, np.broadcast_to(slope, tensor.shape))
    return build.activate(LeakyRelu(len(slope), slope), name, index)


@reads("Clip", since=6, note="constant bounds")
def clip(call: Call) -> Operand:
    """min(max(x, low), high); bounds at the end of the float32 range do nothing."""
    low, high = _bound(call, 1, "min", -math.inf), _bound(call, 2, "max", math.inf)
    return between(call, call.tensor(0), low, high)


def between(call: Call, tensor: Tensor, low: float, high: float) -> Tensor:
    """min(max(x, low), high)."""
    if low > -_LARGEST_FLOAT32:
        tensor = call.build.maximum_with(tensor, np.array(low))
    if high < _LARGEST_FLOAT32:
        tensor = call.build.minimum_with(tensor, np.array(high))
    return tensor


def _bound(call: Call, position: int, name: str, default: float) -> float:
    """A bound of Clip, from an input or an attribute."""
    value: float = call.attributes.get(name, default)
    if call.has(position):
        value = float(call.constant(position, name).item())
    if math.isnan(value) or value == -default:
        raise ValueError(f"{name} is {value}")
    return value


@reads("HardSigmoid")
def hard_sigmoid(call: Call) -> Operand:
    """min(max(alpha x + beta, 0), 1)."""
    slope, offset = (
        np.array(float(call.attributes.get(name, np.float32(default))))
        for name, default in (("alpha", 0.2), ("beta", 0.5))
    )
    return between(call, call.build.scale(call.tensor(0), slope, offset), 0.0, 1.0)
