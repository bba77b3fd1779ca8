"""Curves that are convex right of zero, and even or odd: whole powers and the reciprocal.

Below a convex part any tangent is a line, and above it the chord. The tangent point d moves with
the position p in [0, 1], as it does for S-shaped curves:

    even, or l >= 0:   d = l + p (u - l), by default where the tangent has the slope of the chord;
    odd, l < 0 < u:    d = d* + p (u - d*), by default d*, where a line from (l, f(l)) touches.

Where d* lies beyond u, and where u <= 0, the chord is the hull of an odd curve. What is above an
odd curve follows from f(-z) = -f(z).

As everywhere, a slope k is any float, and its offset is made rigorous. On the convex part

    f(z) - k z  >=  f(d) - k d + (f'(d) - k) (z - d)

holds for every d, and the right side is linear in z, hence least at an end of that part. On the
concave part f(z) - k z is least at an end. A slack covers the rounding of these few numbers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from onnxcert.arrays import UNIT_ROUNDOFF, Array, array_module
from onnxcert.ops.base import LARGEST, TINY, BentLines, Elementwise
from onnxcert.sets import Box, Lines


class Convex(Elementwise):
    """f convex on z >= 0 (on z > 0 where zero is a pole), with f(-z) = f(z) or -f(z)."""

    piecewise_linear: ClassVar[bool] = False

    @property
    @abstractmethod
    def even(self) -> bool:
        """Whether f(-z) = f(z); else f(-z) = -f(z)."""

    @abstractmethod
    def second_derivative(self, x: Array) -> Array:
        """f''(x), entry by entry."""

    @abstractmethod
    def inverse_derivative(self, slope: Array) -> Array:
        """The z >= 0 with |f'(z)| = slope, for slopes >= 0."""

    @abstractmethod
    def touching_point(self, lower: Array) -> Array:
        """Where a line from (l, f(l)) with l < 0 touches the convex part of an odd curve."""

    def defined(self, box: Box) -> Array:
        """Where the curve has a value on all of an interval, (B, n) booleans."""
        return array_module(box.lower).isfinite(box.lower + box.upper)  # type: ignore[no-any-return]

    def interval(self, boxes: Sequence[Box], unit: float) -> Box:
        """The values at the ends, and zero for an even curve between them."""
        box = boxes[0]
        xp = array_module(box.lower)
        ends = self.value(box.lower), self.value(box.upper)
        lower, upper = xp.minimum(*ends), xp.maximum(*ends)
        if self.even:
            lower = xp.where((box.lower < 0) & (box.upper > 0), 0.0, lower)
        # What overflows is a bound on one side only.
        lower, upper = xp.minimum(lower, LARGEST), xp.maximum(upper, -LARGEST)
        return self.widen(Box(lower, upper), unit)

    def slope_range(self, box: Box | None = None) -> tuple[Array, Array] | None:
        """The derivatives at the ends, and zero where it lies between; None for the whole line."""
        if box is None or not bool(self.defined(box).all()):
            return None
        xp = array_module(box.lower)
        ends = self.derivative(box.lower), self.derivative(box.upper)
        low, high = xp.minimum(*ends), xp.maximum(*ends)
        if not self.even:
            low = xp.where((box.lower < 0) & (box.upper > 0), xp.minimum(low, 0.0), low)
        slack = 2.0 * self._relative_error
        return low - slack * abs(low) - TINY, high + slack * abs(high) + TINY

    @property
    def _relative_error(self) -> float:
        """Of f and of f' as they are computed here."""
        return (self.error_terms + 8) * UNIT_ROUNDOFF

    def default_position(self, box: Box) -> Array:
        """The tangent that is parallel to the chord; the touching line where an odd curve crosses
        zero."""
        xp = array_module(box.lower)
        mirrored = (box.upper <= 0) & (not self.even)
        lower = xp.where(mirrored, -box.upper, box.lower)
        upper = xp.where(mirrored, -box.lower, box.upper)
        slope = self._chord(lower, upper)
        point = xp.sign(slope) * self.inverse_derivative(abs(slope))
        point = point if self.even else abs(point)
        width = xp.where(upper > lower, upper - lower, 1.0)
        position = xp.clip((point - lower) / width, 0.0, 1.0)
        position = xp.where(xp.isfinite(position), position, 0.5)
        crossed = (box.lower < 0) & (box.upper > 0) & (not self.even)
        return xp.where(crossed, 0.0, position)  # type: ignore[no-any-return]

    def parallel_position(self, box: Box) -> Array:
        """The default."""
        return self.default_position(box)

    def relax(self, box: Box, slope: Array | None = None) -> Lines:
        """Tangents and chords."""
        return self.bend(box).at(self.default_position(box) if slope is None else slope)

    def bend(self, box: Box) -> ConvexLines:
        """Tangents that move over the convex part."""
        xp = array_module(box.lower)
        defined = self.defined(box)
        lower, upper = xp.where(defined, box.lower, 1.0), xp.where(defined, box.upper, 1.0)
        above = None if self.even else self._side(-upper, -lower)
        flat = self.interval([box], UNIT_ROUNDOFF).defined()
        return ConvexLines(self, defined, self._side(lower, upper), above, flat)

    def _chord(self, lower: Array, upper: Array) -> Array:
        width = upper - lower
        rise = self.value(upper) - self.value(lower)
        return rise / array_module(width).where(width > 0, width, 1.0)  # type: ignore[no-any-return]

    def _side(self, lower: Array, upper: Array) -> _Side:
        """What lines below the curve on [l, u] need."""
        xp = array_module(lower)
        chord = self._chord(lower, upper)
        if self.even:
            return _Side(lower, upper, xp.zeros(lower.shape, dtype=bool), chord, lower)
        crossed = (lower < 0) & (upper > 0)
        touching = xp.where(crossed, self.touching_point(xp.minimum(lower, 0.0)), lower)
        straight = (upper <= 0) | (crossed & (touching >= upper))
        return _Side(lower, upper, straight, chord, xp.minimum(touching, upper))

    def _line_below(self, side: _Side, position: Array) -> tuple[Array, Array]:
        """Slope and offset."""
        xp = array_module(position)
        lower, upper = side.lower, side.upper
        point = side.point(position)
        slope = xp.where(side.straight, side.chord, self.derivative(point))
        left = lower if self.even else xp.where(upper <= 0, upper, xp.maximum(lower, 0.0))
        point = xp.clip(xp.where(side.straight, upper, point), left, upper)
        height, steep = self.value(point), self.derivative(point)
        gap = steep - slope
        offset = height - slope * point
        offset = offset + xp.minimum(gap * (left - point), gap * (upper - point))
        size = abs(height) + (abs(slope) + abs(steep)) * xp.maximum(abs(lower), abs(upper))
        if not self.even:
            concave = lower < 0
            for end in (lower, xp.where(concave, xp.minimum(upper, 0.0), lower)):
                height = self.value(end)
                least = xp.minimum(offset, height - slope * end)
                offset = xp.where(concave, least, offset)
                size = size + abs(height)
        return slope, offset - self._slack(size)

    def _chord_above(self, side: _Side) -> tuple[Array, Array]:
        """Slope and offset of the chord of an even curve."""
        xp = array_module(side.chord)
        heights = self.value(side.lower), self.value(side.upper)
        offset = xp.maximum(
            heights[0] - side.chord * side.lower, heights[1] - side.chord * side.upper
        )
        reach = xp.maximum(abs(side.lower), abs(side.upper))
        size = abs(heights[0]) + abs(heights[1]) + abs(side.chord) * reach
        return side.chord, offset + self._slack(size)

    def _slack(self, size: Array) -> Array:
        return 4.0 * self._relative_error * size + TINY


