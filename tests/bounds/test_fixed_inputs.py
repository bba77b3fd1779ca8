"""Inputs that hardly vary end before the first product: bounds hold, and lose only roundings."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcert.arrays import Array
from onnxcert.bounds import forward
from onnxcert.bounds.backward import Relaxation, pull_back, pull_back_units
from onnxcert.bounds.crown import crown_bounds, output_bounds
from onnxcert.graph import Graph, Node
from onnxcert.ops import Linear, Relu, Tanh
from onnxcert.sets import Ball, Box
from tests import strategies
from tests.bounds.executions import BINARY32, Execution, with_float32_weights
from tests.bounds.test_soundness import Sample, assert_inside, assert_obeys, row_blocks
from tests.oracles import exact_values

INPUTS = 9


@st.composite
def fixed(draw: st.DrawFn, *, single: bool = False) -> tuple[Graph, Box, list[Array]]:
    """A network behind a matrix, boxes where few inputs are more than two floats, and points."""
    graph = draw(strategies.graphs(smooth=True, largest=5))
    rng = np.random.default_rng(draw(strategies.seeds))
    weight = rng.normal(size=(INPUTS, graph.input_size)) * 10.0 ** rng.integers(-2, 3)
    offset = rng.normal(size=graph.input_size) if draw(st.booleans()) else None
    first = Node(graph.input, Linear(weight, offset), ("first",))
    graph = Graph("first", INPUTS, (first, *graph.nodes), graph.output)
    kind = np.float32 if single else np.float64
    low = (rng.normal(size=(2, INPUTS)) * 10.0 ** rng.integers(-3, 4, size=INPUTS)).astype(kind)
    high = low if single else np.where(rng.random(low.shape) < 0.5, low, np.nextafter(low, np.inf))
    wide = rng.random((2, INPUTS)) < [[0.2], [draw(st.sampled_from([0.0, 0.2]))]]
    wide &= np.cumsum(wide.any(axis=0)) <= INPUTS // 2
    width = draw(st.sampled_from([1e-6, 0.1, 1.0]))
    box = Box(low.astype(float), np.where(wide, low + kind(width), high).astype(float))
    graph = with_float32_weights(graph) if single else graph
    points = draw(strategies.points_in(box, count=2)).astype(kind).astype(float)
    return graph, box, list(np.clip(points, box.lower, box.upper))


def samples_of(graph: Graph, points: list[Array]) -> list[Sample]:
    return [(i, x, exact_values(graph, x)) for sample in points for i, x in enumerate(sample)]


@given(case=fixed(), data=st.data(), forwards=st.booleans())
def test_forms_hold_and_lose_only_roundings(
    case: tuple[Graph, Box, list[Array]], data: st.DataObject, forwards: bool
) -> None:
    graph, box, points = case
    with mock.patch.object(forward, "NEURONS_PER_INPUT", 0 if forwards else 1000):
        bounds = crown_bounds(graph, box)
    relaxation = bounds.relaxation
    samples = samples_of(graph, points)
    for sample in samples:
        assert_inside(bounds.boxes, sample)
    ended = graph.input_size == INPUTS and graph.nodes[0].name in relaxation.fixed_inputs
    assert ended or graph.nodes[0].name in relaxation.left_out
    start = data.draw(st.sampled_from([node.name for node in graph.nodes]))
    rows = data.draw(row_blocks(graph.sizes[start]))
    input_rows = data.draw(st.none() | row_blocks(INPUTS))
    pulled = pull_back(relaxation, start, rows, input_rows=input_rows)
    for sample in samples:
        assert_obeys(pulled.lower, rows, input_rows, start, sample)
    if input_rows is None:
        assert not pulled.coefficients[:, :, ~box.varies.any(axis=0)].any()
    whole = pull_back(replace(relaxation, fixed_inputs={}), start, rows, input_rows=input_rows)
    known = np.isfinite(whole.lower) & np.isfinite(pulled.lower)
    size = abs(whole.coefficients) @ box.magnitude[:, :, None]
    # What was added up on the way may be larger than what is left of it.
    reach = max(
        float(abs(side).max()) for b in bounds.boxes.values() for side in (b.lower, b.upper)
    )
    slack = 1e-9 * (size[:, :, 0] + abs(whole.lower) + abs(rows).sum(axis=2) * reach)
    assert (abs(whole.lower - pulled.lower) <= slack + 1e-280)[known].all()


@given(case=fixed(single=True), seed=strategies.seeds)
def test_bounds_hold_for_executions(case: tuple[Graph, Box, list[Array]], seed: int) -> None:
    graph, box, points = case
    rng = np.random.default_rng(seed)
    with np.errstate(all="ignore"):
        bounds = crown_bounds(graph, box, execution_unit=BINARY32)
        output = output_bounds(graph, bounds)
    for sample in points:
        for number, x in enumerate(sample):
            values = Execution(rng).run(graph, x)
            for name, found in {**bounds.boxes, graph.output: output}.items():
                low, high = found.lower[number], found.upper[number]
                outside = np.isinf(low) | np.isinf(high)
                inside = (low <= values[name]) & (values[name] <= high)
                assert (inside | (np.isnan(values[name]) & outside)).all(), name


def chain(rng: np.random.Generator, inputs: int) -> Graph:
    nodes = (
        Node("a", Linear(rng.normal(size=(inputs, 6)), rng.normal(size=6)), ("x",)),
        Node("b", Tanh(6), ("a",)),
        Node("c", Linear(rng.normal(size=(6, 5))), ("b",)),
        Node("d", Relu(5), ("c",)),
        Node("y", Linear(rng.normal(size=(5, 2))), ("d",)),
    )
    return Graph("x", inputs, nodes, "y")


def partly_fixed(rng: np.random.Generator, vary: int, inputs: int = 40) -> Box:
    lower = rng.normal(size=(1, inputs))
    upper = np.nextafter(lower, np.inf)
    upper[0, :vary] = lower[0, :vary] + 0.3
    return Box(lower, upper)


def test_rows_over_the_input_stay_narrow(rng: np.random.Generator) -> None:
    graph, box = chain(rng, 40), partly_fixed(rng, 3)
    relaxation = crown_bounds(graph, box).relaxation
    pulled = pull_back(relaxation, "y", np.eye(2)[None])
    assert pulled.rows.shape == (1, 2, 3)
    assert pulled.coefficients.shape == (1, 2, 40)
    assert (pulled.coefficients[:, :, :3] == pulled.rows).all()
    single = pull_back(relaxation.single(curves=relaxation.curves), "y", np.eye(2)[None])
    assert np.allclose(single.lower, pulled.lower, atol=1e-4)


def test_rows_that_start_where_inputs_end(rng: np.random.Generator) -> None:
    graph, box = chain(rng, 40), partly_fixed(rng, 3)
    relaxation = crown_bounds(graph, box).relaxation
    index = np.arange(6)[None]
    for sign in (1.0, -1.0):
        found = pull_back_units(relaxation, "a", index, sign)
        corner = np.where(sign * graph.nodes[0].op.weight[:, index[0]].T >= 0, *_sides(box))
        exact = [exact_values(graph, x)["a"][i] for i, x in enumerate(corner)]
        for claim, value in zip(found[0], exact, strict=True):
            assert Fraction(claim) <= int(sign) * value
            assert float(int(sign) * value - Fraction(claim)) <= 1e-11


def _sides(box: Box) -> tuple[Array, Array]:
    return box.lower[0], box.upper[0]


def test_the_charge_covers_any_order(rng: np.random.Generator) -> None:
    """The width of the inputs, and Higham's bound of the products with them and with the rows."""
    graph = Graph("x", 300, (Node("a", Linear(rng.normal(size=(300, 2000))), ("x",)),), "a")
    lower = rng.normal(size=(1, 300))
    upper = lower + 2.0**-46 * abs(lower)
    upper[0, :2] += 0.1
    ended = crown_bounds(graph, Box(lower, upper)).relaxation.fixed_inputs["a"]
    weight, x = graph.nodes[0].op.weight[2:], lower[0, 2:]
    assert ended.others.tolist() == [0, 1]
    assert np.allclose(ended.center[0], x @ weight)
    width, size = (2.0**-48 * abs(x)) @ abs(weight), abs(x) @ abs(weight)
    assert (ended.radius[0] >= width + 2300 * 2.0**-53 * size).all()


