"""Rule R6: forward linear forms of few inputs.

Over a box x = c + r t with |t| <= 1, each scalar is ``T_0 + sum_j T_j t_j + e`` with some
``|e| <= R``. A sum of scalars adds their forms, ``T' = W T`` and ``R' = |W| R``; the floats that
stand for ``W T_j`` are off by at most ``gamma_N |W| |T_j|``, which together with the block's own
error (`Relaxation.noise`) is added to R'. A curve takes lines of mean slope m and half difference
d: over [l, u] it lies within ``max(d l, d u) + gap`` of ``m z + offset``, so ``T' = m T``.

The forms bound scalars before backward forms do, and where few inputs vary and blocks are large
they leave few scalars for those. They are made where the largest block that a curve reads has at
least sixteen scalars for each input that varies and for two more.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxcert.checker import curves
from onnxcert.checker.curves import TINY, Array, U

PER_INPUT = 64

Apply = Callable[[Array, bool], Array]
"""A block's sums of scalars (B, S + 1) -> (B, n); with absolute factors if that is true."""


class Forms:
    """Forms of the scalars of a batch of boxes (B, n_in), in the order in which they are made."""

    def __init__(self, low: Array, high: Array, varies: Array, size: int) -> None:
        count, n_inputs = low.shape
        center = 0.5 * (low + high)
        self.terms = np.zeros((count, 1 + len(varies), size + 1))
        self.radius = np.zeros((count, size + 1))
        self.terms[:, 0, :n_inputs] = center
        half = np.maximum(high - center, center - low)[:, varies] * (1 + 4 * U)
        self.terms[:, 1 + np.arange(len(varies)), varies] = half

    @classmethod
    def begin(cls, low: Array, high: Array, size: int, widest: int) -> Forms | None:
        """Forms of the inputs; None where they do not pay.

        Args:
            size: number of scalars.
            widest: size of the largest block that a curve reads.
        """
        varies = np.flatnonzero((high > low).any(axis=0))
        pays = PER_INPUT * (len(varies) + 2) <= widest
        return cls(low, high, varies, size) if pays else None

    def affine(
        self, span: slice, apply: Apply, offset: Array | None, noise: Array, gamma: float
    ) -> tuple[Array, Array]:
        """Bounds (B, n) of a block of sums, of which ``gamma`` bounds the relative error."""
        columns = self.terms.shape[1]
        gamma = max(gamma, 4 * (columns + 8) * U)
        terms = np.stack([apply(self.terms[:, j], False) for j in range(columns)], axis=1)
        if offset is not None:
            terms[:, 0] += offset
        spread = self.radius * (1 + gamma) + gamma * abs(self.terms).sum(axis=1)
        radius = apply(spread, True) * (1 + gamma) + noise + 2 * U * abs(terms[:, 0]) + TINY
        self.terms[:, :, span], self.radius[:, span] = terms, radius
        around = abs(terms[:, 1:]).sum(axis=1) + radius
        around = around + gamma * (around + abs(terms[:, 0])) + TINY
        low, high = terms[:, 0] - around, terms[:, 0] + around
        return np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high)

    def curve(
        self, span: slice, ids: Array, low: Array, high: Array, lines: curves.Lines, gamma: float
    ) -> None:
        """A curve over [low, high] (B, n) with lines m z + offset -+ (d z + gap), in this order."""
        mean, half, offset, gap = lines
        terms = mean[:, None] * self.terms[:, :, ids]
        error = 4 * U * abs(terms).sum(axis=1) + gamma * (abs(half * low) + abs(half * high))
        terms[:, 0] += offset
        radius = abs(mean) * self.radius[:, ids] * (1 + 4 * U) + np.maximum(half * low, half * high)
        self.terms[:, :, span] = terms
        self.radius[:, span] = radius + gap * (1 + 4 * U) + error + 4 * U * abs(offset) + TINY


def parallel(kind: str, low: Array, high: Array) -> Array | None:
    """Positions of free lines that have the slope of the chord; None where there are none."""
    if kind in curves.SMOOTH or kind == "sign":
        return None
    crosses = (low < 0) & (high > 0)
    return np.where(crosses, high / np.where(crosses, high - low, 1.0), 0.5)
