"""Abs: |x|."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from onnxcert.arrays import Array, array_module
from onnxcert.ops.base import register
from onnxcert.ops.two_slope import TwoSlope
from onnxcert.sets import Box


@register
@dataclass(frozen=True)
class Absolute(TwoSlope):
    """|x|: exact in floating point."""

    size: int
    keeps_whole: ClassVar[bool] = True

    @property
    def slopes(self) -> tuple[float, float]:
        """Minus one, then one."""
        return -1.0, 1.0

    def value(self, x: Array) -> Array:
        """|x|."""
        return array_module(x).abs(x)  # type: ignore[no-any-return]

    def interval(self, boxes: Sequence[Box], unit: float) -> Box:
        """Zero where the interval crosses it, else the smaller end."""
        del unit
        box = boxes[0]
        xp = array_module(box.lower)
        ends = xp.abs(box.lower), xp.abs(box.upper)
        crosses = (box.lower < 0) & (box.upper > 0)
        return Box(xp.where(crosses, 0.0, xp.minimum(*ends)), xp.maximum(*ends))

    @classmethod
    def examples(cls, rng: np.random.Generator) -> list[Self]:
        """One size is like another."""
        del rng
        return [cls(3)]
