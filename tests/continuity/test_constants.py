"""Constants of networks: never below a slope that occurs, exact where the answer is known."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import numpy as np
import onnx
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import helper

from onnxcert import UnsupportedModel, UsageError, lipschitz, load_model
from onnxcert.arrays import Array, FloatArray
from onnxcert.continuity.ellipsoid import (
    Plan,
    choose_closed_form,
    choose_given,
    constants,
    enclose,
    enclose_near,
    input_diagonal,
    pair_constants,
)
from onnxcert.continuity.network import Network, input_box
from onnxcert.continuity.product import Calculus
from onnxcert.continuity.refine import Objective, refined
from onnxcert.graph import Graph, Node
from onnxcert.ops import Affine, Linear, Relu, Scale, Sign, Sum
from tests import strategies
from tests.frontend.onnx_models import model_of, single
from tests.oracles import dot, exact_values

CURVES = ("relu", "relu", "leaky", "abs", "tanh", "sigmoid", "sin", "cos")
LAYERS = (*strategies.LAYERS, "convolution", "maximum")
NORMS = st.sampled_from(["2", "inf", "1"])


def forms_of(graph: Graph) -> FloatArray:
    """A few outputs and differences of outputs."""
    size = min(graph.output_size, 4)
    units = np.eye(graph.output_size)[:size]
    pairs = [units[i] - units[j] for i in range(size) for j in range(i)]
    return np.array([*units, *pairs])


def all_pairs(size: int) -> FloatArray:
    """Differences of outputs, or the only output."""
    units = np.eye(size)
    pairs = [units[i] - units[j] for i in range(size) for j in range(i)]
    return np.array(pairs or units)


def length(values: Sequence[Fraction], norm: str) -> Fraction:
    """Of an input difference; the square of it for norm 2."""
    if norm == "2":
        return sum((v * v for v in values), Fraction(0))
    sizes = [abs(v) for v in values]
    return max(sizes) if norm == "inf" else sum(sizes, Fraction(0))


def assert_above(
    graph: Graph, bounds: FloatArray, forms: FloatArray, norm: str, points: Array
) -> None:
    """No pair of points has a larger quotient, in rational arithmetic."""
    values = [exact_values(graph, x) for x in points]
    for first, second in zip(values[::2], values[1::2], strict=True):
        moved = [a - b for a, b in zip(first[graph.input], second[graph.input], strict=True)]
        reach = length(moved, norm)
        for form, bound in zip(forms, bounds, strict=True):
            if not np.isfinite(bound):
                continue
            change = abs(dot(form, first[graph.output]) - dot(form, second[graph.output]))
            limit = Fraction(float(bound)) * reach
            if norm == "2":
                change, limit = change**2, Fraction(float(bound)) ** 2 * reach
            assert change <= limit, float(change / limit) if limit else change


@st.composite
def cases(draw: st.DrawFn) -> tuple[Graph, Array, str]:
    graph = draw(strategies.graphs(curves=CURVES, layers=LAYERS))
    rng = np.random.default_rng(draw(strategies.seeds))
    points = rng.normal(size=(8, graph.input_size)) * 10.0 ** rng.integers(-3, 3)
    near = draw(st.booleans())
    if near:  # slopes are steepest between neighbours
        points[1::2] = points[::2] + 1e-3 * rng.normal(size=points[::2].shape)
    return graph, points, draw(NORMS)


@given(case=cases())
def test_product_is_above_all_slopes(case: tuple[Graph, Array, str]) -> None:
    graph, points, norm = case
    forms = forms_of(graph)
    with np.errstate(all="ignore"):
        bounds = Calculus(Network.read(graph), norm).outputs(forms)
    assert_above(graph, bounds, forms, norm, points)


@given(case=cases())
def test_recursion_is_above_all_slopes(case: tuple[Graph, Array, str]) -> None:
    graph, points, norm = case
    forms = forms_of(graph)
    network = Network.read(graph)
    plan = Plan.of(network)
    with np.errstate(all="ignore"):
        found = enclose(plan, choose_closed_form(network), input_diagonal(graph.input_size, norm))
    assume(found is not None)
    assert found is not None
    assert_above(graph, constants(forms, found[0]), forms, norm, points)


@given(case=cases(), data=st.data())
def test_any_multipliers_give_bounds(case: tuple[Graph, Array, str], data: st.DataObject) -> None:
    """Sound whatever the descent returns, or refused."""
    graph, points, norm = case
    forms = forms_of(graph)
    network = Network.read(graph)
    plan = Plan.of(network)
    rng = np.random.default_rng(data.draw(strategies.seeds))
    start = input_diagonal(graph.input_size, norm)
    with np.errstate(all="ignore"):
        found = enclose(plan, choose_closed_form(network), start)
        assume(found is not None)
        assert found is not None
        changed = {k: d * np.exp(rng.normal(0.0, 0.5, d.shape)) for k, d in found[1].items()}
        again = enclose(plan, choose_given(changed), start)
    if again is not None:
        assert_above(graph, constants(forms, again[0]), forms, norm, points)


@given(case=cases())
def test_constants_on_a_domain(case: tuple[Graph, Array, str]) -> None:
    """With the slopes that occur in there."""
    graph, points, norm = case
    low, high = float(points.min()), float(points.max())
    forms = forms_of(graph)
    network = Network.read(graph, input_box(graph, low, high))
    with np.errstate(all="ignore"):
        bounds = Calculus(network, norm).outputs(forms)
        assert_above(graph, bounds, forms, norm, points)
        found = enclose(
            Plan.of(network), choose_closed_form(network), input_diagonal(graph.input_size, norm)
        )
    if found is not None:
        assert_above(graph, constants(forms, found[0]), forms, norm, points)


def test_constants_of_all_differences(rng: np.random.Generator) -> None:
    root = rng.normal(size=(5, 3))
    matrix = root @ root.T
    forms = np.eye(5)[:, None] - np.eye(5)
    expected = np.linalg.norm(forms @ root, axis=2)
    found = pair_constants(matrix)
    assert (found >= expected).all()
    assert found == pytest.approx(expected, abs=1e-6)


def test_many_outputs(rng: np.random.Generator) -> None:
    """Seen constants of all pairs; of an affine map they are the bounds."""
    model = single("MatMul", (1, 4), rng.normal(size=(4, 150)).astype(np.float32))
    for norm in ("2", "inf", "1"):
        bound = lipschitz(model, method="product", norm=norm, samples=2)
        assert bound.seen_pairs == pytest.approx(bound.pairs, rel=1e-9)
        assert bound.seen_outputs == pytest.approx(bound.outputs, rel=1e-9)


@given(seed=strategies.seeds, norm=NORMS, barrier=st.sampled_from([0.0, 0.1]))
def test_gradient_of_the_objective(seed: int, norm: str, barrier: float) -> None:
    """Of networks with ordinary weights: differences measure nothing among numbers of 2^60."""
    graph = strategies.ordinary_graph(seed, LAYERS, CURVES)
    network = Network.read(graph)
    plan = Plan.of(network)
    with np.errstate(all="ignore"):
        found = enclose(plan, choose_closed_form(network), input_diagonal(graph.input_size, norm))
    assume(found is not None and plan.gates)
    assert found is not None
    assume(all(d[d != 0.0].min(initial=1.0) > 1e-6 for d in found[1].values()))
    # Outputs that are nearly the same, or nothing, have no logarithm to measure.
    scale = float(np.sqrt(np.diagonal(found[0]).max()))
    assume((constants(all_pairs(graph.output_size), found[0]) > 1e-2 * scale).all())
    assume(scale > 1e-2)
    assume(float(np.abs(found[0]).max()) < 1e4)
    objective = Objective(plan, norm, barrier)
    point = objective.pack(found[1]) + 0.05
    point[: objective.weights] -= 0.05
    value, gradient = objective.value(point)
    assume(np.isfinite(value))
    direction = np.random.default_rng(seed).normal(size=len(point))
    step = 1e-6
    above, below = (objective.value(point + s * step * direction)[0] for s in (1.0, -1.0))
    measured = (above - below) / (2.0 * step)
    size = float(np.abs(gradient) @ np.abs(direction))
    assert float(gradient @ direction) == pytest.approx(measured, rel=1e-4, abs=1e-5 * (1 + size))


def chain(rng: np.random.Generator, sizes: Sequence[int]) -> tuple[Graph, list[Array]]:
    """Rectifiers between dense layers, and the matrices."""
    weights = [rng.normal(size=(m, n)) / np.sqrt(n) for n, m in pairwise(sizes)]
    nodes, value = [], "x"
    for k, weight in enumerate(weights):
        nodes.append(Node(f"z{k}", Linear(weight.T.copy()), (value,)))
        value = f"z{k}"
        if k < len(weights) - 1:
            nodes.append(Node(f"h{k}", Relu(len(weight)), (value,)))
            value = f"h{k}"
    return Graph("x", sizes[0], tuple(nodes), value), weights


def test_chains_have_the_closed_form(rng: np.random.Generator) -> None:
    """M = L - L A L / 4 with L = 2 / lambda_max(A), as published."""
    graph, weights = chain(rng, [6, 9, 7, 8, 3])
    inverse = np.eye(6)
    for weight in weights[:-1]:
        block = weight @ inverse @ weight.T
        scale = 2.0 / np.linalg.eigvalsh(block)[-1]
        inverse = np.linalg.inv(scale * np.eye(len(block)) - scale**2 / 4.0 * block)
    expected = weights[-1] @ inverse @ weights[-1].T
    network = Network.read(graph)
    found = enclose(Plan.of(network), choose_closed_form(network), np.ones(6))
    assert found is not None
    assert (np.linalg.eigvalsh(found[0] - expected) >= -1e-12).all()
    np.testing.assert_allclose(found[0], expected, rtol=1e-9, atol=1e-9)


def test_refinement_only_improves(rng: np.random.Generator) -> None:
    graph, _ = chain(rng, [5, 12, 12, 4])
    network = Network.read(graph)
    plan = Plan.of(network)
    first = enclose(plan, choose_closed_form(network), np.ones(5))
    assert first is not None
    objective = Objective(plan, "2")
    start = objective.pack(first[1])
    *_, last = refined(objective, start)
    second = enclose_near(plan, *objective.unpack(last))
    assert second is not None
    forms = forms_of(graph)
    before, after = constants(forms, first[0]), constants(forms, second[0])
    assert np.log(after[4:]).mean() < np.log(before[4:]).mean() - 0.02


def test_one_layer_is_exact(rng: np.random.Generator) -> None:
    weight = rng.normal(size=(4, 3))
    graph = Graph("x", 3, (Node("y", Linear(weight.T.copy()), ("x",)),), "y")
    network = Network.read(graph)
    for norm, order in (("2", 2), ("inf", 1), ("1", np.inf)):
        bounds = Calculus(network, norm).outputs(np.eye(4))
        np.testing.assert_allclose(bounds, np.linalg.norm(weight, order, axis=1), rtol=1e-12)


def everything(model: onnx.ModelProto, method: str) -> float:
    """The Euclidean constant of all outputs together, from the last matrix or the calculus."""
    graph = load_model(model).graph
    network = Network.read(graph)
    if method == "product":
        return Calculus(network).constant(graph.output)
    found = enclose(Plan.of(network), choose_closed_form(network), np.ones(graph.input_size))
    assert found is not None
    return float(np.sqrt(np.linalg.eigvalsh(found[0])[-1]))


BOTH = pytest.mark.parametrize("method", ["product", "recursion"])


@BOTH
def test_twice_the_same_is_two(method: str) -> None:
    assert everything(single("Add", (1, 4), (1, 4)), method) == pytest.approx(np.sqrt(2.0))
    node = helper.make_node("Add", ["x", "x"], ["y"])
    model = model_of([node], {"x": (1, 4)}, ["y"])
    assert everything(model, method) == pytest.approx(2.0)


@BOTH
def test_pooling_windows_that_overlap(method: str) -> None:
    apart = single("MaxPool", (1, 1, 4, 4), kernel_shape=[2, 2], strides=[2, 2])
    assert 1.0 <= everything(apart, "product") <= 1.0 + 1e-12
    over = single("MaxPool", (1, 1, 5, 5), kernel_shape=[3, 3], strides=[1, 1])
    assert everything(over, method) >= 3.0  # one bright pixel is in nine windows
    assert everything(over, "product") == pytest.approx(3.0)
    odd = single("MaxPool", (1, 1, 3, 3), kernel_shape=[3, 3])
    assert everything(odd, "product") == pytest.approx(1.0)


def sorting(kind: str) -> onnx.ModelProto:
    """Pairs sorted, in three ways that exporters write it."""
    make = helper.make_node
    if kind == "reduce":
        constants = {"s": np.array([1, 3, 2]), "t": np.array([1, 6])}
        nodes = [
            make("Reshape", ["x", "s"], ["p"]),
            make("ReduceMin", ["p"], ["a"], axes=[2]),
            make("ReduceMax", ["p"], ["b"], axes=[2]),
            make("Concat", ["a", "b"], ["c"], axis=2),
            make("Reshape", ["c", "t"], ["y"]),
        ]
        return model_of(nodes, {"x": (1, 6)}, ["y"], constants)
    order = ["l", "r"] if kind == "split" else ["r", "l"]
    nodes = [
        make("Split", ["x"], ["l", "r"], axis=1),
        make("Max", ["l", "r"], ["a"]),
        make("Min", order, ["b"]),
        make("Concat", ["a", "b"], ["y"], axis=1),
    ]
    return model_of(nodes, {"x": (1, 6)}, ["y"])


@pytest.mark.parametrize("kind", ["reduce", "split", "swapped"])
def test_sorting_keeps_lengths(kind: str) -> None:
    assert 1.0 <= everything(sorting(kind), "product") <= 1.0 + 1e-12
    assert 1.0 <= everything(sorting(kind), "recursion") <= 1.02


def test_two_maxima_are_no_sorted_pair() -> None:
    make = helper.make_node
    nodes = [
        make("Split", ["x"], ["l", "r"], axis=1),
        make("Max", ["l", "r"], ["a"]),
        make("Max", ["r", "l"], ["b"]),
        make("Concat", ["a", "b"], ["y"], axis=1),
    ]
    model = model_of(nodes, {"x": (1, 6)}, ["y"])
    for method in ("product", "recursion"):
        assert everything(model, method) >= np.sqrt(2.0)


def test_skip_connections_add_up(rng: np.random.Generator) -> None:
    """x + W relu(x) has slope 1 + w where both agree."""
    weight = np.array([[3.0]])
    nodes = (
        Node("h", Relu(1), ("x",)),
        Node("w", Linear(weight), ("h",)),
        Node("y", Sum(1, (1, 1)), ("x", "w")),
    )
    network = Network.read(Graph("x", 1, nodes, "y"))
    bounds = [Calculus(network).outputs(np.eye(1))[0]]
    found = enclose(Plan.of(network), choose_closed_form(network), np.ones(1))
    assert found is not None
    bounds.append(constants(np.eye(1), found[0])[0])
    for bound in bounds:
        assert 4.0 <= bound <= 5.0


def test_jumps_are_refused_by_name() -> None:
    model = single("Sign", (1, 2))
    with pytest.raises(UnsupportedModel, match="no Lipschitz constant") as caught:
        lipschitz(model)
    assert "the_node" in str(caught.value)
    bound = lipschitz(model, domain=(0.5, 1.0))
    assert (bound.outputs < 1e-100).all()
    with pytest.raises(UnsupportedModel, match="no Lipschitz constant"):
        lipschitz(model, domain=(0.0, 1.0))


def test_unknown_operators_are_refused() -> None:
    with pytest.raises(UnsupportedModel):
        lipschitz(single("Ceil", (1, 2)))


def test_a_domain_uses_its_slopes() -> None:
    model = single("Tanh", (1, 2))
    everywhere, far = lipschitz(model), lipschitz(model, domain=(2.0, 3.0))
    assert everywhere.outputs == pytest.approx(1.0)
    assert far.outputs == pytest.approx(1.0 - np.tanh(2.0) ** 2, rel=1e-6)
    assert (far.outputs >= far.seen_outputs).all()


def test_methods_are_ordered(rng: np.random.Generator) -> None:
    graph, weights = chain(rng, [5, 10, 10, 3])
    del graph
    nodes, constants_ = [], {}
    value = "x"
    for k, weight in enumerate(weights):
        constants_[f"w{k}"] = weight.T.astype(np.float32)
        nodes.append(helper.make_node("MatMul", [value, f"w{k}"], [f"z{k}"]))
        value = f"z{k}"
        if k < 2:
            nodes.append(helper.make_node("Relu", [value], [f"h{k}"]))
            value = f"h{k}"
    model = model_of(nodes, {"x": (1, 5)}, [value], constants_)
    for norm in ("2", "inf", "1"):
        found = [lipschitz(model, method=m, norm=norm) for m in ("product", "recursion", "refined")]
        for weaker, stronger in pairwise(found):
            assert (stronger.pairs <= weaker.pairs).all()
        assert (found[-1].seen_pairs <= found[-1].pairs).all()
        assert (found[-1].seen_outputs <= found[-1].outputs).all()
        assert (np.diagonal(found[-1].pairs) == 0.0).all()
        assert [layer.norm for layer in found[0].layers] == pytest.approx(
            [np.linalg.norm(constants_[f"w{k}"].astype(float), 2) for k in range(3)]
        )


def test_arguments_without_meaning() -> None:
    model = single("Relu", (1, 2))
    for options in (
        {"norm": "3"},
        {"norm": 0.5},
        {"method": "guess"},
        {"domain": (1.0, 0.0)},
        {"domain": (0.0, np.inf)},
    ):
        with pytest.raises(UsageError):
            lipschitz(model, **options)  # type: ignore[arg-type]


def test_sign_alone_has_no_slopes() -> None:
    assert Sign(2).slope_range() is None


def test_refinement_reaches_the_semidefinite_program() -> None:
    """LipSDP's optimum of this network by cvxpy and Clarabel: 1.1913."""
    rng = np.random.default_rng(2)
    first, last = rng.normal(size=(20, 10)) / np.sqrt(10), rng.normal(size=(1, 20)) / np.sqrt(20)
    nodes = (
        Node("z", Linear(first.T.copy()), ("x",)),
        Node("h", Relu(20), ("z",)),
        Node("y", Linear(last.T.copy()), ("h",)),
    )
    network = Network.read(Graph("x", 10, nodes, "y"))
    plan = Plan.of(network)
    start = enclose(plan, choose_closed_form(network), np.ones(10))
    assert start is not None
    objective = Objective(plan, "2")
    *_, best = refined(objective, objective.pack(start[1]))
    found = enclose_near(plan, *objective.unpack(best))
    assert found is not None
    assert 1.1912 <= constants(np.eye(1), found[0])[0] <= 1.002 * 1.1913


