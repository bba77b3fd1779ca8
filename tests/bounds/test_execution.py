"""Bounds for executions hold for binary32 sums in any order, and for the reals as well."""

from __future__ import annotations

from fractions import Fraction
from unittest import mock

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from onnxcert.arrays import Array
from onnxcert.bounds import forward
from onnxcert.bounds.crown import crown_bounds, output_bounds
from onnxcert.bounds.intermediate import tighten
from onnxcert.bounds.interval import interval_bounds
from onnxcert.bounds.optimised import Forms, FreeRelaxation, Splits, Start, optimise
from onnxcert.frontend.onnx import load_model
from onnxcert.graph import Graph, Node
from onnxcert.ops import Concat, Linear, Relu, Scale, Select, Sum, Tanh
from onnxcert.sets import Box
from tests import strategies
from tests.bounds.executions import BINARY32, Execution, with_float32_weights
from tests.frontend.onnx_models import model_of
from tests.oracles import dot, exact, exact_values

HUGE = 2.0**60


@st.composite
def executed(draw: st.DrawFn) -> tuple[Graph, Box, list[Array]]:
    """A network with float32 weights, a box with float32 ends, and float32 points in it."""
    graph = with_float32_weights(draw(strategies.graphs(smooth=draw(st.booleans()))))
    box = draw(strategies.boxes(graph.input_size, batch=1, largest=1e6))
    sides = [side.astype(np.float32).astype(float) for side in (box.lower, box.upper)]
    box = Box(*sides)
    points = draw(strategies.points_in(box, count=3))
    points = np.clip(points.astype(np.float32).astype(float), box.lower, box.upper)
    return graph, box, [point[0] for point in points]


def assert_holds(boxes: dict[str, Box], values: dict[str, Array]) -> None:
    """An overflow is only allowed where there is no bound."""
    for name, box in boxes.items():
        value = values[name]
        inside = (box.lower[0] <= value) & (value <= box.upper[0])
        unbounded = np.isinf(box.lower[0]) | np.isinf(box.upper[0])
        assert (inside | (np.isnan(value) & unbounded)).all(), name


@given(case=executed(), seed=strategies.seeds, steps=st.sampled_from([0, 3]), forms=st.booleans())
def test_bounds_hold_for_executions_and_for_the_reals(
    case: tuple[Graph, Box, list[Array]], seed: int, steps: int, forms: bool
) -> None:
    graph, box, points = case
    rng = np.random.default_rng(seed)
    per_input = 0 if forms else 1000
    with np.errstate(all="ignore"), mock.patch.object(forward, "NEURONS_PER_INPUT", per_input):
        intervals = interval_bounds(graph, box, execution_unit=BINARY32)
        bounds = crown_bounds(graph, box, execution_unit=BINARY32)
        tight = tighten(graph, bounds.boxes, steps=steps, execution_unit=BINARY32)
        output = output_bounds(graph, bounds)
    assert not bounds.empty.any()
    for x in points:
        truth = exact_values(graph, x)
        for _ in range(3):
            values = Execution(rng).run(graph, x)
            for boxes in (intervals, bounds.boxes, tight, {graph.output: output}):
                assert_holds(boxes, values)
        for name, found in tight.items():
            for low, value, high in zip(found.lower[0], truth[name], found.upper[0], strict=True):
                assert np.isneginf(low) or Fraction(low) <= value
                assert np.isposinf(high) or value <= Fraction(high)


