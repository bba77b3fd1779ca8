"""Rule R15: products and quotients of two computed scalars lie between two planes.

Let a and b lie in [al, au] and [bl, bu]. For any floats k and m the function ``a b - k a - m b`` is
linear in a and in b, hence extreme at the four corners: so ``k a + m b + (least corner)`` is below
the product, and a plane above it is had likewise. The slopes taken are by default the middles of b
and of a. With a position s in [0, 1] they are

    k = bl + s (bu - bl),    m = al + s (au - al) below,    m = au - s (au - al) above,

of which either end touches the product along two edges (McCormick, 1976); as s grows, the plane
below grows by (bu - bl) (a - middle of a) + (au - al) (b - middle of b), and the one above by the
difference of the two.

For the quotient let c be any float, d = a - c b and r = 1 / b, where [bl, bu] must not come near
zero. Then

    a / b  =  c + d r  >=  c + k d + m r + e  =  c + k a - k c b + m r + e,

with the plane (k, m, e) of the product of d and r, and ``m r`` is at least m times the lower line
of 1 / b (`onnxcert.checker.curves`) if m >= 0 and m times the upper one if not. The range of d
follows from those of a and b, and from bounds of y = a / b, for d = (y - c) b; and bounds of d,
which are pulled back like those of any form (R2), give bounds of y. Near c = y little is lost
however widely a and b vary together.

What is computed here is off by a few roundings of the parts of each sum, of which sixteen are
charged, and slopes that underflow by less than `_UNDERFLOWN`. What is not finite is no bound.
"""

from __future__ import annotations

import numpy as np

from onnxcert.checker import curves
from onnxcert.checker.curves import TINY, Array, U

Range = tuple[Array, Array]
Planes = tuple[Array, Array, Array, Array, Array]
"""Slope of a; middle and half of the difference of the slopes of b, lower and upper; middle and
half of the difference of the offsets."""

_ERROR = 16 * U
_LARGEST = np.finfo(np.float64).max

_UNDERFLOWN = 1e-300
"""More than products lose that underflow."""

_POINT = 2.0**-30
"""A range of a smaller share of its larger end is a number and its roundings."""


def take(planes: Planes, index: Array) -> Planes:
    """Those of some sets."""
    k, mean, half, middle, gap = planes
    return k[index], mean[index], half[index], middle[index], gap[index]


def interval(kind: str, a: Range, b: Range) -> Range:
    """All values over a rectangle."""
    return _product(a, b if kind == "product" else _inverse(b))


def bends(kind: str, a: Range, b: Range) -> Array:
    """Where both scalars have a range worth the name, and a quotient is defined."""
    wide = [high - low > _POINT * np.maximum(abs(low), abs(high)) for low, high in (a, b)]
    finite = np.isfinite(a[0] + a[1] + b[0] + b[1])
    return np.asarray(wide[0] & wide[1] & finite & (curves.apart(*b) | (kind == "product")))


def center(a: Range, b: Range, made: Range) -> Array:
    """The c for a quotient with bounds ``made``; zero where there is no use for one."""
    ratio = np.clip((a[0] + a[1]) / (b[0] + b[1]), *made)
    return np.where(bends("quotient", a, b) & np.isfinite(ratio), ratio, 0.0)


def from_difference(b: Range, c: Array, d: Range) -> Range:
    """Bounds of a quotient from those of d = a - c b."""
    low, high = _product(d, _inverse(b))
    error = _ERROR * (abs(c) + np.maximum(abs(low), abs(high))) + TINY
    low, high = c + low - error, c + high + error
    return np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high)


