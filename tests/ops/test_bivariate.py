"""Functions of two values: planes and intervals against exact values."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcert.arrays import UNIT_ROUNDOFF, Array
from onnxcert.checker import pairs
from onnxcert.ops import Bivariate, Divide, Multiply
from onnxcert.sets import Box
from tests import strategies
from tests.oracles import exact, exact_operator

pytestmark = pytest.mark.parametrize("op", [Multiply(3), Divide(3)], ids=["product", "quotient"])


def second_box(op: Bivariate, box: Box) -> Box:
    """Divisors on one side of zero."""
    if isinstance(op, Multiply):
        return box
    ends = np.sort(np.stack([abs(box.lower), abs(box.upper)]) + 2.0**-8, axis=0)
    below = box.upper <= 0
    return Box(np.where(below, -ends[1], ends[0]), np.where(below, -ends[0], ends[1]))


@st.composite
def rectangles(draw: st.DrawFn, op: Bivariate) -> tuple[list[Box], list[list[Array]]]:
    """Boxes of both values, of every shape, and points in both."""
    first = draw(strategies.boxes(op.size, batch=1))
    second = second_box(op, draw(strategies.boxes(op.size, batch=1)))
    points = [draw(strategies.points_in(box, count=6)) for box in (first, second)]
    return [first, second], [[a[0], b[0]] for a, b in zip(*points, strict=True)]


@st.composite
def positions(draw: st.DrawFn, size: int) -> Array:
    """Of free planes: the ends, grid points, any numbers between."""
    share = st.sampled_from([0.0, 1.0, 0.5, 64 / 255]) | st.floats(0.0, 1.0)
    return np.array([[draw(share) for _ in range(size)]])


@given(data=st.data())
def test_positions_run_between_the_four_planes(op: Bivariate, data: st.DataObject) -> None:
    """At either end a plane of McCormick's is met, and touches the product along two edges."""
    boxes, _ = data.draw(rectangles(op))
    made = op.interval(boxes, UNIT_ROUNDOFF)
    if isinstance(op, Divide):
        usual = op.relax(boxes, made)
        moved = op.relax(boxes, made, np.zeros((1, 3)))
        np.testing.assert_array_equal(usual.lower_offset, moved.lower_offset)
        return
    (a, b), ends = boxes, np.array([[0.0, 1.0, 1.0]])
    planes = op.relax(boxes, made, ends)
    sides = [
        (planes.lower_slopes, planes.lower_offset, a.lower, a.upper, b.lower, b.upper),
        (planes.upper_slopes, planes.upper_offset, a.upper, a.lower, b.lower, b.upper),
    ]
    for (first, second), offset, al, au, bl, bu in sides:
        x, y = np.where(ends < 1, al, au), np.where(ends < 1, bl, bu)
        height = first * x + second * y + offset
        size = a.magnitude * b.magnitude + 1e-280
        np.testing.assert_array_less(abs(height - x * y), 1e-12 * size + 1e-280)


@given(data=st.data())
def test_everything_holds_exactly(op: Bivariate, data: st.DataObject) -> None:
    """Intervals and planes of the engine and of the checker, also where the values are known."""
    boxes, points = data.draw(rectangles(op))
    heights = [exact_operator(op, [exact(a), exact(b)]) for a, b in points]
    made = op.interval(boxes, UNIT_ROUNDOFF)
    if data.draw(st.booleans()):  # bounds that these points obey, as backward rows may find them
        floats = np.array([[float(v) for v in row] for row in heights])
        low, high = np.nextafter(floats.min(0), -np.inf), np.nextafter(floats.max(0), np.inf)
        made = Box(low[None], high[None])
    kind = "product" if isinstance(op, Multiply) else "quotient"
    ranges = [(box.lower, box.upper) for box in boxes]
    position = data.draw(st.none() | positions(op.size))
    known = made.lower, made.upper
    k, mean, half, middle, gap = pairs.planes(kind, *ranges, known, position)
    planes = op.relax(boxes, made, position)
    sides = [
        (planes.lower_slopes, planes.lower_offset, 1),
        (planes.upper_slopes, planes.upper_offset, -1),
    ]
    theirs = pairs.interval(kind, *ranges)
    for (a, b), row in zip(points, heights, strict=True):
        for i, value in enumerate(row):
            x, y = Fraction(float(a[i])), Fraction(float(b[i]))
            assert Fraction(made.lower[0, i]) <= value <= Fraction(made.upper[0, i])
            assert Fraction(theirs[0][0, i]) <= value <= Fraction(theirs[1][0, i])
            for (first, second), offset, sign in sides:
                line = Fraction(first[0, i]) * x + Fraction(second[0, i]) * y
                assert sign * (value - line - Fraction(offset[0, i])) >= 0
            # Noise is charged by the caller: the plane itself is off by roundings of its parts.
            parts = [Fraction(part[0, i]) for part in (k, mean, half, middle, gap)]
            size = sum(abs(p * q) for p, q in zip(parts, (x, y, y, 1, 1), strict=True))
            line = parts[0] * x + parts[1] * y + parts[3]
            assert abs(value - line) <= abs(parts[2] * y) + parts[4] + size * Fraction(2.0**-50)


