"""Optimised bounds: sound at every step, never worse than their start, gradients as stated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from unittest import mock

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from onnxcert.arrays import Array
from onnxcert.bounds import optimised
from onnxcert.bounds.backward import Relaxation
from onnxcert.bounds.crown import crown_bounds
from onnxcert.bounds.hints import (
    decode_multipliers,
    decode_positions,
    encode_multipliers,
    encode_positions,
)
from onnxcert.bounds.optimised import Forms, FreeRelaxation, Optimised, Splits, Start, optimise
from onnxcert.graph import Graph, Node
from onnxcert.ops import LeakyRelu, Linear, Multiply, Relu, Select, Sigmoid, Sum, Tanh
from onnxcert.ops.base import Bivariate, Elementwise
from onnxcert.sets import Box
from tests import strategies
from tests.oracles import Vector, dot, exact, exact_values


@dataclass(frozen=True)
class Scenario:
    """A network over one box, forms to refute, splits that a sampled point satisfies."""

    graph: Graph
    boxes: dict[str, Box]
    free: FreeRelaxation
    forms: Forms
    signs: dict[str, Array]
    points: dict[str, Array]
    others: dict[str, Array]
    samples: list[tuple[Array, dict[str, Vector]]]

    def start(self, rng: np.random.Generator) -> Start:
        """Any legal slopes, multipliers and weights."""
        count, rows = self.forms.used.shape
        multipliers = {
            name: np.where(sign == 2, rng.choice([-1.0, 0.0, 1.0], size=sign.shape), sign)
            * rng.uniform(0.0, 2.0, size=sign.shape)
            for name, sign in self.signs.items()
        }
        weights = rng.uniform(0.1, 1.0, size=(count, rows)) * self.forms.used
        anchor = np.zeros(count, dtype=int)
        weights[:, 0] = 1.0
        positions = {
            name: rng.choice([0.0, 1.0, 0.3], size=(count, value.shape[1]))
            for name, value in self.free.default.items()
        }
        return Start(positions, multipliers, weights, anchor)

    def run(self, start: Start, steps: int, *, short: bool = False) -> Optimised:
        """The bound after so many steps; in binary32 if short, as where they are many."""
        output = self.boxes[self.graph.output]
        splits = Splits(self.signs, self.points, self.others)
        with mock.patch.object(optimised, "_LEAST_WORK", 0 if short else 1 << 62):
            return optimise(self.free, self.forms, output, start, splits=splits, steps=steps)

    def satisfying(self) -> list[tuple[Array, dict[str, Vector]]]:
        """The samples that obey the splits of subproblem 0."""

        def obeys(values: dict[str, Vector]) -> bool:
            return all(
                (s <= 0 or value >= Fraction(p)) and (s in (0, 1) or value <= Fraction(q))
                for name, sign in self.signs.items()
                for value, s, p, q in zip(
                    values[name],
                    sign[0],
                    self.points[name][0],
                    self.others.get(name, self.points[name])[0],
                    strict=True,
                )
            )

        return [(x, values) for x, values in self.samples if obeys(values)]


@st.composite
def scenarios(
    draw: st.DrawFn,
    *,
    smooth: bool = False,
    split: bool = True,
    wide: bool = False,
    planes: bool = False,
) -> Scenario:
    graph = draw(strategies.graphs(smooth=smooth))
    # Powers of the largest are more than binary32 can hold.
    largest = draw(st.sampled_from([3.0, 3.0, 1e12])) if wide else 3.0
    box = draw(strategies.boxes(graph.input_size, batch=1, largest=largest))
    rng = np.random.default_rng(draw(strategies.seeds))
    samples = [(x[0], exact_values(graph, x[0])) for x in draw(strategies.points_in(box, count=3))]
    boxes = crown_bounds(graph, box).boxes
    signs, points, others, cut = {}, {}, {}, {}
    if split:
        for name in graph.pre_activations:
            if name == graph.input or rng.random() < 0.3:
                continue
            value = np.array([[float(v) for v in samples[0][1][name]]])
            inside = Box(*(side.copy() for side in (boxes[name].lower, boxes[name].upper)))
            point = np.where(rng.random(value.shape) < 0.6, 0.0, value)
            splits = (
                (rng.random(value.shape) < 0.6) & (point > inside.lower) & (point < inside.upper)
            )
            sign = np.where(value >= point, 1.0, -1.0) * splits
            inside.lower[sign > 0] = point[sign > 0]
            inside.upper[sign < 0] = point[sign < 0]
            other = value + rng.choice([0.0, 0.5], size=value.shape)
            both = (sign > 0) & (other < inside.upper) & (rng.random(value.shape) < 0.4)
            sign[both], inside.upper[both] = 2.0, other[both]
            signs[name], points[name], cut[name] = sign, np.where(splits, point, 0.0), inside
            if both.any():
                others[name] = np.where(both, other, points[name])
    leaning = planes and draw(st.booleans())
    free = FreeRelaxation.build(graph, boxes, planes=math.inf if leaning else 0).with_boxes(cut)
    rows = rng.normal(size=(1, 3, graph.output_size))
    input_rows = rng.normal(size=(1, 3, graph.input_size)) if draw(st.booleans()) else None
    used = np.array([[True, True, draw(st.booleans())]])
    forms = Forms(rows, input_rows, rng.normal(size=(1, 3)), used)
    return Scenario(graph, boxes, free, forms, signs, points, others, samples)


@given(
    scenario=scenarios(smooth=True, wide=True, planes=True),
    seed=strategies.seeds,
    steps=st.sampled_from([0, 1, 5]),
    short=st.booleans(),
)
def test_bound_holds_where_the_splits_do(
    scenario: Scenario, seed: int, steps: int, short: bool
) -> None:
    """Refuting every form needs a combination; so its value at any point is at least the bound."""
    result = scenario.run(scenario.start(np.random.default_rng(seed)), steps, short=short)
    claim, weights = result.lower[0], result.best.weights[0]
    assert (weights >= 0).all()
    assert not weights[~scenario.forms.used[0]].any()
    satisfying = scenario.satisfying()
    assume(satisfying)
    for x, values in satisfying:
        total = Fraction(0)
        for r, weight in enumerate(weights):
            form = dot(scenario.forms.rows[0, r], values[scenario.graph.output])
            form += Fraction(scenario.forms.offset[0, r])
            if scenario.forms.input_rows is not None:
                form += dot(scenario.forms.input_rows[0, r], exact(x))
            total += Fraction(float(weight)) * form
        assert claim == -np.inf or Fraction(claim) <= total, float(Fraction(claim) - total)


@given(scenario=scenarios(smooth=True, planes=True), seed=strategies.seeds, short=st.booleans())
def test_ascent_keeps_the_best_and_reports_what_reached_it(
    scenario: Scenario, seed: int, short: bool
) -> None:
    start = scenario.start(np.random.default_rng(seed))
    before, after = scenario.run(start, 0), scenario.run(start, 8, short=short)
    if not short:  # what is best in binary32 may be so by its rounding
        assert (after.lower >= before.lower).all()
    again = scenario.run(after.best, 0)
    np.testing.assert_array_equal(again.lower, after.lower)
    for name, value in after.best.positions.items():
        assert ((value >= 0) & (value <= 1)).all(), name
    for name, value in after.best.multipliers.items():
        assert ((value * scenario.signs[name] >= 0) | (scenario.signs[name] == 2)).all(), name
        assert not value[scenario.signs[name] == 0].any(), name


@given(
    scenario=scenarios(smooth=True, planes=True),
    seed=strategies.seeds,
    steps=st.sampled_from([0, 1, 5]),
)
def test_what_is_written_down_gives_the_same_bound(
    scenario: Scenario, seed: int, steps: int
) -> None:
    """One byte per slope, two per multiplier and per weight."""
    found = scenario.run(scenario.start(np.random.default_rng(seed)), steps)
    best = found.best
    read = Start(
        {name: decode_positions(encode_positions(v)) for name, v in best.positions.items()},
        {name: decode_multipliers(encode_multipliers(v)) for name, v in best.multipliers.items()},
        decode_multipliers(encode_multipliers(best.weights)),
        best.anchor,
    )
    np.testing.assert_array_equal(scenario.run(read, 0).lower, found.lower)


def test_ascent_closes_what_default_slopes_leave_open() -> None:
    """relu(x) + relu(-x) >= 0 needs slopes that fit each other, which the defaults do not."""
    nodes = (
        Node("z", Linear(np.array([[1.0, -1.0]])), ("x",)),
        Node("h", Relu(2), ("z",)),
        Node("y", Linear(np.ones((2, 1)), np.array([0.25])), ("h",)),
    )
    graph = Graph("x", 1, nodes, "y")
    boxes = crown_bounds(graph, Box(np.array([[-1.0]]), np.array([[1.5]]))).boxes
    free = FreeRelaxation.build(graph, boxes)
    forms = Forms(np.ones((1, 1, 1)), None, np.zeros((1, 1)), np.ones((1, 1), dtype=bool))
    start = Start.at_form(np.zeros(1, dtype=int), forms)
    assert optimise(free, forms, boxes["y"], start, steps=0).lower[0] < 0
    assert optimise(free, forms, boxes["y"], start, steps=20).lower[0] > 0


@pytest.mark.parametrize("ends", [(0.5, 2.5), (-1.0, 2.5), (-2.5, -0.5), (-2.5, 1.0)])
@pytest.mark.parametrize("curve", [Sigmoid, Tanh])
def test_tangents_close_what_default_lines_leave_open(
    curve: type[Sigmoid | Tanh], ends: tuple[float, float]
) -> None:
    """The extreme value on the bent side needs the tangent at the end of the box."""
    low, high = ends
    sign, end = (-1.0, high) if low + high > 0 else (1.0, low)
    extreme = float(curve(1).value(np.array(end)))
    nodes = (
        Node("h", curve(1), ("x",)),
        Node("y", Linear(np.array([[sign]]), np.array([0.01 - sign * extreme])), ("h",)),
    )
    graph = Graph("x", 1, nodes, "y")
    boxes = crown_bounds(graph, Box(np.array([[low]]), np.array([[high]]))).boxes
    free = FreeRelaxation.build(graph, boxes)
    forms = Forms(np.ones((1, 1, 1)), None, np.zeros((1, 1)), np.ones((1, 1), dtype=bool))
    start = Start.at_form(np.zeros(1, dtype=int), forms)
    assert optimise(free, forms, boxes["y"], start, steps=0).lower[0] < 0
    assert optimise(free, forms, boxes["y"], start, steps=20).lower[0] > 0


def attention(rng: np.random.Generator) -> Graph:
    """Relu of x, products of two matrices made of that, and shares of the result: y."""
    makes = [(rng.normal(size=(3, 6)), "x"), (rng.normal(size=(6, 8)), "h")]
    first = np.broadcast_to(np.arange(8).reshape(2, 2, 1, 2), (2, 2, 2, 2)).ravel()
    second = np.broadcast_to(7 - np.arange(8).reshape(2, 1, 2, 2), (2, 2, 2, 2)).ravel()
    nodes = (
        Node("z", Linear(makes[0][0], rng.normal(size=6)), ("x",)),
        Node("h", Relu(6), ("z",)),
        Node("v", Linear(makes[1][0], rng.normal(size=8)), ("h",)),
        Node("a", Select.of(first, 8), ("v",)),
        Node("b", Select.of(second, 8), ("v",)),
        Node("p", Multiply(16), ("a", "b")),
        Node("s", Linear(np.full((2, 1), 0.5), np.ones(1), 8), ("p",)),
        Node("t", Tanh(8), ("s",)),
        Node("y", Linear(rng.normal(size=(8, 2)), None), ("t",)),
    )
    return Graph("x", 3, nodes, "y")


def attention_form(rng: np.random.Generator) -> tuple[Graph, dict[str, Box], Forms]:
    graph = attention(rng)
    boxes = crown_bounds(graph, Box(np.full((1, 3), -0.3), np.full((1, 3), 0.4))).boxes
    rows = np.array([[[1.0, -1.0]]])
    return graph, boxes, Forms(rows, None, np.zeros((1, 1)), np.ones((1, 1), dtype=bool))


def test_matrices_are_multiplied_as_pairs_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes over products of matrices give what passes over every pair give."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        graph, boxes, forms = attention_form(rng)
        (found,) = graph.matrix_products.values()
        assert (found.shape, found.factor) == ((2, 2, 2, 2), 0.5)
        made = []
        for pairwise in (False, True):
            with monkeypatch.context() as patch:
                if pairwise:
                    patch.setattr(Relaxation, "planes_of_sums", lambda self, name: None)
                free = FreeRelaxation.build(graph, boxes)
                start = Start.at_form(np.zeros(1, dtype=int), forms)
                found_here = optimise(free, forms, boxes["y"], start, steps=6)
                again = crown_bounds(graph, boxes["x"])
            made.append((found_here, again.boxes))
        np.testing.assert_allclose(made[0][0].lower, made[1][0].lower, rtol=1e-9)
        np.testing.assert_allclose(made[0][0].minimiser, made[1][0].minimiser)
        for name, rows in made[0][0].activations.items():
            np.testing.assert_allclose(rows, made[1][0].activations[name], rtol=1e-6, atol=1e-12)
        for name, box in made[0][1].items():
            np.testing.assert_allclose(box.lower, made[1][1][name].lower, rtol=1e-9, atol=1e-12)


def test_free_planes_raise_bounds() -> None:
    gains = []
    for seed in range(8):
        graph, boxes, forms = attention_form(np.random.default_rng(seed))
        lower = []
        for planes in (0, math.inf):
            free = FreeRelaxation.build(graph, boxes, planes=planes)
            start = Start.at_form(np.zeros(1, dtype=int), forms)
            lower.append(optimise(free, forms, boxes["y"], start, steps=20).lower[0])
        gains.append(lower[1] - lower[0])
    assert sum(gain > 0 for gain in gains) >= 6  # more variables may mislead an ascent
    assert np.median(gains) > 1e-3


@given(scenario=scenarios(smooth=True, split=False))
def test_first_bound_is_that_of_the_default_lines(scenario: Scenario) -> None:
    """Up to the grid: positions are rounded, and default lines are charged for one position."""
    forms = scenario.forms
    start = Start.at_form(np.zeros(1, dtype=int), forms)
    found = scenario.run(start, 0).lower[0]
    relaxation = Relaxation(scenario.graph, scenario.boxes[scenario.graph.input])
    for node in scenario.graph.nodes:
        if isinstance(node.op, Elementwise):
            lines = node.op.relax(scenario.boxes[node.inputs[0]])
            relaxation.add_elementwise(node, scenario.boxes, lines)
        elif isinstance(node.op, Bivariate):
            read = [scenario.boxes[name] for name in node.inputs]
            planes = node.op.relax(read, scenario.boxes[node.name])
            relaxation.add_bivariate(node, scenario.boxes, planes)
        else:
            relaxation.add_affine(node, scenario.boxes)
    usual = forms.pull(relaxation).lower[0, 0]
    assume(np.isfinite(usual))
    # Over wide ranges a step of the grid moves a tangent by as much as the outputs vary.
    assume(max(box.magnitude.max() for box in scenario.boxes.values()) < 10.0)
    # Lines at a jump in an interval of next to nothing are nearly vertical.
    assume(all(abs(curve.half).max() < 1e9 for curve in relaxation.curves.values()))
    assert found == pytest.approx(usual, rel=2e-2, abs=5e-2)


class Recorder:
    """Takes down the gradients of one step and moves nothing: slopes, multipliers, weights."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gradients: list[Array] = []

        def step(
            ascent: optimised._Ascent,
            number: int,
            gradient: Array,
            unit: Array | float = 1.0,
        ) -> Array:
            del number, unit
            self.gradients.append(gradient.copy())
            return ascent.values

        monkeypatch.setattr(optimised._Ascent, "step", step)

    def by_name(self, group: str, entries: dict[str, Array]) -> dict[str, Array]:
        """Gradients of one group; those of slopes and multipliers are of these entries."""
        slopes, multipliers, *weights = self.gradients
        if group == "weights":
            return {"": weights[0]}
        whole = slopes if group == "positions" else multipliers
        ends = np.cumsum([len(part) for part in entries.values()])
        assert len(whole) == ends[-1]
        return dict(zip(entries, np.split(whole, ends[:-1]), strict=True))


