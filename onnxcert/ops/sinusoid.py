"""Sine and cosine: curves with f'' = -f, concave where they are positive.

Any slope k in [-1, 1] gives a valid upper line once its offset is max over [l, u] of f(z) - k z.
With f(z) = sin(z + phase) the local maxima of that difference are at

    z = arccos(k) - phase + 2 pi n,

for k >= 0 the first of them in the interval is the highest and for k <= 0 the last one. So the
offset is the largest of four values, those at the ends and at these two points. An error in such a
point changes the value in second order only, and one that misses the interval by a rounding is as
high as the end that is next to it. A small slack makes the line rigorous, and slopes are chosen for
tightness only. Local minima, for lower lines, are at z = -arccos(k) - phase + 2 pi n.

On an interval no longer than half a period f changes sign once at most, and an upper line

    is the chord where f <= 0 at both ends;
    touches at d = l + p (u - l) where f >= 0 at both ends, by default in the middle;
    touches at d = d* + p (e - d*) where f > 0 at one end e only; by default at d*, where a line
    from the other end touches. Where that is beyond e the chord is the hull.

The position p in [0, 1] serves both lines. On longer intervals both have the slope of the chord. A
lower line is minus an upper line of -f. Far from zero, where the reduction of the argument is left
to the library, the curve lies between -1 and 1, and no more is said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from onnxcert.arrays import UNIT_ROUNDOFF, Array, array_module
from onnxcert.ops.base import BentLines, Elementwise
from onnxcert.sets import Box, Lines

_BISECTIONS = 24
_ULPS = 32
"""Charged to each evaluation of f: libm stays within a few; onnxruntime's binary32 within this."""

_FARTHEST = 2.0**20
"""Beyond this the curve is only known to lie between -1 and 1; nearer, pi n has an error of 2^-31,
whose square is nothing."""

_PERIOD = 2.0 * math.pi

Wave = Callable[[Array], Array]


class Sinusoid(Elementwise):
    """f(z) = sin(z + phase)."""

    phase: ClassVar[float]

    piecewise_linear: ClassVar[bool] = False
    saturates: ClassVar[bool] = True
    roundings: ClassVar[int] = _ULPS

    def interval(self, boxes: Sequence[Box], unit: float) -> Box:
        """The extremes over the box, with an absolute error because |f| <= 1."""
        lower, upper = _range(self.value, self.phase, boxes[0], _ULPS * unit)
        return Box(lower, upper)

    def slope_range(self, box: Box | None = None) -> tuple[Array, Array]:
        """The extremes of the derivative, which is a quarter of a period ahead."""
        if box is None:
            xp = array_module()
            return xp.asarray(-1.0), xp.asarray(1.0)
        slack = _ULPS * UNIT_ROUNDOFF
        lower, upper = _range(self.derivative, self.phase + 0.5 * math.pi, box, slack)
        xp = array_module(lower)
        return xp.maximum(lower, -1.0), xp.minimum(upper, 1.0)

    def default_position(self, box: Box) -> Array:
        """The touching line where the curve crosses zero, and else the tangent at the middle."""
        lower, upper, _ = _near(box)
        crossed = self.value(lower) * self.value(upper) < 0
        return array_module(lower).where(crossed, 0.0, 0.5)  # type: ignore[no-any-return]

    def relax(self, box: Box, slope: Array | None = None) -> Lines:
        """Tangents and chords with rigorous offsets."""
        return self.bend(box).at(self.default_position(box) if slope is None else slope)

    def bend(self, box: Box) -> SinusoidLines:
        """Tangents on both sides."""
        xp = array_module(box.lower)
        lower, upper, far = _near(box)
        width = upper - lower
        rise = self.value(upper) - self.value(lower)
        chord = xp.clip(rise / xp.where(width > 0, width, 1.0), -1.0, 1.0)
        above, below = (self._side(lower, upper, sign) for sign in (1.0, -1.0))
        return SinusoidLines(self, lower, upper, far, chord, above, below)

    def _side(self, lower: Array, upper: Array, sign: float) -> _Side:
        """Where lines above sign times f touch."""
        xp = array_module(lower)
        at_lower, at_upper = sign * self.value(lower), sign * self.value(upper)
        rising = at_upper > 0
        crossed = (at_lower * at_upper < 0) & (upper - lower <= math.pi)
        # From a point where the curve is convex to one where it is concave.
        start, end = xp.where(rising, lower, upper), xp.where(rising, upper, lower)
        height = xp.where(rising, at_lower, at_upper)
        first, straight = lower, (at_lower <= 0) & (at_upper <= 0) | (upper - lower > math.pi)
        if crossed.any():
            slope = sign * self.derivative(end)
            hull = sign * self.value(end) + slope * (start - end) < height
            touching = self._touching_point(start, end, height, sign)
            first, straight = xp.where(crossed, touching, first), straight | (crossed & hull)
        return _Side(first, xp.where(crossed, end, upper), straight)

    def _touching_point(self, start: Array, end: Array, height: Array, sign: float) -> Array:
        """Where a line from (start, height) touches sign times f."""
        xp = array_module(start)
        near, far = start, end
        for _ in range(_BISECTIONS):
            point = 0.5 * (near + far)
            tangent = self.value(point) + self.derivative(point) * (start - point)
            above = sign * tangent >= height
            near, far = xp.where(above, near, point), xp.where(above, point, far)
        return far


