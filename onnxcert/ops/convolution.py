"""Convolution in two dimensions, with groups, dilation and any padding.

One dimension is an image of height one; a mean pooling is a convolution with one group per
channel. Products are those of `onnxcert.ops.sliding`: onnxruntime has no double precision
convolution on the CPU, CuPy has none at all, and dense matrices of convolutions lose everywhere
beyond toy sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

from onnxcert.arrays import Array, BoolArray, FloatArray, Window, array_module
from onnxcert.ops.base import Affine, Part, register
from onnxcert.ops.sliding import Correlation, Transposition

_TILE = 4
"""Side of the square of positions whose neurons are bounded together."""

_Rectangle = tuple[slice, slice]
"""Rows and columns of an image."""


@register
@dataclass(frozen=True)
class Convolution(Affine):
    """Cross-correlation of ``images`` images with one kernel.

    Attributes:
        weight: (groups, output channels per group, input channels per group x taps).
        window: geometry; its image has all input channels.
        offset: (output channels,) or None.
        images: how many images one value holds (the ONNX batch dimension, nearly always 1).
    """

    weight: FloatArray
    window: Window
    offset: FloatArray | None = None
    images: int = 1

    @cached_property
    def output_channels(self) -> int:
        """Over all groups."""
        return int(self.weight.shape[0] * self.weight.shape[1])

    @cached_property
    def output_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one output image."""
        return (self.output_channels, *self.window.positions)

    @cached_property
    def input_sizes(self) -> tuple[int, ...]:
        """Images x channels x height x width."""
        return (self.images * int(np.prod(self.window.image)),)

    @cached_property
    def output_size(self) -> int:
        """Images x output channels x positions."""
        return self.images * int(np.prod(self.output_shape))

    @property
    def error_terms(self) -> int:
        """Products of one position, and in the transpose those that meet one pixel."""
        groups, per_group, fan_in = self.weight.shape
        taps = self.window.kernel[0] * self.window.kernel[1]
        del groups
        return int(max(fan_in, per_group * taps)) + 1

    @cached_property
    def bias(self) -> Array | None:
        """The offset of each channel, at every position of every image."""
        if self.offset is None:
            return None
        xp = array_module(self.offset)
        positions = int(np.prod(self.window.positions))
        return xp.tile(xp.repeat(self.offset, positions), self.images)  # type: ignore[no-any-return]

    @cached_property
    def _forward(self) -> Correlation:
        return Correlation(self.weight, self.window)

    @cached_property
    def _backward(self) -> Transposition:
        return Transposition(self.weight, self.window)

    def apply(self, inputs: Sequence[Array]) -> Array:
        """The products at every position."""
        x = inputs[0]
        images = x.reshape(-1, *self.window.image)
        return self._forward(images).reshape(len(x), self.output_size)

    def forward(self, inputs: Sequence[Array]) -> Array:
        """The products and the offset of their channel."""
        result = self.apply(inputs)
        if self.bias is not None:
            result += self.bias
        return result

    def transpose(self, rows: Array) -> list[Array]:
        """The sums at every pixel."""
        positions = int(np.prod(self.window.positions))
        images = rows.reshape(-1, self.output_channels, positions)
        return [self._backward(images).reshape(len(rows), self.input_sizes[0])]

    def transpose_on(self, rows: Array, columns: Array) -> list[tuple[Array, Array | None]]:
        """The transpose of the part of the image that the columns span."""
        xp = array_module(rows)
        channels, height, width = self.output_shape
        if self.images > 1:
            return super().transpose_on(rows, columns)
        _, y, x = xp.unravel_index(columns, self.output_shape)
        found = self._around(y, x)
        if found is None or 2 * math.prod(found[1].positions) > height * width:
            return super().transpose_on(rows, columns)
        (top, left), window, pixels = found
        part = Convolution(self.weight, window, None)
        dense = xp.zeros((len(rows), channels, *window.positions), rows.dtype)
        position = (columns // (height * width), y - top.start, x - left.start)
        dense[:, position[0], position[1], position[2]] = rows
        result = part.transpose(dense.reshape(len(rows), -1))[0]
        numbers = xp.arange(int(np.prod(self.window.image))).reshape(self.window.image)
        return [(result, numbers[:, pixels[0], pixels[1]].ravel())]

    def part(self, wanted: BoolArray) -> Part:
        """The rectangle of positions round all that is wanted, and of one group its channels."""
        table = wanted.reshape(-1, *self.output_shape[1:])
        channel, row, column = np.nonzero(table)
        found = self._around(row, column) if self.images == 1 else None
        if found is None:
            return super().part(wanted)
        positions, window, pixels = found
        channels = np.full(self.output_channels, len(self.weight) > 1)
        channels[channel] = True
        makes, reads = np.zeros(table.shape, bool), np.zeros(self.window.image, bool)
        makes[channels, positions[0], positions[1]] = True
        reads[:, pixels[0], pixels[1]] = True
        weight = self.weight if channels.all() else self.weight[:, channels]
        offset = None if self.offset is None else self.offset[channels]
        return Part(Convolution(weight, window, offset), (reads.ravel(),), makes.ravel())

    def _around(self, row: Array, column: Array) -> tuple[_Rectangle, Window, _Rectangle] | None:
        """The rectangle round some positions, its window, and the pixels that it reads.

        None where it reads nothing but padding.
        """
        top, left = int(row.min()), int(column.min())
        bottom, right = int(row.max()) + 1, int(column.max()) + 1
        cropped = self.window.crop(top, left, bottom - top, right - left)
        if cropped is None:
            return None
        window, (y, x) = cropped
        pixels = slice(y, y + window.image[1]), slice(x, x + window.image[2])
        return (slice(top, bottom), slice(left, right)), window, pixels

    @property
    def sliding(self) -> Window | None:
        """The window of a single image."""
        return self.window if self.images == 1 else None

    def over(self, window: Window) -> Convolution:
        """The same kernel over another image."""
        return Convolution(self.weight, window, self.offset)

    def locality(self, ranks: Sequence[Array | None]) -> Array | None:
        """Tile by tile, all channels of a tile together."""
        del ranks
        if self.images > 1:
            return None
        _, height, width = self.output_shape
        y, x = np.divmod(np.arange(height * width), width)
        tile = (y // _TILE) * (width // _TILE + 1) + x // _TILE
        order = np.lexsort((x, y, tile))
        rank = np.empty(height * width, dtype=np.int64)
        rank[order] = np.arange(height * width)
        ranks_of = rank * self.output_channels + np.arange(self.output_channels)[:, None]
        return array_module(self.weight).asarray(ranks_of.ravel())  # type: ignore[no-any-return]

    def absolute(self) -> Convolution:
        """|W| and |b|."""
        xp = array_module(self.weight)
        offset = None if self.offset is None else xp.abs(self.offset)
        return Convolution(xp.abs(self.weight), self.window, offset, self.images)

    @classmethod
    def examples(cls, rng: np.random.Generator) -> list[Self]:
        """Strides, dilation, groups and lopsided padding."""
        plain = Window((2, 5, 4), (3, 2), padding=(1, 0, 1, 1))
        strided = Window((4, 6, 6), (2, 2), stride=(2, 3), dilation=(2, 1), padding=(0, 1, 0, 0))
        return [
            cls(rng.normal(size=(1, 3, 12)), plain, rng.normal(size=3)),
            cls(rng.normal(size=(2, 3, 8)), strided, None),
            cls(rng.normal(size=(1, 2, 12)), plain, rng.normal(size=2), 2),
        ]
