"""Maximum of two values (Max, Min, MaxPool, ReduceMax), as the sum it is rewritten into.

max(a, b) = b + relu(a - b). The difference and its relu are ordinary nodes, so branching on which
argument wins, linear bounds and certificates need no rule for maxima. This operator is the sum
that joins them; it takes a as well, with coefficient zero, only to know that its interval is the
interval of the maximum: the sum of the intervals of b and relu(a - b) would be looser.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from onnxcert.arrays import Array, BoolArray, array_module
from onnxcert.ops.base import Affine, Part, entrywise_part, register
from onnxcert.sets import Box


@register
@dataclass(frozen=True)
class Maximum(Affine):
    """y = b + r for inputs (a, b, r), where the graph makes r = relu(a - b)."""

    takes_maximum: ClassVar[bool] = True
    keeps_whole: ClassVar[bool] = True

    size: int

    @property
    def input_sizes(self) -> tuple[int, ...]:
        """a, b and r."""
        return (self.size,) * 3

    @property
    def output_size(self) -> int:
        """As long as each of them."""
        return self.size

    @property
    def error_terms(self) -> int:
        """One addition."""
        return 1

    @property
    def roundings(self) -> int:
        """None: executors compare."""
        return 0

    def part(self, wanted: BoolArray) -> Part:
        """Those entries."""
        return entrywise_part(self, wanted)

    def apply(self, inputs: Sequence[Array]) -> Array:
        """b + r."""
        return inputs[1] + inputs[2]

    def transpose(self, rows: Array) -> list[Array]:
        """Nothing for a."""
        return [array_module(rows).zeros_like(rows), rows, rows]

    def transpose_on(self, rows: Array, columns: Array) -> list[tuple[Array, Array | None]]:
        """The same columns."""
        return [
            (array_module(rows).zeros((len(rows), 0)), columns[:0]),
            (rows, columns),
            (rows, columns),
        ]

    def locality(self, ranks: Sequence[Array | None]) -> Array | None:
        """Entry by entry."""
        return next((rank for rank in ranks if rank is not None), None)

    def absolute(self) -> Maximum:
        """The map itself is non-negative."""
        return self

    def interval(self, boxes: Sequence[Box], unit: float) -> Box:
        """The larger of both ends, which is exact in floating point."""
        del unit
        xp = array_module(boxes[0].lower)
        first, second = boxes[:2]
        return Box(xp.maximum(first.lower, second.lower), xp.maximum(first.upper, second.upper))

    @classmethod
    def examples(cls, rng: np.random.Generator) -> list[Self]:
        """None: it is only right behind the nodes that make r; `maximum` graphs test it."""
        del rng
        return []
