"""What the ONNX operators mean: tables from each operator to a function.

A tensor is a `Known` constant, or an int64 array, in the tensor's shape, of scalar numbers (see
`onnxcert.checker.network`). What only moves entries is one expression of NumPy, which serves
values, their errors and numbers alike. Definitions: https://onnx.ai/onnx/operators/. Whatever a
function does not read of a node, be it an attribute or an input, makes the node refused.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import partial, reduce
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view

from onnxcert.checker.builder import (
    EXTRA,
    MINUS,
    ONE,
    Factored,
    Known,
    Node,
    Operand,
    bounded,
    combined,
)
from onnxcert.checker.errors import Unusable
from onnxcert.checker.network import Array

FLOATS = {1: "float32", 10: "float16", 11: "float64"}
"""Numbers of ``onnx.TensorProto.DataType``: between these a cast is the identity over the reals."""

_MOST_PRODUCTS = 1 << 27
Result = Operand | list[Operand]

# Moving entries


def _dropout(node: Node, x: Array) -> Array:
    node.attr("ratio"), node.attr("seed"), node.has(1)
    if node.has(2) and node.known(2).exactly().any():
        raise Unusable("training_mode")
    return x


def _reshape(node: Node, x: Array) -> Array:
    target = node.integers(1, "shape")
    if not node.flag("allowzero", 0):
        target = [x.shape[i] if n == 0 else n for i, n in enumerate(target)]
    return x.reshape(target)


def _flatten(node: Node, x: Array) -> Array:
    axis = node.attr("axis", 1)
    return x.reshape(math.prod(x.shape[: axis + x.ndim if axis < 0 else axis]), -1)


def _squeeze(node: Node, x: Array) -> Array:
    axes = node.integers(1, "axes", None)
    return np.squeeze(x, None if axes is None else tuple(axes))


def _distinct(axes: Sequence[int], rank: int) -> list[int]:
    """Axes counted from the front; refused if one is out of range or repeated."""
    counted = [range(rank)[axis] for axis in axes]
    if len(set(counted)) < len(counted):
        raise Unusable(f"axes {list(axes)}")
    return counted


def _slice(node: Node, x: Array) -> Array:
    starts, ends = node.integers(1, "starts"), node.integers(2, "ends")
    axes, steps = node.integers(3, "axes", None), node.integers(4, "steps", [1] * len(starts))
    axes = _distinct(range(len(starts)) if axes is None else axes, x.ndim)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        n, back = x.shape[axis], step < 0
        a, b = (i + n if i < 0 else i for i in (start, end))
        a, b = min(max(a, 0), n - back), min(max(b, -back), n - back)
        x = np.take(x, np.arange(a, b, step), axis)
    return x


def _gather_elements(node: Node, x: Array) -> Array:
    index = node.known(1).exactly()
    places = list(np.indices(index.shape))
    places[node.attr("axis", 0)] = index
    return np.asarray(x[tuple(places)])


def _gather_nd(node: Node, x: Array) -> Array:
    node.attr("batch_dims", 0, 0)
    return np.asarray(x[tuple(np.moveaxis(node.known(1).exactly(), -1, 0))])


def _scatter_nd(node: Node, x: Array, updates: Array) -> Array:
    node.attr("reduction", "none", "none")
    places, result = tuple(np.moveaxis(node.known(1).exactly(), -1, 0)), x.copy()
    flat = np.stack([p.ravel() % n for p, n in zip(places, x.shape, strict=False)])
    if len(np.unique(flat, axis=1).T) < flat.shape[1]:
        raise Unusable("an entry is written twice")
    result[places] = updates
    return result


def _expand(node: Node, x: Array) -> Array:
    wanted = bounded(node.integers(1, "shape"))
    return np.broadcast_to(x, bounded(np.broadcast_shapes(x.shape, wanted)))


def _tile(node: Node, x: Array) -> Array:
    repeats = bounded(node.integers(1, "repeats"))
    bounded([n * k for n, k in zip(x.shape, repeats, strict=True)])
    return np.tile(x, repeats)


def _trilu(node: Node, x: Array, zero: Array) -> Array:
    shift = int(node.known(1).exactly().item()) if node.has(1) else 0
    triangle = np.triu if node.flag("upper", 1) else np.tril
    return np.where(triangle(np.ones(x.shape, bool), shift), x, zero.astype(x.dtype))


def _pad(node: Node, x: Array, fill: Array) -> Array:
    amounts, axes = node.integers(1, "pads"), node.integers(3, "axes", None)
    mode = node.attr("mode", "constant", "constant", "edge", "reflect", "wrap")
    axes = list(range(x.ndim)) if axes is None else _distinct(axes, x.ndim)
    before, after = [0] * x.ndim, [0] * x.ndim
    for axis, *pair in zip(axes, amounts[: len(axes)], amounts[len(axes) :], strict=True):
        before[axis], after[axis] = pair
    places = _surrounded(np.arange(x.size).reshape(x.shape), before, after, mode)
    return np.where(places < 0, fill.reshape(()).astype(x.dtype), x.ravel()[places])


def _surrounded(
    x: Array, before: Sequence[int], after: Sequence[int], mode: Any = "constant", fill: float = -1
) -> Array:
    """Cut the last axes of a tensor by negative amounts, then pad it by positive ones."""
    pairs = [(0, 0)] * (x.ndim - len(before)) + list(zip(before, after, strict=True))
    bounded([n + max(0, a) + max(0, b) for n, (a, b) in zip(x.shape, pairs, strict=True)])
    x = x[
        tuple(slice(max(0, -a), n - max(0, -b)) for n, (a, b) in zip(x.shape, pairs, strict=True))
    ]
    more = {"constant_values": fill} if mode == "constant" else {}
    return np.asarray(np.pad(x, [(max(0, a), max(0, b)) for a, b in pairs], mode, **more))


def _depth_to_space(node: Node, x: Array) -> Array:
    block, (n, c, h, w) = node.attr("blocksize"), x.shape
    if node.attr("mode", "DCR", "DCR", "CRD") == "DCR":
        x = x.reshape(n, block, block, c // block**2, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        x = x.reshape(n, c // block**2, block, block, h, w).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(n, c // block**2, h * block, w * block)


def _space_to_depth(node: Node, x: Array) -> Array:
    block, (n, c, h, w) = node.attr("blocksize"), x.shape
    x = x.reshape(n, c, h // block, block, w // block, block).transpose(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * block**2, h // block, w // block)


def _upsample(node: Node, x: Array) -> Array:
    node.attr("mode", "nearest", "nearest")
    scales = node.attr("scales")
    scales = node.known(1).exactly() if scales is None else scales
    return _nearest(x, range(x.ndim), scales, "asymmetric", "floor")


def _resize(node: Node, x: Array) -> Array:
    if node.version < 11:
        return _upsample(node, x)
    node.attr("mode", "nearest", "nearest"), node.attr("keep_aspect_ratio_policy", *["stretch"] * 2)
    for other in ("cubic_coeff_a", "exclude_outside", "extrapolation_value", "antialias"):
        node.attr(other)  # these, and the input roi, matter to other modes
    axes, _ = _distinct(node.attr("axes", range(x.ndim)), x.ndim), (node.has(1), node.has(2))
    scales: Any = None if node.has(3) else node.known(2).exactly()
    if scales is None:
        sizes = zip(node.integers(3, "sizes"), axes, strict=True)
        scales = [Fraction(size, x.shape[axis]) for size, axis in sizes]
    mapping = node.attr("coordinate_transformation_mode", "half_pixel")
    return _nearest(x, axes, scales, mapping, node.attr("nearest_mode", "round_prefer_floor"))


def _nearest(x: Array, axes: Sequence[int], scales: Any, mapping: str, rounding: str) -> Array:
    """Stretch axes by whole factors: place i repeats entry top / bottom, rounded and clipped."""
    for axis, scale in zip(axes, map(Fraction, np.asarray(scales, object)), strict=True):
        n, factor = x.shape[axis], int(scale)
        if factor != scale or factor < 1:
            raise Unusable(f"the scale {float(scale)}, which is not whole")
        bounded([x.size, factor])
        place = np.arange(n * factor)
        half = 2 * place + 1 - factor, 2 * factor
        top, bottom = {
            "asymmetric": (place, factor),
            "half_pixel": half, "half_pixel_symmetric": half, "pytorch_half_pixel": half,
            "align_corners": (place * (n - 1), n * factor - 1),
            "tf_half_pixel_for_nn": (2 * place + 1, 2 * factor),
        }[mapping]  # fmt: skip
        if factor > 1:
            place = {
                "floor": top // bottom,
                "ceil": -(-top // bottom),
                "round_prefer_ceil": (2 * top + bottom) // (2 * bottom),
                "round_prefer_floor": -((bottom - 2 * top) // (2 * bottom)),
            }[rounding]
        x = np.take(x, np.clip(place, 0, n - 1), axis)
    return x


_MOVES: dict[str, tuple[Callable[..., Array], int, tuple[int, ...]]] = {
    "DepthToSpace": (_depth_to_space, 1, (0,)),
    "Dropout": (_dropout, 7, (0,)),
    "Expand": (_expand, 8, (0,)),
    "Flatten": (_flatten, 1, (0,)),
    "Gather": (lambda n, x: np.take(x, n.known(1).exactly(), n.attr("axis", 0)), 1, (0,)),
    "GatherElements": (_gather_elements, 1, (0,)),
    "GatherND": (_gather_nd, 1, (0,)),
    "Identity": (lambda n, x: x, 1, (0,)),
    "Pad": (_pad, 2, (0, 2)),
    "Reshape": (_reshape, 5, (0,)),
    "Resize": (_resize, 10, (0,)),
    "ScatterND": (_scatter_nd, 1, (0, 2)),
    "Slice": (_slice, 1, (0,)),
    "SpaceToDepth": (_space_to_depth, 1, (0,)),
    "Squeeze": (_squeeze, 1, (0,)),
    "Tile": (_tile, 6, (0,)),
    "Transpose": (lambda n, x: np.transpose(x, n.attr("perm")), 1, (0,)),
    "Trilu": (_trilu, 14, (0, 2)),
    "Unsqueeze": (lambda n, x: np.expand_dims(x, tuple(n.integers(1, "axes"))), 1, (0,)),
    "Upsample": (_upsample, 7, (0,)),
    "Where": (lambda n, *xy: np.asarray(np.where(n.known(0).exactly(), *xy)), 9, (1, 2)),
}
"""Operator -> (function, oldest version that it reads, inputs that are moved)."""


def _move(function: Callable[..., Array], inputs: Sequence[int], node: Node) -> Result:
    """Call a function of `_MOVES`; a third input that is left out is zero, or ``value``."""
    operands = [
        node.operand(i) if node.has(i) or i < 2 else Known(np.array(node.attr("value", 0.0)))
        for i in inputs
    ]
    return node.net.moved(partial(function, node), *operands)


def _concat(node: Node) -> Result:
    operands, axis = [node.operand(i) for i in range(len(node.operands))], node.attr("axis")
    return node.net.moved(lambda *parts: np.concatenate(parts, axis), *operands)


def _split(node: Node) -> Result:
    x, sizes, axis = node.operand(0), node.integers(1, "split", None), node.attr("axis", 0)
    count, length = node.attr("num_outputs", node.outputs), x.shape[axis]
    if sizes is None:
        part = -(-length // count)
        sizes = [max(0, min(part, length - i * part)) for i in range(count)]
    if sum(sizes) != length or min(sizes) < 0:
        raise Unusable(f"parts of {sizes} do not make {length}")
    lines = np.split(np.arange(length), np.cumsum(sizes)[:-1])
    return [node.net.moved(lambda x, line=line: np.take(x, line, axis), x) for line in lines]


# Constants, types and shapes


def _constant(node: Node) -> Result:
    kinds = {"value_float": "f4", "value_floats": "f4", "value_int": "i8", "value_ints": "i8"}
    if "value" in node.attributes:
        return node.net.known(node.net.load(node.attr("value")))
    (name,) = node.attributes
    return node.net.known(np.array(node.attr(name), kinds[name]))


def _constant_of_shape(node: Node) -> Result:
    value, shape = node.attr("value"), bounded(node.integers(0, "shape"))
    fill = np.zeros(1, np.float32) if value is None else node.net.load(value)
    return node.net.known(np.full(shape, fill.item(), fill.dtype))


def _shape(node: Node) -> Result:
    shape = node.operand(0).shape
    return Known(np.array(shape[node.attr("start", 0) : node.attr("end")], np.int64))


def _range(node: Node) -> Result:
    line = range(*(operator.index(node.known(i).exactly()[()]) for i in range(3)))
    bounded([len(line)])
    return Known(np.array(line, node.known(0).value.dtype))


def _rounded(x: Known, dtype: np.dtype[Any]) -> Known:
    """A constant that another type may not hold: both readings lie within the error."""
    x = x.numbers()
    lost = abs(Known(x.value.astype(dtype)).numbers().value - x.value)
    error = lost if x.error is None else lost + x.error
    return Known(x.value, error * (1 + 1e-9) if error.any() else None)


def _cast(node: Node) -> Result:
    """What becomes a floating-point number stays what it is over the reals."""
    x = node.operand(0)
    if node.operator == "CastLike":
        like = node.operand(1)
        dtype = like.value.dtype if isinstance(like, Known) else np.dtype(np.float64)
    else:
        node.attr("saturate"), node.attr("round_mode")
        dtype = onnx.helper.tensor_dtype_to_np_dtype(node.attr("to"))
        node.net.known(np.zeros(0, dtype))
    if dtype in FLOATS.values():
        return _rounded(x, dtype) if isinstance(x, Known) else x
    if not isinstance(x, Known) or dtype.kind not in "iub":
        raise Unusable(f"a cast to {dtype}")
    value = x.exactly().astype(dtype)
    if dtype.kind != "b" and (value != np.trunc(x.value)).any():
        raise Unusable("a cast overflows")
    return Known(value)


_ARITHMETIC = {
    "Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Div": operator.truediv
}  # fmt: skip
_EXACT: dict[str, Callable[..., Any]] = {
    "Abs": np.abs, "And": np.logical_and, "Ceil": np.ceil, "Equal": np.equal, "Floor": np.floor,
    "Greater": np.greater, "GreaterOrEqual": np.greater_equal, "Less": np.less,
    "LessOrEqual": np.less_equal, "Max": np.maximum, "Min": np.minimum, "Neg": np.negative,
    "NonZero": lambda x: np.array(np.nonzero(x)), "Not": np.logical_not, "Or": np.logical_or,
    "Relu": partial(np.maximum, 0), "Sign": np.sign, "Xor": np.logical_xor,
}  # fmt: skip
FOLDED = {*_ARITHMETIC, *_EXACT, "Sqrt"}
"""Operators that `fold` knows."""


def fold(node: Node) -> Known | None:
    """What a node makes of constants; None where it reads others or is not known here."""
    known = [operand for operand in node.operands if isinstance(operand, Known)]
    if len(known) < max(1, len(node.operands)) or node.attributes or node.operator not in FOLDED:
        return None
    bounded(np.broadcast_shapes(*(k.shape for k in known)))
    if node.operator == "Sqrt":
        x = known[0].numbers().exactly()
        root = np.sqrt(x)
        even = np.frompyfunc(lambda r, x: Fraction(r) ** 2 == Fraction(x), 2, 1)
        error = np.where(even(root.astype(np.float32).astype(np.float64), x), 0.0, 2.0**-22 * root)
        return Known(root, error if error.any() else None)
    if node.operator in _EXACT:
        values, function = [k.exactly() for k in known], _EXACT[node.operator]
        return Known(np.asarray(reduce(function, values) if len(values) > 1 else function(*values)))
    step = _ARITHMETIC[node.operator]
    if not all(k.value.dtype.kind in "iu" for k in known):
        return combined(step, *known, executed=True)
    x, y = (k.exactly() for k in known)
    if step is not operator.truediv:
        return Known(np.asarray(step(x, y)))
    if not y.all():
        raise Unusable("division by zero")
    return Known((np.sign(x) * np.sign(y) * (abs(x) // abs(y))).astype(x.dtype))  # towards zero


# Sums and products


def _sum(node: Node, sign: int = 1, factor: Known | None = None) -> Array:
    """(x + sign y + ...) factor."""
    picks, offset = [], None
    for i in range(len(node.operands)):
        operand, scale = node.operand(i), factor or (MINUS if i and sign < 0 else None)
        if not isinstance(operand, Known) or offset is not None:
            picks.append((node.net.ids(operand), scale))
        elif factor:
            offset = combined(operator.mul, operand, factor)
        else:
            offset = Known((-1 if scale else 1) * operand.numbers().value, operand.error)
    roundings = len(node.operands) - 1 + (EXTRA - 1 if factor or offset else 0)
    return node.net.affine(node.shape(), *picks, offset=offset, roundings=roundings)


def _mean(node: Node) -> Array:
    count = Known(np.array(float(len(node.operands))))
    return _sum(node, factor=combined(operator.truediv, ONE, count))


def _scale(node: Node) -> Array:
    x, factor = node.operand(0), node.operand(1)
    if node.operator == "Mul" and isinstance(x, Known):
        x, factor = factor, x
    if not isinstance(factor, Known):
        raise Unusable("a product or quotient of computed values")
    factor = combined(operator.truediv, ONE, factor) if node.operator == "Div" else factor
    return node.net.affine(node.shape(), (node.net.ids(x), factor), roundings=EXTRA)


def _pow(node: Node) -> Array:
    if (node.known(1).exactly() != 1).any():
        raise Unusable("a power other than one")
    return np.broadcast_to(node.ids(0), node.shape())


def _batch_normalization(node: Node) -> Array:
    """f x - f mean + bias with f = scale / sqrt(variance + epsilon).

    The mean is a block of constants: executors subtract it from x, and what they lose in that is
    small against f x and f mean, but not against their difference.
    """
    node.attr("training_mode", 0, 0), node.attr("spatial", 1, 1), node.attr("momentum")
    if node.outputs > 1:
        raise Unusable("training outputs")
    x, epsilon = node.ids(0), Decimal(node.attr("epsilon", float(np.float32(1e-5))))
    column = (-1, *(1,) * (x.ndim - 2))
    parameters = [node.known(i).numbers().exactly() for i in range(1, 5)]
    with localcontext(prec=60):
        pairs = zip(parameters[0].tolist(), parameters[3].tolist(), strict=True)
        factors = [float(Decimal(s) / (Decimal(v) + epsilon).sqrt()) for s, v in pairs]
    f = np.array(factors).reshape(column)
    factor, minus = (Known(s * f, 2.0**-52 * abs(f) + 1e-300) for s in (1, -1))
    bias, mean = (Known(parameters[i].reshape(column)) for i in (1, 2))
    picks = (x, factor), (node.net.ids(mean), minus)
    return node.net.affine(x.shape, *picks, offset=bias, roundings=EXTRA)


def _swap(x: Array) -> Array:
    return np.swapaxes(x, -1, -2)


def _product(
    node: Node,
    a: Operand,
    b: Operand,
    alpha: Known = ONE,
    picks: Sequence[Factored] = (),
    offset: Known | None = None,
) -> Array:
    """alpha A B + further terms, for A (.., M, K) and B (.., K, L) of which one is constant."""
    turned = not isinstance(a, Known)
    weight, other = (b, a) if turned else (a, b)
    if not isinstance(weight, Known):
        raise Unusable("a product of computed values")
    x = node.net.ids(other)
    weight, x = (weight.moved(_swap), _swap(x)) if turned else (weight, x)
    weight = weight if alpha.is_one else combined(operator.mul, weight, alpha)
    (*stack, m, k), (*lead, height, width) = weight.shape, x.shape
    shared = np.broadcast_shapes(tuple(stack), tuple(lead))
    if math.prod(stack) == 1:  # one matrix for all
        weight = weight.moved(lambda w: w.reshape(1, m, k))
        x = np.moveaxis(x, -2, 0).reshape(1, height, -1)
        layout = np.moveaxis(np.arange(m * x.shape[2]).reshape(m, *lead, width), 0, -2)
    else:
        bounded((*shared, m, k)), bounded((*shared, height, width))
        weight = weight.moved(lambda w: np.broadcast_to(w, (*shared, m, k)).reshape(-1, m, k))
        x = np.broadcast_to(x, (*shared, height, width)).reshape(-1, height, width)
        layout = np.arange(len(x) * m * width)
    layout = layout.reshape(*shared, m, width)
    return node.net.linear(_swap(layout) if turned else layout, weight, x, *picks, offset=offset)


def _matmul(node: Node) -> Array:
    a, b = node.operand(0), node.operand(1)
    if not a.shape or not b.shape:
        raise Unusable("a product with a scalar")
    lost = tuple(axis for axis, x in ((-2, a), (-1, b)) if len(x.shape) == 1)
    a = node.net.moved(np.atleast_2d, a)
    b = node.net.moved(lambda y: y[:, None], b) if -1 in lost else b
    return np.squeeze(_product(node, a, b), lost)


def _gemm(node: Node) -> Array:
    """alpha A' B' + beta C, where ' is an optional transposition."""
    a, b = (
        node.net.moved(np.transpose, node.operand(i)) if node.flag(name, 0) else node.operand(i)
        for i, name in enumerate(("transA", "transB"))
    )
    alpha, beta = (Known(np.array(float(node.attr(name, 1.0)))) for name in ("alpha", "beta"))
    if not node.has(2):
        return _product(node, a, b, alpha)
    c = node.operand(2)
    if not isinstance(c, Known):
        return _product(node, a, b, alpha, [(c, beta)])
    c = c if beta.is_one else combined(operator.mul, c, beta)
    return _product(node, a, b, alpha, offset=c)


