"""Exp: the exponential function.

It is convex everywhere: above it lies the chord, below it any tangent. A line of slope k > 0 is
below it if and only if its offset is at most

    min over all z of exp(z) - k z = k - k log k,

so that no slope need be exact. The tangent point moves from one end of the interval to the other
with the position p in [0, 1]; by default the tangent is parallel to the chord.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from onnxcert.arrays import UNIT_ROUNDOFF, Array, array_module
from onnxcert.ops.base import LARGEST, TINY, BentLines, Elementwise, register
from onnxcert.sets import Box, Lines

_ULPS = 32
"""Relative error of one evaluation in units: libm stays within a few; onnxruntime's binary32, which
reduces the argument and takes a polynomial, within this."""

_OVERFLOW = 690.0
"""Larger values are taken for infinite: exp(709.78) is the largest number of float64, and sums of
values shall have room."""

_OVERFLOW_OF_SINGLE = 88.72
"""The same in binary32."""

_SINGLE = 4
"""Bytes of a number in binary32."""

_LEFT, _RIGHT = -745.0, 300.0
"""Tangents touch between these: farther left they are zero, farther right too steep for use."""


@register
@dataclass(frozen=True)
class Exp(Elementwise):
    """exp(x); taken for infinite where x is beyond 690."""

    size: int

    piecewise_linear: ClassVar[bool] = False
    roundings: ClassVar[int] = _ULPS

    def value(self, x: Array) -> Array:
        """exp(x), without a warning where it overflows."""
        xp = array_module(x)
        most = _OVERFLOW if x.dtype.itemsize > _SINGLE else _OVERFLOW_OF_SINGLE
        return xp.where(x > most, x.dtype.type(xp.inf), xp.exp(xp.minimum(x, most)))  # type: ignore[no-any-return]

    def derivative(self, x: Array) -> Array:
        """exp(x) again."""
        return self.value(x)

    def interval(self, boxes: Sequence[Box], unit: float) -> Box:
        """The values at the ends, never below zero; what overflows is a bound on one side only."""
        box = boxes[0]
        xp = array_module(box.lower)
        lower = xp.minimum(self.value(box.lower), np.exp(_OVERFLOW))
        found = self.widen(Box(lower, self.value(box.upper)), unit)
        return Box(xp.maximum(found.lower, 0.0), found.upper)

    def slope_range(self, box: Box | None = None) -> tuple[Array, Array] | None:
        """The values at the ends; None where these are beyond all bounds."""
        if box is None:
            return None
        xp = array_module(box.lower)
        if not bool((box.upper <= _OVERFLOW).all()):
            return None
        lower, upper = self.value(box.lower), self.value(box.upper)
        slack = 2.0 * _ULPS * UNIT_ROUNDOFF
        return xp.maximum(lower * (1.0 - slack) - TINY, 0.0), upper * (1.0 + slack) + TINY

    def default_position(self, box: Box) -> Array:
        """Where the tangent has the slope of the chord: z = u + log((1 - exp(-w)) / w)."""
        xp = array_module(box.lower)
        first, last = _reach(box)
        width = last - first
        wide = xp.where(width > 0, width, 1.0)
        point = last + xp.log(-xp.expm1(-wide) / wide)
        return xp.where(width > 0, xp.clip((point - first) / wide, 0.0, 1.0), 0.5)  # type: ignore[no-any-return]

    def parallel_position(self, box: Box) -> Array:
        """The default."""
        return self.default_position(box)

    def relax(self, box: Box, slope: Array | None = None) -> Lines:
        """A tangent and the chord."""
        return self.bend(box).at(self.default_position(box) if slope is None else slope)

    def bend(self, box: Box) -> ExpLines:
        """Tangents below; the chord above, where both ends have values."""
        xp = array_module(box.lower)
        first, last = _reach(box)
        known = xp.isfinite(box.lower) & (box.upper <= _OVERFLOW)
        lower, upper = xp.where(known, box.lower, 0.0), xp.where(known, box.upper, 0.0)
        at_lower, at_upper = self.value(lower), self.value(upper)
        width = upper - lower
        # No wider than any number: the difference of the ends may be infinite.
        chord = (at_upper - at_lower) / xp.where(width > 0, xp.minimum(width, LARGEST), 1.0)
        offset = xp.maximum(at_lower - chord * lower, at_upper - chord * upper)
        reach = xp.maximum(abs(lower), abs(upper))
        slack = 2.0 * _ULPS * UNIT_ROUNDOFF * (at_lower + at_upper + chord * reach) + TINY
        flat = self.interval([box], UNIT_ROUNDOFF).upper
        return ExpLines(first, last, chord, xp.where(known, offset + slack, flat))

    @classmethod
    def examples(cls, rng: np.random.Generator) -> list[Self]:
        """One size is like another."""
        del rng
        return [cls(4)]


def _reach(box: Box) -> tuple[Array, Array]:
    """Between which points tangents touch."""
    xp = array_module(box.lower)
    return xp.clip(box.lower, _LEFT, _RIGHT), xp.clip(box.upper, _LEFT, _RIGHT)


@dataclass(frozen=True, eq=False)
class ExpLines(BentLines):
    """The lines of the exponential function, arrays (B, n).

    Attributes:
        first, last: where the tangents of positions 0 and 1 touch.
        chord, offset: the upper line.
    """

    first: Array
    last: Array
    chord: Array
    offset: Array

    def at(self, position: Array) -> Lines:
        """The tangent with a rigorous offset, and the chord."""
        xp = array_module(position)
        slope = xp.exp(self._point(position))
        there = slope > 0.0
        part = slope * xp.log(xp.where(there, slope, 1.0))
        slack = _ULPS * UNIT_ROUNDOFF * (slope + abs(part)) + TINY
        offset = slope - part - slack
        return Lines(slope, offset, self.chord, self.offset)

    def gains(self, position: Array, z: Array) -> tuple[Array, Array]:
        """d/ds [exp(d) (1 + z - d)] = exp(d) (z - d) dd/ds below; the chord stays."""
        xp, point = array_module(z), self._point(position)
        gain = xp.exp(point) * (z - point) * (self.last - self.first)
        return gain, xp.zeros_like(gain)

    def landmarks(self) -> list[Array | float]:
        """The ends and the tangent at zero, whose offset is the largest: exp(d) (1 - d)."""
        xp = array_module(self.first)
        width = self.last - self.first
        zero = xp.clip(-self.first / xp.where(width > 0, width, 1.0), 0.0, 1.0)
        return [0.0, 1.0, zero]

    def _point(self, position: Array) -> Array:
        reached = self.first + position * (self.last - self.first)
        return array_module(reached).minimum(reached, self.last)  # type: ignore[no-any-return]
