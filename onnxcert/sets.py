"""Sets of values: boxes, and the pair of lines that encloses a curve over an interval.

Everything is batch first: a ``Box`` holds ``(B, n)`` arrays, one row per subproblem. A batch of
one broadcasts over any other, which is how bounds shared by all subproblems are stored once.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxcert.arrays import UNIT_ROUNDOFF, Array, Device, array_module, to_device


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

    def to(self, device: Device) -> Box:
        """The same on a device."""
        return Box(to_device(self.lower, device), to_device(self.upper, device))

    def take(self, index: Array) -> Box:
        """Those subproblems."""
        return Box(self.lower[index], self.upper[index])


@dataclass(frozen=True)
class Ball(Box):
    """The points of a box that lie in an ellipsoid with axes along the coordinates.

    That is, ``lower <= x <= upper`` and ``sum_i ((x_i - center_i) / axes_i)^2 <= 1``, where the sum
    is over the coordinates whose axis is not zero; it does not bound the others.

    Attributes:
        center: (B, n).
        axes: (B, n) semi-axes, finite and not negative.
    """

    center: Array
    axes: Array

    @classmethod
    def around(cls, center: Array, radius: Array) -> Ball:
        """Balls with a radius each (B,), in the boxes that touch them (rounded outward)."""
        xp = array_module(center)
        lower, upper = center - radius[:, None], center + radius[:, None]
        axes = xp.broadcast_to(radius[:, None], center.shape)
        return cls(xp.nextafter(lower, -xp.inf), xp.nextafter(upper, xp.inf), center, axes)

    @property
    def empty(self) -> Array:
        """Which are known to have no point: (B,); rounding may hide that two sets do not meet."""
        xp = array_module(self.lower)
        nearest = xp.minimum(xp.maximum(self.center, self.lower), self.upper)
        room = 1.0 + 2.0 * (nearest.shape[1] + 16) * UNIT_ROUNDOFF
        return super().empty | (self.norm(nearest) > room)  # type: ignore[no-any-return]

    def to(self, device: Device) -> Ball:
        """The same on a device."""
        parts = self.lower, self.upper, self.center, self.axes
        return Ball(*(to_device(part, device) for part in parts))

    def within(self, box: Box) -> Ball:
        """The same ellipsoid in other boxes."""
        return Ball(box.lower, box.upper, self.center, self.axes)

    def intersect(self, other: Box) -> Ball:
        """The part of it in another box."""
        return self.within(super().intersect(other))

    def take(self, index: Array) -> Ball:
        """Those subproblems."""
        parts = self.lower, self.upper, self.center, self.axes
        return Ball(*(part[index] for part in parts))

    def norm(self, points: Array) -> Array:
        """The norm of points (B, n) that is one on the ellipsoid and zero at its centre, (B,)."""
        xp = array_module(points)
        inside = self.axes > 0
        parts = xp.where(inside, (points - self.center) / xp.where(inside, self.axes, 1.0), 0.0)
        return xp.sqrt((parts * parts).sum(axis=1))  # type: ignore[no-any-return]

    def towards_center(self, points: Array, factor: Array) -> Array:
        """Points (B, n) whose distances from the centre are divided by factors (B,)."""
        moved = self.center + (points - self.center) / factor[:, None]
        return array_module(points).where(self.axes > 0, moved, points)  # type: ignore[no-any-return]


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
