"""BandedLinear: a matrix most of which is zero in blocks, which products leave out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

import numpy as np

from onnxcert.arrays import Array, BoolArray, FloatArray, array_module
from onnxcert.ops.bands import Bands
from onnxcert.ops.base import EXTRA_ROUNDINGS, Affine, Part, register


@register
@dataclass(frozen=True)
class BandedLinear(Affine):
    """y = W x + b; see `onnxcert.ops.bands`.

    Attributes:
        weight: (m, k), its rows in an order in which neighbours read the same.
        offset: (m,).
    """

    weight: FloatArray
    offset: FloatArray
    keeps_whole: ClassVar[bool] = True

    @cached_property
    def bands(self) -> Bands:
        """Where the weight is not zero."""
        return Bands.of(self.weight)

    @property
    def input_sizes(self) -> tuple[int, ...]:
        """k."""
        return (int(self.weight.shape[1]),)

    @property
    def output_size(self) -> int:
        """m."""
        return int(self.weight.shape[0])

    @property
    def error_terms(self) -> int:
        """k products forward, m in the transpose, and the bias."""
        return int(max(self.weight.shape)) + 1

    @property
    def roundings(self) -> int:
        """Only the k products forward."""
        return int(self.weight.shape[1]) + EXTRA_ROUNDINGS

    @property
    def bias(self) -> Array:
        """The offset."""
        return self.offset

    def apply(self, inputs: Sequence[Array]) -> Array:
        """W x."""
        return self.bands.before(inputs[0])

    def transpose(self, rows: Array) -> list[Array]:
        """G W."""
        return [self.bands.after(rows)]

    def transpose_on(self, rows: Array, columns: Array) -> list[tuple[Array, Array | None]]:
        """G W with the rows of W that matter."""
        return [(rows @ self.weight[columns], None)]

    def one_hot_rows(self, index: Array) -> list[tuple[Array, Array | None]]:
        """Rows of W."""
        return [(self.weight[index], None)]

    def part(self, wanted: BoolArray) -> Part:
        """The rows of W that are wanted, and what they read."""
        weight = self.weight[wanted]
        reads = (weight != 0).any(axis=0)
        if not reads.any():
            reads[0] = True
        return Part(BandedLinear(weight[:, reads], self.offset[wanted]), (reads,), wanted)

    def absolute(self) -> BandedLinear:
        """|W| and |b|."""
        xp = array_module(self.weight)
        return BandedLinear(xp.abs(self.weight), xp.abs(self.offset))

    @classmethod
    def examples(cls, rng: np.random.Generator) -> list[Self]:
        """Two bands that have no column in common, and a matrix without zeros."""
        weight = np.zeros((128, 192))
        weight[:64, :80] = rng.normal(size=(64, 80))
        weight[64:, 128:] = rng.normal(size=(64, 64))
        return [cls(weight, rng.normal(size=128)), cls(rng.normal(size=(3, 4)), rng.normal(size=3))]
