"""Raised bounds of forms, how much inputs count, and boxes that share blocks of rows."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from onnxcert.bounds import crown
from onnxcert.bounds.ascent import Raised, raise_forms
from onnxcert.bounds.crown import crown_bounds
from onnxcert.bounds.optimised import Forms
from onnxcert.graph import Graph, Node
from onnxcert.ops.linear import Linear
from onnxcert.ops.relu import Relu
from onnxcert.search.steepness import steepness
from onnxcert.sets import Box

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
