"""The checker's own reading of ONNX files, held against onnxruntime and against the engine's."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import os
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxcert.checker.errors import Unusable
from onnxcert.checker.model import read_network
from onnxcert.checker.network import Affine, Array, Curve, Entries, Network, Pair, Product
from onnxcert.errors import InputError
from onnxcert.frontend.onnx import load_model, supported_operators
from onnxcert.ops.base import Bivariate, Elementwise
from tests.frontend import test_rules
from tests.frontend.onnx_models import integers, model_of, single, weights
from tests.frontend.test_rules_together import KINDS, _Growing

FLOATS = np.float32
IMAGE = (1, 3, 6, 5)


def read(proto: onnx.ModelProto, **options: object) -> Network:
    return read_network(proto.SerializeToString(), **options)  # type: ignore[arg-type]


def executed(data: bytes, network: Network, x: np.ndarray) -> np.ndarray:
    """All outputs at one point, by onnxruntime."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    ends = np.cumsum([int(np.prod(shape)) for _, shape, _ in network.inputs])[:-1]
    feeds = {
        name: part.reshape(shape).astype(element)
        for (name, shape, element), part in zip(network.inputs, np.split(x, ends), strict=True)
    }
    found = session.run([name for name, _, _ in network.outputs], feeds)
    assert [array.shape for array in found] == [shape for _, shape, _ in network.outputs]
    assert [str(array.dtype) for array in found] == [kind for _, _, kind in network.outputs]
    return np.concatenate([array.ravel() for array in found]).astype(float)


def agrees(proto: onnx.ModelProto, *, points: int = 3, loose: float = 2e-5) -> Network:
    """Hold float64 against onnxruntime and, where values are exact, rationals against float64."""
    network, data = read(proto), proto.SerializeToString()
    rng = np.random.default_rng(0)
    x = rng.uniform(-2, 2, (points, network.n_inputs)).astype(FLOATS).astype(float)
    y = network.forward(x)
    for point, value in zip(x, y, strict=True):
        np.testing.assert_allclose(executed(data, network, point), value, rtol=loose, atol=loose)
    if exact(network):
        found = [float(value) for value in network.evaluate([Fraction(v) for v in x[0]])]
        np.testing.assert_allclose(found, y[0], rtol=1e-12, atol=1e-12)
    return network


def exact(network: Network) -> bool:
    smooth = ("sigmoid", "tanh", "exp", "sin", "cos")
    return not any(
        (isinstance(block, Affine) and not block.exact)
        or (isinstance(block, Curve) and block.kind in smooth)
        for block in network.blocks
    )


def labelled(network: Network) -> dict[str, Curve | Pair]:
    """Curves and pairs by what certificates call them."""
    blocks = [block for block in network.blocks if isinstance(block, Curve | Pair)]
    found = {block.label: block for block in blocks}
    assert len(found) == len(blocks)
    return found


def curves(network: Network) -> dict[str, Curve]:
    return {k: block for k, block in labelled(network).items() if isinstance(block, Curve)}


def reads(block: Curve | Pair) -> list[Array]:
    """Numbers of the scalars that a curve, or a function of two values, is applied to."""
    return [block.ids] if isinstance(block, Curve) else [block.first, block.second]


def same_neurons(proto: onnx.ModelProto, network: Network) -> None:
    """The engine's neurons have these labels and positions, and read the same numbers."""
    graph = load_model(proto).lowered
    x = np.random.default_rng(1).uniform(-2, 2, (1, network.n_inputs))
    values = {graph.input: x}
    for node in graph.nodes:
        values[node.name] = node.op.forward([values[name] for name in node.inputs])
    ours = labelled(network)
    nodes = [node for node in graph.nodes if isinstance(node.op, Elementwise | Bivariate)]
    labels = {node.neurons.label for node in nodes if node.neurons}
    assert labels <= set(ours)
    for label in ours.keys() - labels:  # of constants, which the engine works out
        for ids in reads(ours[label]):
            z = dataclasses.replace(network, output=ids).forward(np.stack([x[0], 0 * x[0]]))
            assert (z[0] == z[1]).all()
    for node in nodes:
        assert node.neurons is not None
        curve = ours[node.neurons.label]
        assert curve.size == node.op.output_size
        order = node.neurons.at(np.arange(curve.size))
        for name, ids in zip(node.inputs, reads(curve), strict=True):
            z = dataclasses.replace(network, output=ids[order]).forward(x)
            np.testing.assert_allclose(values[name], z, rtol=1e-9, atol=1e-9)


