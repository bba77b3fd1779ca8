"""Divide: a / b of two computed values, where b keeps away from zero.

For every number c the quotient is

    a / b  =  c + d r,    d = a - c b,  r = 1 / b,

and c shall be near to it. Then d stays near zero however widely a and b vary together, as they do
where b is a sum with a in it (a share, a mean with weights). The product d r lies between two
planes (`onnxcert.ops.multiply`); its slope in r is the middle of d, next to nothing, so that little
of the distance between the lines of 1 / b is left; and its own distance is half of range times
range. With c = 0, the product of a with 1 / b, both are in proportion to the quotient itself.

The range of d follows from bounds y of the quotient, as ``d = (y - c) b``, and those from bounds of
d, as ``y = c + d r``: `onnxcert.bounds.crown` bounds d backward, where a and b still cancel, and
hands on what follows for y. This is one step of Dinkelbach's method (*On Nonlinear Fractional
Programming*, 1967).

Every step is an identity or an inequality over the reals for any float c, and each sum of rounded
numbers is charged with eight roundings of its parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from onnxcert.arrays import UNIT_ROUNDOFF, Array, array_module
from onnxcert.ops.base import EXTRA_ROUNDINGS, TINY, Bivariate, register
from onnxcert.ops.multiply import Multiply
from onnxcert.ops.reciprocal import Reciprocal
from onnxcert.sets import Box, Planes

_ERROR = 8.0 * UNIT_ROUNDOFF

_UNDERFLOWN = 1e-300
"""More than products lose that underflow."""


@register
@dataclass(frozen=True)
class Divide(Bivariate):
    """a / b; nothing is known of it where the range of b contains zero."""

    size: int

    roundings: ClassVar[int] = EXTRA_ROUNDINGS

    def forward(self, inputs: Sequence[Array]) -> Array:
        """a / b, pair by pair."""
        return inputs[0] / inputs[1]

    def vjp(self, gradient: Array, inputs: Sequence[Array]) -> list[Array]:
        """(g / b, -g a / b^2)."""
        share = gradient / inputs[1]
        return [share, -share * inputs[0] / inputs[1]]

    def interval(self, boxes: Sequence[Box], unit: float) -> Box:
        """The product of the first range with the reciprocals of the second."""
        inverse = self._inverse.interval([boxes[1]], UNIT_ROUNDOFF)
        return self._product.interval([boxes[0], inverse], unit)

    def moved_by_flushing(self, boxes: Sequence[Box]) -> Array:
        """|1 / b|, because the second keeps away from what is flushed."""
        return self._inverse.interval([boxes[1]], UNIT_ROUNDOFF).magnitude

    def center(self, boxes: Sequence[Box], made: Box) -> Array:
        """A number near the quotient, (B, n): c above; zero where there is no use for one."""
        xp = array_module(made.lower)
        ratio = (boxes[0].lower + boxes[0].upper) / (boxes[1].lower + boxes[1].upper)
        center = xp.clip(ratio, made.lower, made.upper)
        return xp.where(self.bends(boxes) & xp.isfinite(center), center, 0.0)  # type: ignore[no-any-return]

    def from_difference(self, boxes: Sequence[Box], center: Array, difference: Box) -> Box:
        """Bounds of the quotient from bounds of d = a - c b."""
        inverse = self._inverse.interval([boxes[1]], UNIT_ROUNDOFF)
        share = self._product.interval([difference, inverse], UNIT_ROUNDOFF).defined()
        error = _ERROR * (abs(center) + share.magnitude) + TINY
        return Box(center + share.lower - error, center + share.upper + error).defined()

    def difference(self, boxes: Sequence[Box], center: Array, made: Box) -> Box:
        """Bounds of d = a - c b, from those of a and b and from those of the quotient."""
        first, second = boxes
        xp = array_module(center)
        products = center * second.lower, center * second.upper
        error = _ERROR * (first.magnitude + abs(center) * second.magnitude) + TINY
        lower = first.lower - xp.maximum(*products) - error
        upper = first.upper - xp.minimum(*products) + error
        apart = Box(made.lower - center, made.upper - center)
        error = _ERROR * (made.magnitude + abs(center)) + TINY
        apart = Box(apart.lower - error, apart.upper + error).defined()
        other = self._product.interval([apart, second], UNIT_ROUNDOFF)
        lower, upper = xp.fmax(lower, other.lower), xp.fmin(upper, other.upper)
        return Box(xp.minimum(lower, upper), xp.maximum(lower, upper))

    def relax(self, boxes: Sequence[Box], made: Box, position: Array | None = None) -> Planes:
        """Planes of c + d r, with the lines of r in the place of r."""
        del position
        second = boxes[1]
        xp = array_module(second.lower)
        center = self.center(boxes, made)
        difference = self.difference(boxes, center, made)
        inverse = self._inverse.interval([second], UNIT_ROUNDOFF)
        inner = self._product.relax([difference, inverse], made)
        lines = self._inverse.relax(second)
        sides = []
        for sign, (k, m), offset in (
            (1.0, inner.lower_slopes, inner.lower_offset),
            (-1.0, inner.upper_slopes, inner.upper_offset),
        ):
            takes_lower = sign * m >= 0
            slope = xp.where(takes_lower, lines.lower_slope, lines.upper_slope)
            height = xp.where(takes_lower, lines.lower_offset, lines.upper_offset)
            parts = m * slope, k * center
            steep = parts[0] - parts[1]
            height = xp.where(m == 0, 0.0, m * height)
            total = center + offset + height
            error = (abs(parts[0]) + abs(parts[1])) * second.magnitude
            error = _ERROR * (error + abs(center) + abs(offset) + abs(height)) + TINY
            error = error + _UNDERFLOWN * second.magnitude
            sides.append((k, steep, total - sign * error))
        (k, below, lower), (_, above, upper) = sides
        known = xp.isfinite(lower) & xp.isfinite(upper) & xp.isfinite(below) & xp.isfinite(above)
        k, below, above = (xp.where(known, slope, 0.0) for slope in (k, below, above))
        return Planes(
            (k, below),
            xp.where(known, lower, -xp.inf),
            (k, above),
            xp.where(known, upper, xp.inf),
        )

    def bends(self, boxes: Sequence[Box]) -> Array:
        """Where both have a range worth the name, and the second keeps away from zero."""
        return self._product.bends(boxes) & self._inverse.defined(boxes[1])

    @property
    def _inverse(self) -> Reciprocal:
        return Reciprocal(self.size)

    @property
    def _product(self) -> Multiply:
        return Multiply(self.size)

    @classmethod
    def examples(cls, rng: np.random.Generator) -> list[Self]:
        """One size is like another."""
        del rng
        return [cls(4)]
