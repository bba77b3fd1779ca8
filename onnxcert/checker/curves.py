"""Rules R4 and R5: lines below and above a curve on an interval, right for every float they hold.

Each line is given by a slope, any float, and an offset that is worked out from it. A curve with one
kink at zero minus a line is extreme at the ends and the kink. An S-shaped curve (convex left of
zero, concave right of it) minus a line is least at an end of the concave part or, on the convex
part, above its tangent at any point: no root has to be found exactly, a bad one only loosens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]

U = 2.0**-52
"""Twice the unit roundoff of float64: right in every rounding mode."""

TINY = 1e-290
_ULPS = 16 * U
"""Absolute error of NumPy's tanh and of what is made of it here; measured: under 2 ulps."""

_EXECUTED = 32 * 2.0**-24
"""Absolute error of a binary32 sigmoid or tanh; runtimes use rational approximations."""

SMOOTH = ("sigmoid", "tanh")
"""Curves whose lines are tangents."""

Lines = tuple[Array, Array, Array, Array]


def value(kind: str, x: Array, slope: Array | None = None) -> Array:
    """The curve in float64; exact but for sigmoid and tanh."""
    if kind == "sigmoid":
        return 0.5 + 0.5 * np.tanh(0.5 * x)
    if kind in ("tanh", "sign", "abs"):
        return getattr(np, kind)(x)  # type: ignore[no-any-return]
    if slope is None:
        return np.maximum(x, 0.0)
    return np.where(x > 0, x, slope * x)


def interval(
    kind: str, low: Array, high: Array, slope: Array | None, executed: bool
) -> tuple[Array, Array]:
    """All values of the curve over [low, high]; of every execution if ``executed``."""
    if kind in SMOOTH:
        slack = _ULPS + _EXECUTED * executed
        return value(kind, low) - slack, value(kind, high) + slack
    first, last = value(kind, low, slope), value(kind, high, slope)
    inside = (low < 0) & (high > 0) & (kind in ("abs", "leaky"))
    lower = np.where(inside, np.minimum(0.0, np.minimum(first, last)), np.minimum(first, last))
    upper = np.where(inside, np.maximum(0.0, np.maximum(first, last)), np.maximum(first, last))
    slack = (4 * U + executed * 2.0**-22) * (kind == "leaky")
    return lower - slack * abs(lower) - TINY, upper + slack * abs(upper) + TINY


def unstable(kind: str, low: Array, high: Array) -> Array:
    """Where no single line is the curve."""
    return low < high if kind in SMOOTH else (low < 0) & (high > 0)


def lines(
    kind: str, low: Array, high: Array, slope: Array | None, free: Array | None, executed: bool
) -> Lines:
    """Lower slope, lower offset, upper slope, upper offset, for low <= high.

    Args:
        kind, slope: the curve.
        low, high: the interval.
        free: positions in [0, 1]; NaN for the default: the slope that cuts off more, the tangent at
            the middle, and round zero the tangent at t.
        executed: cover binary32 executions of the curve.
    """
    if kind in SMOOTH:
        curve = _LOGISTIC if kind == "sigmoid" else _TANH
        upper_slope, upper = curve.line_above(low, high, free)
        lower_slope, mirrored = curve.line_above(-high, -low, free)
        error = _EXECUTED * executed
        return lower_slope, 2 * curve.middle - mirrored - error, upper_slope, upper + error
    if kind == "sign":
        return _jump(low, high)
    left, right = np.array(-1.0 if kind == "abs" else 0.0 if slope is None else slope), 1.0
    crosses = (low < 0) & (high > 0)
    stable = np.where(low >= 0, right, left)
    chord = (right * high - left * low) / np.where(crosses, high - low, 1.0)
    chord = np.where(crosses, chord, stable)
    usual = (high > -low) * 1.0
    free = usual if free is None else np.where(np.isnan(free), usual, free)
    turn = np.clip(left + free * (right - left), np.minimum(left, right), np.maximum(left, right))
    turn = np.where(crosses, turn, stable)
    ends = (left - chord) * low, (right - chord) * high
    bulge = np.where(crosses, np.maximum(*ends) * (1 + 8 * U) + TINY, 0.0)
    dip = np.where(crosses, np.minimum(*ends) * (1 + 8 * U) - TINY, 0.0)
    convex = np.broadcast_to(np.less_equal(left, right), crosses.shape)
    slack = np.zeros_like(low)
    if executed and kind == "leaky":  # one product
        slack = 2.0**-22 * np.maximum(abs(low), abs(high)) * np.maximum(1.0, abs(left))
    return (
        np.where(convex, turn, chord),
        np.where(convex, 0.0, dip) - slack,
        np.where(convex, chord, turn),
        np.where(convex, bulge, 0.0) + slack,
    )


