"""Ellipsoids in floating point contain the exact ones, as tightly as numbers allow."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onnxcert.checker import balls
from onnxcert.spec.ellipsoid import Ellipsoid, enclosing, root_up

numbers = st.fractions(-1000, 1000, max_denominator=10**9)
positive = st.fractions(Fraction(1, 10**12), 10**6, max_denominator=10**12)


@given(numbers, positive, st.integers(-3, 3), st.integers(20, 60), st.booleans())
def test_roots_are_rounded_to_the_next_number_up(
    center: Fraction, square: Fraction, shift: int, digits: int, cancels: bool
) -> None:
    if cancels and center:  # the sum is zero, or all but zero
        square = center * center * (1 + Fraction(shift, 10**digits))
    found = root_up(center, square)
    below = math.nextafter(found, -math.inf)
    assert found - center >= 0
    assert (Fraction(found) - center) ** 2 >= square
    assert Fraction(below) < center or (Fraction(below) - center) ** 2 < square
    # The checker has a way of its own to the same number.
    assert balls.above(center, square) == found


def test_numbers_beyond_float64() -> None:
    huge = Fraction(10) ** 400
    for root in (root_up, balls.above):
        assert root(huge, Fraction(1)) == math.inf
        assert root(Fraction(0), huge * huge) == math.inf
        assert root(-huge, Fraction(1)) == -math.nextafter(math.inf, 0)
        assert root(Fraction(0), 1 / huge / huge) == 5e-324


@st.composite
def ellipsoids(draw: st.DrawFn) -> Ellipsoid:
    columns = tuple(sorted(draw(st.sets(st.integers(0, 3), min_size=1))))
    weights = tuple(draw(positive) for _ in columns)
    return Ellipsoid(columns, weights, tuple(draw(numbers) for _ in columns))


def on_it(ellipsoid: Ellipsoid, seed: int) -> list[Fraction]:
    """A point a hair inside the ellipsoid, in rationals."""
    v = np.random.default_rng(seed).normal(size=len(ellipsoid.columns))
    v = v * (np.random.default_rng(seed).random(len(v)) < 0.7)  # some of the coordinates
    squares = [Fraction(float(part)) ** 2 / w for part, w in zip(v, ellipsoid.weights, strict=True)]
    total = sum((w * s for w, s in zip(ellipsoid.weights, squares, strict=True)), Fraction(0))
    if not total:
        return list(ellipsoid.center)
    bits = 2**200
    point = []
    for part, square, center in zip(v, squares, ellipsoid.center, strict=True):
        size = Fraction(math.isqrt(math.floor(square / total * bits * bits)), bits)
        point.append(center + (size if part > 0 else -size))
    return point


@given(ellipsoids(), st.integers(0, 2**32 - 1))
def test_what_is_inside_stays_inside(ellipsoid: Ellipsoid, seed: int) -> None:
    point = on_it(ellipsoid, seed)
    parts = zip(ellipsoid.weights, point, ellipsoid.center, strict=True)
    assert sum(w * (x - c) ** 2 for w, x, c in parts) <= 1
    low, inner_low, inner_high, high = ellipsoid.box(4)
    box = enclosing([ellipsoid], low[None], high[None])
    theirs = balls.Ellipsoid(ellipsoid.columns, ellipsoid.weights, ellipsoid.center)
    for center, axes in ((box.center[0], box.axes[0]), theirs.floats(4)):
        total = Fraction(0)
        for i, x in zip(ellipsoid.columns, point, strict=True):
            total += ((x - Fraction(float(center[i]))) / Fraction(float(axes[i]))) ** 2
            assert low[i] <= x <= high[i]
        assert total <= 1
        others = np.setdiff1d(np.arange(4), ellipsoid.columns)
        assert (axes[others] == 0).all()
    ends = theirs.ends()
    for i in ellipsoid.columns:
        assert (-ends[~i], ends[i]) == (low[i], high[i])
        assert inner_low[i] in (low[i], math.nextafter(low[i], math.inf))
        assert inner_high[i] in (high[i], math.nextafter(high[i], -math.inf))


def test_exact_faces_are_their_own_neighbours() -> None:
    ellipsoid = Ellipsoid((1,), (Fraction(4),), (Fraction(1),))
    sides = ellipsoid.box(2)
    assert [side[1] for side in sides] == [0.5, 0.5, 1.5, 1.5]
    assert [side[0] for side in sides] == [-np.inf, -np.inf, np.inf, np.inf]
    third = Ellipsoid((0,), (Fraction(2),), (Fraction(0),))
    low, inner_low, inner_high, high = (float(side[0]) for side in third.box(1))
    assert low < inner_low < inner_high < high
    assert Fraction(inner_high) ** 2 < Fraction(1, 2) < Fraction(high) ** 2


@given(ellipsoids(), st.lists(numbers, min_size=4, max_size=4), positive)
def test_boxes_that_miss_it(ellipsoid: Ellipsoid, corner: list[Fraction], width: Fraction) -> None:
    limits = {i: (low, low + width) for i, low in enumerate(corner)}
    nearest = [
        min(max(c, limits[i][0]), limits[i][1])
        for i, c in zip(ellipsoid.columns, ellipsoid.center, strict=True)
    ]
    parts = zip(ellipsoid.weights, nearest, ellipsoid.center, strict=True)
    expected = sum(w * (x - c) ** 2 for w, x, c in parts) > 1
    assert ellipsoid.misses(lambda column, center: limits[column]) is expected
    theirs = balls.Ellipsoid(ellipsoid.columns, ellipsoid.weights, ellipsoid.center)
    ends = {i: high for i, (_, high) in limits.items()}
    assert theirs.misses(ends | {~i: -low for i, (low, _) in limits.items()}) is expected


def test_only_some_boxes_are_cut() -> None:
    unit = Ellipsoid((0, 1), (Fraction(1), Fraction(1)), (Fraction(0), Fraction(0)))
    lower, upper = np.full((2, 2), -1.0), np.full((2, 2), 1.0)
    ball = enclosing([None, unit], lower, upper)
    assert ball.axes.tolist() == [[0.0, 0.0], [1.0, 1.0]]
    assert ball.norm(np.full((2, 2), 3.0)).tolist() == [0.0, math.sqrt(18.0)]
    away = np.array([[2.0, 2.0], [0.9, 0.9]])
    assert ball.within(type(ball).around(away, np.full(2, 0.1))).empty.tolist() == [False, True]
