"""Splitting inputs: those that the specification fixes to a decimal are none of them."""

from __future__ import annotations

import numpy as np

from onnxcert.arrays import Device
from onnxcert.bounds.ascent import Raised
from onnxcert.bounds.crown import crown_bounds
from onnxcert.graph import Graph, Node
from onnxcert.ops import Linear, Relu
from onnxcert.proof.trace import Cut, InputTrees
from onnxcert.search.auto import choose_plan
from onnxcert.search.cases import Cases
from onnxcert.search.frontier import Batch
from onnxcert.search.input_split import InputSplit, cuts_left, gain_of_cuts
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


def test_parts_of_a_box_that_is_cut_several_times_cover_it() -> None:
    """Each cut is noted, and where bounds have risen by a third of what is missing there are three.

    A box whose bounds did not rise, or of which nothing is known, is cut once.
    """
    graph, problem = flat_and_steep(), fixed((0.0, 1.0), (0.0, 1.0))
    trees = InputTrees(problem)
    split = InputSplit(graph, Cases.build(problem, Device()), np.array([0]), trees, most_cuts=3)
    root = split.roots()
    halves = _parts(split, root)
    assert len(halves["node"]) == 2
    bounded = split.bound(root, lambda: False)
    risen = root | {"above": 1.3 * bounded.score}
    parts = _parts(split, risen)
    assert len(parts["node"]) == 8
    assert (parts["cuts"] == 3).all()
    areas = [(some["upper"] - some["lower"])[:, :2].prod(axis=1) for some in (halves, parts)]
    assert areas[1].sum() == areas[0].sum() > 0
    inner = np.concatenate([step.cut[step.how == Cut.AT_ONCE] for step in trees.steps])
    assert len(inner) == 6
    assert not np.isin(inner, parts["node"]).any()
    assert len(_parts(split, root | {"above": 0.7 * bounded.score})["node"]) == 2


def _parts(split: InputSplit, batch: Batch) -> Batch:
    children = split.split(batch, split.bound(batch, lambda: False)).batch
    assert children is not None
    return children


def test_cuts_that_are_left() -> None:
    boxes = {
        "above": np.array([-4.0, -np.inf, -np.inf, -1.0]),
        "cuts": np.array([2, 1, 1, 1]),
        "gain": np.array([9.0, 0.25, 0.0, 9.0]),
    }
    score = np.array([-3.0, -1.0, -1.0, -2.0])
    gain = gain_of_cuts(boxes, score)
    assert gain.tolist() == [0.5, 0.25, 0.0, -1.0]
    assert cuts_left(score, gain).tolist() == [6.0, 4.0, 1.0, 1.0]
    assert cuts_left(np.array([-np.inf]), np.array([1.0])).tolist() == [1.0]