def _near(box: Box) -> tuple[Array, Array, Array]:
    """The ends, zero where one of them is far away, and where that is."""
    xp = array_module(box.lower)
    far = (box.lower < -_FARTHEST) | (box.upper > _FARTHEST)
    return xp.where(far, 0.0, box.lower), xp.where(far, 0.0, box.upper), far


def _range(wave: Wave, phase: float, box: Box, slack: float) -> tuple[Array, Array]:
    """The least and the largest value on a box, of which each evaluation is off by the slack."""
    xp = array_module(box.lower)
    lower, upper, far = _near(box)
    flat = xp.zeros_like(lower)
    low, high = (_extreme(wave, phase, lower, upper, flat, sign) for sign in (-1.0, 1.0))
    low, high = xp.where(far, -1.0, low), xp.where(far, 1.0, high)
    return xp.maximum(low, -1.0) - slack, xp.minimum(high, 1.0) + slack


def _extreme(
    wave: Wave, phase: float, lower: Array, upper: Array, slope: Array, sign: float
) -> Array:
    """The largest value of f(z) - slope z on [l, u] for sign 1, the least for -1; but for rounding.

    Args:
        wave: f(z) = sin(z + phase).
    """
    xp = array_module(lower)
    angle = sign * xp.arccos(slope) - phase
    first = angle + _PERIOD * xp.ceil((lower - angle) / _PERIOD)
    last = angle + _PERIOD * xp.floor((upper - angle) / _PERIOD)
    better = xp.maximum if sign > 0 else xp.minimum
    found = wave(lower) - slope * lower
    for point in (upper, xp.clip(first, lower, upper), xp.clip(last, lower, upper)):
        found = better(found, wave(point) - slope * point)
    return found  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False)
class _Side:
    """Where lines on one side of the curve touch, arrays (B, n).

    Attributes:
        first, last: the tangent points of positions 0 and 1.
        straight: where the line has the slope of the chord instead.
    """

    first: Array
    last: Array
    straight: Array

    def point(self, position: Array) -> Array:
        """Where the tangent touches."""
        return self.first + position * (self.last - self.first)  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False)
class SinusoidLines(BentLines):
    """The lines of a sinusoid; touching points are found once for all positions.

    Attributes:
        op: the curve.
        lower, upper: the interval.
        far: where it is too far from zero.
        chord: the slope of that.
        above, below: the sides of the upper and of the lower line.
    """

    op: Sinusoid
    lower: Array
    upper: Array
    far: Array
    chord: Array
    above: _Side
    below: _Side

    def at(self, position: Array) -> Lines:
        """Tangents and chords with rigorous offsets."""
        return Lines(
            *self._line(self.below, position, -1.0), *self._line(self.above, position, 1.0)
        )

    def gains(self, position: Array, z: Array) -> tuple[Array, Array]:
        """d/ds [f(d) + f'(d) (z - d)] = f''(d) (z - d) dd/ds, and zero for chords.

        An estimate where the line of that slope touches at an end of the interval and not at d.
        """
        return self._gain(self.below, position, z), self._gain(self.above, position, z)

    def _line(self, side: _Side, position: Array, sign: float) -> tuple[Array, Array]:
        op, xp = self.op, array_module(position)
        slope = xp.clip(op.derivative(side.point(position)), -1.0, 1.0)
        slope = xp.where(side.straight, self.chord, slope)
        slope = xp.where(self.far, 0.0, slope)
        found = _extreme(op.value, op.phase, self.lower, self.upper, slope, sign)
        reach = xp.maximum(abs(self.lower), abs(self.upper))
        slack = _ULPS * UNIT_ROUNDOFF * (1.0 + abs(slope) * reach)
        return slope, xp.where(self.far, sign, found) + sign * slack

    def _gain(self, side: _Side, position: Array, z: Array) -> Array:
        xp, point = array_module(z), side.point(position)
        gain = -self.op.value(point) * (z - point) * (side.last - side.first)
        return xp.where(side.straight | self.far, 0.0, gain)  # type: ignore[no-any-return]