# Against onnxruntime and the engine


@pytest.mark.parametrize("proto", test_rules.ALL, ids=test_rules._name)
def test_operator_agrees_with_onnxruntime(proto: onnx.ModelProto) -> None:
    agrees(proto)


@pytest.mark.parametrize("proto", test_rules.ALL, ids=test_rules._name)
def test_neurons_are_those_of_the_engine(proto: onnx.ModelProto) -> None:
    same_neurons(proto, read(proto))


def test_what_is_worked_out_beside_what_is_stored_keeps_its_digits() -> None:
    """A product of two constants has more of them than binary32 holds."""
    nodes = [
        helper.make_node("Mul", ["a", "b"], ["product"]),
        helper.make_node("Concat", ["stored", "product"], ["both"], axis=0),
        helper.make_node("Mul", ["x", "both"], ["y"]),
    ]
    factor = np.float32([1.1])
    constants = {"a": factor, "b": factor, "stored": np.float32([1.0])}
    network = read(model_of(nodes, {"x": (2,)}, ["y"], constants))
    assert network.forward(np.ones((1, 2)))[0, 1] == float(factor[0]) ** 2


def test_every_operator_of_the_engine_is_read() -> None:
    tested = {node.op_type for proto in test_rules.ALL for node in proto.graph.node}
    elsewhere = {"CastLike", "Constant", "ConstantOfShape", "Shape", "Size"}
    assert set(supported_operators()) <= tested | elsewhere


@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=2, max_size=9),
    seed=st.integers(0, 2**32 - 1),
    outputs=st.integers(1, 3),
)
def test_random_models(kinds: list[str], seed: int, outputs: int) -> None:
    growing = _Growing(np.random.default_rng(seed))
    for kind in [*kinds, "curve"]:
        growing.grow(kind)
    names = [node.output[0] for node in growing.nodes][-outputs:]
    inputs = {"x": growing.shapes["x"], "z": growing.shapes["z"]}
    proto = model_of(growing.nodes, inputs, names, growing.constants)
    network = agrees(proto, points=2, loose=1e-4)
    same_neurons(proto, network)


def test_a_slice_that_runs_backwards_from_before_the_tensor_holds_its_first_entry() -> None:
    proto = single("Slice", (2, 3), integers(-9), integers(-(2**63)), integers(1), integers(-1))
    assert agrees(proto).output.tolist() == [0, 3]


@pytest.mark.parametrize("element", [TensorProto.DOUBLE, TensorProto.FLOAT16])
def test_other_floating_point_types(element: int) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(element)
    proto = single("Gemm", (2, 3), weights(3, 4).astype(dtype), element=element)
    network = agrees(proto, loose=1e-2)
    assert not network.binary32
    assert read(single("Gemm", (2, 3), weights(3, 4))).binary32


def _networks() -> list[tuple[str, int]]:
    folder = os.environ.get("ONNXCERT_BENCHMARKS", "")
    if not folder:
        return [("", 0)]
    with (Path(folder) / "instances.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return list(
        {r["onnx"]: int(r["inputs"]) for r in rows if not r["onnx"].startswith("[")}.items()
    )


NETWORKS = _networks()


@pytest.mark.benchmarks
@pytest.mark.parametrize(
    ("model", "count"), NETWORKS, ids=[Path(model).name for model, _ in NETWORKS]
)
def test_network_of_the_competition(model: str, count: int, instances: Path) -> None:
    path = instances.parent / model
    try:
        graph = load_model(path, input_elements=count).lowered
    except InputError:
        with pytest.raises(Unusable):
            read_network(path.read_bytes(), input_elements=count)
        return
    network = read_network(path.read_bytes(), input_elements=count)
    x = np.random.default_rng(0).uniform(0, 1, network.n_inputs).astype(FLOATS).astype(float)
    y = network.forward(x[None])[0]
    found = executed(gzip.decompress(path.read_bytes()), network, x)
    np.testing.assert_allclose(found, y, rtol=1e-4, atol=1e-4 * abs(y).max())
    sizes = {n.neurons.label: n.op.output_size for n in graph.nodes if n.neurons is not None}
    # The engine works out what two parameters make; here that is a product like any other.
    assert sizes.items() <= {label: b.size for label, b in labelled(network).items()}.items()


