"""Rules R4 and R5 for the exponential function, sine and cosine.

For every k > 0 the difference exp(z) - k z is least at z = log k, so a line of slope k with offset
``k - k log k`` is below exp everywhere; above it is the chord.

With f = sin or cos, |k| <= 1 and z_n the places where f'(z) = k and f(z) >= 0, the difference
f(z) - k z has its local maxima at the z_n, which lie a period apart and whose heights change by
``-2 pi k`` from one to the next. So over an interval it is largest at an end, at the first z_n or
at the last one. Its slope at z_n is zero: an error of d in z_n lowers the value by d^2 / 2 at most,
and a z_n that is taken for outside is that near to an end. Lower lines are minus the upper lines
of -f. Values are charged with `_ULPS`, which covers that too, as |z| <= 2^20; beyond that, f is
only known to lie between -1 and 1.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]
Lines: TypeAlias = tuple[Array, Array, Array, Array]

WAVES = ("exp", "sin", "cos")

U, TINY = 2.0**-52, 1e-290
_ULPS = 16 * U
"""Error of NumPy's functions, of exp and log in proportion; measured: under 2 ulps."""

_EXECUTED = 33 * 2.0**-24
"""The same in binary32."""

_LARGEST = 690.0
"""Larger values of exp count as infinite, so that sums of values have room."""

_FARTHEST = 2.0**20
_TURN = 2.0 * math.pi


def value(kind: str, x: Array) -> Array:
    """The curve in float64."""
    if kind != "exp":
        return np.asarray(getattr(np, kind)(x))
    return np.where(x > _LARGEST, np.inf, np.exp(np.minimum(x, _LARGEST)))


def derivative(kind: str, x: Array) -> Array:
    """Its slope."""
    if kind == "exp":
        return value(kind, x)
    return np.cos(x) if kind == "sin" else -np.sin(x)


def interval(kind: str, low: Array, high: Array, executed: bool) -> tuple[Array, Array]:
    """All values over [low, high]; of every execution if ``executed``."""
    slack = _ULPS + _EXECUTED * executed
    if kind == "exp":
        below = np.exp(np.minimum(low, _LARGEST)) * (1 - slack) - TINY
        return np.maximum(below, 0.0), value(kind, high) * (1 + slack) + TINY
    low, high, far = _near(low, high)
    flat = np.zeros_like(low)
    below, above = (_extreme(kind, low, high, flat, sign) for sign in (-1, 1))
    below, above = np.where(far, -1.0, below), np.where(far, 1.0, above)
    return np.maximum(below, -1.0) - slack, np.minimum(above, 1.0) + slack


def steepness(kind: str, low: Array, high: Array) -> tuple[Array, Array]:
    """Between which slopes the curve lies; infinite where nothing bounds them."""
    if kind == "exp":
        return interval("exp", low, high, False)
    if kind == "sin":
        below, above = interval("cos", low, high, False)
    else:
        above, below = (-side for side in interval("sin", low, high, False))
    return np.maximum(below, -1.0), np.minimum(above, 1.0)


def lines(kind: str, low: Array, high: Array, free: Array | None, executed: bool) -> Lines:
    """As `onnxcert.checker.curves.lines`.

    The free lines are tangents: those of exp touch between the ends, by default where the slope is
    that of the chord; those of a wave between the ends where it is concave, by default in the
    middle, and else between the place where a line from the other end touches, the default, and the
    end of the concave part.
    """
    if kind == "exp":
        return _exponential(low, high, free, executed)
    low, high, far = _near(low, high)
    slack = _ULPS + _EXECUTED * executed
    sides = []
    for sign in (-1, 1):
        slope = np.where(far, 0.0, _slope(kind, low, high, free, sign))
        offset = np.where(far, sign, _extreme(kind, low, high, slope, sign))
        reach = 1.0 + abs(slope) * np.maximum(abs(low), abs(high))
        sides += [slope, offset + sign * (slack + 2 * _ULPS * reach)]
    return sides[0], sides[1], sides[2], sides[3]


