"""What the ONNX operators mean: a table from each operator to a function.

A tensor is a `Known` constant, or an int64 array, in the tensor's shape, of scalar numbers (see
`onnxcert.checker.network`). Definitions: https://onnx.ai/onnx/operators/.

Python's own rules for calls read a node: its inputs are the positional arguments of the function,
its attributes the keywords. So what was an attribute once and is an input now is one argument, and
an input or attribute that the function does not know makes the node refused, by a TypeError.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import onnx

from onnxcert.checker.builder import (
    EXTRA,
    MINUS,
    ONE,
    ZERO,
    Builder,
    Known,
    calculated,
    exact,
    multiplied,
)
from onnxcert.checker.curves import MOST
from onnxcert.checker.decisions import (
    WHOLE_TYPES,
    choice,
    equal,
    greater,
    junction,
    negation,
    place,
    towards_zero,
)
from onnxcert.checker.network import Array, Product, bounded, need

FLOATS = {1: "float32", 10: "float16", 11: "float64"}
"""Numbers of ``onnx.TensorProto.DataType``: between these a cast is the identity over the reals."""

FIXED = {
    "batch_dims": 0, "keep_aspect_ratio_policy": "stretch", "reduction": "none", "spatial": 1,
    "storage_order": 0, "training_mode": 0,
}  # fmt: skip
"""Attributes that no function reads, and the only value with which they are understood."""

IGNORED = {
    "antialias", "cubic_coeff_a", "exclude_outside", "extrapolation_value", "momentum", "ratio",
    "round_mode", "saturate", "seed",
}  # fmt: skip
"""Attributes that mean nothing here: they matter to training, other modes and other types."""

FLAGS = {
    "allowzero", "ceil_mode", "count_include_pad", "keepdims", "noop_with_empty_axes", "transA",
    "transB", "upper",
}  # fmt: skip
"""Attributes that are 0 or 1."""

_MOST_PRODUCTS = 1 << 27

# Moving entries: functions of an array of values, of their errors, or of numbers of scalars


def _distinct(axes: Any, rank: int) -> list[int]:
    """Axes counted from the front, all if none are given."""
    counted = [range(rank)[axis] for axis in (range(rank) if axes is None else axes)]
    need(len(set(counted)) == len(counted), f"axes {counted}")
    return counted


def _dropout(x: Array, ratio: Any = None, training_mode: Any = None) -> Array:
    need(not np.any(training_mode), "training_mode")
    return x


def _squeeze(x: Array, axes: Any = None) -> Any:
    need(axes is None or len(axes), "an empty list of axes")
    return np.squeeze(x, None if axes is None else tuple(axes))


def _slice(x: Array, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Array:
    axes = _distinct(range(len(starts)) if axes is None else axes, x.ndim)
    steps = [1] * len(starts) if steps is None else steps
    for start, end, axis, step in zip(starts, ends, axes, map(int, steps), strict=True):
        n, back = x.shape[axis], int(step < 0)
        a, b = (int(i) + n if i < 0 else int(i) for i in (start, end))
        line = np.arange(min(max(a, 0), n - back), min(max(b, -back), n - back), step)
        x = np.take(x, line, axis)
    return x


def _gather_elements(x: Array, index: Array, axis: int) -> Any:
    places: list[Array] = list(np.indices(index.shape))
    places[axis] = index
    return x[tuple(places)].reshape(index.shape)


def _tile(x: Array, repeats: Any) -> Any:
    bounded([n * int(k) for n, k in zip(x.shape, repeats, strict=True)])
    return np.tile(x, repeats)


def _trilu(x: Array, k: Any = 0, *, upper: int) -> Any:
    rows, columns = x.shape[-2:]
    return np.where(np.tri(rows, columns, np.asarray(k).item() - upper) != upper, x, -1)


def _depth_to_space(x: Array, blocksize: int, mode: str = "DCR") -> Any:
    (n, c, h, w), b = x.shape, blocksize
    d, orders = c // b**2, {"DCR": (0, 3, 4, 1, 5, 2), "CRD": (0, 1, 4, 2, 5, 3)}
    split = (b, b, d) if mode == "DCR" else (d, b, b)
    return x.reshape(n, *split, h, w).transpose(orders[mode]).reshape(n, d, h * b, w * b)


def _space_to_depth(x: Array, blocksize: int) -> Any:
    (n, c, h, w), b = x.shape, blocksize
    x = x.reshape(n, c, h // b, b, w // b, b).transpose(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * b**2, h // b, w // b)


def _resize(
    x: Array, scales: Any, sizes: Any = None, axes: Any = None, *, mode: str,
    coordinate_transformation_mode: str = "asymmetric", nearest_mode: str = "floor",
) -> Array:  # fmt: skip
    """Stretch axes by whole factors: place i repeats entry (a i + b) / c, rounded and clipped."""
    need(mode == "nearest", f"mode={mode}")
    axes = _distinct(axes, x.ndim)
    if sizes is not None:
        scales = [Fraction(int(n), x.shape[axis]) for n, axis in zip(sizes, axes, strict=True)]
    for axis, scale in zip(axes, map(Fraction, np.asarray(scales, object)), strict=True):
        n, k = x.shape[axis], int(scale)
        need(k == scale >= 1, f"the scale {float(scale)}, which is not whole")
        half = 2, 1 - k, 2 * k
        a, b, c = {
            "align_corners": (n - 1, 0, max(1, n * k - 1)), "asymmetric": (1, 0, k),
            "half_pixel": half, "half_pixel_symmetric": half, "pytorch_half_pixel": half,
            "tf_half_pixel_for_nn": (2, 1 if k > 1 else 0, 2 * k),
        }[coordinate_transformation_mode]  # fmt: skip
        sign, shift = {
            "ceil": (-1, 0), "round_prefer_floor": (-1, 1),
            "floor": (1, 0), "round_prefer_ceil": (1, 1),
        }[nearest_mode]  # fmt: skip
        place = np.arange(*bounded([n * k]))
        place = sign * ((2 * sign * (a * place + b) + shift * c) // (2 * c)) if k > 1 else place
        x = np.take(x, np.clip(place, 0, n - 1), axis)
    return x


_MOVES: dict[str, Callable[..., Any]] = {
    "DepthToSpace": _depth_to_space,
    "Dropout": _dropout,
    "Expand": lambda x, shape: np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(shape))),
    "Flatten": lambda x, axis: x.reshape(math.prod(x.shape[:axis]), -1),
    "Gather": lambda x, index, *, axis: np.take(x, index, axis),
    "GatherElements": _gather_elements,
    "GatherND": lambda x, index: x[tuple(np.moveaxis(index, -1, 0))],
    "Identity": lambda x: x,
    "Reshape": lambda x, shape, allowzero=0: x.reshape(
        [n if n or allowzero else x.shape[i] for i, n in enumerate(shape)]
    ),
    "Resize": lambda x, *more, **given: _resize(x, *(more[1:] if more[1:] else more), **given),
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": lambda x, perm=None: np.transpose(x, perm),
    "Trilu": _trilu,
    "Unsqueeze": lambda x, axes: np.expand_dims(x, tuple(axes)),
    "Upsample": _resize,
}
"""Operators that move the entries of their first input; -1 in a result stands for zero."""


def _move(move: Callable[..., Any], net: Builder, x: Any, *more: Any, **given: Any) -> Any:
    return net.moved(lambda x: move(x, *map(exact, more), **given), x)


def _taken(net: Builder, table: Array, *operands: Any) -> Any:
    """Entries of tensors by their places in all of them one after the other."""
    return net.moved(lambda *x: np.concatenate([*map(np.ravel, x)])[table], *operands)


def _pad(net: Builder, x: Any, pads: Any, value: Any = None, axes: Any = None, *, mode: str) -> Any:
    axes, width = _distinct(exact(axes), len(x.shape)), np.zeros((len(x.shape), 2), int)
    width[axes] = np.reshape(exact(pads), (2, len(axes))).T
    cut = tuple(slice(max(0, -a), n - max(0, -b)) for n, (a, b) in zip(x.shape, width, strict=True))
    bounded(x.shape + np.maximum(width, 0).sum(1))
    how: Any = {"mode": mode, **({"constant_values": -1} if mode == "constant" else {})}
    need(mode in ("constant", "edge", "reflect", "wrap"), f"{mode=}")
    table = np.pad(np.arange(math.prod(x.shape)).reshape(x.shape)[cut], np.maximum(width, 0), **how)
    fill = value if hasattr(value, "shape") else Known(np.array(value or 0.0))
    need(math.prod(fill.shape) == 1, "more than one value for the padding")
    return _taken(net, table, x, fill)


def _scatter_nd(net: Builder, x: Any, index: Any, updates: Any) -> Any:
    size, count = math.prod(x.shape), math.prod(updates.shape)
    table = np.arange(size).reshape(x.shape)
    table[tuple(np.moveaxis(exact(index), -1, 0))] = size + np.arange(count).reshape(updates.shape)
    need((table >= size).sum() == count, "an entry is written twice")
    return _taken(net, table, x, updates)


def _split(
    net: Builder, x: Any, split: Any = None, *, axis: int, num_outputs: int | None = None
) -> list[Any]:
    length, count, sizes = x.shape[axis], num_outputs or net.outputs, exact(split)
    if sizes is None:
        sizes = np.diff(np.minimum(np.arange(count + 1) * -(-length // count), length))
    need(sum(sizes) == length and min(sizes) >= 0, f"parts of {sizes} do not make {length}")
    lines = np.split(np.arange(length), np.cumsum(sizes)[:-1])
    return [net.moved(lambda x, line=line: np.take(x, line, axis), x) for line in lines]


# Constants, types and shapes


def _constant(net: Builder, **given: Any) -> Known:
    ((name, value),) = given.items()
    kinds = {"value_float": "f4", "value_floats": "f4", "value_int": "i8", "value_ints": "i8"}
    return net.load(value) if name == "value" else net.known(np.array(value, kinds[name]))


def _constant_of_shape(net: Builder, shape: Any, value: Any = None) -> Known:
    fill = net.known(np.zeros(1, np.float32)) if value is None else net.load(value)
    return Known(np.full(bounded(exact(shape)), fill.value.item(), fill.value.dtype))


def _range(net: Builder, *ends: Known) -> Known:
    line = range(*(exact(end)[()] for end in ends))
    bounded([len(line)])
    return Known(np.array(line, ends[0].value.dtype))


def _cast(net: Builder, x: Any, like: Any = None, to: int | None = None) -> Any:
    """What becomes a floating-point number stays what it is over the reals."""
    if to is None:  # the type of another operand, the last of those that are computed or a constant
        dtype = like.value.dtype if isinstance(like, Known) else np.dtype(net.kinds[-1])
    else:
        dtype = net.known(np.zeros(0, onnx.helper.tensor_dtype_to_np_dtype(to))).value.dtype
    if dtype in FLOATS.values() and isinstance(x, Known):
        x = x.numbers()  # of which the type may not hold all: both readings lie within the error
        lost = abs(Known(x.value.astype(dtype)).numbers().value - x.value) * (1 + 1e-9) + x.spread
        return Known(x.value, lost if lost.any() else None)
    if dtype in FLOATS.values():
        return x
    if not isinstance(x, Known):
        kind = net.kinds[0]
        if kind == "bool" or (kind in WHOLE_TYPES and str(dtype) in (kind, "int64")):
            return x  # 64-bit integers may be too large for 32 bits
        need(kind in FLOATS.values(), f"a cast to {dtype}")
        return towards_zero(net, x, dtype)
    value = exact(x).astype(dtype)
    held = dtype.kind == "b" or (dtype.kind in "iu" and (value == np.trunc(exact(x))).all())
    need(held, f"a cast to {dtype} that overflows")
    return Known(value)


# Sums and products


def _shape(*operands: Any) -> tuple[int, ...]:
    return bounded(np.broadcast_shapes(*(operand.shape for operand in operands)))


def _sum(net: Builder, operands: Sequence[Any], factors: Sequence[Known]) -> Array:
    picks, offset = [], ZERO
    for operand, factor in zip(operands, factors, strict=True):
        if not isinstance(operand, Known) or offset is not ZERO:
            picks.append((net.ids(operand), factor))
        elif factor in (ONE, MINUS):
            offset = Known(factor.value * operand.numbers().value, operand.error)
        else:
            offset = calculated("Mul", operand, factor)
    more = EXTRA - 1 if offset is not ZERO or factors[0] is not ONE else 0
    layout: Any = _shape(*operands)
    if len(picks) == 1 and picks[0][0].shape == layout:
        layout = _in_order(picks[0][0])
    return net.affine(layout, *picks, offset=offset, roundings=len(operands) - 1 + more)


def _in_order(ids: Array) -> Any:
    """Positions in the order of the scalars, so that an offset may join the sums that it is added
    to; the shape where some number is missing among the scalars."""
    first = int(ids.min()) if ids.size else 0
    places = np.sort(ids, axis=None) - first
    return ids - first if first >= 0 and np.array_equal(places, np.arange(ids.size)) else ids.shape


def _mean(net: Builder, *operands: Any) -> Array:
    return _sum(
        net, operands, [calculated("Div", ONE, Known(np.array(len(operands))))] * len(operands)
    )


def _scale(net: Builder, x: Any, factor: Any, *, divides: bool = False) -> Array:
    x, factor = (factor, x) if isinstance(x, Known) and not divides else (x, factor)
    if not isinstance(factor, Known):
        return _pair(net, x, factor, divides=divides)
    by = calculated("Div", ONE, factor) if divides else factor
    return net.affine(_shape(x, factor), (net.ids(x), by), roundings=EXTRA)


def _pair(net: Builder, x: Any, y: Array, *, divides: bool) -> Array:
    """x y or x / y, where y is computed; x x is a power, and for a constant c / y is c (1 / y)."""
    if isinstance(x, Known):
        return _scale(net, net.curve("reciprocal", y), x)
    _shape(x, y)
    first, second = np.broadcast_arrays(x, y)
    if divides:
        return net.pair("quotient", first, second)
    if np.array_equal(first, second):
        return net.curve("power", first, np.full(first.size, 2.0))
    return net.pair("product", first, second)


def _power(net: Builder, x: Any, exponent: Any) -> Any:
    """x^n for one whole n, and 1 / x^-n for negative ones."""
    given = np.asarray(exact(exponent), np.float64)
    ids, n = np.broadcast_to(net.ids(x), _shape(x, exponent)), float(given.flat[0])
    need((given == n).all() and n == round(n) and 0 < abs(n) <= MOST, f"a power of {n}")
    if abs(n) > 1:
        ids = net.curve("power", ids, np.full(ids.size, abs(n)))
    return ids if n > 0 else net.curve("reciprocal", ids)


def _batch_normalization(
    net: Builder, x: Any, scale: Known, bias: Known, mean: Known, variance: Known, epsilon: float
) -> Array:
    """f x - f mean + bias with f = scale / sqrt(variance + epsilon).

    The mean is a block of constants: executors subtract it from x, and what they lose in that is
    small against f x and f mean, but not against their difference.
    """
    need(net.outputs == 1, "training outputs")
    root = calculated("Sqrt", calculated("Add", variance, Known(np.array(epsilon))))
    net.executed_apart(scale, root)
    column = partial(np.reshape, shape=(-1, *(1,) * (len(x.shape) - 2)))
    factor = calculated("Div", scale, root).moved(column)
    picks = (net.ids(x), factor), (net.ids(mean.moved(column)), Known(-factor.value, factor.error))
    return net.affine(x.shape, *picks, offset=bias.moved(column), roundings=EXTRA)


def _product(net: Builder, a: Any, b: Any, alpha: Known, *picks: Any, **more: Any) -> Array:
    """alpha A B + further terms, for A (.., M, K) and B (.., K, L)."""
    turn = partial(np.swapaxes, axis1=-1, axis2=-2)
    turned = not isinstance(a, Known)
    if turned and not isinstance(b, Known):
        return _computed_product(net, a, turn(b), alpha, *picks, **more)
    weight, x = (b.moved(turn), turn(a)) if turned else (a, net.ids(b))
    weight = weight if alpha.value == 1 else calculated("Mul", weight, alpha)
    (*stack, m, k), (*lead, h, w) = weight.shape, x.shape
    shared = np.broadcast_shapes(tuple(stack), tuple(lead))
    single, count = math.prod(stack) == 1, math.prod(shared)
    groups, times = (1, count) if single else (count, 1)  # one matrix serves all
    whole = (*(stack if single else shared), m, k), bounded((*shared, h, w))
    weight = weight.moved(lambda v: np.broadcast_to(v, bounded(whole[0])).reshape(groups, m, k))
    x = np.broadcast_to(x, whole[1]).reshape(groups, times, h, w).swapaxes(1, 2)
    layout = np.arange(groups * m * times * w).reshape(groups, m, times, w).swapaxes(1, 2)
    layout = layout.reshape(*shared, m, w)
    x = x.reshape(groups, h, times * w)
    return net.linear(turn(layout) if turned else layout, weight, x, *picks, **more)


def _computed_product(
    net: Builder, a: Array, b: Array, alpha: Known, *picks: Any, **more: Any
) -> Array:
    """alpha A B' + further terms, for computed A (.., M, K) and B (.., L, K).

    ``sum_k a_ik b_jk`` as pairs, whose products an execution rounds or does not, and their sums.
    """
    depth = a.shape[-1]
    need(depth == b.shape[-1] > 0, f"a product of {a.shape} and {b.shape}, turned")
    made = _pair(net, a[..., :, None, :], b[..., None, :, :], divides=False)
    term = Product(made.reshape(1, -1, depth).swapaxes(1, 2), np.full((1, 1, depth), alpha.value))
    return net.affine(made.shape[:-1], *picks, terms=[term], roundings=depth + EXTRA, **more)


def _matmul(net: Builder, a: Any, b: Any) -> Any:
    need(a.shape and b.shape, "a product with a scalar")
    lost = tuple(axis for axis, x in ((-2, a), (-1, b)) if len(x.shape) == 1)
    a, b = net.moved(np.atleast_2d, a), net.moved(lambda y: y[:, None], b) if -1 in lost else b
    if isinstance(a, Known) and isinstance(b, Known):
        net.folded = True
        return multiplied(a, b, net.unit).moved(lambda y: np.squeeze(y, lost))
    return np.squeeze(_product(net, a, b, ONE), lost)


def _gemm(
    net: Builder, a: Any, b: Any, c: Any = ZERO, *, alpha: float, beta: float, **turned: int
) -> Array:
    """alpha A' B' + beta C, where ' is an optional transposition."""
    turns = turned.pop("transA"), turned.pop("transB")
    a, b = (
        net.moved(np.transpose, x) if turn else x for x, turn in zip((a, b), turns, strict=True)
    )
    scale, factor = Known(np.array(alpha)), Known(np.array(beta))
    need(not turned, f"{turned}")
    net.executed_apart(scale, factor)
    if not isinstance(c, Known):
        return _product(net, a, b, scale, (c, factor))
    return _product(net, a, b, scale, offset=c if beta == 1 else calculated("Mul", c, factor))