# Constants


def test_shape_arithmetic() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"], axis=0),
        helper.make_node("Unsqueeze", ["batch"], ["first"], axes=[0]),
        helper.make_node("Concat", ["first", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["flat"]),
        helper.make_node("Size", ["x"], ["count"]),
        helper.make_node("Cast", ["count"], ["float"], to=1),
        helper.make_node("Sqrt", ["float"], ["root"]),
        helper.make_node("Div", ["flat", "root"], ["y"]),
    ]
    constants = {"zero": np.array(0), "rest": integers(-1)}
    network = agrees(model_of(nodes, {"x": (2, 3, 4)}, ["y"], constants, opset=11))
    (block,) = network.blocks[1:]
    assert isinstance(block, Affine)
    (pick,) = block.terms
    true = Fraction(24)  # of which the factor is the inverse root
    low, high = (Fraction(float(pick.factor[0] + s * pick.error[0])) for s in (-1, 1))  # type: ignore[attr-defined]
    assert low**2 * true < 1 < high**2 * true
    assert pick.error[0] < 1e-6  # type: ignore[index]


def test_constant_branches_and_casts() -> None:
    nodes = [
        helper.make_node("ConstantOfShape", ["three"], ["zeros"]),
        helper.make_node("Equal", ["ids", "two"], ["mask"]),
        helper.make_node("CastLike", ["ids", "x"], ["like"]),
        helper.make_node("CastLike", ["x", "like"], ["same"]),
        helper.make_node("Where", ["mask", "same", "zeros"], ["kept"]),
        helper.make_node("Constant", [], ["half"], value_float=0.5),
        helper.make_node("Mul", ["like", "half"], ["halves"]),
        helper.make_node("Add", ["kept", "halves"], ["y"]),
    ]
    constants = {"three": integers(3), "ids": integers(1, 2, 3), "two": integers(2)}
    network = agrees(model_of(nodes, {"x": (3,)}, ["y"], constants, opset=15))
    assert exact(network)  # halves are exact in binary32


def test_integer_arithmetic_truncates_and_selects() -> None:
    nodes = [
        helper.make_node("Range", ["zero", "three", "one"], ["line"]),
        helper.make_node("Sub", ["line", "three"], ["negative"]),  # -3 -2 -1
        helper.make_node("Div", ["negative", "two"], ["quotient"]),  # -1 -1 0
        helper.make_node("Gather", ["x", "quotient"], ["y"], axis=0),
    ]
    constants = {name: np.array(i) for i, name in enumerate(("zero", "one", "two", "three"))}
    network = agrees(model_of(nodes, {"x": (4,)}, ["y"], constants))
    assert network.output.tolist() == [3, 3, 0]


def test_what_is_cut_out_of_a_padding_is_constant_again() -> None:
    nodes = [
        helper.make_node("Concat", ["x", "c"], ["both"], axis=0),
        helper.make_node("Slice", ["both", "two", "five"], ["tail"]),
        helper.make_node("Mul", ["x", "tail"], ["y"]),
    ]
    constants = {"c": weights(3), "two": integers(-2), "five": integers(5)}
    agrees(model_of(nodes, {"x": (2,)}, ["y"], constants))


def test_constants_that_reach_the_output_are_scalars_without_terms() -> None:
    node = helper.make_node("Concat", ["x", "c"], ["y"], axis=0)
    constants = {"c": np.array([2.5, 0.0, -1.0], dtype=FLOATS)}
    network = agrees(model_of([node], {"x": (2,)}, ["y"], constants))
    assert network.output.tolist() == [0, 1, 2, -1, 3]
    (block,) = network.blocks[1:]
    assert isinstance(block, Affine)
    assert not block.terms


NUMBER = st.floats(-1e6, 1e6, width=32).filter(lambda x: x == 0 or abs(x) > 1e-6)


