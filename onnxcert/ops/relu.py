"""Relu: max(x, 0)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from onnxcert.arrays import Array, array_module
from onnxcert.ops.base import register
from onnxcert.ops.two_slope import TwoSlope


@register
@dataclass(frozen=True)
class Relu(TwoSlope):
    """max(x, 0): exact in floating point."""

    rectifies: ClassVar[bool] = True
    keeps_whole: ClassVar[bool] = True

    size: int

    @property
    def slopes(self) -> tuple[float, float]:
        """Flat, then the identity."""
        return 0.0, 1.0

    def value(self, x: Array) -> Array:
        """max(x, 0)."""
        return array_module(x).maximum(x, 0.0)  # type: ignore[no-any-return]

    @classmethod
    def examples(cls, rng: np.random.Generator) -> list[Self]:
        """One size is like another."""
        del rng
        return [cls(5)]
