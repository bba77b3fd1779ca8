"""Power: x^n for a whole n of at least two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from onnxcert.arrays import Array, array_module
from onnxcert.ops.base import register
from onnxcert.ops.convex import Convex

MOST = 64
"""The largest exponent; products of so many factors stay within the roundings counted here."""

_ROUNDINGS = 256
"""Executors multiply, or take exp(n log x) in binary32, whose error grows with n log x."""

_BISECTIONS = 60


@register
@dataclass(frozen=True)
class Power(Convex):
    """x^n: convex for even n; for odd n convex right of zero and concave left of it.

    Attributes:
        exponent: n, from 2 to `MOST`.
    """

    size: int
    exponent: int
    roundings: ClassVar[int] = _ROUNDINGS

    @property
    def even(self) -> bool:
        """Whether n is even."""
        return self.exponent % 2 == 0

    def value(self, x: Array) -> Array:
        """x^n by repeated multiplication: at most n - 1 roundings count."""
        return _power(x, self.exponent)

    def derivative(self, x: Array) -> Array:
        """n x^(n-1)."""
        return self.exponent * _power(x, self.exponent - 1)

    def second_derivative(self, x: Array) -> Array:
        """n (n-1) x^(n-2)."""
        return self.exponent * (self.exponent - 1) * _power(x, self.exponent - 2)

    def inverse_derivative(self, slope: Array) -> Array:
        """(slope / n)^(1 / (n-1))."""
        return (slope / self.exponent) ** (1.0 / (self.exponent - 1))

    def touching_point(self, lower: Array) -> Array:
        """c |l|, where the line from (-1, -1) touches at c: (n-1) c^n + n c^(n-1) = 1.

        The left side grows with c >= 0, so that bisection finds it: 1/2 for n = 3.
        """
        near, far, n = 0.0, 1.0, self.exponent
        for _ in range(_BISECTIONS):
            middle = 0.5 * (near + far)
            if (n - 1) * middle**n + n * middle ** (n - 1) < 1.0:
                near = middle
            else:
                far = middle
        return far * abs(lower)

    @classmethod
    def examples(cls, rng: np.random.Generator) -> list[Self]:
        """A square, which is even, and odd and even powers."""
        del rng
        return [cls(4, 2), cls(4, 3), cls(3, 4)]


def _power(x: Array, exponent: int) -> Array:
    """By squaring, whatever the library's own function does."""
    result = array_module(x).ones_like(x)
    while exponent:
        if exponent & 1:
            result = result * x
        exponent >>= 1
        if exponent:
            x = x * x
    return result  # type: ignore[no-any-return]
