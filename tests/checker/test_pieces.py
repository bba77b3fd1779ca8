"""Rule R19: sums of relus of one number, against exact arithmetic and against the engine."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from onnxcert.checker import pieces
from onnxcert.checker.bounds import merged
from onnxcert.checker.model import read_network
from onnxcert.checker.network import Curve, Network
from onnxcert.checker.quadratic import Quadratic
from onnxcert.frontend.onnx import load_model
from onnxcert.ops import PiecewiseLinear
from onnxcert.passes import join_relus
from onnxcert.sets import Box
from tests.checker.makers import (
    ACCEPTED,
    Arrays,
    Header,
    assert_slopes_prove_nothing_false,
    made,
    tables,
)
from tests.frontend.onnx_models import model_of
from tests.oracles import exact_curve, extended

NUMBERS = st.sampled_from([0.0, 1.0, -1.0, 1e-3, 1e3, -1e6, 1e-300]) | st.floats(-4, 4)
ENDS = st.sampled_from([0.0, 5e-324, -1e-8, 1e3, -1e3, 1e30, -1e30]) | st.floats(-8, 8)
KNOTS = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
WEIGHT = np.array([1.0, -1.5, 2.0, -2.5, 1.5])


@st.composite
def tables_of(draw: st.DrawFn) -> np.ndarray:
    """A row: c, then weights, factors and shifts, and what follows from those."""
    count = draw(st.integers(1, 5))
    with np.errstate(all="ignore"):  # as in a check
        return pieces.completed(np.array([[draw(NUMBERS) for _ in range(1 + 3 * count)]]))


def engine(table: np.ndarray) -> PiecewiseLinear:
    parts = np.split(table[:, 1:], 5, axis=1)
    return PiecewiseLinear(len(table), parts[0], parts[1], parts[2], table[:, 0])


def largest(table: np.ndarray) -> float:
    """Of the numbers that are no knots or heights."""
    return float(abs(table[:, : 1 + 3 * (table.shape[1] // 5)]).max())


def exact_knots(table: np.ndarray) -> list[Fraction]:
    _, factor, shift, _, _ = np.split(table[0, 1:], 5)
    return [-Fraction(t) / Fraction(s) for s, t in zip(factor, shift, strict=True) if s]


@given(
    table=tables_of(),
    ends=st.tuples(ENDS, ENDS),
    free=st.none() | st.floats(0, 1) | st.just(float("nan")),
)
def test_lines_and_interval_hold(
    table: np.ndarray, ends: tuple[float, float], free: float | None
) -> None:
    """At both ends, between them, and at the exact knots: f minus a line is extreme there."""
    low, high = min(ends), max(ends)
    box = np.array([[low]]), np.array([[high]])
    position = None if free is None else np.array([[free]])
    with np.errstate(all="ignore"):  # as in a check
        found = pieces.lines(table, *box, position)
        interval = pieces.interval(table, *box)
    lower_slope, lower, upper_slope, upper = extended(part[0, 0] for part in found)
    least, most = extended(part[0, 0] for part in interval)
    middle = (Fraction(low) + Fraction(high)) / 2
    inside = [z for z in exact_knots(table) if low < z < high]
    for z in (Fraction(low), Fraction(high), middle, *inside):
        (height,) = exact_curve(engine(table), [z])
        assert lower_slope * z + lower <= height <= upper_slope * z + upper
        assert least <= height <= most


@given(table=tables_of(), ends=st.tuples(ENDS, ENDS), free=st.floats(0, 1))
def test_an_audit_finds_lines_that_cross(
    table: np.ndarray, ends: tuple[float, float], free: float
) -> None:
    low, high = min(ends), max(ends)
    with np.errstate(all="ignore"):
        found = pieces.lines(table, np.array([[low]]), np.array([[high]]), np.array([[free]]))
    if not all(np.isfinite(part).all() for part in found):
        return
    below, lower, above, upper = (Fraction(part[0, 0]) for part in found)
    box = Fraction(low), Fraction(high)
    assert not pieces.crosses(table[0], -1, below, lower, *box)
    assert not pieces.crosses(table[0], 1, above, upper, *box)
    # The line touches the curve but for what rounding may do, which is far less than this.
    size = (1 + largest(table)) ** 2 * (1 + max(abs(low), abs(high)))
    nudge = Fraction(size * 1e-6)
    assert pieces.crosses(table[0], -1, below, lower + nudge, *box)
    assert pieces.crosses(table[0], 1, above, upper - nudge, *box)


@given(
    table=tables_of(),
    ends=st.tuples(st.floats(-8, 8), st.floats(-8, 8)),
    code=st.integers(0, 255),
)
def test_lines_are_those_of_the_engine(
    table: np.ndarray, ends: tuple[float, float], code: int
) -> None:
    """Otherwise no margin found by one of them would be there for the other."""
    low, high = np.array([[min(ends)]]), np.array([[max(ends)]])
    for free in (None, np.array([[code / 255.0]])):
        with np.errstate(all="ignore"):
            theirs = engine(table).relax(Box(low, high), free)
            ours = pieces.lines(table, low, high, free)
        size = 1e-5 * (1.0 + largest(table)) ** 2
        for z in (low, high):
            sides = theirs.lower_slope * z + theirs.lower_offset
            assert (ours[0] * z + ours[1])[0, 0] == pytest.approx(sides[0, 0], abs=size)
            sides = theirs.upper_slope * z + theirs.upper_offset
            assert (ours[2] * z + ours[3])[0, 0] == pytest.approx(sides[0, 0], abs=size)


def test_nothing_is_said_where_values_overflow() -> None:
    with np.errstate(all="ignore"):
        table = pieces.completed(np.array([[0.0, 1e300, -1e300, 1e10, 1e10, 0.0, 0.0]]))
    low, high = np.array([[-1.0]]), np.array([[np.inf]])
    for end in (np.inf, 1e300):
        high[:] = end
        with np.errstate(all="ignore"):
            assert [float(s[0, 0]) for s in pieces.interval(table, low, high)] == [-np.inf, np.inf]
            found = [float(part[0, 0]) for part in pieces.lines(table, low, high, None)]
        assert found == [0.0, -np.inf, 0.0, np.inf]


# Detection


def curves(network: Network, *, executed: bool = False) -> list[Curve]:
    blocks = merged(network, executed=executed)
    return [b for b in blocks if isinstance(b, Curve) and b.kind == pieces.PIECES]


def read(model: Any) -> Network:
    return read_network(model.SerializeToString())


def test_sums_of_relus_of_one_number_are_curves() -> None:
    network = read(tables(WEIGHT, KNOTS))
    (curve,) = curves(network)
    assert (curve.label, curve.size) == ("parts", 3)
    assert curve.slope is not None
    assert curve.slope.shape == (3, 26)
    x = [Fraction(1, 3), Fraction(-3, 7)]
    v = np.array([Fraction(0)] * (network.size + 1), object)
    v[:2] = x
    for block in merged(network, executed=False)[1:]:
        v[block.start : block.start + block.size] = block.values(v)
    assert v[network.output].tolist() == network.evaluate(x)


def test_executions_have_no_such_curves() -> None:
    assert not curves(read(tables(WEIGHT, KNOTS)), executed=True)


def test_engine_and_checker_agree_on_who_is_who() -> None:
    weight = np.stack([WEIGHT, 2.0 * WEIGHT, -WEIGHT], axis=1)
    model = tables(weight, KNOTS, np.array([2, 0, 1]))
    (curve,) = curves(read(model))
    joined = join_relus(load_model(model).lowered)
    (node,) = (n for n in joined.nodes if isinstance(n.op, PiecewiseLinear))
    assert isinstance(node.op, PiecewiseLinear)
    assert node.neurons is not None
    assert node.neurons.label == curve.label
    numbers = curve.at(node.neurons.at(np.arange(3)))
    z = np.array([[0.3, -0.7, 0.9]])
    assert curve.slope is not None
    below, above = pieces.interval(curve.slope[numbers], z, z)
    values = node.op.value(z)
    assert (below <= values).all()
    assert (values <= above).all()
    assert (above - below < 1e-10).all()


def test_what_others_read_of_the_differences_stays() -> None:
    """Half of what a subtraction makes goes to relus, the other half somewhere else."""
    rng = np.random.default_rng(0)
    constants = {
        "knots": np.float32([[-1.0, -0.5, 0.5, 1.0]]),
        "axis": np.array([2]),
        "first": np.array([0]),
        "second": np.array([1]),
        "m": np.float32([1.0, -2.0, 2.0, -1.0]),
        "u": np.round(4 * rng.normal(size=(4, 1))).astype(np.float32),
    }
    nodes = [
        helper.make_node("Unsqueeze", ["x", "axis"], ["column"]),
        helper.make_node("Sub", ["column", "knots"], ["from"]),
        helper.make_node("Gather", ["from", "first"], ["one"], axis=1),
        helper.make_node("Gather", ["from", "second"], ["other"], axis=1),
        helper.make_node("Relu", ["one"], ["parts"]),
        helper.make_node("MatMul", ["parts", "m"], ["total"]),
        helper.make_node("MatMul", ["other", "u"], ["linear"]),
        helper.make_node("Squeeze", ["linear", "axis"], ["flat"]),
        helper.make_node("Add", ["total", "flat"], ["y"]),
    ]
    model = model_of(nodes, {"x": [1, 2]}, ["y"], constants)
    network = read(model)
    (curve,) = curves(network)
    assert curve.size == 1
    x = [Fraction(1, 3), Fraction(-3, 7)]
    v = np.array([Fraction(0)] * (network.size + 1), object)
    v[:2] = x
    for block in merged(network, executed=False)[1:]:
        v[block.start : block.start + block.size] = block.values(v)
    assert v[network.output].tolist() == network.evaluate(x)
    assert network.evaluate(x) != network.evaluate([x[0], x[1] + 1])


def _read_twice() -> Any:
    model = tables(WEIGHT, KNOTS)
    model.graph.node.append(helper.make_node("ReduceSum", ["parts", "axis"], ["more"], keepdims=0))
    model.graph.node.append(helper.make_node("Add", ["y", "extra"], ["last"]))
    model.graph.node.append(helper.make_node("MatMul", ["more", "u"], ["extra"]))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:-2], nodes[-1], nodes[-2]])
    model.graph.output[0].name = "last"
    return model


def _two_numbers() -> Any:
    """The sum of two relus of one number and three of another."""
    constants = {"m": np.float32([[1, 1, 1, 0, 0], [0, 0, 0, 1, 1]]), "u": np.ones((5, 2))}
    constants = {name: array.astype(np.float32) for name, array in constants.items()}
    nodes = [
        helper.make_node("MatMul", ["x", "m"], ["z"]),
        helper.make_node("Relu", ["z"], ["h"]),
        helper.make_node("MatMul", ["h", "u"], ["y"]),
    ]
    return model_of(nodes, {"x": [1, 2]}, ["y"], constants)


@pytest.mark.parametrize(
    "model",
    [tables(WEIGHT[:3], KNOTS[:3]), _read_twice(), _two_numbers()],
    ids=["three relus", "read twice", "two numbers"],
)
def test_what_is_no_such_curve(model: Any) -> None:
    assert not curves(read(model))


def test_constants_know_every_relu() -> None:
    """Their slopes follow from bounds of what each relu of the file is applied to."""
    network = read(tables(WEIGHT, KNOTS))
    low, high = np.array([0.25, -1.0]), np.array([0.5, -0.75])
    model = Quadratic(network, (low, high))
    rng = np.random.default_rng(0)
    found = list(model._intervals((low, high)))
    assert [block.kind for block, _ in found] == ["relu"]
    for x in rng.uniform(low, high, size=(50, 2)):
        v = np.zeros(network.size + 1)
        v[:2] = x
        for block in network.blocks[1:]:
            v[block.start : block.start + block.size] = block.values(v)
        for curve, (least, most) in found:
            assert (least <= v[curve.ids]).all()
            assert (v[curve.ids] <= most).all()


# Certificates


def test_the_certificate_names_joined_neurons() -> None:
    header, arrays = made("tables").parts
    assert header["layers"] == ["parts"]
    assert len(arrays["layer"]) > 0
    assert made("tables").instance.outcome(made("tables").certificate, audit=9) == ACCEPTED


def test_no_slopes_prove_what_is_false(rng: np.random.Generator) -> None:
    it = made("tables")
    assert_slopes_prove_nothing_false(it, rng)


@pytest.mark.parametrize("position", [3, 5, 14])
def test_positions_are_those_of_sums(position: int) -> None:
    """Not of relus, of which there are thirty."""
    it = made("tables")

    def change(header: Header, arrays: Arrays) -> None:
        arrays["arg"][0] = position

    assert it.instance.outcome(it.edited(change)) == "R10"


def test_an_audit_tests_the_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that cross their curve by little, and bounds that are none the worse for it."""
    it = made("tables")
    right = pieces.lines

    def lines(*arguments: Any) -> tuple[np.ndarray, ...]:
        below, lower, above, upper = right(*arguments)
        return below, lower + 1e-6, above, upper - 1e-6

    monkeypatch.setattr(pieces, "lines", lines)
    assert it.instance.outcome(it.certificate) == ACCEPTED
    assert it.instance.outcome(it.certificate, audit=9) == "R19"
