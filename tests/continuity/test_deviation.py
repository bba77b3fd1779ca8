"""What executions in binary32 may add to the values of a network, over a whole domain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import onnx
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import helper

from onnxcert import lipschitz, load_model
from onnxcert.arrays import UNIT_ROUNDOFF_FLOAT32, Array
from onnxcert.bounds.crown import crown_bounds
from onnxcert.bounds.execution import execution_error
from onnxcert.bounds.interval import interval_bounds
from onnxcert.continuity.deviation import Executions, execution_deviation
from onnxcert.continuity.network import Network, input_box
from onnxcert.continuity.product import Calculus, pair_forms
from onnxcert.graph import Graph, Node
from onnxcert.ops import Affine, Elementwise
from onnxcert.ops.base import gamma
from tests import strategies
from tests.frontend.onnx_models import model_of
from tests.oracles import exact_values

CURVES = ("relu", "relu", "abs", "leaky", "tanh")
LAYERS = (*strategies.LAYERS, "convolution", "maximum")
Replacement = Callable[[Node, Array], Array]


def executed(graph: Graph, x: Array, change: Replacement) -> dict[str, Array]:
    """All values (B, n) where each node's is changed before the next reads it; maxima compare."""
    values = {graph.input: x}
    for node in graph.nodes:
        read = [values[name] for name in node.inputs]
        value = np.maximum(*read[:2]) if node.op.takes_maximum else node.op.forward(read)
        values[node.name] = change(node, value)
    return values


def compared(graph: Graph) -> Graph:
    """No roundings between the operands of maxima and their results, as in graphs of files."""
    makers = {node.name: node for node in graph.nodes}
    gaps = {makers[n.inputs[2]].inputs[0] for n in graph.nodes if n.op.takes_maximum}
    nodes = (replace(node, roundings=0) if node.name in gaps else node for node in graph.nodes)
    return replace(graph, nodes=tuple(nodes))


def sized(executions: Executions, node: Node, values: dict[str, Array]) -> Array:
    """The error that a node's roundings, and those before it, may have at these values."""
    chain, unit = executions.chains[node.name], executions.unit
    read = [abs(values[name]) for name in chain[0].inputs]
    error: Array = np.zeros(1)
    for part in chain:
        assert isinstance(part.op, Affine)
        share = gamma(executions.graph.roundings[part.name], unit)
        products = [share * size for size in read] if part is chain[0] else [error]
        error = part.op.magnitude.apply(products)
        if part.op.bias_parts is not None:
            error = error + share * abs(part.op.bias_parts)
    return error


@given(
    graph=strategies.graphs(layers=LAYERS, curves=CURVES),
    seed=strategies.seeds,
    unit=st.sampled_from([2.0**-10, UNIT_ROUNDOFF_FLOAT32]),
)
def test_values_and_errors_of_executions_are_enclosed(graph: Graph, seed: int, unit: float) -> None:
    """Errors as large as the definition allows, of any sign, at every node."""
    rng = np.random.default_rng(seed)
    graph, box = compared(graph), input_box(graph, -1.0, 1.0)
    with np.errstate(all="ignore"):
        executions = Executions.over(graph, box, unit)
        bound, largest = execution_deviation(graph, box, unit)
        x = rng.uniform(-1.0, 1.0, size=(4, graph.input_size))
        if rng.random() < 0.5:
            x = np.sign(x)
        values: dict[str, Array] = {graph.input: x}
        for node in graph.nodes:
            read = [values[name] for name in node.inputs]
            value = np.maximum(*read[:2]) if node.op.takes_maximum else node.op.forward(read)
            error = executions.errors.get(node.name)
            if error is not None:
                known: Array | None = None
                if isinstance(node.op, Elementwise):
                    known = error.entries
                else:
                    known = sized(executions, node, values)
                    assert (known <= error.entries).all()
                    lengths = np.linalg.norm(known, axis=1)
                    assert (lengths <= error.length * (1.0 + 1e-12)).all()
                known = np.where(np.isfinite(known), known, 0.0)
                value = value + (1.0 - 1e-9) * known * rng.choice([-1, 1], size=value.shape)
            values[node.name] = value
        exact = executed(graph, x, lambda node, value: value)
    # Beside larger numbers the roundings of this test itself are not small.
    assume(all(np.abs(value).max(initial=0.0) < 1e5 for value in exact.values()))
    for name, value in values.items():
        known_box = executions.boxes[name]
        room = 1e-9 * (1.0 + abs(value))
        assert (value >= known_box.lower - room).all()
        assert (value <= known_box.upper + room).all()
        lengths = np.linalg.norm(value, axis=1)
        assert (lengths <= executions.lengths[name] * (1.0 + 1e-9) + 1e-9).all()
        moved = abs(value - exact[name])
        assert (moved <= executions.carried[name] * (1.0 + 1e-9) + 1e-9 * abs(value)).all()
    gap = values[graph.output] - exact[graph.output]
    difference = np.abs(gap[:, :, None] - gap[:, None])
    assert (difference <= bound * (1.0 + 1e-9) + 1e-9 * largest).all()


