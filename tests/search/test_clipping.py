"""Clipped boxes keep every point where all forms can be <= 0; combined bounds are bounds."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onnxcert.arrays import Array
from onnxcert.search.clipping import clip_box, combine_rows
from onnxcert.sets import Box
from tests import strategies
from tests.oracles import dot, exact

Forms = tuple[Box, Array, list[Fraction], Array]


@st.composite
def linear_forms(draw: st.DrawFn) -> Forms:
    """Forms a . x + c over a box, and a float lower bound of each, rounded down."""
    size, count = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    box = draw(strategies.boxes(size, batch=1, largest=10.0))
    rng = np.random.default_rng(draw(strategies.seeds))
    rows = rng.choice([0.0, 1.0, -1.0, 0.25, 1e-9, 3e7], size=(1, count, size))
    rows *= rng.normal(size=rows.shape)
    offsets = [Fraction(float(c)) for c in rng.normal(size=count)]
    corners = np.where(rows[0] >= 0, box.lower, box.upper)
    exact_lower = [
        dot(row, exact(corner)) + c
        for row, corner, c in zip(rows[0], corners, offsets, strict=True)
    ]
    lower = np.array([[np.nextafter(float(value), -np.inf) for value in exact_lower]])
    return box, rows, offsets, lower


def values(rows: Array, offsets: list[Fraction], x: Array) -> list[Fraction]:
    return [dot(row, exact(x)) + c for row, c in zip(rows[0], offsets, strict=True)]


@given(data=st.data())
def test_no_point_where_all_forms_can_hold_is_lost(data: st.DataObject) -> None:
    box, rows, offsets, lower = data.draw(linear_forms())
    with np.errstate(all="ignore"):
        clipped = clip_box(box, rows, lower, np.ones(lower.shape, dtype=bool))
    for x in data.draw(strategies.points_in(box, count=6)):
        if all(value <= 0 for value in values(rows, offsets, x[0])):
            assert (clipped.lower <= x).all()
            assert (x <= clipped.upper).all()
    assert (clipped.lower >= box.lower).all()
    assert (clipped.upper <= box.upper).all()


@given(data=st.data())
def test_a_combination_is_positive_only_where_some_form_is(data: st.DataObject) -> None:
    """A convex combination is at most the largest form, at every point."""
    box, rows, offsets, lower = data.draw(linear_forms())
    best, row, _ = combine_rows(box, rows, lower, np.ones(lower.shape, dtype=bool))
    assert best[0] >= lower.max()
    assert row.shape == box.lower.shape
    for x in data.draw(strategies.points_in(box, count=6)):
        assert Fraction(float(best[0])) <= max(values(rows, offsets, x[0]))


def test_two_forms_that_exclude_each_other_are_refuted_together() -> None:
    """x + 0.1 <= 0 and 0.1 - x <= 0: each has solutions in [-1, 1], their sum is 0.2."""
    box = Box(np.array([[-1.0]]), np.array([[1.0]]))
    rows, lower = np.array([[[1.0], [-1.0]]]), np.array([[-0.9, -0.9]])
    best, _, _ = combine_rows(box, rows, lower, np.ones((1, 2), dtype=bool))
    assert best[0] > 0


def test_padding_is_no_form() -> None:
    box = Box(np.array([[-1.0]]), np.array([[1.0]]))
    rows, lower = np.array([[[1.0], [0.0]]]), np.array([[-0.5, 7.0]])
    used = np.array([[True, False]])
    best, _, _ = combine_rows(box, rows, lower, used)
    assert best[0] == -0.5
    with np.errstate(all="ignore"):
        clipped = clip_box(box, rows, lower, used)
    assert clipped.lower[0, 0] == -1.0
    assert -0.5 <= clipped.upper[0, 0] < -0.499


def test_forms_without_a_bound_are_left_out() -> None:
    """Minus infinity times a weight of zero is undefined, and must not spoil the other forms."""
    box = Box(np.array([[-1.0]] * 2), np.array([[1.0]] * 2))
    rows = np.array([[[1.0], [-1.0], [1.0]]] * 2)
    lower = np.array([[-0.9, -0.9, -np.inf], [-np.inf] * 3])
    best, _, _ = combine_rows(box, rows, lower, np.ones((2, 3), dtype=bool))
    assert best[0] > 0
    assert np.isneginf(best[1])