# Windows

_AUTOMATIC = ("NOTSET", "", "VALID", "SAME_UPPER", "SAME_LOWER")


def _every(steps: Sequence[int]) -> Any:
    """An index that takes every so many entries of the last axes."""
    return (..., *(slice(None, None, step) for step in steps))


class Window(NamedTuple):
    """What convolutions and poolings have in common: one entry per axis of the image."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    before: list[int]
    after: list[int]
    automatic: str

    def spans(self) -> list[int]:
        """How far the window reaches."""
        return [d * (k - 1) + 1 for d, k in zip(self.dilations, self.kernel, strict=True)]

    def view(self, x: Array) -> Array:
        """The entries under the window at all positions: (.., *image) -> (.., *positions, taps)."""
        n = len(self.kernel)
        view = sliding_window_view(x, self.spans(), tuple(range(-n, 0)))
        view = view[_every(self.strides + self.dilations)]
        bounded(view.shape, _MOST_PRODUCTS)
        return np.asarray(view.reshape(*view.shape[:-n], -1))


def _window(node: Node, image: Sequence[int], kernel: Sequence[int]) -> Window:
    """Read the attributes, with ``auto_pad`` worked out for a window of the image."""
    n = len(image)
    strides, dilations = (list(node.attr(name, [1] * n)) for name in ("strides", "dilations"))
    pads, kernel = list(node.attr("pads", [0] * 2 * n)), list(kernel)
    window = Window(
        kernel,
        strides,
        dilations,
        pads[:n],
        pads[n:],
        node.attr("auto_pad", "NOTSET", *_AUTOMATIC) or "NOTSET",
    )
    if {n, *map(len, window[:5])} != {max(n, 1)} or min(*kernel, *strides, *dilations) < 1:
        raise Unusable("strides, dilations, kernel_shape or pads that make no sense")
    if min(pads) < 0 or list(node.attr("kernel_shape", kernel)) != kernel:
        raise Unusable("negative pads, or a kernel_shape that is not the kernel's")
    if window.automatic == "NOTSET":
        return window
    sizes = zip(image, strides, window.spans(), strict=True)
    totals = [(-(-size // step) - 1) * step + span - size for size, step, span in sizes]
    if window.automatic == "VALID":
        totals = [0] * n
    elif min(totals) < -1 and node.operator != "ConvTranspose":
        raise Unusable("auto_pad where executors move windows that leave out part of the image")
    before, after = _halves([max(0, n) for n in totals], window.automatic == "SAME_UPPER")
    return window._replace(before=before, after=after)


def _halves(totals: Sequence[int], upper: bool) -> tuple[list[int], list[int]]:
    """Padding before and after, the odd one after the image or before it."""
    small, large = [n // 2 for n in totals], [n - n // 2 for n in totals]
    return (small, large) if upper else (large, small)


def _correlation(node: Node, x: Array, weight: Known, window: Window) -> Array:
    """Sums under a window: image numbers (N, C, ..) already padded, weight (O, C / G, ..)."""
    groups, n, c, outputs = node.attr("group", 1), x.shape[0], x.shape[1], weight.shape[0]
    if groups < 1 or weight.shape[1] * groups != c or outputs % groups:
        raise Unusable(f"{c} channels, a weight {weight.shape}, {groups} groups")
    read = window.view(x)
    positions, taps = read.shape[2:-1], read.shape[-1]
    read = read.reshape(n, groups, c // groups, -1, taps).transpose(1, 2, 4, 0, 3)
    weight = weight.moved(lambda w: w.reshape(groups, outputs // groups, -1))
    layout = np.arange(math.prod(bounded((outputs, n, *positions))))
    layout = layout.reshape(outputs, n, *positions).swapaxes(0, 1)
    bias = None
    if node.has(2):
        bias = node.known(2).moved(lambda b: b.reshape(outputs, *(1,) * len(positions)))
    return node.net.linear(
        layout, weight, read.reshape(groups, c // groups * taps, -1), offset=bias
    )


def _conv(node: Node) -> Array:
    x, weight = node.ids(0), node.known(1)
    window = _window(node, x.shape[2:], weight.shape[2:])
    return _correlation(node, _surrounded(x, window.before, window.after), weight, window)


def _conv_transpose(node: Node) -> Array:
    """Entries ``strides`` apart with zeros between, under the kernel upside down."""
    x, weight, groups = node.ids(0), node.known(1), node.attr("group", 1)
    (_, c, *image), (channels, _, *kernel) = x.shape, weight.shape
    window, n = _window(node, image, kernel), len(image)
    extra = list(node.attr("output_padding", [0] * n))
    wanted = list(node.attr("output_shape", []))[-n:]
    apart = [step * (size - 1) for step, size in zip(window.strides, image, strict=True)]
    full = [sum(axis) for axis in zip(apart, extra, window.spans(), strict=True)]
    before, after = window.before, window.after
    if wanted or window.automatic.startswith("SAME"):
        wanted = wanted or [step * size for step, size in zip(window.strides, image, strict=True)]
        totals = [max(0, size - target) for size, target in zip(full, wanted, strict=True)]
        # Unlike everywhere else, only SAME_UPPER puts the odd one after the image.
        before, after = _halves(totals, window.automatic == "SAME_UPPER")
    result = [size - a - b for size, a, b in zip(full, before, after, strict=True)]
    if groups < 1 or c != channels or c % groups or min(extra) < 0 or min(result) < 1:
        raise Unusable(f"an image {x.shape}, a weight {weight.shape}, an output {result}")
    if wanted and result != wanted:
        raise Unusable(f"output_shape={wanted} beyond the image")
    spread = np.full(bounded((*x.shape[:2], *(size + 1 for size in apart))), -1)
    spread[_every(window.strides)] = x
    margins = [span - 1 for span in window.spans()]
    start = [margin - a for margin, a in zip(margins, before, strict=True)]
    end = [margin - a + more for margin, a, more in zip(margins, after, extra, strict=True)]

    def turned(w: Array) -> Array:
        w = w.reshape(groups, c // groups, -1, *kernel).swapaxes(1, 2)
        return np.flip(w.reshape(-1, c // groups, *kernel), tuple(range(2, n + 2)))

    window = window._replace(strides=[1] * n)
    return _correlation(node, _surrounded(spread, start, end), weight.moved(turned), window)


def _pool(node: Node) -> tuple[Window, list[int]]:
    """The window of a pooling, and the padding behind the image that ``ceil_mode`` needs."""
    image = node.operand(0).shape[2:]
    window, stretch = _window(node, image, node.attr("kernel_shape")), [0] * len(image)
    if node.flag("ceil_mode", 0) and window.automatic == "NOTSET":
        for axis, (step, span) in enumerate(zip(window.strides, window.spans(), strict=True)):
            begun = image[axis] + window.before[axis]
            size = begun + window.after[axis] - span
            last = -(-size // step)
            if last * step >= begun:  # a window that begins in the padding
                if node.version < 22:
                    raise Unusable("ceil_mode where ONNX and executors count windows differently")
                last -= 1
            stretch[axis] = max(0, last * step - size)
    return window, stretch


def _max_pool(node: Node) -> Array:
    """The largest entry of a window; taps in the padding repeat its last entry."""
    node.attr("storage_order", 0, 0)
    x, (window, stretch) = node.ids(0), _pool(node)
    places = np.arange(math.prod(x.shape[2:])).reshape(x.shape[2:])
    after = [a + b for a, b in zip(window.after, stretch, strict=True)]
    table = window.view(_surrounded(places, window.before, after))
    last = table.max(axis=-1, keepdims=True)
    if (last < 0).any():
        raise Unusable("a window that lies in the padding")
    bounded((*x.shape[:2], *table.shape))
    stack = x.reshape(*x.shape[:2], -1)[:, :, np.where(table < 0, last, table)]
    return node.net.largest_row(np.moveaxis(stack, -1, 0))


def _average_pool(node: Node) -> Array:
    x, (window, stretch) = node.ids(0), _pool(node)
    inside = float(node.flag("count_include_pad", 0))
    one = _surrounded(np.ones(x.shape[2:]), window.before, window.after, fill=inside)
    counts = window.view(_surrounded(one, [0] * len(stretch), stretch, fill=0)).sum(axis=-1)
    share = combined(operator.truediv, ONE, Known(counts))
    x = _surrounded(_surrounded(x, window.before, window.after), [0] * len(stretch), stretch)
    read = window.view(x)
    shape, taps = read.shape[:-1], read.shape[-1]
    read = np.moveaxis(read, -1, 0).reshape(1, taps, -1)
    if counts.min() == counts.max():
        weight = share.moved(lambda s: np.full((1, 1, taps), s.flat[0]))
        return node.net.linear(shape, weight, read)
    total = node.net.linear(shape, Known(np.ones((1, 1, taps))), read)
    return node.net.affine(shape, (total, share), roundings=EXTRA)


# Reductions, extrema, curves


def _stacked(node: Node) -> Array:
    """What is reduced along the first axis, the result's shape along the others."""
    x, rank, keep = node.ids(0), len(node.operand(0).shape), True
    axes = list(range(2, rank))
    if not node.operator.startswith("Global"):
        keep, nothing = node.flag("keepdims", 1), node.flag("noop_with_empty_axes", 0)
        axes = node.integers(1, "axes", None) or ([] if nothing else list(range(rank)))
        axes = sorted({range(rank)[axis] for axis in axes})
    if not x.size:
        raise Unusable("a reduction of nothing")
    kept = [axis for axis in range(rank) if axis not in axes]
    shape = [1 if i in axes else n for i, n in enumerate(x.shape) if keep or i in kept]
    count = math.prod(x.shape[axis] for axis in axes)
    return x.transpose(*axes, *kept).reshape(count, *shape)


