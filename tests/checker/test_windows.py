"""Rows through the sums of a block, whole or narrow, against sums written out."""

from __future__ import annotations

from fractions import Fraction
from typing import Any
from unittest import mock

import numpy as np
import onnx
import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st
from onnx import helper

from onnxcert.checker import coefficients
from onnxcert.checker.bounds import Bounder
from onnxcert.checker.coefficients import Part, Pending
from onnxcert.checker.network import Affine, Array, Entries, Network, Pick, Product, Term
from tests.checker.test_model import read
from tests.checker.test_rounding import exactly, pulled
from tests.frontend.onnx_models import model_of


@st.composite
def convolutions(draw: st.DrawFn) -> onnx.ModelProto:
    """One convolution, transposed or not, of one or two images, with whole numbers."""
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    images, groups, per_input, per_output = (draw(st.integers(1, 2)) for _ in range(4))
    kernel, strides, dilations = (
        [draw(st.integers(1, most)) for _ in range(2)] for most in (3, 3, 2)
    )
    transposed = draw(st.booleans())
    pads = [draw(st.integers(0, 1)) for _ in range(4)]
    shape = [images, groups * per_input, *(draw(st.integers(5, 6)) for _ in range(2))]
    channels = (groups * per_input, per_output) if transposed else (groups * per_output, per_input)
    node = helper.make_node(
        "ConvTranspose" if transposed else "Conv",
        ["x", "w"],
        ["y"],
        strides=strides,
        dilations=dilations,
        pads=pads,
        group=groups,
    )
    weight = rng.integers(-9, 10, (*channels, *kernel)).astype(np.float32)
    return model_of([node], {"x": shape}, ["y"], {"w": weight})


def columns(network: Network, block: Affine) -> Array:
    """The matrix of a block: (outputs, scalars)."""
    units = np.eye(network.size, network.size + 1)
    return np.stack([block.values(unit) for unit in units], axis=1)


@pytest.mark.parametrize("adding", [0, 10**9], ids=["windows", "image"])
@given(proto=convolutions(), data=st.data(), share=st.sampled_from([0.0, 0.05, 0.5, 1.0]))
def test_rows_through_windows(
    adding: int, proto: onnx.ModelProto, data: st.DataObject, share: float
) -> None:
    network = read(proto)
    (block,) = network.blocks[1:]
    assert isinstance(block, Affine)
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    with mock.patch.object(coefficients, "_ADDING", adding):
        (part,) = Bounder(network, executed=False).parts[1]
    used = np.flatnonzero(rng.random(block.size) < share)
    rows = np.zeros((3, block.size))
    rows[:, used] = rng.integers(-9, 10, (3, len(used)))
    expected = (rows @ columns(network, block))[:, : network.n_inputs]
    event(f"parts: {len(part.phases)}")
    for given_rows in ((rows, None), (rows[:, used], used)):
        with mock.patch.object(coefficients, "_WINDOWS", data.draw(st.sampled_from([1, 1 << 20]))):
            pending: Pending = {}
            part.push(pending, *given_rows)
        made = pending[0].wide() if 0 in pending else np.zeros_like(expected)
        np.testing.assert_array_equal(made, expected)
    assert part.fan >= np.count_nonzero(columns(network, block), axis=0).max()


def terms(rng: np.random.Generator) -> list[Term]:
    """Twelve outputs over eight scalars, some of them several times or never, in all ways."""

    def whole(*shape: int) -> Array:
        return rng.integers(-9, 10, shape).astype(float)

    ids = rng.integers(-1, 8, 12)
    return [
        Pick(ids),
        Pick(np.arange(-2, 10) % 9 - 1, factor=whole(12)),
        Entries(rng.integers(-1, 8, 20), rng.integers(0, 12, 20), whole(20)),
        Product(rng.permutation(8).reshape(1, 8, 1), whole(1, 12, 8)),
        Product(rng.integers(-1, 8, (3, 5, 1)), whole(3, 4, 5)),
        Product(rng.integers(-1, 8, (2, 5, 3)), whole(2, 2, 5)),
        Product(rng.integers(-1, 8, (4, 5, 3)), whole(4, 1, 5)),
    ]


