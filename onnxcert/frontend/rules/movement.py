"""Operators that keep all entries and change how they are arranged: no arithmetic, no nodes."""

from __future__ import annotations

import numpy as np

from onnxcert.arrays import Array
from onnxcert.frontend.rules.registry import Call, normal_axis, reads
from onnxcert.frontend.tensors import Constant, NoRule, Operand


@reads("Identity", moves=True)
@reads("Dropout", since=7, moves=True, note="inference only")
def identity(call: Call) -> Operand:
    """The input itself."""
    if call.has(2) and call.constant(2, "training_mode").any():
        raise NoRule("training_mode")
    return call.operand(0)


@reads("Shape", moves=True)
def shape(call: Call) -> Operand:
    """Shapes are known, also those of computed values."""
    dimensions = call.operand(0).shape
    end = call.attributes.get("end")
    return Constant(np.array(dimensions[call.attributes.get("start", 0) : end], dtype=np.int64))


@reads("Size", moves=True)
def size(call: Call) -> Operand:
    """The number of entries."""
    return Constant(np.array(np.prod(call.operand(0).shape, dtype=np.int64)))


@reads("Reshape", since=5, moves=True)
def reshape(call: Call) -> Operand:
    """Row-major; 0 copies a dimension (unless ``allowzero``), -1 takes what is left."""
    target = [int(n) for n in call.constant(1, "the new shape")]
    old = call.operand(0).shape
    if not call.attributes.get("allowzero", 0):
        target = [old[i] if n == 0 else n for i, n in enumerate(target)]
    return call.build.rearrange([call.operand(0)], lambda x: x.reshape(target))


@reads("Flatten", moves=True)
def flatten(call: Call) -> Operand:
    """Two axes: everything before ``axis`` and everything from there on."""
    operand = call.operand(0)
    axis = call.attributes.get("axis", 1)
    axis = axis if axis >= 0 else axis + len(operand.shape)
    rows = int(np.prod(operand.shape[:axis], dtype=np.int64))
    return call.build.rearrange([operand], lambda x: x.reshape(rows, -1))


@reads("Squeeze", moves=True)
def squeeze(call: Call) -> Operand:
    """Drop axes of length one."""
    axes = call.integers(1, "axes")
    chosen = None if axes is None else tuple(axes)
    return call.build.rearrange([call.operand(0)], lambda x: np.squeeze(x, axis=chosen))


@reads("Unsqueeze", moves=True)
def unsqueeze(call: Call) -> Operand:
    """Insert axes of length one."""
    axes = tuple(call.integers(1, "axes") or ())
    return call.build.rearrange([call.operand(0)], lambda x: np.expand_dims(x, axes))


@reads("Transpose", moves=True)
def transpose(call: Call) -> Operand:
    """Permute the axes; reversed without ``perm``."""
    order = call.attributes.get("perm")
    return call.build.rearrange([call.operand(0)], lambda x: np.transpose(x, order))


@reads("Concat", since=4, moves=True)
def concat(call: Call) -> Operand:
    """Join along an axis."""
    operands = [call.operand(i) for i in range(len(call.inputs))]
    axis = int(call.attributes["axis"])
    return call.build.rearrange(operands, lambda *parts: np.concatenate(parts, axis=axis))


@reads("Split", moves=True)
def split(call: Call) -> list[Operand]:
    """Cut along an axis: into the given sizes, or into equal parts of which the last may be
    smaller.
    """
    operand = call.operand(0)
    axis = normal_axis(call.attributes.get("axis", 0), len(operand.shape))
    length = operand.shape[axis]
    sizes = call.integers(1, "split")
    if sizes is None:
        count = call.attributes.get("num_outputs", call.outputs)
        part = -(-length // count)
        sizes = [max(0, min(part, length - i * part)) for i in range(count)]
    if sum(sizes) != length or min(sizes) < 0:
        raise ValueError(f"parts of {sizes} do not make {length}")
    ends = np.cumsum(sizes)

    def cut(start: int, end: int) -> Operand:
        return call.build.rearrange(
            [operand], lambda x: np.take(x, np.arange(start, end), axis=axis)
        )

    return [cut(int(end) - size, int(end)) for end, size in zip(ends, sizes, strict=True)]


@reads("DepthToSpace", moves=True)
def depth_to_space(call: Call) -> Operand:
    """Blocks of channels become blocks of pixels."""
    block = int(call.attributes["blocksize"])
    call.refuse("mode", "DCR", "CRD")
    by_column = call.attributes.get("mode", "DCR") == "CRD"

    def move(x: Array) -> Array:
        n, c, h, w = x.shape
        if by_column:
            parts = x.reshape(n, c // block**2, block, block, h, w).transpose(0, 1, 4, 2, 5, 3)
        else:
            parts = x.reshape(n, block, block, c // block**2, h, w).transpose(0, 3, 4, 1, 5, 2)
        return parts.reshape(n, c // block**2, h * block, w * block)

    return call.build.rearrange([call.operand(0)], move)


@reads("SpaceToDepth", moves=True)
def space_to_depth(call: Call) -> Operand:
    """Blocks of pixels become blocks of channels."""
    block = int(call.attributes["blocksize"])

    def move(x: Array) -> Array:
        n, c, h, w = x.shape
        parts = x.reshape(n, c, h // block, block, w // block, block)
        return parts.transpose(0, 3, 5, 1, 2, 4).reshape(n, c * block**2, h // block, w // block)

    return call.build.rearrange([call.operand(0)], move)
