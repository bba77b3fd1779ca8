"""Slopes of their own for rows: bounds hold with any, and are better with learned ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from onnxcert.arrays import Array
from onnxcert.bounds.crown import Bounds, crown_bounds
from onnxcert.bounds.folding import Folded, fold
from onnxcert.bounds.layered import Layered
from onnxcert.bounds.row_slopes import learn
from onnxcert.checker import row_slopes as of_checker
from onnxcert.sets import Box
from tests import strategies

SIZES = [3, 16, 14, 12, 2]


def twice(seed: int) -> tuple[Box, Bounds, Folded]:
    """A network folded on a box: the box, bounds of the network, and the folded one."""
    graph = strategies.relu_network(np.random.default_rng(seed), SIZES)
    box = Box(-np.ones((1, 3)), np.ones((1, 3)))
    bounds = crown_bounds(graph, box)
    made = fold(bounds)
    assert made is not None
    return box, bounds, made


def layered(made: Folded, slopes: Mapping[str, Array]) -> Layered:
    return Layered(made.graph.input_size, made.layers, slopes)


def learned(made: Folded, bounds: Bounds, box: Box) -> dict[str, Array]:
    """Slopes learned on a box, with bounds of the network that was folded."""
    return learn(made.layers, made.boxes(bounds), Box(box.lower[0], box.upper[0]))


def width(bounds: Bounds, made: Folded) -> float:
    boxes = (bounds.boxes[name] for name in made.kept)
    return float(sum((box.upper - box.lower).sum() for box in boxes))


@pytest.mark.parametrize("seed", range(4))
def test_learned_slopes_are_better(seed: int) -> None:
    """On the box and on its halves, and learned again on these."""
    box, bounds, made = twice(seed)
    own = layered(made, learned(made, bounds, box))
    usual = width(crown_bounds(made.graph, box), made)
    assert width(crown_bounds(made.graph, box, layered=own), made) < usual
    half = Box(np.array([[0.0, -1.0, -1.0]]), box.upper)
    plain = crown_bounds(made.graph, half)
    inherited = width(crown_bounds(made.graph, half, layered=own), made)
    assert inherited < width(plain, made)
    again = fold(plain)
    assert again is not None
    moved = layered(again, learned(again, plain, half))
    least = width(crown_bounds(again.graph, half, layered=moved), again)
    assert least < 1.01 * inherited
    assert least < width(crown_bounds(again.graph, half), again)


@pytest.mark.parametrize("seed", range(4))
def test_the_checker_learns_the_same(seed: int) -> None:
    box, bounds, made = twice(seed)
    theirs = [of_checker.Layer(layer.sums.weight, layer.sums.offset) for layer in made.layers]
    known = [(ends.lower, ends.upper) for ends in made.boxes(bounds)]
    tables = of_checker.learn(theirs, known, box.lower[0], box.upper[0])
    ours = learned(made, bounds, box)
    assert list(ours) == [layer.name for layer in made.layers[1:]]
    for mine, table in zip(ours.values(), tables[1:], strict=True):
        assert (mine == table).all()


def test_time_that_is_up() -> None:
    """Slopes stay at the default."""
    box, bounds, made = twice(0)
    ends = Box(box.lower[0], box.upper[0])
    slopes = learn(made.layers, made.boxes(bounds), ends, lambda: True)
    found = (crown_bounds(made.graph, box, layered=layered(made, s)) for s in ({}, slopes))
    usual, own = (bounds.boxes for bounds in found)
    for name in made.kept:
        np.testing.assert_allclose(own[name].lower, usual[name].lower, atol=1e-9)
