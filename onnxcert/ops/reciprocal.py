"""Reciprocal: 1 / x where x keeps away from zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from onnxcert.arrays import Array, array_module
from onnxcert.ops.base import register
from onnxcert.ops.convex import Convex
from onnxcert.sets import Box

NEAREST = 2.0**-100
"""Numbers nearer to zero count as zero: executions may take them for it."""

_FARTHEST = 2.0**500
"""Squares of numbers farther from zero may overflow, and slopes vanish."""


@register
@dataclass(frozen=True)
class Reciprocal(Convex):
    """1 / x: convex and falling right of zero, concave and falling left of it.

    On an interval that contains zero nothing is known of it, neither a bound nor a line.
    """

    size: int
    roundings: ClassVar[int] = 4

    @property
    def even(self) -> bool:
        """It is odd."""
        return False

    def defined(self, box: Box) -> Array:
        """Where the interval keeps away from zero and from infinity, so that slopes are known."""
        return super().defined(box) & _apart(box) & (box.magnitude <= _FARTHEST)

    def interval(self, boxes: Sequence[Box], unit: float) -> Box:
        """The values at the ends; everything where zero lies between."""
        box = boxes[0]
        xp = array_module(box.lower)
        defined = _apart(box)
        lower, upper = xp.where(defined, box.lower, 1.0), xp.where(defined, box.upper, 1.0)
        found = self.widen(Box(1.0 / upper, 1.0 / lower), unit)
        return Box(xp.where(defined, found.lower, -xp.inf), xp.where(defined, found.upper, xp.inf))

    def value(self, x: Array) -> Array:
        """1 / x; infinite at zero."""
        return 1.0 / x

    def derivative(self, x: Array) -> Array:
        """-1 / x^2."""
        return -1.0 / (x * x)

    def second_derivative(self, x: Array) -> Array:
        """2 / x^3."""
        return 2.0 / (x * x * x)

    def inverse_derivative(self, slope: Array) -> Array:
        """1 / sqrt(slope)."""
        xp = array_module(slope)
        return 1.0 / xp.sqrt(xp.maximum(slope, 1e-300))  # type: ignore[no-any-return]

    def touching_point(self, lower: Array) -> Array:
        """None of its lines cross zero."""
        return -lower

    @classmethod
    def examples(cls, rng: np.random.Generator) -> list[Self]:
        """One size is like another."""
        del rng
        return [cls(3)]


def _apart(box: Box) -> Array:
    """Where the interval keeps away from zero."""
    return (box.lower >= NEAREST) | (box.upper <= -NEAREST)
