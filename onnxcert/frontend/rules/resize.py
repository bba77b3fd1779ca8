"""Upsample and Resize by whole factors with the nearest neighbour: entries are repeated."""

from __future__ import annotations

import numpy as np

from onnxcert.arrays import Array, IntArray
from onnxcert.frontend.rules.registry import Call, reads
from onnxcert.frontend.tensors import NoRule, Operand, checked_size


@reads("Upsample", since=7, moves=True, note="nearest, integer scales")
def upsample(call: Call) -> Operand:
    """Repeat each entry along each axis."""
    call.refuse("mode", "nearest")
    scales = call.attributes.get("scales")
    if scales is None:
        scales = call.constant(1, "the scales")
    return _nearest(call, _whole_numbers(scales), "asymmetric", "floor")


@reads("Resize", since=11, moves=True, note="nearest, integer scales")
def resize(call: Call) -> Operand:
    """As Upsample, with a choice of how positions are mapped and rounded."""
    call.refuse("mode", "nearest")
    shape = call.operand(0).shape
    axes = [int(a) for a in call.attributes.get("axes", range(len(shape)))]
    if call.has(3):
        call.refuse("keep_aspect_ratio_policy", "stretch")
        sizes = call.constant(3, "the sizes")
        scales = [size / shape[axis] for size, axis in zip(sizes, axes, strict=True)]
    else:
        scales = list(call.constant(2, "the scales"))
    factors = [1] * len(shape)
    for axis, factor in zip(axes, _whole_numbers(scales), strict=True):
        factors[axis] = factor
    mapping = str(call.attributes.get("coordinate_transformation_mode", "half_pixel"))
    rounding = str(call.attributes.get("nearest_mode", "round_prefer_floor"))
    return _nearest(call, factors, mapping, rounding)


def _whole_numbers(scales: object) -> list[int]:
    numbers = np.asarray(scales, dtype=np.float64)
    if (numbers != np.round(numbers)).any() or (numbers < 1).any():
        raise NoRule(f"scales {numbers.tolist()}")
    return [int(number) for number in numbers]


def _nearest(call: Call, factors: list[int], mapping: str, rounding: str) -> Operand:
    operand = call.operand(0)
    checked_size((*operand.shape, *factors))
    lines = [
        _sources(length, factor, mapping, rounding)
        for length, factor in zip(operand.shape, factors, strict=True)
    ]

    def move(x: Array) -> Array:
        for axis, line in enumerate(lines):
            x = np.take(x, line, axis=axis)
        return x

    return call.build.rearrange([operand], move)


def _sources(length: int, factor: int, mapping: str, rounding: str) -> IntArray:
    """Which entry each place of a stretched axis repeats, in exact integer arithmetic."""
    if factor == 1:
        return np.arange(length)
    place = np.arange(length * factor)
    # The position in the input is top / bottom.
    if mapping == "asymmetric":
        top, bottom = place, factor
    elif mapping in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric"):
        top, bottom = 2 * place + 1 - factor, 2 * factor
    elif mapping == "align_corners":
        top, bottom = place * (length - 1), length * factor - 1
    elif mapping == "tf_half_pixel_for_nn":
        top, bottom = 2 * place + 1, 2 * factor
    else:
        raise NoRule(f"coordinate_transformation_mode={mapping}")
    if rounding == "floor":
        chosen = top // bottom
    elif rounding == "ceil":
        chosen = -(-top // bottom)
    elif rounding == "round_prefer_ceil":
        chosen = (2 * top + bottom) // (2 * bottom)
    elif rounding == "round_prefer_floor":
        chosen = -((bottom - 2 * top) // (2 * bottom))
    else:
        raise NoRule(f"nearest_mode={rounding}")
    return np.clip(chosen, 0, length - 1)
