"""Bounds over the part of a box in an ellipsoid: true at every point, and close to the least."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcert.arrays import Array
from onnxcert.bounds.backward import pull_back
from onnxcert.bounds.crown import crown_bounds, output_bounds
from onnxcert.bounds.intermediate import tighten
from onnxcert.bounds.optimised import Forms, FreeRelaxation, Start, optimise
from onnxcert.graph import Graph, Node
from onnxcert.ops import Linear
from onnxcert.sets import Ball, Box
from tests import strategies
from tests.bounds.test_soundness import Sample, assert_inside
from tests.oracles import dot, exact, exact_values
from tests.strategies import seeds


def random_ball(rng: np.random.Generator, size: int, batch: int = 2) -> Ball:
    """Ellipsoids that stick out of their boxes on some sides; some inputs are not bounded."""
    center = rng.normal(size=(batch, size))
    axes = rng.uniform(0.1, 2.0, size=(batch, size)) * (rng.random((batch, size)) < 0.8)
    reach = np.where(axes > 0, axes, 1.0)
    lower = center - reach * rng.choice([0.0, 0.1, 0.5, 1.0], size=axes.shape)
    upper = center + reach * rng.choice([0.05, 0.3, 1.0], size=axes.shape)
    return Ball(lower, upper, center, axes)


def contains(ball: Ball, number: int, x: Array) -> bool:
    """Whether a point is in both, exactly."""
    parts = (
        (Fraction(float(v)) - Fraction(float(c))) / Fraction(float(a))
        for v, c, a in zip(x, ball.center[number], ball.axes[number], strict=True)
        if a > 0
    )
    inside = (x >= ball.lower[number]).all() and (x <= ball.upper[number]).all()
    return bool(inside) and sum((part * part for part in parts), Fraction(0)) <= 1


def some_points(ball: Ball, rng: np.random.Generator, count: int = 6) -> list[tuple[int, Array]]:
    """Points that are in the sets, most of them near their faces."""
    found = []
    for number in range(len(ball)):
        part = ball.take(np.repeat(number, count))
        x = part.minimiser(rng.normal(size=part.lower.shape))
        x[::2] = part.center[::2] + rng.random((len(x[::2]), 1)) * (x[::2] - part.center[::2])
        x = part.towards_center(x, np.maximum(part.norm(x), 1.0) * (1.0 + 1e-15))
        found += [(number, point) for point in x if contains(ball, number, point)]
    return found


@given(seeds)
def test_the_minimisers_are_in_the_sets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ball = random_ball(rng, int(rng.integers(1, 6)))
    rows = rng.normal(size=(2, 3, ball.lower.shape[1])) * (rng.random((2, 3, 1)) < 0.9)
    share, points = ball.divide(rows)
    assert (share[ball.axes[:, None].repeat(3, axis=1) == 0] == 0).all()
    for row in range(3):
        assert (points[:, row] >= ball.lower - 1e-12).all()
        assert (points[:, row] <= ball.upper + 1e-12).all()
        assert (ball.norm(points[:, row]) <= 1.0 + 1e-7).all()


@given(seeds)
def test_the_dual_has_no_gap(seed: int) -> None:
    """The bound is the value of the form at the minimiser, which is a point of the set."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 30))
    ball = random_ball(rng, size)
    rows = rng.normal(size=(2, 3, size))
    share, points = ball.divide(rows)
    middle, width = 0.5 * (ball.lower + ball.upper), 0.5 * (ball.upper - ball.lower)
    bounds = []
    for part in (share, 0.0 * share):  # where the box alone decides, the share does not matter
        rest = rows - part
        over_box = rest * middle[:, None] - abs(rest) * width[:, None]
        length = np.sqrt(((part * ball.axes[:, None]) ** 2).sum(axis=2))
        bounds.append((over_box + part * ball.center[:, None]).sum(axis=2) - length)
    bound = np.maximum(*bounds)
    value = (rows * points).sum(axis=2)
    assert bound == pytest.approx(value, rel=1e-6, abs=1e-6)