@given(x=NUMBER, y=NUMBER, z=NUMBER, first=st.sampled_from("+-*/"), second=st.sampled_from("+-*/"))
def test_folded_constants_cover_the_exact_value_and_the_executed_one(
    x: float, y: float, z: float, first: str, second: str
) -> None:
    names = {"+": "Add", "-": "Sub", "*": "Mul", "/": "Div"}
    nodes = [
        helper.make_node(names[first], ["x", "y"], ["a"]),
        helper.make_node(names[second], ["a", "z"], ["b"]),
        helper.make_node("Add", ["in", "b"], ["out"]),
    ]
    constants = {name: np.array(v, dtype=FLOATS) for name, v in zip("xyz", (x, y, z), strict=True)}
    if (first == "/" and y == 0) or (second == "/" and z == 0):
        with pytest.raises(Unusable, match="division by zero"):
            read(model_of(nodes, {"in": (1,)}, ["out"], constants))
        return
    data = model_of(nodes, {"in": (1,)}, ["out"], constants).SerializeToString()
    networks = [read_network(data, executed=executed) for executed in (False, True)]
    assert all(network.folded for network in networks)

    def step(kind: str, a: object, b: object) -> object:
        return {"+": a.__add__, "-": a.__sub__, "*": a.__mul__, "/": a.__truediv__}[kind](b)  # type: ignore[attr-defined]

    true = step(second, step(first, Fraction(x), Fraction(y)), Fraction(z))
    run = step(second, step(first, np.float32(x), np.float32(y)), np.float32(z))
    (value, error), (again, more) = map(folded_offset, networks)
    assert abs(true - value) <= error <= more
    assert value == again
    assert abs(Fraction(float(run)) - value) <= more
    assert error <= (abs(x) + abs(y) + abs(z) + 1) ** 3 * 2.0**-40 or "/" in first + second


def folded_offset(network: Network) -> tuple[Fraction, Fraction]:
    """A constant that is added to an input, and its error; no block is made to add zero."""
    if len(network.blocks) == 1:
        return Fraction(0), Fraction(0)
    (block,) = network.blocks[1:]
    assert isinstance(block, Affine)
    value = Fraction(0) if block.offset is None else Fraction(block.offset[0])
    return value, Fraction(0 if block.offset_error is None else block.offset_error[0])


@given(seed=st.integers(0, 999), depth=st.integers(1, 40), size=st.sampled_from([1e-25, 1.0, 1e12]))
def test_products_of_constants_cover_the_exact_values_and_the_executed_ones(
    seed: int, depth: int, size: float
) -> None:
    """As factors of an input, behind a relu: negative entries are exactly zero."""
    rng = np.random.default_rng(seed)
    first, second = (rng.normal(size=shape) * size for shape in ((3, depth), (depth, 2)))
    first[0] = 0.0
    constants = {"a": first.astype(FLOATS), "b": second.astype(FLOATS)}
    nodes = [
        helper.make_node("MatMul", ["a", "b"], ["ab"]),
        helper.make_node("Relu", ["ab"], ["c"]),
        helper.make_node("MatMul", ["c", "x"], ["y"]),
    ]
    data = model_of(nodes, {"x": (2, 1)}, ["y"], constants).SerializeToString()
    a, b = (np.frompyfunc(Fraction, 1, 1)(constants[name].astype(float)) for name in "ab")
    true = np.maximum(a @ b, 0)
    steps = constants["a"].T[:, :, None] * constants["b"][:, None]
    runs = [np.cumsum(rng.permutation(steps), axis=0)[-1] for _ in range(4)]
    for executed in (False, True):
        (block,) = read_network(data, executed=executed).blocks[1:]
        assert isinstance(block, Affine)
        (term,) = block.terms
        assert isinstance(term, Product)
        error = np.zeros((1, 3, 2)) if term.error is None else term.error
        assert (error[0, 0] == 0).all()
        assert (abs(true - term.weight[0]) <= error[0]).all()
        if executed:
            for run in runs:
                assert (abs(np.maximum(run, 0).astype(float) - term.weight[0]) <= error[0]).all()
        elif size == 1.0:
            assert error.max() < 1e-10


def test_a_product_of_constants_that_may_overflow_is_refused() -> None:
    constants = {"a": np.full((1, 2), 1e20, FLOATS), "b": np.full((2, 1), 1e20, FLOATS)}
    nodes = [
        helper.make_node("MatMul", ["a", "b"], ["c"]),
        helper.make_node("Mul", ["x", "c"], ["y"]),
    ]
    with pytest.raises(Unusable, match="overflows"):
        read(model_of(nodes, {"x": (1, 1)}, ["y"], constants))