@given(case=executed(), seed=strategies.seeds, steps=st.sampled_from([0, 4]))
def test_forms_over_executed_outputs(
    case: tuple[Graph, Box, list[Array]], seed: int, steps: int
) -> None:
    """With splits that the executed pre-activations obey; forms are evaluated exactly."""
    graph, box, points = case
    rng = np.random.default_rng(seed)
    values = Execution(rng).run(graph, points[0])
    if not all(np.isfinite(value).all() for value in values.values()):
        return
    with np.errstate(all="ignore"):
        boxes = crown_bounds(graph, box, execution_unit=BINARY32).boxes
        signs, split_points, cut = {}, {}, {}
        for name in graph.pre_activations:
            value, root = values[name][None], boxes[name]
            point = np.where(rng.random(value.shape) < 0.6, 0.0, value)
            chosen = (point > root.lower) & (point < root.upper) & (rng.random(value.shape) < 0.6)
            sign = np.where(value >= point, 1.0, -1.0) * chosen
            cut[name] = Box(
                np.where(sign > 0, point, root.lower), np.where(sign < 0, point, root.upper)
            )
            signs[name], split_points[name] = sign, np.where(chosen, point, 0.0)
        free = FreeRelaxation.build(graph, boxes, BINARY32).with_boxes(cut)
        rows = rng.normal(size=(1, 2, graph.output_size))
        forms = Forms(rows, None, rng.normal(size=(1, 2)), np.ones((1, 2), dtype=bool))
        start = Start(
            {name: rng.random((1, value.shape[1])) for name, value in free.default.items()},
            {name: sign * rng.uniform(0.0, 2.0, size=sign.shape) for name, sign in signs.items()},
            np.array([[1.0, rng.random()]]),
            np.zeros(1, dtype=int),
        )
        splits = Splits(signs, split_points)
        result = optimise(free, forms, boxes[graph.output], start, splits=splits, steps=steps)
    total = sum(
        (
            Fraction(float(weight)) * (dot(row, exact(values[graph.output])) + Fraction(offset))
            for weight, row, offset in zip(
                result.best.weights[0], rows[0], forms.offset[0], strict=True
            )
        ),
        start=Fraction(0),
    )
    claim = result.lower[0]
    assert claim == -np.inf or Fraction(claim) <= total, float(Fraction(claim) - total)


def test_large_terms_that_cancel_have_every_value_that_an_order_gives() -> None:
    """y = relu(2^60) - relu(x + 2) - relu(2^60) + 0.5 is -0.5, 0, 0.5 or worse in binary32."""
    nodes = (
        Node("z", Linear(np.array([[0.0, 1.0, 0.0]]), np.array([HUGE, 2.0, HUGE])), ("x",)),
        Node("h", Relu(3), ("z",)),
        Node("y", Linear(np.array([[1.0], [-1.0], [-1.0]]), np.array([0.5])), ("h",)),
    )
    graph = Graph("x", 1, nodes, "y")
    box = Box(np.array([[-1.0]]), np.array([[-0.9]]))
    bounds = crown_bounds(graph, box, execution_unit=BINARY32)
    found = output_bounds(graph, bounds)
    seen = {
        Execution(np.random.default_rng(seed)).run(graph, np.array([-1.0]))["y"][0]
        for seed in range(60)
    }
    assert len(seen) > 2
    assert found.lower[0, 0] <= min(seen)
    assert max(seen) <= found.upper[0, 0]


@pytest.mark.parametrize("between", ["nothing", "select", "concat"])
def test_a_bias_may_be_where_the_sum_begins(between: str) -> None:
    """2^25 + 1 + 1 + ... stays 2^25, forty times, though the bias is a node of its own."""
    count = 40
    nodes = [Node("p", Linear(np.ones((count, 1))), ("x",))]
    size, name = 1, "p"
    if between != "nothing":
        nodes.append(Node("s", Select.of(np.array([0]), 1), ("p",)))
        name = "s"
    if between == "concat":
        nodes.append(Node("c", Concat((1, 1)), ("p", "s")))
        size, name = 2, "c"
    nodes.append(Node("y", Scale(size, None, np.full(size, 2.0**25)), (name,)))
    graph = Graph("x", count, tuple(nodes), "y")
    point = np.ones((1, count))
    found = interval_bounds(graph, Box(point, point), execution_unit=BINARY32)["y"]
    assert found.lower[0, 0] <= 2.0**25
    assert found.upper[0, 0] >= 2.0**25 + count


