"""Optimised intermediate bounds contain exact values and are nowhere looser than what they had."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcert.arrays import UNIT_ROUNDOFF
from onnxcert.bounds import intermediate
from onnxcert.bounds.crown import crown_bounds
from onnxcert.bounds.hints import decode_positions
from onnxcert.bounds.intermediate import RefinedRows, Refinement, tighten
from onnxcert.bounds.optimised import Forms, FreeRelaxation, Start, optimise
from onnxcert.graph import Graph
from onnxcert.ops.base import Elementwise
from onnxcert.sets import Box
from tests import strategies
from tests.oracles import exact_values


@given(data=st.data())
def test_tightened_bounds_contain_exact_values(data: st.DataObject) -> None:
    graph = data.draw(strategies.graphs(smooth=data.draw(st.booleans())))
    box = data.draw(strategies.boxes(graph.input_size, batch=1, largest=3.0))
    with np.errstate(all="ignore"):
        known = crown_bounds(graph, box).boxes
        boxes = tighten(graph, known, steps=data.draw(st.sampled_from([0, 1, 6])))
    for x in data.draw(strategies.points_in(box, count=3)):
        for name, values in exact_values(graph, x[0]).items():
            for low, value, high in zip(
                boxes[name].lower[0], values, boxes[name].upper[0], strict=True
            ):
                assert np.isneginf(low) or Fraction(low) <= value
                assert np.isposinf(high) or value <= Fraction(high)
    for name, old in known.items():
        assert (boxes[name].lower >= old.lower).all()
        assert (boxes[name].upper <= old.upper).all()


@given(data=st.data())
def test_bounds_after_a_cut_contain_what_is_left(data: st.DataObject) -> None:
    """As regions have it: one side of a split of a neuron, and all layers bounded again."""
    graph = data.draw(strategies.graphs(smooth=data.draw(st.booleans())))
    box = data.draw(strategies.boxes(graph.input_size, batch=1, largest=3.0))
    with np.errstate(all="ignore"):
        known = dict(crown_bounds(graph, box).boxes)
    points = data.draw(strategies.points_in(box, count=6))
    values = [exact_values(graph, x[0]) for x in points]
    name = data.draw(st.sampled_from(sorted(graph.pre_activations) or [graph.input]))
    neuron = data.draw(st.integers(0, graph.sizes[name] - 1))
    cut = float(data.draw(st.sampled_from([value[name][neuron] for value in values])))
    above = data.draw(st.booleans())
    sides = known[name].lower.copy(), known[name].upper.copy()
    sides[not above][0, neuron] = cut
    with np.errstate(all="ignore"):
        boxes = tighten(
            graph,
            known | {name: Box(*sides)},
            steps=data.draw(st.sampled_from([1, 4])),
            behind=data.draw(st.sampled_from([None, name])),
        )
    for value in values:
        if value[name][neuron] < cut if above else value[name][neuron] > cut:
            continue
        for other, exact in value.items():
            for low, here, high in zip(
                boxes[other].lower[0], exact, boxes[other].upper[0], strict=True
            ):
                assert np.isneginf(low) or Fraction(low) <= here
                assert np.isposinf(high) or here <= Fraction(high)


def test_more_steps_tighten_a_deep_network(rng: np.random.Generator) -> None:
    graph = strategies.relu_network(rng, [4, 16, 16, 16, 2])
    box = Box(np.full((1, 4), -1.0), np.full((1, 4), 1.0))
    known = crown_bounds(graph, box).boxes
    last = graph.nodes[-1].name

    def width(boxes: dict[str, Box]) -> float:
        return float((boxes[last].upper - boxes[last].lower).sum())

    assert width(tighten(graph, known, steps=20)) < 0.99 * width(tighten(graph, known, steps=0))


def test_after_the_deadline_known_bounds_are_only_propagated(rng: np.random.Generator) -> None:
    graph = strategies.relu_network(rng, [3, 8, 8, 1])
    box = Box(np.full((1, 3), -1.0), np.full((1, 3), 1.0))
    known = crown_bounds(graph, box).boxes
    late = tighten(graph, known, steps=20, expired=lambda: True)
    plain = tighten(graph, known, steps=0)
    for name in known:
        assert late[name].lower.tolist() == plain[name].lower.tolist()
        assert late[name].upper.tolist() == plain[name].upper.tolist()


def repeated(graph: Graph, known: dict[str, Box], found: list[Refinement]) -> dict[str, Box]:
    """The bounds that follow from recorded rows alone."""
    refinements = {refinement.target: refinement for refinement in found}
    boxes = {graph.input: known[graph.input]}
    for node in graph.nodes:
        read = [boxes[name] for name in node.inputs]
        box = node.op.interval(read, UNIT_ROUNDOFF).defined().intersect(known[node.name])
        boxes[node.name] = box
        if node.name in refinements:
            sides = [box.lower.copy(), box.upper.copy()]
            refinement = refinements[node.name]
            for side, sign, rows in zip(
                sides, (1.0, -1.0), (refinement.lower, refinement.upper), strict=True
            ):
                if len(rows.index):
                    side[0, rows.index] = sign * replayed(graph, boxes, refinement, rows, sign)
            boxes[node.name] = Box(*sides)
    return boxes


def replayed(
    graph: Graph, boxes: dict[str, Box], refinement: Refinement, rows: RefinedRows, sign: float
) -> np.ndarray:
    """Lower bounds of ``sign * value[index]`` with the recorded positions."""
    free = FreeRelaxation.begin(graph, boxes[graph.input], planes=math.inf)
    for node in graph.nodes:
        free.add(node, boxes)
        if node.name == refinement.target:
            break
    count = len(rows.index)
    positions = {}
    for name, default in free.default.items():
        positions[name] = np.zeros((count, default.shape[1]))  # stable neurons do not look
        if name in rows.positions:
            assert rows.positions[name].dtype == np.uint8
            positions[name][:, refinement.columns[name]] = decode_positions(rows.positions[name])
    unit = np.zeros((count, 1, graph.sizes[refinement.target]))
    unit[np.arange(count), 0, rows.index] = sign
    forms = Forms(unit, None, np.zeros((count, 1)), np.ones((count, 1), dtype=bool))
    anchor = np.zeros(count, dtype=int)
    start = Start(positions, {}, np.ones((count, 1)), anchor)
    box, target = boxes[refinement.target], refinement.target
    return optimise(free, forms, box, start, target=target, steps=0).lower


@given(data=st.data())
def test_recorded_rows_give_the_same_bounds_again(data: st.DataObject) -> None:
    graph = data.draw(
        strategies.graphs(smooth=data.draw(st.booleans()))
        | strategies.seeds.map(
            lambda seed: strategies.relu_network(np.random.default_rng(seed), [3, 9, 9, 9, 2])
        )
    )
    box = data.draw(strategies.boxes(graph.input_size, batch=1, largest=3.0))
    found: list[Refinement] = []
    with np.errstate(all="ignore"):
        known = crown_bounds(graph, box).boxes
        tight = tighten(graph, known, steps=4, record=found.append)
        again = repeated(graph, known, found)
    for name, bounds in tight.items():
        # The order of sums differs with the number of rows, hence the last digits.
        slack = 1e-9 * (1.0 + bounds.magnitude)
        for one, other in ((again[name].lower, bounds.lower), (again[name].upper, bounds.upper)):
            with np.errstate(invalid="ignore"):
                assert ((one == other) | (abs(one - other) <= slack)).all()


def test_only_rows_that_improved_are_recorded(rng: np.random.Generator) -> None:
    graph = strategies.relu_network(rng, [4, 16, 16, 16, 2])
    box = Box(np.full((1, 4), -1.0), np.full((1, 4), 1.0))
    known = crown_bounds(graph, box).boxes
    found: list[Refinement] = []
    tight = tighten(graph, known, steps=8, record=found.append)
    assert [refinement.target for refinement in found] == [
        node.inputs[0] for node in graph.nodes if isinstance(node.op, Elementwise)
    ][1:]
    for refinement in found:
        before, after = known[refinement.target], tight[refinement.target]
        better = np.flatnonzero(after.lower[0] > before.lower[0])
        assert set(refinement.lower.index) <= set(better)
        better = np.flatnonzero(after.upper[0] < before.upper[0])
        assert set(refinement.upper.index) <= set(better)
        for name, columns in refinement.columns.items():
            source = next(node.inputs[0] for node in graph.nodes if node.name == name)
            unstable = (tight[source].lower < 0) & (tight[source].upper > 0)
            np.testing.assert_array_equal(columns, np.flatnonzero(unstable[0]))
    found.clear()
    tighten(graph, tight, steps=0, record=found.append)
    assert not found


def test_only_layers_behind_a_cut_get_rows(rng: np.random.Generator) -> None:
    graph = strategies.relu_network(rng, [4, 12, 12, 12, 12, 2])
    known = crown_bounds(graph, Box(-np.ones((1, 4)), np.ones((1, 4)))).boxes
    found: list[Refinement] = []
    known = tighten(graph, known, steps=6, record=found.append)
    layers = [refinement.target for refinement in found]
    assert len(layers) == 3
    box = known[layers[0]]
    upper = box.upper.copy()
    upper[0, int((box.upper - box.lower)[0].argmax())] = 0.0
    cut = known | {layers[0]: Box(box.lower, upper)}
    found.clear()
    tighten(graph, cut, steps=6, record=found.append, behind=layers[0])
    assert [refinement.target for refinement in found] == layers[1:]


def test_what_is_too_much_to_write_down_is_not_used(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = strategies.relu_network(rng, [4, 16, 16, 16, 2])
    box = Box(np.full((1, 4), -1.0), np.full((1, 4), 1.0))
    known = crown_bounds(graph, box).boxes
    plain = tighten(graph, known, steps=0)
    monkeypatch.setattr(intermediate, "MOST_POSITIONS", 10)
    found: list[Refinement] = []
    tight = tighten(graph, known, steps=8, record=found.append)
    assert not found
    for name, bounds in tight.items():
        np.testing.assert_array_equal(bounds.lower, plain[name].lower)
        np.testing.assert_array_equal(bounds.upper, plain[name].upper)
