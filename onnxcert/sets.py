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
