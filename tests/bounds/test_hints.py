"""Hints on the grid: nearest, idempotent, finite, and read back as they were written."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from onnxcert.arrays import Array
from onnxcert.bounds.hints import (
    decode_multipliers,
    decode_positions,
    encode_multipliers,
    encode_positions,
    round_multipliers,
    round_positions,
)

LARGEST = 3.3895313892515355e38
SMALLEST_NORMAL = 2.0**-126


def test_all_positions_are_read_as_written() -> None:
    codes = np.arange(256, dtype=np.uint8)
    positions = decode_positions(codes)
    assert positions.tolist() == [k / 255 for k in range(256)]
    np.testing.assert_array_equal(encode_positions(positions), codes)
    np.testing.assert_array_equal(round_positions(positions), positions)


def test_all_finite_multipliers_are_read_as_written() -> None:
    codes = np.arange(1 << 16, dtype=np.uint16)
    codes = codes[codes & 0x7F80 != 0x7F80]
    values = decode_multipliers(codes)
    assert np.isfinite(values).all()
    assert float(values.max()) == LARGEST
    np.testing.assert_array_equal(encode_multipliers(values), codes)
    np.testing.assert_array_equal(round_multipliers(values), values)


@given(positions=arrays(np.float64, (2, 5), elements=st.floats(-0.5, 1.5)))
def test_positions_are_the_nearest(positions: Array) -> None:
    rounded = round_positions(positions)
    np.testing.assert_array_equal(decode_positions(encode_positions(positions)), rounded)
    assert ((rounded >= 0) & (rounded <= 1)).all()
    off = abs(np.clip(positions, 0, 1) - rounded)
    assert (off <= 0.5 / 255 + 1e-15).all()


@given(values=arrays(np.float64, (2, 5), elements=st.floats(-3e38, 3e38)))
def test_multipliers_are_near_and_keep_their_sign(values: Array) -> None:
    rounded = round_multipliers(values)
    np.testing.assert_array_equal(decode_multipliers(encode_multipliers(values)), rounded)
    np.testing.assert_array_equal(np.signbit(rounded), np.signbit(values))
    np.testing.assert_array_equal(round_multipliers(rounded), rounded)
    for value, near in zip(values.ravel().tolist(), rounded.ravel().tolist(), strict=True):
        size = max(abs(Fraction(value)), Fraction(SMALLEST_NORMAL))
        # Half a unit of the eighth digit, and the tie that the first rounding may have made.
        assert abs(Fraction(near) - Fraction(value)) <= size * Fraction(2**-8 + 2**-23)


def test_nothing_is_ever_infinite() -> None:
    wild = np.array([np.inf, -np.inf, np.nan, 1e300, -1e300, 3.4e38])
    expected = [LARGEST, -LARGEST, 0.0, LARGEST, -LARGEST, LARGEST]
    assert round_multipliers(wild).tolist() == expected
    assert np.isfinite(decode_multipliers(encode_multipliers(wild))).all()


def test_inputs_stay_as_they_are() -> None:
    values = np.array([[0.3, 0.7]])
    round_positions(values)
    round_multipliers(values)
    assert values.tolist() == [[0.3, 0.7]]
