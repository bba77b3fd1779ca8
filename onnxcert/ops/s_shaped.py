"""Curves that rise from one asymptote to another: convex left of zero, concave right of it.

Any slope k gives a valid upper line once its offset is t = max over [l, u] of f(z) - k z. The
maximum lies at an end or where f'(z) = k on the concave side, a point with a closed form; an error
in that point changes t only in second order, so a small slack makes the line rigorous. The slope
itself is chosen for tightness only. Lower lines follow from the symmetry f(-z) = 2 c - f(z).

The upper line is the tangent at a point d of the concave side, as far as there is one that stays
above (l, f(l)); one position p in [0, 1] moves d:

    l >= 0:      d = l + p (u - l), the middle by default;
    l < 0 < u:   d = d* + p (u - d*), by default d*, where a line from (l, f(l)) touches.

Where even the tangent at u passes below (l, f(l)), and where u <= 0, the chord is the hull and
there is nothing to choose. The tangents are the free lines of alpha-CROWN (Xu et al., 2021), the
touching line is that of CROWN (Zhang et al., 2018). A row takes only one line of a neuron, so one
position serves both.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from onnxcert.arrays import UNIT_ROUNDOFF, Array, array_module
from onnxcert.ops.base import BentLines, Elementwise
from onnxcert.sets import Box, Lines

_BISECTIONS = 24
_ULPS = 32
"""Charged to each evaluation of f: libm stays within a few; onnxruntime's binary32 within this."""


class SShaped(Elementwise):
    """f odd about (0, center), f' even and falling on z >= 0."""

    center: ClassVar[float]
    """f(0)."""

    steepest: ClassVar[float]
    """f'(0), the largest slope."""

    piecewise_linear: ClassVar[bool] = False
    roundings: ClassVar[int] = _ULPS
    saturates: ClassVar[bool] = True

    @abstractmethod
    def inverse_derivative(self, slope: Array) -> Array:
        """The z >= 0 with f'(z) = slope, for slopes in (0, steepest]."""

    @abstractmethod
    def second_derivative(self, x: Array) -> Array:
        """f''(x), entry by entry."""

    def interval(self, boxes: Sequence[Box], unit: float) -> Box:
        """End values, widened by an absolute error because |f| <= 1."""
        box = boxes[0]
        xp = array_module(box.lower)
        slack = _ULPS * unit
        floor, ceiling = 2 * self.center - 1.0, 1.0
        return Box(
            xp.maximum(self.value(box.lower) - slack, floor - slack),
            xp.minimum(self.value(box.upper) + slack, ceiling + slack),
        )

    def slope_range(self, box: Box | None = None) -> tuple[Array, Array]:
        """Flattest where the interval is farthest from zero, steepest where it is nearest."""
        if box is None:
            return array_module().zeros(()), array_module().asarray(self.steepest)
        xp = array_module(box.lower)
        near = xp.maximum(xp.maximum(box.lower, -box.upper), 0.0)
        low, high = self.derivative(box.magnitude), self.derivative(near)
        slack = _ULPS * UNIT_ROUNDOFF
        return xp.maximum(low - slack, 0.0), xp.minimum(high + slack, self.steepest)

    def default_position(self, box: Box) -> Array:
        """The touching line where the box has zero inside, and else the tangent at the middle."""
        crossed = (box.lower < 0) & (box.upper > 0)
        return array_module(box.lower).where(crossed, 0.0, 0.5)  # type: ignore[no-any-return]

    def relax(self, box: Box, slope: Array | None = None) -> Lines:
        """Upper line directly, lower line by symmetry."""
        return self.bend(box).at(self.default_position(box) if slope is None else slope)

    def bend(self, box: Box) -> Tangents:
        """Tangents on both sides."""
        return Tangents(
            self,
            self._upper_side(box.lower, box.upper),
            self._upper_side(-box.upper, -box.lower),
        )

    def _upper_side(self, lower: Array, upper: Array) -> _Side:
        xp = array_module(lower)
        at_lower, at_upper = self.value(lower), self.value(upper)
        width = upper - lower
        chord = (at_upper - at_lower) / xp.where(width > 0, width, 1.0)
        # If even the tangent at u passes below (l, f(l)), the chord is the hull.
        hull = at_upper + self.derivative(upper) * (lower - upper) < at_lower
        straight = (lower < 0) & (hull | (upper <= 0))
        first = xp.where(lower >= 0, lower, xp.maximum(upper, 0.0))
        curved = xp.nonzero((lower < 0) & ~straight)
        first[curved] = self._touching_point(lower[curved], upper[curved], at_lower[curved])
        return _Side(lower, upper, at_lower, at_upper, straight, chord, first)

    def _touching_point(self, lower: Array, upper: Array, at_lower: Array) -> Array:
        """Where a line from (l, f(l)) touches the concave side; u does not lie before that."""
        xp = array_module(lower)
        near, far = xp.zeros_like(lower), upper
        for _ in range(_BISECTIONS):
            point = 0.5 * (near + far)
            tangent = self.value(point) + self.derivative(point) * (lower - point)
            above = tangent >= at_lower
            near, far = xp.where(above, near, point), xp.where(above, point, far)
        return far

    def _line_above(self, side: _Side, slope: Array) -> tuple[Array, Array]:
        """The slope, if it is one of the curve, and the least offset for it."""
        xp = array_module(slope)
        lower, upper = side.lower, side.upper
        slope = xp.clip(slope, 0.0, self.steepest)
        touching = self.inverse_derivative(xp.maximum(slope, 1e-300))
        touching = xp.clip(touching, xp.maximum(lower, 0.0), xp.maximum(upper, 0.0))
        touching = xp.where(upper >= 0, touching, upper)
        height = xp.where(upper >= 0, self.value(touching), side.at_upper)
        offset = xp.full_like(slope, -xp.inf)
        for point, at in ((lower, side.at_lower), (upper, side.at_upper), (touching, height)):
            error = _ULPS * UNIT_ROUNDOFF * (1.0 + xp.abs(slope * point))
            offset = xp.maximum(offset, at - slope * point + error)
        return slope, offset