def test_an_offset_that_is_a_difference_is_charged_for_its_parts() -> None:
    """(x - mean) f + bias with bias = mean f: an executor may compute x f + (bias - mean f)."""
    mean, variance = np.float32(3.0e4), np.float32(0.37)
    constants = {
        "s": np.array([1.3], np.float32),
        "b": np.array([np.float32(1.3) * mean / np.sqrt(variance + 1e-5)], np.float32),
        "m": np.array([mean]),
        "v": np.array([variance]),
    }
    node = helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"])
    model = load_model(model_of([node], {"x": (1, 1, 1, 1)}, ["y"], constants))
    point = np.array([[0.25]])
    box = interval_bounds(model.lowered, Box(point, point), execution_unit=BINARY32)["y"]
    s, b, m, v = (constants[name][0] for name in "sbmv")
    root = np.sqrt(v + np.float32(1e-5))
    x = np.float32(0.25)
    for value in (
        x * (s / root) + (b - m * (s / root)),
        (x - m) * (s / root) + b,
        (x - m) / root * s + b,
        x * (s * (np.float32(1.0) / root)) + (b - m * (s * (np.float32(1.0) / root))),
    ):
        assert value.dtype == np.float32
        assert box.lower[0, 0] <= value <= box.upper[0, 0]


def test_what_is_flushed_to_zero() -> None:
    """A product of 2^-200 that is then enlarged, and an operand of 2^-140 with a large weight."""
    nodes = (
        Node("p", Scale(2, np.array([2.0**-100, 1.0])), ("x",)),
        Node("y", Linear(np.array([[2.0**100, 0.0], [0.0, 1.0]])), ("p",)),
        Node("q", Linear(np.array([[0.0], [2.0**60]])), ("x",)),
    )
    graph = Graph("x", 2, nodes, "y")
    point = np.array([[2.0**-100, 2.0**-140]])
    found = interval_bounds(graph, Box(point, point), execution_unit=BINARY32)
    for name, truth in (("y", [2.0**-100, 2.0**-140]), ("q", [2.0**-80])):
        assert (found[name].lower[0] <= 0.0).all()
        assert (found[name].upper[0] >= truth).all()


def test_what_might_overflow_has_no_bounds() -> None:
    """x + 2^127 + 2^127 - 2^127 - 2^127 is x, unless the first three are added first."""
    big = 2.0**127
    nodes = (Node("y", Linear(np.array([[1.0], [big], [big], [-big], [-big]])), ("x",)),)
    graph = Graph("x", 5, nodes, "y")
    point = np.ones((1, 5))
    found = interval_bounds(graph, Box(point, point), execution_unit=BINARY32)["y"]
    assert np.isneginf(found.lower[0, 0])
    assert np.isposinf(found.upper[0, 0])
    exact_box = interval_bounds(graph, Box(point, point))["y"]
    assert np.isfinite(exact_box.lower[0, 0])