def _reduce_sum(node: Node) -> Array:
    stack = _stacked(node)
    count = Known(np.full((1, 1, len(stack)), float(len(stack))))
    weight = Known(np.ones(count.shape))
    if node.operator != "ReduceSum":
        weight = combined(operator.truediv, weight, count)
    return node.net.linear(stack.shape[1:], weight, stack.reshape(1, len(stack), -1))


def _reduce_max(node: Node) -> Array:
    stack, net = _stacked(node), node.net
    if node.operator != "ReduceMin":
        return net.largest_row(stack)
    return net.negative(net.largest_row(net.negative(stack)))


def _extremum(node: Node) -> Array:
    """The computed values against each other, then against the constants one by one."""
    net, sign, _ = node.net, 1 if node.operator == "Max" else -1, node.shape()
    operands = [node.operand(i) for i in range(len(node.operands))]
    row = [o for o in operands if not isinstance(o, Known)]
    if sign < 0:
        row = [net.negative(x) for x in row]
    x = net.largest(row)
    x = x if sign > 0 else net.negative(x)
    for operand in operands:
        x = net.limited(x, operand, sign) if isinstance(operand, Known) else x
    return x


def _between(node: Node, x: Array, low: float, high: float) -> Array:
    """min(max(x, low), high); limits beyond the range of binary32 do nothing."""
    largest = float(np.finfo(np.float32).max)
    x = node.net.limited(x, Known(np.array(low)), 1) if low > -largest else x
    return node.net.limited(x, Known(np.array(high)), -1) if high < largest else x


