"""Floor: the largest whole number that is no larger, as in argument reduction and quantisation.

    z - 1 < floor(z) <= z

holds everywhere, and over an interval that no whole number divides floor is a constant. Between two
jumps it does not rise, so with any line it forms a difference that is extreme at the ends of the
interval, at the heads of jumps (k, k) and at their feet (k, k - 1); heads lie on one line and feet
on another, so the first and the last of either are enough. Lines are taken from the hull of these
points, and offsets are worked out from their slopes at these points, with a slack for rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from onnxcert.arrays import UNIT_ROUNDOFF, Array, array_module
from onnxcert.ops.base import Elementwise, register
from onnxcert.sets import Box, Lines

_FAR = 2.0**40
"""Where an end lies farther from zero than this, z - 1 and z are the lines."""

_NEAR = 2.0**-20
"""Ends nearer to a jump get the slope of this distance, which is flatter."""


@register
@dataclass(frozen=True)
class Floor(Elementwise):
    """The largest whole number that is no larger than x: exact in floating point."""

    size: int
    continuous: ClassVar[bool] = False
    floors: ClassVar[bool] = True
    makes_whole: ClassVar[bool] = True

    def value(self, x: Array) -> Array:
        """floor(x)."""
        return array_module(x).floor(x)  # type: ignore[no-any-return]

    def derivative(self, x: Array) -> Array:
        """Zero, as nearly everywhere: what is left of x - floor(x) is steep then, as it should."""
        return array_module(x).zeros_like(x)  # type: ignore[no-any-return]

    def slope_range(self, box: Box | None = None) -> tuple[Array, Array] | None:
        """Flat where no interval has a jump; else there is none."""
        if box is None or bool((self.value(box.lower) < self.value(box.upper)).any()):
            return None
        zero = array_module(box.lower).zeros_like(box.lower)
        return zero, zero

    def unstable(self, box: Box) -> Array:
        """Whether a whole number lies between the ends; it may be one of them, as for Sign."""
        return self.value(box.lower) + 1.0 < box.upper

    def split_point(self, box: Box) -> Array:
        """The whole number next to the middle; the middle where none lies between the ends."""
        xp = array_module(box.lower)
        middle = 0.5 * (box.lower + box.upper)
        for whole in (xp.ceil(middle), xp.floor(middle)):
            middle = xp.where((box.lower < whole) & (whole < box.upper), whole, middle)
        return middle

    def relax(self, box: Box, slope: Array | None = None) -> Lines:
        """Constants where there is no jump, z - 1 and z where there are several.

        At a single one they are constants or lines from its foot to the upper end and from the
        lower end to its head: whichever encloses less.
        """
        del slope
        xp = array_module(box.lower)
        far = ~((box.lower > -_FAR) & (box.upper < _FAR))
        lower, upper = (xp.where(far, 0.0, end) for end in (box.lower, box.upper))
        bottom, top = xp.floor(lower), xp.floor(upper)
        several, single = top > bottom + 1.0, top == bottom + 1.0
        before, behind = top - lower, upper - top
        steep_up = xp.where(single & (behind > before), 1.0 / xp.maximum(behind, _NEAR), 0.0)
        steep_down = xp.where(single & (behind <= before), 1.0 / xp.maximum(before, _NEAR), 0.0)
        rises, falls = (xp.where(several, 1.0, steep) for steep in (steep_up, steep_down))
        jumps, reach = top > bottom, xp.maximum(abs(lower), abs(upper)) + 1.0
        places = [lower, upper, xp.where(jumps, bottom + 1.0, lower), xp.where(jumps, top, lower)]
        sides = []
        for sign, k, below_head in ((1.0, rises, 1.0), (-1.0, falls, 0.0)):
            heights = [bottom, top]
            heights += [xp.where(jumps, place - below_head, bottom) for place in places[2:]]
            gaps = [sign * (y - k * z) for z, y in zip(places, heights, strict=True)]
            least = xp.minimum(xp.minimum(gaps[0], gaps[1]), xp.minimum(gaps[2], gaps[3]))
            # Constants are whole numbers, which are not rounded.
            slack = xp.where(k == 0.0, 0.0, 8.0 * UNIT_ROUNDOFF * (1.0 + k) * reach)
            sides.append(sign * (least - slack))
        whole = xp.where(far, 1.0, 0.0)
        return Lines(
            xp.where(far, whole, rises),
            xp.where(far, -1.0, sides[0]),
            xp.where(far, whole, falls),
            xp.where(far, 0.0, sides[1]),
        )

    @classmethod
    def examples(cls, rng: np.random.Generator) -> list[Self]:
        """One size is like another."""
        del rng
        return [cls(3)]
