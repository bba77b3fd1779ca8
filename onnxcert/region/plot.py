"""Pictures of boxes: widths as images where inputs are images, else as bars (extra ``plot``)."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxcert.arrays import FloatArray
from onnxcert.errors import UsageError
from onnxcert.pictures import check_format, new_figure, save_figure

_COLUMNS = 8
_MOST = 32
"""Boxes in one picture; further ones are left out."""

_CHANNELS = (1, 3)


def image_shape(shape: Sequence[int], size: int) -> tuple[int, int, int] | None:
    """(channels, height, width) of an input, if it is an image.

    Args:
        shape: of the first input tensor; a batch of one, channels first. A flat vector counts as
            an image if it fills a square of at least 5 x 5.
        size: number of elements of all input tensors.
    """
    if math.prod(shape) != size:
        return None
    inner = tuple(shape[1:]) if len(shape) > 1 and shape[0] == 1 else tuple(shape)
    if len(inner) == 2 and min(inner) > 1:
        return (1, inner[0], inner[1])
    if len(inner) == 3 and inner[0] in _CHANNELS:
        return (inner[0], inner[1], inner[2])
    side = math.isqrt(size)
    if len(inner) == 1 and side * side == size and side >= 5:
        return (1, side, side)
    return None


def draw(
    path: str | os.PathLike[str], widths: Mapping[int, FloatArray], shape: Sequence[int]
) -> None:
    """Draw boxes side by side on one colour scale, or as bars below and above zero.

    Args:
        path: of the picture; its ending says the format; none is PNG.
        widths: number of an input -> (2, n) widths below and above it.
        shape: of the first input tensor.

    Raises:
        UsageError: matplotlib is missing, there is nothing to draw, or the file cannot be written.
    """
    if not widths:
        raise UsageError("there is no box to draw", place=os.fspath(path))
    check_format(path)
    chosen = dict(sorted(widths.items())[:_MOST])
    columns = min(_COLUMNS, len(chosen))
    rows = math.ceil(len(chosen) / columns)
    figure = new_figure(figsize=(1.9 * columns + 0.8, 2.1 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    image = image_shape(shape, next(iter(chosen.values())).shape[1])
    largest = max(float(sides.sum(axis=0).max()) for sides in chosen.values())
    drawn: Any = None
    for axis, (number, sides) in zip(axes, chosen.items(), strict=False):
        axis.set_title(f"input {number}", fontsize=8)
        if image is None:
            place = np.arange(sides.shape[1])
            axis.bar(place, sides[1])
            axis.bar(place, -sides[0])
            axis.tick_params(labelsize=6)
            continue
        picture = sides.sum(axis=0).reshape(image).mean(axis=0)
        drawn = axis.imshow(picture, vmin=0.0, vmax=largest, cmap="viridis")
        axis.set_axis_off()
    for axis in axes[len(chosen) :]:
        axis.set_axis_off()
    if drawn is not None:
        figure.colorbar(drawn, ax=list(axes), shrink=0.8, label="width")
    save_figure(figure, path)
