"""Bounds from patches are those of whole images up to rounding, and contain all values."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcert.arrays import UNIT_ROUNDOFF_FLOAT32, Window
from onnxcert.bounds import patches
from onnxcert.bounds.crown import crown_bounds
from onnxcert.bounds.intermediate import Refinement, tighten
from onnxcert.bounds.patches import find_patch
from onnxcert.graph import Graph, Node
from onnxcert.ops import Convolution, LeakyRelu, Linear, Relu, Scale, Select, Sum, Tanh
from onnxcert.sets import Box
from tests import strategies
from tests.bounds.test_intermediate import repeated
from tests.oracles import exact_values

ANY = np.zeros(0)
"""An array of the host."""


class Images:
    """A convolutional network under construction."""

    def __init__(self, rng: np.random.Generator, image: tuple[int, int, int]) -> None:
        self.rng = rng
        self.nodes: list[Node] = []
        self.size = int(np.prod(image))
        self.shapes = {"x": image}

    def add(self, op: Convolution | Relu | Scale | Sum, *inputs: str) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(Node(name, op, inputs))
        shaped = isinstance(op, Convolution)
        self.shapes[name] = op.output_shape if shaped else self.shapes[inputs[0]]
        return name

    def convolve(
        self,
        source: str,
        channels: int,
        kernel: tuple[int, int] = (3, 3),
        *,
        groups: int = 1,
        **geometry: tuple[int, ...],
    ) -> str:
        image = self.shapes[source]
        window = Window(image, kernel, **geometry)  # type: ignore[arg-type]
        fan_in = image[0] // groups * kernel[0] * kernel[1]
        weight = self.rng.normal(size=(groups, channels // groups, fan_in)) / fan_in**0.5
        offset = self.rng.normal(size=channels) if self.rng.random() < 0.7 else None
        return self.add(Convolution(weight, window, offset), source)

    def curve(self, source: str) -> str:
        size = int(np.prod(self.shapes[source]))
        slopes = self.rng.choice([0.0, 0.1, 1.5], size=size)
        return self.add(Relu(size) if self.rng.random() < 0.6 else LeakyRelu(size, slopes), source)

    def scale(self, source: str) -> str:
        size = int(np.prod(self.shapes[source]))
        return self.add(Scale(size, self.rng.normal(size=size), self.rng.normal(size=size)), source)

    def finish(self, source: str) -> Graph:
        size = int(np.prod(self.shapes[source]))
        last = Node("y", Linear(self.rng.normal(size=(size, 2))), (source,))
        return Graph("x", self.size, (*self.nodes, last), "y")


def residual_network(seed: int) -> Graph:
    """Strides, dilation, groups, lopsided padding, a shortcut past two layers, perhaps scaled."""
    rng = np.random.default_rng(seed)
    net = Images(rng, (2, 6, 5))
    value = "x"
    if rng.random() < 0.5:
        value = net.scale(value)
    strided = {"stride": (2, 1), "padding": (1, 0, 0, 1)}
    wide = {"dilation": (2, 1), "padding": (2, 1, 2, 1)}
    first = strided if rng.random() < 0.5 else wide
    value = net.curve(net.convolve(value, 4, (3, 2), groups=int(rng.choice([1, 2])), **first))
    inner = net.curve(net.convolve(value, 4, padding=(1, 1, 1, 1), groups=int(rng.choice([1, 4]))))
    inner = net.convolve(inner, 4, padding=(1, 1, 1, 1))
    if rng.random() < 0.5:
        inner = net.scale(inner)
    shortcut = value if rng.random() < 0.5 else net.convolve(value, 4, (1, 1))
    size = int(np.prod(net.shapes[inner]))
    value = net.curve(net.add(Sum(size, (1, int(rng.choice([1, -1])))), inner, shortcut))
    value = net.curve(net.convolve(value, 2, (2, 3), padding=(0, 1, 1, 1), stride=(1, 2)))
    return net.finish(value)


@pytest.fixture(autouse=True)
def _always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patches, "_WORTHWHILE", np.inf)


def without_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patches, "_WORTHWHILE", -1.0)
    monkeypatch.setattr(patches, "_KNOWN", {})


def boxes_of(graph: Graph, seed: int, batch: int = 1) -> Box:
    rng = np.random.default_rng(seed)
    middle = rng.normal(size=(batch, graph.input_size))
    radius = rng.choice([0.0, 0.05, 0.3, 1.0], size=(batch, 1))
    return Box(middle - radius, middle + radius)


def assert_close(found: dict[str, Box], expected: dict[str, Box], share: float = 1e-9) -> None:
    for name, bounds in expected.items():
        slack = share * (1.0 + bounds.magnitude)
        assert (abs(found[name].lower - bounds.lower) <= slack).all(), name
        assert (abs(found[name].upper - bounds.upper) <= slack).all(), name


@given(seed=strategies.seeds, data=st.data())
def test_bounds_contain_exact_values(seed: int, data: st.DataObject) -> None:
    graph = residual_network(seed)
    assert all(find_patch(graph, name, ANY) for name in graph.pre_activations)
    box = boxes_of(graph, seed)
    known = crown_bounds(graph, box).boxes
    found = tighten(graph, known, steps=3) if data.draw(st.booleans()) else known
    for x in data.draw(strategies.points_in(box, count=2)):
        for name, values in exact_values(graph, x[0]).items():
            for low, value, high in zip(
                found[name].lower[0], values, found[name].upper[0], strict=True
            ):
                assert Fraction(low) <= value <= Fraction(high), name


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("unit", [0.0, UNIT_ROUNDOFF_FLOAT32])
def test_the_same_as_whole_images(seed: int, unit: float, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, steps = residual_network(seed), 4
    box = boxes_of(graph, seed, batch=3)
    found = crown_bounds(graph, box, execution_unit=unit).boxes
    single = {name: Box(b.lower[:1], b.upper[:1]) for name, b in found.items()}
    tight = tighten(graph, single, steps=steps, execution_unit=unit)
    without_patches(monkeypatch)
    assert find_patch(graph, next(iter(graph.pre_activations)), ANY) is None
    assert_close(found, crown_bounds(graph, box, execution_unit=unit).boxes)
    # An ascent may turn either way where a derivative cancels but for its rounding.
    assert_close(tight, tighten(graph, single, steps=steps, execution_unit=unit), 1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_a_subproblem_has_the_bounds_that_it_has_alone(seed: int) -> None:
    graph = residual_network(seed)
    box = boxes_of(graph, seed, batch=4)
    found = crown_bounds(graph, box).boxes
    for number in range(4):
        alone = Box(box.lower[number : number + 1], box.upper[number : number + 1])
        part = {n: Box(b.lower[number][None], b.upper[number][None]) for n, b in found.items()}
        assert_close(part, crown_bounds(graph, alone).boxes)


@pytest.mark.parametrize("seed", range(8))
def test_recorded_rows_give_the_same_bounds_again(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also over whole images, where slopes that no patch speaks about are read as well."""
    graph = residual_network(seed)
    known = crown_bounds(graph, boxes_of(graph, seed)).boxes
    found: list[Refinement] = []
    tight = tighten(graph, known, steps=4, record=found.append)
    without_patches(monkeypatch)
    assert_close(repeated(graph, known, found), tight)


