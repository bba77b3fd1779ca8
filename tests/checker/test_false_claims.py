"""False claims by the shortest way: certificates by hand for instances that have a solution.

Each was accepted once, or aims at a place where a rule could forget something: an error term, a
number that overflows in binary32, the constant zero, a path with more splits than were counted.
"""

from __future__ import annotations

import resource
import zipfile
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxcert.checker import container, curves
from onnxcert.checker.certificate import EXECUTED, REAL, Session
from onnxcert.checker.errors import Rejected, Unusable
from onnxcert.checker.trees import Refusal
from tests.checker.makers import (
    ACCEPTED,
    UNUSABLE,
    Instance,
    archive,
    by_hand,
    coarse,
    members_of,
    processor_seconds,
    saved,
    spec,
    witness_by_hand,
)
from tests.frontend.onnx_models import model_of
from tests.oracles import exact_values


def single(array: Any) -> np.ndarray:
    return np.asarray(array, np.float32)


def instance(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int],
    constants: dict[str, np.ndarray],
    box: Sequence[tuple[float, float]],
    rows: Sequence[tuple[Sequence[float], float]],
) -> Instance:
    """One input x, one output y with as many numbers as the rows have coefficients."""
    model = model_of(nodes, {"x": shape}, ["y"], constants)
    low, high = zip(*box, strict=True)
    return Instance(model.SerializeToString(), spec((low, high, rows), outputs=len(rows[0][0])))


def refuses(it: Instance, semantics: str = REAL) -> None:
    """Plain bounds do not refute the instance; nor need they be able to read the model."""
    try:
        outcome = it.outcome(by_hand(it, semantics=semantics))
    except Unusable:
        return
    assert outcome in ("R8", UNUSABLE)


# The constant zero


@pytest.mark.parametrize(
    ("pads", "seen"), [([1, 1, 0, 0], [0]), ([1, 0, 0, 1], [0, 1]), ([0, 1, 1, 0], [0, 2])]
)
def test_padding_reads_no_input(pads: list[int], seen: list[int]) -> None:
    """The pixels under the window are 0, those that no window reads are 1."""
    node = helper.make_node("Conv", ["x", "w"], ["c"], pads=pads, strides=[2, 2])
    flat = helper.make_node("Reshape", ["c", "s"], ["y"])
    weight = single([[[[1, 10], [100, 1000]]]])
    box = [(0.0, 0.0) if pixel in seen else (1.0, 1.0) for pixel in range(4)]
    it = instance(
        [node, flat], [1, 1, 2, 2], {"w": weight, "s": np.array([1, 1])}, box, [([1], 50)]
    )
    x = np.array([low for low, _ in box])
    assert exact_values(it.graph, x)[it.graph.output] == [0]
    assert it.is_solved_by(x.tolist())
    refuses(it)


def test_padding_before_the_last_input_and_between() -> None:
    """Numbers of scalars that begin with the constant zero and go on without a gap."""
    nodes = [
        helper.make_node("Pad", ["x", "p"], ["z"]),
        helper.make_node("MatMul", ["z", "w"], ["y"]),
    ]
    for before, after in ((1, 0), (0, 1), (2, 2)):
        weight = np.arange(1, 3 + before + after)[:, None]
        constants = {"p": np.array([0, before, 0, after]), "w": single(weight)}
        it = instance(nodes, [1, 2], constants, [(1, 1), (0, 0)], [([1], before + 1)])
        assert it.is_solved_by([1.0, 0.0])
        refuses(it)
        # and slightly below that it is refuted
        it = instance(nodes, [1, 2], constants, [(1, 1), (0, 0)], [([1], before + 0.9375)])
        assert it.outcome(by_hand(it)) == ACCEPTED


# Binary32 that overflows or loses what underflows


def test_partial_sums_overflow() -> None:
    """(3e38 + 3e38) - 3e38 - 3e38 is infinite in that order."""
    weight = single([[3e38], [3e38], [-3e38], [-3e38]])
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    it = instance(nodes, [1, 4], {"w": weight}, [(1, 1)] * 4, [([-1], -1e37)])
    with np.errstate(over="ignore"):
        total = single(0)
        for part in weight[:, 0]:
            total = total + part
    assert total >= 1e37
    refuses(it, EXECUTED)


