"""Convolutions on a torus: one small matrix per frequency bounds the operator on any image.

A zero-padded convolution is a compression of the circular one on a torus at least as large as the
padded image: it reads an image that is zero elsewhere and drops outputs. So its norm is at most the
largest spectral norm of the transfer matrices

    T(w)[o, c] = sum over taps t of K[o, c, t] exp(-i w . t)

over the frequencies of that torus (Sedghi, Gupta, Long, ICLR 2019, for the circular case). Strides
become phases: with position s p and tap offset t = s q + r the image is split into the images of
its residues r (polyphase, space to depth), each a channel of its own, on a torus of ceil(size / s)
points. Dilation only spreads the offsets. Groups are blocks on the diagonal.

Large images need no large torus: with N points per axis and shifts within d < N / 2 of some whole
number (a common shift changes no norm) the supremum over all frequencies is at most 1 / cos(pi d /
N) times the largest value on the grid, per axis (Ehlich and Zeller, 1964, for Re(z v* T u), which
is a trigonometric polynomial of degree d).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from onnxcert.arrays import UNIT_ROUNDOFF, Array, FloatArray
from onnxcert.ops import Convolution
from onnxcert.ops.base import gamma

_GRID = 64
"""Points per axis where the padded image has more; 3 taps then cost at most 1.0013 per axis."""

_ULPS = 4.0
"""Charged to each computed sine and cosine, and to the angle's own rounding times this."""


@dataclass(frozen=True, eq=False)
class Transfer:
    """The matrices of all frequencies.

    Attributes:
        matrices: (groups x frequencies, outputs, channels x phases) complex.
        error: bounds the distance of each from the exact one, in spectral norm.
        factor: times the largest norm on the grid: a bound over the torus that is needed.
    """

    matrices: Array
    error: float
    factor: float


@dataclass(frozen=True, eq=False)
class _Axis:
    """One axis: which phase and which shift each tap has, and the torus."""

    phases: Array
    shifts: Array
    points: int
    factor: float

    @classmethod
    def of(cls, taps: int, dilation: int, stride: int, padded: int) -> _Axis:
        offsets = np.arange(taps) * dilation
        shifts, residues = np.divmod(offsets, stride)
        phases = np.unique(residues, return_inverse=True)[1]
        points, degree = -(-padded // stride), -(-int(shifts.max()) // 2)
        if points <= max(_GRID, 4 * degree):
            return cls(phases, shifts, points, 1.0)
        points = max(_GRID, 4 * degree)
        factor = 1.0 / (math.cos(math.pi * degree / points) - 4.0 * UNIT_ROUNDOFF)
        return cls(phases, shifts, points, factor)

    def waves(self) -> Array:
        """exp(-i w t) for every frequency and tap, (points, taps).

        The angle is reduced exactly, in whole numbers.
        """
        turns = np.outer(np.arange(self.points), self.shifts) % self.points
        return np.exp(-2j * math.pi * turns / self.points)


def transfer_matrices(op: Convolution) -> Transfer:
    """The transfer matrices of one image's convolution; the norm of their negatives is the same."""
    window = op.window
    groups, outputs, fan_in = op.weight.shape
    rows, columns = window.kernel
    channels = fan_in // (rows * columns)
    vertical, horizontal = (
        _Axis.of(*numbers)
        for numbers in zip(
            window.kernel, window.dilation, window.stride, window.padded, strict=True
        )
    )
    kernel = op.weight.reshape(groups, outputs, channels, rows, columns)
    down, across = vertical.waves(), horizontal.waves()
    # A real kernel has T(-w) = conj T(w): half of the frequencies of one axis are enough.
    across = across[: horizontal.points // 2 + 1]
    parts = []
    for i in np.unique(vertical.phases):
        for j in np.unique(horizontal.phases):
            here, there = vertical.phases == i, horizontal.phases == j
            part = kernel[:, :, :, here][:, :, :, :, there]
            parts.append(
                np.einsum(
                    "gocij,fi,hj->gfhoc", part, down[:, here], across[:, there], optimize=True
                )
            )
    matrices = np.concatenate(parts, axis=-1)
    return Transfer(
        matrices.reshape(-1, outputs, matrices.shape[-1]),
        _error(kernel),
        vertical.factor * horizontal.factor * (1.0 + 8.0 * UNIT_ROUNDOFF),
    )


def _error(kernel: FloatArray) -> float:
    """What sines, cosines and sums round, for matrices of any phase.

    Each entry is a sum over its taps of a number times two waves; its error is that of the waves
    plus that of the sum, relative to the sum of the absolute values.
    """
    taps = kernel.shape[-1] * kernel.shape[-2]
    relative = gamma(4 * (taps + 8) + 16 * _ULPS, UNIT_ROUNDOFF)
    sizes = np.abs(kernel).sum(axis=(-1, -2))
    rows, columns = sizes.sum(axis=-1).max(), sizes.sum(axis=-2).max()
    return relative * math.sqrt(float(rows) * float(columns)) * (1.0 + 1e-9)
