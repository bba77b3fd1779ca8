"""Sums and means along axes: a matrix with one column."""

from __future__ import annotations

import numpy as np

from onnxcert.frontend.rules.registry import Call, normal_axis, reads
from onnxcert.frontend.tensors import Operand, Tensor
from onnxcert.ops import Linear


def reduced_axes(call: Call, rank: int) -> tuple[tuple[int, ...], bool]:
    """The axes that a Reduce operator sums over, and whether they stay with length one."""
    axes = call.integers(1, "axes")
    if not axes:
        nothing = call.attributes.get("noop_with_empty_axes", 0)
        axes = [] if nothing else list(range(rank))
    chosen = tuple(sorted({normal_axis(axis, rank) for axis in axes}))
    return chosen, bool(call.attributes.get("keepdims", 1))


@reads("ReduceSum", "ReduceMean", "GlobalAveragePool")
def reduce_sum(call: Call) -> Operand:
    """The sum or mean along some axes."""
    tensor = call.tensor(0)
    rank = len(tensor.shape)
    if call.operator == "GlobalAveragePool":
        axes, keep = tuple(range(2, rank)), True
    else:
        axes, keep = reduced_axes(call, rank)
    if not axes:
        return tensor
    kept = tuple(axis for axis in range(rank) if axis not in axes)
    count = int(np.prod([tensor.shape[axis] for axis in axes]))
    if count == 0:
        raise ValueError("a sum over nothing")
    rows = call.build.moved([tensor], lambda x: x.transpose(*kept, *axes).reshape(-1, count))
    weight = np.ones((count, 1))
    if call.operator != "ReduceSum":
        weight /= count
    made = call.build.apply(Linear(weight, None, rows.shape[0]), call.build.flat(rows))
    shape = tuple(
        1 if axis in axes else n for axis, n in enumerate(tensor.shape) if keep or axis in kept
    )
    return Tensor.whole(made, shape)
