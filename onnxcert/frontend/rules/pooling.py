"""Pooling over windows: a mean is a convolution, a maximum a tree of maxima over the taps."""

from __future__ import annotations

import numpy as np

from onnxcert.arrays import FloatArray, IntArray, Window
from onnxcert.frontend.rules.convolution import (
    Geometry,
    Pair,
    checked_window,
    image_shape,
)
from onnxcert.frontend.rules.extremum import largest_row
from onnxcert.frontend.rules.registry import Call, reads
from onnxcert.frontend.tensors import NoRule, Operand, Tensor, checked_size
from onnxcert.ops import Convolution

_CLEAR_CEIL_MODE = 22
"""Since this version of the operators there is one reading of ``ceil_mode``."""


def _pooled_window(call: Call, tensor: Tensor) -> tuple[Geometry, Window, Pair]:
    """Geometry, window with the padding that ``ceil_mode`` needs, and explicit padding after."""
    kernel = tuple(int(n) for n in call.attributes["kernel_shape"])
    geometry = Geometry.read(call, tensor.shape, kernel)
    before, after = geometry.padding()
    stretched = list(after)
    # auto_pad other than NOTSET fixes the output size, so there is nothing to round up.
    if call.attributes.get("ceil_mode", 0) and geometry.automatic == "NOTSET":
        for axis in range(2):
            size = geometry.spatial[axis] + before[axis] + after[axis] - geometry.span[axis]
            step = geometry.stride[axis]
            positions = -(-size // step) + 1
            # A window must not begin in the padding after the image. ONNX says so since version
            # 22; onnxruntime has always done it, also where older definitions say otherwise.
            if (positions - 1) * step >= geometry.spatial[axis] + before[axis]:
                if call.version < _CLEAR_CEIL_MODE:
                    raise NoRule("ceil_mode where ONNX and onnxruntime count windows differently")
                positions -= 1
            stretched[axis] += max(0, (positions - 1) * step - size)
    rows, columns = stretched
    window = checked_window(tensor.shape[1], geometry, before, (rows, columns))
    checked_size((tensor.shape[1], *window.kernel, *window.positions))
    return geometry, window, after


def _window_positions(window: Window) -> IntArray:
    """(taps, positions): flat position in one image plane, or -1 in the padding."""
    _, height, width = window.image
    plane = np.arange(1.0, height * width + 1.0).reshape(1, 1, height, width)
    single = Window(
        (1, height, width), window.kernel, window.stride, window.dilation, window.padding
    )
    positions: IntArray = single.unfold(plane)[0, 0].astype(np.int64) - 1
    return positions


@reads("MaxPool", note="1-d and 2-d, without indices")
def max_pool(call: Call) -> Operand:
    """The largest entry of each window.

    Where a tap falls into the padding it repeats another tap of the window: the maximum is the
    same, and no number has to stand for minus infinity.
    """
    if call.outputs > 1:
        raise NoRule("the indices of the maxima")
    call.refuse("storage_order", 0)
    tensor = call.tensor(0)
    geometry, window, _ = _pooled_window(call, tensor)
    table = _window_positions(window)
    if (table.max(axis=0) < 0).any():
        raise ValueError("a window that lies in the padding")
    table = np.where(table < 0, table.max(axis=0), table)
    images, channels = tensor.shape[:2]
    shape = image_shape(images, channels, window.positions, geometry.dimensions)

    stack = call.build.moved(
        [tensor],
        lambda x: np.moveaxis(x.reshape(images, channels, -1)[:, :, table], 2, 0).reshape(
            len(table), *shape
        ),
    )
    return largest_row(call.build, stack)


@reads("AveragePool", note="1-d and 2-d")
def average_pool(call: Call) -> Operand:
    """The mean of each window: a convolution with one group per channel.

    Where windows have different counts (padding left out of the mean) the convolution sums and
    a scale divides.
    """
    tensor = call.tensor(0)
    geometry, window, after = _pooled_window(call, tensor)
    counts = _counts(window, after, bool(call.attributes.get("count_include_pad", 0)))
    channels = tensor.shape[1]
    taps = window.kernel[0] * window.kernel[1]
    uniform = bool((counts == counts[0]).all())
    weight = np.full((channels, 1, taps), 1.0 / counts[0] if uniform else 1.0)
    op = Convolution(weight, window, None, tensor.shape[0])
    made = call.build.apply(op, call.build.flat(tensor))
    shape = image_shape(tensor.shape[0], channels, window.positions, geometry.dimensions)
    result = Tensor.whole(made, shape)
    if uniform:
        return result
    return call.build.scale(result, (1.0 / counts).reshape(shape[2:]), None)


def _counts(window: Window, after: Pair, include_padding: bool) -> FloatArray:
    """How many entries each window's mean is over, (positions,)."""
    top, left = window.padding[:2]
    _, height, width = window.image
    padded = np.zeros((1, 1, *window.padded))
    if include_padding:
        padded[..., : top + height + after[0], : left + width + after[1]] = 1.0
    else:
        padded[..., top : top + height, left : left + width] = 1.0
    bare = Window((1, *window.padded), window.kernel, window.stride, window.dilation)
    counts: FloatArray = bare.unfold(padded)[0, 0].sum(axis=0)
    if (counts == 0).any():
        raise ValueError("a window that lies in the padding")
    return counts