@given(
    graph=strategies.graphs(layers=LAYERS, curves=(*CURVES, "sigmoid")),
    seed=strategies.seeds,
    unit=st.sampled_from([2.0**-10, UNIT_ROUNDOFF_FLOAT32]),
    far=st.sampled_from([1e-3, 1.0, 100.0]),
)
def test_deviations_outside_of_the_box_grow_with_the_distance(
    graph: Graph, seed: int, unit: float, far: float
) -> None:
    """Errors as large as the values outside allow, of any sign, at every node."""
    rng = np.random.default_rng(seed)
    graph, box = compared(graph), input_box(graph, -1.0, 1.0)
    x = far * rng.normal(size=(4, graph.input_size))
    distance = np.linalg.norm(x - np.clip(x, -1.0, 1.0), axis=1)
    with np.errstate(all="ignore"):
        executions = Executions.over(graph, box, unit)
        bound, growth = executions.deviations(), executions.growth()

        def rounded(node: Node, value: Array) -> Array:
            if node.name not in executions.errors:
                return value
            if isinstance(node.op, Elementwise):
                size = np.maximum(abs(value), 1.0 if node.op.saturates else 0.0)
                error = gamma(node.op.error_terms, unit) * size
            else:
                error = sized(executions, node, values)
            error = (1.0 - 1e-9) * np.where(np.isfinite(error), error, 0.0)
            return value + error * rng.choice([-1, 1], size=value.shape)

        values: dict[str, Array] = {graph.input: x}
        for node in graph.nodes:
            read = [values[name] for name in node.inputs]
            value = np.maximum(*read[:2]) if node.op.takes_maximum else node.op.forward(read)
            values[node.name] = rounded(node, value)
        exact = executed(graph, x, lambda node, value: value)
    assume(all(np.abs(value).max(initial=0.0) < 1e5 for value in exact.values()))
    assume((distance < growth.reach).all())
    found = values[graph.output]
    room = 1e-9 * (1.0 + np.abs(found).max(initial=0.0))
    assert (abs(found) <= executions.largest + distance[:, None] * growth.outputs + room).all()
    gap = found - exact[graph.output]
    difference = np.abs(gap[:, :, None] - gap[:, None])
    assert (difference <= bound + distance[:, None, None] * growth.pairs + room).all()


@pytest.mark.parametrize("far", [0.5, 30.0])
def test_executions_outside_of_the_box_are_within_what_grows(far: float) -> None:
    """Sums in single precision, in three orders, against binary64."""
    rng = np.random.default_rng(7)
    weights = [rng.normal(size=shape).astype(np.float32) for shape in ((50, 40), (40, 3))]
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["z"]),
        helper.make_node("Relu", ["z"], ["h"]),
        helper.make_node("MatMul", ["h", "w1"], ["y"]),
    ]
    model = load_model(
        model_of(nodes, {"x": (1, 50)}, ["y"], {f"w{k}": w for k, w in enumerate(weights)})
    )
    graph = model.lowered
    executions = Executions.over(graph, input_box(graph, 0.0, 1.0), UNIT_ROUNDOFF_FLOAT32)
    bound, growth = executions.deviations(), executions.growth()
    x = (far * rng.normal(size=(20, 50))).astype(np.float32)
    distance = np.linalg.norm(x - np.clip(x, 0.0, 1.0), axis=1)
    exact = graph.forward(x.astype(np.float64))
    for order in (np.arange(50), np.arange(50)[::-1], rng.permutation(50)):
        z = np.zeros((20, 40), np.float32)
        for k in order:
            z = z + x[:, k : k + 1] * weights[0][k]
        y = np.zeros((20, 3), np.float32)
        for k in range(40):
            y = y + np.maximum(z, 0.0)[:, k : k + 1] * weights[1][k]
        gap = y - exact
        difference = np.abs(gap[:, :, None] - gap[:, None])
        assert (difference <= bound + distance[:, None, None] * growth.pairs).all()
    # The bound is of rounding, not of everything.
    assert growth.pairs.max() < 1e-2 * lipschitz(model).pairs.max()


