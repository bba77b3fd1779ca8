"""Sign: -1, 0 or 1, as in binarised networks.

The curve jumps, so no split makes it linear at zero itself: on [0, u] it is 0 at 0 and 1
elsewhere. A closed half can still be decided when the rest of the network does not care.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from onnxcert.arrays import UNIT_ROUNDOFF, Array, array_module
from onnxcert.ops.base import Elementwise, register
from onnxcert.sets import Box, Lines

_SMALLEST = 1e-300
"""Ends nearer to zero get the slope of this one, which is flatter and so holds as well."""


@register
@dataclass(frozen=True)
class Sign(Elementwise):
    """The sign of x, zero at zero: exact in floating point."""

    size: int
    kinks: ClassVar[tuple[float, ...]] = (0.0,)
    continuous: ClassVar[bool] = False
    makes_whole: ClassVar[bool] = True

    def value(self, x: Array) -> Array:
        """-1, 0 or 1."""
        return array_module(x).sign(x)  # type: ignore[no-any-return]

    def derivative(self, x: Array) -> Array:
        """The straight-through estimate of the attack: one near the jump, else zero.

        The true derivative is zero nearly everywhere, which would blind a gradient attack
        (Hubara et al., Binarized Neural Networks, 2016).
        """
        xp = array_module(x)
        return 1.0 / (1.0 + xp.abs(x))  # type: ignore[no-any-return]

    def slope_range(self, box: Box | None = None) -> tuple[Array, Array] | None:
        """Flat where no interval contains the jump; else there is none."""
        if box is None or bool(((box.lower <= 0) & (box.upper >= 0)).any()):
            return None
        zero = array_module(box.lower).zeros_like(box.lower)
        return zero, zero

    def relax(self, box: Box, slope: Array | None = None) -> Lines:
        """From the jump's foot to its head where the interval crosses zero, else constants."""
        del slope
        lower, upper = box.lower, box.upper
        xp = array_module(lower)
        bottom, top = xp.sign(lower), xp.sign(upper)
        crosses = (lower < 0) & (upper > 0)
        # A slope rounded down keeps the line under 1 at u (and over -1 at l).
        shrink = 1.0 - 4.0 * UNIT_ROUNDOFF
        steep_up = 2.0 / xp.where(crosses, xp.maximum(upper, _SMALLEST), 1.0) * shrink
        steep_down = 2.0 / xp.where(crosses, xp.maximum(-lower, _SMALLEST), 1.0) * shrink
        # Where the interval is lopsided the constant encloses less area than the steep line.
        use_lower = crosses & (upper > -lower)
        use_upper = crosses & (upper <= -lower)
        return Lines(
            xp.where(use_lower, steep_up, 0.0),
            xp.where(crosses, -1.0, bottom),
            xp.where(use_upper, steep_down, 0.0),
            xp.where(crosses, 1.0, top),
        )

    @classmethod
    def examples(cls, rng: np.random.Generator) -> list[Self]:
        """One size is like another."""
        del rng
        return [cls(3)]