def _difference(scenario: Scenario, start: Start, group: str, name: str, index: int) -> list[float]:
    """One-sided difference quotients of the bound in one variable; equal away from its kinks."""
    step = 1e-5
    quotients = []
    center = scenario.run(start, 0).lower[0]
    for side in (step, -step):
        values = dict(getattr(start, group)) if group != "weights" else start.weights
        part = (values[name] if group != "weights" else values).copy()
        part[0, index] += side
        changed = {group: part if group == "weights" else {**values, name: part}}
        moved = Start(**{**vars(start), **changed})
        quotients.append((scenario.run(moved, 0).lower[0] - center) / side)
    return quotients


@pytest.mark.parametrize("curved", [False, True])
@pytest.mark.parametrize("group", ["positions", "multipliers", "weights"])
@pytest.mark.parametrize("seed", range(12))
def test_gradients_are_those_of_the_bound(
    group: str, seed: int, curved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On the grid the bound is a staircase; the gradient is that of the curve beneath it.
    monkeypatch.setattr(optimised, "round_positions", np.copy)
    monkeypatch.setattr(optimised, "round_multipliers", np.copy)
    rng = np.random.default_rng(seed)
    scenario = _smooth_scenario(rng, curved=curved)
    start = scenario.start(rng)
    start = Start(
        {name: rng.uniform(0.2, 0.8, size=v.shape) for name, v in start.positions.items()},
        start.multipliers,
        start.weights,
        start.anchor,
    )
    with monkeypatch.context() as patch:
        recorder = Recorder(patch)
        scenario.run(start, 1)
    groups = {"": start.weights} if group == "weights" else getattr(start, group)
    entries: dict[str, Array] = {"": np.arange(start.weights.shape[1])}
    if group == "positions":  # those of neurons without a choice are no variables
        entries = {n: scenario.free.free[n].moving(groups[n]).entries for n in scenario.free.free}
    elif group == "multipliers":
        entries = {name: np.flatnonzero(sign) for name, sign in scenario.signs.items()}
    gradients = recorder.by_name(group, entries)
    compared = 0
    for name, numbers in entries.items():
        for index, gradient in zip(numbers.tolist(), gradients[name].ravel(), strict=True):
            sides = _difference(scenario, start, group, name, index)
            # Tangents bend: the quotients differ by the step times the second derivative.
            bend = 1e-3 if curved else 1e-6
            if abs(sides[0] - sides[1]) > bend * (1 + abs(sides[0])):
                continue  # a kink of the bound: any value between the sides is a subgradient
            middle = 0.5 * (sides[0] + sides[1])
            assert gradient == pytest.approx(middle, rel=1e-4, abs=1e-6)
            compared += 1
    assert compared > 0


def _smooth_scenario(rng: np.random.Generator, *, curved: bool) -> Scenario:
    """Two hidden layers with a residual sum; a bound that is far from positive, so steps run."""
    first, second = (Sigmoid(4), Tanh(4)) if curved else (Relu(4), LeakyRelu(4, np.array(0.1)))
    nodes = (
        Node("z1", Linear(rng.normal(size=(2, 4)), 0.1 * rng.normal(size=4)), ("x",)),
        Node("h1", first, ("z1",)),
        Node("z2", Linear(rng.normal(size=(4, 4)), 0.1 * rng.normal(size=4)), ("h1",)),
        Node("h2", second, ("z2",)),
        Node("r", Sum(4, (1, -1)), ("h1", "h2")),
        Node("y", Linear(rng.normal(size=(4, 2))), ("r",)),
    )
    graph = Graph("x", 2, nodes, "y")
    boxes = crown_bounds(graph, Box(-np.ones((1, 2)), np.ones((1, 2)))).boxes
    signs = {name: rng.choice([-1.0, 0.0, 1.0], size=(1, 4)) for name in ("z1", "z2")}
    signs["z1"][0, 0] = 1.0
    points = {name: np.zeros((1, 4)) for name in signs}
    forms = Forms(
        rng.normal(size=(1, 3, 2)),
        rng.normal(size=(1, 3, 2)),
        -10.0 - rng.random(size=(1, 3)),
        np.array([[True, True, True]]),
    )
    free = FreeRelaxation.build(graph, boxes)
    return Scenario(graph, boxes, free, forms, signs, points, {}, [])


@pytest.mark.parametrize("factor", [2.0**-10, 2.0**10])
def test_ascent_does_not_depend_on_the_size_of_the_forms(factor: float) -> None:
    """Multipliers are of the size of rows: as forms grow, so do the steps, and so the bound."""
    rng = np.random.default_rng(3)
    graph = strategies.relu_network(rng, [3, 8, 8, 1])
    boxes = crown_bounds(graph, Box(-np.ones((1, 3)), np.ones((1, 3)))).boxes
    name = list(graph.pre_activations)[-1]
    inside = (boxes[name].lower < 0) & (boxes[name].upper > 0)
    sign = np.where(inside & (np.arange(8) % 2 == 0), 1.0, 0.0)
    assert sign.any()
    cut = Box(np.where(sign > 0, 0.0, boxes[name].lower), boxes[name].upper)
    free = FreeRelaxation.build(graph, boxes).with_boxes({name: cut})
    splits = Splits({name: sign}, {name: np.zeros_like(sign)})
    found = []
    for size in (1.0, factor):
        forms = Forms(np.full((1, 1, 1), size), None, np.zeros((1, 1)), np.ones((1, 1), dtype=bool))
        start = Start.at_form(np.zeros(1, dtype=int), forms)
        forms = Forms(-forms.rows, None, forms.offset - 100.0 * size, forms.used)
        found.append(optimise(free, forms, boxes[graph.output], start, splits=splits, steps=6))
    assert found[0].best.multipliers[name].any()
    np.testing.assert_allclose(found[1].lower, factor * found[0].lower, rtol=1e-9)
    np.testing.assert_allclose(
        found[1].best.multipliers[name], factor * found[0].best.multipliers[name], rtol=1e-9
    )