@given(
    graph=strategies.graphs(layers=LAYERS, curves=(*CURVES, "sigmoid")),
    seed=strategies.seeds,
)
def test_constants_behind_a_value(graph: Graph, seed: int) -> None:
    """One value is moved, and all that it makes moves by no more than its constant."""
    rng = np.random.default_rng(seed)
    source = graph.nodes[int(rng.integers(len(graph.nodes)))].name
    with np.errstate(all="ignore"):
        network = Network.read(graph)
        if source in network.between_twins():
            network = replace(network, share=False)
        calculus = Calculus(network).behind(source)
        size = graph.output_size
        pairs = np.stack([calculus.outputs(pair_forms(size, first)) for first in range(size)])
        x = rng.uniform(-1.0, 1.0, size=(6, graph.input_size))
        step = rng.normal(size=(6, graph.sizes[source])) * rng.choice([1e-3, 1.0, 10.0])
        before = executed(graph, x, lambda node, value: value)
        after = executed(
            graph, x, lambda node, value: value + step if node.name == source else value
        )
        reach = np.linalg.norm(step, axis=1)
        largest = np.zeros(len(x))  # values that cancel leave their rounding errors behind
        for name, value in before.items():
            moved = np.linalg.norm(after[name] - value, axis=1)
            largest = np.maximum(largest, np.linalg.norm(value, axis=1))
            room = 1e-9 * (1.0 + np.linalg.norm(value, axis=1)) + 1e-12 * largest
            assert (moved <= calculus.constant(name) * reach * (1.0 + 1e-9) + room).all()
        change = after[graph.output] - before[graph.output]
        room = 1e-9 * (1.0 + np.linalg.norm(before[graph.output], axis=1)) + 1e-12 * largest
        room = room[:, None, None]
        difference = np.abs(change[:, :, None] - change[:, None])
        assert (difference <= pairs * reach[:, None, None] * (1.0 + 1e-9) + room).all()


def sorting(sizes: list[int], seed: int = 0) -> onnx.ModelProto:
    """Dense layers whose matrices have orthogonal rows or columns, with pairs sorted between."""
    rng = np.random.default_rng(seed)
    constants: dict[str, np.ndarray] = {}
    nodes, value = [], "x"
    for number, (before, after) in enumerate(pairwise(sizes)):
        square = np.linalg.qr(rng.normal(size=(max(before, after),) * 2))[0]
        constants[f"w{number}"] = square[:before, :after].astype(np.float32)
        constants[f"b{number}"] = (0.1 * rng.normal(size=after)).astype(np.float32)
        last = number == len(sizes) - 2
        made = "y" if last else f"z{number}"
        nodes.append(helper.make_node("Gemm", [value, f"w{number}", f"b{number}"], [made]))
        if last:
            break
        constants[f"even{number}"] = np.arange(0, after, 2)
        constants[f"odd{number}"] = np.arange(1, after, 2)
        for part in ("even", "odd"):
            name = f"{part}{number}"
            nodes.append(helper.make_node("Gather", [made, name], [f"{made}{part}"], axis=1))
        halves = [f"{made}even", f"{made}odd"]
        nodes.append(helper.make_node("Min", halves, [f"{made}min"]))
        nodes.append(helper.make_node("Max", halves, [f"{made}max"]))
        value = f"h{number}"
        nodes.append(helper.make_node("Concat", [f"{made}min", f"{made}max"], [value], axis=1))
    return model_of(nodes, {"x": ("N", sizes[0])}, ["y"], constants)


def by_boxes(graph: Graph, low: float, high: float) -> Array:
    """The deviations that follow from boxes alone, each error through absolute values."""
    box, unit = input_box(graph, low, high), UNIT_ROUNDOFF_FLOAT32
    network = Network.read(graph)
    boxes = crown_bounds(graph, box, execution_unit=unit).boxes
    errors: dict[str, Array] = {graph.input: np.zeros((1, graph.input_size))}
    for node in graph.nodes:
        read = [errors[name] for name in node.inputs]
        if node.op.takes_maximum:
            moved = np.maximum(*read[:2])
        elif isinstance(node.op, Affine):
            moved = node.op.magnitude.apply(read)
        else:
            moved = network.slopes[node.name].largest * read[0]
        own = execution_error(graph, node, boxes, unit)
        errors[node.name] = moved if own is None else moved + own
    single: Array = errors[graph.output][0]
    return single[:, None] + single