def _jump(low: Array, high: Array) -> Lines:
    """Sign: from the foot of the jump to its head, or constants."""
    crosses = (low < 0) & (high > 0)
    up = 2.0 / np.where(crosses, np.maximum(high, 1e-300), 1.0) * (1 - 8 * U)
    down = 2.0 / np.where(crosses, np.maximum(-low, 1e-300), 1.0) * (1 - 8 * U)
    return (
        np.where(crosses & (high > -low), up, 0.0),
        np.where(crosses, -1.0, np.sign(low)),
        np.where(crosses & (high <= -low), down, 0.0),
        np.where(crosses, 1.0, np.sign(high)),
    )


class _SShaped:
    """f with f(-z) = 2 middle - f(z), convex for z <= 0, |f'| <= steepest, |f| <= 1."""

    def __init__(
        self, kind: str, middle: float, steepest: float, derivative: Callable[[Array], Array]
    ) -> None:
        self.kind, self.middle, self.steepest, self.derivative = kind, middle, steepest, derivative

    def line_above(self, low: Array, high: Array, free: Array | None) -> tuple[Array, Array]:
        """A slope and an offset with f(z) <= slope z + offset on [low, high]."""
        at_low, at_high = value(self.kind, low), value(self.kind, high)
        chord = (at_high - at_low) / np.where(high > low, high - low, 1.0)
        touch, straight = self._tangent(low, high, free)
        slope = np.where(straight, chord, self.derivative(touch))
        slope = np.clip(np.where(high > low, slope, 0.0), 0.0, self.steepest)
        # On the concave part f lies below its tangent at ``touch``, whatever that is.
        left, right = np.maximum(low, 0.0), np.maximum(high, 0.0)
        gap = self.derivative(touch) - slope
        over = value(self.kind, touch) - slope * touch
        over = over + np.maximum(gap * (left - touch), gap * (right - touch))
        # On the convex part the difference is largest at an end.
        over = np.where(high >= 0, over, -np.inf)
        over = np.where(low < 0, np.maximum(over, at_low - slope * low), over)
        near = np.minimum(high, 0.0)
        over = np.where(low < 0, np.maximum(over, value(self.kind, near) - slope * near), over)
        reach = 1.0 + self.steepest * np.maximum(abs(low), abs(high))
        return slope, over + 2 * _ULPS * reach

    def _tangent(self, low: Array, high: Array, free: Array | None) -> tuple[Array, Array]:
        """A point of the concave part to touch, and where to take the chord instead."""
        near, far, start = np.zeros_like(low), np.maximum(high, 0.0), value(self.kind, low)
        for _ in range(26):
            point = 0.5 * (near + far)
            above = value(self.kind, point) + self.derivative(point) * (low - point) >= start
            near, far = np.where(above, near, point), np.where(above, point, far)
        # If even the tangent at the upper end passes below (low, f(low)), the chord is the hull.
        straight = (low < 0) & ((high <= 0) | (far >= high))
        first = np.where(low >= 0, low, far)
        usual = np.where((low < 0) & (high > 0), 0.0, 0.5)
        free = usual if free is None else np.where(np.isnan(free), usual, free)
        return np.where(straight, far, first + free * (np.maximum(high, first) - first)), straight


def _tanh_slope(x: Array) -> Array:
    return (1.0 - np.tanh(x)) * (1.0 + np.tanh(x))


_TANH = _SShaped("tanh", 0.0, 1.0, _tanh_slope)
_LOGISTIC = _SShaped("sigmoid", 0.5, 0.25, lambda x: 0.25 * _tanh_slope(0.5 * x))


def derivative(kind: str, x: Array) -> Array:
    """Of a smooth curve, within 32 units in the last place of one; infinite x have zero."""
    return {"tanh": _TANH, "sigmoid": _LOGISTIC}[kind].derivative(x)
