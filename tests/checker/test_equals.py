"""Rule R23: equal and opposite scalars, against exact arithmetic and against the engine."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from onnxcert.checker import equals
from onnxcert.checker.bounds import Bounder, merged
from onnxcert.checker.equals import merged_equals
from onnxcert.checker.model import read_network
from onnxcert.checker.network import Curve, Network
from onnxcert.frontend.onnx import load_model
from onnxcert.ops import Relu
from onnxcert.passes import merge_equals, simplify
from tests.checker.makers import (
    Arrays,
    Header,
    assert_slopes_prove_nothing_false,
    dense,
    lattice,
    made,
)
from tests.checker.test_bounds import scalars
from tests.frontend.onnx_models import model_of
from tests.strategies import seeds

LARGE, SMALL = 2.0**30, 2.0**-30
FACTORS = [1.0, -1.0, 0.5, 0.1, LARGE, -LARGE, SMALL, 1.0 + 2.0**-23, 0.0]


def read(model: onnx.ModelProto) -> Network:
    return read_network(model.SerializeToString())


def relus(network: Network, *, executed: bool = False) -> list[int]:
    """How many are left in each layer where all outputs are read."""
    every = np.ones(len(network.output), bool)
    blocks = Bounder(network, executed=executed, read=every).blocks
    return [block.size for block in blocks if isinstance(block, Curve)]


def values(network: Network, x: list[Fraction]) -> list[Fraction]:
    """All scalars."""
    v = np.array([Fraction(0)] * (network.size + 1), object)
    v[: len(x)] = x
    for block in network.blocks[1:]:
        v[block.start : block.start + block.size] = block.values(v)
    return [Fraction(value) for value in v]


@st.composite
def mixed(draw: st.DrawFn) -> onnx.ModelProto:
    """Layers of factors of very different size, with equal and opposite columns."""
    rng = np.random.default_rng(draw(seeds))

    def matrix(rows: int, columns: int) -> np.ndarray:
        made = rng.choice(FACTORS, size=(rows, columns))
        for _ in range(draw(st.integers(0, columns))):
            source, target = rng.integers(columns, size=2)
            made[:, target] = rng.choice([1.0, -1.0]) * made[:, source]
        return made.astype(np.float32)

    sizes = [2, 5, 4, 4, 1]
    nodes, constants = [], {}
    for number, (rows, columns) in enumerate(pairwise(sizes)):
        both = matrix(rows + 1, columns)
        constants |= {f"w{number}": both[:rows], f"b{number}": both[rows]}
        source = "x" if not number else f"h{number - 1}"
        nodes.append(helper.make_node("Gemm", [source, f"w{number}", f"b{number}"], [f"z{number}"]))
        curve = "Relu" if number % 2 == 0 else "Identity"
        nodes.append(helper.make_node(curve, [f"z{number}"], [f"h{number}"]))
    return model_of(nodes, {"x": [1, 2]}, [f"h{len(sizes) - 2}"], constants)


@given(model=mixed(), data=st.data())
def test_every_scalar_keeps_its_value(model: onnx.ModelProto, data: st.DataObject) -> None:
    network = read(model)
    x = [Fraction(data.draw(st.integers(-64, 64)), 16) for _ in range(2)]
    changed = replace(network, blocks=merged_equals(network.blocks))
    assert values(changed, x) == values(network, x)


@given(model=mixed(), data=st.data())
def test_bounds_hold(model: onnx.ModelProto, data: st.DataObject) -> None:
    network = read(model)
    bounder = Bounder(network, executed=False, read=np.ones(1, bool))
    low = np.array([data.draw(st.integers(-8, 8)) / 4 for _ in range(2)])
    high = low + data.draw(st.sampled_from([0.0, 0.25, 2.0]))
    with np.errstate(all="ignore"):  # as in a check
        r = bounder.bound(low[None], high[None])
    for _ in range(3):
        shares = [Fraction(data.draw(st.integers(0, 16)), 16) for _ in range(2)]
        ends = zip(low, high, shares, strict=True)
        x = [Fraction(a) + s * (Fraction(b) - Fraction(a)) for a, b, s in ends]
        found = scalars(bounder, x)
        for value, a, b in zip(found, r.lower[0], r.upper[0], strict=True):
            assert Fraction(float(a)) <= value <= Fraction(float(b))
        assert found[bounder.network.output[0]] == network.evaluate(x)[0]


@given(seed=seeds)
def test_neurons_that_are_left(seed: int) -> None:
    """In the search and in the checker, by their positions in the file."""
    model = lattice(seed)
    network = read(model)
    whole = [block.size for block in network.blocks if isinstance(block, Curve)]
    assert whole == [8, 6]
    bounder = Bounder(network, executed=False, read=np.ones(1, bool))
    theirs = [
        np.flatnonzero(block.at(np.arange(block.positions)) >= 0)
        for block in bounder.blocks
        if isinstance(block, Curve)
    ]
    graph = simplify(merge_equals(load_model(model).lowered))
    ours = [
        node.neurons.at(np.arange(node.op.output_size))
        for node in graph.nodes
        if isinstance(node.op, Relu) and node.neurons is not None
    ]
    assert len(theirs) == 2
    assert [a.tolist() for a in theirs] == [b.tolist() for b in ours]
    assert len(theirs[0]) <= 3
    assert len(theirs[1]) <= 4


def minimum(factor: float = 1.0, other: float | None = None) -> onnx.ModelProto:
    """min(a, b) of two inputs, by relus of a + b, -a - b, a - b and b - a."""
    other = factor if other is None else other
    constants = {
        "w": np.float32([[factor, -factor, factor, -factor], [factor, -factor, -factor, other]]),
        "m": np.float32([[0.5], [-0.5], [-0.5], [-0.5]]),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["z"]),
        helper.make_node("Relu", ["z"], ["h"]),
        helper.make_node("MatMul", ["h", "m"], ["y"]),
    ]
    return model_of(nodes, {"x": [1, 2]}, ["y"], constants)


def test_a_minimum_has_one_relu() -> None:
    network = read(minimum())
    assert relus(network) == [1]
    assert network.evaluate([Fraction(3), Fraction(5)]) == [Fraction(3)]


@pytest.mark.parametrize("executed", [False, True])
def test_executions_are_left_alone(executed: bool) -> None:
    assert (relus(read(minimum()), executed=executed) == [4]) == executed


def test_nearly_opposite_is_not_opposite() -> None:
    assert relus(read(minimum(1.0, 1.0 + 2.0**-23))) == [2]


def test_sums_that_would_be_rounded_stay() -> None:
    """A relu whose factors are 2^60 and 2^-60 is not written out: one of them would be lost."""
    constants = {
        "w": np.float32([[2.0**60, -(2.0**60)], [2.0**-60, -(2.0**-60)]]),
        "m": np.float32([[1.0], [-1.0]]),
        "u": np.float32([[1.0], [1.0]]),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["z"]),
        helper.make_node("Relu", ["z"], ["h"]),
        helper.make_node("MatMul", ["h", "m"], ["t"]),
        helper.make_node("MatMul", ["x", "u"], ["s"]),
        helper.make_node("Add", ["t", "s"], ["y"]),
    ]
    network = read(model_of(nodes, {"x": [1, 2]}, ["y"], constants))
    changed = replace(network, blocks=merged(network, executed=False))
    x = [Fraction(1, 3), Fraction(-2, 7)]
    assert changed.evaluate(x) == network.evaluate(x)


def test_what_has_nothing_equal_is_the_same_blocks() -> None:
    network = read(dense([2, 6, 5, 2], 1))
    changed = merged_equals(network.blocks)
    assert all(a is b for a, b in zip(changed, network.blocks, strict=True))


def test_no_slopes_prove_what_is_false(rng: np.random.Generator) -> None:
    it = made("lattice")
    assert_slopes_prove_nothing_false(it, rng)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("position", range(8))
def test_any_neuron_of_the_file_may_be_split(layer: int, position: int) -> None:
    """Those that are merged, too: it proves nothing false."""
    it = made("lattice")

    def change(header: Header, arrays: Arrays) -> None:
        arrays["layer"][:1] = layer
        arrays["arg"][:1] = position

    assert it.at_sibling(it.edited(change)) in ("R8", "R10")


def _broken(name: str, right: Any) -> Any:
    if name == "sign":  # opposite sums count as equal
        return lambda self, signed: (right(self, signed=signed)[0], np.ones(self.size))
    # sums with the same scalars count as equal
    return lambda self, signed: right(replace(self, value=np.sign(self.value)), signed=signed)


@pytest.mark.parametrize("name", ["sign", "factors"])
def test_what_is_merged_wrongly_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the tests above."""
    monkeypatch.setattr(equals._Sums, "groups", _broken(name, equals._Sums.groups))
    differs = False
    for seed in range(4):
        network = read(lattice(seed))
        changed = replace(network, blocks=merged_equals(network.blocks))
        for x in ([Fraction(1), Fraction(-1, 3)], [Fraction(-2), Fraction(1, 7)]):
            differs |= values(changed, x) != values(network, x)
    assert differs
