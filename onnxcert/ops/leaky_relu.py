"""LeakyRelu and PRelu: a fixed slope left of zero, one for all neurons or one for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from onnxcert.arrays import UNIT_ROUNDOFF, Array, array_module
from onnxcert.ops.base import register
from onnxcert.ops.two_slope import TwoSlope
from onnxcert.sets import Box


@register
@dataclass(frozen=True)
class LeakyRelu(TwoSlope):
    """x for x >= 0, slope x for x < 0; slopes may be negative or exceed one."""

    size: int
    slope: Array
    roundings: ClassVar[int] = 1

    @property
    def slopes(self) -> tuple[Array, float]:
        """The given slope, then the identity."""
        return self.slope, 1.0

    def value(self, x: Array) -> Array:
        """Multiply the negative entries."""
        return array_module(x).where(x < 0, self.slope * x, x)  # type: ignore[no-any-return]

    def interval(self, boxes: Sequence[Box], unit: float) -> Box:
        """A negative slope makes the curve fall on the left, so the kink may be the minimum."""
        box = boxes[0]
        xp = array_module(box.lower)
        ends = self.value(box.lower), self.value(box.upper)
        lower, upper = xp.minimum(*ends), xp.maximum(*ends)
        lower = xp.where((box.lower < 0) & (box.upper > 0), xp.minimum(lower, 0.0), lower)
        return self.widen(Box(lower, upper), max(unit, UNIT_ROUNDOFF))

    @classmethod
    def examples(cls, rng: np.random.Generator) -> list[Self]:
        """The usual slope, and one per neuron with all signs and sizes."""
        return [cls(4, np.array(0.01)), cls(4, rng.uniform(-1.5, 2.0, size=4))]
