"""Every bound on random networks contains the exact values at sampled points, with no tolerance."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any
from unittest import mock

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcert.arrays import Array
from onnxcert.bounds import crown
from onnxcert.bounds.backward import Multipliers, pull_back, pull_back_units
from onnxcert.bounds.crown import Bounds, crown_bounds
from onnxcert.bounds.interval import interval_bounds
from onnxcert.graph import Graph, Node
from onnxcert.ops import Concat, Linear, Relu
from onnxcert.sets import Box
from tests import strategies
from tests.oracles import Vector, dot, exact, exact_values

Sample = tuple[int, Array, dict[str, Vector]]


@st.composite
def networks(draw: st.DrawFn, *, smooth: bool = False) -> tuple[Graph, Box, list[Sample]]:
    """A network, two input boxes, and points in them with all exact values."""
    graph = draw(strategies.graphs(smooth=smooth))
    largest = draw(st.sampled_from([2.0, 2.0, 1e6]))
    box = draw(strategies.boxes(graph.input_size, largest=largest))
    points = draw(strategies.points_in(box, count=2))
    samples = [(i, x, exact_values(graph, x)) for sample in points for i, x in enumerate(sample)]
    return graph, box, samples


def assert_inside(boxes: Mapping[str, Box], sample: Sample) -> None:
    number, _, values = sample
    for name, box in boxes.items():
        row = number if len(box) > 1 else 0
        low, high = exact_bounds(box.lower[row]), exact_bounds(box.upper[row])
        for below, value, above in zip(low, values[name], high, strict=True):
            assert below is None or below <= value, (name, float(below - value))
            assert above is None or value <= above, (name, float(value - above))


def exact_bounds(values: Array) -> list[Fraction | None]:
    """Bounds as rationals, None where nothing is claimed."""
    return [Fraction(float(v)) if np.isfinite(v) else None for v in values]


@given(drawn=networks(smooth=True))
def test_interval_bounds(drawn: tuple[Graph, Box, list[Sample]]) -> None:
    graph, box, samples = drawn
    boxes = interval_bounds(graph, box)
    for sample in samples:
        assert_inside(boxes, sample)


@given(drawn=networks(smooth=True), decide=st.booleans())
def test_backward_bounds(drawn: tuple[Graph, Box, list[Sample]], decide: bool) -> None:
    graph, box, samples = drawn
    bounds = crown_bounds(graph, box, decide=decide)
    assert not bounds.empty.any()
    for sample in samples:
        assert_inside(bounds.boxes, sample)


@given(drawn=networks(smooth=True), seed=strategies.seeds)
def test_backward_bounds_with_known_bounds(
    drawn: tuple[Graph, Box, list[Sample]], seed: int
) -> None:
    """Any true statement about inner values may be passed on to the bounds of a subproblem."""
    graph, box, samples = drawn
    rng = np.random.default_rng(seed)
    parent = crown_bounds(graph, box).boxes
    known = {}
    for name in graph.pre_activations:
        if name == graph.input or rng.random() < 0.5:
            continue
        inside = np.array([[float(v) for v in sample[2][name]] for sample in samples])
        # A box round this neuron's sampled values, sometimes touching them.
        slack = rng.choice([0.0, 0.1], size=inside.shape[1])
        lower = np.nextafter(inside.min(axis=0) - slack, -np.inf)
        upper = np.nextafter(inside.max(axis=0) + slack, np.inf)
        known[name] = Box(np.tile(lower, (2, 1)), np.tile(upper, (2, 1)))
    bounds = crown_bounds(graph, box, known=known, decide=bool(seed % 2))
    assert not bounds.empty.any()
    for sample in samples:
        assert_inside(bounds.boxes, sample)
    for name, child in bounds.boxes.items():
        if name in known:
            inherited = parent[name].intersect(known[name])
            assert (child.lower >= known[name].lower).all()
            assert (child.upper <= known[name].upper).all()
            assert (inherited.lower <= child.upper).all()


@given(seed=strategies.seeds)
def test_what_one_bound_decides_needs_no_other(seed: int) -> None:
    """The neurons that stay unstable are the same, with the same bounds; the rows are fewer."""
    rng = np.random.default_rng(seed)
    nodes, source = [], "x"
    for number, (rows, columns) in enumerate([(3, 20), (20, 20), (20, 1)]):
        nodes.append(Node(f"z{number}", Linear(rng.normal(size=(rows, columns))), (source,)))
        if number < 2:
            source = f"h{number}"
            nodes.append(Node(source, Relu(columns), (f"z{number}",)))
    graph = Graph("x", 3, tuple(nodes), "z2")
    center = rng.normal(size=(2, 3))
    box, count = Box(center - 0.2, center + 0.2), []

    def counted(*arguments: Any) -> Array:
        count.append(arguments[2].size)
        return pull_back_units(*arguments)

    with mock.patch.object(crown, "pull_back_units", counted):
        whole = crown_bounds(graph, box)
        every = sum(count)
        count.clear()
        found = crown_bounds(graph, box, decide=True)
    assert sum(count) <= every
    ours, theirs = found.boxes["z1"], whole.boxes["z1"]
    bent = (theirs.lower < 0) & (theirs.upper > 0)
    np.testing.assert_array_equal((ours.lower < 0) & (ours.upper > 0), bent)
    np.testing.assert_allclose(ours.lower[bent], theirs.lower[bent], rtol=1e-12)
    np.testing.assert_allclose(ours.upper[bent], theirs.upper[bent], rtol=1e-12)
    for curve, other in zip(
        found.relaxation.curves.values(), whole.relaxation.curves.values(), strict=True
    ):
        np.testing.assert_allclose(curve.mean, other.mean, rtol=1e-12)


@given(drawn=networks(), seed=strategies.seeds)
def test_child_boxes_lie_in_the_bounds_of_their_parent(
    drawn: tuple[Graph, Box, list[Sample]], seed: int
) -> None:
    graph, box, _ = drawn
    rng = np.random.default_rng(seed)
    parent = crown_bounds(graph, box).boxes
    names = [name for name in graph.pre_activations if name != graph.input]
    share = rng.random(box.lower.shape)
    middle = np.clip(box.lower * (1.0 - share) + box.upper * share, box.lower, box.upper)
    known = {name: parent[name] for name in names}
    child = crown_bounds(graph, Box(box.lower, middle), known=known).boxes
    for name in names:
        assert (child[name].lower >= parent[name].lower).all()
        assert (child[name].upper <= parent[name].upper).all()


@st.composite
def row_blocks(draw: st.DrawFn, size: int, count: int = 2) -> Array:
    """(2, count, size): ordinary rows, unit rows, zero rows, rows that cancel."""
    rng = np.random.default_rng(draw(strategies.seeds))
    rows = rng.normal(size=(2, count, size))
    kind = draw(st.sampled_from(["any", "unit", "zero", "wild"]))
    match kind:
        case "unit":
            return np.eye(size)[rng.integers(size, size=(2, count))]
        case "zero":
            return np.zeros_like(rows)
        case "wild":
            return np.round(rows) * 2.0 ** rng.choice([0, 60], size=rows.shape)
    return rows


def assert_obeys(
    lower: Array, rows: Array, input_rows: Array | None, start: str, s: Sample
) -> None:
    number, x, values = s
    for claim, row, extra in zip(
        lower[number],
        rows[number],
        np.zeros((rows.shape[1], len(x))) if input_rows is None else input_rows[number],
        strict=True,
    ):
        value = dot(row, values[start]) + dot(extra, exact(x))
        assert claim == -np.inf or Fraction(claim) <= value, float(Fraction(claim) - value)


@given(drawn=networks(smooth=True), data=st.data())
def test_linear_forms_of_any_value(
    drawn: tuple[Graph, Box, list[Sample]], data: st.DataObject
) -> None:
    graph, box, samples = drawn
    relaxation = crown_bounds(graph, box).relaxation
    start = data.draw(st.sampled_from([node.name for node in graph.nodes]))
    rows = data.draw(row_blocks(graph.sizes[start]))
    input_rows = data.draw(st.none() | row_blocks(graph.input_size))
    pulled = pull_back(relaxation, start, rows, input_rows=input_rows)
    assert not np.isnan(pulled.lower).any()
    for sample in samples:
        assert_obeys(pulled.lower, rows, input_rows, start, sample)


@given(drawn=networks(smooth=True), seed=strategies.seeds)
def test_single_neurons(drawn: tuple[Graph, Box, list[Sample]], seed: int) -> None:
    graph, box, samples = drawn
    rng = np.random.default_rng(seed)
    relaxation = crown_bounds(graph, box).relaxation
    for node in graph.nodes:
        index = rng.integers(graph.sizes[node.name], size=(2, 3))
        for sign in (1.0, -1.0):
            lower = pull_back_units(relaxation, node.name, index, sign)
            for number, _, values in samples:
                for claim, i in zip(lower[number], index[number], strict=True):
                    assert claim == -np.inf or Fraction(claim) <= int(sign) * values[node.name][i]


@given(drawn=networks(smooth=True), data=st.data())
def test_multipliers_of_constraints_that_hold(
    drawn: tuple[Graph, Box, list[Sample]], data: st.DataObject
) -> None:
    """With any multipliers the bound holds at the points that satisfy the constraints."""
    graph, box, samples = drawn
    bounds = crown_bounds(graph, box)
    splits = data.draw(splits_near(graph, bounds, samples))
    rows = data.draw(row_blocks(graph.sizes[graph.output]))
    pulled = pull_back(bounds.relaxation, graph.output, rows, multipliers=splits)
    for sample in samples:
        if satisfies(sample, splits):
            assert_obeys(pulled.lower, rows, None, graph.output, sample)


@st.composite
def splits_near(
    draw: st.DrawFn, graph: Graph, bounds: Bounds, samples: list[Sample]
) -> dict[str, Multipliers]:
    """Constraints ``z >= p`` or ``z <= p`` that the first sample satisfies, on some neurons."""
    rng = np.random.default_rng(draw(strategies.seeds))
    splits = {}
    for name in graph.pre_activations:
        if name == graph.input:
            continue
        size = graph.sizes[name]
        middle = np.array([float(v) for v in samples[0][2][name]])
        point = np.where(rng.random((2, size)) < 0.5, 0.0, middle + rng.normal(size=(2, size)))
        sign = np.where(middle >= point, 1.0, -1.0) * (rng.random((2, size)) < 0.7)
        splits[name] = Multipliers(sign * 10.0 ** rng.uniform(-3, 3, size=(2, size)), point)
    return splits


def satisfies(sample: Sample, splits: Mapping[str, Multipliers]) -> bool:
    number, _, values = sample
    for name, split in splits.items():
        for value, multiplier, point in zip(
            values[name], split.value[number], split.point[number], strict=True
        ):
            if multiplier and (value - Fraction(point)) * (1 if multiplier > 0 else -1) < 0:
                return False
    return True


@settings(max_examples=25)
@given(data=st.data())
def test_narrow_rows_through_convolutions(data: st.DataObject) -> None:
    """Rows that start at a few pixels stay narrow; sums, selections and curves meet them."""
    layers = ("convolution", "convolution", "curve", "scale", "sum", "twice", "maximum")
    graph = data.draw(strategies.graphs(layers=layers, largest=5))
    box = data.draw(strategies.boxes(graph.input_size, largest=2.0))
    points = data.draw(strategies.points_in(box, count=1))[0]
    samples = [(i, x, exact_values(graph, x)) for i, x in enumerate(points)]
    bounds = crown_bounds(graph, box)
    for sample in samples:
        assert_inside(bounds.boxes, sample)
    rng = np.random.default_rng(data.draw(strategies.seeds))
    index = rng.integers(graph.output_size, size=(2, 3))
    lower = pull_back_units(bounds.relaxation, graph.output, index, 1.0)
    rows = np.eye(graph.output_size)[index]
    wide = pull_back(bounds.relaxation, graph.output, rows).lower
    # Both charge their roundings, which differ, and are as large as the values on the way.
    boxes = bounds.boxes.values()
    largest = max(float(abs(side).max()) for box in boxes for side in (box.lower, box.upper))
    atol = 1e-9 * (1.0 + abs(wide).max()) + 1e-12 * largest
    np.testing.assert_allclose(lower, wide, rtol=1e-9, atol=atol)
    for number, _, values in samples:
        for claim, i in zip(lower[number], index[number], strict=True):
            assert Fraction(claim) <= values[graph.output][i]


def test_rows_that_touch_only_one_part_of_a_concatenation(rng: np.random.Generator) -> None:
    """The other part gets rows without any column, and passes them on."""
    nodes = (
        Node("a", Linear(rng.normal(size=(2, 3)), rng.normal(size=3)), ("x",)),
        Node("b", Linear(rng.normal(size=(2, 3))), ("x",)),
        Node("y", Concat((3, 3)), ("a", "b")),
    )
    graph = Graph("x", 2, nodes, "y")
    relaxation = crown_bounds(graph, Box(-np.ones((1, 2)), np.ones((1, 2)))).relaxation
    lower = pull_back_units(relaxation, "y", np.array([[0, 1]]), 1.0)[0]
    for claim, i in zip(lower, (0, 1), strict=True):
        assert Fraction(claim) <= exact_values(graph, [-1.0, 1.0])["y"][i]