def test_stored_factors_are_exact_or_have_an_error_that_holds() -> None:
    divisors = np.array([3.0, 7.0, -0.1, 2.0], dtype=FLOATS)
    block = read(single("Div", (4,), divisors)).blocks[1]
    assert isinstance(block, Affine)
    (pick,) = block.terms
    for factor, error, divisor in zip(pick.factor, pick.error, divisors, strict=True):  # type: ignore[attr-defined]
        lost = abs(1 / Fraction(float(divisor)) - Fraction(float(factor)))
        assert lost <= Fraction(float(error)) <= abs(Fraction(float(factor))) / 2**50
    assert pick.error[3] == 0.0  # type: ignore[index]
    halves = read(single("Div", (4,), np.array([2.0, 0.5, -8.0, 1.0], dtype=FLOATS)))
    assert exact(halves)


def test_a_normalisation_keeps_the_difference_of_large_numbers() -> None:
    """The mean is subtracted on its own, so that executions are charged for what they subtract."""
    parameters = [np.array([v], dtype=FLOATS) for v in (3.0, 2e6, 1e6, 0.7)]
    network = read(single("BatchNormalization", (1, 1, 2), *parameters, opset=15))
    means, block = network.blocks[1:]
    assert isinstance(means, Affine)
    assert isinstance(block, Affine)
    assert means.offset == [1e6]
    assert block.offset is not None
    assert block.offset.tolist() == [2e6, 2e6]
    squares = [Fraction(float(np.float32(v))) for v in (0.7, 1e-5)]
    factor, error = (getattr(block.terms[0], name)[0] for name in ("factor", "error"))
    low, high = (Fraction(float(factor)) + s * Fraction(float(error)) for s in (-1, 1))
    assert low**2 * sum(squares) < 9 < high**2 * sum(squares)


# Blocks


def test_labels_of_a_node_with_several_curves() -> None:
    nodes = [
        helper.make_node("Max", ["a", "b", "c", "k"], ["m"]),
        helper.make_node("Clip", ["m", "low", "high"], ["y"]),
    ]
    constants = {"k": weights(3), "low": FLOATS(-1), "high": FLOATS(0.5)}
    shapes = {"a": (2, 3), "b": (1, 3), "c": (2, 1)}
    network = agrees(model_of(nodes, shapes, ["y"], constants))
    assert list(curves(network)) == ["m", "m/1", "m/2", "y", "y/1"]
    assert [block.maximum is not None for block in network.blocks[1:] if isinstance(block, Affine)]
    pairs = [b.maximum for b in network.blocks if isinstance(b, Affine) and b.maximum is not None]
    assert len(pairs) == 2
    assert [ids.tolist() for ids in pairs[0]] == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 6, 7, 8]]
    composites = [b for b in network.blocks[1:] if isinstance(b, Affine)]
    assert {block.roundings for block in composites} == {0}


def test_windows_with_padding_repeat_their_last_entry() -> None:
    """A tap in the padding is not the constant zero: all entries of the image are negative."""
    proto = single("MaxPool", (1, 1, 2, 2), kernel_shape=[2, 2], pads=[1, 1, 0, 0])
    network = agrees(proto)
    found = network.forward(np.array([[-4.0, -3.0, -2.0, -1.0]]))
    assert found.tolist() == [[-4.0, -3.0, -2.0, -1.0]]
    assert [curve.size for curve in curves(network).values()] == [8, 4]


def test_a_sparse_matrix_is_stored_by_its_entries() -> None:
    matrix = np.zeros((400, 300), dtype=FLOATS)
    matrix[::7, ::11] = 1.5
    sparse = agrees(single("MatMul", (1, 400), matrix)).blocks[1]
    assert isinstance(sparse, Affine)
    (term,) = sparse.terms
    assert isinstance(term, Entries)
    assert len(term.value) == np.count_nonzero(matrix)
    dense = read(single("MatMul", (2, 400), matrix)).blocks[1]
    assert isinstance(dense, Affine)
    assert isinstance(dense.terms[0], Product)


