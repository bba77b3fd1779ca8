"""Hints on the grid on which they can be written down: slope positions and multipliers.

Any position in [0, 1] gives a valid line and any multiplier >= 0 a valid bound, so a proof may keep
both in few bits; a coarse one weakens a bound, it cannot falsify it. But a search that closes a
subproblem with fine hints and writes down coarse ones loses the proof where the margin is thin. So
bounds are only ever evaluated on the grid: positions are k/255, one byte each, and multipliers and
weights of forms the upper half of a binary32 number (bfloat16: sign, 8 bits of exponent, 7 of
fraction). Rounding is to nearest and idempotent: what is written and read again is the same number.
"""

from __future__ import annotations

import numpy as np

from onnxcert.arrays import Array, array_module

_STEPS = 255

_LARGEST = (2.0 - 2.0**-7) * 2.0**127
"""The largest finite number of eight binary digits with the exponents of binary32."""


def encode_positions(positions: Array) -> Array:
    """Numbers in [0, 1] -> the nearest k of k/255, uint8; others go to the nearer end."""
    xp = array_module(positions)
    codes: Array = xp.rint(xp.clip(_STEPS * positions, 0, _STEPS)).astype(np.uint8)
    return codes


def decode_positions(codes: Array) -> Array:
    """k -> k/255, float64."""
    return codes / float(_STEPS)


def round_positions(positions: Array) -> Array:
    """The nearest position of the grid."""
    xp = array_module(positions)
    scaled = _STEPS * positions
    xp.rint(xp.clip(scaled, 0, _STEPS, out=scaled), out=scaled)
    scaled /= _STEPS
    return scaled


def encode_multipliers(values: Array) -> Array:
    """The upper halves of the nearest binary32 numbers, uint16, ties to even.

    NaN becomes zero, and what is too large (infinity as well) the largest finite number.
    """
    return (_rounded_bits(values) >> 16).astype(np.uint16)


def decode_multipliers(codes: Array) -> Array:
    """Upper halves of binary32 numbers -> float64, exactly."""
    return (codes.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def round_multipliers(values: Array) -> Array:
    """The nearest multiplier of the grid; zero keeps its sign, and so does what rounds to it."""
    return _rounded_bits(values).view(np.float32).astype(values.dtype)


def _rounded_bits(values: Array) -> Array:
    """Bits of binary32 numbers whose lower halves are zero.

    The first rounding, to binary32, may hit a tie of the second; that costs a little nearness and
    no idempotence.
    """
    xp = array_module(values)
    single = xp.clip(values, -_LARGEST, _LARGEST).astype(np.float32)
    single[xp.isnan(single)] = 0.0
    bits: Array = single.view(np.uint32)
    odd = bits >> 16
    odd &= 1
    bits += 0x7FFF
    bits += odd
    bits &= 0xFFFF0000
    return bits
