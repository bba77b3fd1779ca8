"""Slopes of their own for rows: bounds hold with any, and are better with learned ones."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcert.arrays import Array
from onnxcert.bounds.crown import Bounds, crown_bounds
from onnxcert.bounds.folding import Folded, fold
from onnxcert.bounds.row_slopes import Both, RowSlopes, learn
from onnxcert.checker import row_slopes as of_checker
from onnxcert.graph import Graph
from onnxcert.sets import Box
from tests import strategies
from tests.oracles import exact_values

SIZES = [3, 16, 14, 12, 2]


def anything(graph: Graph, rng: np.random.Generator) -> Both:
    """Slopes for every row at every relu."""

    def side() -> RowSlopes:
        relus = {node.name: graph.sizes[node.name] for node in graph.nodes}
        return RowSlopes(
            {
                name: {relu: rng.random((size, m)) < 0.5 for relu, m in relus.items()}
                for name, size in graph.sizes.items()
            }
        )

    return side(), side()


def inside(graph: Graph, boxes: dict[str, Box], points: Array) -> None:
    for x in points:
        for name, values in exact_values(graph, x).items():
            ends = zip(values, boxes[name].lower[0], boxes[name].upper[0], strict=True)
            for value, a, b in ends:
                assert Fraction(float(a)) <= value <= Fraction(float(b))


@given(data=st.data(), graph=strategies.graphs(curves=("relu",)), seed=st.integers(0, 9))
def test_bounds_hold_with_any_slopes(data: st.DataObject, graph: Graph, seed: int) -> None:
    box = data.draw(strategies.boxes(graph.input_size, batch=1, largest=3.0))
    points = data.draw(strategies.points_in(box))[:, 0]
    slopes = anything(graph, np.random.default_rng(seed))
    inside(graph, crown_bounds(graph, box, slopes=slopes).boxes, points)


def twice(seed: int) -> tuple[Box, Bounds, Folded]:
    """A network folded on a box: the box, bounds of the network, and the folded one."""
    graph = strategies.relu_network(np.random.default_rng(seed), SIZES)
    box = Box(-np.ones((1, 3)), np.ones((1, 3)))
    bounds = crown_bounds(graph, box)
    made = fold(bounds)
    assert made is not None
    return box, bounds, made


def width(bounds: Bounds, made: Folded) -> float:
    boxes = (bounds.boxes[name] for name in made.kept)
    return float(sum((box.upper - box.lower).sum() for box in boxes))


@pytest.mark.parametrize("seed", range(4))
def test_learned_slopes_are_better(seed: int) -> None:
    """On the box and on its halves, and learned again on these."""
    box, bounds, made = twice(seed)
    learned = learn(made.layers(bounds), box.lower[0], box.upper[0])
    usual = width(crown_bounds(made.graph, box), made)
    better = width(crown_bounds(made.graph, box, slopes=learned), made)
    assert better < usual
    half = Box(np.array([[0.0, -1.0, -1.0]]), box.upper)
    plain = crown_bounds(made.graph, half)
    inherited = width(crown_bounds(made.graph, half, slopes=learned), made)
    assert inherited < width(plain, made)
    again = fold(plain)
    assert again is not None
    moved = learn(again.layers(plain), half.lower[0], half.upper[0])
    least = width(crown_bounds(again.graph, half, slopes=moved), again)
    assert least < 1.01 * inherited
    assert least < width(crown_bounds(again.graph, half), again)


@pytest.mark.parametrize("seed", range(4))
def test_the_checker_learns_the_same(seed: int) -> None:
    box, bounds, made = twice(seed)
    ends = box.lower[0], box.upper[0]
    layers = made.layers(bounds)
    theirs = [of_checker.Layer(p.weight, p.offset, p.lower, p.upper) for p in layers]
    ours, tables = learn(layers, *ends), of_checker.learn(theirs, *ends)
    for number, (layer, table) in enumerate(zip(layers, tables, strict=True)):
        for side, rows in zip(ours, table, strict=True):
            mine = [side.of[layer.name][other.relu] for other in layers[:number]]
            assert (np.concatenate([rows[:, :0], *mine], axis=1) == rows).all()


def test_time_that_is_up() -> None:
    """Slopes stay at the default."""
    box, bounds, made = twice(0)
    slopes = learn(made.layers(bounds), box.lower[0], box.upper[0], lambda: True)
    usual, found = (crown_bounds(made.graph, box, slopes=s) for s in (None, slopes))
    for name in made.kept:
        np.testing.assert_allclose(found.boxes[name].lower, usual.boxes[name].lower, atol=1e-9)