def planes(kind: str, a: Range, b: Range, made: Range, free: Array | None = None) -> Planes:
    """Planes for ranges (B, n) and bounds ``made`` of what the block makes.

    Args:
        free: positions (B, n) in [0, 1] for products; None for the default.
    """
    if kind == "product" and free is None:
        k, m, low, high = _planes(a, b)
        return _known(k, m, m, low, high)
    if kind == "product":
        k = b[0] + free * (b[1] - b[0])
        step = free * (a[1] - a[0])
        below, above = a[0] + step, a[1] - step
        return _known(k, below, above, _offsets(a, b, k, below)[0], _offsets(a, b, k, above)[1])
    c = center(a, b, made)
    k, m, low, high = _planes(_difference(a, b, c, made), _inverse(b))
    below, at_below, above, at_above = curves.lines("reciprocal", *b, None, None, False)
    reach = np.maximum(abs(b[0]), abs(b[1]))
    slopes, offsets = [], []
    for sign, offset in ((1.0, low), (-1.0, high)):
        lower = sign * m >= 0
        slope, height = np.where(lower, below, above), np.where(lower, at_below, at_above)
        height = np.where(m == 0, 0.0, m * height)
        slopes.append(m * slope - k * c)
        size = (abs(m * slope) + abs(k * c)) * reach + abs(c) + abs(offset) + abs(height)
        error = _ERROR * size + _UNDERFLOWN * reach + TINY
        offsets.append(c + offset + height - sign * error)
    return _known(k, *slopes, *offsets)


def _inverse(b: Range) -> Range:
    """The range of 1 / b."""
    return curves.interval("reciprocal", *b, None, False)


def _corners(a: Range, b: Range) -> list[tuple[Array, Array]]:
    return [(x, y) for x in a for y in b]


def _product(a: Range, b: Range) -> Range:
    """The range of a b; NaN, where zero meets infinity, is no bound."""
    values = [x * y for x, y in _corners(a, b)]
    low, high = np.minimum.reduce(values), np.maximum.reduce(values)
    low = np.where(np.isnan(low), -np.inf, np.minimum(low, _LARGEST))
    high = np.where(np.isnan(high), np.inf, np.maximum(high, -_LARGEST))
    return low - _ERROR * abs(low) - TINY, high + _ERROR * abs(high) + TINY


def _difference(a: Range, b: Range, c: Array, made: Range) -> Range:
    """The range of a - c b."""
    sides = c * b[0], c * b[1]
    reach = [np.maximum(abs(low), abs(high)) for low, high in (a, b, made)]
    error = _ERROR * (reach[0] + abs(c) * reach[1]) + TINY
    low, high = a[0] - np.maximum(*sides) - error, a[1] - np.minimum(*sides) + error
    error = _ERROR * (reach[2] + abs(c)) + TINY
    other = _product((made[0] - c - error, made[1] - c + error), b)
    low, high = np.maximum(low, other[0]), np.minimum(high, other[1])
    return np.minimum(low, high), np.maximum(low, high)


def _planes(a: Range, b: Range) -> tuple[Array, Array, Array, Array]:
    """Slopes of a and of b, and the offsets below and above; NaN where nothing is known."""
    k = np.where(a[0] < a[1], 0.5 * (b[0] + b[1]), 0.0)
    m = np.where(b[0] < b[1], 0.5 * (a[0] + a[1]), 0.0)
    return k, m, *_offsets(a, b, k, m)


def _offsets(a: Range, b: Range, k: Array, m: Array) -> Range:
    """Offsets below and above of planes with given slopes."""
    values = [x * y - k * x - m * y for x, y in _corners(a, b)]
    x, y = (np.maximum(abs(low), abs(high)) for low, high in (a, b))
    error = _ERROR * (x * y + abs(k) * x + abs(m) * y) + TINY
    return np.minimum.reduce(values) - error, np.maximum.reduce(values) + error


def turn(a: Range, b: Range, row: Array, first: Array, second: Array) -> Array:
    """What rows (B, n) over products gain at values of both scalars, per unit of the position."""
    over_a = (b[1] - b[0]) * (first - 0.5 * (a[0] + a[1]))
    over_b = (a[1] - a[0]) * (second - 0.5 * (b[0] + b[1]))
    return np.asarray(row * over_a + abs(row) * over_b)


def _known(k: Array, below: Array, above: Array, low: Array, high: Array) -> Planes:
    """The planes, with slopes zero and an infinite gap where they are not finite."""
    known = np.isfinite(k + below + above + low + high)
    k, below, above, low, high = (np.where(known, x, 0.0) for x in (k, below, above, low, high))
    # Middle minus half is off by a rounding of each; the caller charges for more than that.
    gap = np.where(known, 0.5 * (high - low), np.inf)
    return k, 0.5 * (below + above), 0.5 * (above - below), 0.5 * (low + high), gap
