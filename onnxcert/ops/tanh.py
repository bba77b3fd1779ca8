"""Tanh: the hyperbolic tangent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from onnxcert.arrays import Array, array_module
from onnxcert.ops.base import register
from onnxcert.ops.s_shaped import SShaped


@register
@dataclass(frozen=True)
class Tanh(SShaped):
    """tanh(x)."""

    size: int
    center: ClassVar[float] = 0.0
    steepest: ClassVar[float] = 1.0

    def value(self, x: Array) -> Array:
        """tanh(x)."""
        return array_module(x).tanh(x)  # type: ignore[no-any-return]

    def derivative(self, x: Array) -> Array:
        """1 - tanh(x)^2, as a product that keeps its digits far out."""
        height = array_module(x).tanh(x)
        return (1.0 - height) * (1.0 + height)  # type: ignore[no-any-return]

    def second_derivative(self, x: Array) -> Array:
        """-2 f f'."""
        return -2.0 * self.value(x) * self.derivative(x)

    def inverse_derivative(self, slope: Array) -> Array:
        """artanh(sqrt(1 - slope))."""
        xp = array_module(slope)
        height = xp.sqrt(xp.clip(1.0 - slope, 0.0, 1.0 - 1e-16))
        return xp.arctanh(height)  # type: ignore[no-any-return]

    @classmethod
    def examples(cls, rng: np.random.Generator) -> list[Self]:
        """One size is like another."""
        del rng
        return [cls(4)]