def _clip(node: Node) -> Array:
    limits = []
    for i, name, default in ((1, "min", -math.inf), (2, "max", math.inf)):
        limit = float(node.attr(name, default))
        limit = float(node.known(i).exactly().item()) if node.has(i) else limit
        if math.isnan(limit) or limit == -default:
            raise Unusable(f"{name} is {limit}")
        limits.append(limit)
    return _between(node, node.ids(0), *limits)


def _hard_sigmoid(node: Node) -> Array:
    x = node.ids(0)
    alpha, beta = (
        Known(np.array(float(node.attr(name, np.float32(default)))))
        for name, default in (("alpha", 0.2), ("beta", 0.5))
    )
    line = node.net.affine(x.shape, (x, alpha), offset=beta, roundings=EXTRA)
    return _between(node, line, 0.0, 1.0)


def _leaky(node: Node) -> Array:
    x, slope = node.ids(0), np.array(0.0)
    if node.operator == "PRelu":
        slope = node.known(1).numbers().exactly()
    else:
        slope = np.array(float(node.attr("alpha", np.float32(0.01))))
    return node.net.curve("leaky", x, np.broadcast_to(slope, x.shape).ravel())


def _curve(node: Node) -> Array:
    return node.net.curve(node.operator.lower(), node.ids(0))


