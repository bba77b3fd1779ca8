"""Maxima and minima of two or more values: composites of Sum, Relu and Maximum."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxcert.frontend.builder import Builder
from onnxcert.frontend.rules.reduction import reduced_axes
from onnxcert.frontend.rules.registry import Call, reads
from onnxcert.frontend.tensors import Constant, Operand, Tensor


def largest(build: Builder, tensors: Sequence[Tensor]) -> Tensor:
    """The maximum of tensors as a balanced tree, whose depth is what loosens bounds."""
    row = list(tensors)
    while len(row) > 1:
        pairs = [build.maximum(a, b) for a, b in zip(row[::2], row[1::2], strict=False)]
        row = pairs + row[2 * len(pairs) :]
    return row[0]


def largest_row(build: Builder, stack: Tensor) -> Tensor:
    """The maximum along the first axis: all pairs of one level of the tree in one node."""
    while stack.shape[0] > 1:
        half = stack.shape[0] // 2
        first, second, rest = (
            build.moved([stack], lambda x, part=part: x[part])
            for part in (slice(half), slice(half, 2 * half), slice(2 * half, None))
        )
        pairs = build.maximum(first, second)
        stack = build.moved([pairs, rest], lambda x, y: np.concatenate([x, y]))
    return build.moved([stack], lambda x: x[0])


def smallest(build: Builder, tensors: Sequence[Tensor]) -> Tensor:
    """min = -max(-x)."""
    return build.negative(largest(build, [build.negative(tensor) for tensor in tensors]))


@reads("Max", whole=True)
def maximum(call: Call) -> Operand:
    """The largest of several values, broadcast."""
    operands = [call.operand(i) for i in range(len(call.inputs))]
    result = largest(call.build, [o for o in operands if isinstance(o, Tensor)])
    for operand in operands:
        if isinstance(operand, Constant):
            result = call.build.maximum_with(result, operand.numbers)
    return result


@reads("Min", whole=True)
def minimum(call: Call) -> Operand:
    """The smallest of several values, broadcast."""
    operands = [call.operand(i) for i in range(len(call.inputs))]
    result = smallest(call.build, [o for o in operands if isinstance(o, Tensor)])
    for operand in operands:
        if isinstance(operand, Constant):
            result = call.build.minimum_with(result, operand.numbers)
    return result


@reads("ReduceMax", "ReduceMin", "GlobalMaxPool")
def reduce_extremum(call: Call) -> Operand:
    """The largest or smallest entry along some axes."""
    tensor = call.tensor(0)
    rank = len(tensor.shape)
    if call.operator == "GlobalMaxPool":
        axes, keep = tuple(range(2, rank)), True
    else:
        axes, keep = reduced_axes(call, rank)
    if not axes:
        return tensor
    kept = tuple(axis for axis in range(rank) if axis not in axes)
    shape = tuple(
        1 if axis in axes else n for axis, n in enumerate(tensor.shape) if keep or axis in kept
    )
    count = int(np.prod([tensor.shape[axis] for axis in axes]))
    if count == 0:
        raise ValueError("an extremum over nothing")
    if call.operator == "ReduceMin":
        tensor = call.build.negative(tensor)
    stack = call.build.moved([tensor], lambda x: x.transpose(*axes, *kept).reshape(count, *shape))
    result = largest_row(call.build, stack)
    return call.build.negative(result) if call.operator == "ReduceMin" else result
