"""Bounds of layers where a case holds contain the exact values at every point of the case."""

from __future__ import annotations

from fractions import Fraction
from unittest.mock import patch

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onnxcert.bounds import narrowing as module
from onnxcert.bounds.crown import crown_bounds
from onnxcert.bounds.narrowing import NarrowedRows, Narrowing
from onnxcert.bounds.optimised import Forms, FreeRelaxation, Optimised, Splits, Start, optimise
from onnxcert.graph import Graph
from onnxcert.sets import Box
from tests import strategies
from tests.oracles import exact_values

Values = dict[str, list[Fraction]]


def forms_of(rows: np.ndarray, offset: np.ndarray) -> Forms:
    return Forms(rows[None], None, offset[None], np.ones((1, len(rows)), dtype=bool))


def bound(graph: Graph, boxes: dict[str, Box], forms: Forms, splits: Splits) -> Optimised:
    free = FreeRelaxation.build(graph, boxes, planes=True)
    start = Start.at_form(np.zeros(1, dtype=int), forms)
    return optimise(free, forms, boxes[graph.output], start, splits=splits, steps=5)


def holds(rows: np.ndarray, offset: np.ndarray, outputs: list[Fraction]) -> bool:
    """Whether all rows are at most zero, exactly."""
    return all(
        sum((Fraction(a) * y for a, y in zip(row.tolist(), outputs, strict=True)), Fraction(c)) <= 0
        for row, c in zip(rows, offset.tolist(), strict=True)
    )


def inside(boxes: dict[str, Box], value: Values) -> None:
    for name, exact in value.items():
        for low, here, high in zip(boxes[name].lower[0], exact, boxes[name].upper[0], strict=True):
            assert np.isneginf(low) or Fraction(float(low)) <= here
            assert np.isposinf(high) or here <= Fraction(float(high))


@given(data=st.data())
def test_points_of_a_case_lie_inside(data: st.DataObject) -> None:
    """One or two rows, one of the points on the edge of each, and a split of a neuron or none."""
    graph = data.draw(strategies.graphs(smooth=data.draw(st.booleans())))
    box = data.draw(strategies.boxes(graph.input_size, batch=1, largest=3.0))
    with np.errstate(all="ignore"):
        boxes = dict(crown_bounds(graph, box).boxes)
    points = data.draw(strategies.points_in(box, count=6))
    values = [exact_values(graph, x[0]) for x in points]
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    rows = rng.normal(size=(data.draw(st.integers(1, 2)), graph.sizes[graph.output]))
    edge = np.array([[float(y) for y in value[graph.output]] for value in values]) @ rows.T
    offset = -np.sort(edge, axis=0)[data.draw(st.integers(0, 5))]
    signs, cuts = {}, {}
    names = sorted(set(graph.pre_activations) - {graph.input})
    if names and data.draw(st.booleans()):
        name = data.draw(st.sampled_from(names))
        neuron = data.draw(st.integers(0, graph.sizes[name] - 1))
        cut, above = float(values[0][name][neuron]), data.draw(st.booleans())
        sides = boxes[name].lower.copy(), boxes[name].upper.copy()
        sides[not above][0, neuron] = cut
        boxes[name] = Box(*sides)
        signs[name], cuts[name] = np.zeros_like(sides[0]), np.zeros_like(sides[0])
        signs[name][0, neuron], cuts[name][0, neuron] = 2.0 * above - 1.0, cut
        values = [
            v for v in values if (v[name][neuron] >= cut if above else v[name][neuron] <= cut)
        ]
    forms, splits = forms_of(rows, offset), Splits(signs, cuts)
    with np.errstate(all="ignore"), patch.object(module, "_LITTLE", 2.0):
        found = bound(graph, boxes, forms, splits)
        narrowing = Narrowing(graph, forms, splits, data.draw(st.integers(1, 4)), lambda: False)
        result = boxes
        for _ in range(2):
            result = narrowing.run(result, found)
            if any(box.empty.any() for box in result.values()):
                break
    for name, old in boxes.items():
        assert (result[name].lower >= old.lower).all()
        assert (result[name].upper <= old.upper).all()
    for value in values:
        if holds(rows, offset, value[graph.output]):
            inside(result, value)


def test_a_case_that_is_nearly_refuted_narrows_its_layers(rng: np.random.Generator) -> None:
    graph = strategies.relu_network(rng, [4, 12, 12, 12, 1])
    box = Box(np.full((1, 4), -0.5), np.full((1, 4), 0.5))
    boxes = dict(crown_bounds(graph, box).boxes)
    rows = np.ones((1, 1))
    nothing = Splits()
    lower = bound(graph, boxes, forms_of(rows, np.zeros(1)), nothing).lower[0]
    widths = []
    for lacking in (2.0, 0.3, 0.03):  # of the width of the output
        width = float((boxes[graph.output].upper - boxes[graph.output].lower)[0, 0])
        forms = forms_of(rows, np.array([-lower - lacking * width]))
        found = bound(graph, boxes, forms, nothing)
        recorded: list[NarrowedRows] = []
        result = Narrowing(graph, forms, nothing, 8, lambda: False).run(
            boxes, found, recorded.append
        )
        widths.append(sum(np.maximum(b.upper - b.lower, 0.0).sum() for b in result.values()))
        for layer in recorded:
            side = boxes[layer.target].lower if layer.sign > 0 else boxes[layer.target].upper
            assert (np.diff(layer.index) > 0).all()
            assert len(layer.index) <= side.shape[1]
            assert (layer.best.weights >= 0).all()
    assert widths[0] > widths[1] > widths[2]
    assert recorded


def test_no_time_leaves_bounds_as_they_are(rng: np.random.Generator) -> None:
    graph = strategies.relu_network(rng, [3, 8, 8, 1])
    box = Box(np.full((1, 3), -1.0), np.full((1, 3), 1.0))
    boxes = dict(crown_bounds(graph, box).boxes)
    forms = forms_of(np.ones((1, 1)), np.zeros(1))
    found = bound(graph, boxes, forms, Splits())
    result = Narrowing(graph, forms, Splits(), 3, lambda: True).run(boxes, found)
    for name, old in boxes.items():
        assert (result[name].lower == old.lower).all()
        assert (result[name].upper == old.upper).all()
