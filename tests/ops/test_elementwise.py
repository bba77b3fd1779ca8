"""Curves: every rule of every registered elementwise operator, against exact values."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from onnxcert.arrays import UNIT_ROUNDOFF, UNIT_ROUNDOFF_FLOAT32, Array, Device
from onnxcert.ops import Elementwise, Sign
from onnxcert.sets import Box, Lines
from tests import strategies
from tests.oracles import exact, exact_curve, finite_difference

pytestmark = pytest.mark.parametrize(
    "op", [op for _, op in strategies.ELEMENTWISE], ids=[name for name, _ in strategies.ELEMENTWISE]
)


def rows(op: Elementwise, points: Array) -> list[tuple[int, Array, list[Fraction]]]:
    """Each sampled point with the number of its box and its exact values."""
    return [
        (number, x, exact_curve(op, exact(x)))
        for sample in points
        for number, x in enumerate(sample)
    ]


def assert_between(lines: Lines, number: int, x: Array, heights: list[Fraction]) -> None:
    parts = (lines.lower_slope, lines.lower_offset, lines.upper_slope, lines.upper_offset)
    shape = (number + 1, len(x))
    stored = [
        np.broadcast_to(part, np.broadcast_shapes(part.shape, shape))[number] for part in parts
    ]
    for z, height, *line in zip(exact(x), heights, *map(exact, stored), strict=True):
        below, above = line[0] * z + line[1], line[2] * z + line[3]
        assert below <= height <= above, (float(z), float(below - height), float(above - height))


@given(data=st.data())
def test_interval_contains_exact_values(op: Elementwise, data: st.DataObject) -> None:
    box = data.draw(strategies.boxes(op.size))
    bounds = op.interval([box], UNIT_ROUNDOFF)
    for number, _, heights in rows(op, data.draw(strategies.points_in(box))):
        low, high = exact(bounds.lower[number]), exact(bounds.upper[number])
        for below, height, above in zip(low, heights, high, strict=True):
            assert below <= height <= above


@given(data=st.data())
def test_interval_contains_binary32_evaluation(op: Elementwise, data: st.DataObject) -> None:
    box = data.draw(strategies.boxes(op.size, largest=1e6))
    bounds = op.interval([box], UNIT_ROUNDOFF_FLOAT32)
    points = data.draw(strategies.points_in(box)).astype(np.float32)
    for sample in points:
        inside = (sample >= box.lower) & (sample <= box.upper)
        normal = (sample == 0) | (abs(sample) > 1e-30)  # not where binary32 itself underflows
        value = op.to(Device(), np.float32).value(sample).astype(float)
        contained = (bounds.lower <= value) & (value <= bounds.upper)
        assert (contained | ~inside | ~normal).all()


@given(data=st.data())
def test_lines_contain_exact_values(op: Elementwise, data: st.DataObject) -> None:
    box = data.draw(strategies.boxes(op.size))
    position = data.draw(st.none() | st.floats(0.0, 1.0) | st.sampled_from([0.0, 0.5, 1.0]))
    slope = None if position is None else np.full(box.lower.shape, position)
    lines = op.relax(box, slope)
    for number, x, heights in rows(op, data.draw(strategies.points_in(box))):
        assert_between(lines, number, x, heights)


@given(data=st.data())
def test_lines_are_exact_where_the_neuron_is_stable(op: Elementwise, data: st.DataObject) -> None:
    if not op.piecewise_linear or isinstance(op, Sign):
        pytest.skip("lines of a curve or of a jump are not exact anywhere they matter")
    box = data.draw(strategies.boxes(op.size))
    stable = ~op.unstable(box)
    assume(stable.any())
    lines = op.relax(box)
    for number, x, heights in rows(op, data.draw(strategies.points_in(box))):
        slopes, offsets = exact(lines.lower_slope[number]), exact(lines.lower_offset[number])
        for i in np.flatnonzero(stable[number]):
            assert slopes[i] * Fraction(x[i]) + offsets[i] == heights[i]


@given(data=st.data())
def test_split_point_divides_the_interval(op: Elementwise, data: st.DataObject) -> None:
    box = data.draw(strategies.boxes(op.size))
    point = op.split_point(box)
    assert ((point >= box.lower) & (point <= box.upper)).all()
    for kink in op.kinks:
        crossing = (box.lower < kink) & (box.upper > kink)
        assert (point[crossing] == kink).all()


@given(data=st.data())
def test_halves_of_a_split_have_no_kink_inside(op: Elementwise, data: st.DataObject) -> None:
    if not op.piecewise_linear:
        pytest.skip("a smooth curve has no kink")
    box = data.draw(strategies.boxes(op.size))
    point = op.split_point(box)
    for half in (Box(box.lower, point), Box(point, box.upper)):
        assert not op.unstable(half).any()


def test_derivative_is_the_slope(op: Elementwise, rng: np.random.Generator) -> None:
    if isinstance(op, Sign):
        pytest.skip("its derivative is a straight-through estimate, not a slope")
    x = rng.normal(size=(5, op.size))
    x += np.where(abs(x) < 0.01, 0.1, 0.0)  # away from the kink
    gradient = rng.normal(size=x.shape)

    def total(x: Array) -> float:
        return float((gradient * op.value(x)).sum())

    (product,) = op.vjp(gradient, [x])
    np.testing.assert_allclose(product, finite_difference(total, x), rtol=1e-6, atol=1e-8)


def test_derivative_at_a_kink_lies_between_the_slopes(op: Elementwise) -> None:
    for kink in op.kinks:
        if isinstance(op, Sign):
            continue
        at = op.derivative(np.full((1, op.size), kink))
        sides = [op.derivative(np.full((1, op.size), kink + step)) for step in (-1.0, 1.0)]
        assert (at >= np.minimum(*sides)).all()
        assert (at <= np.maximum(*sides)).all()
    assert np.isfinite(op.derivative(np.zeros((1, op.size)))).all()