def test_comparisons_and_movements_are_exact() -> None:
    nodes = [
        helper.make_node("MaxPool", ["x"], ["p"], kernel_shape=[2, 2]),
        helper.make_node("Transpose", ["p"], ["t"], perm=[0, 1, 3, 2]),
        helper.make_node("Neg", ["t"], ["n"]),
        helper.make_node("Clip", ["n", "low", "high"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Min", ["r", "c"], ["y"]),
    ]
    constants = {"low": np.array(-0.3, np.float32), "high": np.array(0.7, np.float32)}
    graph = load_model(model_of(nodes, {"x": (1, 1, 3, 3)}, ["y"], constants)).lowered
    assert all(
        graph.roundings[node.name] == 0
        for node in graph.nodes
        if isinstance(node.op, (Linear, Scale, Sum))
    )


def test_sums_of_several_operands_count_all_additions() -> None:
    constants = {"a": np.ones(3, np.float32), "b": np.ones(3, np.float32)}
    node = helper.make_node("Sum", ["x", "a", "z", "b"], ["y"])
    graph = load_model(model_of([node], {"x": (3,), "z": (3,)}, ["y"], constants)).lowered
    counts = [graph.roundings[n.name] for n in graph.nodes if isinstance(n.op, (Sum, Scale))]
    assert counts == [3, 3, 3]


def network(rng: np.random.Generator) -> tuple[object, tuple[int, ...]]:
    """Convolution, normalisation, residual sum, products with separate biases, Gemm, tanh."""
    shape = (1, 3, 8, 8)
    f = lambda *size: rng.normal(size=size).astype(np.float32)  # noqa: E731
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c1", "s", "b", "m", "v"], ["n1"]),
        helper.make_node("Relu", ["n1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c2", "x"], ["a"]),
        helper.make_node("Relu", ["a"], ["r2"]),
        helper.make_node("Flatten", ["r2"], ["f"]),
        helper.make_node("MatMul", ["f", "w3"], ["p"]),
        helper.make_node("Add", ["p", "b3"], ["q"]),
        helper.make_node("Tanh", ["q"], ["t"]),
        helper.make_node("Gemm", ["t", "w4", "b4"], ["y"], alpha=0.7, beta=1.3),
    ]
    constants = {
        "w1": f(4, 3, 3, 3),
        "s": f(4),
        "b": f(4),
        "m": 5.0 * f(4),
        "v": abs(f(4)),
        "w2": f(3, 4, 3, 3) / 6,
        "b2": f(3),
        "w3": f(192, 10) / 14,
        "b3": f(10),
        "w4": f(10, 4),
        "b4": f(4),
    }
    return model_of(nodes, {"x": shape}, ["y", "q"], constants), shape


def test_onnxruntime_with_and_without_fusion_stays_inside(rng: np.random.Generator) -> None:
    proto, shape = network(rng)
    model = load_model(proto)
    levels = onnxruntime.GraphOptimizationLevel
    for level in (levels.ORT_DISABLE_ALL, levels.ORT_ENABLE_ALL):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level
        session = onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        for _ in range(5):
            x = rng.normal(size=shape).astype(np.float32)
            point = x.reshape(1, -1).astype(float)
            found = np.concatenate([part.ravel() for part in session.run(None, {"x": x})])
            box = interval_bounds(model.lowered, Box(point, point), execution_unit=BINARY32)
            inside = box[model.lowered.output]
            assert (inside.lower[0] <= found).all()
            assert (found <= inside.upper[0]).all()
            # Far wider than any one execution, but still of use.
            assert (inside.upper - inside.lower).max() < 1e-2


def test_no_executions_cost_nothing(rng: np.random.Generator) -> None:
    graph = strategies.relu_network(rng, [3, 8, 8, 2])
    box = Box(-np.ones((1, 3)), np.ones((1, 3)))
    plain, real = crown_bounds(graph, box), crown_bounds(graph, box, execution_unit=0.0)
    single = crown_bounds(graph, box, execution_unit=BINARY32)
    for name, found in plain.boxes.items():
        np.testing.assert_array_equal(found.lower, real.boxes[name].lower)
        assert (single.boxes[name].lower <= found.lower).all()
        width = (single.boxes[name].upper - single.boxes[name].lower).max()
        assert width <= 1.001 * (found.upper - found.lower).max()


def test_smooth_curves_are_off_in_absolute_terms() -> None:
    """tanh(1e-6) may come out as 1e-6 and a unit of one more."""
    graph = Graph("x", 1, (Node("y", Tanh(1), ("x",)),), "y")
    point = np.array([[1e-6]])
    found = interval_bounds(graph, Box(point, point), execution_unit=BINARY32)["y"]
    assert found.upper[0, 0] >= 1e-6 + 16 * BINARY32
    bounds = crown_bounds(graph, Box(point, point), execution_unit=BINARY32)
    assert output_bounds(graph, bounds).upper[0, 0] >= 1e-6 + 16 * BINARY32