@dataclass(frozen=True, eq=False)
class _Side:
    """What a line below the curve needs beside the position, arrays (B, n).

    Attributes:
        lower, upper: the interval.
        straight: where the line is the chord.
        chord: the slope of that.
        first: the tangent point of position 0; that of position 1 is ``upper``.
    """

    lower: Array
    upper: Array
    straight: Array
    chord: Array
    first: Array

    def point(self, position: Array) -> Array:
        """Where the tangent touches."""
        reached = self.first + position * (self.upper - self.first)
        return array_module(reached).minimum(reached, self.upper)  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False)
class ConvexLines(BentLines):
    """The lines of such a curve; constants where it is not defined.

    Attributes:
        op: the curve.
        defined: where it has values on the whole interval, (B, n).
        below: the side of the lower lines.
        mirrored: that of the lower lines of the box turned about zero: minus the upper ones. None
            for an even curve, whose upper lines are chords.
        flat: bounds of the curve, which are its lines where it is not defined.
    """

    op: Convex
    defined: Array
    below: _Side
    mirrored: _Side | None
    flat: Box

    def at(self, position: Array) -> Lines:
        """Tangents and chords with rigorous offsets."""
        xp = array_module(position)
        lower_slope, lower_offset = self.op._line_below(self.below, position)
        if self.mirrored is None:
            upper_slope, upper_offset = self.op._chord_above(self.below)
        else:
            upper_slope, upper_offset = self.op._line_below(self.mirrored, position)
            upper_offset = -upper_offset
        parts = lower_slope, lower_offset, upper_slope, upper_offset
        known = self.defined & xp.isfinite(parts[0] + parts[1] + parts[2] + parts[3])
        return Lines(
            xp.where(known, lower_slope, 0.0),
            xp.where(known, lower_offset, self.flat.lower),
            xp.where(known, upper_slope, 0.0),
            xp.where(known, upper_offset, self.flat.upper),
        )

    def gains(self, position: Array, z: Array) -> tuple[Array, Array]:
        """d/ds [f(d) + f'(d) (z - d)] = f''(d) (z - d) dd/ds, and zero for chords."""
        below = self._gain(self.below, position, z)
        if self.mirrored is None:
            return below, array_module(below).zeros_like(below)
        return below, -self._gain(self.mirrored, position, -z)

    def _gain(self, side: _Side, position: Array, z: Array) -> Array:
        xp = array_module(z)
        point = side.point(position)
        gain = self.op.second_derivative(point) * (z - point) * (side.upper - side.first)
        return xp.where(side.straight | ~self.defined, 0.0, gain)  # type: ignore[no-any-return]
