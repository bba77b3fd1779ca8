"""Operators that pick or repeat entries, or mix them with constants: one `Select` at most."""

from __future__ import annotations

import numpy as np

from onnxcert.arrays import Array, IntArray
from onnxcert.frontend.rules.registry import Call, normal_axis, reads
from onnxcert.frontend.tensors import Constant, NoRule, Operand, Tensor, checked_size


@reads("Slice", moves=True)
def slice_(call: Call) -> Operand:
    """``x[start:end:step]`` on some axes; starts and ends beyond the tensor are cut to it."""
    operand = call.operand(0)
    starts, ends = call.integers(1, "starts"), call.integers(2, "ends")
    if starts is None or ends is None:
        raise ValueError("starts or ends are missing")
    axes = call.integers(3, "axes")
    axes = list(range(len(starts))) if axes is None else axes
    steps = call.integers(4, "steps") or [1] * len(starts)
    picks: dict[int, IntArray] = {}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis = normal_axis(axis, len(operand.shape))  # noqa: PLW2901
        picks[axis] = _positions(start, end, step, operand.shape[axis])

    def move(x: Array) -> Array:
        for axis, positions in picks.items():
            x = np.take(x, positions, axis=axis)
        return x

    return call.build.rearrange([operand], move)


def _positions(start: int, end: int, step: int, length: int) -> IntArray:
    """The positions that ONNX's slice meets on an axis."""
    if step == 0:
        raise ValueError("a step of zero")
    start, end = (value + length if value < 0 else value for value in (start, end))
    if step > 0:
        return np.arange(min(max(start, 0), length), min(max(end, 0), length), step)
    return np.arange(min(max(start, -1), length - 1), min(max(end, -1), length - 1), step)


@reads("Gather", moves=True, note="known indices")
def gather(call: Call) -> Operand:
    """Entries of an axis by number."""
    operand = call.operand(0)
    index = call.constant(1, "the index")
    axis = normal_axis(call.attributes.get("axis", 0), len(operand.shape))
    return call.build.rearrange([operand], lambda x: np.take(x, index, axis=axis))


@reads("GatherElements", moves=True, note="known indices")
def gather_elements(call: Call) -> Operand:
    """One entry of an axis for each place of the index."""
    operand = call.operand(0)
    index = call.constant(1, "the index")
    axis = normal_axis(call.attributes.get("axis", 0), len(operand.shape))
    index = np.where(index < 0, index + operand.shape[axis], index)
    places: list[IntArray] = list(np.indices(index.shape))
    places[axis] = index
    return call.build.rearrange([operand], lambda x: x[tuple(places)])


@reads("GatherND", moves=True, note="known indices, batch_dims=0")
def gather_nd(call: Call) -> Operand:
    """Slices by the tuples in the last axis of the index."""
    call.refuse("batch_dims", 0)
    index = call.constant(1, "the index")
    return call.build.rearrange([call.operand(0)], lambda x: x[tuple(np.moveaxis(index, -1, 0))])


@reads("ScatterND", moves=True, note="known indices, no reduction")
def scatter_nd(call: Call) -> Operand:
    """Overwrite slices of a tensor."""
    call.refuse("reduction", "none")
    places = tuple(np.moveaxis(call.constant(1, "the index"), -1, 0))

    def move(x: Array, updates: Array) -> Array:
        result = x.copy()
        result[places] = updates
        return result

    return call.build.rearrange([call.operand(0), call.operand(2)], move)


@reads("Expand", since=8, moves=True)
def expand(call: Call) -> Operand:
    """Broadcast to a shape, both ways."""
    operand = call.operand(0)
    wanted = tuple(int(n) for n in call.constant(1, "the shape"))
    checked_size((*operand.shape, *wanted))
    shape = np.broadcast_shapes(operand.shape, wanted)
    return call.build.rearrange([operand], lambda x: np.broadcast_to(x, shape))


@reads("Tile", since=6, moves=True)
def tile(call: Call) -> Operand:
    """Repeat along each axis."""
    repeats = tuple(int(n) for n in call.constant(1, "the repeats"))
    checked_size((*call.operand(0).shape, *repeats))
    return call.build.rearrange([call.operand(0)], lambda x: np.tile(x, repeats))


@reads("Where", since=9, moves=True)
def where(call: Call) -> Operand:
    """Pick from two tensors by a condition; by a computed one, which is 0 or 1, y + c (x - y)."""
    condition, x, y = (call.operand(i) for i in range(3))
    if isinstance(condition, Tensor):
        if isinstance(x, Constant) and isinstance(y, Constant):
            return call.build.scale(condition, x.numbers - y.numbers, y.numbers)
        return call.build.choose(condition, call.build.computed(x), call.build.computed(y))
    known = condition.array

    def move(x: Array, y: Array) -> Array:
        return np.where(known, x, y)

    return call.build.rearrange([x, y], move)


@reads("Trilu", since=14, moves=True)
def trilu(call: Call) -> Operand:
    """Zero one side of a diagonal."""
    shift = int(call.constant(1, "the diagonal").item()) if call.has(1) else 0
    triangle = np.triu if call.attributes.get("upper", 1) else np.tril
    operand = call.operand(0)
    kept = triangle(np.ones(operand.shape, dtype=bool), shift)
    zero = operand.array.dtype if isinstance(operand, Constant) else np.dtype(np.float64)

    def move(x: Array, fill: Array) -> Array:
        return np.where(kept, x, fill)

    return call.build.rearrange([operand, Constant(np.zeros((), dtype=zero))], move)


@reads("Pad", since=2, moves=True, note="constant amounts")
def pad(call: Call) -> Operand:
    """Surround with a constant, or with entries of the tensor; negative amounts cut."""
    operand = call.operand(0)
    rank = len(operand.shape)
    amounts = call.integers(1, "pads")
    axes = call.integers(3, "axes") if call.has(3) else list(range(rank))
    if amounts is None or axes is None or len(amounts) != 2 * len(axes):
        raise ValueError("the amounts do not fit the axes")
    value: Operand = Constant(np.array(call.attributes.get("value", 0.0)))
    if call.has(2):
        value = call.operand(2)
    mode = str(call.attributes.get("mode", "constant"))
    if mode not in ("constant", "edge", "reflect", "wrap"):
        raise NoRule(f"mode={mode}")
    before, after = [0] * rank, [0] * rank
    for number, axis in enumerate(axes):
        before[normal_axis(axis, rank)] = amounts[number]
        after[normal_axis(axis, rank)] = amounts[number + len(axes)]
    checked_size(tuple(map(sum, zip(operand.shape, before, after, strict=True))))
    positions = [
        _padded_positions(*line, mode) for line in zip(operand.shape, before, after, strict=True)
    ]

    def move(x: Array, fill: Array) -> Array:
        for axis, line in enumerate(positions):
            outside = (line < 0).reshape(-1, *(1,) * (rank - 1 - axis))
            x = np.take(x, np.maximum(line, 0), axis=axis) if x.size else np.zeros(0)
            x = np.where(outside, fill.reshape(()), x)
        return x

    return call.build.rearrange([operand, value], move)


def _padded_positions(length: int, begin: int, end: int, mode: str) -> IntArray:
    """Positions along a padded axis; -1 stands for the constant."""
    line = np.arange(max(0, -begin), length - max(0, -end))
    before, after = max(0, begin), max(0, end)
    if mode == "constant":
        return np.pad(line, (before, after), constant_values=-1)
    return np.pad(line, (before, after), mode=mode)  # type: ignore[call-overload,no-any-return]