def test_what_is_off_is_charged(rng: np.random.Generator) -> None:
    graph, box = chain(rng, 40), partly_fixed(rng, 3)
    relaxation = crown_bounds(graph, box).relaxation
    rows = np.array([[[1.0, -2.0, 0.5, 0.0, 0.0, 1.0]]])
    before = pull_back(relaxation, "a", rows)
    ended = relaxation.fixed_inputs["a"]
    ended = replace(ended, radius=ended.radius + np.array([1.0, 2.0, 4.0, 1.0, 1.0, 3.0]))
    after = pull_back(replace(relaxation, fixed_inputs={"a": ended}), "a", rows)
    assert np.isclose(before.lower - after.lower, 10.0).all()


@pytest.mark.parametrize("vary", [21, 40])
def test_nothing_ends_where_many_vary(vary: int, rng: np.random.Generator) -> None:
    graph, box = chain(rng, 40), partly_fixed(rng, vary)
    assert not crown_bounds(graph, box).relaxation.fixed_inputs


def test_nothing_ends_in_balls_or_where_derivatives_are_wanted(rng: np.random.Generator) -> None:
    graph, box = chain(rng, 40), partly_fixed(rng, 3)
    center, radius = 0.5 * (box.lower + box.upper), 0.5 * (box.upper - box.lower)
    ball = Ball(box.lower, box.upper, center, 2.0 * radius)
    assert not crown_bounds(graph, ball).relaxation.fixed_inputs
    relaxation = Relaxation(graph, box, to_inputs=True)
    relaxation.add_affine(graph.nodes[0], {"x": box})
    assert not relaxation.fixed_inputs


def test_what_varies() -> None:
    """A decimal between two floats does not; what may be zero and something else does."""
    lower = np.array([[1.0, -3.0, 0.0, 0.0, 1e-300, 5.0]])
    upper = np.array([[np.nextafter(1.0, 2.0), -3.0, 5e-324, 0.0, 2e-300, 5.0 + 2.0**-42]])
    assert Box(lower, upper).varies.tolist() == [[False, False, True, False, True, True]]