@given(data=st.data())
def test_bounds_of_a_difference_are_bounds_of_the_function(
    op: Bivariate, data: st.DataObject
) -> None:
    boxes, points = data.draw(rectangles(op))
    made = op.interval(boxes, UNIT_ROUNDOFF)
    center = op.center(boxes, made)
    if isinstance(op, Multiply):
        assert not center.any()
        return
    differences = np.array(
        [
            [float(Fraction(p) - Fraction(c) * Fraction(q)) for p, q, c in zip(a, b, center[0])]  # noqa: B905
            for a, b in points
        ]
    )
    low, high = np.nextafter(differences.min(0), -np.inf), np.nextafter(differences.max(0), np.inf)
    found = op.from_difference(boxes, center, Box(low[None], high[None]))
    for a, b in points:
        for i, value in enumerate(exact_operator(op, [exact(a), exact(b)])):
            assert Fraction(found.lower[0, i]) <= value <= Fraction(found.upper[0, i])


def test_a_number_and_a_range_lose_nothing(op: Bivariate) -> None:
    boxes = [Box(np.full((1, 3), -1.0), np.full((1, 3), 3.0)), Box(*[np.full((1, 3), 4.0)] * 2)]
    planes = op.relax(boxes, op.interval(boxes, UNIT_ROUNDOFF))
    factor = 4.0 if isinstance(op, Multiply) else 0.25
    np.testing.assert_allclose(planes.lower_slopes[0], factor, rtol=1e-12)
    heights = [
        slope[1] * 4.0 + offset
        for slope, offset in (
            (planes.lower_slopes, planes.lower_offset),
            (planes.upper_slopes, planes.upper_offset),
        )
    ]
    np.testing.assert_allclose(heights, 0.0, atol=1e-12)
    assert not op.bends(boxes).any()


@given(data=st.data(), side=st.sampled_from([-1.0, 1.0]))
def test_what_a_row_gains_as_planes_turn(op: Bivariate, data: st.DataObject, side: float) -> None:
    """Planes are linear in their position; at its ends they are McCormick's."""
    boxes, points = data.draw(rectangles(op))
    made = op.interval(boxes, UNIT_ROUNDOFF)
    if not op.turns:
        only, same = (op.relax(boxes, made, at) for at in (None, np.full((1, op.size), 0.25)))
        assert all(map(np.array_equal, only.lower_slopes, same.lower_slopes))
        return
    ranges, (a, b) = [(box.lower, box.upper) for box in boxes], points[0]

    def height(position: float) -> Array:
        planes = op.relax(boxes, made, np.full((1, op.size), position))
        slopes, offset = planes.lower_slopes, planes.lower_offset
        if side < 0:
            slopes, offset = planes.upper_slopes, planes.upper_offset
        return side * (slopes[0] * a + slopes[1] * b + offset)

    first, middle, last = map(height, (0.0, 0.5, 1.0))
    size = boxes[0].magnitude * boxes[1].magnitude + 1e-200
    (al, au), (bl, _) = ranges
    corner = bl * a + al * b - al * bl if side > 0 else -(bl * a + au * b - au * bl)
    assert (abs(first - corner) <= 1e-12 * size).all()
    assert (abs(middle - 0.5 * (first + last)) <= 1e-12 * size).all()
    gain = pairs.turn(*ranges, np.full((1, op.size), side), a, b)
    assert (abs(last - first - gain) <= 1e-12 * size).all()


def test_gradients_are_differences(op: Bivariate, rng: np.random.Generator) -> None:
    a, b = rng.normal(size=(2, 3)), 1.0 + rng.random((2, 3))
    gradient, step = rng.normal(size=(2, 3)), 1e-6
    parts = op.vjp(gradient, [a, b])
    for part, moved in zip(parts, ((step, 0.0), (0.0, step)), strict=True):
        after = op.forward([a + moved[0], b + moved[1]])
        before = op.forward([a - moved[0], b - moved[1]])
        np.testing.assert_allclose(part, gradient * (after - before) / (2 * step), rtol=1e-5)


def test_where_nothing_is_known_nothing_is_claimed(op: Bivariate) -> None:
    crossing = Box(np.full((1, 3), -1.0), np.full((1, 3), 1.0))
    wide = Box(np.full((1, 3), -np.inf), np.full((1, 3), np.inf))
    boxes = [crossing, crossing] if isinstance(op, Divide) else [crossing, wide]
    with np.errstate(all="ignore"):
        made = op.interval(boxes, UNIT_ROUNDOFF).defined()
        planes = op.relax(boxes, made)
    assert np.isneginf(made.lower).all()
    assert np.isposinf(made.upper).all()
    assert np.isneginf(planes.lower_offset).all()
    assert np.isposinf(planes.upper_offset).all()
    assert not np.any([*planes.lower_slopes, *planes.upper_slopes])
