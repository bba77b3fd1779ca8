"""Rules R4 and R5: lines below and above a curve on an interval, right for every float they hold.

Each line is given by a slope, any float, and an offset that is worked out from it. A curve with one
kink at zero minus a line is extreme at the ends and the kink, floor minus a line at the ends and
where it jumps. An S-shaped curve (convex left of zero, concave right of it) minus a line is least
at an end of the concave part or, on the convex part, above its tangent at any point: no root has to
be found exactly, a bad one only loosens.
Whole powers and the reciprocal are convex right of zero and even or odd, and go the same way.
Exponential functions and waves are in `onnxcert.checker.waves`, sums of relus of one number in
`onnxcert.checker.pieces`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from onnxcert.checker import pieces, waves
from onnxcert.checker.pieces import PIECES
from onnxcert.checker.waves import WAVES

Array: TypeAlias = np.ndarray[Any, Any]

U = 2.0**-52
"""Twice the unit roundoff of float64: right in every rounding mode."""

TINY = 1e-290
_ULPS = 16 * U
"""Absolute error of NumPy's tanh and of what is made of it here; measured: under 2 ulps."""

_EXECUTED = 32 * 2.0**-24
"""Absolute error of a binary32 sigmoid or tanh; runtimes use rational approximations."""

SMOOTH = ("sigmoid", "tanh")
"""Curves that level off, whose roundings are those of one."""

CONVEX = ("power", "reciprocal")
"""Curves that are convex right of zero, and even or odd."""

BENT = (*SMOOTH, *CONVEX, *WAVES, PIECES)
"""Curves whose lines are tangents, or touch as tangents do."""

MOST = 64
"""The largest exponent."""

_ROUNDED = 512 * U
"""Relative error of powers with up to that many factors, of their derivatives, and of 1 / x."""

_RELATIVE = {"power": 2.0**-15, "reciprocal": 2.0**-20}
"""The same in binary32; runtimes may take exp(n log x), whose error grows with n log x."""

_NEAREST = 2.0**-100
"""Divisors nearer to zero count as zero: executions may take them for it."""

_FARTHEST = 2.0**500
"""Squares of divisors farther from zero may overflow, and slopes of 1 / x vanish."""

_WHOLE = 2.0**40
"""Farther from zero nothing is said of floor but that z - 1 and z enclose it."""

_LARGEST = np.finfo(np.float64).max

Lines = tuple[Array, Array, Array, Array]


def value(kind: str, x: Array, slope: Array | None = None) -> Array:
    """The curve in float64; exact but for those in `BENT`."""
    if kind in CONVEX:
        return _convex(kind, slope).value(x)
    if kind in WAVES:
        return waves.value(kind, x)
    if kind == "sigmoid":
        return 0.5 + 0.5 * np.tanh(0.5 * x)
    if kind in ("tanh", "sign", "abs", "floor"):
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
    if kind in CONVEX:
        return _convex(kind, slope).interval(low, high, _RELATIVE[kind] * executed)
    if kind in WAVES:
        return waves.interval(kind, low, high, executed)
    if kind == PIECES and slope is not None:
        return pieces.interval(slope, low, high)
    first, last = value(kind, low, slope), value(kind, high, slope)
    inside = (low < 0) & (high > 0) & (kind in ("abs", "leaky"))
    lower = np.where(inside, np.minimum(0.0, np.minimum(first, last)), np.minimum(first, last))
    upper = np.where(inside, np.maximum(0.0, np.maximum(first, last)), np.maximum(first, last))
    slack = (4 * U + executed * 2.0**-22) * (kind == "leaky")
    return lower - slack * abs(lower) - TINY, upper + slack * abs(upper) + TINY


def unstable(kind: str, low: Array, high: Array) -> Array:
    """Where no single line is the curve; a jump may be at an end."""
    if kind == "floor":
        return np.floor(low) + 1.0 < high
    return low < high if kind in BENT else (low < 0) & (high > 0)