def test_pairs_sorted_twice() -> None:
    """Sorting what is sorted already; the second pair is a selection of the first."""
    make = helper.make_node
    first = sorting("split")
    nodes = [
        *first.graph.node,
        make("Split", ["y"], ["m", "n"], axis=1),
        make("Max", ["m", "n"], ["c"]),
        make("Min", ["m", "n"], ["d"]),
        make("Concat", ["c", "d"], ["z"], axis=1),
    ]
    assert 1.0 <= everything(model_of(nodes, {"x": (1, 6)}, ["z"]), "product") <= 1.0 + 1e-12


def chained(nodes: Sequence[Affine]) -> Calculus:
    """Affine operators with rectifiers between."""
    parts, last = [], "x"
    for number, op in enumerate(nodes):
        parts.append(Node(f"a{number}", op, (last,)))
        parts.append(Node(f"h{number}", Relu(op.output_size), (f"a{number}",)))
        last = f"h{number}"
    size = nodes[0].input_sizes[0]
    return Calculus(Network.read(Graph("x", size, tuple(parts[:-1]), parts[-2].name)))


def test_what_underflows_is_not_zero() -> None:
    """Squares of factors, and products of constants, that binary64 cannot hold."""
    scales = [Scale(2, np.full(2, factor)) for factor in (1e-170, 1e170)]
    with np.errstate(over="ignore"):
        assert chained(scales).outputs(np.eye(2)).min() >= 1.0
    weight = np.array([[1.0, 2.0], [3.0, 4.0]])
    linears = [Linear(weight * factor) for factor in (1e-200, 1e-200, 1e200, 1e200)]
    assert chained(linears).outputs(np.eye(2)).min() >= 100.0
    nothing = [Linear(np.zeros((2, 2))), *linears]
    assert chained(nothing).outputs(np.eye(2)).max() < 1e-100


def test_what_overflows_is_infinite() -> None:
    with np.errstate(all="ignore"):
        bounds = chained([Linear(np.full((2, 2), 1e200))] * 3).outputs(np.eye(2))
    assert (bounds == np.inf).all()