def test_counts_of_roundings() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Add", ["d", "c"], ["e"]),
        helper.make_node("Neg", ["e"], ["f"]),
        helper.make_node("Mul", ["f", "b"], ["g"]),
    ]
    network = agrees(model_of(nodes, {"x": (2, 5)}, ["g"], {"w": weights(5, 3), "b": weights(3)}))
    counts = {b.name: b.roundings for b in network.blocks if isinstance(b, Affine)}
    # An offset may be where the sum of the product begins.
    assert counts == {"a": 13, "c": 21, "e": 1, "f": 0, "g": 8}


def test_exact_values_of_a_network_with_many_bits() -> None:
    rng = np.random.default_rng(5)
    w = [rng.normal(size=s).astype(FLOATS) for s in ((4, 6), (6,), (6, 3))]
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "w1"], ["a"]),
        helper.make_node("LeakyRelu", ["a"], ["b"], alpha=0.1),
        helper.make_node("MatMul", ["b", "w2"], ["y"]),
    ]
    constants = {f"w{i}": value for i, value in enumerate(w)}
    network = read(model_of(nodes, {"x": (1, 4)}, ["y"], constants))
    x = [Fraction(1, 3), Fraction(-2, 7), Fraction(5), Fraction(0)]
    alpha = Fraction(float(np.float32(0.1)))
    exact_w = [np.vectorize(lambda v: Fraction(float(v)), otypes=[object])(v) for v in w]
    hidden = np.array(x, dtype=object) @ exact_w[0] + exact_w[1]
    hidden = np.array([h if h >= 0 else alpha * h for h in hidden], dtype=object)
    assert network.evaluate(x) == list(hidden @ exact_w[2])
    with pytest.raises(ValueError, match="shape"):
        network.evaluate(x[:3])


def test_smooth_curves_and_rounded_factors_have_no_exact_values() -> None:
    for proto in (single("Tanh", (2,)), single("Div", (2,), np.full(2, 3, dtype=FLOATS))):
        with pytest.raises(Unusable, match="not exact"):
            read(proto).evaluate([Fraction(1)] * 2)


# Inputs, outputs, files


@pytest.mark.parametrize("declared", [(1, 6), ("N", 6), ("N", "M"), ("N", "N"), (2, "M", 3), None])
@pytest.mark.parametrize(
    "options",
    [
        {},
        *({"input_elements": count} for count in (1, 6, 12, 18, 7)),
        *({"input_shapes": [shape]} for shape in ((1, 6), (2, 6), (6,), (2, 3), (2, 1, 3), (0, 6))),
        {"input_shapes": [(1, 6), (1, 6)]},
    ],
    ids=str,
)
def test_dimensions_are_bound_as_the_engine_does(
    declared: object, options: dict[str, object]
) -> None:
    proto = single("Relu", declared or ())  # type: ignore[arg-type]
    if declared is None:
        proto.graph.input[0].type.tensor_type.ClearField("shape")
    try:
        expected = load_model(proto, **options).inputs[0].shape  # type: ignore[arg-type]
    except InputError:
        with pytest.raises(Unusable):
            read(proto, **options)
        return
    assert read(proto, **options).inputs == [("v0", expected, "float32")]


def test_hidden_tensors_follow_the_outputs() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Neg", ["b"], ["y"]),
    ]
    proto = model_of(nodes, {"x": (2,)}, ["y"], {"w": np.array([2.0, -1.0], dtype=FLOATS)})
    network = read(proto, hidden=["a", "b"])
    assert network.outputs == [(name, (2,), "float32") for name in "yab"]
    assert network.forward(np.ones((1, 2))).tolist() == [[-2.0, 0.0, 2.0, -1.0, 2.0, 0.0]]
    for name in ("x", "w", "nothing"):
        with pytest.raises(Unusable, match="no inner tensors"):
            read(proto, hidden=[name])


def test_gzip_and_damaged_files() -> None:
    data = single("Relu", (2,)).SerializeToString()
    assert read_network(gzip.compress(data)).n_inputs == 2
    for broken in (
        b"",
        b"\x1f\x8bnonsense",
        gzip.compress(data)[:-5],
        b"no model at all",
        data[:9],
    ):
        with pytest.raises(Unusable):
            read_network(broken)


