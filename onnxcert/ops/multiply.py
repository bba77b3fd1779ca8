"""Multiply: a b of two computed values, between McCormick's planes.

Over a rectangle [al, au] x [bl, bu] the products of the distances from two faces that meet are not
negative (McCormick, *Computability of Global Solutions to Factorable Nonconvex Programs*, 1976):

    a b >= bl a + al b - al bl,    a b >= bu a + au b - au bu,
    a b <= bl a + au b - au bl,    a b <= bu a + al b - al bu.

By default the mean of the two lower planes and the mean of the two upper ones are used. Both have
the slopes of the tangent at the middle of the rectangle, so they are parallel, and a quarter of the
area is the farthest that either comes from the surface: first-order terms of both factors survive,
and what is lost is of second order. Where one factor is a single number c, the product is c times
the other, and nothing is lost.

Each of the planes above touches the surface along two edges, so for a form that is least at a
corner one of them is better than their mean. With a position s in [0, 1] and the widths v of a and
w of b the planes that are taken are

    k = bl + s w,    m = al + s v below,    m = au - s v above,

from the first of either two to the last for s from 0 to 1; at (a, b) the lower one grows with s by
``w (a - ma) + v (b - mb)`` and the upper one by ``w (a - ma) - v (b - mb)``, with the middles ma
and mb.

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
    turns: ClassVar[bool] = True
    multiplies: ClassVar[bool] = True
    keeps_whole: ClassVar[bool] = True

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
        """Planes between McCormick's; without a position, parallel ones.

        With one they hold for each slope that comes of it, as nothing else is asked of slopes.
        """
        del made
        first, second = boxes
        xp = array_module(first.lower)
        middles = 0.5 * (first.lower + first.upper), 0.5 * (second.lower + second.upper)
        k, below = middles[1], middles[0]
        if position is not None:
            k = second.lower + position * (second.upper - second.lower)
            below = first.lower + position * (first.upper - first.lower)
        # c b is a plane with no slope in a factor that is the number c.
        k = xp.where(first.lower < first.upper, k, 0.0)
        below = xp.where(second.lower < second.upper, below, 0.0)
        above = below
        if position is not None:
            above = xp.where(second.lower < second.upper, first.lower + first.upper - below, 0.0)
        corners = _corners(boxes)
        lower, upper = _extremes([a * b - k * a - below * b for a, b in corners])
        if position is not None:
            _, upper = _extremes([a * b - k * a - above * b for a, b in corners])
        a, b = first.magnitude, second.magnitude
        steep = xp.maximum(abs(below), abs(above))
        slack = 8.0 * UNIT_ROUNDOFF * (a * b + abs(k) * a + steep * b) + TINY
        lower, upper = lower - slack, upper + slack
        known = xp.isfinite(lower) & xp.isfinite(upper)  # also where a corner is infinity times 0
        k, low, high = (xp.where(known, slope, 0.0) for slope in (k, below, above))
        lower, upper = xp.where(known, lower, -xp.inf), xp.where(known, upper, xp.inf)
        return Planes((k, low), lower, (k, high), upper)

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
