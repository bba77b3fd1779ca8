"""Concat: several values one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from onnxcert.arrays import Array, BoolArray, concatenate
from onnxcert.ops.base import Affine, Part, register
from onnxcert.sets import Box


@register
@dataclass(frozen=True)
class Concat(Affine):
    """y = (x_1, ..., x_k); an axis other than the first is a `Select` behind it."""

    stacks: ClassVar[bool] = True
    keeps_whole: ClassVar[bool] = True

    sizes: tuple[int, ...]

    @property
    def input_sizes(self) -> tuple[int, ...]:
        """As given."""
        return self.sizes

    @property
    def output_size(self) -> int:
        """Their sum."""
        return sum(self.sizes)

    @property
    def error_terms(self) -> int:
        """Exact."""
        return 0

    @property
    def roundings(self) -> int:
        """None: values are only moved."""
        return 0

    def apply(self, inputs: Sequence[Array]) -> Array:
        """Join."""
        return concatenate(inputs, axis=1)

    def interval(self, boxes: Sequence[Box], unit: float) -> Box:
        """The intervals one after the other."""
        del unit
        return Box(
            self.apply([box.lower for box in boxes]), self.apply([box.upper for box in boxes])
        )

    def transpose(self, rows: Array) -> list[Array]:
        """Cut."""
        ends = np.cumsum(self.sizes)
        return [rows[:, end - size : end] for size, end in zip(self.sizes, ends, strict=True)]

    def transpose_on(self, rows: Array, columns: Array) -> list[tuple[Array, Array | None]]:
        """Cut the columns where the parts end."""
        ends = np.cumsum(self.sizes)
        parts: list[tuple[Array, Array | None]] = []
        for size, end in zip(self.sizes, ends, strict=True):
            here = (columns >= end - size) & (columns < end)
            parts.append((rows[:, here], columns[here] - (end - size)))
        return parts

    def part(self, wanted: BoolArray) -> Part:
        """What is wanted of each input, without those of which nothing is."""
        reads = tuple(np.split(wanted, np.cumsum(self.sizes)[:-1]))
        sizes = tuple(int(some.sum()) for some in reads if some.any())
        return Part(Concat(sizes), reads, wanted)

    def absolute(self) -> Concat:
        """The map itself is non-negative."""
        return self

    @classmethod
    def examples(cls, rng: np.random.Generator) -> list[Self]:
        """Two and three parts."""
        del rng
        return [cls((2, 3)), cls((1, 4, 2))]
