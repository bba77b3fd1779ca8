"""Bounds with shared slopes, and their derivatives by the faces of the box and by the slopes."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given

from onnxcert.arrays import Array
from onnxcert.bounds import sensitivity
from onnxcert.bounds.crown import crown_bounds
from onnxcert.bounds.sensitivity import (
    FORMS,
    FormBounds,
    Positions,
    bound_forms,
    bound_layers,
    differentiate,
)
from onnxcert.graph import Graph, Node
from onnxcert.ops import Elementwise, LeakyRelu, Linear, Relu, Sigmoid, Sum, Tanh
from onnxcert.sets import Ball, Box
from tests.bounds.test_soundness import Sample, assert_inside, networks
from tests.oracles import dot
from tests.strategies import seeds

INPUTS, WIDTH, OUTPUTS, BATCH = 4, 9, 3, 3
CURVES: dict[str, Callable[[int], Elementwise]] = {
    "relu": Relu,
    "leaky": lambda size: LeakyRelu(size, np.array(0.1)),
    "tanh": Tanh,
    "sigmoid": Sigmoid,
}
SMOOTH = {"tanh", "sigmoid"}


def network(curve: str, seed: int) -> Graph:
    """Three curves, a residual sum, and curves on both of its sides."""
    rng = np.random.default_rng(seed)

    def linear(rows: int, columns: int) -> Linear:
        weight = 1.5 * rng.normal(size=(rows, columns)) / np.sqrt(rows)
        return Linear(weight, 0.3 * rng.normal(size=columns))

    make = CURVES[curve]
    nodes = (
        Node("z0", linear(INPUTS, WIDTH), ("x",)),
        Node("h0", make(WIDTH), ("z0",)),
        Node("z1", linear(WIDTH, WIDTH), ("h0",)),
        Node("h1", make(WIDTH), ("z1",)),
        Node("s", Sum(WIDTH, (1, -1)), ("h0", "h1")),
        Node("z2", linear(WIDTH, WIDTH), ("s",)),
        Node("h2", make(WIDTH), ("z2",)),
        Node("y", linear(WIDTH, OUTPUTS), ("h2",)),
    )
    return Graph("x", INPUTS, nodes, "y")


class Setting:
    """A network, boxes, forms and weights."""

    def __init__(self, curve: str, seed: int, radius: float = 0.3) -> None:
        rng = np.random.default_rng(100 + seed)
        self.graph = network(curve, seed)
        center = rng.normal(size=(BATCH, INPUTS))
        spread = rng.uniform(0.02, radius, size=(BATCH, INPUTS))
        self.box = Box(center - spread, center + spread)
        self.rows = rng.normal(size=(BATCH, 2, OUTPUTS))
        self.offset = rng.normal(size=(BATCH, 2))
        self.weights = rng.uniform(0.1, 1.0, size=(BATCH, 2))
        self.rng = rng

    def bounds(self, box: Box, positions: Positions | None = None) -> FormBounds:
        layers = bound_layers(self.graph, box, positions)
        return bound_forms(layers, self.rows, self.offset, positions)

    def total(self, box: Box, positions: Positions) -> np.ndarray:
        return (self.bounds(box, positions).lower * self.weights).sum(axis=1)

    def anywhere(self) -> dict[str, dict[str, np.ndarray]]:
        """Positions at random."""
        found = self.bounds(self.box)
        chosen = {**found.layers.positions, FORMS: dict(found.positions)}
        return {
            start: {name: self.rng.uniform(0.1, 0.9, old.shape) for name, old in nodes.items()}
            for start, nodes in chosen.items()
        }


every_curve = pytest.mark.parametrize("curve", sorted(CURVES))


@every_curve
@pytest.mark.parametrize("seed", range(3))
def test_bounds_hold(curve: str, seed: int) -> None:
    setting = Setting(curve, seed, radius=0.8)
    for positions in ({}, setting.anywhere()):
        found = setting.bounds(setting.box, positions)
        for _ in range(200):
            share = np.round(setting.rng.random(setting.box.lower.shape) * 4) / 4
            x = setting.box.lower + share * (setting.box.upper - setting.box.lower)
            values = {"x": x}
            for node in setting.graph.nodes:
                values[node.name] = node.op.forward([values[name] for name in node.inputs])
                box = found.layers.boxes[node.name]
                assert (values[node.name] >= box.lower - 1e-9).all()
                assert (values[node.name] <= box.upper + 1e-9).all()
            forms = (setting.rows @ values["y"][:, :, None])[:, :, 0] + setting.offset
            assert (forms >= found.lower - 1e-9).all()


@every_curve
def test_default_slopes_give_the_bounds_of_the_verifier(curve: str) -> None:
    setting = Setting(curve, 0)
    found = setting.bounds(setting.box)
    expected = crown_bounds(setting.graph, setting.box)
    for name, box in expected.boxes.items():
        np.testing.assert_allclose(found.layers.boxes[name].lower, box.lower, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(found.layers.boxes[name].upper, box.upper, rtol=1e-9, atol=1e-9)


@every_curve
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kept", [True, False])
def test_derivatives_by_faces(
    curve: str, seed: int, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through all layers, against differences of the bounds; also with rows that are made again."""
    if not kept:
        monkeypatch.setattr(sensitivity, "_KEPT_NUMBERS", 0)
    setting = Setting(curve, seed)
    positions = setting.anywhere()
    found = differentiate(setting.bounds(setting.box, positions), setting.weights)
    step = 1e-6
    for side, derivative in (("lower", found.lower), ("upper", found.upper)):
        expected = np.zeros_like(derivative)
        for column in range(INPUTS):
            totals = []
            for sign in (1.0, -1.0):
                faces = {"lower": setting.box.lower.copy(), "upper": setting.box.upper.copy()}
                faces[side][:, column] += sign * step
                totals.append(setting.total(Box(**faces), positions))
            expected[:, column] = (totals[0] - totals[1]) / (2 * step)
        scale = abs(expected).max()
        assert scale > 0.1  # there is something to be compared
        tolerance = 0.02 if curve in SMOOTH else 1e-4
        np.testing.assert_allclose(derivative, expected, atol=tolerance * scale)


