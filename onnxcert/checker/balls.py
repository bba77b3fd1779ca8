"""Rule R1 for inputs that lie in an ellipsoid with axes along the inputs, and in a box.

``sum_i w_i (x_i - c_i)^2 <= 1`` is exact, in rationals. Computed with is an ellipsoid in float64
that contains it: |(x - c) / s| <= 1 with c rounded to nearest and semi-axes s rounded up, which
grow by |(c' - c) / s| for the shift. Cut a linear form p into a + b in any way; then on the part of
a box with middle m and half width r in the ellipsoid

    p . x  =  a . x + b . x  >=  a . m - |a| . r  +  b . c - |b * s|.

The cut is found by Newton's method for the multiplier of the ellipsoid in the dual problem; that it
is a good one needs no proof.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from onnxcert.checker.curves import TINY, Array, U

_STEPS, _CLOSE = 8, 1e-9

_SMALL = 1e-150
"""More than a length loses where squares underflow."""

_UNSIGNED = 1 << 63


@dataclass(frozen=True)
class Ellipsoid:
    """All x with ``sum(weights * (x[inputs] - center)^2) <= 1``; inputs increase, weights > 0."""

    inputs: tuple[int, ...]
    weights: tuple[Fraction, ...]
    center: tuple[Fraction, ...]

    def __hash__(self) -> int:
        return hash((self.inputs, self.weights[:1], self.center[:1]))  # all would take long

    def ends(self) -> dict[int, float]:
        """Faces of the box round it, rounded up: of x_v by v, of -x_v by ~v."""
        found = {}
        for v, weight, center in zip(self.inputs, self.weights, self.center, strict=True):
            found[v], found[~v] = (above(c, 1 / weight) for c in (center, -center))
        return found

    def misses(self, ends: Mapping[int, Fraction]) -> bool:
        """Whether it has no point where x_v <= ends[v] and -x_v <= ends[~v], exactly."""
        total = Fraction()
        for v, weight, center in zip(self.inputs, self.weights, self.center, strict=True):
            for side, c in ((v, center), (~v, -center)):
                if side in ends and ends[side] < c:
                    total += weight * (c - ends[side]) ** 2
                    break
        return total > 1

    def floats(self, size: int) -> tuple[Array, Array]:
        """Centre and semi-axes (size,) of an ellipsoid that contains it; zero for other inputs."""
        center, axes, moved = np.zeros(size), np.zeros(size), Fraction()
        for v, weight, exact in zip(self.inputs, self.weights, self.center, strict=True):
            center[v] = float(exact)
            axes[v] = above(Fraction(), 1 / weight)
            moved += weight * (exact - Fraction(float(center[v]))) ** 2
        if moved:
            axes *= (1 + above(Fraction(), moved)) * (1 + 8 * U)
            axes[axes > 0] = np.nextafter(axes[axes > 0], np.inf)  # products of tiny numbers
        return center, axes


def above(center: Fraction, square: Fraction) -> float:
    """The smallest float64 number not below center + sqrt(square); infinity if there is none."""

    def enough(number: float) -> bool:
        if math.isinf(number):
            return number > 0
        distance = Fraction(number) - center
        return distance >= 0 and distance * distance >= square

    try:
        guess = float(center) + math.sqrt(square)
    except OverflowError:
        guess = 0.0
    return _smallest(enough, _rank(guess + 0.0))


def _smallest(enough: Callable[[float], bool], guess: int) -> float:
    """The smallest number that is enough: a gallop from a guess, by ranks, then bisection."""
    step, last = 1, _rank(math.inf)
    if enough(_ranked(guess)):
        high = guess
        while enough(_ranked(low := max(high - step, -last))):
            high, step = low, 2 * step
    else:
        low = guess
        while not enough(_ranked(high := min(low + step, last))):
            low, step = high, 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(_ranked(middle)) else (middle, high)
    return _ranked(high)


def _rank(number: float) -> int:
    """The number of a float64 number in their order; zero for zero."""
    bits = int(struct.unpack("<q", struct.pack("<d", number))[0])
    return bits if bits >= 0 else -(bits + _UNSIGNED)


def _ranked(rank: int) -> float:
    """The float64 number of a rank."""
    return math.copysign(float(struct.unpack("<d", struct.pack("<q", abs(rank)))[0]), rank)


@dataclass(frozen=True, eq=False)
class Balls:
    """Ellipsoids of a batch of sets: center and axes (B, n_in), an axis of zero for no bound."""

    center: Array
    axes: Array

    @classmethod
    def of(cls, ellipsoids: Sequence[Ellipsoid | None], size: int) -> Balls | None:
        """Those of some cases; None where there are none."""
        if not any(ellipsoids):
            return None
        nothing = np.zeros(size), np.zeros(size)
        found = [nothing if ball is None else ball.floats(size) for ball in ellipsoids]
        return cls(np.stack([center for center, _ in found]), np.stack([axes for _, axes in found]))

    def __getitem__(self, index: Array | slice) -> Balls:
        return Balls(self.center[index], self.axes[index])

    @staticmethod
    def joined(parts: Sequence[Balls]) -> Balls:
        """All batches in one."""
        axes = np.concatenate([part.axes for part in parts])
        return Balls(np.concatenate([part.center for part in parts]), axes)

    def apart(self, low: Array, high: Array) -> Array:
        """Which boxes (B, n) they do not meet (B,), as far as rounding lets one see that."""
        away = np.maximum(np.maximum(low - self.center, self.center - high), 0.0)
        ratio = np.where(self.axes > 0, away / np.where(self.axes > 0, self.axes, 1.0), 0.0)
        squares = (ratio * ratio).sum(axis=1)
        return np.asarray(squares > 1 + 4 * (ratio.shape[1] + 16) * U)

    def divide(self, rows: Array, low: Array, high: Array) -> tuple[Array, Array]:
        """The share of forms (B, R, n) that is bounded over the ellipsoid, and the least points.

        Args:
            low, high: the boxes, (B, n).
        """
        axes, center = self.axes[:, None], self.center[:, None]
        inside = axes > 0
        unit = np.where(inside, axes, 1.0)
        below = np.where(inside, (low[:, None] - center) / unit, 0.0)
        over = np.where(inside, (high[:, None] - center) / unit, 0.0)
        scaled = rows * axes
        squares = scaled * scaled
        length = np.sqrt(squares.sum(axis=2, keepdims=True))
        factor = 1 / np.where(length > 0, length, 1.0)
        for _ in range(_STEPS):
            way = -factor * scaled
            y = np.clip(way, below, over)
            free = y == way
            left = 1 - np.where(free, 0.0, y * y).sum(axis=2, keepdims=True)
            moving = np.where(free, squares, 0.0).sum(axis=2, keepdims=True)
            right = (left > 0) & (moving > 0) & ~free.all(axis=2, keepdims=True)
            better = np.sqrt(np.where(right, left / np.where(right, moving, 1.0), 0.0))
            before, factor = factor, np.maximum(factor, better)
            if (factor <= before * (1 + _CLOSE)).all():
                break
        way = -factor * scaled
        y = np.clip(way, below, over)
        share = np.where(y == way, rows, -y / (factor * unit))
        corner = np.where(rows >= 0, low[:, None], high[:, None])
        return np.where(inside, share, 0.0), np.where(inside, center + axes * y, corner)

    def least(self, share: Array) -> Array:
        """A lower bound of shares (B, R, n) of forms over the ellipsoids: (B, R)."""
        n = share.shape[2]
        error = 2 * (n + 16) * U / (1 - (n + 16) * U)
        scaled = share * self.axes[:, None]
        length = np.sqrt((scaled * scaled).sum(axis=2)) * (1 + error) + _SMALL
        size = np.matmul(abs(share), abs(self.center)[:, :, None])[:, :, 0]
        value = np.matmul(share, self.center[:, :, None])[:, :, 0]
        return np.asarray(value - length - (2 * error * (size + length) + TINY))