OPERATORS: dict[str, tuple[Callable[[Node], Result], int]] = {
    **{
        name: (partial(_move, move, inputs), since)
        for name, (move, since, inputs) in _MOVES.items()
    },
    **dict.fromkeys(("Abs", "Relu", "Sigmoid", "Sign", "Tanh"), (_curve, 1)),
    **dict.fromkeys(("GlobalAveragePool", "ReduceMean", "ReduceSum"), (_reduce_sum, 1)),
    **dict.fromkeys(("GlobalMaxPool", "ReduceMax", "ReduceMin"), (_reduce_max, 1)),
    "Add": (_sum, 7),
    "AveragePool": (_average_pool, 1),
    "BatchNormalization": (_batch_normalization, 7),
    "Cast": (_cast, 6),
    "CastLike": (_cast, 15),
    "Clip": (_clip, 6),
    "Concat": (_concat, 4),
    "Constant": (_constant, 1),
    "ConstantOfShape": (_constant_of_shape, 1),
    "Conv": (_conv, 1),
    "ConvTranspose": (_conv_transpose, 1),
    "Div": (_scale, 7),
    "Gemm": (_gemm, 7),
    "HardSigmoid": (_hard_sigmoid, 1),
    "LeakyRelu": (_leaky, 1),
    "MatMul": (_matmul, 1),
    "Max": (_extremum, 1),
    "MaxPool": (_max_pool, 1),
    "Mean": (_mean, 1),
    "Min": (_extremum, 1),
    "Mul": (_scale, 7),
    "Neg": (lambda node: node.net.negative(node.ids(0)), 1),
    "PRelu": (_leaky, 7),
    "Pow": (_pow, 7),
    "Range": (_range, 1),
    "Shape": (_shape, 1),
    "Size": (lambda node: Known(np.array(math.prod(node.operand(0).shape))), 1),
    "Split": (_split, 1),
    "Sub": (partial(_sum, sign=-1), 7),
    "Sum": (_sum, 1),
}
"""Operator -> (function, the oldest version of the operator that it reads)."""
