"""Linear forms over the part of a box in an ellipsoid: the dual problem, one number for each form.

A form p is cut into two, p = a + b, and

    min p . x  >=  min over the box of a . x  +  min over the ellipsoid of b . x
               =   a . m - |a| . r  +  b . c - |b * s|

with middle m and half width r of the box, centre c and semi-axes s of the ellipsoid. This holds for
any b, so that how b was found needs no care about rounding. Lagrangian duality says which b is
best. With a multiplier 1 / (2 mu) for the ellipsoid the least point is, in units of the semi-axes,
``y = clip(-mu p s, L, U)``, where L and U are the faces of the box seen from the centre; then b is
p where nothing is clipped and ``-y / (mu s)`` where something is; and mu is right when |y| = 1.

As a function of mu^2, |y|^2 is concave while the centre lies in the box, so that Newton's method
from the left, ``mu = 1 / |p s|``, the multiplier for the ellipsoid alone, never overshoots and only
adds to what is clipped. Half of the directions of an image that is black at most pixels lead out
of the box of pixels, which is worth a root of two.
"""

from __future__ import annotations

from onnxcert.arrays import Array, array_module
from onnxcert.sets import Ball, Box

_STEPS = 8
"""Newton steps; three to five are enough for most forms."""

_CLOSE = 1e-9
"""Relative change of all multipliers after which they are right."""


def divide(ball: Ball, rows: Array) -> tuple[Array, Array]:
    """Cut forms into a part for the box and one for the ellipsoid.

    Args:
        ball: batch of B or 1.
        rows: (B, R, n).

    Returns:
        The parts b for the ellipsoid and the points where the forms are least, (B, R, n) each.
    """
    xp = array_module(rows)
    axes = ball.axes[:, None]
    inside = axes > 0
    unit = xp.where(inside, axes, 1.0)
    low, high = (
        xp.where(inside, (face - ball.center)[:, None] / unit, 0.0)
        for face in (ball.lower, ball.upper)
    )
    scaled = rows * axes
    square = scaled * scaled
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
    away = -multiplier * scaled
    point = xp.clip(away, low, high)
    free = point == away
    part = xp.where(free, rows, -point / (multiplier * unit))
    # Where a corner of the box lies in the ellipsoid, that has no part in it.
    part = xp.where(xp.where(free, square, 0.0).sum(axis=2, keepdims=True) > 0, part, 0.0)
    corner = xp.where(rows >= 0, ball.lower[:, None], ball.upper[:, None])
    least = xp.where(inside, ball.center[:, None] + axes * point, corner)
    return xp.where(inside, part, 0.0), least


def minimiser(box: Box, rows: Array) -> Array:
    """Where forms (B, n) are least over boxes and balls, one for each: (B, n)."""
    if isinstance(box, Ball):
        return divide(box, rows[:, None])[1][:, 0]
    return array_module(rows).where(rows >= 0, box.lower, box.upper)  # type: ignore[no-any-return]