def test_products_overflow_where_the_sum_does_not() -> None:
    """1e20 (1e30 x) - 1e20 (1e30 x) + 1 is not a number in binary32, whatever is compared."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["z"]),
        helper.make_node("MatMul", ["z", "v"], ["y"]),
    ]
    constants = {"w": single([[1e30, 1e30]]), "v": single([[1e20], [-1e20]])}
    refuses(instance(nodes, [1, 1], constants, [(0.5, 1)], [([-1], -1e36)]), EXECUTED)


def test_leaky_relu_overflows() -> None:
    """-1e38 times 1e5: -1e43 in the reals, infinite in binary32."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["z"]),
        helper.make_node("LeakyRelu", ["z"], ["h"], alpha=1e5),
        helper.make_node("MatMul", ["h", "v"], ["y"]),
    ]
    constants = {"w": single([[1e38]]), "v": single([[1e-30]])}
    refuses(instance(nodes, [1, 1], constants, [(-1, -1)], [([1], -1e14)]), EXECUTED)


@pytest.mark.parametrize("operator", ["AveragePool", "GlobalAveragePool", "ReduceMean"])
def test_mean_overflows_before_it_is_divided(operator: str) -> None:
    options: dict[str, Any] = {"AveragePool": {"kernel_shape": [1, 8]}}.get(operator, {})
    nodes = [
        helper.make_node(operator, ["x"], ["z"], **options),
        helper.make_node("Reshape", ["z", "s"], ["y"]),
    ]
    if operator == "ReduceMean":
        nodes[0] = helper.make_node(operator, ["x"], ["z"], axes=[3])
    constants = {"s": np.array([1, 1])}
    it = instance(nodes, [1, 1, 1, 8], constants, [(1e38, 1e38)] * 8, [([-1], -1.1e38)])
    refuses(it, EXECUTED)


@pytest.mark.parametrize(
    ("alpha", "weight", "x", "rows"),
    [
        (1e-30, 1e30, 1e20, [([-1], -1.1e20)]),  # x w overflows
        (1e30, 1e-30, 1e-15, [([1], 0.5e-15)]),  # x w is subnormal, and flushed to zero
        (2.0**61, 2.0**-80, 2.0**-69, [([1], 2.0**-89)]),
        (2.0**-61, 2.0**80, 2.0**69, [([-1], -(2.0**89))]),
    ],
)
def test_alpha_of_gemm_comes_last(
    alpha: float, weight: float, x: float, rows: list[tuple[list[float], float]]
) -> None:
    nodes = [helper.make_node("Gemm", ["x", "w"], ["y"], alpha=alpha)]
    refuses(instance(nodes, [1, 1], {"w": single([[weight]])}, [(x, x)], rows), EXECUTED)


@pytest.mark.parametrize(
    ("scale", "variance", "x", "rows"),
    [
        (1e-30, 1e-30, 1e30, [([-1], -1.1e15)]),  # x / sqrt(v) overflows
        (1e30, 1e30, 1e-37, [([1], 0.5e-22)]),  # x / sqrt(v) is less than any number
    ],
)
def test_factors_of_a_normalisation_one_after_the_other(
    scale: float, variance: float, x: float, rows: list[tuple[list[float], float]]
) -> None:
    node = helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"], epsilon=0.0)
    values = {"s": scale, "b": 0.0, "m": 0.0, "v": variance}
    constants = {name: single([value]) for name, value in values.items()}
    refuses(instance([node], [1, 1], constants, [(x, x)], rows), EXECUTED)


