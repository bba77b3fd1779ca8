"""Rule R6: forward linear forms of few inputs.

Over a box x = c + r t with |t| <= 1, each scalar is ``T_0 + sum_j T_j t_j + e`` with some
``|e| <= R``. A sum of scalars adds their forms, ``T' = W T`` and ``R' = |W| R``; the floats that
stand for ``W T_j`` are off by at most ``gamma_N |W| |T_j|``, which together with the block's own
error (`Relaxation.noise`) is added to R'. A curve takes lines of mean slope m and half difference
d: over [l, u] it lies within ``max(d l, d u) + gap`` of ``m z + offset``, so ``T' = m T``.

The forms bound scalars before backward forms do, and where few inputs vary and blocks are large
they leave few scalars for those. They are made where the largest block that a curve reads has at
least 64 scalars for each input that varies and for two more. Inputs that hardly vary have no
column: half their width is in R of the scalar that they are.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxcert.checker import curves, pairs
from onnxcert.checker.curves import TINY, Array, U

PER_INPUT = 64

_DECIMAL = 2.0**-45
"""An input whose range is no larger than this share of it is a decimal between two floats."""

Apply = Callable[[Array, bool], Array]
"""A block's sums of scalars (B, S + 1) -> (B, n); with absolute factors if that is true."""


class Forms:
    """Forms of the scalars of a batch of boxes (B, n_in), in the order in which they are made.

    ``gamma`` bounds the relative error of any sum.
    """

    def __init__(self, low: Array, high: Array, most: int, size: int, gamma: float) -> None:
        count, n_inputs = low.shape
        self.gamma = max(gamma, 4 * (most + 9) * U)
        center = 0.5 * (low + high)
        # Each box has columns for its own inputs, of which at most ``most`` vary; what little the
        # others do is radius.
        slots = np.argsort(~varies(low, high), axis=1, kind="stable")[:, :most]
        self.terms = np.zeros((count, 1 + most, size + 1))
        self.radius = np.zeros((count, size + 1))
        self.terms[:, 0, :n_inputs] = center
        half = np.maximum(high - center, center - low) * (1 + 4 * U)
        each, columns = np.arange(count)[:, None], 1 + np.arange(most)
        self.terms[each, columns, slots] = np.take_along_axis(half, slots, axis=1)
        half[each, slots] = 0.0
        self.radius[:, :n_inputs] = half
        # What sums take for the radius: it and the roundings of the terms, (B, S + 1).
        self.spread = np.zeros((count, size + 1))
        self._widen(slice(size + 1))

    @classmethod
    def begin(cls, low: Array, high: Array, size: int, widest: int, gamma: float) -> Forms | None:
        """Forms of the inputs; None where they do not pay, or are no more than intervals.

        Args:
            size: number of scalars.
            widest: size of the largest block that a curve reads.
        """
        most = int(varies(low, high).sum(axis=1).max())
        pays = most > 0 and PER_INPUT * (most + 2) <= widest
        return cls(low, high, most, size, gamma) if pays else None

    def affine(
        self, span: slice, apply: Apply, offset: Array | None, noise: Array
    ) -> tuple[Array, Array]:
        """Bounds (B, n) of a block of sums."""
        columns = self.terms.shape[1]
        terms = np.stack([apply(self.terms[:, j], False) for j in range(columns)], axis=1)
        if offset is not None:
            terms[:, 0] += offset
        radius = apply(self.spread, True) * (1 + self.gamma)
        radius = radius + noise + 2 * U * abs(terms[:, 0]) + TINY
        self._keep(span, terms, radius)
        return self._around(terms, radius)

    def curve(self, span: slice, ids: Array, low: Array, high: Array, lines: curves.Lines) -> None:
        """A curve over [low, high] (B, n) with lines m z + offset -+ (d z + gap), in this order."""
        mean, half, offset, gap = lines
        terms = mean[:, None] * self.terms[:, :, ids]
        error = 4 * U * abs(terms).sum(axis=1) + self.gamma * (abs(half * low) + abs(half * high))
        terms[:, 0] += offset
        radius = abs(mean) * self.radius[:, ids] * (1 + 4 * U) + np.maximum(half * low, half * high)
        self._keep(span, terms, radius + gap * (1 + 4 * U) + error + 4 * U * abs(offset) + TINY)

    def pair(
        self,
        span: slice,
        ids: tuple[Array, Array],
        b: tuple[Array, Array],
        planes: pairs.Planes,
    ) -> tuple[Array, Array]:
        """Bounds (B, n) of a block of pairs between planes; b are the bounds of the second."""
        k, mean, half, offset, gap = planes
        first, second = (self.terms[:, :, read] for read in ids)
        terms = k[:, None] * first + mean[:, None] * second
        error = 8 * U * (abs(k[:, None] * first) + abs(mean[:, None] * second)).sum(axis=1)
        error = error + self.gamma * (abs(half * b[0]) + abs(half * b[1])) + 8 * U * abs(offset)
        terms[:, 0] += offset
        radius = abs(k) * self.radius[:, ids[0]] + abs(mean) * self.radius[:, ids[1]]
        # Between the planes the slope of b is off by at most half, to either side.
        radius = radius + abs(half) * np.maximum(abs(b[0]), abs(b[1])) + gap
        radius = radius * (1 + 16 * U) + error + TINY
        self._keep(span, terms, radius)
        return self._around(terms, radius)

    def constant(self, span: slice, low: Array, high: Array) -> None:
        """A block whose scalars hardly vary."""
        terms = np.zeros((*self.terms.shape[:2], low.shape[1]))
        terms[:, 0] = 0.5 * (low + high)
        self._keep(span, terms, high - low + 4 * U * np.maximum(abs(low), abs(high)) + TINY)

    def _keep(self, span: slice, terms: Array, radius: Array) -> None:
        """Forms of a block: terms (B, 1 + V, n) and radius (B, n)."""
        self.terms[:, :, span], self.radius[:, span] = terms, radius
        self._widen(span)

    def _widen(self, span: slice) -> None:
        reach = abs(self.terms[:, :, span]).sum(axis=1)
        self.spread[:, span] = self.radius[:, span] * (1 + self.gamma) + self.gamma * reach

    def _around(self, terms: Array, radius: Array) -> tuple[Array, Array]:
        """What forms say of their scalars over the whole box."""
        around = abs(terms[:, 1:]).sum(axis=1) + radius
        around = around + self.gamma * (around + abs(terms[:, 0])) + TINY
        low, high = terms[:, 0] - around, terms[:, 0] + around
        return np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high)


def varies(low: Array, high: Array) -> Array:
    """Which inputs of boxes (B, n_in) are more than a decimal between two floats."""
    return np.asarray(high - low > _DECIMAL * np.maximum(abs(low), abs(high)))


def parallel(kind: str, low: Array, high: Array) -> Array | None:
    """Positions of free lines that have the slope of the chord; None where there are none."""
    if kind in curves.BENT or kind in ("sign", "floor"):
        return None
    crosses = (low < 0) & (high > 0)
    return np.where(crosses, high / np.where(crosses, high - low, 1.0), 0.5)
