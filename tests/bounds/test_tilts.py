"""Planes above relus: above them at every point and execution, and as low as the hull."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, event, given
from hypothesis import strategies as st
from scipy.sparse import issparse

from onnxcert.arrays import Array, Window
from onnxcert.bounds.backward import pull_back
from onnxcert.bounds.crown import crown_bounds
from onnxcert.bounds.hints import round_positions
from onnxcert.bounds.optimised import Forms, FreeRelaxation, Start, optimise
from onnxcert.bounds.tilts import Tilting, Tilts, tiltings
from onnxcert.graph import Graph, Node
from onnxcert.ops import Convolution, Linear, Relu, Scale, Select, Tanh
from onnxcert.sets import Box
from tests import strategies
from tests.bounds.executions import BINARY32, Execution, with_float32_weights
from tests.bounds.test_optimised import Scenario, scenarios
from tests.oracles import dot, exact_values

KINDS = ["linear", "convolution", "moved", "scaled"]


def network(kind: str, rng: np.random.Generator) -> Graph:
    """A layer of relus of the input, and a sum of them."""
    nodes: list[Node] = []
    if kind == "convolution":
        window = Window((2, 3, 4), (2, 2), padding=(1, 0, 0, 1))
        op = Convolution(rng.normal(size=(1, 3, 8)), window, rng.normal(size=3))
        nodes = [Node("z", op, ("x",))]
        inputs, width = 24, op.output_size
    else:
        inputs, width, source = 5, 6, "x"
        if kind == "moved":
            nodes.append(Node("m", Select.of(np.array([3, 0, 4, 1, 2]), inputs), ("x",)))
            source = "m"
        weight = rng.normal(size=(inputs, width)) * (rng.random((inputs, width)) < 0.8)
        nodes.append(Node("s", Linear(weight, rng.normal(size=width)), (source,)))
        if kind == "scaled":
            scale = Scale(width, rng.normal(size=width), rng.normal(size=width))
            nodes.append(Node("z", scale, ("s",)))
        else:
            nodes[-1] = replace(nodes[-1], name="z")
    nodes += [
        Node("h", Relu(width), ("z",)),
        Node("y", Linear(rng.normal(size=(width, 2))), ("h",)),
    ]
    return Graph("x", inputs, tuple(nodes), "y")


def relaxed(
    graph: Graph, box: Box, unit: float = 0.0
) -> tuple[dict[str, Box], FreeRelaxation, dict[str, Tilting]]:
    boxes = crown_bounds(graph, box, execution_unit=unit).boxes
    free = FreeRelaxation.build(graph, boxes, unit)
    free.choose(free.default)
    return boxes, free, tiltings(graph, boxes, free.relaxation)


def cube(graph: Graph, rng: np.random.Generator) -> Box:
    center = rng.normal(size=(1, graph.input_size))
    radius = rng.uniform(0.0, 2.0, size=(1, graph.input_size))
    return Box(center - radius, center + radius)


def lower(free: FreeRelaxation, graph: Graph, rows: Array) -> Array:
    return pull_back(free.relaxation, graph.output, rows).lower[0]


@pytest.mark.parametrize("kind", KINDS)
@given(seed=strategies.seeds)
def test_bounds_hold_for_all_shares(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = network(kind, rng)
    box = cube(graph, rng)
    _, free, found = relaxed(graph, box)
    assume(found)
    shares = round_positions(rng.choice([0.0, 0.3, 1.0], size=(1, *found["h"].index.shape)))
    free.relaxation.tilts["h"] = found["h"].tilt(shares)
    rows = rng.normal(size=(1, 3, 2))
    claims = lower(free, graph, rows)
    for _ in range(6):
        x = np.where(rng.random(graph.input_size) < 0.5, box.lower[0], box.upper[0])
        y = exact_values(graph, x)["y"]
        assert all(Fraction(c) <= dot(r, y) for c, r in zip(claims, rows[0], strict=True))


@pytest.mark.parametrize("kind", KINDS)
@given(seed=strategies.seeds)
def test_bounds_hold_for_executions(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = with_float32_weights(network(kind, rng))
    box = cube(graph, rng).map(lambda side: side.astype(np.float32).astype(float))
    _, free, found = relaxed(graph, box, BINARY32)
    assume(found)
    shares = round_positions(rng.uniform(size=(1, *found["h"].index.shape)))
    free.relaxation.tilts["h"] = found["h"].tilt(shares)
    rows = rng.normal(size=(1, 3, 2))
    claims = lower(free, graph, rows)
    for _ in range(6):
        x = np.where(rng.random(graph.input_size) < 0.5, box.lower[0], box.upper[0])
        y = [Fraction(v) for v in Execution(rng).run(graph, x)["y"]]
        assert all(Fraction(c) <= dot(r, y) for c, r in zip(claims, rows[0], strict=True))


@given(scenario=scenarios(), seed=strategies.seeds, steps=st.sampled_from([0, 5]))
def test_ascent_with_planes(scenario: Scenario, seed: int, steps: int) -> None:
    """Any network, with sums that cancel: no combination is below its bound where splits hold."""
    found = tiltings(scenario.graph, scenario.boxes, scenario.free.relaxation)
    event(f"planes: {bool(found)}")
    start = scenario.start(np.random.default_rng(seed))
    begun = replace(scenario, free=scenario.free.tilted(found)).run(start, 0)
    result = replace(scenario, free=scenario.free.tilted(found)).run(start, steps)
    assert (result.lower >= begun.lower).all()
    again = replace(scenario, free=scenario.free.tilted(found)).run(result.best, 0)
    np.testing.assert_array_equal(again.lower, result.lower)
    weights, forms = result.best.weights[0], scenario.forms
    for x, values in scenario.satisfying():
        total = Fraction(0)
        for r, weight in enumerate(weights):
            form = dot(forms.rows[0, r], values[scenario.graph.output])
            form += Fraction(forms.offset[0, r])
            if forms.input_rows is not None:
                form += dot(forms.input_rows[0, r], [Fraction(v) for v in x])
            total += Fraction(float(weight)) * form
        assert np.isneginf(result.lower[0]) or Fraction(result.lower[0]) <= total


@pytest.mark.parametrize("kind", KINDS)
def test_equal_shares_are_the_chord(kind: str) -> None:
    rng = np.random.default_rng(3)
    graph = network(kind, rng)
    box = cube(graph, rng)
    boxes, free, found = relaxed(graph, box)
    rows = rng.normal(size=(1, 4, 2))
    plain = lower(free, graph, rows)
    free.relaxation.tilts["h"] = found["h"].tilt(round_positions(found["h"].chord))
    np.testing.assert_allclose(lower(free, graph, rows), plain, rtol=1e-9)
    assert (boxes["z"].lower[0, found["h"].neurons] < 0).all()


def test_shares_find_the_hull_over_the_box() -> None:
    """c . x - relu(w . x + b) is concave: its least value over the cube is at a corner."""
    rng = np.random.default_rng(5)
    for _ in range(8):
        weight, bias, row = rng.normal(size=(4, 1)), 0.3 * rng.normal(size=1), rng.normal(size=4)
        graph = Graph(
            "x",
            4,
            (
                Node("z", Linear(weight, bias), ("x",)),
                Node("h", Relu(1), ("z",)),
                Node("y", Linear(np.array([[-1.0]])), ("h",)),
            ),
            "y",
        )
        box = Box(-np.ones((1, 4)), np.ones((1, 4)))
        corners = np.stack(np.meshgrid(*[[-1.0, 1.0]] * 4), axis=-1).reshape(-1, 4)
        least = (corners @ row - np.maximum(corners @ weight[:, 0] + bias, 0.0)).min()
        boxes, free, found = relaxed(graph, box)
        used = np.ones((1, 1), dtype=bool)
        forms = Forms(np.ones((1, 1, 1)), row[None, None], np.full((1, 1), 100.0), used)
        forms = replace(forms, offset=np.full((1, 1), -least - 1e-3 - 1.0))
        start = Start.at_form(np.zeros(1, dtype=int), forms)
        gaps = [
            -1.0 - 1e-3 - optimise(relaxation, forms, boxes["y"], start, steps=200).lower[0]
            for relaxation in (free, free.tilted(found))
        ]
        assert -1e-9 <= gaps[1] <= gaps[0] + 1e-9
        assert gaps[1] < 0.02, gaps


def test_layers_behind_curves_have_no_planes() -> None:
    rng = np.random.default_rng(0)
    graph = network("linear", rng)
    behind = (
        *graph.nodes[:-1],
        Node("z2", Linear(rng.normal(size=(6, 4))), ("h",)),
        Node("h2", Relu(4), ("z2",)),
        Node("t", Tanh(4), ("h2",)),
    )
    _, _, found = relaxed(Graph("x", 5, behind, "t"), Box(-np.ones((1, 5)), np.ones((1, 5))))
    assert set(found) == {"h"}


@pytest.mark.parametrize("most", [0, 1 << 30], ids=["compressed rows", "dense"])
@pytest.mark.parametrize("kind", KINDS)
@given(seed=strategies.seeds)
def test_factors_are_those_of_the_formula(kind: str, most: int, seed: int) -> None:
    """Rows and values on planes, against sums written out one by one."""
    rng = np.random.default_rng(seed)
    graph = network(kind, rng)
    _, _, found = relaxed(graph, cube(graph, rng))
    assume(found)
    tilting, size = found["h"], graph.input_size
    shares = rng.uniform(size=(3, *tilting.index.shape))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onnxcert.bounds.tilts._DENSE", most)
        patch.setattr("onnxcert.bounds.tilts._FILLED", 2.0)
        tilt = tilting.tilt(shares)
    case = rng.integers(-1, 3, size=5)
    tilt = replace(tilt, offset=tilt.offset[case], case=case, active=(case >= 0)[:, None])
    below = rng.normal(size=(5, 2, len(tilting.neurons))) * tilt.active[:, None]
    source = rng.normal(size=(5, size))
    factor = tilting.balanced(shares) * tilting.weight
    rows = np.zeros((5, 2, size))
    value = np.array(tilt.offset)
    for b, n, k in np.ndindex(5, *tilting.index.shape):
        if case[b] >= 0:
            rows[b, :, tilting.index[n, k]] += below[b, :, n] * factor[case[b], n, k]
            value[b, n] += factor[case[b], n, k] * source[b, tilting.index[n, k]]
    np.testing.assert_allclose(tilt.spread(below, size), rows, rtol=1e-12, atol=1e-12)
    row = rng.normal(size=(5, graph.sizes["h"]))
    line = rng.normal(size=row.shape)
    expected = line.copy()
    chosen = (row[:, tilting.neurons] < 0) & (case >= 0)[:, None]
    expected[:, tilting.neurons] = np.where(chosen, value, line[:, tilting.neurons])
    np.testing.assert_allclose(tilt.taken(row, line, source), expected, rtol=1e-12, atol=1e-12)
    low = tilt.single()
    assert low.spread(below.astype(np.float32), size).dtype == np.float32
    np.testing.assert_allclose(low.spread(below.astype(np.float32), size), rows, atol=1e-4)


def test_subproblems_take_the_planes_of_their_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of cases without planes, and neurons that a split makes stable, take lines."""
    rng = np.random.default_rng(1)
    graph = network("linear", rng)
    box = Box(-np.ones((1, 5)), np.ones((1, 5)))
    boxes, free, found = relaxed(graph, box)
    shares = {"h": round_positions(rng.uniform(size=(2, *found["h"].index.shape)))}
    tilts = Tilts(found, np.array([4, 7]), shares)
    cut = Box(*(np.repeat(side, 4, axis=0) for side in (boxes["z"].lower, boxes["z"].upper)))
    neuron = found["h"].neurons[0]
    cut.lower[3, neuron] = 0.0
    made = tilts.over(np.array([7, 5, 4, 4]), graph, boxes, {"z": cut})["h"]
    assert made.active.all(axis=1).tolist() == [True, False, True, False]
    assert made.active[3, 1:].all()
    for subproblem, row in ((0, 1), (2, 0)):
        alone = found["h"].tilt(shares["h"][[row]])
        assert made.case is not None
        matrix = made.factors[made.case[subproblem]][1]
        np.testing.assert_array_equal(matrix, alone.factors[0][1])
        np.testing.assert_array_equal(made.offset[subproblem], alone.offset[0])
    free = free.with_boxes({"z": cut})
    free.choose(free.default)
    rows = np.repeat(-np.ones((1, 1, 2)), 4, axis=0)
    plain = pull_back(free.relaxation, "y", rows).lower[:, 0]
    free.relaxation.tilts["h"] = made
    bounds = pull_back(free.relaxation, "y", rows).lower[:, 0]
    assert bounds[1] == pytest.approx(plain[1], rel=1e-12)
    assert (bounds[[0, 2, 3]] != plain[[0, 2, 3]]).all()
    monkeypatch.setattr("onnxcert.bounds.tilts._DENSE", 0)
    monkeypatch.setattr("onnxcert.bounds.tilts._FILLED", 2.0)
    loose = Tilts(found, np.array([4, 7]), shares)
    made = loose.over(np.array([7, 5, 4, 4]), graph, boxes, {"z": cut})["h"]
    assert all(issparse(matrix) for pair in made.factors for matrix in pair)
    free.relaxation.tilts["h"] = made
    again = pull_back(free.relaxation, "y", rows).lower[:, 0]
    np.testing.assert_allclose(again, bounds, rtol=1e-12)
    only = tilts.take(np.array([False, True]))
    assert only is not None
    assert only.cases.tolist() == [7]
    assert tilts.take(np.zeros(2, dtype=bool)) is None
