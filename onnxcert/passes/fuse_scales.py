"""Contract scales with each other and with the matrix or kernel before or behind them.

Biases of exporters that write MatMul and Add, input normalisation, BatchNormalization.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np

from onnxcert.arrays import FloatArray
from onnxcert.graph import Graph
from onnxcert.ops import Adjoint, Convolution, Linear, Scale, SparseLinear
from onnxcert.passes.base import contract_pairs, matrix_product, product_or_none, shifted


def fuse_scales(graph: Graph) -> Graph:
    """Contract where no digit is lost (see `onnxcert.passes.base`).

    Ensures: the same function over the reals, with at most as many nodes.
    """
    return contract_pairs(
        graph,
        {
            (Scale, Scale): _scale_scale,
            (Linear, Scale): _linear_scale,
            (SparseLinear, Scale): _sparse_scale,
            (Convolution, Scale): _convolution_scale,
            (Adjoint, Scale): _adjoint_scale,
            (Scale, Linear): _scale_linear,
            (Scale, Convolution): _scale_convolution,
        },
    )


def _scale_scale(first: Scale, second: Scale) -> Scale | None:
    safe, offset = shifted(second.factor, first.offset, second.offset)
    if not safe:
        return None
    return Scale(first.size, product_or_none(first.factor, second.factor), offset)


def _periodic(values: FloatArray | None, period: int) -> tuple[bool, FloatArray | None]:
    """Whether values repeat with a period, and one period of them."""
    if values is None:
        return True, None
    table = values.reshape(-1, period)
    return bool((table == table[0]).all()), table[0]


def _linear_scale(first: Linear, second: Scale) -> Linear | None:
    width = first.weight.shape[1]
    repeats, factor = _periodic(second.factor, width)
    repeats_too, outer = _periodic(second.offset, width)
    safe, offset = shifted(factor, first.offset, outer)
    if not (repeats and repeats_too and safe):
        return None
    weight = first.weight if factor is None else first.weight * factor
    return Linear(weight, offset, first.rows)


def _sparse_scale(first: SparseLinear, second: Scale) -> SparseLinear | None:
    safe, offset = shifted(second.factor, first.offset, second.offset)
    if not safe:
        return None
    values = first.values
    if second.factor is not None:
        values = values * second.factor[first.column]
    return replace(first, values=values, offset=offset)


def _per_channel(
    values: FloatArray | None, channels: int, positions: int
) -> tuple[bool, FloatArray | None]:
    """Whether values are the same all over each channel of each image, and one per channel."""
    if values is None:
        return True, None
    table = values.reshape(-1, channels, positions)
    return bool((table == table[:1, :, :1]).all()), table[0, :, 0]


def _convolution_scale(first: Convolution, second: Scale) -> Convolution | None:
    channels, height, width = first.output_shape
    even, factor = _per_channel(second.factor, channels, height * width)
    even_too, outer = _per_channel(second.offset, channels, height * width)
    safe, offset = shifted(factor, first.offset, outer)
    if not (even and even_too and safe):
        return None
    weight = first.weight
    if factor is not None:
        weight = weight * factor.reshape(weight.shape[0], weight.shape[1], 1)
    return replace(first, weight=weight, offset=offset)


def _adjoint_scale(first: Adjoint, second: Scale) -> Adjoint | None:
    inner = first.operator
    if not isinstance(inner, Convolution):
        return None
    channels, height, width = inner.window.image
    even, factor = _per_channel(second.factor, channels, height * width)
    safe, offset = shifted(second.factor, first.offset, second.offset)
    if not (even and safe):
        return None
    if factor is not None:
        inner = _scaled_inputs(inner, factor)
    return Adjoint(inner, offset)


def _scaled_inputs(op: Convolution, factor: FloatArray) -> Convolution:
    """The convolution of images whose channels are multiplied first."""
    groups, _, fan_in = op.weight.shape
    taps = op.window.kernel[0] * op.window.kernel[1]
    per_tap = np.repeat(factor, taps).reshape(groups, 1, fan_in)
    return replace(op, weight=op.weight * per_tap)


def _scale_linear(first: Scale, second: Linear) -> Linear | None:
    height = second.weight.shape[0]
    repeats, factor = _periodic(first.factor, height)
    repeats_too, shift = _periodic(first.offset, height)
    if not (repeats and repeats_too):
        return None
    offset = second.offset
    if shift is not None:
        product = matrix_product(shift[None], second.weight, offset)
        if product is None:
            return None
        offset = product[0]
    weight = second.weight if factor is None else factor[:, None] * second.weight
    return Linear(weight, offset, second.rows)


def _scale_convolution(first: Scale, second: Convolution) -> Convolution | None:
    channels, height, width = second.window.image
    even, factor = _per_channel(first.factor, channels, height * width)
    if not even or first.offset is not None:
        return None
    return _scaled_inputs(second, cast(FloatArray, factor))
