"""Directed conversion of decimals, against fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from onnxcert.spec.decimals import (
    INFINITE,
    LARGEST_MANTISSA,
    LARGEST_SCALE,
    Decimals,
    fit,
    round_down,
    round_up,
)

MANTISSAS = st.one_of(
    st.integers(-LARGEST_MANTISSA + 1, LARGEST_MANTISSA - 1),
    st.integers(-(2**53) - 2, 2**53 + 2),
    st.integers(-1000, 1000),
)


@given(st.lists(st.tuples(MANTISSAS, st.integers(0, LARGEST_SCALE)), min_size=1, max_size=50))
@example([(LARGEST_MANTISSA - 1, 0), (-(2**62) - 1, 3), (0, 22), (1, 22), (2**53 + 1, 0)])
def test_neighbours_are_the_tightest(numbers: list[tuple[int, int]]) -> None:
    mantissa, scale = np.array(numbers, np.int64).T
    decimals = Decimals(mantissa, scale.astype(np.int8))
    for position, (m, k) in enumerate(numbers):
        value = Fraction(m, 10**k)
        assert decimals.exact((position,)) == value
        assert decimals.floor[position] == round_down(value)
        assert decimals.ceil[position] == round_up(value)


@given(st.floats(-3, 3, width=32))
def test_float32_printed_with_many_digits(value: float) -> None:
    text = f"{value:.18f}"
    fitted = fit(Fraction(text))
    assert fitted is not None
    decimals = Decimals(np.array([fitted[0]]), np.array([fitted[1]], np.int8))
    assert decimals.floor[0] <= Fraction(text) <= decimals.ceil[0]


@given(st.fractions())
def test_rounding_encloses_and_is_tight(value: Fraction) -> None:
    low, high = round_down(value), round_up(value)
    assert Fraction(low) <= value <= Fraction(high)
    assert high in (low, math.nextafter(low, math.inf))


@pytest.mark.parametrize("power", [309, 400, 5000])
def test_rounding_beyond_the_largest_double(power: int) -> None:
    value = Fraction(10**power)
    assert round_down(value) == np.finfo(np.float64).max
    assert round_up(value) == math.inf
    assert round_down(-value) == -math.inf
    assert round_up(-value) == np.finfo(np.float64).min


def test_numbers_that_do_not_fit_are_exact_too() -> None:
    values = [Fraction(1, 3), Fraction(10**40), Fraction(1, 10**40), Fraction(10**400)]
    decimals = Decimals.from_fractions(values)
    assert set(decimals.exceptions) == {0, 1, 2, 3}
    for position, value in enumerate(values):
        assert decimals.exact((position,)) == value
        assert decimals.floor[position] == round_down(value)
        assert decimals.ceil[position] == round_up(value)


def test_infinite_bounds() -> None:
    decimals = Decimals(np.array([-1, 1]), np.array([INFINITE, INFINITE], np.int8))
    assert decimals.floor.tolist() == decimals.ceil.tolist() == [-math.inf, math.inf]
    assert decimals.exact((0,)) is None


@given(st.fractions(max_denominator=10**6))
def test_fit_is_exact_or_refuses(value: Fraction) -> None:
    scales = [k for k in range(LARGEST_SCALE + 1) if (value * 10**k).denominator == 1]
    is_possible = bool(scales) and abs(value) * 10 ** scales[0] < LARGEST_MANTISSA
    fitted = fit(value)
    assert (fitted is not None) == is_possible
    assert fitted is None or Fraction(fitted[0], 10 ** fitted[1]) == value
