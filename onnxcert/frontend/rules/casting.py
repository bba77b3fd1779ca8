"""Casts: the identity over the reals, but for inputs that become whole numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from onnxcert.frontend.builder import Builder
from onnxcert.frontend.rules.registry import Call, reads
from onnxcert.frontend.tables import MOST_COMBINATIONS, Key, Table, of_keys
from onnxcert.frontend.tensors import Constant, NoRule, Operand, Tensor
from onnxcert.ops import Floor, Relu

_FLOATING_TYPES = (np.float16, np.float32, np.float64)
"""Casts of computed values to these are the identity over the reals."""

_WHOLE_TYPES = (np.int32, np.int64)
_LARGEST_WHOLE = 2.0**31
"""Executors may make anything of larger numbers in a cast to 32-bit integers."""


@reads("Cast", since=6, moves=True, note="to floating-point types, and of inputs to int32, int64")
def cast(call: Call) -> Operand | Table:
    """What becomes a floating-point number stays what it is; inputs become whole towards zero.

    Constants are not rounded: a value of the file stands for itself, whatever type it passes.
    """
    import onnx  # noqa: PLC0415 - only for the table of its types

    return _cast(call, onnx.helper.tensor_dtype_to_np_dtype(int(call.attributes["to"])))


@reads("CastLike", since=15, moves=True, note="as Cast")
def cast_like(call: Call) -> Operand | Table:
    """A cast to the type of another operand."""
    like = call.operand(1)
    of_kind = {"f": np.float64, "i": np.int64, "b": np.bool_}
    return _cast(call, like.array.dtype if isinstance(like, Constant) else of_kind[call.kinds[1]])


def _cast(call: Call, to: DTypeLike) -> Operand | Table:
    dtype, operand = np.dtype(to), call.operand(0)
    if isinstance(operand, Constant):
        if dtype.kind != "f":
            return Constant(operand.array.astype(dtype))
        return operand if operand.array.dtype.kind == "f" else Constant(operand.numbers)
    kind = call.kinds[0]
    if dtype in _FLOATING_TYPES or kind == "b" or (kind == "i" and dtype in _WHOLE_TYPES):
        return operand
    if kind == "f" and dtype in _WHOLE_TYPES:
        return _towards_zero(call.build, operand, dtype)
    raise NoRule(f"of computed values to {dtype}")


def _towards_zero(build: Builder, tensor: Tensor, dtype: np.dtype[Any]) -> Operand | Table:
    """Inputs without what follows the decimal point; as a table if there are few of them.

    This is floor(x) where they are not negative, and floor(relu(x)) - floor(relu(-x)) elsewhere.
    """
    if tensor.source != build.input or tensor.fill is not None:
        raise NoRule("from floating-point to whole numbers, of what is no input")
    if build.limits is None:
        raise NoRule("to whole numbers, of inputs that no specification limits here")
    lower, upper = build.limits(tensor.index.ravel())
    if not (np.maximum(abs(lower), abs(upper)) < _LARGEST_WHOLE).all():
        raise NoRule("of inputs that are no 32-bit integers")
    low, high = (np.trunc(side).astype(dtype).reshape(tensor.shape) for side in (lower, upper))
    if (low == high).all():
        return Constant(low)
    if (lower >= 0).all():  # the floor of -1/2 is another number than what is left of it
        whole = build.elementwise(tensor, Floor)
    else:
        parts = [build.elementwise(x, Relu) for x in (tensor, build.negative(tensor))]
        whole = build.sum([build.elementwise(x, Floor) for x in parts], (1, -1), roundings=0)
    places = list(zip(whole.index.ravel(), low.ravel(), high.ravel(), strict=True))
    keys = [Key(whole.source, int(i), int(a), int(b)) for i, a, b in places if a < b]
    if math.prod(key.count for key in keys) > MOST_COMBINATIONS:
        return whole
    number = np.where(low < high, np.cumsum(low < high).reshape(low.shape) - 1, -1)
    return of_keys(tuple(keys), number, low)
