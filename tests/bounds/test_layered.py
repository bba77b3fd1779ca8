"""Rows over folded networks in one block: bounds hold with any slopes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from unittest import mock

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from onnxcert.arrays import Array
from onnxcert.bounds.crown import Bounds, crown_bounds
from onnxcert.bounds.folding import Folded, can_fold, fold
from onnxcert.bounds.layered import Layered
from onnxcert.graph import Graph
from onnxcert.ops import BandedLinear, Linear, bands
from onnxcert.sets import Box
from tests import strategies
from tests.oracles import exact_values


@pytest.fixture(autouse=True, scope="module")
def narrow_bands() -> Iterator[None]:
    """Small networks have bands, too."""
    with mock.patch.multiple(bands, _BAND=3, _GAP=1):
        yield


def any_slopes(made: Folded, rng: np.random.Generator) -> Layered:
    """Slopes for every row at every relu."""
    slopes, before = {}, 0
    for layer in made.layers:
        count = layer.sums.output_size
        slopes[layer.name] = rng.random((2, count, before)) < 0.5
        before += count
    return Layered(made.graph.input_size, made.layers, slopes)


def inside(graph: Graph, made: Folded, bounds: Bounds, points: Array) -> None:
    """Exact values of the network at points (P, B, n) in B boxes."""
    for point in points:
        for number, x in enumerate(point):
            exactly = exact_values(graph, x)
            for name, kept in made.kept.items():
                box = bounds.boxes[name]
                for place, neuron in enumerate(kept):
                    lower, upper = box.lower[number, place], box.upper[number, place]
                    assert Fraction(float(lower)) <= exactly[name][neuron]
                    assert exactly[name][neuron] <= Fraction(float(upper))


def wild(rng: np.random.Generator, sizes: list[int], scale: int) -> Graph:
    """A relu network with weights of all sizes, some of which cancel."""
    graph = strategies.relu_network(rng, sizes)
    nodes = []
    for node in graph.nodes:
        op = node.op
        if isinstance(op, Linear) and op.offset is not None:
            factor = 2.0 ** rng.integers(-scale, scale + 1, len(op.weight))[:, None]
            op = replace(op, weight=factor * op.weight)
        nodes.append(replace(node, op=op))
    return Graph(graph.input, graph.input_size, tuple(nodes), graph.output)


@given(
    data=st.data(),
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    scale=st.sampled_from([0, 0, 4, 30, 90]),
    seed=st.integers(0, 999),
)
def test_bounds_hold_with_any_slopes(
    data: st.DataObject, sizes: list[int], scale: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    graph = wild(rng, [*sizes, 1], scale)
    assert can_fold(graph)
    box = data.draw(strategies.boxes(graph.input_size, batch=1, largest=3.0))
    made = fold(crown_bounds(graph, box))
    assert made is not None
    event(f"layers: {len(made.layers)}")
    ends = np.sort(rng.random((2, 3, graph.input_size)), axis=0)
    width = box.upper - box.lower
    parts = Box(box.lower + ends[0] * width, np.minimum(box.lower + ends[1] * width, box.upper))
    usual = Layered(made.graph.input_size, made.layers, {})
    layered = data.draw(st.sampled_from([any_slopes(made, rng), usual]))
    bounds = crown_bounds(made.graph, parts, layered=layered)
    points = np.stack([parts.lower, parts.upper, 0.5 * (parts.lower + parts.upper)])
    inside(graph, made, bounds, np.clip(points, parts.lower, parts.upper))


@pytest.mark.parametrize("seed", range(5))
def test_where_nothing_but_rounding_is_lost(seed: int) -> None:
    """Boxes so small that lines are exact, and weights that no sum is exact with."""
    rng = np.random.default_rng(seed)
    graph = strategies.relu_network(rng, [3, 20, 20, 20, 2])
    nodes = []
    for node in graph.nodes:
        op = node.op
        if isinstance(op, Linear):
            op = replace(op, weight=op.weight + 0.1 * rng.normal(size=op.weight.shape))
        nodes.append(replace(node, op=op))
    graph = Graph(graph.input, graph.input_size, tuple(nodes), graph.output)
    box = Box(-np.ones((1, 3)), np.ones((1, 3)))
    made = fold(crown_bounds(graph, box))
    assert made is not None
    assert len(made.layers) == 3
    layered = any_slopes(made, rng)
    lower = np.round(rng.uniform(-1.0, 0.99, (4, 3)), 3)
    parts = Box(lower, lower + 2.0**-30)
    relaxation = crown_bounds(made.graph, parts, layered=layered).relaxation
    moved = 2.0**-30 * np.array(list(itertools.product((0.0, 1.0), repeat=3)))
    values = [[exact_values(graph, corner) for corner in x + moved] for x in lower]
    for name, kept in made.kept.items():
        index = np.broadcast_to(np.arange(len(kept)), (4, len(kept)))
        assert layered.covers(name, relaxation)
        for sign in (1, -1):
            signs = np.full(index.shape, float(sign))
            found = layered.pull_back_units(relaxation, name, index, signs)
            for corners, bounds in zip(values, found, strict=True):
                for bound, neuron in zip(bounds, kept, strict=True):
                    least = min(sign * corner[name][neuron] for corner in corners)
                    assert 0 <= least - Fraction(float(bound)) < 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_lines_are_those_of_the_pass_node_by_node(seed: int) -> None:
    graph = strategies.relu_network(np.random.default_rng(seed), [3, 16, 14, 12, 2])
    box = Box(-np.ones((1, 3)), np.ones((1, 3)))
    made = fold(crown_bounds(graph, box))
    assert made is not None
    lower = np.array([[-1.0, -1.0, -1.0], [-0.5, 0.0, 0.0]])
    parts = Box(lower, lower + np.array([[1.0], [0.5]]))
    layered = Layered(made.graph.input_size, made.layers, {})
    one, other = (crown_bounds(made.graph, parts, layered=way) for way in (None, layered))
    for name in made.kept:
        for side in ("lower", "upper"):
            found, expected = (getattr(b.boxes[name], side) for b in (other, one))
            np.testing.assert_allclose(found, expected, atol=1e-9)


def test_values_that_hardly_vary() -> None:
    """Rows over these end, which is done node by node."""
    graph = strategies.relu_network(np.random.default_rng(0), [3, 16, 14, 2])
    box = Box(-np.ones((1, 3)), np.ones((1, 3)))
    made = fold(crown_bounds(graph, box))
    assert made is not None
    point = Box(np.full((1, 3), 0.3), np.full((1, 3), 0.3))
    layered = Layered(made.graph.input_size, made.layers, {})
    inside(graph, made, crown_bounds(made.graph, point, layered=layered), point.lower[None])


def test_numbers_that_overflow() -> None:
    """Then intervals are left."""
    graph = strategies.relu_network(np.random.default_rng(0), [2, 6, 5, 2])
    box = Box(-np.ones((1, 2)), np.ones((1, 2)))
    made = fold(crown_bounds(graph, box))
    assert made is not None
    assert len(made.layers) == 2
    huge = [
        replace(p, sums=BandedLinear(1e300 * p.sums.weight, 1e300 * p.sums.offset))
        for p in made.layers
    ]
    bounds = crown_bounds(made.graph, box, layered=Layered(2, tuple(huge), {}))
    usual = crown_bounds(made.graph, box, backward=False)
    for name in made.kept:
        np.testing.assert_allclose(bounds.boxes[name].lower, usual.boxes[name].lower)
