"""Ellipsoids with axes along the inputs, exactly, and floating-point sets that enclose them.

A specification says ``sum_i a_i x_i^2 + b_i x_i + k <= 0`` in one form or another, mostly as
``sum_i a_i (x_i - c_i)^2 <= r^2``. With all a_i positive completing the squares gives the second
form from the first, over the rationals:

    c_i = -b_i / (2 a_i),      r^2 = sum_i b_i^2 / (4 a_i) - k.

It is kept divided by r^2, which makes it unique: w_i = a_i / r^2 are the inverse squares of the
semi-axes. Roots are irrational, so what is made of them in floating point is rounded outward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from onnxcert.arrays import FloatArray
from onnxcert.sets import Ball
from onnxcert.spec.decimals import round_up

_BITS = 128
"""Binary digits of a root at first; more are taken where these do not decide how to round it."""


@dataclass(frozen=True)
class Ellipsoid:
    """All x with ``sum_i weights[i] (x[columns[i]] - center[i])^2 <= 1``.

    Attributes:
        columns: which inputs, increasing; it does not bound the others.
        weights: inverse squares of the semi-axes, positive.
        center: the centre.
    """

    columns: tuple[int, ...]
    weights: tuple[Fraction, ...]
    center: tuple[Fraction, ...]

    def __hash__(self) -> int:
        return hash((self.columns, self.weights[:1], self.center[:1]))  # all would take long

    @property
    def reach(self) -> list[float]:
        """What none of its points exceeds in size, by column, rounded up."""
        triples = zip(self.weights, self.center, strict=True)
        return [root_up(abs(center), 1 / weight) for weight, center in triples]

    def box(self, size: int) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Floating-point neighbours of the faces of the box round it.

        Returns:
            (size,) each: lower faces rounded down and up, upper faces rounded down and up;
            infinite for inputs that it does not bound.
        """
        faces = [np.full(size, sign * np.inf) for sign in (-1, -1, 1, 1)]
        for column, weight, center in zip(self.columns, self.weights, self.center, strict=True):
            square = 1 / weight
            high, low = root_up(center, square), -root_up(-center, square)
            faces[3][column], faces[0][column] = high, low
            exact = _is_sum(high, center, square), _is_sum(-low, -center, square)
            faces[2][column] = high if exact[0] else math.nextafter(high, -math.inf)
            faces[1][column] = low if exact[1] else math.nextafter(low, math.inf)
        return faces[0], faces[1], faces[2], faces[3]

    def floats(self, size: int) -> tuple[FloatArray, FloatArray]:
        """Centre and semi-axes (size,) of an ellipsoid in floating point that contains this one.

        Zeros for inputs that it does not bound. The centre is rounded to nearest. With c and s for
        centre and axes, ``|(x - c) / s| <= 1`` implies ``|(x - c') / s| <= 1 + |(c - c') / s|``, by
        which the axes grow.
        """
        center, axes = np.zeros(size), np.zeros(size)
        moved = Fraction(0)
        for column, weight, exact in zip(self.columns, self.weights, self.center, strict=True):
            center[column] = float(exact)
            axes[column] = root_up(Fraction(0), 1 / weight)
            moved += weight * (exact - Fraction(center[column])) ** 2
        if moved:
            # Two roundings of products of positive numbers, and that of 1 + root.
            axes *= (1.0 + root_up(Fraction(0), moved)) * (1.0 + 2.0**-50)
        return center, axes

    def misses(self, limits: Callable[[int, Fraction], tuple[Fraction | None, ...]]) -> bool:
        """Whether it has no point within exact bounds of its inputs.

        Args:
            limits: column and centre -> the lower and the upper bound; None for those that do not
                matter because the centre keeps them, or are not there.
        """
        total = Fraction(0)
        for column, weight, center in zip(self.columns, self.weights, self.center, strict=True):
            lower, upper = limits(column, center)
            if lower is not None and lower > center:
                total += weight * (lower - center) ** 2
            elif upper is not None and upper < center:
                total += weight * (center - upper) ** 2
        return total > 1


def root_up(center: Fraction, square: Fraction) -> float:
    """The smallest binary64 number (or inf) not below ``center + sqrt(square)``.

    Approximations of the root come from below and become better until one is rounded up to a
    number that is large enough, which is decided exactly.
    """
    bits = _BITS
    while True:
        size = square.numerator.bit_length() - square.denominator.bit_length()
        shift = max(0, bits - size // 2)
        root = math.isqrt((square.numerator << 2 * shift) // square.denominator)
        found = round_up(center + Fraction(root, 1 << shift))
        if math.isinf(found) or (Fraction(found) - center) ** 2 >= square:
            return found
        bits *= 2


def _is_sum(number: float, center: Fraction, square: Fraction) -> bool:
    """Whether a number is exactly ``center + sqrt(square)``, or infinite."""
    return math.isinf(number) or (Fraction(number) - center) ** 2 == square


def enclosing(ellipsoids: Sequence[Ellipsoid | None], lower: FloatArray, upper: FloatArray) -> Ball:
    """The parts of boxes (N, n) in ellipsoids, enclosed; None for all of a box."""
    center, axes = np.zeros(lower.shape), np.zeros(lower.shape)
    for number, ellipsoid in enumerate(ellipsoids):
        if ellipsoid is not None:
            center[number], axes[number] = ellipsoid.floats(lower.shape[1])
    return Ball(lower, upper, center, axes)
