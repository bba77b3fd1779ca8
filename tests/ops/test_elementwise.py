"""Curves: every rule of every registered elementwise operator, against exact values."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from onnxcert.arrays import UNIT_ROUNDOFF, UNIT_ROUNDOFF_FLOAT32, Array, Device
from onnxcert.ops import (
    Elementwise,
    Exp,
    Floor,
    PiecewiseLinear,
    Power,
    Reciprocal,
    Sign,
)
from onnxcert.ops.sinusoid import Sinusoid
from onnxcert.sets import Box, Lines
from tests import strategies
from tests.oracles import exact, exact_curve, extended, finite_difference

ENDS = st.floats(-50, 50) | st.sampled_from([0.0, 1e-8, -1e-8, 1e3, -1e3, 1e3 + 1e-9, 5e-324])
"""Of intervals."""


def boxes_of(op: Elementwise, **more: float) -> st.SearchStrategy[Box]:
    """Boxes on which the operator is defined: reciprocals keep away from zero."""
    drawn = strategies.boxes(op.size, **more)
    return drawn.map(away_from_zero) if isinstance(op, Reciprocal) else drawn


def away_from_zero(box: Box) -> Box:
    """Every interval on one side of zero, and not too near."""
    ends = np.sort(np.stack([abs(box.lower), abs(box.upper)]) + 2.0**-10, axis=0)
    negative = box.upper <= 0
    return Box(np.where(negative, -ends[1], ends[0]), np.where(negative, -ends[0], ends[1]))


_ORACLE = Fraction(1, 10**48)
"""Exact values of smooth curves have fifty digits."""

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
    for z, height, *line in zip(exact(x), heights, *map(extended, stored), strict=True):
        below, above = line[0] * z + line[1], line[2] * z + line[3]
        assert below <= height <= above, (float(z), line)


@given(data=st.data())
def test_interval_contains_exact_values(op: Elementwise, data: st.DataObject) -> None:
    box = data.draw(boxes_of(op))
    bounds = op.interval([box], UNIT_ROUNDOFF)
    for number, _, heights in rows(op, data.draw(strategies.points_in(box))):
        low, high = extended(bounds.lower[number]), extended(bounds.upper[number])
        for below, height, above in zip(low, heights, high, strict=True):
            assert below <= height <= above


@given(data=st.data())
def test_interval_contains_binary32_evaluation(op: Elementwise, data: st.DataObject) -> None:
    box = data.draw(boxes_of(op, largest=1e6))
    bounds = op.interval([box], UNIT_ROUNDOFF_FLOAT32)
    points = data.draw(strategies.points_in(box)).astype(np.float32)
    for sample in points:
        inside = (sample >= box.lower) & (sample <= box.upper)
        exact_value = abs(op.value(sample.astype(float)))
        # Not where binary32 itself underflows.
        normal = (sample == 0) | (
            (abs(sample) > 1e-30) & ((exact_value > 1e-35) | (exact_value == 0))
        )
        value = op.to(Device(), np.float32).value(sample).astype(float)
        normal &= np.isfinite(value)  # nor where it overflows
        contained = (bounds.lower <= value) & (value <= bounds.upper)
        assert (contained | ~inside | ~normal).all()


@given(data=st.data())
def test_lines_contain_exact_values(op: Elementwise, data: st.DataObject) -> None:
    box = data.draw(boxes_of(op))
    position = data.draw(st.none() | st.floats(0.0, 1.0) | st.sampled_from([0.0, 0.5, 1.0]))
    slope = None if position is None else np.full(box.lower.shape, position)
    lines = op.relax(box, slope)
    for number, x, heights in rows(op, data.draw(strategies.points_in(box))):
        assert_between(lines, number, x, heights)


@given(data=st.data(), position=st.none() | st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0.0, 1.0))
def test_lines_on_boxes_of_every_size(
    op: Elementwise, data: st.DataObject, position: float | None
) -> None:
    """Wide, narrow, one-sided and degenerate ones, and far from zero."""
    ends = st.lists(ENDS, min_size=op.size, max_size=op.size)
    first, second = (np.array([data.draw(ends)]) for _ in range(2))
    box = Box(np.minimum(first, second), np.maximum(first, second))
    if isinstance(op, Reciprocal):
        box = away_from_zero(box)
        first, second = box.lower, box.upper
    lines = op.relax(box, None if position is None else np.full(first.shape, position))
    between = np.clip(0.5 * first + 0.5 * second, box.lower, box.upper)
    points = [box.lower, box.upper, between, np.clip(0.0, box.lower, box.upper)]
    points.append(np.clip(np.nextafter(between, np.inf), box.lower, box.upper))
    for number, x, heights in rows(op, np.stack(points)):
        assert_between(lines, number, x, heights)


@given(data=st.data())
def test_the_default_position_gives_the_default_lines(op: Elementwise, data: st.DataObject) -> None:
    box = data.draw(boxes_of(op))
    usual, chosen = op.relax(box), op.relax(box, op.default_position(box))
    for name in ("lower_slope", "lower_offset", "upper_slope", "upper_offset"):
        np.testing.assert_array_equal(getattr(usual, name), getattr(chosen, name))


@given(data=st.data())
def test_bent_lines_are_those_of_relax(op: Elementwise, data: st.DataObject) -> None:
    box = data.draw(boxes_of(op))
    bent = op.bend(box)
    if bent is None:
        assert op.piecewise_linear
        return
    for position in (0.0, 0.3, 1.0):
        s = np.full(box.lower.shape, position)
        whole, found = op.relax(box, s), bent.at(s)
        for name in ("lower_slope", "lower_offset", "upper_slope", "upper_offset"):
            np.testing.assert_array_equal(getattr(whole, name), getattr(found, name))


@given(data=st.data())
def test_largest_of_bent_lines_bounds_what_lies_between(
    op: Elementwise, data: st.DataObject
) -> None:
    """What `BentLines` promises, and rounding vectors rely on; up to rounding."""
    box = data.draw(boxes_of(op))
    bent = op.bend(box)
    if bent is None:
        pytest.skip("no bent lines")
    zero = np.zeros(box.lower.shape)
    largest, ends = bent.largest(zero), [bent.at(s + zero) for s in (0.0, 1.0)]
    inside = bent.at(np.full(box.lower.shape, data.draw(st.floats(0.0, 1.0))))
    for name in ("lower_slope", "lower_offset", "upper_slope", "upper_offset"):
        parts = [getattr(end, name) for end in ends]
        most = getattr(largest, name)
        slack, value = 1e-12 * (1.0 + most), getattr(inside, name)
        assert (abs(value) <= most + slack).all(), name
        if name.endswith("slope"):
            assert (value >= np.minimum(*parts) - slack).all(), name
            assert (value <= np.maximum(*parts) + slack).all(), name


@given(data=st.data())
def test_gains_of_bent_lines(op: Elementwise, data: st.DataObject) -> None:
    box = data.draw(boxes_of(op, largest=8.0))
    bent = op.bend(box)
    if bent is None:
        pytest.skip("no bent lines")
    if isinstance(op, Sinusoid | PiecewiseLinear):
        pytest.skip("an estimate where a line touches at an end, or goes from knot to knot")
    z = data.draw(strategies.points_in(box))[0] * np.ones(box.lower.shape)
    s, step = data.draw(st.floats(0.05, 0.95)), 1e-4

    def heights(position: float) -> tuple[Array, Array]:
        lines = bent.at(np.full(box.lower.shape, position))
        below = lines.lower_slope * z + lines.lower_offset
        return below, lines.upper_slope * z + lines.upper_offset

    gains = bent.gains(np.full(box.lower.shape, s), z)
    for gain, after, before in zip(gains, heights(s + step), heights(s - step), strict=True):
        error = 1e-4 + 1e-6 * abs(after).max()  # third derivatives, as large as the heights
        np.testing.assert_allclose(gain, (after - before) / (2 * step), rtol=1e-3, atol=error)


@given(data=st.data())
def test_lines_are_exact_where_the_neuron_is_stable(op: Elementwise, data: st.DataObject) -> None:
    if not (op.piecewise_linear and op.continuous):
        pytest.skip("lines of a curve or of a jump are not exact anywhere they matter")
    box = data.draw(boxes_of(op))
    stable = ~op.unstable(box)
    assume(stable.any())
    lines = op.relax(box)
    for number, x, heights in rows(op, data.draw(strategies.points_in(box))):
        slopes, offsets = exact(lines.lower_slope[number]), exact(lines.lower_offset[number])
        for i in np.flatnonzero(stable[number]):
            assert slopes[i] * Fraction(x[i]) + offsets[i] == heights[i]


@given(data=st.data())
def test_split_point_divides_the_interval(op: Elementwise, data: st.DataObject) -> None:
    box = data.draw(boxes_of(op))
    point = op.split_point(box)
    assert ((point >= box.lower) & (point <= box.upper)).all()
    for kink in op.kinks:
        crossing = (box.lower < kink) & (box.upper > kink)
        assert (point[crossing] == kink).all()


@given(data=st.data())
def test_halves_of_a_split_have_no_kink_inside(op: Elementwise, data: st.DataObject) -> None:
    if not op.piecewise_linear:
        pytest.skip("a smooth curve has no kink")
    box = data.draw(boxes_of(op))
    if isinstance(op, Floor):  # one jump between the ends
        start = np.floor(np.clip(box.lower, -1e9, 1e9))
        box = Box(start + 0.5, start + 1.75)
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
    zero = np.full((1, op.size), 1.0 if isinstance(op, Reciprocal) else 0.0)
    assert np.isfinite(op.derivative(zero)).all()


@given(data=st.data())
def test_slope_range_contains_exact_quotients(op: Elementwise, data: st.DataObject) -> None:
    """Between any two points of an interval, and of the whole line."""
    box = data.draw(boxes_of(op, largest=1e6))
    points = data.draw(strategies.points_in(box, count=4))
    for inside in (box, None):
        found = op.slope_range(inside)
        if found is None:
            far = inside is None or box.upper.max() > 500  # where an exponential is no number
            nowhere = isinstance(op, Power | Reciprocal) and inside is None
            assert not op.continuous or nowhere or (isinstance(op, Exp) and far)
            continue
        low, high = (np.broadcast_to(side, points.shape[1:]) for side in found)
        for number in range(points.shape[1]):
            values = [exact(x) for x in points[:, number]]
            heights = [exact_curve(op, value) for value in values]
            for j in range(op.size):
                line = sorted(
                    (value[j], height[j]) for value, height in zip(values, heights, strict=True)
                )
                for (x, f), (z, g) in pairwise(line):
                    least, most = (
                        Fraction(float(side[number, j])) * (z - x) for side in (low, high)
                    )
                    assert least - _ORACLE <= g - f <= most + _ORACLE