def test_underflow_that_is_multiplied_afterwards() -> None:
    """1e-30 x in [1e-16, 1e-15] is lost where subnormals are flushed; 1e38 would bring it back."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["z"]),
        helper.make_node("MatMul", ["z", "v"], ["t"]),
        helper.make_node("MatMul", ["t", "v"], ["y"]),
    ]
    constants = {"w": single([[1e-30]]), "v": single([[1e18]])}
    it = instance(nodes, [1, 1], constants, [(1e-9, 2e-9)], [([1], 1e-4)])
    assert it.outcome(by_hand(it)) == ACCEPTED  # y is 1e-3 in the reals
    refuses(it, EXECUTED)


@pytest.mark.parametrize("through", ["input", "relu", "bias"])
def test_subnormal_numbers_that_are_flushed(through: str) -> None:
    """2^125 times 2^-130 is 2^-5, and 0 where the executor knows no subnormal numbers."""
    nodes = [helper.make_node("MatMul", ["h", "w"], ["y"])]
    constants = {"w": single([[2.0**125]])}
    tiny = 2.0**-130
    if through == "bias":
        nodes.insert(0, helper.make_node("Gemm", ["x", "e", "b"], ["h"]))
        constants |= {"e": single([[1]]), "b": single([tiny])}
    else:
        first = "Relu" if through == "relu" else "Identity"
        nodes.insert(0, helper.make_node(first, ["x"], ["h"]))
    x = 0.0 if through == "bias" else tiny
    it = instance(nodes, [1, 1], constants, [(x, x)], [([1], 2.0**-6)])
    assert it.outcome(by_hand(it)) == ACCEPTED
    refuses(it, EXECUTED)


@pytest.mark.parametrize(("alpha", "x"), [(0.5, -(2.0**-126)), (2.0**-20, -(2.0**-120))])
def test_subnormal_values_of_leaky_relu_that_are_flushed(alpha: float, x: float) -> None:
    nodes = [
        helper.make_node("LeakyRelu", ["x"], ["h"], alpha=alpha),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    it = instance(
        nodes, [1, 1], {"w": single([[2.0**125]])}, [(x, x)], [([-1], -alpha * x * -(2.0**124))]
    )
    assert it.outcome(by_hand(it)) == ACCEPTED
    refuses(it, EXECUTED)


def test_sign_of_a_subnormal_number_that_is_flushed() -> None:
    nodes = [helper.make_node("Sign", ["x"], ["y"])]
    it = instance(nodes, [1, 1], {}, [(2.0**-130, 2.0**-129)], [([1], 0.5)])
    assert it.outcome(by_hand(it)) == ACCEPTED
    refuses(it, EXECUTED)


def test_products_that_underflow_in_the_checker() -> None:
    """-2^-1074 / 8 is no number of float64; 2^1143 times that is -2^66, and the bias only 2^60."""
    count = 8
    nodes = [helper.make_node("LeakyRelu", ["x"], ["h0"], alpha=0.125)]
    nodes += [helper.make_node("MatMul", [f"h{i}", "w"], [f"h{i + 1}"]) for i in range(count)]
    nodes += [
        helper.make_node("Gemm", [f"h{count}", "w", "b"], ["z"]),
        helper.make_node("Sign", ["z"], ["y"]),
    ]
    constants = {"w": single([[2.0**127]]), "b": single([2.0**60])}
    x = -5e-324
    it = instance(nodes, [1, 1], constants, [(x, x)], [([1], 0)])
    assert it.is_solved_by([x])
    refuses(it)


# Errors of sums, charged where each of them counts


def steps(constants: dict[str, np.ndarray], x: np.ndarray) -> np.float32:
    """One after the other in binary32: ((0 + w_0 x_0) + w_1 x_1) + ... + bias."""
    total = np.float32(0)
    for weight, value in zip(constants["w"][:, 0], x, strict=True):
        total = np.float32(total + weight * value)
    return np.float32(total + constants["b"][0])


WIDE = 2.0**22  # where binary32 has steps of one half


def test_sum_that_only_a_curve_reads() -> None:
    """y = relu(2^22 - 2^22 + x + 16); what x loses is charged with the line of the relu."""
    constants = {"w": single([[WIDE], [1], [-WIDE]]), "b": single([16])}
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["z"]),
        helper.make_node("Relu", ["z"], ["y"]),
    ]
    x = single([1, 7 / 32, 1])
    assert steps(constants, x) == 16
    box = [(1, 1), (7 / 32, 7 / 32), (1, 1)]
    it = instance(nodes, [1, 3], constants, box, [([1], 16 + 3 / 32)])
    assert it.outcome(by_hand(it)) == ACCEPTED
    refuses(it, EXECUTED)


def test_sum_that_makes_a_neuron_inactive() -> None:
    """relu(2^22 h - 2^22 h - 7/32 + 1/8) is 0 in the reals; binary32 may lose the 7/32."""
    constants = {
        "w": single([[-WIDE], [WIDE], [-7 / 32]]),
        "b": single([1 / 8]),
        "one": single([[1]]),
    }
    nodes = [
        helper.make_node("Relu", ["x"], ["h"]),
        helper.make_node("Concat", ["h", "h", "one"], ["k"], axis=1),
        helper.make_node("Gemm", ["k", "w", "b"], ["z"]),
        helper.make_node("Relu", ["z"], ["y"]),
    ]
    # The constant is added to the first product: that leaves 1/8, not -3/32.
    sums = {"w": constants["w"][[0, 2, 1]], "b": constants["b"]}
    assert steps(sums, single([1, 1, 1])) == 1 / 8
    it = instance(nodes, [1, 1], constants, [(0.5, 1)], [([-1], -1 / 16)])
    assert it.outcome(by_hand(it)) == ACCEPTED
    refuses(it, EXECUTED)


def test_multiplier_of_a_neuron_whose_sum_is_rounded() -> None:
    """Where 13/32 - x_1 <= 1/64 as it is executed, y = x_1 may be 9/32."""
    constants = {
        "w": single([[-WIDE], [-1], [WIDE]]),
        "b": single([13 / 32]),
        "v": single([[0], [1], [0], [0]]),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["z"]),
        helper.make_node("Relu", ["z"], ["h"]),
        helper.make_node("Concat", ["x", "h"], ["k"], axis=1),
        helper.make_node("MatMul", ["k", "v"], ["y"]),
    ]
    assert steps(constants, single([1, 9 / 32, 1])) <= 1 / 64
    it = instance(nodes, [1, 3], constants, [(1, 1), (0, 1), (1, 1)], [([1], 10 / 32)])
    arrays = {
        "group": [[1, 1, 3, 0, 0, 0]],
        "case": [0],
        "op": [1, 0, 0],
        "arg": [0],
        "layer": [0],
        "point": [1 / 64],
        "multiplier": [coarse(1.0), 0],
        "weight": [coarse(1.0), coarse(1.0)],
    }
    for semantics, refused in ((REAL, [2]), (EXECUTED, [1, 2])):
        found: list[Refusal] = []
        certificate = by_hand(it, arrays, layers=["h"], semantics=semantics)
        it.session.check(certificate, refused=found)
        assert [leaf.node for leaf in found] == refused


def test_multiplier_of_a_neuron_that_reads_an_input() -> None:
    """The solutions are 1/2 <= x <= 1. Above the split the multiplier times 1/4 - x is negative."""
    it = instance([helper.make_node("Relu", ["x"], ["y"])], [1, 1], {}, [(-1, 1)], [([-1], -1 / 2)])
    assert it.is_solved_by([1.0])
    arrays = {
        "group": [[1, 1, 3, 0, 0, 0]],
        "case": [0],
        "op": [1, 0, 0],
        "arg": [0],
        "layer": [0],
        "point": [1 / 4],
        "multiplier": [0, coarse(100.0)],
        "weight": [coarse(1.0)] * 2,
    }
    assert it.outcome(by_hand(it, arrays, layers=["y"])) == "R8"


@pytest.mark.parametrize("count", [100, 1000])
def test_constants_that_are_lost_one_by_one(count: int) -> None:
    """Layers that each add a little less than half a unit of what they are subtracted from."""
    little = np.float32(0.99 * 2.0**-53)
    nodes, value = [helper.make_node("Neg", ["x"], ["v0"])], "v0"
    for number in range(1, count + 1):
        # A product by one between the offsets, so that nothing can add them up beforehand.
        nodes.append(helper.make_node("Gemm", [value, "e", "b"], [f"v{number}"]))
        value = f"v{number}"
    nodes.append(helper.make_node("Gemm", [value, "n", "c"], ["y"]))
    top = 1 + 2.0**-23
    constants = {"e": single([[1]]), "b": single([little]), "n": single([[-1]]), "c": single([top])}
    lowest = Fraction(top) - count * Fraction(float(little))
    it = instance(nodes, [1, 1], constants, [(0, 0)], [([1], 4)])
    refused: list[Refusal] = []
    it.session.check(by_hand(it), refused=refused)
    assert Fraction(refused[0].lower) <= lowest - 4
    below = instance(nodes, [1, 1], constants, [(0, 0)], [([1], top - 1e-6)])
    assert below.outcome(by_hand(below)) == ACCEPTED


# More of something than was counted


@pytest.mark.parametrize("depth", [50, 1000, 4090, 4094, 4095, 5500])
def test_long_path(depth: int) -> None:
    """Splits whose multipliers are small beside the first one, each by less than a rounding."""
    nodes = [
        helper.make_node("MatMul", ["x", "e"], ["a"]),
        helper.make_node("Relu", ["a"], ["p"]),
        helper.make_node("MatMul", ["p", "e"], ["c"]),
        helper.make_node("Relu", ["c"], ["w"]),
        helper.make_node("MatMul", ["w", "e"], ["y"]),
    ]
    it = instance(nodes, [1, 1], {"e": single([[1]])}, [(1, 1)], [([1], 2)])
    assert it.is_solved_by([1.0])
    large, small = coarse(2.0**53), coarse(127 / 128)
    eps, near = 2.0**-42, 2.0**-44
    multipliers: list[int] = [0] * (depth + 2) + [large] + [small] * depth + [large]
    for length in range(depth + 1, 0, -1):
        multipliers += [0] * length
    arrays = {
        "group": [[1, 1, 2 * depth + 5, 0, 0, 0]],
        "case": [0],
        "op": [1] * (depth + 2) + [0] * (depth + 3),
        "arg": [0] * (depth + 2),
        "layer": [0] + [1] * depth + [0],
        "point": [1 + near] + [1 + eps] * depth + [1 - near],
        "multiplier": multipliers,
        "weight": [coarse(1.0)] * (depth + 3),
    }
    with processor_seconds(20):
        outcome = it.outcome(by_hand(it, arrays, layers=["p", "w"]))
    assert outcome == ("R10" if depth + 2 > 4096 else "R8")


@pytest.mark.parametrize("row", [[1.0, 2.0**60, -(2.0**60)], [2.0**60, 1.0, -(2.0**60)]])
def test_one_value_read_three_times(row: list[float]) -> None:
    """The form is x, in [-1, -0.9]; adding up its three parts at x loses the one that counts."""
    for operator in ("Concat", "Gather"):
        if operator == "Concat":
            nodes = [helper.make_node("Concat", ["x", "x", "x"], ["c"], axis=1)]
        else:
            nodes = [helper.make_node("Gather", ["x", "i"], ["c"], axis=1)]
        nodes.append(helper.make_node("MatMul", ["c", "w"], ["y"]))
        constants = {"w": single(row)[:, None], "i": np.array([0, 0, 0])}
        it = instance(nodes, [1, 1], constants, [(-1, -0.9375)], [([1], -0.96875)])
        assert it.is_solved_by([-1.0])
        refuses(it)
        refuses(it, EXECUTED)


def test_rows_of_the_specification_that_cancel() -> None:
    """Coefficients of outputs that stand for the same number."""
    nodes = [helper.make_node("Concat", ["x", "x", "x"], ["y"], axis=1)]
    rows = [([2.0**60, 1.0, -(2.0**60)], -0.96875)]
    it = instance(nodes, [1, 1], {}, [(-1, -0.9375)], rows)
    assert it.is_solved_by([-1.0])
    refuses(it)


# Tensors of a specification that are not those of the model

TWO_OUTPUTS = """(vnnlib-version <2.0>)
(declare-network N (declare-input X {kind} {shape})
  (declare-output P {kind} {first}) (declare-output Q {kind} {second}))
