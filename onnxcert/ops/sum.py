"""Sum: add or subtract values of the same length (residual connections)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from onnxcert.arrays import Array, BoolArray
from onnxcert.ops.base import Affine, Part, entrywise_part, register


@register
@dataclass(frozen=True)
class Sum(Affine):
    """y = s_1 x_1 + ... + s_k x_k with signs s_i of 1 or -1."""

    size: int
    signs: tuple[int, ...]
    keeps_whole: ClassVar[bool] = True

    @property
    def input_sizes(self) -> tuple[int, ...]:
        """All of one length."""
        return (self.size,) * len(self.signs)

    @property
    def output_size(self) -> int:
        """That length."""
        return self.size

    @property
    def error_terms(self) -> int:
        """One rounding per addition."""
        return len(self.signs)

    @property
    def roundings(self) -> int:
        """One less than values."""
        return len(self.signs) - 1

    @property
    def adds_entries(self) -> bool:
        """Nothing else."""
        return True

    def part(self, wanted: BoolArray) -> Part:
        """Those entries."""
        return entrywise_part(self, wanted)

    def apply(self, inputs: Sequence[Array]) -> Array:
        """Add up."""
        total = inputs[0] if self.signs[0] > 0 else -inputs[0]
        for x, sign in zip(inputs[1:], self.signs[1:], strict=True):
            total = total + x if sign > 0 else total - x
        return total

    def transpose(self, rows: Array) -> list[Array]:
        """The rows themselves, or their negation."""
        return [rows if sign > 0 else -rows for sign in self.signs]

    def transpose_on(self, rows: Array, columns: Array) -> list[tuple[Array, Array | None]]:
        """The same columns."""
        return [(rows if sign > 0 else -rows, columns) for sign in self.signs]

    def resized(self, size: int) -> Sum:
        """The same signs."""
        return Sum(size, self.signs)

    def locality(self, ranks: Sequence[Array | None]) -> Array | None:
        """Entry by entry."""
        return next((rank for rank in ranks if rank is not None), None)

    def absolute(self) -> Sum:
        """All signs positive."""
        return Sum(self.size, (1,) * len(self.signs))

    @classmethod
    def examples(cls, rng: np.random.Generator) -> list[Self]:
        """Addition, subtraction, three terms."""
        del rng
        return [cls(3, (1, 1)), cls(3, (1, -1)), cls(2, (-1, 1, -1))]
