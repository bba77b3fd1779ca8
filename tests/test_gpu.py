"""NumPy and CuPy compute the same: every operator, all bounds, and a whole search."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcert.arrays import Device, array_module, select_device, to_device, to_host
from onnxcert.bounds import forward, patches
from onnxcert.bounds.backward import pull_back
from onnxcert.bounds.crown import crown_bounds
from onnxcert.bounds.intermediate import tighten
from onnxcert.bounds.interval import interval_bounds
from onnxcert.bounds.optimised import Forms, FreeRelaxation, Start, optimise
from onnxcert.graph import Graph
from onnxcert.ops import Affine, Elementwise, Operator
from onnxcert.search.deadline import Deadline
from onnxcert.search.solve import Solver
from onnxcert.sets import Box
from onnxcert.settings import Settings
from onnxcert.verdict import Counterexample
from tests import strategies
from tests.bounds.test_patches import residual_network
from tests.oracles import confirm_exactly
from tests.strategies import make_problem, relu_network

pytestmark = pytest.mark.gpu

_CLOSE = 1e-9
"""Sums are added up in another order, which is all that may differ."""


@pytest.fixture(scope="module")
def gpu() -> Device:
    return select_device("cuda:0")


def on(device: Device, box: Box) -> Box:
    return Box(to_device(box.lower, device), to_device(box.upper, device))


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert array_module(found).__name__ == "cupy"
    np.testing.assert_allclose(to_host(found), expected, rtol=_CLOSE, atol=_CLOSE)


OPERATORS = strategies.operator_instances()


@pytest.mark.parametrize("op", [op for _, op in OPERATORS], ids=[name for name, _ in OPERATORS])
def test_operator(op: Operator, gpu: Device, rng: np.random.Generator) -> None:
    there = op.to(gpu)
    inputs = [rng.normal(size=(3, size)) for size in op.input_sizes]
    assert_close(there.forward([to_device(x, gpu) for x in inputs]), op.forward(inputs))
    boxes = [Box(x - 0.5, x + 0.5) for x in inputs]
    found = there.interval([on(gpu, box) for box in boxes], 2.0**-53)
    expected = op.interval(boxes, 2.0**-53)
    assert_close(found.lower, expected.lower)
    assert_close(found.upper, expected.upper)
    rows = rng.normal(size=(4, op.output_size))
    if isinstance(op, Affine):
        assert isinstance(there, Affine)
        parts = there.transpose(to_device(rows, gpu))
        for part, other in zip(parts, op.transpose(rows), strict=True):
            assert_close(part, other)
    else:
        assert isinstance(op, Elementwise)
        assert isinstance(there, Elementwise)
        lines, others = there.relax(on(gpu, boxes[0])), op.relax(boxes[0])
        assert_close(lines.upper_slope, others.upper_slope)
        assert_close(lines.lower_offset, others.lower_offset)


@pytest.fixture
def graph(rng: np.random.Generator) -> Graph:
    return relu_network(rng, [4, 16, 16, 3])


@pytest.mark.parametrize("per_input", [0, 1000], ids=["forms", "no forms"])
def test_bounds(
    graph: Graph,
    per_input: int,
    gpu: Device,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forward, "NEURONS_PER_INPUT", per_input)
    center = rng.normal(size=(5, 4))
    box = Box(center - 0.3, center + 0.3)
    there = graph.to(gpu)
    for name, found in interval_bounds(there, on(gpu, box)).items():
        assert_close(found.lower, interval_bounds(graph, box)[name].lower)
    here, other = crown_bounds(graph, box), crown_bounds(there, on(gpu, box))
    rows = rng.normal(size=(5, 2, 3))
    expected = pull_back(here.relaxation, graph.output, rows).lower
    assert_close(pull_back(other.relaxation, graph.output, to_device(rows, gpu)).lower, expected)


@pytest.mark.parametrize("seed", range(4))
def test_bounds_from_patches(seed: int, gpu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patches, "_WORTHWHILE", np.inf)
    graph = residual_network(seed)
    there = graph.to(gpu)
    rng = np.random.default_rng(seed)
    center = rng.normal(size=(2, graph.input_size))
    box = Box(center - 0.1, center + 0.1)
    here, other = crown_bounds(graph, box).boxes, crown_bounds(there, on(gpu, box)).boxes
    for name, bounds in here.items():
        assert_close(other[name].lower, bounds.lower)
        assert_close(other[name].upper, bounds.upper)
    single = {name: Box(b.lower[:1], b.upper[:1]) for name, b in other.items()}
    tight = tighten(there, single, steps=2)[graph.output]
    assert (tight.lower >= single[graph.output].lower).all()


def test_optimised_bounds(graph: Graph, gpu: Device, rng: np.random.Generator) -> None:
    box = Box(-0.5 * np.ones((1, 4)), 0.5 * np.ones((1, 4)))
    rows, offset = rng.normal(size=(1, 2, 3)), rng.normal(size=(1, 2)) - 50.0
    lowest = []
    for device in (Device(), gpu):
        network = graph.to(device)
        boxes = crown_bounds(network, on(device, box)).boxes
        arrays = [to_device(a, device) for a in (rows, offset, np.ones((1, 2), dtype=bool))]
        forms = Forms(arrays[0], None, *arrays[1:])
        start = Start.at_form(to_device(np.zeros(1, dtype=int), device), forms)
        free = FreeRelaxation.build(network, boxes)
        result = optimise(free, forms, boxes[network.output], start, steps=5)
        lowest.append(to_host(result.lower))
    np.testing.assert_allclose(*lowest, rtol=1e-6)


@pytest.mark.parametrize("splitting", ["input", "neuron"])
@pytest.mark.parametrize("shift", [-1.0, 1.0])
def test_search(graph: Graph, gpu: Device, splitting: str, shift: float) -> None:
    points = np.random.default_rng(1).uniform(-0.2, 0.2, size=(2000, 4))
    lowest = float(graph.forward(points)[:, 0].min())
    rows: list[strategies.Row] = [([1.0, 0.0, 0.0], shift - lowest)]
    problem = make_problem([([-0.2] * 4, [0.2] * 4)], [(0, rows)])
    run = Solver(
        graph.to(gpu),
        confirm_exactly(graph, problem),
        Settings(splitting=splitting),  # type: ignore[arg-type]
        gpu,
        Deadline(60.0),
        np.random.default_rng(0),
        np.float64,
    )
    answer = run.solve(problem)
    assert isinstance(answer, Counterexample) if shift < 0 else answer is None