def test_patches_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    net = Images(np.random.default_rng(0), (3, 16, 16))
    first = net.convolve("x", 4, (4, 4), stride=(2, 2), padding=(1, 1, 1, 1))
    second = net.convolve(net.curve(first), 4, padding=(1, 1, 1, 1))
    graph = net.finish(net.curve(second))
    patch = find_patch(graph, second, ANY)
    assert patch is not None
    assert patch is find_patch(graph, second, ANY)
    assert patch.graph.sizes[first] == 4 * 3 * 3
    assert patch.graph.input_size == 3 * 8 * 8


def test_what_reads_more_than_windows_has_no_patches() -> None:
    net = Images(np.random.default_rng(0), (2, 6, 6))
    first = net.convolve("x", 2, padding=(1, 1, 1, 1))
    second = net.convolve(first, 2, padding=(1, 1, 1, 1))  # padding is no neuron of the first
    smooth = net.add(Tanh(72), second)  # type: ignore[arg-type]
    graph = net.finish(smooth)
    assert find_patch(graph, first, ANY) is not None
    assert find_patch(graph, second, ANY) is None
    assert find_patch(graph, "y", ANY) is None
    turned = Select.of(np.arange(72)[::-1].copy(), 72)
    conv = Convolution(np.ones((1, 1, 18)), Window((2, 6, 6), (3, 3)))
    nodes = (Node("t", turned, ("x",)), Node("r", Relu(72), ("t",)), Node("c", conv, ("r",)))
    assert find_patch(Graph("x", 72, nodes, "c"), "c", ANY) is None


def test_tangents_are_optimised_over_whole_images(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Images(np.random.default_rng(1), (1, 5, 5))
    smooth = net.add(Tanh(25), net.convolve("x", 1, padding=(1, 1, 1, 1)))  # type: ignore[arg-type]
    graph = net.finish(net.curve(net.convolve(smooth, 2)))
    known = crown_bounds(graph, boxes_of(graph, 1)).boxes
    tight = tighten(graph, known, steps=4)
    without_patches(monkeypatch)
    assert_close(tight, tighten(graph, known, steps=4), 1e-4)
