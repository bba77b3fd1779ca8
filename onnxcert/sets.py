"""Sets of values: boxes, and the pair of lines that encloses a curve over an interval.

Everything is batch first: a ``Box`` holds ``(B, n)`` arrays, one row per subproblem. A batch of
one broadcasts over any other, which is how bounds shared by all subproblems are stored once.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxcert.arrays import Array, array_module


@dataclass(frozen=True)
class Box:
    """All x with ``lower <= x <= upper``; arrays of shape (B, n)."""

    lower: Array
    upper: Array

    @property
    def magnitude(self) -> Array:
        """The largest absolute value of each coordinate, (B, n)."""
        xp = array_module(self.lower)
        return xp.maximum(xp.abs(self.lower), xp.abs(self.upper))  # type: ignore[no-any-return]

    @property
    def empty(self) -> Array:
        """Which boxes have a lower bound above an upper one: (B,)."""
        crossed: Array = self.lower > self.upper
        return array_module(crossed).any(crossed, axis=1)  # type: ignore[no-any-return]

    def intersect(self, other: Box) -> Box:
        """The coordinates in both boxes (may be empty: then lower > upper somewhere)."""
        xp = array_module(self.lower)
        return Box(xp.maximum(self.lower, other.lower), xp.minimum(self.upper, other.upper))

    def defined(self) -> Box:
        """The same box with undefined ends (infinity minus infinity) moved to infinity."""
        xp = array_module(self.lower)
        lower = xp.where(xp.isnan(self.lower), -xp.inf, self.lower)
        return Box(lower, xp.where(xp.isnan(self.upper), xp.inf, self.upper))

    def __len__(self) -> int:
        return len(self.lower)

    def take(self, index: Array) -> Box:
        """Those subproblems."""
        return Box(self.lower[index], self.upper[index])


@dataclass(frozen=True)
class Ball(Box):
    """The points of a box that are within a Euclidean distance of a centre.

    Attributes:
        center: (B, n).
        radius: (B,).
    """

    center: Array
    radius: Array

    @classmethod
    def around(cls, center: Array, radius: Array) -> Ball:
        """The ball alone, in the box that touches it (rounded outward)."""
        xp = array_module(center)
        lower, upper = center - radius[:, None], center + radius[:, None]
        return cls(xp.nextafter(lower, -xp.inf), xp.nextafter(upper, xp.inf), center, radius)

    def intersect(self, other: Box) -> Ball:
        """The part of it in another box."""
        box = super().intersect(other)
        return Ball(box.lower, box.upper, self.center, self.radius)

    def take(self, index: Array) -> Ball:
        """Those subproblems."""
        return Ball(self.lower[index], self.upper[index], self.center[index], self.radius[index])


@dataclass(frozen=True)
class Lines:
    """``lower_slope z + lower_offset <= f(z) <= upper_slope z + upper_offset`` on an interval.

    Arrays of shape (B, n). The inequalities hold exactly for the stored numbers: rounding has
    already been charged to the offsets.
    """

    lower_slope: Array
    lower_offset: Array
    upper_slope: Array
    upper_offset: Array
