"""Sigmoid: 1 / (1 + exp(-x))."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from onnxcert.arrays import Array, array_module
from onnxcert.ops.base import register
from onnxcert.ops.s_shaped import SShaped


@register
@dataclass(frozen=True)
class Sigmoid(SShaped):
    """The logistic curve, written through tanh so that no exponential overflows."""

    size: int
    center: ClassVar[float] = 0.5
    steepest: ClassVar[float] = 0.25

    def value(self, x: Array) -> Array:
        """1 / (1 + exp(-x)) = (1 + tanh(x / 2)) / 2."""
        return 0.5 + 0.5 * array_module(x).tanh(0.5 * x)  # type: ignore[no-any-return]

    def derivative(self, x: Array) -> Array:
        """f (1 - f)."""
        half = 0.5 * array_module(x).tanh(0.5 * x)
        return (0.5 + half) * (0.5 - half)  # type: ignore[no-any-return]

    def second_derivative(self, x: Array) -> Array:
        """f' (1 - 2 f)."""
        return -self.derivative(x) * array_module(x).tanh(0.5 * x)  # type: ignore[no-any-return]

    def inverse_derivative(self, slope: Array) -> Array:
        """f' = (1 - t^2) / 4 with t = tanh(z / 2)."""
        xp = array_module(slope)
        height = xp.sqrt(xp.clip(1.0 - 4.0 * slope, 0.0, 1.0 - 1e-16))
        return 2.0 * xp.arctanh(height)  # type: ignore[no-any-return]

    @classmethod
    def examples(cls, rng: np.random.Generator) -> list[Self]:
        """One size is like another."""
        del rng
        return [cls(4)]