(assert (and (>= X[0,0] 1.0) (<= X[0,0] 1.0) (<= {read} 0.5)))
"""


def two_outputs() -> onnx.ModelProto:
    """p = (x, 0) and q = (x)."""
    constants = {"w": single([[1, 0]])}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Neg", ["x"], ["n"]),
        helper.make_node("Neg", ["n"], ["q"]),
    ]
    return model_of(nodes, {"x": [1, 1]}, ["p", "q"], constants)


def test_outputs_of_other_shapes_are_not_the_outputs() -> None:
    """Three numbers in all, but the second one belongs to p in the model and to Q in the text."""
    data = two_outputs().SerializeToString()
    right = {"kind": "real", "shape": "[1,1]", "first": "[1,2]", "second": "[1,1]"}
    wrong = right | {"first": "[1,1]", "second": "[1,2]"}
    it = Instance(data, TWO_OUTPUTS.format(**right, read="Q[0,0]").encode())
    assert it.outcome(by_hand(it)) == ACCEPTED
    it = Instance(data, TWO_OUTPUTS.format(**right, read="P[0,1]").encode())
    assert it.outcome(by_hand(it)) == "R8"
    with pytest.raises(Unusable):
        Session(data, TWO_OUTPUTS.format(**wrong, read="Q[0,1]").encode())


@pytest.mark.parametrize("kind", ["float16", "float64", "bfloat16"])
def test_types_of_another_model(kind: str) -> None:
    declared = {"kind": kind, "shape": "[1,1]", "first": "[1,2]", "second": "[1,1]"}
    text = TWO_OUTPUTS.format(**declared, read="Q[0,0]").encode()
    with pytest.raises(Unusable):
        Session(two_outputs().SerializeToString(), text)


# Curves where nothing varies


@pytest.mark.parametrize("kind", ["sigmoid", "tanh"])
def test_lines_on_a_point(kind: str) -> None:
    for point in (0.0, -0.0, 1e-300, -1e-300, 5e-324, 1.0, -30.0, 800.0):
        z = np.full(1, point)
        for number in curves.lines(kind, z, z, None, None, False):
            assert np.isfinite(number).all()


def relu_of_x(bound: float, low: float, high: float) -> Instance:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    return instance(nodes, [1, 1], {}, [(low, high)], [([1], bound)])


# Damage that ended in other exceptions, in a hang, or took all memory


def test_witness_whose_decimal_is_outside_of_the_input() -> None:
    it = relu_of_x(2.0, 0.5, 1.0)
    decimals = {"0": "1" * 3000}, {"0": "1e9999999"}, {"0": "1e400"}, {"0": "-" + "9" * 650}
    for table in decimals:
        with processor_seconds(5):
            assert it.outcome(witness_by_hand(it, single([[0.75]]), table)) == "R13"


def test_decimal_of_an_input_that_has_floats_in_its_box() -> None:
    """The float below the box is rounded from numbers inside, but the box has floats of its own."""
    text = (
        "(declare-const X_0 Real) (declare-const Y_0 Real) "
        "(assert (and (>= X_0 0.1000000015) (<= X_0 1.0) (<= Y_0 0.1000000015)))"
    )
    it = Instance(relu_of_x(0, 0, 1).model, text.encode())
    x = single([[0.1]])
    assert Fraction(float(x[0, 0])) < Fraction("0.1000000015")
    certificate = witness_by_hand(it, x, {"0": "1000000015/10000000000"})
    try:
        claims = it.session.check(certificate).claims
    except Rejected:
        return
    assert "ort-replay" not in claims


@pytest.mark.parametrize(
    "count",
    ["op", "case", "combine", "group", "hint", "weight", "multiplier"],
)
def test_millions_of_entries(count: str) -> None:
    """As much as the container lets through is refused soon and within two gigabytes."""
    it = relu_of_x(-1.0, -1.0, 1.0)
    kind, width = container.ARRAYS[count]
    room = container.LARGEST - 4096
    entries = room // (np.dtype(kind).itemsize * max(1, width))
    table = np.ones((entries, width) if width else entries, kind)
    if count == "case":
        table = np.arange(entries, dtype=kind)
    group = [int(count == "hint"), 1, 1, 0, 0, 0]
    fields = {"op": 2, "case": 1, "combine": 3, "hint": 5}
    if count in fields:
        group[fields[count]] = entries
    members = dict(members_of(by_hand(it, {"group": [group], "case": [0], "op": [0]})))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    members[f"{count}.npy"] = saved(table)
    certificate = archive(list(members.items()), zipfile.ZIP_STORED)
    del table, members
    with processor_seconds(30):
        outcome = it.outcome(certificate)
    assert outcome in ("R0", "R8", "R10", "container")
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after <= max(before, 2 << 20), f"{after >> 10} MB"


def test_plain_bounds_are_enough_where_they_are() -> None:
    """The helper above does not refuse everything."""
    it = relu_of_x(-0.5, -1.0, 1.0)
    assert it.outcome(by_hand(it)) == ACCEPTED
    assert it.outcome(by_hand(it, semantics=EXECUTED)) == ACCEPTED
    assert relu_of_x(0.0, -1.0, 1.0).outcome(by_hand(relu_of_x(0.0, -1.0, 1.0))) == "R8"