@every_curve
def test_derivatives_by_positions(curve: str) -> None:
    setting = Setting(curve, 1)
    positions = setting.anywhere()
    found = differentiate(setting.bounds(setting.box, positions), setting.weights)
    step, pairs = 1e-6, []
    for start, nodes in found.positions.items():
        for name, derivative in nodes.items():
            for column in range(0, WIDTH, 4):
                totals = []
                for sign in (1.0, -1.0):
                    moved = positions[start][name].copy()
                    moved[:, column] += sign * step
                    changed = {**positions, start: {**positions[start], name: moved}}
                    totals.append(setting.total(setting.box, changed))
                expected = (totals[0] - totals[1]) / (2 * step)
                pairs.append((derivative[:, column].reshape(BATCH, -1).sum(axis=1), expected))
    actual, wanted = (np.stack(side) for side in zip(*pairs, strict=True))
    scale = abs(wanted).max()
    assert scale > 1e-3  # there is something to be compared
    tolerance = 0.05 if curve in SMOOTH else 1e-4
    np.testing.assert_allclose(actual, wanted, atol=tolerance * scale)


@given(drawn=networks(smooth=True), seed=seeds)
def test_bounds_of_any_network_hold_exactly(
    drawn: tuple[Graph, Box, list[Sample]], seed: int
) -> None:
    graph, box, samples = drawn
    rng = np.random.default_rng(seed)
    default = bound_layers(graph, box)
    positions = {
        start: {name: rng.random(old.shape) for name, old in nodes.items()}
        for start, nodes in default.positions.items()
    }
    layers = bound_layers(graph, box, positions)
    rows = rng.integers(-2, 3, size=(len(box), 2, graph.output_size)).astype(float)
    forms = bound_forms(layers, rows, np.zeros((len(box), 2)))
    for sample in samples:
        number, _, values = sample
        assert_inside(default.boxes, sample)
        assert_inside(layers.boxes, sample)
        for row, lower in zip(rows[number], forms.lower[number], strict=True):
            assert lower == -np.inf or Fraction(float(lower)) <= dot(row, values[graph.output])


def in_box(center: Array, axes: Array, cut: Box | None = None) -> Ball:
    """Ellipsoids in the boxes that they touch, or in the part of those in another box."""
    ball = Ball(center - axes, center + axes, center, axes)
    return ball if cut is None else ball.intersect(cut)