def _exponential(low: Array, high: Array, free: Array | None, executed: bool) -> Lines:
    first, last = np.clip(low, -745.0, 300.0), np.clip(high, -745.0, 300.0)
    width = np.where(last > first, last - first, 1.0)
    usual = (last - first + np.log(-np.expm1(-width) / width)) / width
    usual = np.where(last > first, np.clip(usual, 0.0, 1.0), 0.5)
    free = usual if free is None else np.where(np.isnan(free), usual, free)
    slope = np.exp(np.minimum(first + free * (last - first), last))
    part = slope * np.log(np.where(slope > 0, slope, 1.0))
    offset = slope - part - _ULPS * (slope + abs(part)) - TINY
    known = np.isfinite(low) & (high <= _LARGEST)
    low, high = np.where(known, low, 0.0), np.where(known, high, 0.0)
    ends = value("exp", low), value("exp", high)
    chord = (ends[1] - ends[0]) / np.where(high > low, np.minimum(high - low, 1e308), 1.0)
    above = np.maximum(ends[0] - chord * low, ends[1] - chord * high)
    size = ends[0] + ends[1] + chord * np.maximum(abs(low), abs(high))
    above = above + 2 * _ULPS * size + TINY
    # Where there is no chord the largest value is the line.
    above = np.where(known, above, np.inf)
    lost = _EXECUTED * executed * np.where(known, ends[1], np.inf) if executed else 0.0
    return slope, offset - lost, chord, above + lost


def _near(low: Array, high: Array) -> tuple[Array, Array, Array]:
    far = (low < -_FARTHEST) | (high > _FARTHEST)
    return np.where(far, 0.0, low), np.where(far, 0.0, high), far


def _extreme(kind: str, low: Array, high: Array, slope: Array, sign: int) -> Array:
    """The largest of f(z) - slope z for sign 1 and the least for -1, but for rounding."""
    place = sign * np.arccos(slope) - (0.5 * math.pi if kind == "cos" else 0.0)
    near = [np.rint((end - place) / _TURN) for end in (low, high)]
    points = [place + _TURN * (n + step) for n in near for step in (-1, 0, 1)]
    better = np.maximum if sign > 0 else np.minimum
    found = value(kind, low) - slope * low
    for point in (high, *(np.minimum(np.maximum(point, low), high) for point in points)):
        found = better(found, value(kind, point) - slope * point)
    return np.asarray(found)


def _slope(kind: str, low: Array, high: Array, free: Array | None, sign: int) -> Array:
    """The slope of a line above sign times f, as that of f."""
    ends = sign * value(kind, low), sign * value(kind, high)
    chord = np.clip(sign * (ends[1] - ends[0]) / np.where(high > low, high - low, 1.0), -1.0, 1.0)
    crosses = ends[0] * ends[1] < 0
    rises = ends[1] > 0
    start, end = np.where(rises, low, high), np.where(rises, high, low)
    height = np.where(rises, ends[0], ends[1])
    near, far = start, end
    for _ in range(24 * bool(crosses.any())):
        point = 0.5 * (near + far)
        tangent = value(kind, point) + derivative(kind, point) * (start - point)
        above = sign * tangent >= height
        near, far = np.where(above, near, point), np.where(above, point, far)
    hull = sign * (value(kind, end) + derivative(kind, end) * (start - end)) < height
    first, last = np.where(crosses, far, low), np.where(crosses, end, high)
    usual = np.where(crosses, 0.0, 0.5)
    free = usual if free is None else np.where(np.isnan(free), usual, free)
    straight = (crosses & hull) | (~crosses & ~((ends[0] >= 0) & (ends[1] >= 0)))
    straight |= high - low > math.pi
    tangent = np.clip(derivative(kind, first + free * (last - first)), -1.0, 1.0)
    return np.where(straight, chord, tangent)
