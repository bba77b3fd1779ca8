"""Splitting inputs: those that the specification fixes to a decimal are none of them."""

from __future__ import annotations

import numpy as np

from onnxcert.arrays import Device
from onnxcert.bounds.ascent import Raised
from onnxcert.bounds.crown import crown_bounds
from onnxcert.graph import Graph, Node
from onnxcert.ops import Linear, Relu
from onnxcert.proof.trace import InputTrees
from onnxcert.search.auto import choose_plan
from onnxcert.search.cases import Cases
from onnxcert.search.input_split import InputSplit
from onnxcert.search.steepness import steepness
from onnxcert.settings import Settings
from onnxcert.spec import Problem
from tests.strategies import make_problem

DECIMALS = 60


def fixed(*vary: tuple[float, float]) -> Problem:
    """``y <= 0`` where some inputs vary, and others are decimals between two floats."""
    low = [a for a, _ in vary] + [1.0 / 3.0] * DECIMALS
    high = [b for _, b in vary] + [float(np.nextafter(1.0 / 3.0, 1.0))] * DECIMALS
    return make_problem([(low, high)], [(0, [([1.0], 0.0)])])


def flat_and_steep() -> Graph:
    """Of the first input little is left, of the second all, and the others cancel."""
    weight = np.zeros((2 + DECIMALS, 2))
    weight[0], weight[1] = 1e-3, [3.0, -3.0]
    weight[2::2], weight[3::2] = 5.0, -5.0
    nodes = (
        Node("z", Linear(weight, np.array([-1.5, 1.5])), ("x",)),
        Node("h", Relu(2), ("z",)),
        Node("y", Linear(np.array([[1.0], [1.0]]), np.array([-1e-3])), ("h",)),
    )
    return Graph("x", 2 + DECIMALS, nodes, "y")


def test_decimals_do_not_make_inputs_wait() -> None:
    """Both inputs are less than a 32nd of the whole; decimals are all that nothing cuts."""
    graph, problem = flat_and_steep(), fixed((0.0, 1.0), (0.0, 1.0))
    cases = Cases.build(problem, Device())
    split = InputSplit(graph, cases, np.array([0]), InputTrees(problem))
    batch = split.roots()
    batch["lower"][:, :2], batch["upper"][:, :2] = 0.495, [0.495 + 1 / 40, 0.495 + 1 / 64]
    bounded = split.bound(batch, lambda: False)
    assert not bounded.closed.any()
    children = split.split(batch, bounded).batch
    assert children is not None
    first, second = children["lower"]
    assert np.flatnonzero(first != second).tolist() == [1]


def test_decimals_are_no_inputs_to_split() -> None:
    graph = flat_and_steep()
    plan = choose_plan(graph, fixed((0.0, 1.0)), Settings())
    assert (plan.splitting, plan.free_inputs) == ("input", 1)
    wide = [(0.0, 1.0)] * 25
    assert choose_plan(graph, fixed(*wide), Settings()).splitting == "neuron"


def test_decimals_leave_derivatives() -> None:
    """More inputs have an interval than derivatives are taken by; few of them vary."""
    graph, problem = flat_and_steep(), fixed((0.0, 1.0), (0.0, 1.0))
    bounds = crown_bounds(graph, problem.inputs)
    split = InputSplit(graph, Cases.build(problem, Device()), np.array([0]), InputTrees(problem))
    vary = split._varying(problem.inputs)
    assert vary.tolist() == [0, 1]
    raised = Raised(np.zeros(1), np.zeros((1, graph.input_size)), {"h": np.ones((1, 2))})
    found = steepness(bounds.relaxation, bounds.boxes, np.array([0]), raised, vary)
    assert found[0, 1] > found[0, 0] > 0
    assert not found[0, 2:].any()
