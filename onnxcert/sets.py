"""Sets of values: boxes, and the lines or planes that enclose a curve or a surface over them.

Everything is batch first: a ``Box`` holds ``(B, n)`` arrays, one row per subproblem. A batch of
one broadcasts over any other, which is how bounds shared by all subproblems are stored once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Self

from onnxcert.arrays import UNIT_ROUNDOFF, Array, Device, array_module, to_device

_POINT = 2.0**-45
"""A coordinate whose range is no larger than this share of it is a decimal between two floats."""

_STEPS = 8
"""Newton steps of `Ball.divide`; three to five are enough for most forms."""

_CLOSE = 1e-9
"""Relative change of all multipliers after which they are right."""


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
    def varies(self) -> Array:
        """Which coordinates are more than a decimal between two floats: (B, n)."""
        return self.upper - self.lower > _POINT * self.magnitude

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

    def map(self, change: Callable[[Array], Array]) -> Self:
        """The same set with every array of it changed."""
        return type(self)(*(change(getattr(self, part.name)) for part in fields(self)))

    def to(self, device: Device) -> Self:
        """The same on a device."""
        return self.map(lambda part: to_device(part, device))

    def take(self, index: Array) -> Self:
        """Those subproblems."""
        return self.map(lambda part: part[index])

    def within(self, box: Box) -> Box:
        """What is left of the set if its faces are those of a box."""
        return box

    def minimiser(self, rows: Array) -> Array:
        """Where linear forms (B, n) are least, one over each set: (B, n)."""
        return array_module(rows).where(rows >= 0, self.lower, self.upper)  # type: ignore[no-any-return]


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

    def within(self, box: Box) -> Ball:
        """The same ellipsoid in other boxes."""
        return Ball(box.lower, box.upper, self.center, self.axes)

    def intersect(self, other: Box) -> Ball:
        """The part of it in another box."""
        return self.within(super().intersect(other))

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

    def minimiser(self, rows: Array) -> Array:
        """Where linear forms (B, n) are least, one over each set: (B, n)."""
        return self.divide(rows[:, None])[1][:, 0]

    def divide(self, rows: Array) -> tuple[Array, Array]:
        """Cut linear forms into a part for the box and one for the ellipsoid.

        A form p is cut into two, p = a + b, and

            min p . x  >=  min over the box of a . x  +  min over the ellipsoid of b . x
                       =   a . m - |a| . r  +  b . c - |b * s|

        with middle m and half width r of the box, centre c and semi-axes s. This holds for any b,
        so that how b was found needs no care about rounding. Lagrangian duality says which b is
        best. With a multiplier 1 / (2 mu) for the ellipsoid the least point is, in units of the
        semi-axes, ``y = clip(-mu p s, L, U)``, where L and U are the faces of the box seen from the
        centre; then b is p where nothing is clipped and ``-y / (mu s)`` where something is; and mu
        is right when |y| = 1.

        As a function of mu^2, |y|^2 is concave while the centre lies in the box, so that Newton's
        method from the left, ``mu = 1 / |p s|``, the multiplier for the ellipsoid alone, never
        overshoots and only adds to what is clipped. Half of the directions of an image that is
        black at most pixels lead out of the box of pixels, which is worth a root of two.

        Args:
            rows: (B, R, n).

        Returns:
            The parts b for the ellipsoid and the points where the forms are least, (B, R, n) each.
        """
        xp = array_module(rows)
        axes = self.axes[:, None]
        inside = axes > 0
        unit = xp.where(inside, axes, 1.0)
        low, high = (
            xp.where(inside, (face - self.center)[:, None] / unit, 0.0)
            for face in (self.lower, self.upper)
        )
        scaled = rows * axes
        square = scaled * scaled
        multiplier = _multiplier(scaled, square, low, high)
        away = -multiplier * scaled
        point = xp.clip(away, low, high)
        free = point == away
        part = xp.where(free, rows, -point / (multiplier * unit))
        # Where a corner of the box lies in the ellipsoid, that has no part in it.
        part = xp.where(xp.where(free, square, 0.0).sum(axis=2, keepdims=True) > 0, part, 0.0)
        corner = xp.where(rows >= 0, self.lower[:, None], self.upper[:, None])
        least = xp.where(inside, self.center[:, None] + axes * point, corner)
        return xp.where(inside, part, 0.0), least


def _multiplier(scaled: Array, square: Array, low: Array, high: Array) -> Array:
    """The mu of `Ball.divide` for forms in units of the semi-axes, by Newton's method.

    Args:
        scaled, square: p s and its squares, (B, R, n).
        low, high: L and U, (B, 1, n).

    Returns:
        (B, R, 1).
    """
    xp = array_module(scaled)
    length = xp.sqrt(square.sum(axis=2, keepdims=True))
    multiplier = 1.0 / xp.where(length > 0, length, 1.0)
    for _ in range(_STEPS):
        away = -multiplier * scaled
        point = xp.clip(away, low, high)
        free = point == away
        if free.all():
            break
        left = 1.0 - xp.where(free, 0.0, point * point).sum(axis=2, keepdims=True)
        moving = xp.where(free, square, 0.0).sum(axis=2, keepdims=True)
        usable = (left > 0) & (moving > 0)
        found = xp.sqrt(xp.where(usable, left / xp.where(usable, moving, 1.0), 0.0))
        larger = xp.maximum(multiplier, found)
        done = bool((larger <= multiplier * (1.0 + _CLOSE)).all())
        multiplier = larger
        if done:
            break
    return multiplier  # type: ignore[no-any-return]


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


@dataclass(frozen=True)
class Planes:
    """Two planes round a function of two values over a rectangle of them.

    ``lower_slopes[0] a + lower_slopes[1] b + lower_offset <= f(a, b)``, and likewise above; arrays
    of shape (B, n). The inequalities hold exactly for the stored numbers, as those of `Lines` do.
    """

    lower_slopes: tuple[Array, Array]
    lower_offset: Array
    upper_slopes: tuple[Array, Array]
    upper_offset: Array
