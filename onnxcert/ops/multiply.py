"""Multiply: a b of two computed values, between McCormick's planes.

Over a rectangle [al, au] x [bl, bu] the products of the distances from two faces that meet are not
negative (McCormick, *Computability of Global Solutions to Factorable Nonconvex Programs*, 1976):

    a b >= bl a + al b - al bl,    a b >= bu a + au b - au bu,
    a b <= bu a + al b - al bu,    a b <= bl a + au b - au bl.

By default the mean of the two lower planes and the mean of the two upper ones are used. Both have
the slopes of the tangent at the middle of the rectangle, so they are parallel, and a quarter of the
area is the farthest that either comes from the surface: first-order terms of both factors survive,
and what is lost is of second order. Where one factor is a single number c, the product is c times
the other, and nothing is lost. Other means of the planes are as right, and an ascent looks for
better ones: what a form loses hangs on where in the rectangles it is least.

However the slopes (k, m) were found, ``a b - k a - m b`` is linear in each of a and b and therefore
extreme at corners. So the offsets are the least and the largest value at the four corners, with a
slack for the rounding of those, and no slope need be exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from onnxcert.arrays import UNIT_ROUNDOFF, Array, array_module
from onnxcert.ops.base import EXTRA_ROUNDINGS, LARGEST, TINY, Bivariate, register
from onnxcert.sets import Box, Planes

_POINT = 2.0**-30
"""A range of less than this share of its larger end is a number and its roundings."""


@register
@dataclass(frozen=True)
class Multiply(Bivariate):
    """a b."""

    size: int

    roundings: ClassVar[int] = EXTRA_ROUNDINGS
    multiplies: ClassVar[bool] = True

    def forward(self, inputs: Sequence[Array]) -> Array:
        """a b, pair by pair."""
        return inputs[0] * inputs[1]

    def vjp(self, gradient: Array, inputs: Sequence[Array]) -> list[Array]:
        """(b g, a g)."""
        return [gradient * inputs[1], gradient * inputs[0]]

    def interval(self, boxes: Sequence[Box], unit: float) -> Box:
        """The least and the largest product of two ends; NaN where zero meets infinity."""
        xp = array_module(boxes[0].lower)
        products = [a * b for a, b in _corners(boxes)]
        lower, upper = _extremes(products)
        # What overflows is a bound on one side only.
        lower, upper = xp.minimum(lower, LARGEST), xp.maximum(upper, -LARGEST)
        slack = 2.0 * self.roundings * unit
        return Box(lower - slack * abs(lower) - TINY, upper + slack * abs(upper) + TINY)

    def relax(self, boxes: Sequence[Box], made: Box, position: Array | None = None) -> Planes:
        """Means of McCormick's planes with weights ``position`` and one minus that.

        Those in the order above for the lower plane, in reverse order for the upper one; so both
        have one slope in a. Equal weights make parallel planes with the slopes of the tangent at
        the middle of the rectangle.
        """
        del made
        if position is not None:
            return self._leaning(boxes, position)
        first, second = boxes
        xp = array_module(first.lower)
        # c b is a plane with no slope in a factor that is the number c.
        k = xp.where(first.lower < first.upper, 0.5 * (second.lower + second.upper), 0.0)
        m = xp.where(second.lower < second.upper, 0.5 * (first.lower + first.upper), 0.0)
        lower, upper = _extremes([a * b - k * a - m * b for a, b in _corners(boxes)])
        a, b = first.magnitude, second.magnitude
        slack = 8.0 * UNIT_ROUNDOFF * (a * b + abs(k) * a + abs(m) * b) + TINY
        lower, upper = lower - slack, upper + slack
        known = xp.isfinite(lower) & xp.isfinite(upper)  # also where a corner is infinity times 0
        slopes = xp.where(known, k, 0.0), xp.where(known, m, 0.0)
        below, above = xp.where(known, lower, -xp.inf), xp.where(known, upper, xp.inf)
        return Planes(slopes, below, slopes, above)

    def _leaning(self, boxes: Sequence[Box], position: Array) -> Planes:
        """`relax` for given positions: any slopes are right, if the offsets fit them."""
        first, second = boxes
        xp = array_module(first.lower)
        rest = 1.0 - position
        k = xp.where(first.lower < first.upper, position * second.lower + rest * second.upper, 0.0)
        wide = second.lower < second.upper
        below = xp.where(wide, position * first.lower + rest * first.upper, 0.0)
        above = xp.where(wide, rest * first.lower + position * first.upper, 0.0)
        lower, _ = _extremes([a * b - k * a - below * b for a, b in _corners(boxes)])
        _, upper = _extremes([a * b - k * a - above * b for a, b in _corners(boxes)])
        a, b = first.magnitude, second.magnitude
        steepest = xp.maximum(abs(below), abs(above))
        slack = 8.0 * UNIT_ROUNDOFF * (a * b + abs(k) * a + steepest * b) + TINY
        lower, upper = lower - slack, upper + slack
        known = xp.isfinite(lower) & xp.isfinite(upper)
        k, below, above = (xp.where(known, slope, 0.0) for slope in (k, below, above))
        lower, upper = xp.where(known, lower, -xp.inf), xp.where(known, upper, xp.inf)
        return Planes((k, below), lower, (k, above), upper)

    def bends(self, boxes: Sequence[Box]) -> Array:
        """Where both factors have a range worth the name."""
        first, second = (box.upper - box.lower > _POINT * box.magnitude for box in boxes)
        return first & second

    @classmethod
    def examples(cls, rng: np.random.Generator) -> list[Self]:
        """One size is like another."""
        del rng
        return [cls(4)]


def _corners(boxes: Sequence[Box]) -> list[tuple[Array, Array]]:
    first, second = boxes
    return [(a, b) for a in (first.lower, first.upper) for b in (second.lower, second.upper)]


def _extremes(values: Sequence[Array]) -> tuple[Array, Array]:
    """The least and the largest, entry by entry; NaN where one is."""
    xp = array_module(values[0])
    lower = xp.minimum(xp.minimum(values[0], values[1]), xp.minimum(values[2], values[3]))
    upper = xp.maximum(xp.maximum(values[0], values[1]), xp.maximum(values[2], values[3]))
    return lower, upper