@dataclass(frozen=True, eq=False)
class _Side:
    """What an upper line needs beside the position, arrays (B, n).

    Attributes:
        lower, upper: the box.
        at_lower, at_upper: f there.
        straight: where the line is the chord.
        chord: the slope of that.
        first: the tangent point of position 0; that of position 1 is ``upper``.
    """

    lower: Array
    upper: Array
    at_lower: Array
    at_upper: Array
    straight: Array
    chord: Array
    first: Array

    def point(self, position: Array) -> Array:
        """Where the tangent touches."""
        return self.first + position * (self.upper - self.first)  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False)
class Tangents(BentLines):
    """The lines of an S-shaped curve; touching points are found once for all positions.

    Attributes:
        op: the curve.
        above: the side of the upper lines.
        mirrored: that of the upper lines of the box turned about zero: minus the lower ones.
    """

    op: SShaped
    above: _Side
    mirrored: _Side

    def at(self, position: Array) -> Lines:
        """Tangents and chords with rigorous offsets."""
        upper_slope, upper_offset = self._line(self.above, position)
        lower_slope, mirrored = self._line(self.mirrored, position)
        return Lines(lower_slope, 2 * self.op.center - mirrored, upper_slope, upper_offset)

    def with_slope(self, slope: Array) -> Lines:
        """Two lines of one slope (B, n), as near to the curve as they come."""
        above, upper_offset = self.op._line_above(self.above, slope)
        below, mirrored = self.op._line_above(self.mirrored, slope)
        return Lines(below, 2 * self.op.center - mirrored, above, upper_offset)

    def gains(self, position: Array, z: Array) -> tuple[Array, Array]:
        """d/ds [f(d) + f'(d) (z - d)] = f''(d) (z - d) dd/ds, and zero for chords."""
        return -self._gain(self.mirrored, position, -z), self._gain(self.above, position, z)

    def _line(self, side: _Side, position: Array) -> tuple[Array, Array]:
        tangent = self.op.derivative(side.point(position))
        slope = array_module(tangent).where(side.straight, side.chord, tangent)
        return self.op._line_above(side, slope)

    def _gain(self, side: _Side, position: Array, z: Array) -> Array:
        point = side.point(position)
        gain = self.op.second_derivative(point) * (z - point) * (side.upper - side.first)
        return array_module(gain).where(side.straight, 0.0, gain)  # type: ignore[no-any-return]