@pytest.mark.parametrize("is_cut", [False, True])
@every_curve
def test_ellipsoids(curve: str, is_cut: bool) -> None:
    """Bounds hold on the ellipsoid, are no looser than on the box, and have derivatives."""
    setting = Setting(curve, 4)
    center = 0.5 * (setting.box.lower + setting.box.upper)
    radius = 0.5 * (setting.box.upper - setting.box.lower)
    cut = None
    if is_cut:  # close to the centre on one side of some inputs
        share = setting.rng.choice([0.02, 0.1, 2.0], size=(2, *center.shape))
        cut = Box(center - share[0] * radius, center + share[1] * radius)

    def total(axes: Array) -> FormBounds:
        layers = bound_layers(setting.graph, in_box(center, axes, cut), setting_positions)
        return bound_forms(layers, setting.rows, setting.offset, setting_positions)

    setting_positions = setting.anywhere()
    found = total(radius)
    whole = setting.box if cut is None else setting.box.intersect(cut)
    gain = found.lower - setting.bounds(whole, setting_positions).lower
    assert (gain > 0).any(axis=1).sum() >= 2
    assert (gain >= -1e-12).all()
    assert is_cut or (gain > 0).all()
    for _ in range(300):
        away = setting.rng.normal(size=center.shape)
        away /= np.linalg.norm(away, axis=1, keepdims=True)
        points = np.clip(center + radius * away, whole.lower, whole.upper)
        outputs = setting.graph.forward(points)
        forms = (setting.rows @ outputs[:, :, None])[:, :, 0] + setting.offset
        assert (forms >= found.lower - 1e-9).all()
    slopes = differentiate(found, setting.weights)
    step = 1e-6
    expected = np.zeros_like(radius)
    for column in range(INPUTS):
        totals = []
        for sign in (1.0, -1.0):
            moved = radius.copy()
            moved[:, column] += sign * step
            totals.append((total(moved).lower * setting.weights).sum(axis=1))
        expected[:, column] = (totals[0] - totals[1]) / (2 * step)
    tolerance = 0.02 if curve in SMOOTH else 1e-4
    actual = slopes.upper - slopes.lower
    np.testing.assert_allclose(actual, expected, atol=tolerance * abs(expected).max())


@pytest.mark.parametrize("scale", [1.0, 1e-100, 1e-170])
def test_ellipsoids_hold_where_squares_vanish(scale: float) -> None:
    """The norm of a row whose squares are below every number is not taken for zero."""
    weight = scale * np.array([[1.0], [-3.0], [0.5]])
    graph = Graph("x", 3, (Node("y", Linear(weight, None), ("x",)),), "y")
    ball = in_box(np.zeros((1, 3)), np.ones((1, 3)))
    rows = np.ones((1, 1, 1))
    lower = bound_forms(bound_layers(graph, ball), rows, np.zeros((1, 1))).lower
    norm_squared = sum(Fraction(float(w)) ** 2 for w in weight[:, 0])
    assert lower[0, 0] < 0
    assert Fraction(float(lower[0, 0])) ** 2 >= norm_squared


def test_intervals_are_differentiated_where_they_are_better(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With no backward rows for inner layers, the same bounds come from intervals alone."""
    monkeypatch.setattr(sensitivity, "_refine", lambda layers, name, *, trace, kept: kept)
    setting = Setting("relu", 2)
    positions = setting.anywhere()
    found = differentiate(setting.bounds(setting.box, positions), setting.weights)
    step = 1e-6
    column = 1
    upper = [setting.box.upper.copy() for _ in range(2)]
    upper[0][:, column] += step
    upper[1][:, column] -= step
    totals = [setting.total(Box(setting.box.lower, side), positions) for side in upper]
    expected = (totals[0] - totals[1]) / (2 * step)
    np.testing.assert_allclose(found.upper[:, column], expected, rtol=1e-3, atol=1e-5)


def test_a_batch_is_its_members() -> None:
    setting = Setting("tanh", 3)
    whole = setting.bounds(setting.box)
    slopes = differentiate(whole, setting.weights)
    for k in range(BATCH):
        one = slice(k, k + 1)
        box = Box(setting.box.lower[one], setting.box.upper[one])
        layers = bound_layers(setting.graph, box)
        alone = bound_forms(layers, setting.rows[one], setting.offset[one])
        np.testing.assert_allclose(alone.lower, whole.lower[one], rtol=1e-9)
        found = differentiate(alone, setting.weights[one])
        np.testing.assert_allclose(found.upper, slopes.upper[one], rtol=1e-6, atol=1e-9)