@pytest.mark.parametrize(
    ("sizes", "share"),
    [([20, 16, 3], 0.6), ([20, 32, 32, 3], 0.3), ([30, 32, 32, 32, 32, 32, 4], 0.05)],
)
def test_depth_does_not_cost_what_boxes_lose(sizes: list[int], share: float) -> None:
    """Never more than boxes alone say, and the less the deeper a network of small constants is."""
    graph = load_model(sorting(sizes)).lowered
    bound, _ = execution_deviation(graph, input_box(graph, 0.0, 1.0), UNIT_ROUNDOFF_FLOAT32)
    apart = ~np.eye(sizes[-1], dtype=bool)
    assert (bound[apart] <= share * by_boxes(graph, 0.0, 1.0)[apart]).all()


def in_order(x: Array, weight: Array, bias: Array, kind: str) -> Array:
    """One dense layer in binary32, its sums in some order."""
    x, weight, bias = (part.astype(np.float32) for part in (x, weight, bias))
    if kind == "library":
        return x @ weight + bias
    order = np.arange(x.shape[1])
    if kind == "backward":
        order = order[::-1]
    elif kind == "largest first":
        order = np.argsort(-np.abs(weight).sum(axis=1))
    total = np.broadcast_to(bias, (len(x), len(bias))) if kind != "bias last" else np.float32(0.0)
    for index in order:
        total = total + x[:, index, None] * weight[index]
    result: Array = total + bias if kind == "bias last" else total
    return result


@pytest.mark.parametrize("kind", ["library", "forward", "backward", "largest first", "bias last"])
def test_executions_in_several_orders(kind: str, rng: np.random.Generator) -> None:
    """Beside the exact values of the same network, in rationals."""
    sizes = [24, 32, 16, 3]
    proto = sorting(sizes)
    graph = load_model(proto).lowered
    bound, largest = execution_deviation(graph, input_box(graph, 0.0, 1.0), UNIT_ROUNDOFF_FLOAT32)
    stored = {value.name: onnx.numpy_helper.to_array(value) for value in proto.graph.initializer}
    x = rng.uniform(size=(3, sizes[0])).astype(np.float32)
    h = x
    for number in range(3):
        h = in_order(h, stored[f"w{number}"], stored[f"b{number}"], kind)
        assert h.dtype == np.float32
        if number < 2:
            h = np.concatenate(
                [np.minimum(h[:, ::2], h[:, 1::2]), np.maximum(h[:, ::2], h[:, 1::2])], 1
            )
    for point, found in zip(x, h, strict=True):
        exact = exact_values(graph, point)[graph.output]
        gaps = [Fraction(float(value)) - real for value, real in zip(found, exact, strict=True)]
        for i, first in enumerate(gaps):
            for j, second in enumerate(gaps):
                assert abs(first - second) <= Fraction(float(bound[i, j])), (i, j)
    assert (np.abs(h) <= largest).all()


def test_onnxruntime_lies_within(rng: np.random.Generator) -> None:
    """Many points and their neighbours at the corners of the domain."""
    import onnxruntime  # noqa: PLC0415

    proto = sorting([40, 64, 32, 5])
    graph = load_model(proto).lowered
    bound, largest = execution_deviation(graph, input_box(graph, 0.0, 1.0), UNIT_ROUNDOFF_FLOAT32)
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x = rng.uniform(size=(400, 40)).astype(np.float32)
    x[::2] = np.round(x[::2])
    found = np.asarray(session.run(None, {"x": x})[0])
    gaps = found.astype(float) - graph.forward(x.astype(float))
    moved = np.abs(gaps[:, :, None] - gaps[:, None])
    assert moved.max() > 0.0
    assert (moved <= bound).all()
    assert (np.abs(found) <= largest).all()


def test_a_bias_is_charged_with_the_products_before_it() -> None:
    graph = load_model(sorting([8, 4, 3])).lowered
    executions = Executions.over(graph, input_box(graph, 0.0, 1.0), UNIT_ROUNDOFF_FLOAT32)
    biased = [node for node in graph.nodes if isinstance(node.op, Affine) and node.op.adds_bias]
    assert {*executions.errors} == {node.name for node in biased}
    for node in biased:
        first, last = executions.chains[node.name]
        assert last is node
        assert first.name == node.inputs[0]
        assert graph.roundings[node.name] > graph.roundings[first.name]


