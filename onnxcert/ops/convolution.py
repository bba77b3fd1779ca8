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

_CHUNK_NUMBERS = 1 << 21
"""Numbers in one im2col buffer: 16 MB, which stays near the last cache level."""


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
        step = max(1, _CHUNK_NUMBERS // max(1, per_image))
        if len(images) <= step:
            return run(images)
        xp = array_module(images)
        result = xp.empty((len(images), width), dtype=np.result_type(images.dtype, self.weight))
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

    def transpose(self, rows: Array) -> list[Array]:
        """One product per group, then col2im."""
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

    @cached_property
    def _sources(self) -> Array:
        """Flat input index of each (channel x tap, position), -1 in the padding."""
        xp = array_module(self.weight)
        numbers = xp.arange(1, int(np.prod(self.window.image)) + 1)
        unfolded = self.window.unfold(numbers.reshape(1, *self.window.image))
        return unfolded.reshape(-1, unfolded.shape[-1]) - 1

    def one_hot_rows(self, index: Array) -> list[Array]:
        """Each row is one kernel, written where its window lies: no product at all."""
        if self.images > 1:
            return super().one_hot_rows(index)
        xp = array_module(self.weight)
        _, per_group, fan_in = self.weight.shape
        channel, position = xp.divmod(index, int(np.prod(self.window.positions)))
        group, member = xp.divmod(channel, per_group)
        taken = (group * fan_in)[:, None] + xp.arange(fan_in)
        sources = self._sources[taken, position[:, None]]
        rows = xp.zeros((len(index), self.input_sizes[0] + 1))
        rows[xp.arange(len(index))[:, None], sources] = self.weight[group, member]
        return [rows[:, :-1]]

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
