"""Scale: multiply and shift each entry (arithmetic with constants, BatchNormalization)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from onnxcert.arrays import Array, BoolArray, FloatArray, array_module
from onnxcert.ops.base import EXTRA_ROUNDINGS, Affine, Part, entrywise_part, register


@register
@dataclass(frozen=True)
class Scale(Affine):
    """y = factor x + offset, entry by entry.

    Attributes:
        size: length of x.
        factor: (n,) or None for one.
        offset: (n,) or None for zero.
        parts: (n,) sum of the absolute values of the terms that the offset is a sum of in the
            file, or None where it is one number there; only executions depend on it.
    """

    size: int
    factor: FloatArray | None = None
    offset: FloatArray | None = None
    parts: FloatArray | None = None
    keeps_whole: ClassVar[bool] = True

    @property
    def input_sizes(self) -> tuple[int, ...]:
        """n."""
        return (self.size,)

    @property
    def output_size(self) -> int:
        """n."""
        return self.size

    @property
    def error_terms(self) -> int:
        """One product and one sum, and what made the factors when a file's division did."""
        return 6

    @property
    def roundings(self) -> int:
        """Few."""
        return EXTRA_ROUNDINGS

    @property
    def adds_bias(self) -> bool:
        """Where there is an offset."""
        return self.offset is not None

    @property
    def bias(self) -> Array | None:
        """The offset."""
        return self.offset

    @property
    def bias_parts(self) -> Array | None:
        """The parts of the offset."""
        return self.offset if self.parts is None else self.parts

    def part(self, wanted: BoolArray) -> Part:
        """Those entries."""
        return entrywise_part(self, wanted)

    def apply(self, inputs: Sequence[Array]) -> Array:
        """Factor x."""
        return inputs[0] if self.factor is None else self.factor * inputs[0]

    def transpose(self, rows: Array) -> list[Array]:
        """The same product."""
        return [rows if self.factor is None else self.factor * rows]

    def transpose_on(self, rows: Array, columns: Array) -> list[tuple[Array, Array | None]]:
        """The same columns."""
        return [(rows if self.factor is None else self.factor[columns] * rows, columns)]

    @property
    def diagonal(self) -> tuple[Array, Array]:
        """The factor and the offset."""
        like = self.offset if self.factor is None else self.factor
        xp = array_module(like)
        factor = xp.ones(self.size) if self.factor is None else self.factor
        return factor, xp.zeros(self.size) if self.offset is None else self.offset

    def locality(self, ranks: Sequence[Array | None]) -> Array | None:
        """Entry by entry."""
        return ranks[0]

    def absolute(self) -> Scale:
        """|factor| and |offset|."""
        factor, offset = (
            None if part is None else array_module(part).abs(part)
            for part in (self.factor, self.offset)
        )
        return Scale(self.size, factor, offset)

    @classmethod
    def examples(cls, rng: np.random.Generator) -> list[Self]:
        """Each part alone and both."""
        factor, offset = rng.normal(size=(2, 4))
        return [cls(4, factor, offset), cls(4, factor), cls(4, None, offset)]
