"""Curves with one kink at zero: slope a on the left, slope b on the right.

For a <= b the curve is convex: every line through the origin with a slope in [a, b] lies below it
and the chord above it (Ehlers 2017; the free lower slope is that of DeepPoly and CROWN). For
a > b the roles change. The default free slope is the one that cuts the smaller area.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from onnxcert.arrays import UNIT_ROUNDOFF, Array, array_module
from onnxcert.ops.base import TINY, Elementwise
from onnxcert.sets import Box, Lines


class TwoSlope(Elementwise):
    """f(x) = a x for x <= 0 and b x for x >= 0."""

    kinks: ClassVar[tuple[float, ...]] = (0.0,)

    @property
    @abstractmethod
    def slopes(self) -> tuple[Array | float, Array | float]:
        """(a, b): numbers, or one per neuron with shape (n,)."""

    def derivative(self, x: Array) -> Array:
        """a left of zero, b right of it, and a at zero."""
        left, right = self.slopes
        return array_module(x).where(x > 0, right, left)  # type: ignore[no-any-return]

    def parallel_position(self, box: Box) -> Array:
        """The free line with the slope of the chord: u / (u - l)."""
        xp = array_module(box.lower)
        unstable = (box.lower < 0) & (box.upper > 0)
        return xp.where(unstable, box.upper / xp.where(unstable, box.upper - box.lower, 1.0), 0.5)  # type: ignore[no-any-return]

    def slope_range(self, box: Box | None = None) -> tuple[Array, Array]:
        """The two slopes, or the one of the side on which the interval lies."""
        left, right = self.slopes
        xp = array_module(left if box is None else box.lower)
        left, right = xp.asarray(left), xp.asarray(right)
        if box is not None:
            left, right = (
                xp.where(box.lower >= 0, right, left),
                xp.where(box.upper <= 0, left, right),
            )
        return xp.minimum(left, right), xp.maximum(left, right)

    def relax(self, box: Box, slope: Array | None = None) -> Lines:
        """The free line through the origin on one side, the chord on the other."""
        lower, upper = box.lower, box.upper
        xp = array_module(lower)
        left, right = self.slopes
        unstable = (lower < 0) & (upper > 0)
        stable = xp.where(lower >= 0, right, left)

        width = xp.where(unstable, upper - lower, 1.0)
        chord = xp.where(unstable, (right * upper - left * lower) / width, stable)
        # Both products have the sign of the curvature, so growing them moves the chord outward.
        ends = (left - chord) * lower, (right - chord) * upper
        grow = 1.0 + 8.0 * UNIT_ROUNDOFF
        above = xp.where(unstable, xp.maximum(*ends) * grow + TINY, 0.0)
        below = xp.where(unstable, xp.minimum(*ends) * grow - TINY, 0.0)

        if slope is None:
            free = xp.where(upper > -lower, right, left)
        else:
            free = left + slope * (right - left)
            free = xp.clip(free, xp.minimum(left, right), xp.maximum(left, right))
        free = xp.where(unstable, free, stable)
        convex = xp.broadcast_to(xp.asarray(left <= right), free.shape)
        if convex.all():
            return Lines(free, xp.zeros_like(free), chord, above)
        zero = xp.zeros_like(free)
        return Lines(
            xp.where(convex, free, chord),
            xp.where(convex, zero, below),
            xp.where(convex, chord, free),
            xp.where(convex, above, zero),
        )