def test_products_that_cancel_round_all_the_same() -> None:
    """1000 h - 1000 h + b is b over the reals, and not in executions."""
    constants = {"w": np.array([[1000], [-1000]], np.float32), "b": np.array([0.5], np.float32)}
    nodes = [
        helper.make_node("Relu", ["x"], ["h"]),
        helper.make_node("Concat", ["h", "h"], ["twice"], axis=1),
        helper.make_node("MatMul", ["twice", "w"], ["z"]),
        helper.make_node("Add", ["z", "b"], ["y"]),
        helper.make_node("Relu", ["y"], ["g"]),
    ]
    graph = load_model(model_of(nodes, {"x": (1, 1)}, ["g"], constants)).lowered
    executions = Executions.over(graph, input_box(graph, 1.0, 1.0), UNIT_ROUNDOFF_FLOAT32)
    values = executed(graph, np.ones((1, 1)), lambda node, value: value)
    assert values["z#2"] == 0.0
    error = sized(executions, executions.network.makers["y"], values)
    assert (error <= executions.errors["y"].entries).all()
    for sign in (-1.0, 1.0):
        for name in "yg":
            value, box = values[name] + sign * error, executions.boxes[name]
            assert (value >= box.lower).all(), name
            assert (value <= box.upper).all(), name
            assert np.linalg.norm(value) <= executions.lengths[name]


@pytest.mark.parametrize("normalised", [False, True])
def test_what_may_overflow_has_no_bound(normalised: bool) -> None:
    """Not even where a normalisation behind it makes it small again."""
    constants = {
        name: np.full(2, value, np.float32)
        for name, value in zip("stmv", (1e-35, 0.5, 0, 1), strict=True)
    }
    constants["w"] = np.full((2, 2), 1e30, np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    if normalised:
        nodes[-1].output[0] = "z"
        nodes.append(helper.make_node("BatchNormalization", ["z", *"stmv"], ["y"]))
    graph = load_model(model_of(nodes, {"x": (1, 2)}, ["y"], constants)).lowered
    executions = Executions.over(graph, input_box(graph, 0.0, 1.0), UNIT_ROUNDOFF_FLOAT32)
    assert len(executions.chains[graph.output]) == 1 + normalised
    bound, _ = execution_deviation(graph, executions.box, UNIT_ROUNDOFF_FLOAT32)
    assert np.isinf(bound).all()


def test_twins_that_round_by_themselves_do_not_share() -> None:
    """relu(a - b) and relu(b - a), each difference rounded on its own."""
    rng = np.random.default_rng(5)
    names = [("a", "wa"), ("b", "wb")]
    nodes = [
        *(helper.make_node("MatMul", ["x", weight], [name]) for name, weight in names),
        helper.make_node("Sub", ["a", "b"], ["s"]),
        helper.make_node("Sub", ["b", "a"], ["t"]),
        helper.make_node("Relu", ["s"], ["r"]),
        helper.make_node("Relu", ["t"], ["q"]),
        helper.make_node("Sub", ["r", "q"], ["y"]),
    ]
    constants = {weight: rng.normal(size=(4, 3)).astype(np.float32) for _, weight in names}
    model = load_model(model_of(nodes, {"x": (1, 4)}, ["y"], constants))
    network = Network.read(model.lowered)
    assert len(network.twins) == 1
    assert {"s", "t"} <= network.between_twins()
    unshared = replace(network, share=False)
    assert not unshared.twins
    box = input_box(model.graph, -1.0, 1.0)
    error, _ = execution_deviation(model.lowered, box, UNIT_ROUNDOFF_FLOAT32)
    boxes = interval_bounds(model.lowered, box, execution_unit=UNIT_ROUNDOFF_FLOAT32)
    executions = Executions.over(model.lowered, box, UNIT_ROUNDOFF_FLOAT32)
    own = executions.errors["t"].entries
    assert (own <= (boxes["a"].magnitude + boxes["b"].magnitude)).all()
    # An error of t alone can move q by all of itself, and y_0 - y_1 by two of them.
    assert error[0, 1] >= own[0, :2].sum()


def test_sorted_pairs_are_not_such_where_operands_round() -> None:
    """max(a, b) and max(-a, -b), where -a is computed by a product that may round."""
    rng = np.random.default_rng(2)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["z"]),
        helper.make_node("Gather", ["z", "even"], ["a"], axis=1),
        helper.make_node("Gather", ["z", "odd"], ["b"], axis=1),
        helper.make_node("Min", ["a", "b"], ["low"]),
        helper.make_node("Max", ["a", "b"], ["high"]),
        helper.make_node("Concat", ["low", "high"], ["y"], axis=1),
    ]
    constants = {
        "w": rng.normal(size=(4, 6)).astype(np.float32),
        "even": np.arange(0, 6, 2),
        "odd": np.arange(1, 6, 2),
    }
    graph = load_model(model_of(nodes, {"x": (1, 4)}, ["y"], constants)).lowered
    network = Network.read(graph)
    assert network.pairs
    assert not replace(network, share=False).pairs
    shared, apart = (
        Calculus(part).constant(graph.output) for part in (network, replace(network, share=False))
    )
    assert shared < apart