def test_external_data_stay_in_the_folder(tmp_path: Path) -> None:
    proto = single("Gemm", (1, 2), weights(2, 2))
    tensor = proto.graph.initializer[0]
    (tmp_path / "inner").mkdir()
    for folder in (tmp_path, tmp_path / "inner"):
        (folder / "w.bin").write_bytes(tensor.raw_data)
    onnx.external_data_helper.set_external_data(tensor, "w.bin", 0, 16)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    assert read(proto, directory=tmp_path / "inner").size == 4
    with pytest.raises(Unusable, match="external"):
        read(proto)
    for location in ("../w.bin", str(tmp_path / "w.bin"), "missing.bin", "inner"):
        tensor.external_data[0].value = location
        with pytest.raises(Unusable):
            read(proto, directory=tmp_path / "inner")
    tensor.external_data[0].value = "w.bin"
    tensor.external_data[2].value = "12"
    with pytest.raises(Unusable):
        read(proto, directory=tmp_path / "inner")


# Refusals


REFUSED = [*test_rules.UNSUPPORTED.values(), *test_rules.NONSENSE]


@pytest.mark.parametrize("proto", REFUSED, ids=test_rules._name)
def test_what_the_engine_refuses_is_refused(proto: onnx.ModelProto) -> None:
    if proto.graph.node[0].op_type == "Conv":  # three dimensions are no harder here than two
        agrees(proto) if len(proto.graph.input) == 1 else None
        return
    with pytest.raises(Unusable):
        read(proto)


def test_all_unknown_operators_are_named_at_once() -> None:
    nodes = [
        helper.make_node("Erf", ["x"], ["a"]),
        helper.make_node("Gelu", ["a"], ["b"], domain="com.example"),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Elu", ["c"], ["y"]),
    ]
    with pytest.raises(Unusable, match=r"Elu, Erf, com\.example\.Gelu"):
        read(model_of(nodes, {"x": (2,)}, ["y"], domains=["com.example"]))


def _add_function(proto: onnx.ModelProto) -> None:
    body = helper.make_function("", "Gemm", ["a"], ["b"], [], [helper.make_opsetid("", 13)])
    proto.functions.append(body)


def _make_outdated(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].attribute.append(helper.make_attribute("broadcast", 1))
    proto.opset_import[0].version = 6


def _store_nan(proto: onnx.ModelProto) -> None:
    array = np.full((2, 2), np.nan, dtype=FLOATS)
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, "v1"))


def _reorder(proto: onnx.ModelProto) -> None:
    proto.graph.node.insert(0, helper.make_node("Relu", ["later"], ["early"]))
    proto.graph.node.append(helper.make_node("Relu", ["y0"], ["later"]))


def _attribute(name: str, *values: float) -> Callable[[onnx.ModelProto], object]:
    made = [helper.make_attribute(name, value) for value in values]
    return lambda p: p.graph.node[0].attribute.extend(made)


DAMAGE: dict[str, Callable[[onnx.ModelProto], object]] = {
    "same name": lambda p: p.graph.initializer.append(p.graph.initializer[0]),
    "'gamma' is unknown": _attribute("gamma", 2.0),
    "'beta' is unknown, repeated or of another": _attribute("beta", 2),
    "repeated": _attribute("alpha", 1.0, 2.0),
    "1 inputs": lambda p: p.graph.node[0].input.__delitem__(slice(1, None)),
    "input 1 is missing": lambda p: p.graph.node[0].input.__setitem__(1, ""),
    "'y0' is defined twice": lambda p: p.graph.node.append(
        helper.make_node("Relu", ["v0"], ["y0"])
    ),
    "'v1' is defined twice": lambda p: p.graph.node[0].output.__setitem__(0, "v1"),
    "'nowhere' is never made": lambda p: p.graph.node[0].input.__setitem__(0, "nowhere"),
    "'lost' is never made": lambda p: setattr(p.graph.output[0], "name", "lost"),
    "'later' is never made": _reorder,
    "NaN": _store_nan,
    r"operator sets set\(\)": lambda p: p.ClearField("opset_import"),
    r"operator sets \{99\}": lambda p: setattr(p.opset_import[0], "version", 99),
    "broadcast": _make_outdated,
    "no floating-point": lambda p: setattr(
        p.graph.input[0].type.tensor_type, "elem_type", TensorProto.INT64
    ),
    "declared float16": lambda p: setattr(
        p.graph.output[0].type.tensor_type, "elem_type", TensorProto.FLOAT16
    ),
    "local functions": _add_function,
    "makes no sense": lambda p: p.graph.initializer[0].dims.__setitem__(0, 3),
    "a tensor of shape": lambda p: setattr(
        p.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 1 << 40
    ),
}


