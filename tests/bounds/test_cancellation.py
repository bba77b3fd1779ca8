"""Networks whose rounding errors are as large as their values: no bound may believe the floats.

Each was built against one place where a verifier that ignores rounding, or forgets part of it,
claims what is false (compare Jia and Rinard, *Exploiting Verified Neural Networks via Floating
Point Numerical Error*, 2021).
"""

from __future__ import annotations

from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest

from onnxcert.bounds.backward import pull_back
from onnxcert.bounds.crown import crown_bounds
from onnxcert.bounds.interval import interval_bounds
from onnxcert.bounds.optimised import Forms, FreeRelaxation, Start, optimise
from onnxcert.graph import Graph, Node
from onnxcert.ops import Concat, Linear, Relu, Scale, Select, Tanh
from onnxcert.sets import Box
from tests.oracles import exact_values

HUGE = 2.0**60


def box(lower: list[float], upper: list[float]) -> Box:
    return Box(np.array([lower]), np.array([upper]))


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_large_terms_that_cancel(order: tuple[int, ...]) -> None:
    """y = relu(2^60) - relu(x + 2) - relu(2^60) + 0.5 is at most -0.5 on [-1, -0.9]."""
    first = Linear(np.array([[0.0, 1.0, 0.0]])[:, order], np.array([HUGE, 2.0, HUGE])[[*order]])
    second = Linear(np.array([[1.0], [-1.0], [-1.0]])[[*order]], np.array([0.5]))
    nodes = (
        Node("z", first, ("x",)),
        Node("h", Relu(3), ("z",)),
        Node("y", second, ("h",)),
    )
    graph = Graph("x", 1, nodes, "y")
    inputs = box([-1.0], [-0.9])
    assert interval_bounds(graph, inputs)["y"].lower[0, 0] <= -0.6
    bounds = crown_bounds(graph, inputs)
    for sign, truth in ((1.0, -0.6), (-1.0, 0.5)):
        lower = pull_back(bounds.relaxation, "y", np.array([[[sign]]])).lower[0, 0]
        assert lower <= truth


@pytest.mark.parametrize("row", list(permutations([1.0, HUGE, -HUGE])))
@pytest.mark.parametrize("through", ["input", "select"])
def test_rows_that_cancel_where_a_value_is_read_three_times(
    row: tuple[float, ...], through: str
) -> None:
    """The form is x, in [-1, -0.9]; adding up its three parts at x loses the one that counts."""
    copies = [Node(f"s{i}", Select.of(np.array([0]), 1), ("x",)) for i in range(3)]
    sources = tuple(node.name for node in copies) if through == "select" else ("x",) * 3
    nodes = (*(copies if through == "select" else ()), Node("y", Concat((1, 1, 1)), sources))
    graph = Graph("x", 1, nodes, "y")
    bounds = crown_bounds(graph, box([-1.0], [-0.9]))
    assert pull_back(bounds.relaxation, "y", np.array([[row]])).lower[0, 0] <= -1.0


def test_slopes_far_steeper_than_the_chord(rng: np.random.Generator) -> None:
    """Free lines of slope one on neurons whose chord is nearly flat.

    Three rows of z cancel in exact arithmetic up to one rounding, which counts 2^27-fold because
    the input is that large. What covers it must grow with the slope in use, not with the chord.
    """
    center, radius = 2.0**27, 2.0**-20
    inputs = box([center - radius, -1.0], [center + radius, 1.0])
    forms = Forms(np.ones((1, 1, 1)), None, np.zeros((1, 1)), np.ones((1, 1), dtype=bool))
    start = Start({"h": np.ones((1, 4))}, {}, np.ones((1, 1)), np.zeros(1, dtype=int))
    for _ in range(200):
        slope = rng.uniform(0.1, 1.0, size=2)
        slope = np.append(slope, -slope.sum())
        weight = np.array([[*slope, 0.0], [1.0, 1.0, 1.0, -3.0]])
        offset = np.append(-slope * center - 1.0 + rng.integers(0, 8, size=3) * 2.0**-28, 4.0)
        nodes = (
            Node("z", Linear(weight, offset), ("x",)),
            Node("h", Relu(4), ("z",)),
            Node("y", Linear(np.ones((4, 1))), ("h",)),
        )
        graph = Graph("x", 2, nodes, "y")
        boxes = crown_bounds(graph, inputs).boxes
        free = FreeRelaxation.build(graph, boxes)
        claim = Fraction(optimise(free, forms, boxes["y"], start, steps=0).lower[0])
        for x in (center - radius, center, center + radius):
            assert claim <= exact_values(graph, [x, 1.0])["y"][0]


@pytest.mark.parametrize("width", [0.0, 1e-15, 1e-6, 1.0])
@pytest.mark.parametrize("center", [-4.0, -0.5, 0.1, 3.0])
def test_lines_whose_offsets_are_large_and_gap_is_small(center: float, width: float) -> None:
    """Slack charged to whole offsets instead of to their errors shifts lines across the curve."""
    graph = Graph("x", 1, (Node("y", Tanh(1), ("x",)),), "y")
    inputs = box([center - width], [center + width])
    relaxation = crown_bounds(graph, inputs).relaxation
    for sign in (1, -1):
        lower = pull_back(relaxation, "y", np.array([[[float(sign)]]])).lower[0, 0]
        for x in (center - width, center, center + width):
            assert Fraction(lower) <= sign * exact_values(graph, [x])["y"][0]


def test_rounding_does_not_pile_up_in_the_constant() -> None:
    """A narrow chain of 120 layers, each adding just less than half a unit in the last place."""
    unit = 2.0**-53
    nodes, value = [], "x"
    for number in range(120):
        nodes.append(Node(f"v{number}", Scale(1, None, np.array([0.99 * unit])), (value,)))
        value = f"v{number}"
    nodes.append(Node("y", Scale(1, np.array([-1.0]), np.array([1.0 + 2.0**-40])), (value,)))
    graph = Graph("x", 1, tuple(nodes), "y")
    bounds = crown_bounds(graph, box([0.0], [0.0]))
    lower = pull_back(bounds.relaxation, "y", np.ones((1, 1, 1))).lower[0, 0]
    assert Fraction(lower) <= exact_values(graph, [0.0])["y"][0]


def test_overflow_is_no_bound() -> None:
    """Weights whose products leave float64: infinities cancel to nothing, and prove nothing."""
    first = Linear(np.array([[1e300, -1e300]]), np.array([1e308, 1e308]))
    second = Linear(np.array([[1e300, -1e300], [-1e300, 1e300]]))
    nodes = (
        Node("z", first, ("x",)),
        Node("h", Relu(2), ("z",)),
        Node("w", second, ("h",)),
        Node("r", Relu(2), ("w",)),
        Node("y", Linear(np.array([[1.0], [1.0]])), ("r",)),
    )
    graph = Graph("x", 1, nodes, "y")
    with np.errstate(over="ignore", invalid="ignore"):
        bounds = crown_bounds(graph, box([-1e10], [1e10]))
        upper = -pull_back(bounds.relaxation, "y", np.array([[[-1.0]]])).lower[0, 0]
    assert np.isposinf(bounds.boxes["w"].upper).all()
    assert np.isposinf(upper)
