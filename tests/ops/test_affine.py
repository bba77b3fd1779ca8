"""Affine maps: every rule of every registered operator, exactly where arithmetic is exact."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcert.arrays import UNIT_ROUNDOFF, UNIT_ROUNDOFF_FLOAT32, Array, Device
from onnxcert.ops import Affine
from onnxcert.sets import Box
from tests import strategies
from tests.oracles import exact, exact_affine, finite_difference, matrices

pytestmark = pytest.mark.parametrize(
    "op", [op for _, op in strategies.AFFINE], ids=[name for name, _ in strategies.AFFINE]
)


def whole_numbers(rng: np.random.Generator, *shape: int) -> Array:
    """Small enough that sums of products of them are exact in binary64."""
    return rng.integers(-1000, 1000, size=shape).astype(float)


def inputs_of(op: Affine, rng: np.random.Generator, count: int = 3) -> list[Array]:
    return [rng.normal(size=(count, size)) for size in op.input_sizes]


def test_shapes(op: Affine, rng: np.random.Generator) -> None:
    assert op.forward(inputs_of(op, rng, 5)).shape == (5, op.output_size)
    parts = op.transpose(rng.normal(size=(4, op.output_size)))
    assert [part.shape for part in parts] == [(4, size) for size in op.input_sizes]
    assert op.bias is None or op.bias.shape == (op.output_size,)


def test_forward_is_the_matrix_and_the_bias(op: Affine, rng: np.random.Generator) -> None:
    whole = strategies.integral(op)
    assert isinstance(whole, Affine)
    inputs = [whole_numbers(rng, 3, size) for size in op.input_sizes]
    expected = sum(x @ m.T for m, x in zip(matrices(whole), inputs, strict=True))
    if whole.bias is not None:
        expected = expected + whole.bias
    np.testing.assert_array_equal(whole.forward(inputs), expected)


def test_transpose_is_the_adjoint_of_apply(op: Affine, rng: np.random.Generator) -> None:
    whole = strategies.integral(op)
    assert isinstance(whole, Affine)
    inputs = [whole_numbers(rng, 3, size) for size in op.input_sizes]
    rows = whole_numbers(rng, 3, op.output_size)
    forward = (whole.apply(inputs) * rows).sum(axis=1)
    parts = zip(whole.transpose(rows), inputs, strict=True)
    np.testing.assert_array_equal(sum((part * x).sum(axis=1) for part, x in parts), forward)


def widened(values: Array, columns: Array | None, size: int) -> Array:
    """Narrow rows over all columns."""
    if columns is None:
        return values
    assert (np.diff(columns) > 0).all()
    dense = np.zeros((len(values), size))
    dense[:, columns] = values
    return dense


def test_one_hot_rows_are_the_transposed_unit_rows(op: Affine, rng: np.random.Generator) -> None:
    index = rng.integers(op.output_size, size=6)
    expected = op.transpose(np.eye(op.output_size)[index])
    for narrow, part in zip(op.one_hot_rows(index), expected, strict=True):
        np.testing.assert_array_equal(widened(*narrow, part.shape[1]), part)


@given(data=st.data())
def test_narrow_rows_are_rows_with_zeros_left_out(op: Affine, data: st.DataObject) -> None:
    positions = st.integers(0, op.output_size - 1)
    columns = np.array(sorted(data.draw(st.sets(positions, min_size=1, max_size=5))))
    whole = strategies.integral(op)
    assert isinstance(whole, Affine)
    rows = np.random.default_rng(data.draw(strategies.seeds)).integers(
        -9, 9, size=(3, len(columns))
    )
    dense = np.zeros((3, op.output_size))
    dense[:, columns] = rows
    parts = whole.transpose_on(rows.astype(float), columns)
    for narrow, part in zip(parts, whole.transpose(dense), strict=True):
        np.testing.assert_array_equal(widened(*narrow, part.shape[1]), part)


@pytest.mark.parametrize("known", [False, True])
def test_locality_ranks_every_output(op: Affine, known: bool) -> None:
    ranks = [np.arange(size)[::-1] if known else None for size in op.input_sizes]
    rank = op.locality(ranks)
    assert rank is None or rank.shape == (op.output_size,)


def test_vector_jacobian_product(op: Affine, rng: np.random.Generator) -> None:
    inputs = inputs_of(op, rng)
    gradient = rng.normal(size=(3, op.output_size))
    for number, part in enumerate(op.vjp(gradient, inputs)):

        def total(x: Array, number: int = number) -> float:
            changed = [x if i == number else other for i, other in enumerate(inputs)]
            return float((gradient * op.forward(changed)).sum())

        np.testing.assert_allclose(
            part, finite_difference(total, inputs[number]), rtol=1e-5, atol=1e-6
        )


def test_absolute_is_the_matrix_of_absolute_values(op: Affine) -> None:
    for magnitude, matrix in zip(matrices(op.absolute()), matrices(op), strict=True):
        np.testing.assert_array_equal(magnitude, abs(matrix))
    bias = op.absolute().bias
    assert (bias is None) == (op.bias is None)
    if bias is not None and op.bias is not None:
        np.testing.assert_array_equal(bias, abs(op.bias))


@given(data=st.data())
def test_interval_contains_exact_values(op: Affine, data: st.DataObject) -> None:
    boxes = [data.draw(strategies.boxes(size, largest=1e12)) for size in op.input_sizes]
    bounds = op.interval(boxes, UNIT_ROUNDOFF)
    points = [data.draw(strategies.points_in(box, count=1))[0] for box in boxes]
    for number in range(2):
        values = exact_affine(op, [exact(point[number]) for point in points])
        low, high = exact(bounds.lower[number]), exact(bounds.upper[number])
        for below, value, above in zip(low, values, high, strict=True):
            assert below <= value <= above


@given(seed=strategies.seeds, scale=st.sampled_from([1.0, 1e-3, 1e4]))
def test_interval_contains_binary32_in_any_order(op: Affine, seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    single = op.to(Device(), np.float32)
    points = [(scale * rng.normal(size=(1, size))).astype(np.float32) for size in op.input_sizes]
    bounds = op.interval(
        [Box(p.astype(float), p.astype(float)) for p in points], UNIT_ROUNDOFF_FLOAT32
    )
    terms = [m.astype(np.float32) * x for m, x in zip(matrices(op), points, strict=True)]
    table = np.concatenate(terms, axis=1)
    assert table.dtype == np.float32
    if single.bias is not None:
        assert single.bias.dtype == np.float32
        table = np.concatenate([table, single.bias[:, None]], axis=1)
    for _ in range(4):
        total = np.zeros(op.output_size, dtype=np.float32)
        for column in rng.permutation(table.shape[1]):
            total = total + table[:, column]
        assert total.dtype == np.float32
        assert ((bounds.lower[0] <= total) & (total <= bounds.upper[0])).all()


def test_other_precision_keeps_the_map(op: Affine, rng: np.random.Generator) -> None:
    single = strategies.integral(op).to(Device(), np.float32)
    assert isinstance(single, Affine)
    inputs = [whole_numbers(rng, 2, size) for size in op.input_sizes]
    result = single.forward([x.astype(np.float32) for x in inputs])
    assert result.dtype == np.float32
    whole = strategies.integral(op)
    np.testing.assert_array_equal(result, whole.forward(inputs))
