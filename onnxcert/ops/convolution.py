"""Convolution in two dimensions, with groups, dilation and any padding.

One dimension is an image of height one; a mean pooling is a convolution with one group per
channel. Both directions are im2col or col2im round one matrix product: onnxruntime has no double
precision convolution on the CPU, CuPy has none at all, and dense matrices of convolutions lose
everywhere beyond toy sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self, cast

import numpy as np

from onnxcert.arrays import Array, FloatArray, Window, array_module
from onnxcert.ops.base import Affine, register

_CHUNK_NUMBERS = 1 << 18
"""Numbers in one im2col buffer on the host: 2 MB, which stays in the cache of one core. Six shapes
measured took 1.1 to 1.6 times as long with 16 MB, and as long or longer with 0.25 MB."""

_DEVICE_NUMBERS = 1 << 26
"""The same where launching a kernel costs more than memory does."""

Padding = tuple[int, int, int, int]

_TILE = 4
"""Side of the square of positions whose neurons are bounded together."""


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

    @property
    def output_channels(self) -> int:
        """Over all groups."""
        return int(self.weight.shape[0] * self.weight.shape[1])

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one output image."""
        return (self.output_channels, *self.window.positions)

    @property
    def input_sizes(self) -> tuple[int, ...]:
        """Images x channels x height x width."""
        return (self.images * int(np.prod(self.window.image)),)

    @property
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

    @property
    def bias(self) -> Array | None:
        """The offset of each channel, at every position of every image."""
        if self.offset is None:
            return None
        xp = array_module(self.offset)
        positions = int(np.prod(self.window.positions))
        return xp.tile(xp.repeat(self.offset, positions), self.images)  # type: ignore[no-any-return]

    def _by_chunks(self, images: Array, run: Callable[[Array], Array], width: int) -> Array:
        """Apply ``run`` to slices of the images so that its buffer stays small."""
        taps = self.window.kernel[0] * self.window.kernel[1]
        per_image = self.window.image[0] * taps * int(np.prod(self.window.positions))
        most = _CHUNK_NUMBERS if isinstance(images, np.ndarray) else _DEVICE_NUMBERS
        step = max(1, most // max(1, per_image))
        if len(images) <= step:
            return run(images)
        xp = array_module(images)
        result = xp.empty(
            (len(images), width), dtype=np.result_type(images.dtype, self.weight.dtype)
        )
        for start in range(0, len(images), step):
            result[start : start + step] = run(images[start : start + step])
        return cast(Array, result)

    def apply(self, inputs: Sequence[Array]) -> Array:
        """im2col, then one product per group."""
        x = inputs[0]
        groups, _, fan_in = self.weight.shape

        def run(images: Array) -> Array:
            columns = self.window.unfold(images).reshape(len(images), groups, fan_in, -1)
            return (self.weight @ columns).reshape(len(images), -1)

        images = x.reshape(-1, *self.window.image)
        width = self.output_size // self.images
        return self._by_chunks(images, run, width).reshape(len(x), self.output_size)

    @cached_property
    def _reversed(self) -> Convolution | None:
        """The transpose as a convolution with the kernel turned round.

        That is one with stride 1. It gathers where col2im adds up, which is 1.3 to 1.8 times as
        fast unless its images have many more channels (3 to 16: half as fast).
        """
        window, (groups, per_group, fan_in) = self.window, self.weight.shape
        channels = fan_in // (window.kernel[0] * window.kernel[1])
        spans = [d * (k - 1) for d, k in zip(window.dilation, window.kernel, strict=True)]
        padding = tuple(span - p for span, p in zip(spans * 2, window.padding, strict=True))
        if window.stride != (1, 1) or per_group > 2 * channels or min(padding) < 0:
            return None
        weight = self.weight.reshape(groups, per_group, channels, *window.kernel)
        turned = weight[:, :, :, ::-1, ::-1].transpose(0, 2, 1, 3, 4)
        image = (groups * per_group, *window.positions)
        back = Window(image, window.kernel, (1, 1), window.dilation, cast(Padding, padding))
        kernel = array_module(turned).ascontiguousarray(turned.reshape(groups, channels, -1))
        return Convolution(kernel, back, None, self.images)

    def transpose(self, rows: Array) -> list[Array]:
        """A convolution where it is one; else one product per group, then col2im."""
        if self._reversed is not None:
            return [self._reversed.apply([rows])]
        groups, per_group, _ = self.weight.shape
        taps = self.window.kernel[0] * self.window.kernel[1]
        adjoint = self.weight.transpose(0, 2, 1)

        def run(images: Array) -> Array:
            columns = adjoint @ images.reshape(len(images), groups, per_group, -1)
            columns = columns.reshape(len(images), self.window.image[0], taps, -1)
            return self.window.fold(columns).reshape(len(images), -1)

        images = rows.reshape(-1, self.output_size // self.images)
        width = self.input_sizes[0] // self.images
        return [self._by_chunks(images, run, width).reshape(len(rows), self.input_sizes[0])]

    def transpose_on(self, rows: Array, columns: Array) -> list[tuple[Array, Array | None]]:
        """The transpose of the part of the image that the columns span."""
        xp = array_module(rows)
        channels, height, width = self.output_shape
        if self.images > 1:
            return super().transpose_on(rows, columns)
        _, y, x = xp.unravel_index(columns, self.output_shape)
        top, bottom = int(y.min()), int(y.max()) + 1
        left, right = int(x.min()), int(x.max()) + 1
        cropped = self.window.crop(top, left, bottom - top, right - left)
        if cropped is None or 2 * (bottom - top) * (right - left) > height * width:
            return super().transpose_on(rows, columns)
        window, origin = cropped
        part = Convolution(self.weight, window, None)
        shape = (channels, bottom - top, right - left)
        dense = xp.zeros((len(rows), *shape))
        position = (columns // (height * width), y - top, x - left)
        dense[:, position[0], position[1], position[2]] = rows
        result = part.transpose(dense.reshape(len(rows), -1))[0]
        numbers = xp.arange(int(np.prod(self.window.image))).reshape(self.window.image)
        rows_there = slice(origin[0], origin[0] + window.image[1])
        columns_there = slice(origin[1], origin[1] + window.image[2])
        return [(result, numbers[:, rows_there, columns_there].ravel())]

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