@given(seed=st.integers(0, 1000), share=st.sampled_from([0.0, 0.2, 1.0]))
def test_rows_over_some_outputs(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    used = np.flatnonzero(rng.random(12) < share)
    rows = np.zeros((3, 12))
    rows[:, used] = rng.integers(-9, 10, (3, len(used)))
    for term in terms(rng):
        part = Part(term, np.array([3, 8]))
        expected = rows @ np.stack([term.apply(unit, 12) for unit in np.eye(8, 9)], axis=1)
        for given_rows in ((rows, None), (rows[:, used], used)):
            pending: Pending = {}
            part.push(pending, *given_rows)
            made = [
                pending[k].wide() if k in pending else np.zeros((3, size))
                for k, size in enumerate((3, 5))
            ]
            np.testing.assert_array_equal(np.concatenate(made, axis=1), expected)


def mixed(seed: int, mean: float = 0.0) -> onnx.ModelProto:
    """Convolutions to and fro, with a normalisation between whose mean is a constant."""
    rng = np.random.default_rng(seed)
    shapes = {"w": (3, 2, 3, 3), "v": (3, 2, 4, 4), "u": (2 * 7 * 7, 3), "s": (3,), "b": (3,)}
    constants = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    constants["m"] = (mean + rng.normal(size=3)).astype(np.float32)
    constants["q"] = np.array([0.25, 1.0, 4.0], np.float32)  # whose roots are exact
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["z"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["z", "s", "b", "m", "q"], ["n"], epsilon=0.0),
        helper.make_node("Relu", ["n"], ["h"]),
        helper.make_node("ConvTranspose", ["h", "v"], ["t"], strides=[2, 2], pads=[1, 1, 0, 0]),
        helper.make_node("Relu", ["t"], ["k"]),
        helper.make_node("Flatten", ["k"], ["f"]),
        helper.make_node("MatMul", ["f", "u"], ["y"]),
    ]
    return model_of(nodes, {"x": [1, 2, 5, 5]}, ["y"], constants)


def bounded(network: Network, low: Array, high: Array, **settings: Any) -> tuple[Bounder, Any]:
    with mock.patch.multiple(coefficients, **settings):
        bounder = Bounder(network, executed=False)
        return bounder, bounder.bound(low[None], high[None])


@given(seed=st.integers(0, 30))
@example(seed=0)
def test_narrow_rows_have_the_same_bounds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    network = read(mixed(seed))
    low = rng.normal(size=network.n_inputs)
    high = low + rng.uniform(0, 0.3, size=network.n_inputs)
    wide = bounded(network, low, high, _WIDE=1 << 30)[1]
    narrow = bounded(network, low, high, _WIDE=1)[1]
    windows = bounded(network, low, high, _WIDE=1, _ADDING=0)[1]
    for other in (narrow, windows):
        np.testing.assert_allclose(other.lower, wide.lower, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(other.upper, wide.upper, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mean", [0.0, 1e6])
@given(seed=st.integers(0, 30))
def test_constants_in_sums_are_offsets_of_forms(mean: float, seed: int) -> None:
    """No form gets behind a normalisation's mean, and what is lost by it is charged."""
    rng = np.random.default_rng(seed)
    network = read(mixed(seed, mean))
    x = rng.normal(size=network.n_inputs)
    with mock.patch.object(coefficients, "_WIDE", 1):
        bounder, r = bounded(network, x, x, _WIDE=1)
        constants = {k for k, b in enumerate(bounder.blocks) if k and not bounder.parts[k]}
        assert constants
        read_by = {j for parts in bounder.onward.values() for part in parts for j in part.reads}
        assert not constants & read_by
        rows = rng.normal(size=3)
        found = pulled(bounder, r, rows)
    values = exactly(network, x)[network.output]
    value = sum((Fraction(a) * y for a, y in zip(rows.tolist(), values, strict=True)), Fraction(0))
    assert value - Fraction(1e-8 * (1 + mean)) <= Fraction(found) <= value