@pytest.mark.parametrize("reason", list(DAMAGE))
def test_damaged_models_are_refused(reason: str) -> None:
    proto = single("Gemm", (1, 2), weights(2, 2), weights(2))
    read(proto)
    DAMAGE[reason](proto)
    with pytest.raises(Unusable, match=reason):
        read(proto)


FORMS = {
    "reduction": single("ScatterND", (3,), np.array([[0]]), (1,), opset=16, reduction="add"),
    "written twice": single("ScatterND", (3,), np.array([[0], [-3]]), (2,)),
    "axes": single(
        "Slice", (4, 4), integers(0, 1), integers(2, 3), integers(0, -2), integers(1, 1)
    ),
    "batch_dims": single("GatherND", (2, 2), np.array([[0], [1]]), batch_dims=1),
    "mode": single("Pad", (3,), integers(1, 1), mode="nonsense"),
    "too many values": model_of(
        [
            helper.make_node(
                "Constant", [], ["c"], value_int=2, value=numpy_helper.from_array(weights(2))
            ),
            helper.make_node("Add", ["x", "c"], ["y"]),
        ],
        {"x": (2,)},
        ["y"],
    ),
    "unknown": single("Clip", (3,), min=0.0, opset=11),
    "deprecated": single("Upsample", (1, 1, 2, 2), np.ones(4, dtype=FLOATS), opset=10),
    "argument: 'axis'": single("Concat", (1, 2), (1, 2)),
    "input 1 is missing": single("Slice", (3,), None, None),
    "No schema": single("Trilu", (3, 3), opset=9),
    "a tensor of shape": single("Expand", (1,), integers(1 << 20, 1 << 20)),
    "training_mode": single("Dropout", (3,), FLOATS(0.5), np.array(True), opset=13),
    "storage_order": single("MaxPool", IMAGE, kernel_shape=[1, 1], storage_order=1),
    "auto_pad": single("Conv", IMAGE, weights(2, 3, 2, 2), auto_pad="SOMEHOW"),
    "leave out part": single(
        "Conv", IMAGE, weights(2, 3, 1, 1), auto_pad="SAME_UPPER", strides=[1, 9]
    ),
    "'ceil_mode': 2": single("AveragePool", IMAGE, kernel_shape=[2, 2], ceil_mode=2),
    "negative pads": single("Conv", IMAGE, weights(2, 3, 2, 2), pads=[-1, 0, 0, 0]),
    "kernel_shape": single("Conv", IMAGE, weights(2, 3, 2, 2), kernel_shape=[2, 3]),
    "channels": single("Conv", IMAGE, weights(2, 2, 2, 2)),
    "output_shape": single("ConvTranspose", IMAGE, weights(3, 1, 3, 3), output_shape=[90, 90]),
}


@pytest.mark.parametrize("reason", list(FORMS))
def test_forms_that_are_refused(reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        read(FORMS[reason])


@given(seed=st.integers(0, 2**32 - 1))
def test_damage_is_refused_or_harmless(seed: int) -> None:
    """Whatever a file holds, reading ends with a network or with `Unusable`."""
    rng = np.random.default_rng(seed)
    proto = test_rules.ALL[rng.integers(len(test_rules.ALL))]
    data = bytearray(proto.SerializeToString())
    for place in rng.integers(len(data), size=rng.integers(1, 4)):
        data[place] = rng.integers(256)
    try:
        network = read_network(bytes(data))
    except Unusable:
        return
    assert network.output.max(initial=-1) < network.size <= 1 << 26


def test_the_reader_loads_nothing_of_the_engine() -> None:
    code = (
        "import sys, onnxcert.checker.model\n"
        "allowed = ('onnxcert', 'onnxcert.checker')\n"
        "names = [n for n in sys.modules if n.startswith('onnxcert') and n not in allowed]\n"
        "sys.exit(not all(n.startswith('onnxcert.checker.') for n in names))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
