"""Piecewise linear functions of one number, written as sums of relus.

    f(x) = c + sum_k w_k max(s_k x + t_k, 0)

is linear between its knots -t_k / s_k. So over an interval it is extreme at the ends and at the
knots inside, and so is f(x) - k x for any slope k: one pass over those points gives the range of f,
and for every slope the least offset of a line above f and the largest of one below it. Lines for
each relu by itself would add up to lines for f that are nowhere better.

Slopes are chosen for tightness only. Above f they go from that of the line that touches f and
starts at (l, f(l)), over that of the chord, to that of the line that ends at (u, f(u)), as the
position goes from 0 over 1/2 to 1. What is below f is above -f. A line of slope k that touches at
p turns by z - p at z for a change of k.

Rounding. A knot is off by u |p|, and f has no slope steeper than L = sum |w_k s_k|, so a value, a
knot and the product k p together are off by at most a few dozen units more than terms, times
L |x| + sum |w_k t_k| + |c|.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

import numpy as np

from onnxcert.arrays import UNIT_ROUNDOFF, Array, FloatArray, array_module
from onnxcert.ops.base import TINY, BentLines, Elementwise, gamma, register
from onnxcert.sets import Box, Lines

_NEAREST = 2.0**-20
"""A share of the interval; knots nearer to an end say nothing of slopes there but rounding."""


@register
@dataclass(frozen=True, eq=False)
class PiecewiseLinear(Elementwise):
    """f of each entry.

    Attributes:
        size: n.
        weight, factor, shift: w, s and t, (n, K) each or (1, K) for all neurons alike.
        offset: c, (n,) or (1,).
    """

    piecewise_linear: ClassVar[bool] = False
    """Not between the ``kinks`` of a class: neurons have their own."""

    size: int
    weight: FloatArray
    factor: FloatArray
    shift: FloatArray
    offset: FloatArray

    @property
    def terms(self) -> int:
        """K."""
        return int(self.weight.shape[1])

    @cached_property
    def knots(self) -> Array:
        """Where the slope changes, in order, (n, K) or (1, K); terms without slope give zero."""
        xp = array_module(self.factor)
        return xp.sort(-self.shift / xp.where(self.factor == 0, xp.inf, self.factor), axis=1)  # type: ignore[no-any-return]

    @cached_property
    def heights(self) -> Array:
        """f at the knots."""
        xp = array_module(self.knots)
        columns = [self._sum(knot) for knot in self.knots.T]
        return xp.stack([xp.broadcast_to(c, columns[0].shape) for c in columns], axis=1)  # type: ignore[no-any-return]

    @cached_property
    def steepest(self) -> Array:
        """L, (n,) or (1,): no slope is larger in size."""
        steep: Array = abs(self.weight * self.factor).sum(axis=1)
        return steep * (1.0 + 2.0 * gamma(self.terms + 2, UNIT_ROUNDOFF))

    @cached_property
    def _rest(self) -> Array:
        return abs(self.weight * self.shift).sum(axis=1) + abs(self.offset)  # type: ignore[no-any-return]

    def _sum(self, x: Array) -> Array:
        """f of (..., n)."""
        xp = array_module(x)
        reached = xp.maximum(x[..., None] * self.factor + self.shift, 0.0)
        return (reached * self.weight).sum(axis=-1) + self.offset  # type: ignore[no-any-return]

    def _slack(self, box: Box, unit: float) -> Array:
        """What rounding may change in values, knots and offsets, (B, n)."""
        size = self.steepest * box.magnitude + self._rest
        return 8.0 * gamma(self.terms + 16, unit) * size + TINY

    def value(self, x: Array) -> Array:
        """The sum."""
        return self._sum(x)

    def derivative(self, x: Array) -> Array:
        """That of the relus that are positive."""
        steep = self.weight * self.factor
        return ((x[..., None] * self.factor + self.shift > 0) * steep).sum(axis=-1)  # type: ignore[no-any-return]

    def interval(self, boxes: Sequence[Box], unit: float) -> Box:
        """The extremes over the ends and the knots; nothing is said where they overflow."""
        xp = array_module(boxes[0].lower)
        _, heights = self._corners(boxes[0])
        slack = self._slack(boxes[0], unit)
        lower, upper = heights.min(axis=-1) - slack, heights.max(axis=-1) + slack
        known = xp.isfinite(lower) & xp.isfinite(upper)
        return Box(xp.where(known, lower, -xp.inf), xp.where(known, upper, xp.inf))

    def slope_range(self, box: Box | None = None) -> tuple[Array, Array]:
        """The extremes of the slopes between knots."""
        xp = array_module(self.knots)
        side = xp.full_like(self.knots[:, :1], xp.inf)
        left = xp.concatenate([-side, self.knots], axis=1)
        right = xp.concatenate([self.knots, side], axis=1)
        # Which side of its knot a relu is on there is not asked of rounded numbers.
        own = -self.shift / xp.where(self.factor == 0, xp.inf, self.factor)
        rises, own = (self.factor > 0)[:, None], own[:, None]
        on = xp.where(rises, own <= left[..., None], own >= right[..., None])
        on = on & (self.factor != 0)[:, None]
        steep = (on * (self.weight * self.factor)[:, None]).sum(axis=-1)
        slack = 2.0 * gamma(self.terms + 4, UNIT_ROUNDOFF) * self.steepest
        if box is None:
            return steep.min(axis=1) - slack, steep.max(axis=1) + slack
        nearly = 8.0 * UNIT_ROUNDOFF * box.magnitude[..., None]
        met = (left <= box.upper[..., None] + nearly) & (right >= box.lower[..., None] - nearly)
        lower = xp.where(met, steep, xp.inf).min(axis=-1)
        upper = xp.where(met, steep, -xp.inf).max(axis=-1)
        return lower - slack, upper + slack

    def default_position(self, box: Box) -> Array:
        """The lines with the slope of the chord."""
        return array_module(box.lower).full_like(box.lower, 0.5)  # type: ignore[no-any-return]

    def unstable(self, box: Box) -> Array:
        """Where a knot is inside."""
        return array_module(box.lower).any(self._inside(box), axis=-1)  # type: ignore[no-any-return]

    def split_point(self, box: Box) -> Array:
        """The knot inside that is farthest from the chord; the middle where there is none."""
        xp = array_module(box.lower)
        points, heights = self._corners(box)
        width = box.upper - box.lower
        chord = (heights[..., -1] - heights[..., 0]) / xp.where(width > 0, width, 1.0)
        gap = abs(heights - heights[..., :1] - chord[..., None] * (points - points[..., :1]))
        gap = xp.where(self._inside(box), gap[..., 1:-1], -1.0)
        chosen = gap.argmax(axis=-1)[..., None]
        knot = xp.take_along_axis(points[..., 1:-1], chosen, axis=-1)[..., 0]
        middle = 0.5 * (box.lower + box.upper)
        return xp.where(gap.max(axis=-1) >= 0, knot, middle)  # type: ignore[no-any-return]

    def relax(self, box: Box, slope: Array | None = None) -> Lines:
        """Lines that touch the curve, with rigorous offsets."""
        return self.bend(box).at(self.default_position(box) if slope is None else slope)

    def bend(self, box: Box) -> TouchingLines:
        """Lines on both sides."""
        xp = array_module(box.lower)
        points, heights = self._corners(box)
        above, below = (self._slopes(points, heights, sign) for sign in (1.0, -1.0))
        slack = 2.0 * self._slack(box, UNIT_ROUNDOFF)
        known = xp.isfinite(heights).all(axis=-1) & xp.isfinite(slack)
        return TouchingLines(points, heights, slack, above, below, known)

    def _inside(self, box: Box) -> Array:
        """Which knots are, (B, n, K)."""
        return (self.knots > box.lower[..., None]) & (self.knots < box.upper[..., None])

    def _corners(self, box: Box) -> tuple[Array, Array]:
        """The ends with the knots between them, those outside moved to the ends, and f there.

        Returns:
            Arrays (B, n, K + 2) each.
        """
        xp = array_module(box.lower)
        lower, upper = box.lower[..., None], box.upper[..., None]
        at_lower, at_upper = self._sum(box.lower)[..., None], self._sum(box.upper)[..., None]
        knots = xp.minimum(xp.maximum(self.knots, lower), upper)
        heights = xp.where(self.knots >= upper, at_upper, self.heights)
        heights = xp.where(self.knots <= lower, at_lower, heights)
        points = xp.concatenate([lower, knots, upper], axis=-1)
        return points, xp.concatenate([at_lower, heights, at_upper], axis=-1)

    def _slopes(self, points: Array, heights: Array, sign: float) -> tuple[Array, Array, Array]:
        """Slopes of lines above sign times f, as those of f, at positions 0, 1/2 and 1."""
        xp = array_module(points)
        heights = sign * heights
        from_lower, to_upper = points - points[..., :1], points[..., -1:] - points
        width = from_lower[..., -1:]
        near = _NEAREST * width
        rise = heights - heights[..., :1]
        first = xp.where(
            from_lower > near, rise / xp.where(from_lower > near, from_lower, 1.0), -xp.inf
        )
        rest = heights[..., -1:] - heights
        last = xp.where(to_upper > near, rest / xp.where(to_upper > near, to_upper, 1.0), xp.inf)
        chord = rise[..., -1] / xp.where(width > 0, width, 1.0)[..., 0]
        wide, steepest = width[..., 0] > 0, self.steepest

        def kept(slope: Array) -> Array:
            slope = xp.minimum(xp.maximum(slope, -steepest), steepest)
            return sign * xp.where(wide, slope, 0.0)  # type: ignore[no-any-return]

        return kept(first.max(axis=-1)), kept(chord), kept(last.min(axis=-1))

    @classmethod
    def examples(cls, rng: np.random.Generator) -> list[Self]:
        """One curve for all, curves of their own, and a line."""
        knots = np.sort(rng.normal(size=(1, 6)), axis=1)
        weight, factor = rng.normal(size=(2, 4, 3))
        alike = cls(3, rng.normal(size=(1, 6)), np.ones((1, 6)), -knots, rng.normal(size=1))
        own = cls(4, weight, factor, rng.normal(size=(4, 3)), rng.normal(size=4))
        flat = np.array([[1.0, 2.0]])
        return [alike, own, cls(2, flat, 0.0 * flat, flat - 1.5, np.zeros(1))]


@dataclass(frozen=True, eq=False)
class TouchingLines(BentLines):
    """The lines of a piecewise linear curve on a box.

    Attributes:
        points, heights: ends and knots, and the curve there, (B, n, K + 2).
        slack: of offsets, (B, n).
        above, below: slopes at positions 0, 1/2 and 1 of lines on that side, (B, n) each.
        known: where nothing overflows.
    """

    points: Array
    heights: Array
    slack: Array
    above: tuple[Array, Array, Array]
    below: tuple[Array, Array, Array]
    known: Array

    def at(self, position: Array) -> Lines:
        """Lines with rigorous offsets."""
        lower, upper = self._slope(self.below, position), self._slope(self.above, position)
        xp = array_module(lower)
        under = (self.heights - lower[..., None] * self.points).min(axis=-1) - self.slack
        over = (self.heights - upper[..., None] * self.points).max(axis=-1) + self.slack
        return Lines(
            lower, xp.where(self.known, under, -xp.inf), upper, xp.where(self.known, over, xp.inf)
        )

    def gains(self, position: Array, z: Array) -> tuple[Array, Array]:
        """d/ds [f(p) + k (z - p)] = (z - p) dk/ds, where p is where the line touches."""
        return self._gain(self.below, -1.0, position, z), self._gain(self.above, 1.0, position, z)

    def largest(self, zero: Array) -> Lines:
        """In the slope an offset is convex, or concave; between the ends it is no value of f."""
        xp = array_module(zero)
        ends = super().largest(zero)
        inside = xp.where(self.known, abs(self.heights).max(axis=-1) + self.slack, xp.inf)
        offset = xp.maximum(ends.lower_offset, inside)
        return Lines(ends.lower_slope, offset, ends.upper_slope, offset)

    def _slope(self, side: tuple[Array, Array, Array], position: Array) -> Array:
        first, chord, last = side
        xp = array_module(first)
        early = first + 2.0 * position * (chord - first)
        late = chord + (2.0 * position - 1.0) * (last - chord)
        return xp.where(self.known, xp.where(position < 0.5, early, late), 0.0)  # type: ignore[no-any-return]

    def _gain(
        self, side: tuple[Array, Array, Array], sign: float, position: Array, z: Array
    ) -> Array:
        first, chord, last = side
        xp = array_module(z)
        slope = self._slope(side, position)
        touching = (sign * (self.heights - slope[..., None] * self.points)).argmax(axis=-1)
        point = xp.take_along_axis(self.points, touching[..., None], axis=-1)[..., 0]
        step = 2.0 * xp.where(position < 0.5, chord - first, last - chord)
        return xp.where(self.known, step * (z - point), 0.0)  # type: ignore[no-any-return]