def test_a_corner_and_an_arc() -> None:
    """In the plane: the disc of radius 1, of which only x >= -0.6 is left, and the row (1, 1)."""
    ball = Ball(np.array([[-0.6, -1.0]]), np.array([[1.0, 1.0]]), np.zeros((1, 2)), np.ones((1, 2)))
    rows = np.array([[[1.0, 1.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]])
    _, points = ball.divide(rows)
    assert points[0, :3] == pytest.approx(np.array([[-0.6, -0.8], [-0.6, 0.0], [1.0, 0.0]]))
    identity = Linear(np.eye(2), np.zeros(2))
    bounds = crown_bounds(_single(identity), ball)
    lower = pull_back(bounds.relaxation, "y", rows).lower[0]
    assert lower == pytest.approx([-1.4, -0.6, -1.0, 0.0], abs=1e-9)
    assert (lower <= [-1.4, -0.6, -1.0, 0.0]).all()
    # The ball alone gives -1.414 and the box alone -1.6 for the first.
    for other, worse in ((Box(ball.lower, ball.upper), -1.6), (_without_box(ball), -(2.0**0.5))):
        bounds = crown_bounds(_single(identity), other)
        assert pull_back(bounds.relaxation, "y", rows).lower[0, 0] == pytest.approx(worse)


def _single(op: Linear) -> Graph:
    return Graph("x", op.input_sizes[0], (Node("y", op, ("x",)),), "y")


def _without_box(ball: Ball) -> Ball:
    return Ball.around(ball.center, np.ones(len(ball)))


@st.composite
def networks(draw: st.DrawFn) -> tuple[Graph, Ball, list[Sample]]:
    """A network, two sets of inputs, and points in them with all exact values."""
    graph = draw(strategies.graphs(smooth=True))
    rng = np.random.default_rng(draw(seeds))
    ball = random_ball(rng, graph.input_size)
    points = some_points(ball, rng, 4)
    return graph, ball, [(number, x, exact_values(graph, x)) for number, x in points]


@given(networks())
def test_backward_bounds(drawn: tuple[Graph, Ball, list[Sample]]) -> None:
    graph, ball, samples = drawn
    bounds = crown_bounds(graph, ball)
    output = output_bounds(graph, bounds)
    for sample in samples:
        assert not bounds.empty[sample[0]]
        assert_inside({**bounds.boxes, graph.output: output}, sample)


@given(networks(), seeds)
def test_optimised_bounds(drawn: tuple[Graph, Ball, list[Sample]], seed: int) -> None:
    graph, ball, samples = drawn
    rng = np.random.default_rng(seed)
    bounds = crown_bounds(graph, ball.take(np.array([0])))
    boxes = tighten(graph, bounds.boxes, steps=2)
    free = FreeRelaxation.build(graph, boxes)
    rows = rng.normal(size=(1, 2, graph.output_size))
    forms = Forms(rows, None, np.zeros((1, 2)), np.ones((1, 2), dtype=bool))
    start = Start.at_form(np.zeros(1, dtype=int), forms)
    found = optimise(free, forms, boxes[graph.output], start, steps=4)
    for number, _, values in samples:
        if number == 0:
            assert_inside(boxes, (0, np.zeros(0), values))
            total = sum(
                Fraction(float(weight)) * dot(row, values[graph.output])
                for weight, row in zip(found.best.weights[0], rows[0], strict=True)
            )
            lower = found.lower[0]
            assert not np.isfinite(lower) or Fraction(float(lower)) <= total
    assert (ball.norm(np.repeat(found.minimiser, 2, axis=0))[:1] <= 1.0 + 1e-6).all()


@given(seeds, st.sampled_from([1, 5, 60]), st.sampled_from([1.0, 1e-9, 1e12]))
def test_forms_that_cancel(seed: int, size: int, scale: float) -> None:
    """Sums of which little is left: all that a bound gets wrong is rounding."""
    rng = np.random.default_rng(seed)
    ball = random_ball(rng, size, 1)
    ball = Ball(*(scale * part for part in (ball.lower, ball.upper, ball.center, ball.axes)))
    points = some_points(ball, rng)
    for _, x in points:
        row = rng.normal(size=size)
        offset = -float(row @ x)
        graph = _single(Linear(np.stack([row, -row], axis=1), np.array([offset, -offset])))
        lower = pull_back(crown_bounds(graph, ball).relaxation, "y", np.eye(2)[None]).lower[0]
        value = dot(row, exact(x)) + Fraction(offset)
        assert Fraction(float(lower[0])) <= value
        assert Fraction(float(lower[1])) <= -value


def test_sets_that_do_not_meet_are_empty() -> None:
    ball = Ball(
        np.array([[0.8, 0.8], [0.7, 0.7]]), np.ones((2, 2)), np.zeros((2, 2)), np.ones((2, 2))
    )
    bounds = crown_bounds(_single(Linear(np.eye(2), np.zeros(2))), ball)
    assert bounds.empty.tolist() == [True, False]