# Windows


def _halves(total: int, auto_pad: str) -> tuple[int, int]:
    """Padding before and after; only SAME_UPPER puts the odd one after the image."""
    half = max(0, total) // 2
    return (
        (half, max(0, total) - half) if auto_pad == "SAME_UPPER" else (max(0, total) - half, half)
    )


def _extent(size: int, span: int, step: int, a: int, b: int, pad: str, ceil: int) -> Any:
    """How many windows there are along an axis, and the padding."""
    if pad.startswith("SAME"):
        total = (-(-size // step) - 1) * step + span - size
        need(total >= -1, "auto_pad where executors leave out part of the image")
        a, b = _halves(total, pad)
    positions, rest = divmod(size + a + b - span, step)
    if ceil and pad in ("NOTSET", ""):
        late = (positions + (rest > 0)) * step >= size + a  # the last would begin in the padding
        need(not late or ceil > 1, "ceil_mode that executors understand differently")
        positions += (rest > 0) - late
    return positions + 1, a, b


def _spread(
    size: int, span: int, step: int, a: int, b: int, pad: str, extra: int, wanted: Any
) -> Any:
    """The same for a transposed convolution."""
    full = step * (size - 1) + extra + span
    wanted = step * size if wanted is None and pad.startswith("SAME") else wanted
    a, b = (a, b) if wanted is None else _halves(full - wanted, pad)
    need(extra >= 0 and wanted in (None, full - a - b), f"output_shape {wanted} beyond the image")
    return full - a - b, a, b


def _windows(  # noqa: PLR0913
    net: Builder, image: Sequence[int], kernel: Sequence[int], *, auto_pad: str,
    strides: Any = None, dilations: Any = None, pads: Any = None, kernel_shape: Any = None,
    ceil_mode: int = 0, count_include_pad: int = 0,
    transposed: bool = False, output_padding: Any = None, output_shape: Any = None,
) -> tuple[Array, Array]:  # fmt: skip
    """What windows hold of an image.

    Returns:
        The places of their entries in the image, row-major, -1 outside: (*positions, taps); and the
        numbers of entries that averages count: (*positions).
    """
    n, ones = len(image), [1] * len(image)
    need(auto_pad in ("NOTSET", "", "VALID", "SAME_UPPER", "SAME_LOWER"), f"{auto_pad=}")
    need(list(kernel_shape or kernel) == list(kernel), f"{kernel_shape=}, not that of the weight")
    pads = [0] * 2 * n if auto_pad == "VALID" or not pads else pads
    rows = image, kernel, strides or ones, dilations or ones, pads[:n], pads[n:]
    last = output_padding or [0] * n, (output_shape or [])[-n:] or [None] * n
    ceil = ceil_mode + (ceil_mode and net.version >= 22)
    place, inside, counts = np.zeros((), int), np.ones((), bool), np.ones((), int)
    for i, (size, taps, step, apart, *ends) in enumerate(zip(*rows, *last, strict=True)):
        need(min(taps, step, apart) > 0 <= min(ends[:2]), "no window, or negative pads")
        more = ends[2:] if transposed else [ceil]
        axis = [size, (taps - 1) * apart + 1, step, *ends[:2], auto_pad, *more]
        positions, before, after = (_spread if transposed else _extent)(*axis)
        bounded([positions - 1, taps], _MOST_PRODUCTS)
        window, tap = np.arange(positions)[:, None], np.arange(taps) * apart - before
        line, rest = np.divmod(window - tap, step) if transposed else (window * step + tap, 0)
        held = (line >= 0) & (line < size) & (rest == 0)
        counted = (line >= -before) & (line < size + after) if count_include_pad else held
        others = [axis for axis in range(2 * n) if axis % n != i]
        place = place * size + np.expand_dims(line, others)
        inside = inside & np.expand_dims(held, others)
        counts = np.multiply.outer(counts, counted.sum(1))
        bounded(place.shape, _MOST_PRODUCTS)
    return np.where(inside, place, -1).reshape(*counts.shape, -1), counts


def _under(x: Array, table: Array) -> Array:
    """The entries of images (N, C, ..) under windows: (N, C, *positions, taps)."""
    bounded((*x.shape[:2], *table.shape), _MOST_PRODUCTS)
    flat = x.reshape(*x.shape[:2], -1)
    return np.pad(flat, ((0, 0), (0, 0), (0, 1)), constant_values=-1)[..., table]


def _met(table: Array, size: int, n: int) -> Array:
    """Where taps meet the entries of n images, for a table of windows; see `Product`."""
    count, taps = table[..., 0].size, table.shape[-1]
    where = np.full((size + 1, taps), count)
    where[table.reshape(count, taps), np.arange(taps)] = np.arange(count)[:, None]
    found = where[:-1]  # the last is what lies outside
    parts = [np.where(found < count, found + i * count, n * count) for i in range(n)]
    return np.concatenate(parts)


def _conv(
    net: Builder, x: Any, weight: Known, bias: Known = ZERO, *,
    group: int, transposed: bool = False, **given: Any,
) -> Array:  # fmt: skip
    """Sums under windows; if transposed, every entry is spread by the kernel, a stride apart."""
    (n, c, *image), (first, second, *kernel) = x.shape, weight.shape
    table, _ = _windows(net, image, kernel, transposed=transposed, **given)
    inputs, outputs = (first, second * group) if transposed else (second * group, first)
    fits = group > 0 and inputs == c and c % group == 0 == outputs % group
    need(fits, f"{c} channels, a weight {weight.shape}, {group} groups")

    def grouped(w: Array) -> Array:
        w = w.reshape(group, c // group, outputs // group, -1).swapaxes(1, 2) if transposed else w
        return w.reshape(group, outputs // group, -1)

    x, taps = net.ids(x).reshape(n, group, c // group, -1), table.shape[-1]
    ids = _under(x.reshape(n, c, -1), table).reshape(*x.shape[:3], -1, taps)
    ids = ids.transpose(1, 2, 4, 0, 3).reshape(group, c // group * taps, -1)
    windows = x.transpose(1, 2, 0, 3).reshape(*x.shape[1:3], -1), _met(table, x.shape[3], n)
    layout = np.arange(outputs * ids.shape[2]).reshape(outputs, n, *table.shape[:-1]).swapaxes(0, 1)
    offset = bias.moved(lambda b: b.reshape(-1, *(1,) * len(image)) if b.shape else b)
    return net.linear(layout, weight.moved(grouped), ids, offset=offset, windows=windows)


def _max_pool(net: Builder, x: Any, kernel_shape: Sequence[int], **given: Any) -> Array:
    """The largest entry of a window; taps in the padding repeat its last entry."""
    table, _ = _windows(net, x.shape[2:], kernel_shape, **given)
    last = table.max(axis=-1, keepdims=True)
    need((last >= 0).all(), "a window that lies in the padding")
    stack = _under(net.ids(x), np.where(table < 0, last, table))
    return net.largest_row(np.moveaxis(stack, -1, 0))


def _average_pool(net: Builder, x: Any, kernel_shape: Sequence[int], **given: Any) -> Array:
    table, counts = _windows(net, x.shape[2:], kernel_shape, **given)
    return _average(net, np.moveaxis(_under(net.ids(x), table), -1, 0), counts)


def _average(net: Builder, stack: Array, counts: Any) -> Array:
    """Sums along the first axis over counts."""
    ones, share = np.ones((1, 1, len(stack))), calculated("Div", ONE, Known(np.array(counts)))
    uniform = share.value.min() == share.value.max()
    weight = share.moved(lambda s: s.flat[0] * ones) if uniform else Known(ones)
    total = net.linear(stack.shape[1:], weight, stack.reshape(1, len(stack), -1))
    return total if uniform else net.affine(total.shape, (total, share), roundings=EXTRA)


# Reductions, extrema, curves


def _reduce(
    kind: str,
    net: Builder,
    x: Any,
    axes: Any = None,
    keepdims: int = 1,
    noop_with_empty_axes: int = 0,
) -> Array:
    """Reduce the first axis of a stack that has the result's shape along the others."""
    ids, rank, axes = net.ids(x), len(x.shape), exact(axes)
    if axes is None or not len(axes):
        axes = [] if noop_with_empty_axes else range(rank)
    axes = sorted({range(rank)[axis] for axis in axes})
    need(ids.size, "a reduction of nothing")
    shape = [1 if i in axes else n for i, n in enumerate(x.shape) if keepdims or i not in axes]
    stack = np.moveaxis(ids, axes, range(len(axes))).reshape(-1, *shape)
    if kind == "Min":
        return net.negative(net.largest_row(net.negative(stack)))
    if kind == "Max":
        return net.largest_row(stack)
    return _average(net, stack, 1 if kind == "Sum" else len(stack))


def _extremum(sign: int, net: Builder, *operands: Any) -> Array:
    """The computed values against each other, then against the constants one by one."""
    _shape(*operands)
    row = [x if sign > 0 else net.negative(x) for x in operands if not isinstance(x, Known)]
    x = net.largest(row) if sign > 0 else net.negative(net.largest(row))
    for operand in operands:
        x = net.limited(x, operand, sign) if isinstance(operand, Known) else x
    return x


def _between(net: Builder, x: Array, *limits: Any) -> Array:
    """min(max(x, low), high); limits beyond the range of binary32 do nothing."""
    for sign, given in zip((1, -1), limits, strict=True):
        limit = -sign * np.inf if given is None else float(np.asarray(exact(given)).item())
        need(-sign * limit > -np.inf, f"a limit of {limit}")  # also refuses NaN
        if -sign * limit < np.finfo(np.float32).max:
            x = net.limited(x, Known(np.array(limit)), sign)
    return x


def _clip(net: Builder, x: Any, min: Any = None, max: Any = None) -> Array:  # noqa: A002
    return _between(net, net.ids(x), min, max)


def _hard_sigmoid(net: Builder, x: Any, alpha: float, beta: float) -> Array:
    factor, offset = Known(np.array(alpha)), Known(np.array(beta))
    line = net.affine(x.shape, (net.ids(x), factor), offset=offset, roundings=EXTRA)
    return _between(net, line, 0.0, 1.0)


def _leaky(net: Builder, x: Any, alpha: Any) -> Array:
    slope = exact(Known(np.array(exact(alpha))).numbers())
    return net.curve("leaky", net.ids(x), np.broadcast_to(slope, x.shape).ravel())


def _p_relu(net: Builder, x: Any, slope: Known) -> Array:
    need(net.version >= 7, "slopes by channel")
    return _leaky(net, x, slope)


def _softmax(net: Builder, x: Any, axis: int) -> Any:
    """1 / (1 + sum over j != i of exp(x_j - x_i)).

    Executors take exp(x_j - max x), sums and quotients instead. With u = 2^-24, m entries and an
    exponential that is off by 32 u, a share p is off by less than u (2 m + 80): p times twice the
    roundings of one exponential, of the sum and of the quotient, and by what the roundings of the
    differences t <= 0 change, u |t| exp(t) <= u / e for each.
    """
    ids, old = net.ids(x), net.version < 13
    shape = ids.shape
    length = math.prod(shape[range(len(shape))[axis] :]) if old else shape[axis]
    need(length > 0, "shares of nothing")
    if length == 1:
        return Known(np.ones(shape))
    turned = ids if old else np.moveaxis(ids, axis, -1)
    rows, place = turned.reshape(-1, length), np.arange(length)
    bounded([len(rows), length, length])
    others = np.array([place[place != i] for i in place])
    gaps = net.affine((len(rows), *others.shape), (rows[:, others], ONE), (rows[:, :, None], MINUS))
    powers = net.curve("exp", gaps).reshape(1, -1, length - 1).swapaxes(1, 2)
    total = Product(powers, np.ones((1, 1, length - 1)))
    shares = net.curve("reciprocal", net.affine(rows.shape, terms=[total], offset=ONE))
    made = net.affine(rows.shape, (shares, ONE), roundings=2 * length + 80, least=1.0)
    net.shares.append((made, rows))
    made = made.reshape(turned.shape)
    return made if old else np.moveaxis(made, -1, axis)


OPERATORS: dict[str, Callable[..., Any]] = {
    **{name: partial(_move, move) for name, move in _MOVES.items()},
    **{f"Reduce{kind}": partial(_reduce, kind) for kind in ("Max", "Mean", "Min", "Sum")},
    "AveragePool": _average_pool, "BatchNormalization": _batch_normalization, "Cast": _cast,
    "CastLike": _cast, "Clip": _clip, "Constant": _constant, "ConstantOfShape": _constant_of_shape,
    "Conv": _conv, "ConvTranspose": partial(_conv, transposed=True), "Gemm": _gemm,
    "Div": partial(_scale, divides=True), "HardSigmoid": _hard_sigmoid, "LeakyRelu": _leaky,
    "MatMul": _matmul, "Max": partial(_extremum, 1), "MaxPool": _max_pool, "Mean": _mean,
    "Min": partial(_extremum, -1), "Mul": _scale, "PRelu": _p_relu, "Pad": _pad, "Pow": _power,
    "Range": _range, "ScatterND": _scatter_nd, "Split": _split,
    "Abs": lambda net, x: net.curve("abs", net.ids(x)),
    "Add": lambda net, *x: _sum(net, x, (ONE, ONE)),
    "Cos": lambda net, x: net.curve("cos", net.ids(x)),
    "Exp": lambda net, x: net.curve("exp", net.ids(x)),
    "Concat": lambda net, *x, axis: net.moved(lambda *x: np.concatenate(x, axis), *x),
    "Floor": lambda net, x: net.curve("floor", net.ids(x)),
    "GlobalAveragePool": lambda net, x: _reduce("Mean", net, x, range(2, len(x.shape))),
    "GlobalMaxPool": lambda net, x: _reduce("Max", net, x, range(2, len(x.shape))),
    "Neg": lambda net, x: net.negative(net.ids(x)),
    "Reciprocal": lambda net, x: net.curve("reciprocal", net.ids(x)),
    "Relu": lambda net, x: net.curve("relu", net.ids(x)),
    "Shape": lambda net, x, start=0, end=None: Known(np.array(x.shape[start:end], np.int64)),
    "Sigmoid": lambda net, x: net.curve("sigmoid", net.ids(x)),
    "Sign": lambda net, x: net.curve("sign", net.ids(x)),
    "Sin": lambda net, x: net.curve("sin", net.ids(x)),
    "Softmax": _softmax,
    "Size": lambda net, x: Known(np.array(math.prod(x.shape))),
    "Sub": lambda net, *x: _sum(net, x, (ONE, MINUS)),
    "Sum": lambda net, *x: _sum(net, x, [ONE] * len(x)),
    "Tanh": lambda net, x: net.curve("tanh", net.ids(x)),
    "And": partial(junction, both=True), "ArgMax": place, "ArgMin": partial(place, smallest=True),
    "Equal": equal, "Greater": greater, "GreaterOrEqual": partial(greater, strict=False),
    "Less": partial(greater, less=True), "LessOrEqual": partial(greater, less=True, strict=False),
    "Not": negation, "Or": partial(junction, both=False), "Where": choice,
}  # fmt: skip
"""Operator -> the function of a `Builder`, inputs and attributes that is called for a node."""

TRUTHS = {
    "And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or",
}  # fmt: skip
"""Those that make truths."""

OF_WHOLE = (
    TRUTHS | _MOVES.keys()
    | {"Add", "Cast", "CastLike", "Concat", "Max", "Min", "Pad", "ScatterND", "Shape", "Size",
       "Split", "Sub", "Where"}
)  # fmt: skip
"""Those that are understood of computed whole numbers and truths: division, for one, is another,
and products overflow."""

MOVES = _MOVES.keys() | {"Cast", "CastLike", "Concat", "Pad", "ScatterND", "Shape", "Size", "Where"}
"""Those that only move floating-point numbers, which are exact in tables then."""