def lines(
    kind: str, low: Array, high: Array, slope: Array | None, free: Array | None, executed: bool
) -> Lines:
    """Lower slope, lower offset, upper slope, upper offset, for low <= high.

    Args:
        kind, slope: the curve.
        low, high: the interval.
        free: positions in [0, 1]; NaN for the default: the slope that cuts off more, the tangent at
            the middle (of convex curves the one parallel to the chord), and round zero the tangent
            at t.
        executed: cover binary32 executions of the curve.
    """
    if kind in SMOOTH:
        curve = _LOGISTIC if kind == "sigmoid" else _TANH
        upper_slope, upper = curve.line_above(low, high, free)
        lower_slope, mirrored = curve.line_above(-high, -low, free)
        error = _EXECUTED * executed
        return lower_slope, 2 * curve.middle - mirrored - error, upper_slope, upper + error
    if kind in CONVEX:
        return _convex(kind, slope).lines(low, high, free, _RELATIVE[kind] * executed)
    if kind in WAVES:
        return waves.lines(kind, low, high, free, executed)
    if kind == PIECES and slope is not None:
        return pieces.lines(slope, low, high, free)
    if kind == "sign":
        return _jump(low, high)
    if kind == "floor":
        return _stairs(low, high)
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


def _stairs(low: Array, high: Array) -> Lines:
    """Floor: constants without a jump, z - 1 and z for several, and like `_jump` for a single one.

    Floor minus a line of slope k >= 0 is extreme at the ends, at (m, m) and at (m, m - 1) for the
    first and the last whole number m of the interval, which belongs to the step on its right.
    """
    near = (low > -_WHOLE) & (high < _WHOLE)
    a, b = np.where(near, low, 0.0), np.where(near, high, 0.0)
    first, last = np.floor(a) + 1.0, np.floor(b)
    count = last - first + 1.0
    left, right = np.maximum(last - a, 2.0**-20), np.maximum(b - last, 2.0**-20)
    up = np.where(right > left, 1.0 / right, 0.0)
    down = np.where(right > left, 0.0, 1.0 / left)
    up, down = (np.where(count == 1, k, np.where(count > 1, 1.0, 0.0)) for k in (up, down))
    size = np.maximum(abs(a), abs(b)) + 1.0
    lower = np.minimum(first - 1 - up * a, last - up * b)
    upper = np.maximum(first - 1 - down * a, last - down * b)
    for m in (first, last):
        lower = np.where(count > 0, np.minimum(lower, m - 1.0 - up * m), lower)
        upper = np.where(count > 0, np.maximum(upper, m - down * m), upper)
    lower = lower - 8 * U * (1 + up) * size * (up > 0)
    upper = upper + 8 * U * (1 + down) * size * (down > 0)
    return (
        np.where(near, up, 1.0),
        np.where(near, lower, -1.0),
        np.where(near, down, 1.0),
        np.where(near, upper, 0.0),
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


def apart(low: Array, high: Array) -> Array:
    """Where a divisor keeps away from zero."""
    return np.asarray((low >= _NEAREST) | (high <= -_NEAREST))


def _whole_power(x: Array, n: int) -> Array:
    """x^n for n >= 0 by squaring."""
    half = np.ones_like(x) if n < 2 else _whole_power(x, n // 2)
    return np.asarray(half * half * x if n % 2 else half * half)


class _Convex:
    """f with f(-z) = f(z) or -f(z), convex on z > 0; f and f' within `_ROUNDED` of themselves."""

    even = False

    def value(self, x: Array) -> Array:
        """f."""
        raise NotImplementedError

    def steep(self, x: Array) -> Array:
        """f'."""
        raise NotImplementedError

    def where(self, steep: Array) -> Array:
        """About the z > 0 with |f'(z)| = steep >= 0."""
        raise NotImplementedError

    def touching(self, low: Array) -> Array:
        """About where a line from (low, f(low)) with low < 0 touches an odd curve right of zero."""
        raise NotImplementedError

    def defined(self, low: Array, high: Array) -> Array:
        """Where f has values all over the interval."""
        return np.asarray(np.isfinite(low + high))

    def has_slopes(self, low: Array, high: Array) -> Array:
        """Where f' is known as well."""
        return self.defined(low, high)

    def interval(self, low: Array, high: Array, error: float) -> tuple[Array, Array]:
        """All values over [low, high], of executions that are off by ``error``, too."""
        there = self.defined(low, high)
        low, high = np.where(there, low, 1.0), np.where(there, high, 1.0)
        ends = self.value(low), self.value(high)
        below, above = np.minimum(*ends), np.maximum(*ends)
        below = np.where((low < 0) & (high > 0) & self.even, 0.0, below)
        below, above = np.minimum(below, _LARGEST), np.maximum(above, -_LARGEST)
        slack = _ROUNDED + error
        below, above = below - slack * abs(below) - TINY, above + slack * abs(above) + TINY
        return np.where(there, below, -np.inf), np.where(there, above, np.inf)

    def lines(self, low: Array, high: Array, free: Array | None, error: float) -> Lines:
        """As `lines`; the least and the largest value where slopes or offsets are not known."""
        below, above = self.interval(low, high, error)
        there = self.has_slopes(low, high)
        low, high = np.where(there, low, 1.0), np.where(there, high, 1.0)
        lower_slope, lower = self._below(low, high, free)
        if self.even:
            upper_slope, upper = self._chord_above(low, high)
        else:
            upper_slope, upper = self._below(-high, -low, free)
            upper = -upper
        slack = error * np.maximum(abs(self.value(low)), abs(self.value(high)))
        known = there & np.isfinite(lower_slope + lower + upper_slope + upper + slack)
        return (
            np.where(known, lower_slope, 0.0),
            np.where(known, lower - slack, below),
            np.where(known, upper_slope, 0.0),
            np.where(known, upper + slack, above),
        )

    def _chord(self, low: Array, high: Array) -> Array:
        rise = self.value(high) - self.value(low)
        return np.asarray(rise / np.where(high > low, high - low, 1.0))

    def _below(self, low: Array, high: Array, free: Array | None) -> tuple[Array, Array]:
        """A slope k and an offset t with k z + t <= f(z) on [low, high].

        Right of ``left`` f is convex and above its tangent at ``touch``, whatever that is; so what
        is left of f minus the line there is at least a linear function, least at an end. On the
        rest an odd f is concave, and minus the line least at an end.
        """
        chord = self._chord(low, high)
        first = low if self.even else np.where(low < 0, self.touching(np.minimum(low, 0.0)), low)
        straight = np.zeros(low.shape, bool) if self.even else (high <= 0) | (first >= high)
        first = np.minimum(first, high)
        usual = np.sign(chord) * self.where(abs(chord)) if self.even else self.where(abs(chord))
        usual = (usual - first) / np.where(high > first, high - first, 1.0)
        usual = np.where(np.isfinite(usual), np.clip(usual, 0.0, 1.0), 0.5)
        usual = np.where((low < 0) & (high > 0) & (not self.even), 0.0, usual)
        free = usual if free is None else np.where(np.isnan(free), usual, free)
        left = low if self.even else np.where(high <= 0, high, np.maximum(low, 0.0))
        touch = np.where(straight, high, first + free * (high - first))
        touch = np.minimum(np.maximum(touch, left), high)
        tangent, at = self.steep(touch), self.value(touch)
        slope = np.where(straight, chord, tangent)
        turn = tangent - slope
        offset = at - slope * touch + np.minimum(turn * (left - touch), turn * (high - touch))
        size = abs(at) + (abs(slope) + abs(tangent)) * np.maximum(abs(low), abs(high))
        for end in () if self.even else (low, np.where(low < 0, np.minimum(high, 0.0), low)):
            at = self.value(end)
            offset = np.where(low < 0, np.minimum(offset, at - slope * end), offset)
            size = size + abs(at)
        return slope, offset - 4 * _ROUNDED * size - TINY

    def _chord_above(self, low: Array, high: Array) -> tuple[Array, Array]:
        slope, ends = self._chord(low, high), (self.value(low), self.value(high))
        offset = np.maximum(ends[0] - slope * low, ends[1] - slope * high)
        size = abs(ends[0]) + abs(ends[1]) + abs(slope) * np.maximum(abs(low), abs(high))
        return slope, offset + 4 * _ROUNDED * size + TINY


class _Power(_Convex):
    """z^n."""

    def __init__(self, n: int) -> None:
        self.n, self.even = n, n % 2 == 0
        # (n - 1) t^n + n t^(n - 1) = 1, which grows with t.
        low, high = 0.0, 1.0
        for _ in range(60):
            t = 0.5 * (low + high)
            low, high = (t, high) if ((n - 1) * t + n) * t ** (n - 1) < 1 else (low, t)
        self.share = high

    def value(self, x: Array) -> Array:
        """See `_Convex`."""
        return _whole_power(x, self.n)

    def steep(self, x: Array) -> Array:
        """See `_Convex`."""
        return self.n * _whole_power(x, self.n - 1)

    def where(self, steep: Array) -> Array:
        """See `_Convex`."""
        return np.asarray((steep / self.n) ** (1 / (self.n - 1)))

    def touching(self, low: Array) -> Array:
        """See `_Convex`."""
        return self.share * abs(low)


class _Reciprocal(_Convex):
    """1 / z, away from zero."""

    def value(self, x: Array) -> Array:
        """See `_Convex`."""
        return np.asarray(1.0 / x)

    def steep(self, x: Array) -> Array:
        """See `_Convex`."""
        return np.asarray(-1.0 / (x * x))

    def where(self, steep: Array) -> Array:
        """See `_Convex`."""
        return np.asarray(1.0 / np.sqrt(np.maximum(steep, 1e-300)))

    def touching(self, low: Array) -> Array:
        """No interval crosses zero."""
        return -low

    def defined(self, low: Array, high: Array) -> Array:
        """See `_Convex`."""
        return super().defined(low, high) & apart(low, high)

    def has_slopes(self, low: Array, high: Array) -> Array:
        """See `_Convex`."""
        near = np.maximum(abs(low), abs(high)) <= _FARTHEST
        return np.asarray(self.defined(low, high) & near)


def _convex(kind: str, exponent: Array | None) -> _Convex:
    """The curve; all neurons of a block have one exponent."""
    return _Reciprocal() if exponent is None or kind == "reciprocal" else _Power(int(exponent[0]))


def steepness(kind: str, exponent: Array | None, low: Array, high: Array) -> tuple[Array, Array]:
    """Between which slopes such a curve or a wave lies; NaN or infinite where it is not defined."""
    if kind in WAVES:
        return waves.steepness(kind, low, high)
    curve = _convex(kind, exponent)
    ends = curve.steep(low), curve.steep(high)
    below, above = np.minimum(*ends), np.maximum(*ends)
    if not curve.even:
        below = np.where((low < 0) & (high > 0), np.minimum(below, 0.0), below)
    there = curve.defined(low, high)
    slack = 2 * _ROUNDED
    below, above = below - slack * abs(below) - TINY, above + slack * abs(above) + TINY
    return np.where(there, below, -np.inf), np.where(there, above, np.inf)


def _tanh_slope(x: Array) -> Array:
    return (1.0 - np.tanh(x)) * (1.0 + np.tanh(x))


_TANH = _SShaped("tanh", 0.0, 1.0, _tanh_slope)
_LOGISTIC = _SShaped("sigmoid", 0.5, 0.25, lambda x: 0.25 * _tanh_slope(0.5 * x))


def derivative(kind: str, x: Array) -> Array:
    """Of a smooth curve, within 32 units in the last place of one; infinite x have zero."""
    return {"tanh": _TANH, "sigmoid": _LOGISTIC}[kind].derivative(x)
