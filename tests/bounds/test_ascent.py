"""Raised bounds of forms, how much inputs count, and boxes that share blocks of rows."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcert.bounds import crown
from onnxcert.bounds.ascent import Raised, raise_forms
from onnxcert.bounds.crown import crown_bounds
from onnxcert.bounds.optimised import Forms
from onnxcert.graph import Graph, Node
from onnxcert.ops import Multiply, Select
from onnxcert.ops.linear import Linear
from onnxcert.ops.relu import Relu
from onnxcert.search.steepness import steepness
from onnxcert.sets import Box
from tests import strategies
from tests.oracles import dot, exact

SIZES = (3, 12, 12, 2)


def network(rng: np.random.Generator) -> Graph:
    nodes: list[Node] = []
    value = "x"
    for k, (m, n) in enumerate(pairwise(SIZES)):
        weight = rng.normal(size=(m, n)) / np.sqrt(m)
        nodes.append(Node(f"z{k}", Linear(weight, rng.normal(size=n) * 0.3), (value,)))
        value = f"z{k}"
        if n != SIZES[-1]:
            nodes.append(Node(f"h{k}", Relu(n), (value,)))
            value = f"h{k}"
    return Graph("x", SIZES[0], tuple(nodes), value)


def evaluate(graph: Graph, x: np.ndarray) -> np.ndarray:
    values = {graph.input: x}
    for node in graph.nodes:
        values[node.name] = node.op.forward([values[name] for name in node.inputs])
    return values[graph.output]


def boxes(rng: np.random.Generator, count: int) -> Box:
    center = rng.uniform(-1, 1, (count, SIZES[0]))
    radius = rng.uniform(0.0, 0.6, (count, SIZES[0]))
    return Box(center - radius, center + radius)


def raised(graph: Graph, box: Box, weights: np.ndarray, steps: int) -> Raised:
    count = len(box)
    rows = np.broadcast_to(np.eye(2), (count, 2, 2))
    forms = Forms(rows, None, np.full((count, 2), 0.25), np.ones((count, 2), bool))
    return raise_forms(graph, crown_bounds(graph, box).boxes, forms, weights, steps=steps)


@pytest.mark.parametrize("seed", range(5))
def test_raised_bounds_hold_and_are_no_worse(seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph, box = network(rng), boxes(rng, 40)
    weights = rng.uniform(0, 1, (40, 2))
    first = raised(graph, box, weights, 0)
    best = raised(graph, box, weights, 4)
    assert (best.lower >= first.lower).all()
    assert (best.lower > first.lower + 1e-6).any()
    points = box.lower[:, None] + rng.random((40, 300, 3)) * (box.upper - box.lower)[:, None]
    outputs = evaluate(graph, points.reshape(-1, 3)).reshape(40, 300, 2)
    values = ((outputs + 0.25) * weights[:, None]).sum(axis=2)
    assert (best.lower <= values.min(axis=1) + 1e-12).all()


def test_planes_of_products_turn_towards_the_corner_that_counts() -> None:
    """Over [0, 1]^2 the least x y is zero, and parallel planes say -1/2; -x y loses nothing."""
    graph = Graph("x", 2, tuple(_PRODUCT), "y")
    box, forms = Box(np.zeros((2, 2)), np.ones((2, 2))), _signed(1.0, -1.0)
    bounds = crown_bounds(graph, box).boxes
    plain, best = (
        raise_forms(graph, bounds, forms, np.ones((2, 1)), steps=steps).lower for steps in (0, 4)
    )
    np.testing.assert_allclose(plain, [-0.5, -1.0], atol=1e-12)
    np.testing.assert_allclose(best, [0.0, -1.0], atol=1e-12)
    assert (best <= [0.0, -1.0]).all()


_PRODUCT = [
    Node("a", Select.of(np.array([0]), 2), ("x",)),
    Node("b", Select.of(np.array([1]), 2), ("x",)),
    Node("y", Multiply(1), ("a", "b")),
]


def _signed(*signs: float) -> Forms:
    """One row for each of some boxes."""
    rows = np.array(signs)[:, None, None]
    return Forms(rows, None, np.zeros((len(signs), 1)), np.ones((len(signs), 1), bool))


@given(seed=strategies.seeds, data=st.data())
def test_forms_over_intervals_hold(seed: int, data: st.DataObject) -> None:
    """For exact rows, at any point of the intervals; zero times infinity is zero."""
    rng = np.random.default_rng(seed)
    output, box = (data.draw(strategies.boxes(n, batch=2)) for n in (3, 2))
    rows, read = rng.normal(size=(2, 4, 3)), rng.normal(size=(2, 4, 2))
    rows[:, 0], read[:, 0] = 0.0, 0.0
    used = rng.random((2, 4)) < 0.8
    forms = Forms(rows, read if data.draw(st.booleans()) else None, rng.normal(size=(2, 4)), used)
    found = forms.over(output, box)
    assert np.isneginf(found[~used]).all()
    points = [data.draw(strategies.points_in(part, count=3)) for part in (output, box)]
    for y, x in zip(*points, strict=True):
        for b, r in np.argwhere(used):
            value = Fraction(forms.offset[b, r]) + dot(rows[b, r], exact(y[b]))
            if forms.input_rows is not None:
                value += dot(read[b, r], exact(x[b]))
            assert Fraction(found[b, r]) <= value
    output.upper[:, 2] = np.inf
    rows[:, :, 2] = 0.0
    assert np.isfinite(forms.over(output, box)[used]).all()


def test_steepness_is_zero_where_nothing_depends() -> None:
    rng = np.random.default_rng(1)
    graph, box = network(rng), boxes(rng, 8)
    weight = graph.nodes[0].op.weight  # type: ignore[attr-defined]
    weight[1] = 0.0
    bounds = crown_bounds(graph, box)
    best = raised(graph, box, np.ones((8, 2)), 4)
    index = np.arange(8)
    found = steepness(bounds.relaxation, bounds.boxes, index, best, np.arange(3))
    assert (found >= abs(best.coefficients)).all()
    assert (found[:, 1] == 0).all()
    assert (found[:, 0] > abs(best.coefficients[:, 0])).any()


@pytest.mark.parametrize("numbers", [1, 1 << 10, 1 << 18])
def test_bounds_do_not_depend_on_how_boxes_share_blocks(
    numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(2)
    graph, box = network(rng), boxes(rng, 50)
    parts = (slice(k, k + 1) for k in range(50))
    expected = [crown_bounds(graph, Box(box.lower[k], box.upper[k])) for k in parts]
    monkeypatch.setattr(crown, "_BATCH_NUMBERS", numbers)
    monkeypatch.setattr(crown, "_LEAST_NUMBERS", numbers)
    found = crown_bounds(graph, box)
    for name, values in found.boxes.items():
        for side in ("lower", "upper"):
            single = np.concatenate([getattr(b.boxes[name], side) for b in expected])
            np.testing.assert_allclose(getattr(values, side), single, rtol=1e-12, atol=1e-12)
