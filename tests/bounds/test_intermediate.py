"""Optimised intermediate bounds contain exact values and are nowhere looser than what they had."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onnxcert.bounds.crown import crown_bounds
from onnxcert.bounds.intermediate import tighten
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
